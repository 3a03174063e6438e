"""Metrics of nearest neighbours between samples and real examples: precision, recall, density, coverage, memorization.

Distances are computed for `rows` examples at a time, in float64 after centring: memory is that of rows × N numbers, and
the distance of an example to its own copy is 0 to about 1e-7 of the data's standard deviation.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Neighbours", "nearest", "neighbours", "neighbours_of_splits", "neighbours_variance", "radii"]

ROWS = 1024
NAMES = ("precision", "recall", "density", "coverage")


def radii(x: Tensor, k: int, rows: int = ROWS) -> Tensor:
    """Return the distance of each of x (N, d) to its k-th nearest other: (N,) float64.

    Raises ValueError for no more than k examples.
    """
    return _radii(x, (k,), rows)[0]


def _radii(x: Tensor, ks: tuple[int, ...], rows: int) -> tuple[Tensor, ...]:
    """`radii` for several k at once."""
    for k in ks:
        if not 1 <= k < len(x):
            raise ValueError(
                f"k must be at least 1, and x have more examples than that; got k={k} and {len(x)} examples"
            )
    nearest_of_all = _lists(x, max(ks), rows)[0].sqrt()
    return tuple(nearest_of_all[:, k - 1] for k in ks)


def _lists(x: Tensor, many: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return the squared distances (N, many), ascending, of each x (N, d) to its nearest others, and their indices."""
    squares_of_all, indices = [], []
    for start, squares in _squares(x, x, rows):
        here = torch.arange(len(squares), device=x.device)
        # An example is not its own neighbour; a copy of it may be.
        squares[here, start + here] = torch.inf
        values, index = squares.topk(many, largest=False, sorted=True)
        squares_of_all.append(values)
        indices.append(index)
    return torch.cat(squares_of_all), torch.cat(indices)


def nearest(x: Tensor, y: Tensor, rows: int = ROWS) -> Tensor:
    """Return the distance of each of x (N, d) to the nearest of y (M, d): (N,) float64."""
    return torch.cat([squares.amin(1) for _, squares in _squares(x, y, rows)]).sqrt()


class Neighbours:
    """Real examples with the radii of their balls, computed once for all the samples that they are compared with.

    Arguments:
        real: (N, d).
        precision_k: k of precision and recall (Kynkäänniemi 2019).
        density_k: k of density and coverage (Naeem 2020).
        rows: examples whose distances are computed at once.
    """

    def __init__(self, real: Tensor, precision_k: int = 3, density_k: int = 5, rows: int = ROWS) -> None:
        self.real, self.precision_k, self.density_k, self.rows = real, precision_k, density_k, rows
        self.precision_radii, self.density_radii = _radii(real, (precision_k, density_k), rows)

    def __call__(self, fake: Tensor) -> dict[str, Tensor]:
        """Return the contribution of each example to the four metrics, float64; the metrics are the means.

        precision (M,): whether a sample lies in the ball of any real example, whose radius is the distance to its k-th
        nearest other real example. recall (N,): whether a real example lies in the ball of any sample, whose radius is
        the distance to its k-th nearest other sample. Kynkäänniemi 2019, 1904.06991, eq. 1 and 2.
        density (M,): the number of real balls that a sample lies in, over k. coverage (N,): whether any sample lies in
        the ball of a real example. Naeem 2020, 2002.09797, eq. 3 and 4. Balls are open, as in the latter: this matters
        only where samples are copies of each other.
        Arguments:
            fake: samples (M, d).
        Raises ValueError for another d, or for no more samples than precision_k.
        """
        if fake.ndim != 2 or fake.shape[1] != self.real.shape[1]:
            raise ValueError(f"fake must be (M, {self.real.shape[1]}); got shape {tuple(fake.shape)}")
        own = radii(fake, self.precision_k, self.rows).square()
        precision_radii, density_radii = self.precision_radii.square(), self.density_radii.square()
        precision, density = [], []
        recalled = torch.zeros(len(self.real), dtype=torch.bool, device=self.real.device)
        covered = recalled.clone()
        for start, squares in _squares(fake, self.real, self.rows):
            precision.append((squares < precision_radii).any(1))
            inside = squares < density_radii
            density.append(inside.sum(1).double() / self.density_k)
            covered |= inside.any(0)
            recalled |= (squares < own[start : start + len(squares), None]).any(0)
        return {
            "precision": torch.cat(precision).double(),
            "recall": recalled.double(),
            "density": torch.cat(density),
            "coverage": covered.double(),
        }


def neighbours(
    real: Tensor, fake: Tensor, precision_k: int = 3, density_k: int = 5, rows: int = ROWS
) -> dict[str, float]:
    """Return precision, recall, density and coverage of samples fake (M, d) against real (N, d): see `Neighbours`."""
    parts = Neighbours(real, precision_k, density_k, rows)(fake)
    return {name: part.mean().item() for name, part in parts.items()}


def neighbours_of_splits(
    x: Tensor, halves: Tensor, precision_k: int = 3, density_k: int = 5, rows: int = ROWS
) -> dict[str, Tensor]:
    """Return the four metrics of each split of x (N, d) into two equal halves, one as real, the other as fake: (S,).

    The result is exact, and costs little more than one matrix of distances, whatever the number of splits: the k-th
    nearest neighbour within a half, and every neighbour nearer than it, is among the 48 nearest of all examples (where
    it is not, more are computed).
    Arguments:
        halves: (S, N) bool; True marks the real examples of a split.
    Raises ValueError for halves that are not equal, or that have no more examples than one of the k.
    """
    n, most = len(x) // 2, max(precision_k, density_k)
    if halves.ndim != 2 or halves.shape[1] != len(x) or (2 * halves.sum(1) != len(x)).any():
        raise ValueError(f"halves must be (S, {len(x)}), each with as many true as false; got {tuple(halves.shape)}")
    if most >= n:
        raise ValueError(f"halves must have more than {most} examples; got {n}")
    many = min(48, len(x) - 1)
    rows = max(1, rows // 4)  # no more numbers at once than for one half
    squares, index = _lists(x, many, rows)
    while any(((real[index] == real[:, None]).sum(1) < most).any() for real in halves):
        many = min(2 * many, len(x) - 1)
        squares, index = _lists(x, many, rows)
    metrics = []
    for real in halves:
        own = real[index] == real[:, None]
        rank = own.cumsum(1)

        def inside(k: int, own: Tensor = own, rank: Tensor = rank) -> Tensor:
            """Mark the neighbours in the other half that are nearer than the k-th neighbour in the example's own."""
            radius = squares.gather(1, (rank >= k).int().argmax(1, keepdim=True))
            return ~own & (squares < radius)

        narrow, wide = inside(precision_k), inside(density_k)[real]
        # Examples in the ball of any example of the other half: precision for samples, recall for real examples.
        hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        hit[index[narrow]] = True
        metrics.append(
            [
                hit[~real].double().mean(),
                hit[real].double().mean(),
                wide.sum().double() / (density_k * n),
                wide.any(1).double().mean(),
            ]
        )
    return {name: torch.stack(values) for name, values in zip(NAMES, zip(*metrics))}


def neighbours_variance(
    real: Tensor,
    fake: Tensor,
    precision_k: int = 3,
    density_k: int = 5,
    batches: int = 40,
    size: int = 500,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, float], int]:
    """Return the variances of the four metrics over new draws of real and fake, and their degrees of freedom.

    The variance is b/n times that of the metrics of disjoint batches of b = min(size, n // 2) examples of each set,
    n = min(N, M), averaged over several random divisions into batches: disjoint batches are independent, and the
    variance of metrics of k nearest neighbours falls as 1/n (Penrose & Yukich 2001). The contributions of examples
    depend on their neighbours, so the variance of a mean of independent values would be too small; the bootstrap fails,
    since copies shrink the balls (Abadie & Imbens 2008).
    Arguments:
        real, fake: (N, d) and (M, d).
        batches: number of batches of all divisions together.
        size: largest size b of a batch.
        generator: draws the divisions; by default one with seed 0.
    Returns: variances by name, and their degrees of freedom: for each division its number of batches less one.
    Raises ValueError where a batch would have no more examples than one of the k.
    """
    n, most = min(len(real), len(fake)), max(precision_k, density_k)
    b = min(size, n // 2)
    if b <= most:
        raise ValueError(f"real and fake must have at least {2 * most + 2} examples; got {n}")
    generator = generator or torch.Generator().manual_seed(0)
    each = n // b
    divisions = max(1, round(batches / each))
    variances = []
    for _ in range(divisions):
        parts = [torch.randperm(len(x), generator=generator)[: each * b].view(each, b) for x in (real, fake)]
        metrics = [list(neighbours(real[i], fake[j], precision_k, density_k).values()) for i, j in zip(*parts)]
        variances.append(torch.tensor(metrics, dtype=torch.float64).var(0) * b / n)
    return dict(zip(NAMES, torch.stack(variances).mean(0).tolist())), divisions * (each - 1)


def _squares(x: Tensor, y: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of the first of `rows` examples of x, and their |x_i - y_j|² ≥ 0 to all of y: (rows, M)."""
    if rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}")
    # A common origin near the data reduces cancellation in the products below.
    centre = y.mean(0, dtype=torch.float64)
    y = y.double() - centre if y.dtype == torch.float64 else y.double().sub_(centre)
    of_y = y.square().sum(1)
    for start in range(0, len(x), rows):
        part = x[start : start + rows].double() - centre
        squares = torch.addmm(of_y, part, y.T, alpha=-2)
        yield start, squares.add_(part.square().sum(1, keepdim=True)).clamp_min_(0)
