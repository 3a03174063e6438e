"""Encoding of examples into latents, and decoding of latents into examples, by a model's own methods."""

from typing import Any

import torch
from torch import Tensor

from ...models.model import offered
from ...models.parts import mean_or_draw
from ...modes import evaluating

__all__ = ["Latents", "decode", "encode", "flat", "is_noise", "shaped"]

ROWS = 512
"""Examples in one forward pass."""

Latents = Tensor | tuple[Tensor, ...]


def flat(z: Latents) -> Tensor:
    """Return latents as (B, d); the parts of a tuple are concatenated."""
    return torch.cat([part.flatten(1) for part in z], 1) if isinstance(z, tuple) else z.flatten(1)


def shaped(z: Tensor, like: Latents) -> Latents:
    """Return z (B, d) in the shapes of the latents `like`: the inverse of `flat`. Raises ValueError for another d."""
    parts = like if isinstance(like, tuple) else (like,)
    sizes = [part[0].numel() for part in parts]
    if z.ndim != 2 or z.shape[1] != sum(sizes):
        shapes = ", ".join(str(tuple(part.shape[1:])) for part in parts)
        raise ValueError(f"z must be (B, {sum(sizes)}), latents {shapes} flat; got shape {tuple(z.shape)}")
    latents = tuple(each.unflatten(1, part.shape[1:]) for each, part in zip(z.split(sizes, 1), parts))
    return latents if isinstance(like, tuple) else latents[0]


def is_noise(model: Any) -> bool:
    """Return whether a model's latents are the noise of its sampler, draws of N(0, I): whether it offers `noise`."""
    return callable(getattr(model, "noise", None))


def encode(model: Any, x: Tensor, **how: Any) -> Latents:
    """Return the latents of x (B, *event) by the model's `encode`, in eval mode and without labels.

    Arguments:
        how: further arguments of `encode`, such as the steps of a Diffusion's inversion.
    Raises NotOffered for a model without `encode`.
    """
    method = offered(model, "encode")
    with evaluating(model), torch.no_grad():
        parts = [method(some, **how) for some in x.split(ROWS)]
    return tuple(map(torch.cat, zip(*parts))) if isinstance(parts[0], tuple) else torch.cat(parts)


def decode(model: Any, z: Latents, **how: Any) -> Tensor:
    """Return the mean of p(x|z) by the model's `decode`, or a draw where it has no mean: (B, *event).

    Differentiable in z where the model is. Raises NotOffered for a model without `decode`.
    """
    method = offered(model, "decode")
    parts = zip(*(part.split(ROWS) for part in z)) if isinstance(z, tuple) else z.split(ROWS)
    with evaluating(model):
        return torch.cat([mean_or_draw(method(some, **how)) for some in parts])
