"""Noise schedules: how much of x is left in x_t = α_t x + σ_t ε, for t from 0 (clean) to 1 (noise).

All coefficients are computed in float64 and cast once, where they meet x. t is (), (B,) or a float.
Notation: λ_t = log(α_t²/σ_t²), the log-SNR (VDM's γ is -λ); β and ᾱ = α² are those of the DDPM chain.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn

from ..distributions import Delta, Normal, randn_like
from ..precision import wide, widest

__all__ = ["NoiseLevel", "PosteriorCoefficients", "Schedule", "Time", "check_ends", "over"]

Time = Tensor | float


class NoiseLevel(NamedTuple):
    """A time with its coefficients: x_t = alpha x + sigma ε.

    Where a schedule is evaluated once for many calls (a sampler's plan), alpha and sigma are Python floats.
    """

    t: Tensor
    alpha: Tensor | float
    sigma: Tensor | float


class PosteriorCoefficients(NamedTuple):
    """q(x_s|x_t, x) = N(on_x_t x_t + on_x x, std² I), s < t, and large = σ_{t|s}, the upper bound of a model's std.

    Each is () or (B,), float64, or in a sampler's plan a Python float. `std` is 0 where s has no noise.
    """

    on_x_t: Tensor | float
    on_x: Tensor | float
    std: Tensor | float
    large: Tensor | float

    @property
    def noiseless(self) -> bool:
        """Whether s is one time, not a batch of them, and has no noise: q(x_s|x_t, x) is then x itself."""
        scalar = not isinstance(self.std, Tensor) or self.std.ndim == 0
        return scalar and bool(self.std == 0) and bool(self.on_x_t == 0)


@overload
def over(coefficient: Tensor, x: Tensor) -> Tensor: ...
@overload
def over(coefficient: float, x: Tensor) -> float: ...
def over(coefficient: Tensor | float, x: Tensor) -> Tensor | float:
    """Return a coefficient (), (B,) in x's type, shaped to multiply x (B, *event); a Python float stays one."""
    if not isinstance(coefficient, Tensor):
        return coefficient
    coefficient = coefficient.to(x.device, x.dtype)
    return coefficient.view(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


class Schedule(nn.Module):
    """A Gaussian noising process; subclasses give `log_snr`, its `slope` and its inverse `time`.

    Variance-preserving unless a subclass has other `coefficients`: α_t² = sigmoid(λ_t), σ_t² = sigmoid(-λ_t).
    Kingma 2021, 2107.00630, section 3.1. Where `exploding`, α = 1 and the variance of x_t grows with t.
    """

    exploding: bool = False

    # What a subclass gives.

    def log_snr(self, t: Time) -> Tensor:
        """Return λ_t, strictly decreasing in t, like t in shape; may be ±inf at the ends. float64."""
        raise self._abstract("log_snr")

    def slope(self, t: Time) -> Tensor:
        """Return dλ/dt, negative, like t in shape. float64."""
        raise self._abstract("slope")

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the t at which the log-SNR is λ: the inverse of `log_snr`. float64."""
        raise self._abstract("time")

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α, σ) at a log-SNR: the family that the schedule belongs to. float64."""
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    @property
    def terminal_std(self) -> float:
        """The standard deviation of the noise that sampling starts from: 1, or σ_1 where variance explodes."""
        return 1.0

    # What follows.

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t), each like t in shape. float64."""
        return self.coefficients(self.log_snr(t))

    def level(self, t: Time, like: Tensor) -> NoiseLevel:
        """Return the time t, () or (B,), with its coefficients, on the device of `like`, x or x_t (B, *event).

        Raises ValueError for a t of another shape, which would be broadcast.
        """
        t = t.to(like.device) if isinstance(t, Tensor) else widest(t, like.device)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(like)):
            raise ValueError(f"t must be () or (B,) = ({len(like)},) in [0, 1]; got shape {tuple(t.shape)}")
        return NoiseLevel(t, *self.alpha_sigma(t))

    def corrupt(
        self, x: Tensor, t: Time | NoiseLevel, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw ε ~ N(0, I) and return (x_t, ε), x_t = α_t x + σ_t ε: the one place where training noise is drawn.

        Arguments:
            x: (B, *event).
            t: () or (B,), in [0, 1]; or a `level` of this schedule.
            generator: of ε; None is torch's own.
        Returns: x_t and ε, (B, *event) each, in float32 or wider.
        """
        x = wide(x)
        epsilon = randn_like(x, generator)
        level = t if isinstance(t, NoiseLevel) else self.level(t, x)
        return over(level.alpha, x) * x + over(level.sigma, x) * epsilon, epsilon

    def marginal(self, x: Tensor, t: Time) -> Normal:
        """Return q(x_t|x) = N(α_t x, σ_t² I)."""
        x = wide(x)
        alpha, sigma = self.alpha_sigma(t)
        return Normal(over(alpha, x) * x, over(sigma, x))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """Return q(x_t|x_s) = N(α_{t|s} x_s, σ²_{t|s} I) for s < t."""
        x_s = wide(x_s)
        ratio, variance = self.step(s, t)
        return Normal(over(ratio, x_s) * x_s, over(variance.sqrt(), x_s))

    def posterior(self, x_t: Tensor, x: Tensor, s: Time, t: Time) -> Normal | Delta:
        """Return q(x_s|x_t, x) = N((α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x, σ²_{t|s} σ_s²/σ_t²) for s < t.

        Where a single s has no noise (σ_s = 0) it is Delta(x). Ho 2020, 2006.11239, eq. 7; Kingma 2021, eq. 25.
        """
        coefficients = self.posterior_coefficients(s, t)
        if coefficients.noiseless:
            return Delta(x)
        x_t, x = wide(x_t), wide(x)
        mean = over(coefficients.on_x_t, x) * x_t + over(coefficients.on_x, x) * x
        return Normal(mean, over(coefficients.std, x))

    def posterior_coefficients(self, s: Time, t: Time) -> PosteriorCoefficients:
        """Return the factors and standard deviations of `posterior`, like s and t in shape. float64."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.alpha_sigma(s), self.alpha_sigma(t)
        ratio, variance = _step(alpha_s, sigma_s, alpha_t, sigma_t)
        share = (sigma_s / sigma_t).square()
        on_x = alpha_s * variance / sigma_t.square()
        return PosteriorCoefficients(ratio * share, on_x, (variance * share).sqrt(), variance.sqrt())

    def step(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Return (α_{t|s}, σ²_{t|s}): α_t/α_s and σ_t² - α²_{t|s} σ_s². float64."""
        return _step(*self.alpha_sigma(s), *self.alpha_sigma(t))

    def noiseless(self, t: Time) -> bool:
        """Return whether t is one time, not a batch of them, and σ_t = 0 there."""
        return torch.as_tensor(t).ndim == 0 and bool(self.alpha_sigma(t)[1] == 0)

    def minimizing_variance(self) -> AbstractContextManager[list[Tensor]]:
        """Return a context for a bound's estimate at random t: a list to append its losses (B,) to.

        `LearnedSchedule` minimizes their variance; a schedule in which nothing is learned ignores them.
        """
        return nullcontext([])

    def _abstract(self, method: str) -> TypeError:
        return TypeError(f"{type(self).__name__} is abstract in {method}: a schedule gives log_snr, slope and time")


def _step(alpha_s: Tensor, sigma_s: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor]:
    ratio = alpha_t / alpha_s
    return ratio, (sigma_t.square() - (ratio * sigma_s).square()).clamp(min=0)


def check_ends(log_snr_max: float, log_snr_min: float, finite: bool = False) -> None:
    """Refuse ends of log-SNR that do not fall, or are infinite where they must not be (raises ValueError)."""
    if not log_snr_max > log_snr_min:
        raise ValueError(f"log_snr_max must be above log_snr_min; got {log_snr_max} and {log_snr_min}")
    if finite and not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(f"log_snr_max and log_snr_min must be finite here; got {log_snr_max} and {log_snr_min}")
