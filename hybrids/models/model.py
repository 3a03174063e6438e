"""The interface of a model of p(x). Evaluation, comparison and scripts use these methods, never a class."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..terms import Terms

__all__ = ["Model", "NotOffered", "implicit", "offered"]


@runtime_checkable
class Model(Protocol):
    """The methods of every explicit model of p(x), in nats; an implicit one (a GAN) has loss and sample only.

    `nll` is an upper bound on -log p(x) in expectation, and may draw one random level; `bound` sums all levels.

    Optional methods, which `hybrids.evaluation` uses where a model offers them:

    - `encode(x, cond=None)`: the latents of x without noise, such as the mean of q(z|x): (B, *shape), or a tuple.
    - `decode(z, cond=None)`: p(x|z), a Distribution, for z from `encode` or `noise`.
    - `noise(n, generator=None)`: n draws of N(0, I) that `decode` maps to samples, of models whose latents are noise.
      Such latents are interpolated on arcs; without `encode` they are found by optimization through `decode`.
    - `posterior(x, cond=None)`: a learned q(z|x), a Distribution or a tuple of them; for the number of active units.
    - `networks()`: {name: module}, the outermost networks that `sample` calls; for the costs of a sample.
    - `log_weight(x, cond, generator)`: log p(x, z) - log q(z|x), z ~ q(z|x), (B,); for importance-weighted bounds.
    - `flow(**settings)`, `log_prob(x, cond, flow, dequantization)`: log p(x) by a probability flow.
    - `reconstruct(x)`: the reconstruction of x, which is plotted during training.
    - `grey_levels`: K of a likelihood of grey levels; `sample_steps`: steps of the sampler, if `sample` takes one.

    A method that is not defined for a model's present settings raises `NotOffered` with the reason.
    """

    def loss(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms: ...
    def nll(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms: ...
    def bound(
        self, x: Tensor, cond: Any = None, strata: int = 128, generator: torch.Generator | None = None
    ) -> Terms: ...
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor: ...


class NotOffered(TypeError):
    """A model does not offer a method, or not with its present settings; the message gives the reason."""


NEEDS = {
    "encode": "encode(x), its latents",
    "decode": "decode(z), p(x|z)",
    "noise": "noise(n), the noise of its samples",
    "posterior": "posterior(x), a learned q(z|x)",
    "networks": "networks(), {name: module}",
    "sample": "sample(n, generator=)",
    "log_weight": "log_weight(x), log p(x, z) - log q(z|x)",
}


def offered(model: Any, name: str) -> Any:
    """Return a model's method. Raises NotOffered, naming model and method, where it is missing."""
    method = getattr(model, name, None)
    if callable(method):
        return method
    raise NotOffered(f"{type(model).__name__} offers no {NEEDS.get(name, name)}")


def implicit(model: Any) -> NotOffered:
    """Return the error for a likelihood of a model that can only be sampled."""
    return NotOffered(
        f"{type(model).__name__} is an implicit model: it has no likelihood and no bound on it; measure its samples "
        "instead, by coverage, agreement or stacked_coverage of hybrids.evaluation"
    )
