"""Transformers: backbones (x_t, t, cond) to a tensor on patches of images and of sequences, and their parts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import Condition, Context, TimeAndLabel
from ..layers import TransformerBlock, check_event, check_image_shape, positions, zeroed

__all__ = ["DiT", "SequenceTransformer"]


class _Transformer(nn.Module):
    """Adaptive blocks, an adaptive norm and a linear layer, zero at first: (B, N, inputs) to (B, N, outputs).

    What DiT and SequenceTransformer share, but for how they cut x into tokens.
    """

    place: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        place: Tensor,
        depth: int,
        heads: int,
        num_classes: int | None,
        context: int | None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        if num_classes is not None and context is not None:
            raise ValueError(f"cond is labels or tokens: got num_classes={num_classes} and context={context}")
        width = place.shape[1]
        # 256 sinusoids as in the paper's code; fewer in narrow networks
        self.embedding = TimeAndLabel(width, min(width, 256), num_classes)
        self.context = None if context is None else Context(context)
        self.first = nn.Linear(inputs, width)
        self.register_buffer("place", place, persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, width, context) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adapt = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, outputs))

    def forward(self, tokens: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        words: Tensor | None = None
        mask: Tensor | None = None
        if self.context is not None:
            words, mask = self.context(cond, tokens)
            cond = None
        embedding = self.embedding(t, cond, tokens)
        h = self.first(tokens) + self.place.to(tokens.dtype)
        for block in self.blocks:
            h = block(h, embedding, words, mask)
        scale, shift = self.adapt(embedding).unsqueeze(1).chunk(2, dim=2)
        return self.last(torch.addcmul(shift, self.norm(h), 1 + scale))


class DiT(nn.Module):
    """A diffusion transformer on patches: x_t (B, C, H, W) to (B, out_channels, H, W), at first zero.

    Patches, linearly embedded, with fixed sinusoids of their place; blocks with adaLN-zero; each patch read off its
    token. Peebles and Xie 2022, arXiv 2212.09748.

    Arguments: patch, the side of a patch; width, divisible by 4; depth, the number of blocks; heads, which divide
    width; num_classes, for cond as labels (B,), None being the null class; or context F, for cond as tokens and mask
    ((B, L, F), (B, L) bool) in every block's cross-attention, None being a learned null token; out_channels, C by
    default.
    Raises ValueError when `shape` is another, patch does not divide its sides, for the arguments above, when x_t is
    not (B, *shape), or when t or cond does not fit.
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
        channels, height, long = shape
        if patch < 1 or height % patch or long % patch:
            raise ValueError(f"patch must divide the sides of shape {tuple(shape)}; got {patch}")
        self.shape, self.patch, self.num_classes, self.context = tuple(shape), patch, num_classes, context
        place = positions(width, height // patch, long // patch)
        outputs = (out_channels or channels) * patch**2
        self.transformer = _Transformer(channels * patch**2, outputs, place, depth, heads, num_classes, context)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """(B, out_channels, H, W): x_t (B, C, H, W), t (B,) or () in [0, 1], cond as the network was built, or None."""
        check_event("x_t", x_t, self.shape)
        tokens = F.pixel_unshuffle(x_t, self.patch)
        h, w = tokens.shape[2:]
        out = self.transformer(tokens.flatten(2).transpose(1, 2), t, cond)
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (h, w)), self.patch)


class SequenceTransformer(nn.Module):
    """DiT on sequences: x_t (B, C, L), channels before places, to (B, out_channels, L), at first zero.

    Arguments: shape (C, L); patch, the number of places that make a token; width, even; the others as for DiT.
    Raises ValueError when patch does not divide L, and as DiT.
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
        channels, length = shape
        if patch < 1 or length % patch:
            raise ValueError(f"patch must divide the length of shape {tuple(shape)}; got {patch}")
        self.shape, self.patch, self.num_classes, self.context = tuple(shape), patch, num_classes, context
        place = positions(width, length // patch)
        outputs = (out_channels or channels) * patch
        self.transformer = _Transformer(channels * patch, outputs, place, depth, heads, num_classes, context)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """(B, out_channels, L): x_t (B, C, L), t (B,) or () in [0, 1], cond as the network was built, or None."""
        check_event("x_t", x_t, self.shape)
        tokens = x_t.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
        out = self.transformer(tokens, t, cond)
        return out.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
