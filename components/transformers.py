"""Transformers: backbones (x_t, t, cond) to a tensor on patches of images and of sequences, and their parts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ClassEmbedding, TimeEmbedding, check_event, check_image_shape, zeroed

__all__ = [
    "Attention",
    "Condition",
    "Context",
    "DiT",
    "SequenceTransformer",
    "TimeAndLabel",
    "TransformerBlock",
    "positions",
]

Condition = Tensor | tuple[Tensor, Tensor | None]
"""Labels (B,) long, or (tokens (B, L, F), mask (B, L) bool, True where there is a token; None where all are)."""


def masked(cond: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Tokens and their mask, which is True everywhere where None was given."""
    tokens, mask = cond
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask


class TimeAndLabel(nn.Module):
    """What adapts every block: SiLU(time + label + style), (B, width).

    A style (B, width) comes with the time, as the pair (t, style): so it gets here through every backbone, which hands
    its t on unread. `components.stochastic` makes one of a latent.
    """

    def __init__(self, width: int, frequencies: int, num_classes: int | None) -> None:
        super().__init__()
        self.width = width
        self.time = TimeEmbedding(width, frequencies)
        self.label = ClassEmbedding(num_classes, width)

    def forward(self, t: Tensor | tuple[Tensor, Tensor], cond: Tensor | None, x: Tensor) -> Tensor:
        t, style = t if isinstance(t, tuple) else (t, None)
        embedding, label = self.time(t, x), self.label(cond, x)
        if style is not None:
            embedding = embedding + style
        return F.silu(embedding if label is None else embedding + label)


class Context(nn.Module):
    """Condition tokens with a learned null token before them: (tokens (B, L, F), mask (B, L)) to (B, 1 + L, F), a mask.

    The null token is seen where no other is: for cond=None, which is the same as a mask of False only. It is always in
    the graph, as DistributedDataParallel needs. The mask returned is (B, 1 + L) bool, or None where all is seen.
    Arguments: features F. Raises ValueError for a cond that is no such pair.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.null = nn.Parameter(torch.randn(features) / math.sqrt(features))

    def forward(self, cond: Condition | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
        null = self.null.expand(len(x), 1, -1)
        if cond is None:
            return null, None
        if not isinstance(cond, tuple) or len(cond) != 2:
            raise ValueError(f"cond must be (tokens, mask) for a network built with context; got {type(cond).__name__}")
        tokens, mask = masked(cond)
        if tokens.ndim != 3 or len(tokens) != len(x) or tokens.shape[2] != self.features:
            raise ValueError(f"tokens must be ({len(x)}, L, {self.features}); got shape {tuple(tokens.shape)}")
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be (B, L) = {tuple(tokens.shape[:2])} of dtype bool; "
                f"got shape {tuple(mask.shape)} of dtype {mask.dtype}"
            )
        tokens = torch.cat([null.to(tokens.dtype), tokens], dim=1)
        return tokens, torch.cat([~mask.any(1, keepdim=True), mask], dim=1)


class Attention(nn.Module):
    """Multi-head attention softmax(q kᵀ / sqrt d) v, then a projection: (B, N, width) to the same.

    q is of x; k and v are of x, too, or of `context` (B, M, features), where its mask (B, M) is True. The kernel is
    chosen by torch, and fused ones may refuse double backward: no place for it in a critic with R1.
    Arguments: heads, a divisor of width; context, its features, or None for self-attention; zero, to start the
    projection at zero. Raises ValueError for other heads.
    """

    def __init__(self, width: int, heads: int, context: int | None = None, zero: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width {width}; got {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context or width, 2 * width)
        self.projection = nn.Linear(width, width)
        if zero:
            zeroed(self.projection)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys = self.key_value(x if context is None else context)
        k, v = keys.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        return self.projection(out.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, and an MLP, each added to x: (B, N, width) to the same.

    With `embedding` features, adaLN-zero (Peebles and Xie 2022, arXiv 2212.09748, section 3.2): the norms before
    attention and MLP have no weights of their own; scale, shift and the gate of what is added are linear in the
    embedding (B, embedding), which comes already activated, and start at 0, so the block starts as the identity.
    Without, a plain pre-norm block. Cross-attention, whose projection starts at zero, is added between the two as in
    Chen et al. 2023 (arXiv 2310.00426). The MLP is 4 times as wide, with GELU.
    """

    def __init__(self, width: int, heads: int, embedding: int | None = None, context: int | None = None) -> None:
        super().__init__()
        own = embedding is None
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=own, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adapt = None if embedding is None else zeroed(nn.Linear(embedding, 6 * width))
        self.norm_cross = None if context is None else nn.LayerNorm(width, eps=1e-6)
        self.cross = None if context is None else Attention(width, heads, context, zero=True)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if self.adapt is None:
            x = x + self.attention(self.norm1(x))
        else:
            scale1, shift1, gate1, scale2, shift2, gate2 = self.adapt(embedding).unsqueeze(1).chunk(6, dim=2)
            x = x + gate1 * self.attention(torch.addcmul(shift1, self.norm1(x), 1 + scale1))
        if self.cross is not None and self.norm_cross is not None:
            x = x + self.cross(self.norm_cross(x), context, mask)
        if self.adapt is None:
            return x + self.mlp(self.norm2(x))
        return x + gate2 * self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2))


def positions(width: int, *sides: int) -> Tensor:
    """Fixed sinusoids of the place on a grid: (Π sides, width), each side having its share of the features.

    cos and sin of place · 10000^(-k / n), k = 0 ... n - 1, n = width / (2 · number of sides) (Vaswani et al. 2017,
    arXiv 1706.03762, section 3.5). Raises ValueError unless 2 · number of sides divides width.
    """
    if width % (2 * len(sides)):
        raise ValueError(f"width must be divisible by {2 * len(sides)}; got {width}")
    frequencies = width // (2 * len(sides))
    omega = 10000.0 ** (-torch.arange(frequencies) / frequencies)
    grid = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in sides), indexing="ij")
    angle = torch.cat([place.reshape(-1, 1) * omega for place in grid], dim=1)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


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
