"""A residual MLP, for vectors and for small images."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import TimeAndLabel
from ..layers import DenseBlock, FourierFeatures, check_event, zeroed

__all__ = ["MLP"]


class MLP(nn.Module):
    """A residual MLP adapted by time and label in every block: x_t (B, *features) to the same, at first zero.

    Arguments: features, an int or the shape (C, ...) of an event, an image's for one, which is flattened; depth, the
    number of residual blocks of `width`; fourier, octaves of FourierFeatures appended to x_t; out_features, that the
    output has in place of the first of `features`. Raises ValueError when x_t is not (B, *features), or t or cond does
    not fit.
    """

    def __init__(
        self,
        features: int | tuple[int, ...],
        width: int = 256,
        depth: int = 3,
        fourier: Sequence[int] | None = None,
        num_classes: int | None = None,
        out_features: int | None = None,
    ) -> None:
        super().__init__()
        self.features = (features,) if isinstance(features, int) else tuple(features)
        self.out = (out_features or self.features[0], *self.features[1:])
        self.num_classes = num_classes
        self.embedding = TimeAndLabel(width, min(width, 128), num_classes)
        self.fourier = FourierFeatures(fourier)
        self.first = nn.Linear(math.prod(self.features) * self.fourier.factor, width)
        self.blocks = nn.ModuleList(DenseBlock(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, math.prod(self.out)))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Like x_t (B, *features), t (B,) or () in [0, 1], cond (B,) long or None."""
        check_event("x_t", x_t, self.features)
        embedding = self.embedding(t, cond, x_t)
        h = self.first(self.fourier(x_t.flatten(1)))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(F.silu(self.norm(h))).unflatten(1, self.out)
