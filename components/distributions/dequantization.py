"""Grey levels as a density sees them: the grid they must lie on, noise that fills its bins, and the bins' volume."""

import math

import torch
from torch import Tensor

from ..precision import wide

__all__ = ["check_grid", "dequantized", "log_bin"]


def check_grid(x: Tensor, levels: int, tolerance: float = 1e-3) -> None:
    """Refuse x (B, *event) that is not on the grid 2v/(K-1) - 1, v = 0 … K-1, of K = levels.

    tolerance, in levels. Raises ValueError, naming the worst example: not finite, beyond [-1, 1], or between levels.
    """
    steps = (wide(x.detach()) + 1) * ((levels - 1) / 2)
    bad = ~steps.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; example {int(bad.nonzero()[0])} has NaN or infinite values")
    off = (steps - steps.round().clamp(0, levels - 1)).abs().flatten(1).amax(1)
    if (off > tolerance).any():
        worst = int(off.argmax())
        raise ValueError(
            f"x must be on the grid 2v/(K-1) - 1 of K = {levels} levels in [-1, 1]; example {worst}, which spans "
            f"{x[worst].min():g} to {x[worst].max():g}, is off by {off[worst]:.3g} of a level"
        )


def log_bin(levels: int) -> float:
    """log Δ, Δ = 2/(K-1), the width of a bin of the grid 2v/(K-1) - 1.

    A density p of x in [-1, 1] gives a grey level about the probability p Δ: bits/dim = -log2 p/d + log2((K-1)/2).
    """
    return math.log(2 / (levels - 1))


def dequantized(x: Tensor, levels: int, generator: torch.Generator | None = None) -> Tensor:
    """x + Δ u, u ~ U[-½, ½) in each dimension: E log p(x + Δ u) + d log Δ <= log P(x), P the density over x's bin.

    Theis, van den Oord & Bethge 2015, 1511.01844, section 3.1. Arguments: x (B, *event) on the grid of K = levels.
    """
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=wide(x).dtype)
    return wide(x) + 2 / (levels - 1) * (u - 0.5)
