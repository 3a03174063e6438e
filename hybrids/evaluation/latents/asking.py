"""Ask a model for the latents of examples, and for the examples of latents."""

from typing import Any

import torch
from torch import Tensor

from ...models.model import offered
from ...models.parts import picture
from ...modes import evaluating

__all__ = ["Latents", "decode", "encode", "flat", "is_noise", "shaped"]

ROWS = 512
"""Examples that go through a model at once."""

Latents = Tensor | tuple[Tensor, ...]


def flat(z: Latents) -> Tensor:
    """Return latents as (B, d): those of a tuple one after the other."""
    return torch.cat([part.flatten(1) for part in z], 1) if isinstance(z, tuple) else z.flatten(1)


def shaped(z: Tensor, like: Latents) -> Latents:
    """Return z (B, d) in the shapes that latents `like` have: what `flat` undoes. Raises ValueError for another d."""
    parts = like if isinstance(like, tuple) else (like,)
    sizes = [part[0].numel() for part in parts]
    if z.ndim != 2 or z.shape[1] != sum(sizes):
        shapes = ", ".join(str(tuple(part.shape[1:])) for part in parts)
        raise ValueError(f"z must be (B, {sum(sizes)}), latents {shapes} flat; got shape {tuple(z.shape)}")
    found = tuple(each.unflatten(1, part.shape[1:]) for each, part in zip(z.split(sizes, 1), parts))
    return found if isinstance(like, tuple) else found[0]


def is_noise(model: Any) -> bool:
    """Whether a model's latents are draws of N(0, I) that its samples are made of: it offers `noise`."""
    return callable(getattr(model, "noise", None))


def encode(model: Any, x: Tensor, **how: Any) -> Latents:
    """Return the latents of x (B, *event) that the model's own `encode` gives, without noise.

    Labels are not given: a conditional model is asked without. Arguments: how, what else `encode` takes, such as the
    steps of a Diffusion's inversion. Raises NotOffered for a model that offers none.
    """
    ask = offered(model, "encode")
    with evaluating(model), torch.no_grad():
        parts = [ask(some, **how) for some in x.split(ROWS)]
    return tuple(map(torch.cat, zip(*parts))) if isinstance(parts[0], tuple) else torch.cat(parts)


def decode(model: Any, z: Latents, **how: Any) -> Tensor:
    """Return the pictures (B, *event) of latents, without noise: the means of the model's `decode`, or its draws.

    Differentiable in z where the model is. Raises NotOffered for a model that offers none.
    """
    ask = offered(model, "decode")
    parts = zip(*(part.split(ROWS) for part in z)) if isinstance(z, tuple) else z.split(ROWS)
    with evaluating(model):
        return torch.cat([picture(ask(some, **how)) for some in parts])
