"""Noise schedules: how much of x is left in x_t = α_t x + σ_t ε, for t from 0 (clean) to 1 (noise).

All coefficients are computed in float64 and cast once, where they meet x. t is (), (B,) or a float.
Notation: λ_t = log(α_t²/σ_t²), the log-SNR (VDM's γ is -λ); β and ᾱ = α² are those of the DDPM chain.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributions import Delta, Normal
from .precision import full_precision, wide, widest

__all__ = [
    "BETA_SCHEDULES",
    "BetaSchedule",
    "CosineSchedule",
    "LearnedSchedule",
    "LogSNRLinearSchedule",
    "Schedule",
    "over",
]

Time = Tensor | float


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,) in x's type, shaped to multiply x (B, *event)."""
    coefficient = coefficient.to(x.device, x.dtype)
    return coefficient.view(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient


class Schedule(nn.Module):
    """A variance-preserving Gaussian noising process; subclasses give `log_snr`, its `slope` and its inverse `time`.

    α_t² = sigmoid(λ_t), σ_t² = sigmoid(-λ_t). Kingma 2021, 2107.00630, section 3.1.
    """

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
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

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

    def noiseless(self, t: Time) -> bool:
        """Whether t is one time, not a batch of them, and σ_t = 0 there."""
        return torch.as_tensor(t).ndim == 0 and bool(self.alpha_sigma(t)[1] == 0)


class CosineSchedule(Schedule):
    """α_t = cos φ_t, σ_t = sin φ_t with φ linear in t, so λ_t = -2 log tan φ_t.

    Arguments: log_snr_max and log_snr_min, the λ at t = 0 and at t = 1; infinite by default (φ from 0 to π/2).
    Nichol & Dhariwal 2021, 2102.09672 (without their offset); truncated as in Hoogeboom 2023, 2301.11093.
    """

    def __init__(self, log_snr_max: float = math.inf, log_snr_min: float = -math.inf) -> None:
        super().__init__()
        _check_ends(log_snr_max, log_snr_min)
        self.start, self.end = (math.atan(math.exp(-bound / 2)) for bound in (log_snr_max, log_snr_min))

    def _angle(self, t: Time) -> Tensor:
        return self.start + (self.end - self.start) * widest(t)

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """(cos φ_t, sin φ_t), exact at both ends."""
        angle = self._angle(t)
        # cos(π/2) is 6e-17 in floating point; sin(π/2 - φ) is exactly 0 there, as zero terminal SNR asks.
        return torch.sin(math.pi / 2 - angle), torch.sin(angle)

    def log_snr(self, t: Time) -> Tensor:
        """-2 log tan φ_t."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def slope(self, t: Time) -> Tensor:
        """-4 (dφ/dt)/sin 2φ_t."""
        return -4 * (self.end - self.start) / torch.sin(2 * self._angle(t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """(atan e^(-λ/2) - φ_0)/(φ_1 - φ_0)."""
        return (torch.atan(torch.exp(-widest(log_snr) / 2)) - self.start) / (self.end - self.start)


class LogSNRLinearSchedule(Schedule):
    """λ_t falls in a straight line: uniform t is uniform log-SNR.

    Arguments: log_snr_max at t = 0 and log_snr_min at t = 1; VDM's for 8-bit images, 13.3 and -5, by default.
    """

    def __init__(self, log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> None:
        super().__init__()
        _check_ends(log_snr_max, log_snr_min, finite=True)
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min

    def log_snr(self, t: Time) -> Tensor:
        """λ_0 + (λ_1 - λ_0) t."""
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * widest(t)

    def slope(self, t: Time) -> Tensor:
        """λ_1 - λ_0."""
        return torch.full_like(widest(t), self.log_snr_min - self.log_snr_max)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """(λ - λ_0)/(λ_1 - λ_0)."""
        return (widest(log_snr) - self.log_snr_max) / (self.log_snr_min - self.log_snr_max)


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


def _squaredcos_cap_v2(steps: int, start: float, end: float) -> Tensor:
    """Nichol & Dhariwal 2021, 2102.09672, eq. 17, s = 0.008 and β at most 0.999; takes no start and end."""
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
    level = angle.cos().square()
    return (1 - level[1:] / level[:-1]).clamp(max=0.999)


def _sigmoid(steps: int, start: float, end: float) -> Tensor:
    """GeoDiff's, Xu 2022, 2203.02923."""
    return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start


BETA_SCHEDULES = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squaredcos_cap_v2,
    "sigmoid": _sigmoid,
}


class BetaSchedule(Schedule):
    """A DDPM chain's table of β, as a function of continuous t: ᾱ_{k/T} = Π_{i<=k} (1 - β_i) at the nodes t = k/T.

    Between nodes log ᾱ is linear in t. σ_0 = 0; diffusers' timestep k is t = (k+1)/T, the last of them t = 1.
    Arguments, as in diffusers: beta_schedule, num_train_timesteps = T, beta_start, beta_end (defaults of Ho 2020,
    2006.11239). The cosine table takes no beta_start and beta_end.
    """

    log_alphas_cumprod: Tensor

    def __init__(
        self,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()
        if beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}; got {beta_schedule!r}")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1; got {num_train_timesteps}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"0 < beta_start <= beta_end < 1 must hold; got {beta_start} and {beta_end}")
        self.num_train_timesteps = num_train_timesteps
        betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
        # Settings make this table, so it is no state to save; as a buffer it follows the module's device.
        self.register_buffer("log_alphas_cumprod", F.pad((-betas).log1p().cumsum(0), (1, 0)), persistent=False)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of the table, diffusers' index: entry k belongs to t = (k+1)/T. (T,)"""
        return self.log_alphas_cumprod[1:].exp()

    @property
    def betas(self) -> Tensor:
        """β of the table. (T,)"""
        return -torch.expm1(self.log_alphas_cumprod.diff())

    def _segment(self, t: Time) -> tuple[Tensor, Tensor]:
        """log ᾱ_t and its derivative."""
        place = widest(t, self.log_alphas_cumprod.device) * self.num_train_timesteps
        left = place.floor().clamp(0, self.num_train_timesteps - 1).long()
        table = self.log_alphas_cumprod
        rise = table[left + 1] - table[left]
        return table[left] + (place - left) * rise, rise * self.num_train_timesteps

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """(√ᾱ_t, √(1 - ᾱ_t))."""
        log_level, _ = self._segment(t)
        return (log_level / 2).exp(), torch.expm1(log_level).abs().sqrt()

    def log_snr(self, t: Time) -> Tensor:
        """log ᾱ_t - log(1 - ᾱ_t); +inf at t = 0."""
        log_level, _ = self._segment(t)
        return log_level - torch.expm1(log_level).abs().log()

    def slope(self, t: Time) -> Tensor:
        """(d log ᾱ/dt)/(1 - ᾱ_t)."""
        log_level, derivative = self._segment(t)
        return derivative / -torch.expm1(log_level)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The inverse of `log_snr`, exact between nodes."""
        falling = -self.log_alphas_cumprod
        target = -F.logsigmoid(widest(log_snr, falling.device))
        right = torch.searchsorted(falling, target.contiguous()).clamp(1, self.num_train_timesteps)
        fraction = (target - falling[right - 1]) / (falling[right] - falling[right - 1])
        return (right - 1 + fraction) / self.num_train_timesteps


class LearnedSchedule(Schedule):
    """A monotone network between two endpoints: λ_t = λ_0 + (λ_1 - λ_0) n(t), n(0) = 0, n(1) = 1.

    n is g normalized, g(t) = t + Σ_k w_k sigmoid(v_k t + b_k) with w, v > 0. Kingma 2021, 2107.00630, appendix H.
    Arguments: log_snr_max and log_snr_min, the endpoints; learn_endpoints, off by default, since on continuous latents
    λ_0 would run away; width, the number of sigmoids.
    """

    def __init__(
        self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, learn_endpoints: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        _check_ends(log_snr_max, log_snr_min, finite=True)
        self.endpoints = nn.Parameter(torch.tensor([log_snr_max, log_snr_min]), requires_grad=learn_endpoints)
        # Sigmoids centred all over [0, 1], each too small at first to bend the line by much.
        self.log_weight = nn.Parameter(torch.full((width,), math.log(0.1 / width)))
        self.log_steepness = nn.Parameter(torch.full((width,), math.log(10.0)))
        self.bias = nn.Parameter(-10.0 * torch.linspace(0, 1, width))

    def _shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """g(t) and dg/dt, each like t."""
        weight, steepness = self.log_weight.double().exp(), self.log_steepness.double().exp()
        bump = torch.sigmoid(t.unsqueeze(-1) * steepness + self.bias.double())
        return t + (weight * bump).sum(-1), 1 + (weight * steepness * bump * (1 - bump)).sum(-1)

    @full_precision()
    def _normalized(self, t: Time) -> tuple[Tensor, Tensor]:
        """n(t) and dn/dt."""
        t = widest(t, self.bias.device)
        value, derivative = self._shape(t)
        (start, end), _ = self._shape(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        return (value - start) / (end - start), derivative / (end - start)

    def log_snr(self, t: Time) -> Tensor:
        """λ_0 + (λ_1 - λ_0) n(t)."""
        first, last = self.endpoints.double()
        return first + (last - first) * self._normalized(t)[0]

    def slope(self, t: Time) -> Tensor:
        """(λ_1 - λ_0) dn/dt."""
        first, last = self.endpoints.double()
        return (last - first) * self._normalized(t)[1]

    @torch.no_grad()
    def time(self, log_snr: Tensor | float) -> Tensor:
        """The inverse of `log_snr`, by bisection to 1e-15; it has no gradient."""
        target = widest(log_snr, self.bias.device)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(52):  # each halves the bracket; 52 are all that float64 can tell apart
            middle = (low + high) / 2
            above = self.log_snr(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2


def _check_ends(log_snr_max: float, log_snr_min: float, finite: bool = False) -> None:
    if not log_snr_max > log_snr_min:
        raise ValueError(f"log_snr_max must be above log_snr_min; got {log_snr_max} and {log_snr_min}")
    if finite and not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min)):
        raise ValueError(f"log_snr_max and log_snr_min must be finite here; got {log_snr_max} and {log_snr_min}")
