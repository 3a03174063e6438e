"""What a model of p(x) offers. Evaluation, comparison and scripts ask for these methods, never for a class."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..terms import Terms

__all__ = ["Model", "NotOffered", "implicit", "offered"]


@runtime_checkable
class Model(Protocol):
    """What every explicit model of p(x) offers; an implicit one (a GAN) offers loss and sample only. All in nats.

    `nll` bounds -log p(x) from above in expectation and may draw one random level; `bound` sums every level.

    What else a model may offer, each measured where it is there (`hybrids.evaluation`):

    - `encode(x, cond=None)`: the latents of x without noise, such as means of q(z|x): (B, *shape), or a tuple of such.
    - `decode(z, cond=None)`: p(x|z), a Distribution, of what `encode` or `noise` gives.
    - `noise(n, generator=None)`: what samples are made of by `decode`, n draws of N(0, I), where latents are noise:
      paths between them are arcs, and without an `encode` latents are searched for, by the gradient of `decode`.
    - `posterior(x, cond=None)`: a learned q(z|x), a Distribution, or a tuple of such: how many units are active.
    - `networks()`: {name: module}, the outermost networks that `sample` calls: whose calls and parameters are a cost.
    - `log_weight(x, cond, generator)`: log p(x, z) - log q(z|x) of one z ~ q(z|x), (B,): importance-weighted bounds.
    - `flow(**settings)`, `log_prob(x, cond, flow, dequantization)`: log p(x) by a probability flow.
    - `reconstruct(x)`: shown beside samples while a run trains.
    - `grey_levels`: K of a likelihood of grey levels; `sample_steps`: steps of a sampler that `sample(sampler=)` takes.

    A model that cannot answer in its present setting raises `NotOffered` with the reason, which is then shown.
    """

    def loss(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms: ...
    def nll(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms: ...
    def bound(
        self, x: Tensor, cond: Any = None, strata: int = 128, generator: torch.Generator | None = None
    ) -> Terms: ...
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor: ...


class NotOffered(TypeError):
    """A model cannot answer what it is asked; the message says what is missing."""


NEEDS = {
    "encode": "encode(x), its latents",
    "decode": "decode(z), p(x|z)",
    "noise": "noise(n), what its samples are made of",
    "posterior": "posterior(x), a learned q(z|x)",
    "networks": "networks(), {name: module}",
    "sample": "sample(n, generator=)",
    "log_weight": "log_weight(x), log p(x, z) - log q(z|x)",
}


def offered(model: Any, name: str) -> Any:
    """Return a model's method. Raises NotOffered, naming the model and the method, where it is not there."""
    method = getattr(model, name, None)
    if callable(method):
        return method
    raise NotOffered(f"{type(model).__name__} offers no {NEEDS.get(name, name)}")


def implicit(model: Any) -> NotOffered:
    """Return the error of a model that can only be sampled, where a likelihood is asked for."""
    return NotOffered(
        f"{type(model).__name__} is an implicit model: it has samples, but no likelihood and no bound on one; score "
        "its samples instead, with coverage, agreement or stacked_coverage of hybrids.evaluation"
    )
