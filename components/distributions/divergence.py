"""KL divergences, in closed form where there is one."""

import torch
from torch import Tensor

from .continuous import Distribution, Normal, per_example, same_event
from .discrete import Bernoulli, Categorical, binary_cross_entropy

__all__ = ["kl", "kl_per_dimension"]


def kl(q: Distribution, p: Distribution, samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Return KL(q ‖ p) in nats, in closed form where there is one, else by Monte Carlo.

    Closed: Normal with Normal, Bernoulli with Bernoulli, Categorical with Categorical. For the last two a level adds
    0 where q is 0, and +inf where only p is. Otherwise the mean of log q(y) - log p(y) over `samples` reparameterized
    draws y ~ q, which is unbiased and may be negative.

    Arguments:
        q, p: distributions over one (B, *event); the batch of either may be 1.
        samples: number of draws for a divergence without a closed form, >= 1.
        generator: of these draws.
    Returns: (B,).
    Raises: TypeError where q or p has no density; ValueError for samples below 1, and for different shapes.
    """
    if isinstance(q, Normal) and isinstance(p, Normal):
        return per_example(kl_per_dimension(q, p))
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        _check_shapes(q, q.logits, p, p.logits)
        return per_example(binary_cross_entropy(torch.sigmoid(q.logits), p.logits)) - q.entropy()
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        _check_shapes(q, q.log_mass, p, p.log_mass)
        mass = q.log_mass.exp()
        return per_example((mass * (q.log_mass - p.log_mass).masked_fill(mass == 0, 0.0)).sum(1))
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    draws = [q.rsample(generator) for _ in range(samples)]
    return torch.stack([q.log_prob(y) - p.log_prob(y) for y in draws]).mean(0)


def kl_per_dimension(q: Normal, p: Normal) -> Tensor:
    """Return KL(q ‖ p) of two diagonal Gaussians in each dimension: ½ (r² + (μ_q - μ_p)²/σ_p² - 1 - log r²).

    r = σ_q/σ_p. Kingma & Welling 2013, arXiv 1312.6114, appendix B.

    Arguments:
        q, p: Gaussians over one (B, *event); the batch of either may be 1.
    Returns: (B, *event) in nats.
    Raises: ValueError for different shapes.
    """
    _check_shapes(q, q.mean, p, p.mean)
    ratio = (q.std / p.std).square()
    return 0.5 * (ratio + ((q.mean - p.mean) / p.std).square() - 1 - ratio.log())


def _check_shapes(q: Distribution, of_q: Tensor, p: Distribution, of_p: Tensor) -> None:
    """Raises ValueError unless the parameters of q and p have one shape, a batch of 1 aside."""
    if not same_event(of_q.shape, of_p.shape):
        raise ValueError(
            f"q and p must have the same shape (either may have a batch of 1); got {type(q).__name__} of shape "
            f"{tuple(of_q.shape)} and {type(p).__name__} of shape {tuple(of_p.shape)}"
        )
