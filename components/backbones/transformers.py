"""Transformers: backbones (x_t, t, cond) to a tensor, on patches of images and of sequences."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..conditions import Condition, Context, TimeAndLabel
from ..layers import (
    Features,
    HiddenFeatures,
    TransformerBlock,
    check_event,
    check_image_shape,
    check_patch,
    cropped,
    padded,
    positions,
    zeroed,
)

__all__ = ["DiT", "SequenceTransformer"]


class DiT(nn.Module):
    """A diffusion transformer on patches: x_t (B, C, H, W) to (B, out_channels, H, W), at first zero.

    Patches are embedded linearly, with fixed sinusoids of their positions added; blocks have adaLN-zero; each token is
    mapped linearly to its patch of the output. Peebles and Xie 2022, arXiv 2212.09748. Where patch does not divide a
    side, zeros follow its end, and the output is cropped there.

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, ⌈H / patch⌉ ⌈W / patch⌉, width), tokens row by row.

    Arguments:
        shape: (C, H, W) of x_t.
        patch: the side of a patch, at most H and W.
        width: features of a token, divisible by 4.
        depth: the number of blocks, at least 1.
        heads: attention heads, which divide width.
        num_classes: for cond as labels (B,), the null class being `num_classes`.
        context: F, for cond as tokens and mask, in every block's cross-attention; cond=None is a learned null token.
            Not together with num_classes.
        out_channels: of the output, C by default.
    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        num_classes: int | None = None,
        context: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "MLP")
        check_patch(shape, patch)
        channels, height, long = shape
        self.shape, self.patch, self.num_classes, self.context = tuple(shape), patch, num_classes, context
        embedding = positions(width, -(-height // patch), -(-long // patch))
        outputs = (out_channels or channels) * patch**2
        self.transformer = _Transformer(channels * patch**2, outputs, embedding, depth, heads, num_classes, context)
        self.layers = self.transformer.layers

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, hidden: Sequence[str] = ()
    ) -> Tensor | tuple[Tensor, Features]:
        """Return the output (B, out_channels, H, W); with `hidden`, (output, features by name).

        Arguments:
            x_t: (B, C, H, W).
            t: (B,) or () in [0, 1].
            cond: labels (B,) int64, or (tokens (B, L, F), mask (B, L) bool), as the network was built; None for the
                null condition.
            hidden: names out of `layers`.
        Raises:
            ValueError: x_t is not (B, *shape), t or cond does not fit, or a name in `hidden` is unknown.
        """
        check_event("x_t", x_t, self.shape)
        patches = F.pixel_unshuffle(padded(x_t, self.patch), self.patch)
        tokens = rearrange(patches, "b c h w -> b (h w) c")
        out, features = self.transformer(tokens, t, cond, hidden)
        output = F.pixel_shuffle(rearrange(out, "b (h w) c -> b c h w", h=patches.shape[2]), self.patch)
        output = cropped(output, self.shape[1:])
        return (output, features) if hidden else output


class SequenceTransformer(nn.Module):
    """DiT on sequences: x_t (B, C, L), channels before positions, to (B, out_channels, L), at first zero.

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, ⌈L / patch⌉, width).

    Arguments:
        shape: (C, L) of x_t.
        patch: the number of positions that make a token, at most L.
        width: features of a token, even.
        depth, heads, num_classes, context, out_channels: as for DiT.
    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        patch: int = 1,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        num_classes: int | None = None,
        context: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_patch(shape, patch)
        channels, length = shape
        self.shape, self.patch, self.num_classes, self.context = tuple(shape), patch, num_classes, context
        embedding = positions(width, -(-length // patch))
        outputs = (out_channels or channels) * patch
        self.transformer = _Transformer(channels * patch, outputs, embedding, depth, heads, num_classes, context)
        self.layers = self.transformer.layers

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, hidden: Sequence[str] = ()
    ) -> Tensor | tuple[Tensor, Features]:
        """Return the output (B, out_channels, L) of x_t (B, C, L); the others as for DiT."""
        check_event("x_t", x_t, self.shape)
        tokens = rearrange(padded(x_t, self.patch), "b c (n p) -> b n (c p)", p=self.patch)
        out, features = self.transformer(tokens, t, cond, hidden)
        output = cropped(rearrange(out, "b n (c p) -> b c (n p)", p=self.patch), self.shape[1:])
        return (output, features) if hidden else output


class _Transformer(nn.Module):
    """Adaptive blocks, an adaptive norm and a linear layer, zero at first: (B, N, inputs) to (B, N, outputs).

    The part that DiT and SequenceTransformer have in common; they differ in how x is divided into tokens.

    Arguments:
        inputs, outputs: features of tokens before and after.
        place: (N, width), added to the tokens' embeddings.
        depth, heads, num_classes, context: as for DiT.
    """

    position_embedding: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        position_embedding: Tensor,
        depth: int,
        heads: int,
        num_classes: int | None,
        context: int | None,
    ) -> None:
        super().__init__()
        _check(depth, num_classes, context)
        width = position_embedding.shape[1]
        # 256 sinusoids as in the paper's code; fewer in narrow networks
        self.embedding = TimeAndLabel(width, min(width, 256), num_classes)
        self.context = None if context is None else Context(context)
        self.first = nn.Linear(inputs, width)
        self.register_buffer("position_embedding", position_embedding, persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, width, context) for _ in range(depth))
        self.layers = tuple(f"block_{i}" for i in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adapt = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, outputs))

    def forward(
        self, tokens: Tensor, t: Tensor, cond: Condition | None, hidden: Sequence[str]
    ) -> tuple[Tensor, Features]:
        """Return (B, N, outputs) and the features of the layers in `hidden` by name."""
        features = HiddenFeatures(self.layers, hidden)
        context: Tensor | None = None
        mask: Tensor | None = None
        if self.context is not None:
            context, mask = self.context(cond, tokens)
            cond = None
        embedding = self.embedding(t, cond, tokens)
        h = self.first(tokens) + self.position_embedding.to(tokens.dtype)
        for name, block in zip(self.layers, self.blocks):
            h = features.record(name, block(h, embedding, context, mask))
        scale, shift = self.adapt(embedding).unsqueeze(1).chunk(2, dim=2)
        return self.last(torch.addcmul(shift, self.norm(h), 1 + scale)), features.features


def _check(depth: int, num_classes: int | None, context: int | None) -> None:
    """Raise ValueError for invalid arguments of a transformer."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1; got {depth}")
    if num_classes is not None and context is not None:
        raise ValueError(
            "num_classes and context exclude each other, as cond is labels or tokens; "
            f"got num_classes={num_classes} and context={context}"
        )
