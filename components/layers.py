"""Building blocks that the networks share: normalization, embeddings, residual blocks, attention."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import wide

__all__ = [
    "ClassEmbedding",
    "DenseBlock",
    "FourierFeatures",
    "ResidualBlock",
    "ResidualLevel",
    "SelfAttention",
    "TimeEmbedding",
    "Upsample",
    "check_event",
    "convolution",
    "group_norm",
    "pyramid",
    "sinusoidal",
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


def sinusoidal(t: Tensor, width: int, scale: float = 1000.0) -> Tensor:
    """cos and sin of scale t omega_k, omega_k = 10000^(-k / (width / 2)): (B,) to (B, width).

    `scale` maps t in [0, 1] to the thousand steps of Ho et al. 2020 (arXiv 2006.11239).
    """
    half = width // 2
    omega = torch.exp(torch.arange(half, device=t.device, dtype=t.dtype) * (-math.log(10000.0) / half))
    angle = (scale * t)[:, None] * omega
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """An MLP on sinusoids of t: (B,) or () in [0, 1], of any floating dtype and device, to (B, width).

    The batch size, device and dtype are those of the network, read off `x` and the weights. Raises ValueError for
    another shape or an integer dtype.
    """

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies - frequencies % 2
        self.first = nn.Linear(self.frequencies, width)
        self.last = nn.Linear(width, width)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        if t.ndim and t.shape != x.shape[:1]:
            raise ValueError(f"t must be (B,) or () in [0, 1] with B = {len(x)}; got shape {tuple(t.shape)}")
        if not t.is_floating_point():
            raise ValueError(f"t must be floating point in [0, 1]; got {t.dtype}")
        # sinusoids in float32: in bf16 a thousand times would share a few hundred values
        t = t.to(device=x.device, dtype=torch.float32).expand(len(x))
        return self.last(F.silu(self.first(sinusoidal(t, self.frequencies).to(self.first.weight.dtype))))


class ClassEmbedding(nn.Module):
    """A table of num_classes + 1 rows, the last for the null class: labels (B,) long to (B, width).

    cond=None means the null class for all, so the table is always in the graph (DistributedDataParallel needs every
    parameter). With num_classes=None there is no table, the result is None, and a cond is refused. Raises ValueError;
    that labels lie in 0..num_classes is left to the lookup, since checking would wait for the device at each step.
    """

    def __init__(self, num_classes: int | None, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = None if num_classes is None else nn.Embedding(num_classes + 1, width)

    def forward(self, cond: Tensor | None, x: Tensor) -> Tensor | None:
        if self.table is None or self.num_classes is None:
            if cond is None:
                return None
            got = "labels" if isinstance(cond, Tensor) else f"a {type(cond).__name__}"
            raise ValueError(f"cond must be None for a network built with num_classes=None; got {got}")
        if cond is None:
            cond = torch.full((len(x),), self.num_classes, device=x.device)
        elif not isinstance(cond, Tensor):
            raise ValueError(f"cond must be labels (B,) of dtype int64; got {type(cond).__name__}")
        elif cond.shape != x.shape[:1] or cond.dtype != torch.int64:
            got = f"got shape {tuple(cond.shape)} of dtype {cond.dtype}"
            raise ValueError(f"cond must be labels (B,) of dtype int64 with B = {len(x)}; {got}")
        return self.table(cond)


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
