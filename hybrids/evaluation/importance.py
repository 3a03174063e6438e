"""The importance-weighted bound on log p(x), in bounded memory."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["importance_weighted"]


@torch.no_grad()
def importance_weighted(
    model: Any, x: Tensor, samples: int, cond: Any = None, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """log (1/K) Σ_k w_k, K = samples, and the effective number of samples (Σ w)²/Σ w²: (B,) nats, (B,), float64.

    w_k = p(x, z_k)/q(z_k|x), z_k ~ q. In expectation a bound on log p(x) from below: the ELBO at K = 1, never falling
    in K, tight as K grows, and exact at any K where q(z|x) is p(z|x). Burda 2015, 1509.00519, theorem 1.
    The logarithms of sums are carried along, so that memory is that of `rows` examples whatever B and K.
    Arguments: model, which offers log_weight(x, cond) (B,); x (B, *event); cond, of as many rows, or None.
    Raises TypeError for a model that offers none, ValueError for samples < 1.
    """
    if not hasattr(model, "log_weight"):
        name = type(model).__name__
        raise TypeError(f"model must offer log_weight for an importance-weighted bound; {name} does not")
    if samples < 1 or rows < 1:
        raise ValueError(f"samples and rows must be at least 1; got {samples} and {rows}")
    sums, squares = [], []
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        some, given = x[part], rows_of(cond, part)
        total = torch.full((len(some),), -math.inf, dtype=torch.float64, device=x.device)
        square, left = total, samples
        while left > 0:
            k = min(left, max(1, rows // len(some)))
            w = model.log_weight(some.repeat(k, *[1] * (x.ndim - 1)), repeated(given, k)).double().view(k, -1)
            total = torch.logaddexp(total, w.logsumexp(0))
            square = torch.logaddexp(square, (2 * w).logsumexp(0))
            left -= k
        sums.append(total)
        squares.append(square)
    log_sum = torch.cat(sums)
    return log_sum - math.log(samples), (2 * log_sum - torch.cat(squares)).exp()


def rows_of(cond: Any, part: slice) -> Any:
    """Some rows of a condition: of labels (B,), or of tokens and their mask."""
    if isinstance(cond, tuple):
        return tuple(rows_of(each, part) for each in cond)
    return None if cond is None else cond[part]


def repeated(cond: Any, k: int) -> Any:
    """A condition k times, one after the other."""
    if isinstance(cond, tuple):
        return tuple(repeated(each, k) for each in cond)
    return None if cond is None else cond.repeat(k, *[1] * (cond.ndim - 1))
