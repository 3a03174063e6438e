"""Building blocks that the networks share: normalization, embeddings, residual blocks, attention, hidden features."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .precision import wide

__all__ = [
    "SLOPE",
    "Attention",
    "DenseBlock",
    "Features",
    "FourierFeatures",
    "HiddenFeatures",
    "ResidualBlock",
    "ResidualLevel",
    "SelfAttention",
    "TransformerBlock",
    "Upsample",
    "check_event",
    "check_image_shape",
    "check_images",
    "check_patch",
    "convolution",
    "cropped",
    "group_norm",
    "halved",
    "halvings",
    "heads_of",
    "padded",
    "positions",
    "pyramid",
    "soft_clamp",
    "zeroed",
]

SLOPE = 0.2  # of LeakyReLU, as in Isola et al. 2016 (arXiv 1611.07004) and Karras et al. 2020 (arXiv 1912.04958)

Features = dict[str, Tensor]
"""Outputs of hidden layers, each (B, ...), by the layer's name."""

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d)
Output = TypeVar("Output")


class HiddenFeatures:
    """The outputs of a network's hidden layers that one forward was called for.

    A network states `layers`, the names of its hidden layers in the order of its forward. Its forward passes each
    hidden layer's output through `record`, which returns it as it is, and returns `beside(output)`:

        features = HiddenFeatures(self.layers, hidden)
        for name, block in zip(self.layers, self.blocks):
            h = features.record(name, block(h))
        return features.beside(self.last(h))

    Arguments:
        layers: the names there are.
        hidden: the names wanted, () for none.
    Raises:
        ValueError: a name is not among `layers`.
    """

    def __init__(self, layers: Sequence[str], hidden: Sequence[str]) -> None:
        if not set(hidden) <= set(layers):
            raise ValueError(f"hidden must be a sequence of names out of {tuple(layers)}; got {hidden!r}")
        self.hidden = hidden
        self.features: Features = {}

    def record(self, name: str, h: Tensor) -> Tensor:
        """Return h, the output of the layer `name`, and store it where it is wanted."""
        if name in self.hidden:
            self.features[name] = h
        return h

    def beside(self, output: Output) -> Output | tuple[Output, Features]:
        """Return the output alone where no features are wanted, else (output, features)."""
        return (output, self.features) if self.hidden else output


def check_event(name: str, x: Tensor, event: Sequence[int]) -> None:
    """Raise ValueError unless `x` is (B, *event)."""
    if tuple(x.shape[1:]) != tuple(event) or x.ndim == 0:
        expected = ", ".join(["B", *map(str, event)])
        raise ValueError(f"{name} must be ({expected}); got shape {tuple(x.shape)}")


def check_image_shape(shape: Sequence[int], instead: str) -> None:
    """Raise ValueError, with the name of a network to use instead, unless `shape`, of an event, is (C, H, W)."""
    if len(shape) != 3:
        raise ValueError(f"shape must be (C, H, W); got {tuple(shape)}: for points use {instead}")


def check_images(x: Tensor, channels: int) -> None:
    """Raise ValueError unless `x` is (B, channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (B, {channels}, H, W); got shape {tuple(x.shape)}")


def check_patch(shape: Sequence[int], patch: int) -> None:
    """Raise ValueError unless `patch`, the side of a patch, is from 1 to the smallest side of `shape`, (C, ...)."""
    if not 1 <= patch <= min(shape[1:]):
        raise ValueError(f"patch must be at least 1 and at most the sides of shape {tuple(shape)}; got {patch}")


def convolution(inputs: int, outputs: int, kernel: int, dims: int = 2) -> nn.Conv1d | nn.Conv2d:
    """Return a convolution, of an odd kernel, that keeps the sides of sequences (dims = 1) or of images (dims = 2)."""
    return (nn.Conv1d if dims == 1 else nn.Conv2d)(inputs, outputs, kernel, padding=kernel // 2)


def halvings(shape: Sequence[int], side: int = 4) -> int:
    """Return how often the sides of `shape`, (C, ...), halve, rounding up, until the smallest is below 2 `side`.

    The smallest side ends in [side, 2 side), if it does not start below: powers of two end at `side` = 4.
    """
    smallest, count = min(shape[1:]), 0
    while smallest >= 2 * side:
        smallest, count = -(-smallest // 2), count + 1
    return count


def pyramid(
    shape: tuple[int, ...], multipliers: Sequence[int] | None = None, to: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return width multipliers and the sides at each resolution, finest resolution first.

    Each resolution has half the sides of the one before, rounded up: `halved` leads down, doubling and `cropped` up.

    Arguments:
        shape: (C, H, W) or (C, L).
        multipliers: the widths at each resolution, as multiples. By default 1, 2, 4, 4, ...: as many as lead from
            `shape` to `to`, or, without `to`, down to a smallest side of 4 to 7 (powers of two end at 4).
        to: the sides at the end, (H, W) or (L,).
    Raises:
        ValueError: a side of `shape` is smaller than the down-sampling factor, or does not lead to `to`.
    """
    sides = tuple(shape[1:])
    if to is not None:
        counts = range(max(sides).bit_length() + 1)
        count = next((n for n in counts if _halved_sides(sides, n) == tuple(to)), None)
        if count is None:
            raise ValueError(
                f"latent must have shape's sides halved 0, 1, 2, ... times, rounding up; got {to} for shape {shape}"
            )
        if multipliers is not None and len(multipliers) != count + 1:
            raise ValueError(
                f"multipliers must have {count + 1} entries to lead from shape {shape} to latent {to}; "
                f"got {tuple(multipliers)}"
            )
    elif multipliers is not None:
        if not multipliers:
            raise ValueError("multipliers must have at least one entry; got none")
        count = len(multipliers) - 1
        if min(sides) < 2**count:
            raise ValueError(
                f"shape must have sides of at least {2**count}, the down-sampling factor of {len(multipliers)} "
                f"multipliers; got {shape}: use larger images (in a recipe --resolution) or fewer multipliers"
            )
    else:
        count = halvings(shape)
    if multipliers is None:
        multipliers = [min(2**i, 4) for i in range(count + 1)]
    return tuple(multipliers), tuple(_halved_sides(sides, n) for n in range(count + 1))


def _halved_sides(sides: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the sides divided by 2^count, rounded up, which is halving and rounding up `count` times."""
    return tuple(-(-side >> count) for side in sides)


def halved(x: Tensor) -> Tensor:
    """Return x (B, C, ...) average-pooled to half its sides, rounded up: a last odd row or column is pooled alone.

    So nothing is padded: it is as if that row or column were repeated once, for this average only, and convolutions,
    norms and attention see the image's own values at every resolution. Position j covers 2 j and, where there is one,
    2 j + 1; doubling and then `cropped`, at the end, leads back to the same positions.
    """
    # Padding images to a multiple costs half as many pixels more (65 to 80) and gained nothing lasting: U-Nets of
    # width 8 on 25 x 25 crops of Fashion-MNIST, v-loss 0.244 like this and 0.243 with zeros up to 28 after 700 steps
    # (one seed), 0.317 and 0.305 after 200 (two seeds; reflected 0.305, replicated 0.307).
    return (F.avg_pool1d if x.ndim == 3 else F.avg_pool2d)(x, 2, ceil_mode=True)


def padded(x: Tensor, patch: int) -> Tensor:
    """Return x (B, C, ...) with zeros at the end of each side that `patch` does not divide, up to a multiple of it.

    Zeros add nothing to a linear embedding, so a patch at the edge is embedded by the positions that it has.
    """
    missing = [-side % patch for side in reversed(x.shape[2:])]
    return F.pad(x, [n for end in missing for n in (0, end)]) if any(missing) else x


def cropped(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the start of x (B, C, ...) along each side, (B, C, *sides): what `halved` and `padded` round up to."""
    index: list[slice] = [slice(side) for side in sides]
    return x[:, :, *index]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group normalization with at most 32 groups of at least 4 channels (Karras et al. 2022, arXiv 2206.00364).

    The groups are the most that divide `channels`. Groups of one channel would erase the channel's mean.
    """
    groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def heads_of(channels: int) -> int:
    """Return the fewest attention heads that divide `channels` into at most 64 each."""
    return next(h for h in range(-(-channels // 64), channels + 1) if channels % h == 0)


def zeroed(layer: Layer) -> Layer:
    """Return the layer with weight and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Return `x` squeezed smoothly into [low, high], in float32 or wider.

        low + softplus(x - low) - softplus(x - high)

    Well inside it is close to the identity. Outside, its gradient fades but, unlike a hard clamp's, does not vanish at
    once (Chua et al. 2018, arXiv 1805.12114, appendix A.1).
    """
    x = wide(x)
    return low + F.softplus(x - low) - F.softplus(x - high)


class FourierFeatures(nn.Module):
    """x with sin(π 2^k x) and cos(π 2^k x) for each octave k appended: (B, C, ...) to (B, C (1 + 2 n), ...).

    They let a smooth network resolve fine detail (Kingma et al. 2021, arXiv 2107.00630, appendix C). Channels are
    ordered x, then sin by octave, then cos by octave; `factor` is 1 + 2 n for n octaves.

    Arguments:
        octaves: the k; None or () for none.
    """

    def __init__(self, octaves: Sequence[int] | None = None) -> None:
        super().__init__()
        self.octaves = tuple(octaves or ())
        self.factor = 1 + 2 * len(self.octaves)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, ...) with its features appended, (B, C factor, ...)."""
        if not self.octaves:
            return x
        # float32 at least: high octaves of bf16 numbers are noise
        angle = wide(x) * math.pi
        angles = torch.cat([2.0**k * angle for k in self.octaves], dim=1)
        return torch.cat([x, angles.sin().to(x.dtype), angles.cos().to(x.dtype)], dim=1)


class ResidualBlock(nn.Module):
    """A residual block of 3x3 convolutions, x + conv(SiLU(norm(conv(SiLU(norm(x)))))).

    Maps (B, inputs, H, W) to (B, outputs, H, W), or (B, inputs, L) to (B, outputs, L). With an embedding, the second
    norm's output is scaled by 1 + s and shifted by b, both linear in the embedding (Dhariwal and Nichol 2021, arXiv
    2105.05233). The last convolution starts at zero (Ho et al. 2020, arXiv 2006.11239).

    Arguments:
        inputs, outputs: channels.
        embedding: features of the embedding, or None for none.
        dropout: probability in [0, 1), before the last convolution.
        dims: 2 for images, 1 for sequences.
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
        self.broadcast = "b c -> b c" + " 1" * dims

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return (B, outputs, ...) of x (B, inputs, ...) and the embedding (B, embedding), already activated."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.adapt is not None:
            scale, shift = rearrange(self.adapt(embedding), self.broadcast).chunk(2, dim=1)
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
        """Return (B, outputs, H, W) of x (B, inputs, H, W) and the embedding as ResidualBlock takes it."""
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
        """Return (B, width) of x (B, width) and the embedding (B, embedding), already activated."""
        h = self.first(self.norm(x))
        if self.adapt is not None:
            scale, shift = self.adapt(embedding).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return x + self.last(F.silu(h))


class SelfAttention(nn.Module):
    """x + projection(attention(norm(x))) over all positions: (B, C, H, W), or (B, C, L) for dims = 1, to the same.

    The projection starts at zero; heads have at most 64 channels. torch chooses the kernel by device and dtype, and
    fused ones may refuse double backward: do not use it in a critic with R1.
    """

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.heads = heads_of(channels)
        self.norm = group_norm(channels)
        self.qkv = convolution(channels, 3 * channels, 1, dims)
        self.projection = zeroed(convolution(channels, channels, 1, dims))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ...) like x."""
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b (three h c) ... -> three b h (...) c", three=3, h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.projection(rearrange(out, "b h n c -> b (h c) n").reshape(x.shape))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution: (B, C, H, W) to (B, C, 2 H, 2 W); dims = 1: on (B, C, L).

    Arguments:
        channels: C.
        dims: 2 for images, 1 for sequences.
        sides: of the output, to which the doubled x is cropped at the end; None for twice the sides of x.
    """

    def __init__(self, channels: int, dims: int = 2, sides: Sequence[int] | None = None) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3, dims)
        self.sides = sides

    def forward(self, x: Tensor) -> Tensor:
        """Return x with twice the sides, or with `sides`."""
        h = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(h if self.sides is None else cropped(h, self.sides))


class Attention(nn.Module):
    """Multi-head attention softmax(q kᵀ / √d) v, then a projection: (B, N, width) to the same.

    q is linear in x; k and v are linear in x, too, or in a context. torch chooses the kernel, and fused ones may refuse
    double backward: do not use it in a critic with R1.

    Arguments:
        width: features of x.
        heads: a divisor of width.
        context: features of the context, or None for self-attention.
        zero: start the projection at zero.
    Raises:
        ValueError: heads does not divide width.
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
        """Return (B, N, width).

        Arguments:
            x: (B, N, width).
            context: (B, M, context), or None for x itself.
            mask: (B, M) bool, True where there is a token, or None where all are.
        """
        q = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.heads)
        keys = self.key_value(x if context is None else context)
        k, v = rearrange(keys, "b m (two h d) -> two b h m d", two=2, h=self.heads)
        visible = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
        out = F.scaled_dot_product_attention(q, k, v, visible)
        return self.projection(rearrange(out, "b h n d -> b n (h d)"))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention where there is a context, and an MLP, each added to x: (B, N, width) to the same.

    With an embedding, adaLN-zero (Peebles and Xie 2022, arXiv 2212.09748, section 3.2): the norms before attention and
    MLP have no weights of their own; scale, shift and the gate of what is added are linear in the embedding and start
    at 0, so the block starts as the identity. Without, a plain pre-norm block. Cross-attention, whose projection starts
    at zero, is added between the two as in Chen et al. 2023 (arXiv 2310.00426). The MLP is 4 times as wide, with GELU.

    Arguments:
        width, heads: as for Attention.
        embedding: features of the embedding, or None for none.
        context: features of the context, or None for none.
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
        """Return (B, N, width).

        Arguments:
            x: (B, N, width).
            embedding: (B, embedding), already activated.
            context, mask: (B, M, context) and (B, M) bool as for Attention.
        """
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
    """Return fixed sinusoids of the positions on a grid: (Π sides, width), each side having its share of the features.

    cos and sin of position · 10000^(-k / n), k = 0 ... n - 1, n = width / (2 · number of sides) (Vaswani et al. 2017,
    arXiv 1706.03762, section 3.5).

    Raises:
        ValueError: 2 · number of sides does not divide width.
    """
    if width % (2 * len(sides)):
        raise ValueError(f"width must be divisible by {2 * len(sides)}; got {width}")
    frequencies = width // (2 * len(sides))
    omega = 10000.0 ** (-torch.arange(frequencies) / frequencies)
    grid = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in sides), indexing="ij")
    angle = torch.cat([rearrange(position, "... -> (...) 1") * omega for position in grid], dim=1)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
