"""Building blocks that the networks share: normalization, embeddings, residual blocks, attention."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import wide

__all__ = [
    "SLOPE",
    "Attention",
    "DenseBlock",
    "FourierFeatures",
    "ResidualBlock",
    "ResidualLevel",
    "SelfAttention",
    "TransformerBlock",
    "Upsample",
    "check_event",
    "check_image_shape",
    "check_images",
    "convolution",
    "group_norm",
    "positions",
    "pyramid",
    "soft_clamp",
    "zeroed",
]

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d)


def check_event(name: str, x: Tensor, event: Sequence[int]) -> None:
    """Raises ValueError unless `x` is (B, *event)."""
    if tuple(x.shape[1:]) != tuple(event) or x.ndim == 0:
        expected = ", ".join(["B", *map(str, event)])
        raise ValueError(f"{name} must be ({expected}); got shape {tuple(x.shape)}")


def check_image_shape(shape: Sequence[int], instead: str) -> None:
    """Raises ValueError, naming a network to use instead, unless `shape`, of an event, is (C, H, W)."""
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W); got {tuple(shape)}: for points use {instead}")


def check_images(x: Tensor, channels: int) -> None:
    """Raises ValueError unless `x` is (B, channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (B, {channels}, H, W); got shape {tuple(x.shape)}")


def convolution(inputs: int, outputs: int, kernel: int, dims: int = 2) -> nn.Conv1d | nn.Conv2d:
    """A convolution that keeps the sides: on sequences (B, C, L) for dims = 1, on images for 2; its kernel is odd."""
    return (nn.Conv1d if dims == 1 else nn.Conv2d)(inputs, outputs, kernel, padding=kernel // 2)


def pyramid(
    shape: tuple[int, ...], multipliers: Sequence[int] | None = None, to: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Width multipliers, finest resolution first, and the coarsest resolution that halving between them reaches.

    `shape` is (C, H, W) or (C, L), `to` its sides at the end. Without `multipliers` they are 1, 2, 4, 4, ...: as many
    as lead from `shape` to `to`, or, without `to`, as long as all sides are even and stay at least 4 (so powers of two
    end at 4x4).

    Raises ValueError when a side of `shape` does not divide by the down-sampling factor or does not lead to `to`.
    """
    sides = tuple(shape[1:])
    if to is not None:
        halvings = max(sides[0] // to[0], 1).bit_length() - 1
        if tuple(side << halvings for side in to) != sides:
            raise ValueError(f"latent must have shape's sides halved 0, 1, 2, ... times; got {to} for shape {shape}")
        if multipliers is not None and len(multipliers) != halvings + 1:
            raise ValueError(
                f"multipliers must have {halvings + 1} entries to lead from shape {shape} to latent {to}; "
                f"got {tuple(multipliers)}"
            )
    elif multipliers is not None:
        if not multipliers:
            raise ValueError("multipliers must have at least one entry; got none")
        halvings = len(multipliers) - 1
        if any(side % 2**halvings for side in sides):
            raise ValueError(
                f"shape must have sides divisible by the down-sampling factor {2**halvings} "
                f"of {len(multipliers)} multipliers; got {shape}"
            )
    else:
        halvings = 0
        while not any((side >> halvings) % 2 for side in sides) and min(sides) >> halvings >= 8:
            halvings += 1
    if multipliers is None:
        multipliers = [min(2**i, 4) for i in range(halvings + 1)]
    return tuple(multipliers), tuple(side >> halvings for side in sides)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalization with at most 32 groups of at least 4 channels (Karras et al. 2022, arXiv 2206.00364).

    The groups are the most that divide `channels`. Groups of one channel would erase the channel's mean.
    """
    groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """`x` squeezed smoothly into [low, high]: low + softplus(x - low) - softplus(x - high), in float32 or wider.

    Close to the identity well inside; outside its gradient fades but, unlike a hard clamp's, does not vanish at once
    (Chua et al. 2018, arXiv 1805.12114, appendix A.1).
    """
    x = wide(x)
    return low + F.softplus(x - low) - F.softplus(x - high)


class FourierFeatures(nn.Module):
    """x with sin(pi 2^k x) and cos(pi 2^k x) for each octave k appended: (B, C, ...) to (B, C (1 + 2 n), ...).

    Fine detail that a smooth network would not see otherwise (Kingma et al. 2021, arXiv 2107.00630, appendix C).
    `factor` is 1 + 2 n for n octaves; channels are ordered x, then sin by octave, then cos by octave.
    """

    def __init__(self, octaves: Sequence[int] | None = None) -> None:
        super().__init__()
        self.octaves = tuple(octaves or ())
        self.factor = 1 + 2 * len(self.octaves)

    def forward(self, x: Tensor) -> Tensor:
        if not self.octaves:
            return x
        # float32 at least: high octaves of bf16 numbers are noise
        angle = wide(x) * math.pi
        angles = torch.cat([2.0**k * angle for k in self.octaves], dim=1)
        return torch.cat([x, angles.sin().to(x.dtype), angles.cos().to(x.dtype)], dim=1)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), 3x3: (B, inputs, H, W) to (B, outputs, H, W); dims = 1: on (B, C, L).

    With `embedding` given, the second norm's output is scaled by 1 + s and shifted by b, both linear in the embedding
    (B, embedding), which comes already activated (Dhariwal and Nichol 2021, arXiv 2105.05233). The last convolution
    starts at zero (Ho et al. 2020, arXiv 2006.11239).
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int | None = None, dropout: float = 0.0, dims: int = 2
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs)
        self.conv1 = convolution(inputs, outputs, 3, dims)
        self.conv2 = zeroed(convolution(outputs, outputs, 3, dims))
        self.adapt = None if embedding is None else nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1, dims)
        self.dropout = dropout

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.adapt is not None:
            scale, shift = self.adapt(embedding).unflatten(1, (-1, *[1] * (x.ndim - 2))).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        h = F.silu(h)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return self.skip(x) + self.conv2(h)


class ResidualLevel(nn.Module):
    """`blocks` ResidualBlocks in a row at one resolution: (B, inputs, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, blocks: int, embedding: int | None = None) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, embedding) for a, b in zip(widths, widths[1:]))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class DenseBlock(nn.Module):
    """x + linear(SiLU(linear(norm(x)))), adapted by an embedding like ResidualBlock: (B, width) to (B, width)."""

    def __init__(self, width: int, embedding: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.last = zeroed(nn.Linear(width, width))
        self.adapt = None if embedding is None else nn.Linear(embedding, 2 * width)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.first(self.norm(x))
        if self.adapt is not None:
            scale, shift = self.adapt(embedding).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return x + self.last(F.silu(h))


class SelfAttention(nn.Module):
    """x + projection(attention(norm(x))) over all positions: (B, C, H, W), or (B, C, L) for dims = 1, to the same.

    The projection starts at zero; heads have at most 64 channels. torch chooses the kernel by device and dtype, and
    fused ones may refuse double backward: no place for it in a critic with R1.
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.heads = next(h for h in range(-(-channels // 64), channels + 1) if channels % h == 0)
        self.norm = group_norm(channels)
        self.qkv = convolution(channels, 3 * channels, 1, dims)
        self.projection = zeroed(convolution(channels, channels, 1, dims))

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, -1).transpose(3, 4).unbind(1)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.projection(out.transpose(2, 3).reshape(x.shape))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution: (B, C, H, W) to (B, C, 2 H, 2 W); dims = 1: on (B, C, L)."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3, dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


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


SLOPE = 0.2  # of LeakyReLU, as in Isola et al. 2016 (arXiv 1611.07004) and Karras et al. 2020 (arXiv 1912.04958)
