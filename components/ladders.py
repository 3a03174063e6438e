"""Learned levels of a hierarchical VAE: a state comes down from the top, features of x come up from the bottom.

A level's latent z is drawn given the state h above it; the posterior of z sees h and the features of x at its own
resolution. The state below is made of h and z. Vahdat & Kautz 2020, 2007.03898; Child 2020, 2011.10650.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
    pyramid,
    zeroed,
)

__all__ = ["BottomUp", "DenseBottomUp", "Ladder", "TopDownLevel", "convolutional_ladder", "dense_ladder"]

# Of log std, squeezed softly, as in encoders.py.
LIMITS = (-10.0, 5.0)


class BottomUp(nn.Module):
    """Residual blocks with average pooling: (B, C, H, W) to the features of every resolution, coarsest first.

    Arguments: width times `multipliers`, the channels at each resolution, finest first; `blocks` residual blocks each.
    Raises ValueError when `shape` is another or a side of it does not halve that often, x is not (B, *shape), or cond
    does not fit.
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
        pyramid(shape, multipliers)  # refuses sides that do not divide
        widths = [width * m for m in multipliers]
        self.label = ClassEmbedding(num_classes, 4 * width)
        embedding = None if num_classes is None else 4 * width
        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            ResidualLevel(a, b, blocks, embedding) for a, b in zip([widths[0], *widths], widths)
        )

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """((B, width m, h, w), ...), coarsest first; cond (B,) long or None."""
        check_event("x", x, self.shape)
        embedding = self.label(cond, x)
        h, features = self.first(x), []
        for i, level in enumerate(self.levels):
            h = level(nn.functional.avg_pool2d(h, 2) if i else h, embedding)
            features.append(h)
        return tuple(reversed(features))


class DenseBottomUp(nn.Module):
    """A residual MLP: (B, features) to `levels` features (B, width), those of the deepest block first.

    Raises ValueError when x is not (B, features), or cond does not fit.
    """

    def __init__(self, features: int, width: int, levels: int, num_classes: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.label = ClassEmbedding(num_classes, width)
        self.first = nn.Linear(features, width)
        self.blocks = nn.ModuleList(DenseBlock(width, None if num_classes is None else width) for _ in range(levels))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, ...]:
        """((B, width), ...); cond (B,) long or None."""
        check_event("x", x, (self.features,))
        embedding = self.label(cond, x)
        h, features = self.first(x), []
        for block in self.blocks:
            h = block(h, embedding)
            features.append(h)
        return tuple(reversed(features))


class TopDownLevel(nn.Module):
    """p(z|h) and q(z|h, f) as diagonal Gaussians, and the state below, body(h + project(z)).

    h is the state above, (B, C, ...), and at the top a learned constant; f = x[place], this level's features of x.
    Arguments: prior, a network of h; posterior, of h and f side by side; each to means and log stds of z; project, of
    z to the channels of h; body; place; start, the shape of h, at the top only; num_classes, for labels, which the top
    adds to h, so that every level hears of them.
    """

    def __init__(
        self,
        prior: nn.Module,
        posterior: nn.Module,
        project: nn.Module,
        body: nn.Module,
        place: int,
        start: tuple[int, ...] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.to_prior, self.to_posterior, self.project, self.body = prior, posterior, project, body
        self.place, self.head = place, NormalHead("learned", LIMITS)
        self.start = None if start is None else nn.Parameter(torch.zeros(1, *start))
        self.label = None if start is None else ClassEmbedding(num_classes, start[0])

    def _state(self, above: Tensor | None, cond: Tensor | None) -> Tensor:
        if above is not None:
            return above
        if self.start is None or self.label is None:
            raise ValueError("above must be the state of the level above, since this level has no start; got None")
        row = self.label(cond, self.start if cond is None else cond)
        return self.start if row is None else self.start + row.view(*row.shape, *[1] * (self.start.ndim - 2))

    def prior(self, above: Tensor | None, cond: Tensor | None = None) -> Normal:
        """p(z|h)."""
        return self.head(self.to_prior(self._state(above, cond)))

    def posterior(self, above: Tensor | None, x: Sequence[Tensor], cond: Tensor | None = None) -> Normal:
        """q(z|h, x). Raises ValueError where x[place] has not the sides of h."""
        features, h = x[self.place], self._state(above, cond)
        if features.ndim != h.ndim or features.shape[2:] != h.shape[2:]:
            expected = ", ".join(["B", "C", *map(str, h.shape[2:])])
            raise ValueError(
                f"x[{self.place}] must be the encoder's features of this level, ({expected}) as its state is; "
                f"got shape {tuple(features.shape)}"
            )
        return self.head(self.to_posterior(torch.cat([h.expand(len(features), *h.shape[1:]), features], dim=1)))

    def below(self, above: Tensor | None, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """The state for the next level, or for the decoder."""
        return self.body(self._state(above, cond) + self.project(z))


@dataclass(frozen=True)
class Ladder:
    """Of a hierarchical VAE all but the last decoder: encoder, levels from the top, shape of the lowest state."""

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
    """Levels for images, each of twice the resolution of the one above, with `latent` channels of z.

    The top is at 4 × 4, or lower if so many levels lead there; the lowest state may be coarser than the image, for a
    ResidualDecoder to double on. The prior's last convolution starts at zero, so every prior starts close to N(0, I).
    Raises ValueError for another `shape`, and where its sides do not halve that often.
    """
    check_image_shape(shape, "dense_ladder")
    if levels < 1:
        raise ValueError(f"levels must be at least 1; got {levels}")
    halvings = max(len(pyramid(shape)[0]), levels) - 1
    multipliers, top = pyramid(shape, [min(2**i, 4) for i in range(halvings + 1)])
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
                    Upsample(channels),
                    ResidualLevel(channels, below, blocks),
                ),
                place=i,
                start=None if i else (channels, *top),
                num_classes=num_classes,
            )
        )
    encoder = BottomUp(shape, width, multipliers, blocks, num_classes)
    return Ladder(encoder, rungs, (widths[-1], *[side << levels - 1 for side in top]))


def dense_ladder(
    features: int, levels: int = 2, latent: int = 2, width: int = 256, num_classes: int | None = None
) -> Ladder:
    """Levels for vectors, with `latent` dimensions of z and a state (B, width); every prior starts close to N(0, I)."""
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
            place=i,
            start=None if i else (width,),
            num_classes=num_classes,
        )
        for i in range(levels)
    ]
    return Ladder(DenseBottomUp(features, width, levels, num_classes), rungs, (width,))
