"""A measured number with what it is to be read against: its floor and its interval. The formulas of intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Figure",
    "Unavailable",
    "about",
    "deviation_interval",
    "mean_of",
    "proportion_interval",
    "quantile",
    "ratio_of",
    "resampled",
    "variance_beyond",
]

Z = 1.959964
"""The 97.5% quantile of N(0, 1)."""


@dataclass(frozen=True)
class Figure:
    """A number.

    Arguments: floor, what exact samples would have: the mean of the same metric between two halves of real examples
    over random splits, or its known value, or None; low and high, the 95% interval, of what the metric is expected to
    be at these numbers of examples, where it is cheap, else None; floor_spread, the standard deviation of the floor
    over the splits, or its known one, or None.
    """

    value: float
    floor: float | None = None
    low: float | None = None
    high: float | None = None
    floor_spread: float | None = None


class Unavailable(Exception):
    """A metric makes no sense for a model and its data, or cannot be had; the message says why."""


def quantile(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t (1908) of so many degrees of freedom; of N(0, 1) for infinitely many."""
    if math.isinf(freedom):
        return Z
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def about(
    value: float,
    deviation: float,
    floor: float | None = None,
    floor_spread: float | None = None,
    *,
    least: float | None = None,
    freedom: float = math.inf,
) -> Figure:
    """Return value ± t deviations, t of `quantile(freedom)`; the lower end is not below `least`."""
    half = quantile(freedom) * deviation
    low = value - half if least is None else max(value - half, least)
    return Figure(value, floor, low, value + half, floor_spread)


def mean_of(
    values: Tensor, floor: float | None = None, floor_spread: float | None = None, *, scale: float = 1.0
) -> Figure:
    """Return scale times the mean of independent values (N,), ± t s/√N of N - 1 degrees of freedom (Student 1908)."""
    values = scale * values.double()
    if len(values) < 2:
        return about(values.mean().item(), 0.0, floor, floor_spread)
    error = values.std().item() / len(values) ** 0.5
    return about(values.mean().item(), error, floor, floor_spread, freedom=len(values) - 1)


def ratio_of(
    values: Tensor, reference: Tensor, floor: float | None = None, floor_spread: float | None = None
) -> Figure:
    """Return mean(values) / mean(reference) of independent values (N,) and (M,), both as they happened to be drawn.

    Variance by the delta method: (s_v²/N + r² s_r²/M) / mean(reference)², r being the ratio (Cochran 1977).
    """
    values, reference = values.double(), reference.double()
    usual = reference.mean().item()
    ratio = values.mean().item() / usual
    squares = [0.0 if len(part) < 2 else part.var().item() / len(part) for part in (values, reference)]
    deviation = math.sqrt(squares[0] + ratio**2 * squares[1]) / usual
    freedom = min(len(values), len(reference)) - 1
    return about(ratio, deviation, floor, floor_spread, freedom=freedom if freedom else math.inf)


def proportion_interval(share: float, n: float, freedom: float = math.inf) -> tuple[float, float]:
    """Return the ends of Wilson's 95% interval of a proportion that is `share` among n independent examples.

    (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n), the proportions that a score test does not reject: inside
    [0, 1], and of no zero width at 0 and 1. Wilson 1927. Where examples depend on each other, n is their effective
    number p (1 - p)/variance, and z the t of the variance's degrees of freedom: Korn & Graubard 1998.
    Raises ValueError for a share outside [0, 1] or n that is not positive.
    """
    if not (0 <= share <= 1 and n > 0):
        raise ValueError(f"share must be in [0, 1] and n positive; got {share} and {n}")
    z = quantile(freedom)
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    # What rounding leaves at the two ends.
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def deviation_interval(deviation: float, n: int) -> tuple[float, float]:
    """Return the ends of the 95% interval of a standard deviation that n Gaussian values have as their own.

    s √((n - 1)/χ²), at the quantiles 97.5% and 2.5% of n - 1 degrees of freedom: 0.52 s and 6.3 s for three values.
    Raises ValueError for fewer than two values.
    """
    from scipy.special import chdtri

    if n < 2:
        raise ValueError(f"n must be at least 2; got {n}")
    low, high = (deviation * math.sqrt((n - 1) / float(chdtri(n - 1, tail))) for tail in (0.025, 0.975))
    return low, high


def variance_beyond(plug_in: float, null: float) -> float:
    """Return the variance of a distance from its plug-in estimate and from its variance between equal distributions.

    max(plug_in - null, null). A distance of two samples is a first-order term, which vanishes between equal
    distributions, and a second-order one, which is all that is left there. The delta method on the samples themselves,
    like the jackknife and the bootstrap, counts the first once and the second twice (Efron & Stein 1981):
    its estimate less the second is the variance; at equal distributions both are the second.
    """
    return max(plug_in - null, null)


def resampled(values: Tensor, statistic: Callable[[Tensor], float], repeats: int = 200, seed: int = 0) -> float:
    """Return the bootstrap's standard deviation of statistic(values), values (N, ...) drawn again with replacement.

    Efron 1979. Of smooth statistics and medians; not of distances, which repeated examples raise.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(values[torch.randint(len(values), (len(values),), generator=generator)]) for _ in range(repeats)]
    return torch.tensor(draws, dtype=torch.float64).std().item()
