"""A diffusion's last decoder: p(x|x_t) at its first level, which is the L_0 of the bound."""

import torch
from torch import Tensor, nn

from ..distributions import Categorical, DiscretizedNormal, Normal, grid
from ..precision import wide
from ..schedules import Schedule, over
from .denoiser import Denoiser

__all__ = ["DenoisedLast", "GaussianLast", "GridLast"]


class GaussianLast(nn.Module):
    """p(x|x_0) = N(x_0/α_0, σ_0²/α_0² I), for continuous x and a schedule that starts with noise at t = 0.

    Its L_0 is ½ log 2πe - ½ λ_0 nats a dimension in expectation.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        must_start_with_noise(schedule, self)
        self.schedule = schedule

    def forward(self, x_0: Tensor, cond: Tensor | None = None) -> Normal:
        """x_0 (B, *event) → p(x|x_0)."""
        x_0 = wide(x_0)
        alpha, sigma = self.schedule.alpha_sigma(0.0)
        return Normal(x_0 / over(alpha, x_0), over(sigma / alpha, x_0))


class GridLast(nn.Module):
    """p(x|x_0) ∝ exp(-½ SNR_0 (x_0/α_0 - v)²) over the K grey levels v. Kingma 2021, 2107.00630, eq. 44.

    For x on the grid 2v/(K-1) - 1 and a schedule that starts with noise at t = 0. Arguments: schedule; levels = K.
    """

    def __init__(self, schedule: Schedule, levels: int) -> None:
        super().__init__()
        must_start_with_noise(schedule, self)
        self.schedule, self.levels = schedule, levels

    def forward(self, x_0: Tensor, cond: Tensor | None = None) -> Categorical:
        """x_0 (B, *event) → p(x|x_0)."""
        x_0 = wide(x_0)
        alpha, sigma = self.schedule.alpha_sigma(0.0)
        values = grid(self.levels, x_0).view(-1, *[1] * (x_0.ndim - 1))
        distance = (x_0 / over(alpha, x_0)).unsqueeze(1) - values
        return Categorical(-0.5 * over((alpha / sigma).square(), x_0) * distance.square())


class DenoisedLast(nn.Module):
    """p(x|x_t) around x̂(x_t), t the first level of a chain whose t = 0 is clean. Ho 2020, 2006.11239, section 3.3.

    N(x̂, std² I), or its integral over the bins of K grey levels. Arguments: denoiser; t; std, such as √β_1; levels.
    """

    def __init__(self, denoiser: Denoiser, t: float, std: float, levels: int | None = None) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"std must be above 0; got {std}")
        self.denoiser, self.t, self.std, self.levels = denoiser, t, std, levels

    def forward(self, x_t: Tensor, cond: Tensor | None = None) -> Normal | DiscretizedNormal:
        """x_t (B, *event) → p(x|x_t)."""
        x = self.denoiser.clipped(x_t, self.t, cond).mean
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device)
        return Normal(x, std) if self.levels is None else DiscretizedNormal(x, std, self.levels)


def must_start_with_noise(schedule: Schedule, last: nn.Module) -> None:
    """Raises ValueError, naming both, for a schedule with σ = 0 at t = 0."""
    if schedule.noiseless(0.0):
        raise ValueError(
            f"{type(last).__name__} needs noise at t = 0; {type(schedule).__name__} has σ = 0 there: "
            "use a finite log_snr_max, or DenoisedLast"
        )
