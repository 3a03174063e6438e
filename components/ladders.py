"""Learned levels of a hierarchical VAE, with a top-down state and bottom-up features of x.

A level's prior p(z|h) depends on the state h above it, its posterior q(z|h, f) on h and on the features f of x at its
own resolution. The state below is computed from h and z. Vahdat & Kautz 2020, 2007.03898; Child 2020, 2011.10650.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .conditions import ClassEmbedding
from .decoders import NormalHead
from .distributions import Normal
from .layers import (
    DenseBlock,
    ResidualBlock,
    ResidualLevel,
    Upsample,
    check_event,
    check_image_shape,
    group_norm,
    halved,
    halvings,
    pyramid,
    zeroed,
)

__all__ = ["BottomUp", "DenseBottomUp", "Ladder", "TopDownLevel", "convolutional_ladder", "dense_ladder"]

# Of log std, squeezed softly, as in encoders/residual.py.
LIMITS = (-10.0, 5.0)


class BottomUp(nn.Module):
    """Residual blocks with average pooling: (B, C, H, W) to the features of every resolution, coarsest first.

    Pooling rounds sides up, as `halved` does.

    Arguments:
        shape: (C, H, W) of x.
        width: channels, times `multipliers` at each resolution.
        multipliers: one for each resolution, finest first.
        blocks: residual blocks at each resolution.
        num_classes: for labels, which adapt every block; the null class is `num_classes`.
    Raises:
        ValueError: `shape` is not (C, H, W), or a side is below the down-sampling factor.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        multipliers: Sequence[int],
        blocks: int = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "DenseBottomUp")
        self.shape = tuple(shape)
        pyramid(shape, multipliers)  # refuses sides that are too small
        widths = [width * m for m in multipliers]
        self.label = ClassEmbedding(num_classes, 4 * width)
        embedding = None if num_classes is None else 4 * width
        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            ResidualLevel(a, b, blocks, embedding) for a, b in zip([widths[0], *widths], widths)
        )

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the features ((B, width m, h, w), ...), coarsest first.

        Arguments:
            x: (B, C, H, W).
            cond: labels (B,) int64, or None for the null class.
        Raises:
            ValueError: x is not (B, *shape), or cond does not fit.
        """
        check_event("x", x, self.shape)
        embedding = self.label(cond, x)
        h, features = self.first(x), []
        for i, level in enumerate(self.levels):
            h = level(halved(h) if i else h, embedding)
            features.append(h)
        return tuple(reversed(features))


class DenseBottomUp(nn.Module):
    """A residual MLP: (B, features) to `levels` features (B, width), those of the deepest block first.

    Arguments:
        features: of x.
        width: of each feature and block.
        levels: the number of residual blocks.
        num_classes: as for BottomUp.
    """

    def __init__(self, features: int, width: int, levels: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.label = ClassEmbedding(num_classes, width)
        self.first = nn.Linear(features, width)
        self.blocks = nn.ModuleList(DenseBlock(width, None if num_classes is None else width) for _ in range(levels))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return ((B, width), ...) of x (B, features); cond and errors as for BottomUp."""
        check_event("x", x, (self.features,))
        embedding = self.label(cond, x)
        h, features = self.first(x), []
        for block in self.blocks:
            h = block(h, embedding)
            features.append(h)
        return tuple(reversed(features))


class TopDownLevel(nn.Module):
    """p(z|h) and q(z|h, f) as diagonal Gaussians, and the state below, body(h + project(z)).

    h is the state above, (B, C, ...), and at the top a learned constant; f = x[index], this level's features of x.

    Arguments:
        prior: a network of h to means and log stds of z.
        posterior: a network of h and f, concatenated along channels, to means and log stds of z.
        project: a network of z to the channels of h.
        body: a network of h + project(z) to the state below.
        index: of this level's features in the encoder's output.
        start: the shape of h, at the top only.
        num_classes: for labels, whose embedding the top adds to h, from where it reaches every level.
    """

    def __init__(
        self,
        prior: nn.Module,
        posterior: nn.Module,
        project: nn.Module,
        body: nn.Module,
        index: int,
        start: tuple[int, ...] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.to_prior, self.to_posterior, self.project, self.body = prior, posterior, project, body
        self.index, self.head = index, NormalHead("learned", LIMITS)
        self.start = None if start is None else nn.Parameter(torch.zeros(1, *start))
        self.label = None if start is None else ClassEmbedding(num_classes, start[0])

    def _state(self, above: Tensor | None, cond: Tensor | None) -> Tensor:
        """Return h: the state above, or at the top the start with the label's embedding added."""
        if above is not None:
            return above
        if self.start is None or self.label is None:
            raise ValueError("above must be the state of the level above, since this level has no start; got None")
        row = self.label(cond, self.start if cond is None else cond)
        if row is None:
            return self.start
        return self.start + rearrange(row, "b c -> b c" + " 1" * (self.start.ndim - 2))

    def prior(self, above: Tensor | None, cond: Tensor | None = None) -> Normal:
        """Return p(z|h), whose batch is 1 at the top without cond.

        Arguments:
            above: h (B, C, ...), or None at the top.
            cond: labels (B,) int64, or None for the null class.
        """
        return self.head(self.to_prior(self._state(above, cond)))

    def posterior(self, above: Tensor | None, x: Sequence[Tensor], cond: Tensor | None = None) -> Normal:
        """Return q(z|h, f).

        Arguments:
            above, cond: as `prior`.
            x: the features of every level, as the encoder returns them.
        Raises:
            ValueError: x[index] does not have the sides of h.
        """
        features, h = x[self.index], self._state(above, cond)
        if features.ndim != h.ndim or features.shape[2:] != h.shape[2:]:
            expected = ", ".join(["B", "C", *map(str, h.shape[2:])])
            raise ValueError(
                f"x[{self.index}] must be the encoder's features of this level, ({expected}) as its state is; "
                f"got shape {tuple(features.shape)}"
            )
        return self.head(self.to_posterior(torch.cat([h.expand(len(features), *h.shape[1:]), features], dim=1)))

    def below(self, above: Tensor | None, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the state for the next level, or for the decoder, of z (B, c, ...); above and cond as `prior`."""
        return self.body(self._state(above, cond) + self.project(z))


@dataclass(frozen=True)
class Ladder:
    """A hierarchical VAE without its last decoder: encoder, levels from the top, shape of the lowest state."""

    encoder: nn.Module
    levels: list[TopDownLevel]
    state: tuple[int, ...]


def convolutional_ladder(
    shape: tuple[int, ...],
    levels: int = 2,
    latent: int = 4,
    width: int = 32,
    blocks: int = 1,
    num_classes: int | None = None,
) -> Ladder:
    """Return levels for images, each of twice the resolution of the one above.

    The top has a smallest side of 4 to 7, or a smaller one for many levels; sides round up as in `pyramid`. The lowest
    state may be coarser than the image: a ResidualDecoder upsamples it. The prior's last convolution starts at zero, so
    every prior starts close to N(0, I).

    Arguments:
        shape: (C, H, W) of x.
        levels: the number of levels, from 1 to ⌊log2 of the smallest side⌋ + 1.
        latent: channels of each z.
        width: channels at the finest resolution; 2 and then 4 times as many at coarser ones.
        blocks: residual blocks at each resolution.
        num_classes: for labels; the null class is `num_classes`.
    Raises:
        ValueError: `shape` is not (C, H, W), or levels is below 1 or too many for it.
    """
    check_image_shape(shape, "dense_ladder")
    most = min(shape[1:]).bit_length()
    if not 1 <= levels <= most:
        raise ValueError(
            f"levels must be from 1 to {most} for images of shape {tuple(shape)}, since each halves the sides; got "
            f"{levels}: use fewer levels or larger images (in a recipe --resolution)"
        )
    resolutions = max(halvings(shape) + 1, levels)
    multipliers, sides = pyramid(shape, [min(2**i, 4) for i in range(resolutions)])
    sides = sides[::-1]
    widths = [width * m for m in reversed(multipliers)][:levels]
    rungs = []
    for i, (channels, below) in enumerate(zip(widths, [*widths[1:], None])):
        rungs.append(
            TopDownLevel(
                prior=nn.Sequential(
                    ResidualBlock(channels, channels),
                    group_norm(channels),
                    nn.SiLU(),
                    zeroed(nn.Conv2d(channels, 2 * latent, 3, padding=1)),
                ),
                posterior=nn.Sequential(
                    ResidualBlock(2 * channels, channels),
                    group_norm(channels),
                    nn.SiLU(),
                    nn.Conv2d(channels, 2 * latent, 3, padding=1),
                ),
                project=nn.Conv2d(latent, channels, 1),
                body=nn.Identity()
                if below is None
                else nn.Sequential(
                    ResidualLevel(channels, channels, blocks),
                    Upsample(channels, sides=sides[i + 1]),
                    ResidualLevel(channels, below, blocks),
                ),
                index=i,
                start=None if i else (channels, *sides[0]),
                num_classes=num_classes,
            )
        )
    encoder = BottomUp(shape, width, multipliers, blocks, num_classes)
    return Ladder(encoder, rungs, (widths[-1], *sides[levels - 1]))


def dense_ladder(
    features: int, levels: int = 2, latent: int = 2, width: int = 256, num_classes: int | None = None
) -> Ladder:
    """Return levels for vectors, with a state (B, width); every prior starts close to N(0, I).

    Arguments:
        features: of x.
        levels, latent, width, num_classes: as for convolutional_ladder.
    Raises:
        ValueError: levels is below 1.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1; got {levels}")
    rungs = [
        TopDownLevel(
            prior=nn.Sequential(
                DenseBlock(width), nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, 2 * latent))
            ),
            posterior=nn.Sequential(
                nn.Linear(2 * width, width),
                DenseBlock(width),
                nn.LayerNorm(width),
                nn.SiLU(),
                nn.Linear(width, 2 * latent),
            ),
            project=nn.Linear(latent, width),
            body=DenseBlock(width) if i + 1 < levels else nn.Identity(),
            index=i,
            start=None if i else (width,),
            num_classes=num_classes,
        )
        for i in range(levels)
    ]
    return Ladder(DenseBottomUp(features, width, levels, num_classes), rungs, (width,))
