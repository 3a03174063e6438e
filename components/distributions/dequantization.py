"""Densities of grey levels: the check that data are on their grid, uniform noise over a bin, and a bin's volume."""

import math

import torch
from torch import Tensor

from ..precision import wide

__all__ = ["check_grid", "dequantized", "log_bin"]


def dequantized(x: Tensor, grey_levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Return x + Δ u, u ~ U[-½, ½) in each dimension, with Δ = 2/(K-1), the width of a bin.

    E log p(x + Δ u) + d log Δ <= log P(x), where P(x) is the density's integral over x's bin.
    Theis, van den Oord & Bethge 2015, arXiv 1511.01844, section 3.1.

    Arguments:
        x: (B, *event) on the grid 2v/(K-1) - 1.
        grey_levels: K >= 2.
        generator: of u.
    Returns: (B, *event), in float32 or wider.
    """
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=wide(x).dtype)
    return wide(x) + 2 / (grey_levels - 1) * (u - 0.5)


def log_bin(grey_levels: int) -> float:
    """Return log Δ, Δ = 2/(K-1), the width of a bin of the grid 2v/(K-1) - 1 of K = grey_levels.

    A density p of x in [-1, 1] gives a grey level about the probability p Δ: bits/dim = -log2 p/d + log2((K-1)/2).
    """
    return math.log(2 / (grey_levels - 1))


def check_grid(x: Tensor, grey_levels: int, tolerance: float = 1e-3) -> None:
    """Raise ValueError for x that is not on the grid 2v/(K-1) - 1, v = 0 … K-1.

    Arguments:
        x: (B, *event).
        grey_levels: K >= 2.
        tolerance: the largest distance to the grid, as a share of the distance between two grey levels.
    Raises: ValueError for x that is not finite, beyond [-1, 1], or between grey levels, naming the worst example.
    """
    steps = (wide(x.detach()) + 1) * ((grey_levels - 1) / 2)
    bad = ~steps.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; example {int(bad.nonzero()[0])} has NaN or infinite values")
    off = (steps - steps.round().clamp(0, grey_levels - 1)).abs().flatten(1).amax(1)
    if (off > tolerance).any():
        worst = int(off.argmax())
        raise ValueError(
            f"x must be on the grid 2v/(K-1) - 1 of K = {grey_levels} levels in [-1, 1]; example {worst}, which spans "
            f"{x[worst].min():g} to {x[worst].max():g}, is off by {off[worst]:.3g} of a level"
        )
