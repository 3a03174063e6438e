"""The β-tables of DDPM, by their names in diffusers, as functions of continuous time."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widest
from .base import Schedule, Time

__all__ = ["BETA_SCHEDULES", "BetaSchedule"]


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
    2006.11239), rescale_betas_zero_snr: shift and scale √ᾱ so that it is 0 at t = 1 (Lin 2023, 2305.08891, algorithm
    1), and straight in the last segment, where its logarithm would not be. The cosine table takes no beta_start and
    beta_end.
    """

    log_alphas_cumprod: Tensor

    def __init__(
        self,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear",
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        super().__init__()
        if beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}; got {beta_schedule!r}")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1; got {num_train_timesteps}")
        if rescale_betas_zero_snr and num_train_timesteps < 2:
            raise ValueError("rescale_betas_zero_snr needs num_train_timesteps of at least 2; got 1")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"0 < beta_start <= beta_end < 1 must hold; got {beta_start} and {beta_end}")
        self.num_train_timesteps = num_train_timesteps
        betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
        levels = F.pad((-betas).log1p().cumsum(0), (1, 0))
        if rescale_betas_zero_snr:
            root = (levels[1:] / 2).exp()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            levels = F.pad(2 * root.log(), (1, 0))
        self.zero_terminal_snr = rescale_betas_zero_snr
        # Settings make this table, so it is no state to save; as a buffer it follows the module's device.
        self.register_buffer("log_alphas_cumprod", levels, persistent=False)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of the table, diffusers' index: entry k belongs to t = (k+1)/T. (T,)"""
        return self.log_alphas_cumprod[1:].exp()

    @property
    def betas(self) -> Tensor:
        """β of the table. (T,)"""
        return -torch.expm1(self.log_alphas_cumprod.diff())

    def _segment(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return log ᾱ_t and its derivative."""
        place = widest(t, self.log_alphas_cumprod.device) * self.num_train_timesteps
        left = place.floor().clamp(0, self.num_train_timesteps - 1).long()
        table = self.log_alphas_cumprod
        if not self.zero_terminal_snr:
            rise = table[left + 1] - table[left]
            return table[left] + (place - left) * rise, rise * self.num_train_timesteps
        # √ᾱ falls to 0 in a straight line over the last segment, where the rise of its logarithm is infinite.
        ending = left == self.num_train_timesteps - 1
        rise = table[torch.where(ending, left, left + 1)] - table[left]
        rest = left + 1 - place
        log_level = table[left] + torch.where(ending, 2 * rest.clamp(min=0).log(), (place - left) * rise)
        return log_level, torch.where(ending, -2 / rest, rise) * self.num_train_timesteps

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return (√ᾱ_t, √(1 - ᾱ_t))."""
        log_level, _ = self._segment(t)
        return (log_level / 2).exp(), torch.expm1(log_level).abs().sqrt()

    def log_snr(self, t: Time) -> Tensor:
        """Return log ᾱ_t - log(1 - ᾱ_t); +inf at t = 0."""
        log_level, _ = self._segment(t)
        return log_level - torch.expm1(log_level).abs().log()

    def slope(self, t: Time) -> Tensor:
        """Return (d log ᾱ/dt)/(1 - ᾱ_t)."""
        log_level, derivative = self._segment(t)
        return derivative / -torch.expm1(log_level)

    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the inverse of `log_snr`, exact between nodes."""
        falling = -self.log_alphas_cumprod
        target = -F.logsigmoid(widest(log_snr, falling.device))
        right = torch.searchsorted(falling, target.contiguous()).clamp(1, self.num_train_timesteps)
        fraction = (target - falling[right - 1]) / (falling[right] - falling[right - 1])
        if self.zero_terminal_snr:
            straight = -torch.expm1((falling[right - 1] - target) / 2)
            fraction = torch.where(right == self.num_train_timesteps, straight, fraction)
        return (right - 1 + fraction) / self.num_train_timesteps
