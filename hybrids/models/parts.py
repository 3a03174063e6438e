"""Functions that several models share: distributions of encoders and decoders, importance weights."""

from typing import Any

import torch
from torch import Tensor, nn

from components.distributions import Delta, Distribution, Implicit, Normal, per_example
from components.precision import widest

from .model import offered

__all__ = ["distribution_of", "generator_argument", "inner_networks", "log_ratio", "mean_or_draw", "prior_log_weight"]


def generator_argument(generator: torch.Generator | None) -> dict[str, torch.Generator]:
    """Return {"generator": generator}, or {} for None, so that a user's model need not take a generator."""
    return {} if generator is None else {"generator": generator}


def log_ratio(p: Distribution, q: Distribution, y: Tensor) -> Tensor:
    """Return log p(y) - log q(y): (B,) nats, float64.

    For two Gaussians it is computed by dimension, so that nearly equal ones lose no digits. For two points it is 0:
    both are then the same point.
    """
    if isinstance(p, Delta) and isinstance(q, Delta):
        return widest(y.new_zeros(len(y)))
    if isinstance(p, Normal) and isinstance(q, Normal):
        of_p, of_q = ((widest(y) - widest(each.mean)) / widest(each.std) for each in (p, q))
        return per_example(0.5 * (of_q - of_p) * (of_q + of_p) + (widest(q.std) / widest(p.std)).log())
    return widest(p.log_prob(y)) - widest(q.log_prob(y))


def distribution_of(part: Any, role: str, x: Tensor, cond: Any = None) -> Distribution:
    """Return an encoder's or a decoder's distribution for x. Raises TypeError, naming it, where it returns a tensor."""
    p = part(x, cond)
    if isinstance(p, Tensor):
        raise TypeError(
            f"{role} must return one of components.distributions, such as Normal(mean, std) or Delta(point); "
            f"{type(part).__name__} returned a tensor of shape {tuple(p.shape)}"
        )
    return p


def prior_log_weight(prior: Any, z: Tensor, cond: Any = None, generator: Any = None) -> Tensor:
    """Return log p(z), or, for a prior with latents u of its own, log p(z, u) - log q(u|z), u ~ q(u|z): (B,) nats.

    The expectation of its exp is p(z). Raises ValueError, naming the prior, for one without log_weight.
    """
    if not hasattr(prior, "log_weight"):
        name = type(prior).__name__
        raise ValueError(f"prior must offer log_weight for an importance-weighted bound; {name} does not")
    return prior.log_weight(z, cond, **generator_argument(generator))


def inner_networks(model: Any) -> dict[str, nn.Module]:
    """Return the networks of a prior or a second stage by name, its decoder as inner_decoder.

    Raises NotOffered, naming it, for one without networks().
    """
    networks = offered(model, "networks")()
    return {f"inner_{name}" if name.endswith("decoder") else name: network for name, network in networks.items()}


def mean_or_draw(p: Distribution, generator: Any = None) -> Tensor:
    """Return the mean of p (B, *event), or a draw of an `Implicit` p, which has no mean."""
    return p.rsample(generator) if isinstance(p, Implicit) else p.mean
