"""Schedules in closed form: cosine, straight log-SNR, exploding variance, EDM's, straight-line flow, and shifts."""

import math
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widest
from .base import Schedule, Time, check_ends

__all__ = [
    "CosineSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "LogSNRLinearSchedule",
    "ShiftedSchedule",
    "VarianceExplodingSchedule",
    "VariancePreservingSchedule",
]


class CosineSchedule(Schedule):
    """α_t = cos φ_t, σ_t = sin φ_t with φ linear in t, so λ_t = -2 log tan φ_t.

    Arguments:
        log_snr_max, log_snr_min: λ at t = 0 and at t = 1; infinite by default (φ from 0 to π/2).
    Nichol & Dhariwal 2021, 2102.09672 (without their offset); truncated as in Hoogeboom 2023, 2301.11093.
    """

    def __init__(self, log_snr_max: float = math.inf, log_snr_min: float = -math.inf) -> None:
        super().__init__()
        check_ends(log_snr_max, log_snr_min)
        self.start, self.end = (math.atan(math.exp(-bound / 2)) for bound in (log_snr_max, log_snr_min))

    def _angle(self, t: Time) -> Tensor:
        return self.start + (self.end - self.start) * widest(t)

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (cos φ_t, sin φ_t), exact at both ends."""
        angle = self._angle(t)
        # cos(π/2) is 6e-17 in floating point; sin(π/2 - φ) is exactly 0 there, as zero terminal SNR asks.
        return torch.sin(math.pi / 2 - angle), torch.sin(angle)

    def log_snr(self, t: Time) -> Tensor:
        """Return -2 log tan φ_t."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def slope(self, t: Time) -> Tensor:
        """Return -4 (dφ/dt)/sin 2φ_t."""
        return -4 * (self.end - self.start) / torch.sin(2 * self._angle(t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return (atan e^(-λ/2) - φ_0)/(φ_1 - φ_0)."""
        return (torch.atan(torch.exp(-widest(log_snr) / 2)) - self.start) / (self.end - self.start)


class LogSNRLinearSchedule(Schedule):
    """λ_t falls in a straight line: uniform t is uniform log-SNR.

    Arguments:
        log_snr_max, log_snr_min: λ at t = 0 and at t = 1; by default VDM's for 8-bit images.
    """

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> None:
        super().__init__()
        check_ends(log_snr_max, log_snr_min, finite=True)
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min

    def log_snr(self, t: Time) -> Tensor:
        """Return λ_0 + (λ_1 - λ_0) t."""
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * widest(t)

    def slope(self, t: Time) -> Tensor:
        """Return λ_1 - λ_0."""
        return torch.full_like(widest(t), self.log_snr_min - self.log_snr_max)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return (λ - λ_0)/(λ_1 - λ_0)."""
        return (widest(log_snr) - self.log_snr_max) / (self.log_snr_min - self.log_snr_max)


class _Exploding(Schedule):
    """α = 1: x_t = x + σ_t ε, λ = -2 log σ."""

    exploding = True
    sigma_min: float
    sigma_max: float

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, e^(-λ/2))."""
        return torch.ones_like(log_snr), torch.exp(-log_snr / 2)

    @property
    def terminal_std(self) -> float:
        """σ_max."""
        return self.sigma_max

    def _check(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max must hold; got {self.sigma_min} and {self.sigma_max}")


class VarianceExplodingSchedule(_Exploding):
    """α = 1, σ_t = σ_min (σ_max/σ_min)^t. Song 2021, 2011.13456, appendix C.

    Arguments:
        sigma_min, sigma_max: σ at t = 0 and at t = 1, in units of x.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._check()

    def log_snr(self, t: Time) -> Tensor:
        """Return -2 log σ_t, a straight line."""
        return -2 * (math.log(self.sigma_min) + widest(t) * math.log(self.sigma_max / self.sigma_min))

    def slope(self, t: Time) -> Tensor:
        """Return -2 log(σ_max/σ_min)."""
        return torch.full_like(widest(t), -2 * math.log(self.sigma_max / self.sigma_min))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return log(σ/σ_min)/log(σ_max/σ_min)."""
        return (-widest(log_snr) / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


class EDMSchedule(_Exploding):
    """α = 1, σ_t = (σ_min^(1/ρ) + t (σ_max^(1/ρ) - σ_min^(1/ρ)))^ρ. Karras 2022, 2206.00364, eq. 5.

    An even grid of t is that paper's grid of σ.

    Arguments:
        sigma_min, sigma_max, rho: named as there.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._check()
        if not rho > 0:
            raise ValueError(f"rho must be above 0; got {rho}")
        self.low, self.high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def log_snr(self, t: Time) -> Tensor:
        """Return -2 log σ_t."""
        return -2 * self.rho * torch.log(self.low + widest(t) * (self.high - self.low))

    def slope(self, t: Time) -> Tensor:
        """Return -2 ρ (high - low)/(low + t (high - low)), low and high the ρ-th roots of the ends."""
        return -2 * self.rho * (self.high - self.low) / (self.low + widest(t) * (self.high - self.low))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return (σ^(1/ρ) - low)/(high - low)."""
        return (torch.exp(-widest(log_snr) / (2 * self.rho)) - self.low) / (self.high - self.low)


class FlowSchedule(Schedule):
    """x_t = (1 - t) x + t ε: rectified flow and flow matching, clean at t = 0 (there, time runs the other way round).

    λ_t = 2 log((1 - t)/t), +inf at t = 0 and -inf at t = 1. Liu 2022, 2209.03003; Lipman 2022, 2210.02747.
    """

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t)."""
        t = widest(t)
        return 1 - t, t

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (sigmoid(λ/2), sigmoid(-λ/2))."""
        return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)

    def log_snr(self, t: Time) -> Tensor:
        """Return 2 log((1 - t)/t)."""
        t = widest(t)
        return 2 * ((-t).log1p() - t.log())

    def slope(self, t: Time) -> Tensor:
        """Return -2/(t (1 - t))."""
        t = widest(t)
        return -2 / (t * (1 - t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return sigmoid(-λ/2)."""
        return torch.sigmoid(-widest(log_snr) / 2)


class ShiftedSchedule(Schedule):
    """Another schedule with σ_t/α_t multiplied by `shift`: λ_t - 2 log shift, as higher resolutions need.

    Hoogeboom 2023, 2301.11093, section 2.1 (shift = resolution/64); for flows it is Esser 2024, 2403.03206, eq. 23.
    Arguments:
        schedule: whose family of (α, σ) it has.
        shift: > 0.
    """

    def __init__(self, schedule: Schedule, shift: float) -> None:
        super().__init__()
        if not 0 < shift < math.inf:
            raise ValueError(f"shift must be above 0; got {shift}")
        self.schedule, self.shift, self.exploding = schedule, shift, schedule.exploding

    @property
    def terminal_std(self) -> float:
        """1, or σ_1 where variance explodes."""
        return self.schedule.terminal_std * (self.shift if self.exploding else 1.0)

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the schedule's family."""
        return self.schedule.coefficients(log_snr)

    def log_snr(self, t: Time) -> Tensor:
        """Return λ_t - 2 log shift."""
        return self.schedule.log_snr(t) - 2 * math.log(self.shift)

    def slope(self, t: Time) -> Tensor:
        """Return the schedule's own."""
        return self.schedule.slope(t)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the schedule's time of λ + 2 log shift."""
        return self.schedule.time(widest(log_snr) + 2 * math.log(self.shift))

    def minimizing_variance(self) -> AbstractContextManager[list[Tensor]]:
        """Return the schedule's own, which may be learned."""
        return self.schedule.minimizing_variance()


class VariancePreservingSchedule(Schedule):
    """ᾱ_t = exp(-∫ β), β(u) = β_min + u (β_max - β_min) from u = start to u = start + t (1 - start).

    Song 2021, 2011.13456, appendix C. A chain of T levels has its nodes at t = k/T, with β_k = 1 - ᾱ_{k/T}/ᾱ_{(k-1)/T}:
    that of denoising diffusion GANs (Xiao 2021, 2112.07804), .47826, .84921, .95642, .98740 for T = 4. σ_0 = 0, while
    ᾱ_1 = 4.3e-5 is not 0: sampling starts from N(0, I) all the same.

    Arguments:
        beta_min, beta_max: per unit of time.
        start: in [0, 1), the time that is clean.
    Raises ValueError for others.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, start: float = 1e-3) -> None:
        super().__init__()
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"0 < beta_min <= beta_max must hold; got {beta_min} and {beta_max}")
        if not 0 <= start < 1:
            raise ValueError(f"start must be in [0, 1); got {start}")
        self.length, self.rise = 1 - start, beta_max - beta_min
        self.first = beta_min + start * self.rise

    def _log_level(self, t: Time) -> Tensor:
        """Return log ᾱ_t, exactly 0 at t = 0."""
        passed = self.length * widest(t)
        return -(self.first * passed + 0.5 * self.rise * passed.square())

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (√ᾱ_t, √(1 - ᾱ_t))."""
        log_level = self._log_level(t)
        return (log_level / 2).exp(), torch.expm1(log_level).abs().sqrt()

    def log_snr(self, t: Time) -> Tensor:
        """Return log ᾱ_t - log(1 - ᾱ_t); +inf at t = 0."""
        log_level = self._log_level(t)
        return log_level - torch.expm1(log_level).abs().log()

    def slope(self, t: Time) -> Tensor:
        """Return -(1 - start) β/(1 - ᾱ_t)."""
        beta = self.first + self.rise * self.length * widest(t)
        return self.length * beta / torch.expm1(self._log_level(t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the positive root of ½ rise u² + first u = -log sigmoid(λ), over 1 - start."""
        integral = -F.logsigmoid(widest(log_snr))
        # This form of the root has no difference of near numbers, nor a rise of 0 below.
        return 2 * integral / (self.first + (self.first**2 + 2 * self.rise * integral).sqrt()) / self.length
