"""Encoders: x to q(z|x), a diagonal Gaussian over a latent vector or map."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import ClassEmbedding
from ..distributions import Normal
from ..layers import (
    DenseBlock,
    Features,
    HiddenFeatures,
    ResidualLevel,
    check_event,
    check_image_shape,
    group_norm,
    halved,
    pyramid,
    soft_clamp,
)

__all__ = ["MLPEncoder", "ResidualEncoder", "latent_shape"]

# Limits of log std, squeezed softly. Wide enough for any posterior met in training, narrow enough for float32: an
# unmeasured guess inside the (-15, 10) that Rombach et al. 2022 (arXiv 2112.10752) clamp to in their code.
LOG_STD = (-10.0, 5.0)


class ResidualEncoder(nn.Module):
    """Residual blocks with average pooling between resolutions: (B, C, H, W) to a Normal with log std in [-10, 5].

    Pooling rounds sides up, as `halved` does.

    `layers`, its hidden layers, are level_0, level_1, ..., one for each resolution, finest first: (B, channels, h, w).

    Arguments:
        shape: (C, H, W) of x.
        latent: an int for z (B, latent), or a tuple for z (B, c, h, w).
        width: channels, times `multipliers` at each resolution.
        multipliers: one for each resolution, finest first. By default 1, 2, 4, 4, ...: for an int latent down to a
            smallest side of 4 to 7, for a tuple to (h, w).
        blocks: residual blocks at each resolution.
        num_classes: for labels, which adapt every block; the null class is `num_classes`.
    Raises:
        ValueError: `shape` is not (C, H, W), or does not lead to the latent's resolution.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent: int | tuple[int, int, int],
        width: int = 32,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "MLPEncoder")
        self.shape, self.latent, self.num_classes = tuple(shape), latent, num_classes
        multipliers, (*_, (h, w)) = pyramid(shape, multipliers, None if isinstance(latent, int) else latent[1:])
        self.label = ClassEmbedding(num_classes, 4 * width)
        embedding = None if num_classes is None else 4 * width
        widths = [width * m for m in multipliers]
        channels = widths[-1]
        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            ResidualLevel(a, b, blocks, embedding) for a, b in zip([widths[0], *widths], widths)
        )
        self.layers = tuple(f"level_{i}" for i in range(len(widths)))
        self.norm = group_norm(channels)
        self.last: nn.Module
        if isinstance(latent, int):
            self.last = nn.Sequential(nn.Flatten(), nn.Linear(channels * h * w, 2 * latent))
        else:
            self.last = nn.Conv2d(channels, 2 * latent[0], 3, padding=1)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, hidden: Sequence[str] = ()
    ) -> Normal | tuple[Normal, Features]:
        """Return q(z|x); with `hidden`, (q, features by name).

        Arguments:
            x: (B, C, H, W) in [-1, 1].
            cond: labels (B,) int64, or None for the null class.
            hidden: names out of `layers`.
        Raises:
            ValueError: x is not (B, *shape), cond does not fit, or a name in `hidden` is unknown.
        """
        check_event("x", x, self.shape)
        features = HiddenFeatures(self.layers, hidden)
        embedding = self.label(cond, x)
        h = self.first(x)
        for i, level in enumerate(self.levels):
            if i:
                h = halved(h)
            h = features.record(f"level_{i}", level(h, embedding))
        return features.beside(normal(self.last(F.silu(self.norm(h)))))


class MLPEncoder(nn.Module):
    """A residual MLP: (B, *features) to a Normal over (B, latent) with log std in [-10, 5].

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, width).

    Arguments:
        features: an int, or the shape of an event, such as an image's, which is flattened.
        latent: features of z.
        width: features of each block.
        depth: the number of residual blocks.
        num_classes: as for ResidualEncoder.
    """

    def __init__(
        self,
        features: int | tuple[int, ...],
        latent: int,
        width: int = 256,
        depth: int = 3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.features = (features,) if isinstance(features, int) else tuple(features)
        self.latent, self.num_classes = latent, num_classes
        self.label = ClassEmbedding(num_classes, width)
        self.first = nn.Linear(math.prod(self.features), width)
        self.blocks = nn.ModuleList(DenseBlock(width, None if num_classes is None else width) for _ in range(depth))
        self.layers = tuple(f"block_{i}" for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 2 * latent)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, hidden: Sequence[str] = ()
    ) -> Normal | tuple[Normal, Features]:
        """Return q(z|x) of x (B, *features); the others as for ResidualEncoder."""
        check_event("x", x, self.features)
        features = HiddenFeatures(self.layers, hidden)
        embedding = self.label(cond, x)
        h = self.first(x.flatten(1))
        for name, block in zip(self.layers, self.blocks):
            h = features.record(name, block(h, embedding))
        return features.beside(normal(self.last(F.silu(self.norm(h)))))


def latent_shape(channels: int, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape (channels, h, w) of latents for images of `shape`, (C, H, W): sides halved twice, rounding up.

    They are halved once or not at all where the smallest would otherwise be below 4.
    """
    _, sides = pyramid(shape)
    h, w = sides[min(2, len(sides) - 1)]
    return channels, h, w


def normal(raw: Tensor) -> Normal:
    """Return a Normal over (B, C, ...) of means and then log stds, (B, 2 C, ...)."""
    mean, log_std = raw.chunk(2, dim=1)
    return Normal(mean, soft_clamp(log_std, *LOG_STD).exp())
