"""A residual MLP, for vectors and for small images."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import TimeAndLabel
from ..layers import DenseBlock, Features, FourierFeatures, HiddenFeatures, check_event, zeroed

__all__ = ["MLP"]


class MLP(nn.Module):
    """A residual MLP adapted by time and label in every block: x_t (B, *features) to the same, at first zero.

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, width).

    Arguments:
        features: an int, or the shape (C, ...) of an event, such as an image's, which is flattened.
        width: features of each block.
        depth: the number of residual blocks.
        fourier: octaves of FourierFeatures appended to x_t, or None for none.
        num_classes: for cond as labels (B,), the null class being `num_classes`; None for none.
        out_features: the first of the output's sides, in place of the first of `features`.
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
        self.layers = tuple(f"block_{i}" for i in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, math.prod(self.out)))

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, hidden: Sequence[str] = ()
    ) -> Tensor | tuple[Tensor, Features]:
        """Return the output, like x_t; with `hidden`, (output, features by name).

        Arguments:
            x_t: (B, *features).
            t: (B,) or () in [0, 1].
            cond: labels (B,) int64, or None for the null class.
            hidden: names out of `layers`.
        Raises:
            ValueError: x_t is not (B, *features), t or cond does not fit, or a name in `hidden` is unknown.
        """
        check_event("x_t", x_t, self.features)
        features = HiddenFeatures(self.layers, hidden)
        embedding = self.embedding(t, cond, x_t)
        h = self.first(self.fourier(x_t.flatten(1)))
        for name, block in zip(self.layers, self.blocks):
            h = features.record(name, block(h, embedding))
        return features.beside(self.last(F.silu(self.norm(h))).unflatten(1, self.out))
