"""Discriminators: x to logits, high for real. Without normalization over the batch, and twice differentiable for R1."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectral

from ..conditions import ClassEmbedding, TimeEmbedding
from ..layers import SLOPE, Features, HiddenFeatures, check_event, check_image_shape, halved, pyramid
from ..precision import wide

__all__ = ["MLPDiscriminator", "MinibatchStd", "MultiScaleDiscriminator", "PatchDiscriminator", "ResidualDiscriminator"]


class ResidualDiscriminator(nn.Module):
    """Residual blocks with average pooling, no normalization: images (B, C, H, W) to logits (B,), float32 or wider.

    After Karras et al. 2020 (arXiv 1912.04958, "resnet" discriminator).

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, channels, h, w) at half the sides, rounded up, of
    the one before, then conv (B, channels, h, w) and dense (B, channels).

    Arguments:
        shape: (C, H, W) of x.
        width: channels, times `multipliers` at each resolution.
        multipliers: one for each resolution, finest first; 1, 2, 4, 4, ... down to a smallest side of 4 to 7 by
            default.
        spectral_norm: on every layer that x passes.
        timed: x is x_t, and t, which adds to every block, must be given.
        given_channels: of a second image, such as the x_t of a pair, that must be given and is concatenated.
        num_classes: for the projection discriminator, cond=None being the null class `num_classes`.
        minibatch_std: append MinibatchStd before the last convolution; a logit then depends on its group of at most
            four examples.
    Raises:
        ValueError: `shape` is not (C, H, W), or a side is below the down-sampling factor.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 64,
        multipliers: Sequence[int] | None = None,
        spectral_norm: bool = False,
        timed: bool = False,
        given_channels: int = 0,
        num_classes: int | None = None,
        minibatch_std: bool = False,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "MLPDiscriminator")
        self.shape, self.given_channels, self.num_classes = tuple(shape), given_channels, num_classes
        multipliers, (*_, (h, w)) = pyramid(shape, multipliers)
        widths = [width * m for m in multipliers]
        self.time = TimeEmbedding(4 * width) if timed else None
        self.first = _initialized(nn.Conv2d(shape[0] + given_channels, widths[0], 3, padding=1), spectral_norm)
        self.blocks = nn.ModuleList(
            _Block(a, b, 4 * width if timed else None, spectral_norm) for a, b in zip(widths, widths[1:])
        )
        self.layers = (*(f"block_{i}" for i in range(len(self.blocks))), "conv", "dense")
        self.minibatch_std = MinibatchStd() if minibatch_std else nn.Identity()
        self.conv = _initialized(nn.Conv2d(widths[-1] + minibatch_std, widths[-1], 3, padding=1), spectral_norm)
        self.adapt = nn.Linear(4 * width, widths[-1]) if timed else None
        self.dense = _initialized(nn.Linear(widths[-1] * h * w, widths[-1]), spectral_norm)
        self.last = _Projection(widths[-1], num_classes, spectral_norm)

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        cond: Tensor | None = None,
        given: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B,); with `hidden`, (logits, features by name).

        Arguments:
            x: (B, C, H, W).
            t: (B,) or () in [0, 1], with timed only.
            cond: labels (B,) int64, or None for the null class.
            given: (B, given_channels, H, W), with given_channels only.
            hidden: names out of `layers`.
        Raises:
            ValueError: x is not (B, *shape), t, given or cond does not fit how the network was built, or a name in
                `hidden` is unknown.
        """
        check_event("x", x, self.shape)
        _check_optional("t", t, self.time is not None, "timed=True")
        _check_optional("given", given, self.given_channels > 0, "given_channels > 0")
        features = HiddenFeatures(self.layers, hidden)
        embedding = None if self.time is None or t is None else F.silu(self.time(t, x))
        if given is not None:
            check_event("given", given, (self.given_channels, *self.shape[1:]))
            x = torch.cat([x, given], dim=1)
        h = F.leaky_relu(self.first(x), SLOPE)
        for name, block in zip(self.layers, self.blocks):
            h = features.record(name, block(h, embedding))
        h = self.conv(self.minibatch_std(h))
        if self.adapt is not None:
            h = h + rearrange(self.adapt(embedding), "b c -> b c 1 1")
        h = features.record("conv", F.leaky_relu(h, SLOPE))
        h = features.record("dense", F.leaky_relu(self.dense(h.flatten(1)), SLOPE))
        return features.beside(self.last(h, cond))


class MLPDiscriminator(nn.Module):
    """A plain LeakyReLU MLP: (B, *features) to logits (B,), float32 or wider.

    With spectral_norm and without classes it is 1-Lipschitz in x, up to the error of the power iteration.

    `layers`, its hidden layers, are block_0, block_1, ..., each (B, width).

    Arguments:
        features: an int, or the shape of an event, such as an image's, which is flattened.
        width: features of each hidden layer.
        depth: the number of hidden layers, at least 1.
        spectral_norm: on every layer that x passes.
        timed: x is x_t, and t, which adds to every hidden layer, must be given.
        given_features: an int or a shape, of a second event that must be given and is concatenated.
        num_classes: for the projection discriminator, cond=None being the null class `num_classes`.
    Raises:
        ValueError: depth is below 1.
    """

    def __init__(
        self,
        features: int | tuple[int, ...],
        width: int = 256,
        depth: int = 3,
        spectral_norm: bool = False,
        timed: bool = False,
        given_features: int | tuple[int, ...] = 0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        self.features = (features,) if isinstance(features, int) else features
        self.given = (given_features,) if isinstance(given_features, int) else given_features
        self.num_classes = num_classes
        inputs = [math.prod(self.features) + math.prod(self.given)] + [width] * (depth - 1)
        # t is one of few: an embedding as wide as the layers was half of the network's operations (docs/connections.md)
        embedding = min(width, 128)
        self.time = TimeEmbedding(embedding) if timed else None
        self.blocks = nn.ModuleList(_initialized(nn.Linear(n, width), spectral_norm) for n in inputs)
        self.layers = tuple(f"block_{i}" for i in range(depth))
        self.adapt = nn.ModuleList(nn.Linear(embedding, width) for _ in inputs) if timed else None
        self.last = _Projection(width, num_classes, spectral_norm)

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        cond: Tensor | None = None,
        given: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B,) of x (B, *features) and given (B, *given_features); the rest as ResidualDiscriminator."""
        check_event("x", x, self.features)
        _check_optional("t", t, self.time is not None, "timed=True")
        _check_optional("given", given, math.prod(self.given) > 0, "given_features > 0")
        features = HiddenFeatures(self.layers, hidden)
        embedding = None if self.time is None or t is None else F.silu(self.time(t, x))
        h = x.flatten(1)
        if given is not None:
            check_event("given", given, self.given)
            h = torch.cat([h, given.flatten(1)], dim=1)
        for i, (name, linear) in enumerate(zip(self.layers, self.blocks)):
            h = linear(h)
            if self.adapt is not None:
                h = h + self.adapt[i](embedding)
            h = features.record(name, F.leaky_relu(h, SLOPE))
        return features.beside(self.last(h, cond))


class PatchDiscriminator(nn.Module):
    """Strided convolutions with a logit for each overlapping patch: (B, C, H, W) to (B, 1, h, w).

    h = ⌊H / 2^depth⌋ and w = ⌊W / 2^depth⌋: a strided convolution reads an odd side to its last row or column.

    After Isola et al. 2016 (arXiv 1611.07004), with two differences: no BatchNorm, so that a logit depends on its patch
    only; and 3x3 convolutions where the paper's 4x4 ones reduce the map, so that 8x8 images work. A logit depends on a
    patch of side 7 * 2^depth - 2: 26 pixels for two strided convolutions.

    `layers`, its hidden layers, are conv_0, ..., conv_depth, each (B, channels, h, w); the last is not strided.

    Arguments:
        channels: C of x.
        width: channels after the first convolution, doubled by each one up to 8 times.
        depth: the number of strided convolutions, at least 1.
        spectral_norm: on every convolution.
    Raises:
        ValueError: depth is below 1.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = 2, spectral_norm: bool = False) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        self.channels, self.factor = channels, 2**depth
        widths = [channels] + [width * min(2**i, 8) for i in range(depth)]
        convs = [nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, widths[1:])]
        convs.append(nn.Conv2d(widths[-1], width * min(2**depth, 8), 3, padding=1))
        self.convs = nn.ModuleList(_initialized(conv, spectral_norm) for conv in convs)
        self.layers = tuple(f"conv_{i}" for i in range(len(convs)))
        self.last = _initialized(nn.Conv2d(width * min(2**depth, 8), 1, 3, padding=1), spectral_norm, slope=1.0)

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        cond: Tensor | None = None,
        given: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, 1, h, w), float32 or wider; with `hidden`, (logits, features by name).

        Arguments:
            x: (B, C, H, W) with sides of at least 2^depth.
            t, cond, given: None.
            hidden: names out of `layers`.
        Raises:
            ValueError: x has another shape, t, cond or given is not None, or a name in `hidden` is unknown.
        """
        refuse(self, t=t, cond=cond, given=given)
        _check_sides(x, self.channels, self.factor)
        features = HiddenFeatures(self.layers, hidden)
        h = x
        for name, conv in zip(self.layers, self.convs):
            h = features.record(name, F.leaky_relu(conv(h), SLOPE))
        return features.beside(wide(self.last(h)))


class MultiScaleDiscriminator(nn.Module):
    """PatchDiscriminators on x, on x halved, on x halved twice, ...: (B, C, H, W) to logits (B, scales h w).

    h = ⌊H / 2^depth⌋ and w = ⌊W / 2^depth⌋ are the sides of the finest map. Coarser maps are resized to it by nearest
    neighbours, so that all scales have equal weight in the mean over logits, as in the sum of losses of Wang et al.
    2017 (arXiv 1711.11585, section 3.2); halving is average pooling, rounding sides up. A gradient penalty sums logits,
    and so counts a coarse logit 4^i times.

    `layers`, its hidden layers, are those of each PatchDiscriminator: scale_0.conv_0, ..., scale_1.conv_0, ...

    Arguments:
        channels: C of x.
        scales: the number of PatchDiscriminators, at least 1.
        width, depth, spectral_norm: of each PatchDiscriminator.
    Raises:
        ValueError: scales or depth is below 1.
    """

    def __init__(
        self, channels: int, scales: int = 2, width: int = 64, depth: int = 2, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"scales must be at least 1; got {scales}")
        self.channels, self.depth, self.factor = channels, depth, 2 ** (depth + scales - 1)
        patches = [PatchDiscriminator(channels, width, depth, spectral_norm) for _ in range(scales)]
        self.layers = tuple(f"scale_{i}.{name}" for i, patch in enumerate(patches) for name in patch.layers)
        self.scales = nn.ModuleList(patches)

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        cond: Tensor | None = None,
        given: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, scales h w), finest scale first, row by row; with `hidden`, also the features.

        Arguments:
            x: (B, C, H, W) with sides of at least 2^(depth + scales - 1).
            t, cond, given: None.
            hidden: names out of `layers`.
        Raises:
            ValueError: x has another shape, t, cond or given is not None, or a name in `hidden` is unknown.
        """
        refuse(self, t=t, cond=cond, given=given)
        _check_sides(x, self.channels, self.factor)
        features = HiddenFeatures(self.layers, hidden)
        logits = []
        finest = [side >> self.depth for side in x.shape[2:]]
        for i, patch in enumerate(self.scales):
            prefix = f"scale_{i}."
            inner = [name.removeprefix(prefix) for name in hidden if name.startswith(prefix)]
            out = patch(F.avg_pool2d(x, 2**i, ceil_mode=True) if i else x, hidden=inner)
            if inner:
                out, of_scale = out
                for name, h in of_scale.items():
                    features.record(prefix + name, h)
            logits.append(F.interpolate(out, finest, mode="nearest").flatten(1))
        return features.beside(torch.cat(logits, dim=1))


class MinibatchStd(nn.Module):
    """Append one channel with the standard deviation within a group of examples: (B, C, ...) to (B, C + 1, ...).

    For a group of g examples it is (1/d) Σ_i √(var_i + 1e-8) over the d dimensions i of an example, near 0 where the
    generator's samples are nearly equal. Karras et al. 2017, arXiv 1710.10196, section 3.

    The groups are consecutive examples, g the largest number that divides the batch and is at most `group`; so a batch
    divided among processes in multiples of `group` has the same groups, and nothing is communicated. A logit then
    depends on its whole group.

    Arguments:
        group: at least 1.
    Raises:
        ValueError: group is below 1.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        if group < 1:
            raise ValueError(f"group must be at least 1; got {group}")
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C + 1, ...) of x (B, C, ...), B >= 1; raises ValueError for another shape."""
        if x.ndim < 2 or not len(x):
            raise ValueError(f"x must be (B, C, ...) with B >= 1; got shape {tuple(x.shape)}")
        group = next(g for g in range(min(self.group, len(x)), 0, -1) if len(x) % g == 0)
        variance = rearrange(wide(x), "(n g) ... -> n g ...", g=group).var(1, correction=0)
        deviation = (variance + 1e-8).sqrt().flatten(1).mean(1).to(x.dtype)
        channel = repeat(deviation, "n -> (n g) 1" + " 1" * (x.ndim - 2), g=group)
        return torch.cat([x, channel.expand(-1, -1, *x.shape[2:])], dim=1)


class _Block(nn.Module):
    """(skip(x) + conv(lrelu(conv(x) + time))) / sqrt 2, its sides halved, rounding up: (B, C, H, W) to (B, D, h, w)."""

    def __init__(self, inputs: int, outputs: int, embedding: int | None, spectral_norm: bool) -> None:
        super().__init__()
        self.conv1 = _initialized(nn.Conv2d(inputs, inputs, 3, padding=1), spectral_norm)
        self.conv2 = _initialized(nn.Conv2d(inputs, outputs, 3, padding=1), spectral_norm)
        self.skip = _initialized(nn.Conv2d(inputs, outputs, 1, bias=False), spectral_norm, slope=1.0)
        # the time enters by addition only, so it leaves the Lipschitz constant in x alone: no spectral norm
        self.adapt = None if embedding is None else nn.Linear(embedding, inputs)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.conv1(x)
        if self.adapt is not None:
            h = h + rearrange(self.adapt(embedding), "b c -> b c 1 1")
        h = F.leaky_relu(self.conv2(F.leaky_relu(h, SLOPE)), SLOPE)
        return (self.skip(halved(x)) + halved(h)) / math.sqrt(2)


class _Projection(nn.Module):
    """The logit linear(h) + <embedding(cond), h>: (B, features) to (B,) (Miyato and Koyama 2018, arXiv 1802.05637)."""

    def __init__(self, features: int, num_classes: int | None, spectral_norm: bool) -> None:
        super().__init__()
        self.linear = _initialized(nn.Linear(features, 1), spectral_norm, slope=1.0)
        self.label = ClassEmbedding(num_classes, features)
        if self.label.table is not None:
            nn.init.normal_(self.label.table.weight, std=1 / math.sqrt(features))  # as large as the linear's weights
            _initialized(self.label.table, spectral_norm)

    def forward(self, h: Tensor, cond: Tensor | None) -> Tensor:
        logits = wide(self.linear(h)[:, 0])
        label = self.label(cond, h)
        return logits if label is None else logits + (wide(label) * wide(h)).sum(1)


def _initialized(layer: nn.Module, spectral_norm: bool, slope: float = SLOPE) -> nn.Module:
    """Return the layer with He's initialization, which keeps the signal's size without normalization layers."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, a=slope)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    # torch's parametrization clones its vectors, so that several forwards can precede one backward
    return spectral(layer) if spectral_norm else layer


def _check_optional(name: str, value: Tensor | None, wanted: bool, switch: str) -> None:
    """Raise ValueError where an input is missing, or is given to a network built without it."""
    if wanted and value is None:
        raise ValueError(f"{name} must be given to a discriminator built with {switch}; got None")
    if not wanted and value is not None:
        raise ValueError(f"{name} must be None for a discriminator built without {switch}; got a tensor")


def refuse(network: nn.Module, **inputs: Tensor | None) -> None:
    """Raise ValueError for an input that the network does not take."""
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(f"{name} must be None for a {type(network).__name__}; got a tensor")


def _check_sides(x: Tensor, channels: int, factor: int) -> None:
    """Raise ValueError unless x is (B, channels, H, W) with sides of at least `factor`."""
    if x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < factor:
        raise ValueError(
            f"x must be (B, {channels}, H, W) with H and W at least {factor} (in a recipe --resolution); got shape "
            f"{tuple(x.shape)}"
        )
