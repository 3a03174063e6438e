"""A U-Net: a backbone (x_t, t, cond) to a tensor, on images and on sequences."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..conditions import Condition, Context, TimeAndLabel
from ..layers import (
    Attention,
    Features,
    FourierFeatures,
    HiddenFeatures,
    ResidualBlock,
    SelfAttention,
    Upsample,
    check_event,
    convolution,
    group_norm,
    halved,
    halvings,
    heads_of,
    pyramid,
    zeroed,
)

__all__ = ["UNet", "multipliers_to"]


class UNet(nn.Module):
    """A U-Net of residual blocks adapted by time and label: x_t (B, C, H, W) to (B, out_channels, H, W), at first zero.

    With shape = (C, L) it is a U-Net of sequences, x_t (B, C, L) to (B, out_channels, L). After Ho et al.
    2020 (arXiv 2006.11239) with the adaptive norms of Dhariwal and Nichol 2021 (arXiv 2105.05233).

    `layers`, its hidden layers, are down_0, down_1, ... of the residual blocks on the way down, middle, and up_0, up_1,
    ... of those on the way up; each feature is (B, channels, ...) with the sides of its resolution.

    Arguments:
        shape: (C, H, W) or (C, L) of x_t, with sides of at least 2^(len(multipliers) - 1). Resolution i has the sides
            divided by 2^i, rounded up.
        width: channels, times `multipliers` at each resolution.
        multipliers: one for each resolution, finest first.
        blocks: residual blocks at each resolution, both ways.
        attention: heights H, or lengths L, at which every block is followed by self-attention: the lowest by default,
            () for none. The middle has it where the lowest resolution has it.
        dropout: probability in [0, 1) within each block.
        num_classes: for cond as labels (B,), the null class being `num_classes`.
        out_channels: of the output, C by default.
        fourier: octaves of FourierFeatures appended to x_t, or None for none.
        context: F, for cond as tokens and mask, and cross-attention after every self-attention (Rombach et al. 2022,
            arXiv 2112.10752); cond=None is a learned null token. Not together with num_classes.
        self_condition: take an earlier estimate of x as well, zeros by default (Chen et al. 2022, arXiv 2208.04202,
            section 3.2).
    Raises:
        ValueError: `shape` has other dimensions or a smaller side; attention names another height; context comes with
            num_classes or without attention.
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
        if len(shape) not in (2, 3):
            raise ValueError(f"shape must be (C, H, W) or (C, L); got {self.shape}")
        multipliers, sides = pyramid(shape, multipliers)
        heights = [height for height, *_ in sides]
        attention = heights[-1:] if attention is None else attention
        _check(shape, heights, attention, num_classes, context)
        dims, embedding = len(shape) - 1, 4 * width
        self.embedding = TimeAndLabel(embedding, width, num_classes)
        self.context = None if context is None else Context(context)
        self.fourier = FourierFeatures(fourier)
        channels = width * multipliers[0]
        self.first = convolution(shape[0] * (self.fourier.factor + self_condition), channels, 3, dims)
        skips: list[int] = []
        self.blocks = blocks
        self.down, self.up, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

        def block(inputs: int, outputs: int, attend: bool) -> _Block:
            return _Block(inputs, outputs, embedding, dropout, attend, context, dims)

        for height, multiplier in zip(heights, multipliers):
            for _ in range(blocks):
                self.down.append(block(channels, width * multiplier, height in attention))
                channels = width * multiplier
                skips.append(channels)
        self.middle = nn.ModuleList(
            block(channels, channels, attend and heights[-1] in attention) for attend in (True, False)
        )
        for i, (at, height, multiplier) in enumerate(zip(sides[::-1], heights[::-1], multipliers[::-1])):
            self.ups.append(Upsample(channels, dims, at) if i else nn.Identity())
            for _ in range(blocks):
                self.up.append(block(channels + skips.pop(), width * multiplier, height in attention))
                channels = width * multiplier
        indices = range(len(self.down))
        self.layers = (*(f"down_{i}" for i in indices), "middle", *(f"up_{i}" for i in indices))
        self.norm = group_norm(channels)
        self.last = zeroed(convolution(channels, out_channels or shape[0], 3, dims))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        estimate: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return the output (B, out_channels, ...); with `hidden`, (output, features by name).

        Arguments:
            x_t: (B, *shape).
            t: (B,) or () in [0, 1].
            cond: labels (B,) int64, or (tokens (B, L, F), mask (B, L) bool, True where there is a token), as the
                network was built; None for the null condition.
            estimate: of x, (B, *shape), or None for zeros; with self_condition only.
            hidden: names out of `layers`.
        Raises:
            ValueError: x_t or estimate is not (B, *shape), t or cond does not fit, an estimate comes without
                self_condition, or a name in `hidden` is unknown.
        """
        check_event("x_t", x_t, self.shape)
        features = HiddenFeatures(self.layers, hidden)
        context: Tensor | None = None
        mask: Tensor | None = None
        if self.context is not None:
            context, mask = self.context(cond, x_t)
            cond = None
        embedding = self.embedding(t, cond, x_t)
        h = self.first(self._input(x_t, estimate))
        skips = []
        for i, block in enumerate(self.down):
            h = block(halved(h) if i and i % self.blocks == 0 else h, embedding, context, mask)
            skips.append(features.record(f"down_{i}", h))
        for block in self.middle:
            h = block(h, embedding, context, mask)
        features.record("middle", h)
        for i, block in enumerate(self.up):
            if i % self.blocks == 0:
                h = self.ups[i // self.blocks](h)
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, context, mask)
            features.record(f"up_{i}", h)
        return features.beside(self.last(F.silu(self.norm(h))))

    def _input(self, x_t: Tensor, estimate: Tensor | None) -> Tensor:
        """Return x_t with its Fourier features and, with self_condition, the estimate appended."""
        h = self.fourier(x_t)
        if estimate is not None:
            if not self.self_condition:
                raise ValueError("estimate must be None for a network built without self_condition=True; got a tensor")
            check_event("estimate", estimate, self.shape)
        if not self.self_condition:
            return h
        return torch.cat([h, torch.zeros_like(x_t) if estimate is None else estimate.to(x_t.dtype)], dim=1)


def _check(
    shape: tuple[int, ...],
    heights: Sequence[int],
    attention: Sequence[int],
    num_classes: int | None,
    context: int | None,
) -> None:
    """Raise ValueError for arguments of a UNet that do not fit together; `heights` are those of its resolutions."""
    if not set(attention) <= set(heights):
        sides = "heights" if len(shape) == 3 else "lengths"
        raise ValueError(f"attention must name {sides} out of {list(heights)}; got {tuple(attention)}")
    if context is not None and (num_classes is not None or not attention):
        raise ValueError(
            f"context needs num_classes=None and attention at one height at least; "
            f"got num_classes={num_classes} and attention={tuple(attention)}"
        )


class _CrossAttention(nn.Module):
    """x + attention of its positions to a context (B, M, features): (B, C, ...) to the same, at first x."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads_of(channels), features, zero=True)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.attention(rearrange(self.norm(x), "b c ... -> b (...) c"), context, mask)
        return x + rearrange(h, "b n c -> b c n").reshape(x.shape)


class _Block(nn.Module):
    """A residual block; with `attention` also self-attention, and cross-attention where there is a context."""

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


def multipliers_to(side: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return multipliers 1, 2, 2, ... of a U-Net whose lowest resolution has a smallest side in [side, 2 side).

    Arguments:
        side: such as 4.
        shape: (C, H, W) or (C, L) of x_t.
    """
    return (1, *[2] * halvings(shape, side))
