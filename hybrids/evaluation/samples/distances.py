"""Distances between two sets of examples: Fréchet, kernel, sliced and exact Wasserstein; FID and KID proper."""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.optional import needed

__all__ = ["fid_proper", "frechet", "gaussian_frechet", "kernel", "kid_proper", "sliced_wasserstein", "wasserstein"]


def gaussian_frechet(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """|m_1 - m_2|² + Tr(C_1 + C_2 - 2 (C_1 C_2)^½): the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of C_1^½ C_2 C_1^½, which is symmetric, so that no
    complex numbers arise, whatever the rank. Float64 inside. Dowson & Landau 1982; Heusel 2017, 1706.08500, eq. 6.
    Arguments: means (d,), covariances (d, d).
    """
    mean_1, covariance_1, mean_2, covariance_2 = (
        part.double() for part in (mean_1, covariance_1, mean_2, covariance_2)
    )
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors * values.clamp_min(0).sqrt()
    inner = root.T @ covariance_2 @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    apart = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * cross
    return max(apart.item(), 0.0)


def frechet(x: Tensor, y: Tensor) -> float:
    """`gaussian_frechet` of the means and unbiased covariances of x (N, d) and y (M, d).

    Biased upwards by about 1/N + 1/M: compare only at the same sizes. Raises ValueError for fewer than two of either.
    """
    _check_pair(x, y, 2)
    return gaussian_frechet(*_moments(x), *_moments(y))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = x.double() - (mean := x.double().mean(0))
    return mean, centred.T @ centred / (len(x) - 1)


def kernel(
    x: Tensor, y: Tensor, subsets: int = 100, size: int = 1000, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """The unbiased estimate of MMD² under k(a, b) = (a·b/d + 1)³: mean and deviation over random subsets.

    Of subsets of min(size, N, M) examples of each; 0 in expectation where both are of one distribution, so it may be
    negative. Bińkowski 2018, 1801.01401, section 4.1. Float64 inside.
    Arguments: x (N, d), y (M, d); generator, which draws the subsets, by default one of seed 0.
    Raises ValueError for fewer than two of either.
    """
    _check_pair(x, y, 2)
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets must be at least 1 and size at least 2; got {subsets} and {size}")
    generator = generator or torch.Generator().manual_seed(0)
    size = min(size, len(x), len(y))
    found = []
    for _ in range(subsets):
        a, b = (part[torch.randperm(len(part), generator=generator)[:size]].double() for part in (x, y))
        # Their diagonals pair an example with itself, which is what would bias the estimate.
        within = sum(_kernel(part, part).sum() - _kernel_of_self(part).sum() for part in (a, b))
        found.append(within / (size * (size - 1)) - 2 * _kernel(a, b).mean())
    each = torch.stack(found)  # type: ignore[arg-type]
    return each.mean().item(), each.std(unbiased=False).item()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_of_self(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1) ** 3


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 256, generator: torch.Generator | None = None, rows: int = 32
) -> float:
    """(E_w W_2²(w·x, w·y))^½ over directions w, uniform on the sphere: exact in each direction, whatever the sizes.

    W_2² of two sets of numbers is ∫₀¹ (F⁻¹(u) - G⁻¹(u))² du of their quantile functions. Bonneel 2015, section 3.
    Arguments: x (N, d), y (M, d); generator, which draws the directions, by default one of seed 0: the same for all;
    rows, directions at once.
    """
    _check_pair(x, y, 1)
    if projections < 1:
        raise ValueError(f"projections must be at least 1; got {projections}")
    generator = generator or torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(x.device)
    i, j, share = _quantiles(len(x), len(y))
    i, j, share = i.to(x.device), j.to(x.device), share.to(x.device)
    total = 0.0
    for some in directions.to(torch.promote_types(x.dtype, y.dtype)).split(rows, dim=1):
        a, b = (part.to(some) @ some for part in (x, y))
        difference = a.sort(0).values.double()[i] - b.sort(0).values.double()[j]
        total += (share @ difference.square()).sum().item()
    return math.sqrt(total / projections)


def _quantiles(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces of (0, 1) on which the quantile functions of n and of m numbers are constant: two indices, a length.

    In units of 1/nm, where the ends of all pieces are whole.
    """
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def wasserstein(x: Tensor, y: Tensor, points: int = 2000, generator: torch.Generator | None = None) -> float:
    """min over pairings of (mean |x_i - y_i|²)^½: the 2-Wasserstein distance of equally many points, exactly.

    Of min(points, N, M) random ones of each, since the pairing takes the cube of their number; its floor falls with
    that as slowly as N^-½ in the plane. Arguments: x (N, d), y (M, d); generator, by default one of seed 0.
    """
    from scipy.optimize import linear_sum_assignment

    _check_pair(x, y, 1)
    generator = generator or torch.Generator().manual_seed(0)
    n = min(points, len(x), len(y))
    a, b = (part[torch.randperm(len(part), generator=generator)[:n]].double().cpu() for part in (x, y))
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


def fid_proper(x: Tensor, y: Tensor, weights: Path | None = None, device: torch.device | str = "cpu") -> float:
    """FID of images x (N, 3, H, W) against y in [-1, 1]: the 2048 features of Inception-v3, by torch-fidelity.

    Grey images are shown in three channels. Heusel 2017, 1706.08500; Obukhov 2020, torch-fidelity.
    Arguments: weights, torch-fidelity's file of them; None: as it downloads, or finds in its cache.
    Raises ValueError in one line, with the remedy, without the package or its weights.
    """
    return _fidelity("fid", x, y, weights, device, fid=True)["frechet_inception_distance"]


def kid_proper(
    x: Tensor,
    y: Tensor,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    subsets: int = 100,
    size: int = 1000,
) -> float:
    """KID of images, in the same features: arguments and errors as `fid_proper`, subsets as of `kernel`."""
    settings = {"kid": True, "kid_subsets": subsets, "kid_subset_size": min(size, len(x), len(y))}
    return _fidelity("kid", x, y, weights, device, **settings)["kernel_inception_distance_mean"]


def _fidelity(name: str, x: Tensor, y: Tensor, weights: Path | None, device: Any, **settings: Any) -> dict[str, float]:
    with needed("torch-fidelity>=0.4", name):
        import torch_fidelity
    for part in (x, y):
        if part.ndim != 4 or part.shape[1] not in (1, 3) or len(part) < 2:
            raise ValueError(f"{name} is of two or more images (N, 1 or 3, H, W); got shape {tuple(part.shape)}")
    settings |= {"cuda": torch.device(device).type == "cuda", "verbose": False, "cache": False, "save_cpu_ram": True}
    if weights is not None:
        settings["feature_extractor_weights_path"] = str(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_fidelity.calculate_metrics(input1=_Bytes(x), input2=_Bytes(y), **settings)
    except OSError as error:  # Of a download (URLError is one), or of the file.
        raise ValueError(
            f"{name} needs Inception's weights, which are not to be had here ({error}): with a network they come by "
            "themselves, without one give weights=FILE of torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
        ) from error


class _Bytes(torch.utils.data.Dataset):
    """Images in [-1, 1] as torch-fidelity takes them: uint8, three channels."""

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
