"""Exact denoisers of known data, as backbones that predict x: Denoiser(GaussianMean(...), schedule, "sample").

Where the schedule explodes they take x_t/√(α² + σ²), as a Denoiser gives it to its backbone.
"""

import torch
from torch import Tensor, nn

from ..precision import wide, widest
from ..schedules import Schedule, Time, over

__all__ = ["GaussianMean", "MixtureMean"]


def _float64(x: Tensor, t: Time, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_t in float64, and α and σ shaped to multiply it."""
    x = x.double()
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(widest(t, x.device)))
    return x * (alpha.square() + sigma.square()).sqrt() if schedule.exploding else x, alpha, sigma


class GaussianMean(nn.Module):
    """E[x|x_t] for x ~ N(m, Σ): m + α Σ (α² Σ + σ² I)⁻¹ (x_t - α m).

    Arguments: schedule; mean (D,); covariance (D, D), symmetric and positive semi-definite. x_t is (B, D).
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, schedule: Schedule, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise ValueError(f"mean must be (D,) and covariance (D, D); got {shapes}")
        self.schedule = schedule
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("mean", mean.double())
        self.register_buffer("values", values)
        self.register_buffer("vectors", vectors)

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Return x_t (B, D), t () or (B,) → (B, D)."""
        x, alpha, sigma = _float64(x_t, t, self.schedule)
        centred = (x - alpha * self.mean) @ self.vectors
        gain = alpha * self.values / (alpha.square() * self.values + sigma.square())
        return (self.mean + (gain * centred) @ self.vectors.T).to(wide(x_t).dtype)


class MixtureMean(nn.Module):
    """E[x|x_t] for an even mixture of N(m_k, s² I): Σ_k r_k (m_k + g (x_t - α m_k)), g = α s²/(α² s² + σ²).

    r_k ∝ exp(-½ ‖x_t - α m_k‖²/(α² s² + σ²)). Arguments: schedule; means (K, D); std = s >= 0. x_t is (B, D).
    """

    means: Tensor

    def __init__(self, schedule: Schedule, means: Tensor, std: float) -> None:
        super().__init__()
        if means.ndim != 2 or std < 0:
            raise ValueError(f"means must be (K, D) and std not negative; got {tuple(means.shape)} and {std}")
        self.schedule, self.std = schedule, std
        self.register_buffer("means", means.double())

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Return x_t (B, D), t () or (B,) → (B, D)."""
        x, alpha, sigma = _float64(x_t, t, self.schedule)
        variance = alpha.square() * self.std**2 + sigma.square()
        distance = (x.unsqueeze(1) - alpha.unsqueeze(-1) * self.means).square().sum(-1)
        share = torch.softmax(-0.5 * distance / variance, dim=1)
        centre = share @ self.means
        gain = alpha * self.std**2 / variance
        return (centre + gain * (x - alpha * centre)).to(wide(x_t).dtype)
