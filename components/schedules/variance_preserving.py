"""The variance-preserving process of score-based models: β rises in a straight line over continuous time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widest
from .base import Schedule, Time

__all__ = ["VariancePreservingSchedule"]


class VariancePreservingSchedule(Schedule):
    """ᾱ_t = exp(-∫ β), β(u) = β_min + u (β_max - β_min) from u = start to u = start + t (1 - start).

    Song 2021, 2011.13456, appendix C. A chain of T levels has its nodes at t = k/T, with β_k = 1 - ᾱ_{k/T}/ᾱ_{(k-1)/T}:
    that of denoising diffusion GANs (Xiao 2021, 2112.07804), .47826, .84921, .95642, .98740 for T = 4. σ_0 = 0, while
    ᾱ_1 = 4.3e-5 is not 0: sampling starts from N(0, I) all the same.
    Arguments: beta_min, beta_max, per unit of time; start in [0, 1), the time that is clean. Raises ValueError.
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
        """log ᾱ_t, exactly 0 at t = 0."""
        passed = self.length * widest(t)
        return -(self.first * passed + 0.5 * self.rise * passed.square())

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """(√ᾱ_t, √(1 - ᾱ_t))."""
        log_level = self._log_level(t)
        return (log_level / 2).exp(), torch.expm1(log_level).abs().sqrt()

    def log_snr(self, t: Time) -> Tensor:
        """log ᾱ_t - log(1 - ᾱ_t); +inf at t = 0."""
        log_level = self._log_level(t)
        return log_level - torch.expm1(log_level).abs().log()

    def slope(self, t: Time) -> Tensor:
        """-(1 - start) β/(1 - ᾱ_t)."""
        beta = self.first + self.rise * self.length * widest(t)
        return self.length * beta / torch.expm1(self._log_level(t))

    def time(self, log_snr: Tensor | float) -> Tensor:
        """The positive root of ½ rise u² + first u = -log sigmoid(λ), over 1 - start."""
        integral = -F.logsigmoid(widest(log_snr))
        # This form of the root has no difference of near numbers, nor a rise of 0 below.
        return 2 * integral / (self.first + (self.first**2 + 2 * self.rise * integral).sqrt()) / self.length
