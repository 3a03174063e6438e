"""Decoders: z to p(x|z). With a DeltaHead they are GAN generators."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import ClassEmbedding
from ..distributions import Distribution
from ..layers import (
    DenseBlock,
    ResidualLevel,
    Upsample,
    check_event,
    check_image_shape,
    group_norm,
    pyramid,
)
from .heads import Head

__all__ = ["MLPDecoder", "ResidualDecoder"]


class ResidualDecoder(nn.Module):
    """Residual blocks with nearest-neighbour doubling between resolutions, then a head: z to p(x|z) over (B, C, H, W).

    The mirror of ResidualEncoder: a side that it rounded up is cropped at the end after doubling. `last` is the last
    layer with parameters, where an adaptive weight compares gradients (Esser et al. 2021, arXiv 2012.09841, eq. 7).

    Arguments:
        latent: an int for z (B, latent), or a tuple for z (B, c, h, w).
        shape: (C, H, W) of x.
        head: turns the last features into a distribution.
        width: channels, times `multipliers` at each resolution.
        multipliers: finest resolution first as in the encoder, so one tuple serves both; its defaults, too.
        blocks: residual blocks at each resolution.
        num_classes: for labels, which adapt every block; the null class is `num_classes`.
    Raises:
        ValueError: `shape` is not (C, H, W), or does not lead to the latent's resolution.
    """

    def __init__(
        self,
        latent: int | tuple[int, int, int],
        shape: tuple[int, int, int],
        head: Head,
        width: int = 32,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "MLPDecoder")
        self.latent, self.shape, self.head, self.num_classes = latent, tuple(shape), head, num_classes
        multipliers, sides = pyramid(shape, multipliers, None if isinstance(latent, int) else latent[1:])
        h, w = sides[-1]
        self.label = ClassEmbedding(num_classes, 4 * width)
        embedding = None if num_classes is None else 4 * width
        widths = [width * m for m in reversed(multipliers)]
        channels = widths[0]
        self.first: nn.Module
        if isinstance(latent, int):
            self.first = nn.Sequential(nn.Linear(latent, channels * h * w), nn.Unflatten(1, (channels, h, w)))
        else:
            self.first = nn.Conv2d(latent[0], channels, 3, padding=1)
        self.levels = nn.ModuleList(
            ResidualLevel(a, b, blocks, embedding) for a, b in zip([widths[0], *widths], widths)
        )
        self.ups = nn.ModuleList(Upsample(c, sides=at) for c, at in zip(widths, sides[-2::-1]))
        self.norm = group_norm(widths[-1])
        self.last = nn.Conv2d(widths[-1], head.factor * shape[0], 3, padding=1)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z).

        Arguments:
            z: (B, latent) or (B, c, h, w).
            cond: labels (B,) int64, or None for the null class.
        Raises:
            ValueError: z is not (B, *latent), or cond does not fit.
        """
        check_event("z", z, (self.latent,) if isinstance(self.latent, int) else self.latent)
        embedding = self.label(cond, z)
        h = self.first(z)
        for i, level in enumerate(self.levels):
            h = level(self.ups[i - 1](h) if i else h, embedding)
        return self.head(self.last(F.silu(self.norm(h))))


class MLPDecoder(nn.Module):
    """A residual MLP, then a head: (B, latent) to a distribution over (B, *features).

    `last` is the last layer with parameters.

    Arguments:
        latent: features of z.
        features: an int, or the shape (C, ...) of an event, such as an image's.
        head: turns the last features into a distribution.
        width: features of each block.
        depth: the number of residual blocks.
        num_classes: as for ResidualDecoder.
    """

    def __init__(
        self,
        latent: int,
        features: int | tuple[int, ...],
        head: Head,
        width: int = 256,
        depth: int = 3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.latent, self.features, self.head, self.num_classes = latent, features, head, num_classes
        channels, *rest = (features,) if isinstance(features, int) else features
        self.raw = (head.factor * channels, *rest)
        self.label = ClassEmbedding(num_classes, width)
        self.first = nn.Linear(latent, width)
        self.blocks = nn.ModuleList(DenseBlock(width, None if num_classes is None else width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, math.prod(self.raw))

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z) of z (B, latent); cond and errors as for ResidualDecoder."""
        check_event("z", z, (self.latent,))
        embedding = self.label(cond, z)
        h = self.first(z)
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(self.last(F.silu(self.norm(h))).unflatten(1, self.raw))
