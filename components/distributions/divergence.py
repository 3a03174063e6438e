"""KL divergences, in closed form where there is one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .continuous import Distribution, Normal, alike, per_example
from .discrete import Bernoulli, Categorical

__all__ = ["kl", "kl_per_dimension"]


def kl_per_dimension(q: Normal, p: Normal) -> Tensor:
    """KL(q ‖ p) of two diagonal Gaussians, before the sum: ½ (r² + (μ_q - μ_p)²/σ_p² - 1 - log r²), r = σ_q/σ_p.

    Returns (B, *event) in nats. Raises ValueError unless q and p are of one shape, or either of a batch of 1.
    Kingma & Welling 2013, 1312.6114, appendix B.
    """
    _check_pair(q, q.mean, p, p.mean)
    ratio = (q.std / p.std).square()
    return 0.5 * (ratio + ((q.mean - p.mean) / p.std).square() - 1 - ratio.log())


def kl(q: Distribution, p: Distribution, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """KL(q ‖ p) in nats (B,): in closed form where there is one, else by Monte Carlo.

    Closed: Normal with Normal, Bernoulli with Bernoulli, Categorical with Categorical. Otherwise the mean of
    log q(y) - log p(y) over `samples` reparameterized draws y ~ q: unbiased, and it may be negative.
    Raises TypeError where q or p has no density, ValueError for samples below 1, and unless both are of one
    shape, or either of a batch of 1.
    """
    if isinstance(q, Normal) and isinstance(p, Normal):
        return per_example(kl_per_dimension(q, p))
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        _check_pair(q, q.logits, p, p.logits)
        logits, share = torch.broadcast_tensors(p.logits, torch.sigmoid(q.logits))
        cross = F.binary_cross_entropy_with_logits(logits, share, reduction="none")
        return per_example(cross) - q.entropy()
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        _check_pair(q, q.log_mass, p, p.log_mass)
        return per_example((q.log_mass.exp() * (q.log_mass - p.log_mass)).sum(1))
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    draws = [q.rsample(generator) for _ in range(samples)]
    return torch.stack([q.log_prob(y) - p.log_prob(y) for y in draws]).mean(0)


def _check_pair(q: Distribution, of_q: Tensor, p: Distribution, of_p: Tensor) -> None:
    """Raises ValueError unless what q and p are made of is of one shape, either of a batch of 1 being allowed."""
    if not alike(of_q.shape, of_p.shape):
        raise ValueError(
            f"q and p must be of one shape, or either of a batch of 1; got {type(q).__name__} of shape "
            f"{tuple(of_q.shape)} and {type(p).__name__} of shape {tuple(of_p.shape)}"
        )
