"""The latents of a data set: each example is encoded once, by a trained encoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.distributions import Distribution, Normal, randn_like

from ..data.source import Data

__all__ = ["draw_latents", "encode_data", "mean_and_std"]


@torch.no_grad()
def encode_data(
    data: Data, encode: Callable[[Tensor], Distribution], device: torch.device | str = "cpu", batch_size: int = 512
) -> Data:
    """Return the training set's latents with its labels, in the same order.

    An example is (2, *latent), the mean and standard deviation of a Normal, from which `draw_latents` draws a new z in
    each batch, or (1, *latent), the point of a Delta. It is deterministic: the same in every process and after a
    resume. Images are encoded without augmentation; a streamed data set is read once, and its latents must fit into
    memory.
    Arguments:
        data: the data set.
        encode: x → q(z|x).
        device, batch_size: of the encoding.
    Raises ValueError for a data set without examples.
    """
    if data.x is None and data.stream is None:
        raise ValueError(f"data must have training examples; of {data.name!r} only the shape is known")
    parts, read = [], []
    for index in torch.arange(len(data)).split(batch_size):
        examples, index = _stored(data, index)
        read.append(index)
        q = encode(data.decode(examples.to(device)))
        moments = [q.mean, q.std.expand_as(q.mean)] if isinstance(q, Normal) else [q.mean]
        parts.append(torch.stack(moments, 1).float().cpu())
    stored = torch.cat(parts)
    return Data(
        f"latents of {data.name}",
        tuple(stored.shape[2:]),
        data.classes,
        x=stored,
        labels=None if data.labels is None else data.labels[torch.cat(read)],
        class_names=data.class_names,
    )


def _stored(data: Data, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the examples at index (B,) in the stored format, and the index of each: another for a bad image."""
    if data.x is not None:
        return data.x[index], index
    assert data.stream is not None
    pixels, index, bad = data.stream.read(index)
    data.stream.skipping.add(bad)
    return pixels, index


def draw_latents(stored: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw z ~ N(mean, std²) of stored (B, 2, *latent), or the point of (B, 1, *latent): (B, *latent)."""
    mean = stored[:, 0]
    return mean if stored.shape[1] == 1 else mean + stored[:, 1] * randn_like(mean, generator)


def mean_and_std(stored: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation of z ~ q(z|x) over all x: Var z = Var E[z|x] + E Var[z|x].

    Computed in float64.
    Arguments:
        stored: (N, 1 or 2, *latent), as of `encode_data`.
        per_channel: for each channel, (c, 1, ...), over examples and positions; else over all, (1, 1, ...).
    """
    size = (1, *stored.shape[2:3], *[1] * (stored.ndim - 3)) if per_channel else (1,) * (stored.ndim - 1)
    over = [dim for dim, size in enumerate(size) if size == 1]
    mean = stored[:, 0].double().mean(over, keepdim=True)
    variance = (stored[:, 0].double() - mean).square().mean(over, keepdim=True)
    if stored.shape[1] > 1:
        variance = variance + stored[:, 1].double().square().mean(over, keepdim=True)
    return mean[0].float(), variance.sqrt()[0].float()
