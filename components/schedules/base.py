"""Noise schedules: how much of x is left in x_t = α_t x + σ_t ε, for t from 0 (clean) to 1 (noise).

All coefficients are computed in float64 and cast once, where they meet x. t is (), (B,) or a float.
Notation: λ_t = log(α_t²/σ_t²), the log-SNR (VDM's γ is -λ); β and ᾱ = α² are those of the DDPM chain.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ..distributions import Delta, Normal
from ..precision import wide

__all__ = ["Schedule", "Time", "check_ends", "over"]

Time = Tensor | float


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,) in x's type, shaped to multiply x (B, *event)."""
    coefficient = coefficient.to(x.device, x.dtype)
    return coefficient.view(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


class Schedule(nn.Module):
    """A Gaussian noising process; subclasses give `log_snr`, its `slope` and its inverse `time`.

    Variance-preserving unless a subclass has other `coefficients`: α_t² = sigmoid(λ_t), σ_t² = sigmoid(-λ_t).
    Kingma 2021, 2107.00630, section 3.1. Where `exploding`, α = 1 and the variance of x_t grows with t.
    """

    exploding: bool = False

    def log_snr(self, t: Time) -> Tensor:
        """λ_t, strictly decreasing in t, like t in shape; may be ±inf at the ends. float64."""
        raise TypeError(f"{type(self).__name__} is abstract in log_snr: a schedule gives log_snr, slope and time")

    def slope(self, t: Time) -> Tensor:
        """dλ/dt, negative, like t in shape. float64."""
        raise TypeError(f"{type(self).__name__} is abstract in slope: a schedule gives log_snr, slope and time")

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The t at which the log-SNR is λ: the inverse of `log_snr`. float64."""
        raise TypeError(f"{type(self).__name__} is abstract in time: a schedule gives log_snr, slope and time")

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """(α_t, σ_t), each like t in shape. float64."""
        return self.coefficients(self.log_snr(t))

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) at a log-SNR: the family that the schedule belongs to. float64."""
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    @property
    def terminal_std(self) -> float:
        """The standard deviation of the noise that sampling starts from: 1, or σ_1 where variance explodes."""
        return 1.0

    def marginal(self, x: Tensor, t: Time) -> Normal:
        """q(x_t|x) = N(α_t x, σ_t² I)."""
        x = wide(x)
        alpha, sigma = self.alpha_sigma(t)
        return Normal(over(alpha, x) * x, over(sigma, x))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """q(x_t|x_s) = N(α_{t|s} x_s, σ²_{t|s} I) for s < t."""
        x_s = wide(x_s)
        ratio, variance = self.step(s, t)
        return Normal(over(ratio, x_s) * x_s, over(variance.sqrt(), x_s))

    def posterior(self, x_t: Tensor, x: Tensor, s: Time, t: Time) -> Normal | Delta:
        """q(x_s|x_t, x) = N((α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x, σ²_{t|s} σ_s²/σ_t²) for s < t.

        Where a single s has no noise (σ_s = 0) it is Delta(x). Ho 2020, 2006.11239, eq. 7; Kingma 2021, eq. 25.
        """
        if self.noiseless(s):
            return Delta(x)
        x_t, x = wide(x_t), wide(x)
        on_x_t, on_x, std = self.posterior_coefficients(s, t)
        return Normal(over(on_x_t, x) * x_t + over(on_x, x) * x, over(std, x))

    def step(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """(α_{t|s}, σ²_{t|s}): α_t/α_s and σ_t² - α²_{t|s} σ_s². float64."""
        alpha_s, sigma_s = self.alpha_sigma(s)
        alpha_t, sigma_t = self.alpha_sigma(t)
        ratio = alpha_t / alpha_s
        return ratio, (sigma_t.square() - (ratio * sigma_s).square()).clamp(min=0)

    def posterior_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior's factors on x_t and on x, and its standard deviation. float64."""
        alpha_s, sigma_s = self.alpha_sigma(s)
        _, sigma_t = self.alpha_sigma(t)
        ratio, variance = self.step(s, t)
        share = (sigma_s / sigma_t).square()
        return ratio * share, alpha_s * variance / sigma_t.square(), (variance * share).sqrt()

    def minimizing_variance(self) -> AbstractContextManager[list[Tensor]]:
        """Where a bound's estimate at random t is made: a list to append its losses (B,) to, for what is learned.

        `LearnedSchedule` says what it makes of them; a schedule in which nothing is learned ignores them.
        """
        return nullcontext([])

    def noiseless(self, t: Time) -> bool:
        """Whether t is one time, not a batch of them, and σ_t = 0 there."""
        return torch.as_tensor(t).ndim == 0 and bool(self.alpha_sigma(t)[1] == 0)


def check_ends(log_snr_max: float, log_snr_min: float, finite: bool = False) -> None:
    """Refuse ends of log-SNR that do not fall, or are infinite where they must not be (raises ValueError)."""
    if not log_snr_max > log_snr_min:
        raise ValueError(f"log_snr_max must be above log_snr_min; got {log_snr_max} and {log_snr_min}")
    if finite and not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(f"log_snr_max and log_snr_min must be finite here; got {log_snr_max} and {log_snr_min}")
