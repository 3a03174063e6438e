"""Collective operations inside a loss; with a single process each is the identity."""

import torch.distributed as dist
from torch import Tensor

__all__ = ["mean_over_ranks", "rank_and_world", "shared", "sum_over_ranks"]


def rank_and_world() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of x over all processes, detached: batch statistics must not differ between ranks.

    Every process must call it, with x of one shape.
    """
    return sum_over_ranks(x) / rank_and_world()[1]


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of x over all processes, detached. Every process must call it, with x of one shape."""
    x = x.detach()
    if rank_and_world()[1] == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def shared(x: Tensor) -> Tensor:
    """Return rank 0's x on every process, written into x in place. Every process must call it."""
    if rank_and_world()[1] > 1:
        dist.broadcast(x, 0)
    return x
