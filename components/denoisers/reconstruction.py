"""L_0 of a diffusion: the decoder p(x|x_t) of its first level, by a formula of x_t, of x̂, or of its grey levels.

A reconstruction is a module (x_t, level, estimate) → Distribution over x, for x_t (B, *event), the `NoiseLevel` of its
time and the denoiser's `Estimate`, None where `uses_estimate` is False. It owns nothing but its own parameters.
"""

import torch
from torch import Tensor, nn

from ..distributions import Categorical, DiscretizedNormal, Distribution, Normal, grid
from ..precision import wide
from ..schedules import NoiseLevel, over
from .prediction import Estimate

__all__ = [
    "DenoisedReconstruction",
    "GaussianReconstruction",
    "GreyLevelReconstruction",
    "PosteriorReconstruction",
    "Reconstruction",
]


class Reconstruction(nn.Module):
    """p(x|x_t) at the first level of a diffusion; subclasses give `forward`.

    uses_estimate: whether it needs the denoiser's estimate, which costs an evaluation of the network.
    grey_levels: K of discrete data, of which it is a probability; None: it is a density.
    needs_noise: whether the schedule must have noise at t = 0.
    leaves_noise: whether its mean has the noise of x_t still in it, so that samples end at x̂ instead.
    """

    uses_estimate: bool = False
    needs_noise: bool = False
    leaves_noise: bool = False
    grey_levels: int | None = None

    def forward(self, x_t: Tensor, level: NoiseLevel, estimate: Estimate | None = None) -> Distribution:
        """Return p(x|x_t)."""
        raise TypeError(f"{type(self).__name__} is abstract in forward: a reconstruction gives p(x|x_t)")


class GaussianReconstruction(Reconstruction):
    """p(x|x_0) = N(x_0/α_0, σ_0²/α_0² I), for continuous x and a schedule that starts with noise at t = 0.

    Its L_0 is ½ log 2πe - ½ λ_0 nats a dimension in expectation.
    """

    needs_noise = leaves_noise = True

    def forward(self, x_t: Tensor, level: NoiseLevel, estimate: Estimate | None = None) -> Normal:
        """Return p(x|x_0) of x_0 (B, *event)."""
        x_0 = wide(x_t)
        return Normal(x_0 / over(level.alpha, x_0), over(level.sigma / level.alpha, x_0))


class GreyLevelReconstruction(Reconstruction):
    """p(x|x_0) ∝ exp(-½ SNR_0 (x_0/α_0 - v)²) over the K grey levels v. Kingma 2021, 2107.00630, eq. 44.

    For x on the grid 2v/(K-1) - 1 and a schedule that starts with noise at t = 0. Arguments: grey_levels = K.
    """

    needs_noise = leaves_noise = True

    def __init__(self, grey_levels: int) -> None:
        super().__init__()
        self.grey_levels = grey_levels

    def forward(self, x_t: Tensor, level: NoiseLevel, estimate: Estimate | None = None) -> Categorical:
        """Return p(x|x_0) of x_0 (B, *event)."""
        x_0 = wide(x_t)
        values = grid(self.grey_levels, x_0).view(-1, *[1] * (x_0.ndim - 1))  # type: ignore[arg-type]
        distance = (x_0 / over(level.alpha, x_0)).unsqueeze(1) - values
        snr = (level.alpha / level.sigma) ** 2
        return Categorical(-0.5 * over(snr, x_0) * distance.square())


class DenoisedReconstruction(Reconstruction):
    """p(x|x_t) around x̂(x_t), t the first level of a chain whose t = 0 is clean. Ho 2020, 2006.11239, section 3.3.

    N(x̂, std² I), or its integral over the bins of K grey levels.
    Arguments: std > 0, such as √β_1; grey_levels = K or None. Raises ValueError for another std.
    """

    uses_estimate = True

    def __init__(self, std: float, grey_levels: int | None = None) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"std must be above 0; got {std}")
        self.std, self.grey_levels = std, grey_levels

    def forward(self, x_t: Tensor, level: NoiseLevel, estimate: Estimate | None = None) -> Normal | DiscretizedNormal:
        """Return p(x|x_t) of the estimate's x̂ (B, *event)."""
        x = _required(estimate, self).mean
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device)
        return Normal(x, std) if self.grey_levels is None else DiscretizedNormal(x, std, self.grey_levels)


class PosteriorReconstruction(Reconstruction):
    """p(x|x_0) as the denoiser's own probabilities of the grey levels: for a denoiser that predicts `GreyLevels`.

    It is `GreyLevelReconstruction`, which takes all levels for equally likely, with what the network knows.
    Arguments: grey_levels = K.
    """

    uses_estimate = True

    def __init__(self, grey_levels: int) -> None:
        super().__init__()
        self.grey_levels = grey_levels

    def forward(self, x_t: Tensor, level: NoiseLevel, estimate: Estimate | None = None) -> Categorical:
        """Return p(v|x_0) of the estimate. Raises ValueError for an estimate that has no such probabilities."""
        posterior = getattr(_required(estimate, self), "posterior", None)
        if posterior is None:
            raise ValueError(
                f"PosteriorReconstruction needs a denoiser with prediction GreyLevels; got an estimate of "
                f"{_required(estimate, self).prediction.name!r}"
            )
        return posterior


def _required(estimate: Estimate | None, of: nn.Module) -> Estimate:
    if estimate is None:
        raise ValueError(f"{type(of).__name__} needs the denoiser's estimate; got None")
    return estimate
