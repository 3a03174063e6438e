"""What models share: what an encoder or decoder returns, and the weights of importance sampling."""

from typing import Any

import torch
from torch import Tensor, nn

from components.distributions import Delta, Distribution, Implicit, Normal, per_example
from components.precision import widest

from .model import offered

__all__ = ["distribution_of", "drawn_by", "inner_networks", "log_ratio", "picture", "prior_log_weight"]


def drawn_by(generator: torch.Generator | None) -> dict[str, torch.Generator]:
    """Return the argument `generator` for a model that is not ours and may not take one, where there is one."""
    return {} if generator is None else {"generator": generator}


def log_ratio(p: Distribution, q: Distribution, y: Tensor) -> Tensor:
    """Return log p(y) - log q(y) (B,) nats, float64; of two Gaussians by dimension, so that near ones lose no digits.

    Two points are one and the same where nothing is left to choose: 0.
    """
    if isinstance(p, Delta) and isinstance(q, Delta):
        return widest(y.new_zeros(len(y)))
    if isinstance(p, Normal) and isinstance(q, Normal):
        of_p, of_q = ((widest(y) - widest(each.mean)) / widest(each.std) for each in (p, q))
        return per_example(0.5 * (of_q - of_p) * (of_q + of_p) + (widest(q.std) / widest(p.std)).log())
    return widest(p.log_prob(y)) - widest(q.log_prob(y))


def distribution_of(part: Any, role: str, x: Tensor, cond: Any = None) -> Distribution:
    """Return an encoder's or a decoder's distribution of x. Raises TypeError, naming it, where that is a tensor."""
    p = part(x, cond)
    if isinstance(p, Tensor):
        raise TypeError(
            f"{role} must return one of components.distributions, such as Normal(mean, std) or Delta(point); "
            f"{type(part).__name__} returned a tensor of shape {tuple(p.shape)}"
        )
    return p


def prior_log_weight(prior: Any, z: Tensor, cond: Any = None, generator: Any = None) -> Tensor:
    """Return log p(z), or log p(z, …) - log q(…|z) of a prior with latents of its own: (B,).

    The mean of its exp is p(z).

    Raises ValueError, naming it, for a prior that offers neither.
    """
    if not hasattr(prior, "log_weight"):
        name = type(prior).__name__
        raise ValueError(f"prior must offer log_weight for an importance-weighted bound; {name} does not")
    return prior.log_weight(z, cond, **drawn_by(generator))


def inner_networks(model: Any) -> dict[str, nn.Module]:
    """Return the networks of a prior or a second stage; its own decoder is called inner_decoder.

    Raises NotOffered, naming it, for one that offers no networks().
    """
    networks = offered(model, "networks")()
    return {f"inner_{name}" if name.endswith("decoder") else name: network for name, network in networks.items()}


def picture(p: Distribution, generator: Any = None) -> Tensor:
    """Return a decoder's picture (B, *event): its mean, or a draw where there is only that."""
    return p.rsample(generator) if isinstance(p, Implicit) else p.mean
