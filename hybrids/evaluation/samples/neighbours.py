"""Where samples lie among real examples, by nearest neighbours: precision, recall, density, coverage, memorization.

Distances are taken `rows` examples at a time, in float64 after centring: memory is that of rows × N numbers, and an
example is at distance 0, to about 1e-7 of the spread, of its own copy.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Neighbours", "nearest", "neighbours", "radii"]

ROWS = 1024


def radii(x: Tensor, k: int, rows: int = ROWS) -> Tensor:
    """(N,) float64: the distance of each of x (N, d) to its k-th nearest other.

    Raises ValueError for no more than k examples.
    """
    if not 1 <= k < len(x):
        raise ValueError(f"k must be at least 1, and x have more examples than that; got k={k} and {len(x)} examples")
    found = []
    for start, squares in _squares(x, x, rows):
        here = torch.arange(len(squares), device=x.device)
        # Not to be its own neighbour; a copy of it may be.
        squares[here, start + here] = torch.inf
        found.append(squares.topk(k, largest=False, sorted=True).values[:, -1])
    return torch.cat(found).sqrt()


def nearest(x: Tensor, y: Tensor, rows: int = ROWS) -> Tensor:
    """(N,) float64: the distance of each of x (N, d) to the nearest of y (M, d)."""
    return torch.cat([squares.amin(1) for _, squares in _squares(x, y, rows)]).sqrt()


class Neighbours:
    """Real examples (N, d) with the radii of their balls, measured once for all the samples they are compared with.

    Arguments: real; precision_k, Kynkäänniemi's k; density_k, Naeem's; rows, examples at once.
    """

    def __init__(self, real: Tensor, precision_k: int = 3, density_k: int = 5, rows: int = ROWS) -> None:
        self.real, self.precision_k, self.density_k, self.rows = real, precision_k, density_k, rows
        self.precision_radii = radii(real, precision_k, rows)
        self.density_radii = self.precision_radii if density_k == precision_k else radii(real, density_k, rows)

    def __call__(self, fake: Tensor) -> dict[str, Tensor]:
        """What each example contributes, float64; the means are the metrics. Samples fake (M, d).

        precision (M,): whether a sample lies in the ball of any real example, whose radius is the distance to its k-th
        nearest other real one. recall (N,): whether a real example lies in the ball of any sample, among samples.
        Kynkäänniemi 2019, 1904.06991, eq. 1 and 2.
        density (M,): how many real balls a sample lies in, over k. coverage (N,): whether any sample lies in the ball
        of a real example. Naeem 2020, 2002.09797, eq. 3 and 4. Balls are open, as in the latter: the boundary has no
        volume but where samples are copies.
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
    """precision, recall, density and coverage of samples fake (M, d) against real (N, d): see `Neighbours`."""
    found = Neighbours(real, precision_k, density_k, rows)(fake)
    return {name: values.mean().item() for name, values in found.items()}


def _squares(x: Tensor, y: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """|x_i - y_j|² (B, M) of `rows` examples at a time, with the number of the first; at least 0."""
    if rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}")
    # One origin for both near the data: the products below cancel less.
    centre = y.double().mean(0)
    y = y.double() - centre
    of_y = y.square().sum(1)
    for start in range(0, len(x), rows):
        part = x[start : start + rows].double() - centre
        squares = torch.addmm(of_y, part, y.T, alpha=-2)
        yield start, squares.add_(part.square().sum(1, keepdim=True)).clamp_min_(0)
