"""A measured number with its noise floor and confidence interval, and the formulas of the intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Measurement",
    "Unavailable",
    "interval_about",
    "deviation_interval",
    "mean_of",
    "proportion_interval",
    "quantile",
    "ratio_of",
    "bootstrap_deviation",
    "variance_beyond",
]

Z = 1.959964
"""The 97.5% quantile of N(0, 1)."""


@dataclass(frozen=True)
class Measurement:
    """A number with its noise floor and its 95% confidence interval.

    Arguments:
        value: the metric.
        floor: its expected value for exact samples: the mean over random splits of real examples into two halves of the
            metric of one half against the other, or the known value, or None.
        low, high: the ends of the 95% interval of the metric's expectation at these numbers of examples, or None where
            that is not computed.
        floor_spread: the standard deviation of the floor over the splits, or the known one, or None.
    """

    value: float
    floor: float | None = None
    low: float | None = None
    high: float | None = None
    floor_spread: float | None = None


class Unavailable(Exception):
    """A metric is not defined for a model and its data, or cannot be computed here; the message gives the reason."""


def quantile(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t (1908) with `freedom` degrees of freedom; of N(0, 1) if infinite."""
    if math.isinf(freedom):
        return Z
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def interval_about(
    value: float,
    deviation: float,
    floor: float | None = None,
    floor_spread: float | None = None,
    *,
    least: float | None = None,
    freedom: float = math.inf,
) -> Measurement:
    """Return value with the interval value ± t deviation, t = quantile(freedom); low is at least `least`."""
    half = quantile(freedom) * deviation
    low = value - half if least is None else max(value - half, least)
    return Measurement(value, floor, low, value + half, floor_spread)


def mean_of(
    values: Tensor, floor: float | None = None, floor_spread: float | None = None, *, scale: float = 1.0
) -> Measurement:
    """Return scale times the mean of independent values (N,), ± t s/√N with N - 1 degrees of freedom (Student 1908)."""
    values = scale * values.double()
    if len(values) < 2:
        return interval_about(values.mean().item(), 0.0, floor, floor_spread)
    error = values.std().item() / len(values) ** 0.5
    return interval_about(values.mean().item(), error, floor, floor_spread, freedom=len(values) - 1)


def ratio_of(
    values: Tensor, reference: Tensor, floor: float | None = None, floor_spread: float | None = None
) -> Measurement:
    """Return mean(values) / mean(reference) of independent values (N,) and (M,), both being random.

    The variance is (s_v²/N + r² s_r²/M) / mean(reference)² by the delta method, r being the ratio (Cochran 1977).
    """
    values, reference = values.double(), reference.double()
    denominator = reference.mean().item()
    ratio = values.mean().item() / denominator
    variances = [0.0 if len(part) < 2 else part.var().item() / len(part) for part in (values, reference)]
    deviation = math.sqrt(variances[0] + ratio**2 * variances[1]) / denominator
    freedom = min(len(values), len(reference)) - 1
    return interval_about(ratio, deviation, floor, floor_spread, freedom=freedom if freedom else math.inf)


def proportion_interval(share: float, n: float, freedom: float = math.inf) -> tuple[float, float]:
    """Return the ends of Wilson's 95% interval of a proportion that is `share` among n independent examples.

    They are (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n), the proportions that a score test does not reject:
    inside [0, 1], and of positive width at 0 and 1. Wilson 1927. For dependent examples, n is their effective number
    p (1 - p)/variance, and z the t quantile of the variance's degrees of freedom: Korn & Graubard 1998.
    Raises ValueError for a share outside [0, 1] or n that is not positive.
    """
    if not (0 <= share <= 1 and n > 0):
        raise ValueError(f"share must be in [0, 1] and n positive; got {share} and {n}")
    z = quantile(freedom)
    centre, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    # Exact ends where rounding would leave about 1e-17.
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def deviation_interval(deviation: float, n: int) -> tuple[float, float]:
    """Return the ends of the 95% interval of the standard deviation of a Gaussian, from that of n values.

    They are s √((n - 1)/χ²) at the quantiles 97.5% and 2.5% of χ² with n - 1 degrees of freedom: 0.52 s and 6.3 s for
    three values. Raises ValueError for n below 2.
    """
    from scipy.special import chdtri

    if n < 2:
        raise ValueError(f"n must be at least 2; got {n}")
    low, high = (deviation * math.sqrt((n - 1) / float(chdtri(n - 1, tail))) for tail in (0.025, 0.975))
    return low, high


def variance_beyond(plug_in: float, null: float) -> float:
    """Return the variance of a distance from its plug-in estimate and from its variance between equal distributions.

    It is max(plug_in - null, null). The variance of a distance between two samples has a first-order term, which is 0
    between equal distributions, and a second-order term. The delta method on the samples, like the jackknife and the
    bootstrap, counts the first-order term once and the second-order term twice (Efron & Stein 1981), so the plug-in
    estimate less the second-order term, which is the variance between equal distributions, is the variance.
    """
    return max(plug_in - null, null)


def bootstrap_deviation(
    values: Tensor, statistic: Callable[[Tensor], float], repeats: int = 200, seed: int = 0
) -> float:
    """Return the bootstrap standard deviation of statistic(values), values (N, ...) resampled with replacement.

    Efron 1979. Valid for smooth statistics and medians; not for distances, which repeated examples bias upwards.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(values[torch.randint(len(values), (len(values),), generator=generator)]) for _ in range(repeats)]
    return torch.tensor(draws, dtype=torch.float64).std().item()
