"""Latents of a trained encoder as a data set: each example is encoded once."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.distributions import Distribution, Normal, randn_like

from ..data.source import Data

__all__ = ["draw_latents", "latents", "mean_and_std"]


@torch.no_grad()
def latents(
    data: Data, encode: Callable[[Tensor], Distribution], device: torch.device | str = "cpu", batch_size: int = 512
) -> Data:
    """Return the training set's latents, with its labels; positions and order are those of any `Data`.

    An example is (2, *latent), the mean and standard deviation of a Normal, of which `draw_latents` draws z anew in
    each batch, or (1, *latent), the point of a Delta. Nothing random is in it: every process and every resume finds the
    same. Training images are taken as they are, without augmentation; those that are too many for memory are decoded
    once, by this process: their latents have to fit.
    Raises ValueError for a data set without examples.
    """
    if data.x is None and data.stream is None:
        raise ValueError(f"the data set {data.name!r} has no examples here, only its shape")
    parts = []
    for index in torch.arange(len(data)).split(batch_size):
        q = encode(data.decode(_stored(data, index).to(device)))
        moments = [q.mean, q.std.expand_as(q.mean)] if isinstance(q, Normal) else [q.mean]
        parts.append(torch.stack(moments, 1).float().cpu())
    stored = torch.cat(parts)
    return Data(f"latents of {data.name}", tuple(stored.shape[2:]), data.classes, x=stored, labels=data.labels)


def _stored(data: Data, index: Tensor) -> Tensor:
    """Return the examples at an index (B,), as they are stored."""
    if data.x is not None:
        return data.x[index]
    assert data.stream is not None
    pixels, bad = data.stream.read(index)
    data.stream.skipping.add(bad)
    return pixels


def draw_latents(stored: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw z ~ N(mean, std²) of stored (B, 2, *latent), or the point of (B, 1, *latent): (B, *latent)."""
    mean = stored[:, 0]
    return mean if stored.shape[1] == 1 else mean + stored[:, 1] * randn_like(mean, generator)


def mean_and_std(stored: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of all z ~ q(z|x), x of the set, exactly: Var z = Var E[z|x] + E Var[z|x].

    For each channel (c, 1, ...), over examples and places, or of everything in one (1, 1, ...). In float64 inside.
    """
    size = (1, *stored.shape[2:3], *[1] * (stored.ndim - 3)) if per_channel else (1,) * (stored.ndim - 1)
    over = [dim for dim, size in enumerate(size) if size == 1]
    mean = stored[:, 0].double().mean(over, keepdim=True)
    variance = (stored[:, 0].double() - mean).square().mean(over, keepdim=True)
    if stored.shape[1] > 1:
        variance = variance + stored[:, 1].double().square().mean(over, keepdim=True)
    return mean[0].float(), variance.sqrt()[0].float()
