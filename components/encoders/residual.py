"""Encoders: x to q(z|x), a diagonal Gaussian over a latent vector or map."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import ClassEmbedding
from ..distributions import Normal
from ..layers import (
    DenseBlock,
    ResidualLevel,
    check_event,
    check_image_shape,
    group_norm,
    pyramid,
    soft_clamp,
)

__all__ = ["MLPEncoder", "ResidualEncoder"]

# Limits of log std, squeezed softly. Wide enough for any posterior met in training, narrow enough for float32: an
# unmeasured guess inside the (-15, 10) that Rombach et al. 2022 (arXiv 2112.10752) clamp to in their code.
LOG_STD = (-10.0, 5.0)


def normal(raw: Tensor) -> Normal:
    """(B, 2 C, ...), means and then log stds, to a Normal over (B, C, ...)."""
    mean, log_std = raw.chunk(2, dim=1)
    return Normal(mean, soft_clamp(log_std, *LOG_STD).exp())


class ResidualEncoder(nn.Module):
    """Residual blocks with average pooling between resolutions: (B, C, H, W) to a Normal with log std in [-10, 5].

    Arguments: latent, an int for (B, latent) or a tuple for (B, c, h, w); width times `multipliers`, the channels at
    each resolution, finest first, `blocks` residual blocks each. By default 1, 2, 4, 4, ...: down to 4x4 for an int
    latent (as far as both sides halve evenly), exactly to (h, w) for a tuple. With num_classes, labels adapt every
    block, and None means the null class.

    Raises ValueError when `shape` is another or does not lead to the latent's resolution, x is not (B, *shape), or cond
    does not fit.
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
        multipliers, (h, w) = pyramid(shape, multipliers, None if isinstance(latent, int) else latent[1:])
        self.label = ClassEmbedding(num_classes, 4 * width)
        embedding = None if num_classes is None else 4 * width
        widths = [width * m for m in multipliers]
        channels = widths[-1]
        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            ResidualLevel(a, b, blocks, embedding) for a, b in zip([widths[0], *widths], widths)
        )
        self.norm = group_norm(channels)
        self.last: nn.Module
        if isinstance(latent, int):
            self.last = nn.Sequential(nn.Flatten(), nn.Linear(channels * h * w, 2 * latent))
        else:
            self.last = nn.Conv2d(channels, 2 * latent[0], 3, padding=1)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Normal:
        """q(z|x): x (B, C, H, W) in [-1, 1], cond (B,) long or None."""
        check_event("x", x, self.shape)
        embedding = self.label(cond, x)
        h = self.first(x)
        for i, level in enumerate(self.levels):
            if i:
                h = F.avg_pool2d(h, 2)
            h = level(h, embedding)
        return normal(self.last(F.silu(self.norm(h))))


class MLPEncoder(nn.Module):
    """A residual MLP: (B, *features) to a Normal over (B, latent) with log std in [-10, 5].

    Arguments: features, an int or the shape of an event, an image's for one, which is flattened; depth, the number of
    residual blocks of `width`; num_classes as in ResidualEncoder.
    Raises ValueError when x is not (B, *features) or cond does not fit.
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
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 2 * latent)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Normal:
        """q(z|x): x (B, *features), cond (B,) long or None."""
        check_event("x", x, self.features)
        embedding = self.label(cond, x)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return normal(self.last(F.silu(self.norm(h))))
