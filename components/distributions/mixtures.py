"""Mixtures of discretized distributions: sharp likelihoods of several peaks for pixels."""

import torch
from torch import Tensor

from ..precision import wide
from .continuous import check_value, per_example, rand_like
from .discrete import DiscretizedLogistic, grid, p_log_p

__all__ = ["DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture:
    """A mixture in each dimension: log P(v) = log Σ_m π_m P_m(v), each P_m a DiscretizedLogistic over K grey levels.

    Salimans et al. 2017, arXiv 1701.05517, section 2.1; without the dependence of a pixel's channels on one another
    (section 2.2), so the dimensions are independent, as in every other distribution here.

    Arguments:
        logits: of π, unnormalized, (B, M, *event).
        means: of the M logistics, (B, M, *event).
        log_scales: the logs of their scales, (B, M, *event).
        grey_levels: K >= 2.
    Raises: ValueError for shapes that differ, and for grey_levels below 2.
    """

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor, grey_levels: int) -> None:
        if logits.ndim < 3 or not logits.shape == means.shape == log_scales.shape:
            raise ValueError(
                "logits, means and log_scales must have the same shape (B, M, *event); "
                f"got {tuple(logits.shape)}, {tuple(means.shape)} and {tuple(log_scales.shape)}"
            )
        self.components = DiscretizedLogistic(means, log_scales, grey_levels)
        self.log_weights, self.grey_levels = wide(logits).log_softmax(1), grey_levels

    @property
    def mean(self) -> Tensor:
        """Return Σ_m π_m mean_m (B, *event), within half a bin of the exact mean."""
        return (self.log_weights.exp() * self.components.mean).sum(1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event) on the grid, the component by the Gumbel-max trick; gradients go straight to the mean."""
        draws = self.components.rsample(generator)
        component = (self.log_weights - (-rand_like(draws, generator).log()).log()).argmax(1, keepdim=True)
        mean = self.mean
        return draws.gather(1, component).squeeze(1).detach() + mean - mean.detach()

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log P(y) (B,) in nats of y (B, *event) on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.log_weights[:, 0].shape)
        return per_example(self._log_mass(wide(y)))

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats, summed over the K levels one after the other."""
        total = torch.zeros_like(self.log_weights[:, 0])
        for value in grid(self.grey_levels, total):
            total = total - p_log_p(self._log_mass(value.expand_as(total)))
        return per_example(total)

    def _log_mass(self, y: Tensor) -> Tensor:
        return (self.log_weights + self.components._log_mass(y.unsqueeze(1))).logsumexp(1)
