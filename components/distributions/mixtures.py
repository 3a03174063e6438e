"""Mixtures of discretized distributions: sharper and many-peaked likelihoods for pixels."""

import torch
from torch import Tensor

from ..precision import wide
from .continuous import check_value, per_example
from .discrete import DiscretizedLogistic, grid

__all__ = ["DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture:
    """log P(v) = log Σ_m π_m P_m(v) in each dimension, P_m a DiscretizedLogistic over the bins of K grey levels.

    Salimans et al. 2017, arXiv 1701.05517, section 2.1; without the dependence of a pixel's channels on one another
    (section 2.2), so the dimensions are independent, as in every other distribution here.

    Arguments: logits of π, means and log_scales, each (B, M, *event); levels K >= 2. Raises ValueError for those.
    """

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor, levels: int) -> None:
        if logits.ndim < 3 or not logits.shape == means.shape == log_scales.shape:
            raise ValueError(
                "logits, means and log_scales must be of one shape (B, M, *event); "
                f"got {tuple(logits.shape)}, {tuple(means.shape)} and {tuple(log_scales.shape)}"
            )
        self.components = DiscretizedLogistic(means, log_scales, levels)
        self.log_weights, self.levels = wide(logits).log_softmax(1), levels

    @property
    def mean(self) -> Tensor:
        """Σ_m π_m mean_m: (B, *event); rounding moves it by at most half a bin."""
        return (self.log_weights.exp() * self.components.mean).sum(1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, *event) on the grid, components drawn by Gumbel's maximum; gradients go straight through to the mean."""
        draws = self.components.rsample(generator)
        u = torch.rand(draws.shape, generator=generator, device=draws.device, dtype=draws.dtype)
        u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps)
        component = (self.log_weights - (-u.log()).log()).argmax(1, keepdim=True)
        mean = self.mean
        return draws.gather(1, component).squeeze(1).detach() + mean - mean.detach()

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) nats, of y on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.log_weights[:, 0].shape)
        return per_example(self._log_mass(wide(y)))

    def entropy(self) -> Tensor:
        """(B,) nats: the sum over all K levels, one after the other."""
        total = torch.zeros_like(self.log_weights[:, 0])
        for value in grid(self.levels, total):
            mass = self._log_mass(value.expand_as(total))
            total = total - mass.exp() * mass
        return per_example(total)

    def _log_mass(self, y: Tensor) -> Tensor:
        return (self.log_weights + self.components._log_mass(y.unsqueeze(1))).logsumexp(1)
