"""Distances between two sets of examples: Fréchet, kernel, sliced and exact Wasserstein; FID and KID of Inception."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...refusal import needed
from ..measurements import Z

__all__ = [
    "fid",
    "frechet",
    "frechet_variance",
    "gaussian_frechet",
    "kernel",
    "kernel_interval",
    "kid",
    "sliced_wasserstein",
    "sliced_wasserstein_of_splits",
    "wasserstein",
]


def gaussian_frechet(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians, |m_1 - m_2|² + Tr(C_1 + C_2 - 2 (C_1 C_2)^½).

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric C_1^½ C_2 C_1^½, so that no
    complex numbers arise, whatever the rank. Computed in float64. Dowson & Landau 1982; Heusel 2017, 1706.08500, eq. 6.
    Arguments:
        mean_1, mean_2: (d,).
        covariance_1, covariance_2: (d, d).
    """
    mean_1, covariance_1, mean_2, covariance_2 = (
        part.double() for part in (mean_1, covariance_1, mean_2, covariance_2)
    )
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors * values.clamp_min(0).sqrt()
    inner = root.T @ covariance_2 @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * cross
    return max(distance.item(), 0.0)


def frechet(x: Tensor, y: Tensor) -> float:
    """Return `gaussian_frechet` of the means and unbiased covariances of x (N, d) and y (M, d).

    It is biased upwards by O(1/N + 1/M): compare only at equal sizes. Raises ValueError for fewer than two of either.
    """
    _check_pair(x, y, 2)
    return gaussian_frechet(*_moments(x), *_moments(y))


def frechet_variance(x: Tensor, y: Tensor) -> float:
    """Return the plug-in variance of `frechet(x, y)` at these numbers of examples, both x and y being random.

    It is Var φ(y)/M + Var ψ(x)/N by the delta method, φ and ψ being the influence of one example on the distance:
    φ(y) = 2 (m_y - m_x)·c + |c|² - c·T c, c = y - m_y, T the optimal map between the two Gaussians,
    T = C_x^½ (C_x^½ C_y C_x^½)^-½ C_x^½, and ψ the same with x and y exchanged: Kroshnin, Spokoiny & Suvorikova 2021,
    1901.00226. Second-order terms are counted twice: see `measurements.variance_beyond`. Directions without variance
    contribute 0. Raises ValueError as `frechet`.
    """
    _check_pair(x, y, 2)
    of_x, of_y = _moments(x), _moments(y)
    return _influence(of_x, y, of_y).var().item() / len(y) + _influence(of_y, x, of_x).var().item() / len(x)


def _influence(of_x: tuple[Tensor, Tensor], y: Tensor, of_y: tuple[Tensor, Tensor]) -> Tensor:
    """Return φ of `frechet_variance` for each of y (M, d), up to a constant: (M,). of_x, of_y: means, covariances."""
    values, vectors = torch.linalg.eigh(of_x[1])
    root = vectors * values.clamp_min(0).sqrt()
    inner = root.T @ of_y[1] @ root
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    inverse = torch.where(values > 1e-12 * values.max(), values.clamp_min(1e-300).rsqrt(), 0.0)
    centred = y.double() - of_y[0]
    mapped = (centred @ (root @ vectors * inverse.sqrt())).square_().sum(1)
    return 2 * centred @ (of_y[0] - of_x[0]) + centred.square_().sum(1) - mapped


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(0, dtype=torch.float64)
    centred = x.double() - mean
    return mean, centred.T @ centred / (len(x) - 1)


def kernel(
    x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, generator: torch.Generator | None = None
) -> tuple[float, float, float]:
    """Return the unbiased estimate of MMD² under k(a, b) = (a·b/d + 1)³, and the two terms of its variance.

    The estimate is the mean over random subsets of b = min(size, N, M) examples of each set (one subset where N = M =
    b). Its expectation is 0 between equal distributions, so it may be negative. Bińkowski 2018, 1801.01401, section
    4.1. The variance over x and y is that of a U-statistic (Hoeffding 1948), estimated without bias: of first order
    4 Var f(X)/N + 4 Var f(Y)/M, f(a) = E k(a, X) - E k(a, Y) being the witness; of second order
    2 ξ_xx/N(N - 1) + 2 ξ_yy/M(M - 1) + 4 ξ_xy/NM, ξ being the mean squares of the doubly centred kernel. Both are
    estimated in the subsets; the excess of the terms at b over those at N and M is divided by the number of subsets.
    Sutherland & Deka 2019, 1906.02104; unbiased centring: Székely & Rizzo 2014, 1310.2926. Computed in float64.

    Arguments:
        x, y: (N, d) and (M, d).
        subsets, size: number and size of the subsets.
        generator: draws the subsets; by default one with seed 0.
    Returns: value, first, second; first is 0 in expectation between equal distributions, and may be negative. Both
    are NaN for subsets of fewer than four.
    Raises ValueError for fewer than two of either.
    """
    _check_pair(x, y, 2)
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets must be at least 1 and size at least 2; got {subsets} and {size}")
    generator = generator or torch.Generator().manual_seed(0)
    n, m = len(x), len(y)
    size = min(size, n, m)
    if n == m == size:
        subsets = 1
    estimates = []
    for _ in range(subsets):
        a, b = (part[torch.randperm(len(part), generator=generator)[:size]].double() for part in (x, y))
        estimates.append(_mmd(a, b))
    value, of_x, of_y, xx, yy, xy = torch.stack(estimates).mean(0).tolist()

    def parts(n: int, m: int) -> tuple[float, float]:
        return (4 * of_x / n + 4 * of_y / m, 2 * xx / (n * (n - 1)) + 2 * yy / (m * (m - 1)) + 4 * xy / (n * m))

    (first, second), (first_of_subset, second_of_subset) = parts(n, m), parts(size, size)
    return (
        value,
        first + (first_of_subset - first) / subsets,
        second + (second_of_subset - second) / subsets,
    )


def kernel_interval(value: float, first: float, second: float) -> tuple[float, float]:
    """Return the ends of the 95% interval of MMD² from the results of `kernel`.

    The interval contains the θ with |value - θ| ≤ z √(second + first θ/value), as Wilson's of a proportion: the
    first-order variance is proportional to θ, and its estimate is too small where the value is too small by chance. In
    the square root θ is at least 0, and the divisor at least the standard deviation.
    """
    first = max(first, 0.0)
    slope = first / max(value, math.sqrt(first + second), torch.finfo(torch.float64).tiny)
    half = Z * math.sqrt(second + slope * max(value, 0.0) + (Z * slope / 2) ** 2)
    centre = value + Z**2 * slope / 2
    return centre - half, centre + half


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return MMD² of x and y (b, d), float64, then Var f(X), Var f(Y), ξ_xx, ξ_yy and ξ_xy: (6,)."""
    n, d = x.shape
    # The diagonals pair an example with itself, which would bias the estimate.
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    for own in (xx, yy):
        own.fill_diagonal_(0)
    to_y, to_x = xy.mean(1), xy.mean(0)
    of_x, of_y = xx.sum(1), yy.sum(1)
    value = (of_x.sum() + of_y.sum()) / (n * (n - 1)) - 2 * to_y.mean()
    if n < 4:
        return torch.stack([value, *value.new_full((5,), torch.nan)])
    squares_of_x, squares_of_y = _interaction(xx, of_x), _interaction(yy, of_y)
    xy -= to_y[:, None]
    xy -= to_x - to_x.mean()
    squares = xy.square_().sum() / (n - 1) ** 2
    witness_x, witness_y = (of_x / (n - 2) - to_y).var(), (of_y / (n - 2) - to_x).var()
    noise = squares / n
    return torch.stack(
        [
            value,
            witness_x - squares_of_x / (n - 2) - noise,
            witness_y - squares_of_y / (n - 2) - noise,
            squares_of_x,
            squares_of_y,
            squares,
        ]
    )


def _interaction(own: Tensor, sums: Tensor) -> Tensor:
    """Return Σ (doubly centred k)²/n(n - 3) of k (n, n) with zero diagonal and row sums (n,); overwrites k."""
    n = len(own)
    own -= (sums / (n - 2) - sums.sum() / ((n - 1) * (n - 2)))[:, None]
    own -= sums / (n - 2)
    own.fill_diagonal_(0)
    return own.square_().sum() / (n * (n - 3))


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 256, generator: torch.Generator | None = None, rows: int = 32
) -> float:
    """Return the sliced 2-Wasserstein distance (E_w W_2²(w·x, w·y))^½, w uniform on the sphere.

    It is exact in each direction for any N and M: W_2² of two sets of numbers is ∫₀¹ (F⁻¹(u) - G⁻¹(u))² du of their
    quantile functions. Bonneel 2015, section 3.
    Arguments:
        x, y: (N, d) and (M, d).
        projections: number of directions.
        generator: draws the directions; by default one with seed 0, so that they are the same in every call.
        rows: directions computed at once.
    """
    _check_pair(x, y, 1)
    if projections < 1:
        raise ValueError(f"projections must be at least 1; got {projections}")
    i, j, share = (part.to(x.device) for part in _quantiles(len(x), len(y)))
    total = 0.0
    directions = _directions(x.shape[1], projections, generator).to(x.device, torch.promote_types(x.dtype, y.dtype))
    for some in directions.split(rows, dim=1):
        a, b = (part.to(some) @ some for part in (x, y))
        difference = a.sort(0).values.double()[i] - b.sort(0).values.double()[j]
        total += (share @ difference.square()).sum().item()
    return math.sqrt(total / projections)


def sliced_wasserstein_of_splits(x: Tensor, halves: Tensor, projections: int = 256, rows: int = 32) -> Tensor:
    """Return `sliced_wasserstein` of each split of x (N, d) into two equal halves: (S,) float64; sorts only once.

    Arguments:
        halves: (S, N) bool; True marks the first half.
    Raises ValueError for halves that are not equal.
    """
    if halves.ndim != 2 or halves.shape[1] != len(x) or (2 * halves.sum(1) != len(x)).any():
        raise ValueError(f"halves must be (S, {len(x)}), each with as many true as false; got {tuple(halves.shape)}")
    totals = torch.zeros(len(halves), dtype=torch.float64, device=x.device)
    for some in _directions(x.shape[1], projections).to(x).split(rows, dim=1):
        values, order = (x @ some).T.sort(1)
        values = values.double()
        for split, half in enumerate(halves):
            first = half[order]
            a, b = (values[members].view(len(values), -1) for members in (first, ~first))
            totals[split] += (a - b).square_().mean(1).sum()
    return (totals / projections).sqrt()


def _directions(d: int, projections: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw directions of length 1: (d, projections) float64."""
    generator = generator or torch.Generator().manual_seed(0)
    directions = torch.randn(d, projections, generator=generator, dtype=torch.float64)
    return directions / directions.norm(dim=0)


def _quantiles(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pieces of (0, 1) on which the quantile functions of n and of m numbers are constant.

    Returns: index into the n sorted numbers, index into the m, length of the piece. Computed in units of 1/nm, in which
    the ends of all pieces are integers.
    """
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def wasserstein(x: Tensor, y: Tensor, points: int = 2000, generator: torch.Generator | None = None) -> float:
    """Return the exact 2-Wasserstein distance of equally many points, min over pairings of (mean |x_i - y_i|²)^½.

    It is computed on min(points, N, M) random points of each set, since the assignment takes cubic time; in the plane
    its floor falls only as N^-½.
    Arguments:
        x, y: (N, d) and (M, d).
        points: the largest number of points of each set.
        generator: draws the points; by default one with seed 0.
    """
    from scipy.optimize import linear_sum_assignment

    _check_pair(x, y, 1)
    generator = generator or torch.Generator().manual_seed(0)
    n = min(points, len(x), len(y))
    a, b = (part[torch.randperm(len(part), generator=generator)[:n]].double().cpu() for part in (x, y))
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def fid(x: Tensor, y: Tensor, weights: Path | None = None, device: torch.device | str = "cpu") -> float:
    """Return the FID of images x (N, 1 or 3, H, W) against y, in [-1, 1]: Inception-v3's 2048 features, torch-fidelity.

    Grey images are repeated to three channels. Heusel 2017, 1706.08500; Obukhov 2020, torch-fidelity.
    Arguments:
        weights: torch-fidelity's file of weights; None: from its cache, or downloaded.
    Raises ValueError, with the remedy, without the package or its weights.
    """
    return _fidelity("fid", x, y, weights, device, fid=True)["frechet_inception_distance"]


def kid(
    x: Tensor,
    y: Tensor,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    subsets: int = 100,
    size: int = 1000,
) -> float:
    """Return the KID of images in the features of `fid`: arguments and errors as there, subsets as in `kernel`."""
    settings = {"kid": True, "kid_subsets": subsets, "kid_subset_size": min(size, len(x), len(y))}
    return _fidelity("kid", x, y, weights, device, **settings)["kernel_inception_distance_mean"]


def _fidelity(name: str, x: Tensor, y: Tensor, weights: Path | None, device: Any, **settings: Any) -> dict[str, float]:
    with needed("torch-fidelity>=0.4", name):
        import torch_fidelity
    for part in (x, y):
        if part.ndim != 4 or part.shape[1] not in (1, 3) or len(part) < 2:
            raise ValueError(f"{name} needs two or more images (N, 1 or 3, H, W); got shape {tuple(part.shape)}")
    settings |= {"cuda": torch.device(device).type == "cuda", "verbose": False, "cache": False, "save_cpu_ram": True}
    if weights is not None:
        settings["feature_extractor_weights_path"] = str(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_fidelity.calculate_metrics(input1=_Bytes(x), input2=_Bytes(y), **settings)
    except OSError as error:  # Of a download (URLError is one), or of the file.
        raise ValueError(
            f"{name} needs Inception's weights, which cannot be downloaded or read ({error}): give weights=FILE, "
            "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
        ) from error


class _Bytes(torch.utils.data.Dataset):
    """A data set of images in [-1, 1] in torch-fidelity's format: uint8, three channels."""

    def __init__(self, x: Tensor) -> None:
        self.x = ((x.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


def _check_pair(x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(
            f"x and y must be (N, d) and (M, d) with N, M at least {least}; got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
