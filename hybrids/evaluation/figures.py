"""A measured number with what it is to be read against: its floor and its interval."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Figure", "Unavailable", "about", "mean_of", "resampled"]

Z = 1.959964
"""The 97.5% quantile of N(0, 1)."""


@dataclass(frozen=True)
class Figure:
    """A number.

    Arguments: floor, the same metric between two real halves, or its known value for exact samples, or None; low and
    high, the 95% interval over examples where it is cheap, else None.
    """

    value: float
    floor: float | None = None
    low: float | None = None
    high: float | None = None


class Unavailable(Exception):
    """A metric makes no sense for a model and its data, or cannot be had; the message says why."""


def about(value: float, deviation: float, floor: float | None = None, least: float | None = None) -> Figure:
    """value ± 1.96 deviations, the lower end not below `least`."""
    low = value - Z * deviation
    return Figure(value, floor, low if least is None else max(low, least), value + Z * deviation)


def mean_of(values: Tensor, floor: float | None = None, scale: float = 1.0) -> Figure:
    """scale times the mean of values (N,), with its standard error."""
    values = scale * values.double()
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return about(values.mean().item(), error, floor)


def resampled(values: Tensor, statistic: Callable[[Tensor], float], repeats: int = 30, seed: int = 0) -> float:
    """The bootstrap's standard deviation of statistic(values), values (N, ...) being drawn again with replacement.

    Efron 1979. The deviation, not the percentiles: those of a distance, which repeated examples raise, would lie above
    the distance itself.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(values[torch.randint(len(values), (len(values),), generator=generator)]) for _ in range(repeats)]
    return torch.tensor(draws, dtype=torch.float64).std().item()
