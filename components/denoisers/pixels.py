"""Denoising on a grid of grey levels: Bayes' rule for each pixel alone, and a network for what they have in common."""

import torch
from torch import Tensor, nn

from ..distributions import Categorical, grid
from ..precision import wide
from ..schedules import Schedule, Time, over
from .reconstruction import must_start_with_noise

__all__ = ["GridBayes", "GridBayesLast", "log_marginals"]


def log_marginals(x: Tensor, levels: int, pseudocount: float = 0.1) -> Tensor:
    """log p_v of each dimension, from the histogram of x: (K, *event).

    Arguments: x (N, *event) on the grid 2v/(K-1) - 1; levels = K; pseudocount, added to each bin, so that no level is
    impossible.
    Raises ValueError for x off the grid.
    """
    steps = (wide(x) + 1) * ((levels - 1) / 2)
    index = steps.round()
    off = torch.maximum((steps - index).abs(), (index - index.clamp(0, levels - 1)).abs()).flatten(1).amax(1)
    if (off > 1e-3).any():
        worst = int(off.argmax())
        raise ValueError(
            f"x must be on the grid 2v/(K-1) - 1 of K = {levels} levels in [-1, 1]; example {worst} is off by "
            f"{off[worst]:.3g} of a level"
        )
    values = torch.arange(levels, device=x.device, dtype=index.dtype)
    counts = torch.stack([(index == value).sum(0) for value in values]).float() + pseudocount
    return counts.log() - counts.sum(0).log()


class GridBayes(nn.Module):
    """x̂ = Σ_v v p(v|x_t), p(v|x_t) ∝ p_v exp(-½ SNR (x_t/α - v)² + net_v(x_t, t)) in each dimension.

    Without the network's part it is the exact posterior mean of independent dimensions with marginals p_v, so a network
    that starts at zero starts from their entropy. A backbone for Denoiser(..., prediction="sample"); the likelihood is
    that of Kingma 2021, 2107.00630, eq. 44.

    Arguments:
        backbone: (x_t, t, cond) → (B, K C, ...), channel v C + c of level v and channel c.
        schedule: the denoiser's own; variance-preserving, with noise at t = 0.
        shape: of one x.
        levels: K of the grid 2v/(K-1) - 1.
        log_marginal: log p_v (K, *shape), such as `log_marginals`; None: even. It is saved with the weights.
    Raises ValueError for another shape, and for a schedule without noise at t = 0, or whose variance explodes.
    """

    log_marginal: Tensor
    prediction = "sample"

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        shape: tuple[int, ...],
        levels: int,
        log_marginal: Tensor | None = None,
    ) -> None:
        super().__init__()
        must_start_with_noise(schedule, self)
        if schedule.exploding:
            raise ValueError(
                f"GridBayes needs x_t as it is; {type(schedule).__name__} explodes, so a denoiser scales it"
            )
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        if log_marginal is None:
            log_marginal = torch.zeros(levels, *shape)
        if log_marginal.shape != (levels, *shape):
            raise ValueError(f"log_marginal must be {(levels, *shape)}; got shape {tuple(log_marginal.shape)}")
        self.backbone, self.schedule, self.levels = backbone, schedule, levels
        self.self_condition = bool(getattr(backbone, "self_condition", False))
        self.register_buffer("log_marginal", log_marginal)

    def posterior(self, x_t: Tensor, t: Time, cond: Tensor | None = None, **given: Tensor | None) -> Categorical:
        """p(v|x_t), for x_t (B, *shape) and t in [0, 1], () or (B,)."""
        raw = wide(self.backbone(x_t, t, cond, **given))
        x_t = wide(x_t)
        if raw.shape[1] != self.levels * x_t.shape[1]:
            raise ValueError(
                f"GridBayes needs a backbone with {self.levels * x_t.shape[1]} output channels, {self.levels} levels "
                f"for each of {x_t.shape[1]}; got {raw.shape[1]}"
            )
        alpha, sigma = (over(c, x_t).unsqueeze(1) if c.ndim else c for c in self.schedule.alpha_sigma(t))
        values = grid(self.levels, x_t).view(-1, *[1] * (x_t.ndim - 1))
        distance = (x_t.unsqueeze(1) - alpha.to(x_t) * values) / sigma.to(x_t)
        return Categorical(self.log_marginal - 0.5 * distance.square() + raw.unflatten(1, (self.levels, -1)))

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None, **given: Tensor | None) -> Tensor:
        """x̂ (B, *shape)."""
        return self.posterior(x_t, t, cond, **given).mean


class GridBayesLast(nn.Module):
    """p(x|x_0) as the same posterior at t = 0: `GridLast`, to which all levels are alike, with what was learned.

    Arguments: bayes, the backbone of the denoiser, which this shares.
    """

    def __init__(self, bayes: GridBayes) -> None:
        super().__init__()
        self.bayes, self.levels = bayes, bayes.levels

    def forward(self, x_0: Tensor, cond: Tensor | None = None) -> Categorical:
        """x_0 (B, *event) → p(x|x_0)."""
        return self.bayes.posterior(x_0, torch.zeros((), dtype=torch.float64, device=x_0.device), cond)
