"""Denoising on a grid of grey levels: Bayes' rule for each pixel alone, and a network for what they have in common."""

import torch
from torch import Tensor, nn

from ..distributions import Categorical, check_grid, grid
from ..precision import wide
from ..schedules import NoiseLevel, Schedule, over
from .prediction import SAMPLE, Coefficient, Estimate

__all__ = ["GreyLevels", "log_marginals"]


class GreyLevelEstimate(Estimate):
    """x̂ = Σ_v v p(v|x_t), with p(v|x_t) beside it as `posterior`."""

    def __init__(
        self,
        posterior: Categorical,
        x_t: Tensor,
        level: NoiseLevel,
        interpolation: Tensor | None = None,
        hidden: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(SAMPLE, x_t, posterior.mean, level, interpolation, hidden)
        self.posterior = posterior

    def clamp(self, low: float, high: float) -> Estimate:
        """Return the estimate itself where [low, high] holds all grey levels, as x̂ is a mean over them."""
        return self if low <= -1 and high >= 1 else super().clamp(low, high)


class GreyLevels(nn.Module):
    """A prediction for `Denoiser`: the network's output corrects Bayes' rule on grey levels.

        x̂ = Σ_v v p(v|x_t),    p(v|x_t) ∝ p_v exp(-½ SNR (x_t/α - v)² + output_v)    in each dimension

    Without the network's part it is the exact posterior mean of independent dimensions with marginals p_v, so a network
    that starts at zero starts from their entropy. The likelihood is that of Kingma 2021, 2107.00630, eq. 44.
    The backbone answers with (B, K C, ...), channel v C + c of level v and channel c.

    Arguments:
        shape: of one x.
        grey_levels: K of the grid 2v/(K-1) - 1.
        log_marginal: log p_v (K, *shape), such as `log_marginals`; None: even. It is saved with the weights.
    Raises ValueError for another shape; in a denoiser, for a schedule without noise at t = 0, or whose variance
    explodes.
    """

    log_marginal: Tensor
    name = "grey_levels"
    input_scale = None

    def __init__(self, shape: tuple[int, ...], grey_levels: int, log_marginal: Tensor | None = None) -> None:
        super().__init__()
        if grey_levels < 2:
            raise ValueError(f"grey_levels must be at least 2; got {grey_levels}")
        if log_marginal is None:
            log_marginal = torch.zeros(grey_levels, *shape)
        if log_marginal.shape != (grey_levels, *shape):
            raise ValueError(f"log_marginal must be {(grey_levels, *shape)}; got shape {tuple(log_marginal.shape)}")
        self.grey_levels = grey_levels
        self.register_buffer("log_marginal", log_marginal)

    def pair(self, alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient]:
        """Return (1, 0): its x̂ is a prediction of x."""
        return SAMPLE.pair(alpha, sigma)

    def outputs(self, channels: int) -> int:
        """Return the channels of the backbone's output, K for each of x."""
        return self.grey_levels * channels

    def estimate(
        self,
        x_t: Tensor,
        output: Tensor,
        level: NoiseLevel,
        interpolation: Tensor | None = None,
        hidden: dict[str, Tensor] | None = None,
    ) -> GreyLevelEstimate:
        """Return p(x|x_t) of x_t (B, *shape) and the backbone's output (B, K C, ...)."""
        x_t, output = wide(x_t), wide(output)
        alpha, sigma = (_over_levels(c, x_t) for c in (level.alpha, level.sigma))
        values = grid(self.grey_levels, x_t).view(-1, *[1] * (x_t.ndim - 1))
        distance = (x_t.unsqueeze(1) - alpha * values) / sigma
        logits = self.log_marginal - 0.5 * distance.square() + output.unflatten(1, (self.grey_levels, -1))
        return GreyLevelEstimate(Categorical(logits), x_t, level, interpolation, hidden)

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule without noise at t = 0, or whose variance explodes (raises ValueError)."""
        name = type(schedule).__name__
        if schedule.noiseless(0.0):
            raise ValueError(
                f"GreyLevels needs noise at t = 0; {name} has σ = 0 there: use a schedule with a finite log_snr_max"
            )
        if schedule.exploding:
            raise ValueError(f"GreyLevels needs x_t as it is; {name} explodes, so a denoiser scales it")


def _over_levels(coefficient: Coefficient, x: Tensor) -> Tensor | float:
    """Return a coefficient shaped to multiply (B, K, *event)."""
    coefficient = over(coefficient, x)
    return coefficient.unsqueeze(1) if isinstance(coefficient, Tensor) and coefficient.ndim else coefficient


def log_marginals(x: Tensor, grey_levels: int, pseudocount: float = 0.1) -> Tensor:
    """Return log p_v of each dimension, from the histogram of x: (K, *event).

    Arguments:
        x: (N, *event), on the grid 2v/(K-1) - 1.
        grey_levels: K.
        pseudocount: added to each bin, so that no level is impossible.
    Raises ValueError for x off the grid.
    """
    check_grid(x, grey_levels)
    index = ((wide(x) + 1) * ((grey_levels - 1) / 2)).round()
    values = torch.arange(grey_levels, device=x.device, dtype=index.dtype)
    counts = torch.stack([(index == value).sum(0) for value in values]).float() + pseudocount
    return counts.log() - counts.sum(0).log()
