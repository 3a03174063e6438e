"""Random times for a batch."""

import torch
from torch import Tensor

from .ranks import place, shared

__all__ = ["low_discrepancy"]


def low_discrepancy(n: int, device: torch.device | None = None, across_ranks: bool = False) -> Tensor:
    """t_i = (u + i/N) mod 1 with one uniform u: each t_i is uniform, and together they cover [0, 1) evenly. (n,)

    Kingma 2021, 2107.00630, appendix I.1. float64. Where `across_ranks`, N counts the examples of all processes, which
    share u and must all call this; else N = n.
    """
    u = torch.rand((), dtype=torch.float64, device=device)
    rank, world = place() if across_ranks else (0, 1)
    if across_ranks:
        u = shared(u)
    index = torch.arange(rank * n, (rank + 1) * n, dtype=torch.float64, device=device)
    return (u + index / (n * world)) % 1
