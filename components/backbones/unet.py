"""Backbones: networks (x_t, t, cond) to a tensor, for denoisers on images, on sequences and on vectors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import Condition, Context, TimeAndLabel
from ..layers import (
    Attention,
    FourierFeatures,
    ResidualBlock,
    SelfAttention,
    Upsample,
    check_event,
    convolution,
    group_norm,
    pyramid,
    zeroed,
)

__all__ = ["UNet"]


class _CrossAttention(nn.Module):
    """x + attention of its places to a context (B, M, features): (B, C, ...) to the same, at first x."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        heads = next(h for h in range(-(-channels // 64), channels + 1) if channels % h == 0)
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads, features, zero=True)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.attention(self.norm(x).flatten(2).transpose(1, 2), context, mask)
        return x + h.transpose(1, 2).reshape(x.shape)


class _Step(nn.Module):
    """A residual block, then, where wanted, self-attention, then, where there is a context, cross-attention."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool, context: int | None, dims: int
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, embedding, dropout, dims)
        self.attention = SelfAttention(outputs, dims) if attention else nn.Identity()
        self.cross = _CrossAttention(outputs, context) if attention and context is not None else None

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.attention(self.block(x, embedding))
        return h if self.cross is None or context is None else self.cross(h, context, mask)


class UNet(nn.Module):
    """A U-Net of residual blocks adapted by time and label: x_t (B, C, H, W) to (B, out_channels, H, W), at first zero.

    With shape = (C, L) it is one of sequences, x_t (B, C, L) to (B, out_channels, L), all else alike. After Ho et al.
    2020 (arXiv 2006.11239) with the adaptive norms of Dhariwal and Nichol 2021 (arXiv 2105.05233).

    Arguments: shape, (C, H, W) or (C, L); width times `multipliers`, the channels at each resolution, finest first;
    blocks, residual blocks at each resolution, both ways; attention, the heights H, or lengths L, at which every block
    is followed by self-attention, the lowest by default and () for none (the middle has it where the lowest resolution
    has it); dropout, within each block; num_classes, for cond as labels
    (B,), None being the null class; or context F, for cond as tokens and mask ((B, L, F), (B, L) bool), True where
    there is a token, and cross-attention after every self-attention (Rombach et al. 2022, arXiv 2112.10752), None being
    a learned null token; out_channels, C by default; fourier, octaves of FourierFeatures appended to x_t;
    self_condition, to take an earlier estimate of x as well, zeros by default (Chen et al. 2022, arXiv 2208.04202,
    section 3.2).

    Raises ValueError when `shape` is neither, or its sides do not divide by 2^(len(multipliers) - 1), attention names
    another height, both num_classes and context are given, there is a context but no attention, x_t is not (B, *shape),
    or t, cond or estimate does not fit.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] | tuple[int, int],
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] | None = None,
        dropout: float = 0.0,
        num_classes: int | None = None,
        out_channels: int | None = None,
        fourier: Sequence[int] | None = None,
        context: int | None = None,
        self_condition: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.num_classes, self.self_condition = tuple(shape), num_classes, self_condition
        dims = len(shape) - 1
        if dims not in (1, 2):
            raise ValueError(f"shape must be (C, H, W) or (C, L); got {self.shape}")
        pyramid(shape, multipliers)  # refuses sides that do not divide
        heights = [shape[1] >> i for i in range(len(multipliers))]
        attention = heights[-1:] if attention is None else attention
        if not set(attention) <= set(heights):
            sides = "heights" if dims == 2 else "lengths"
            raise ValueError(f"attention must name {sides} out of {heights}; got {tuple(attention)}")
        if context is not None and (num_classes is not None or not attention):
            raise ValueError(
                f"context needs num_classes=None and attention at one height at least; "
                f"got num_classes={num_classes} and attention={tuple(attention)}"
            )
        embedding = 4 * width
        self.embedding = TimeAndLabel(embedding, width, num_classes)
        self.context = None if context is None else Context(context)
        self.fourier = FourierFeatures(fourier)
        channels = width * multipliers[0]
        self.first = convolution(shape[0] * (self.fourier.factor + self_condition), channels, 3, dims)
        skips: list[int] = []
        self.blocks = blocks
        self.down, self.up, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

        def step(inputs: int, outputs: int, attend: bool) -> _Step:
            return _Step(inputs, outputs, embedding, dropout, attend, context, dims)

        for height, multiplier in zip(heights, multipliers):
            for _ in range(blocks):
                self.down.append(step(channels, width * multiplier, height in attention))
                channels = width * multiplier
                skips.append(channels)
        self.middle = nn.ModuleList(
            step(channels, channels, attend and heights[-1] in attention) for attend in (True, False)
        )
        for i, (height, multiplier) in enumerate(zip(reversed(heights), reversed(multipliers))):
            self.ups.append(Upsample(channels, dims) if i else nn.Identity())
            for _ in range(blocks):
                self.up.append(step(channels + skips.pop(), width * multiplier, height in attention))
                channels = width * multiplier
        self.norm = group_norm(channels)
        self.last = zeroed(convolution(channels, out_channels or shape[0], 3, dims))
        self.halve = F.avg_pool1d if dims == 1 else F.avg_pool2d

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None, estimate: Tensor | None = None) -> Tensor:
        """(B, out_channels, ...): x_t (B, *shape), t (B,) or () in [0, 1], cond as the network was built, or None.

        estimate, of x, is like x_t, or None for zeros.
        """
        check_event("x_t", x_t, self.shape)
        words: Tensor | None = None
        mask: Tensor | None = None
        if self.context is not None:
            words, mask = self.context(cond, x_t)
            cond = None
        embedding = self.embedding(t, cond, x_t)
        h = self.fourier(x_t)
        if estimate is not None:
            if not self.self_condition:
                raise ValueError("estimate must be None for a network built without self_condition=True; got a tensor")
            check_event("estimate", estimate, self.shape)
        if self.self_condition:
            h = torch.cat([h, torch.zeros_like(x_t) if estimate is None else estimate.to(x_t.dtype)], dim=1)
        h = self.first(h)
        skips = []
        for i, step in enumerate(self.down):
            h = step(self.halve(h, 2) if i and i % self.blocks == 0 else h, embedding, words, mask)
            skips.append(h)
        for step in self.middle:
            h = step(h, embedding, words, mask)
        for i, step in enumerate(self.up):
            if i % self.blocks == 0:
                h = self.ups[i // self.blocks](h)
            h = step(torch.cat([h, skips.pop()], dim=1), embedding, words, mask)
        return self.last(F.silu(self.norm(h)))
