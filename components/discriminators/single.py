"""Discriminators: x to logits, high for real. Without normalization over the batch, and twice differentiable for R1."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectral

from ..conditions import ClassEmbedding, TimeEmbedding
from ..layers import SLOPE, check_event, check_image_shape, pyramid
from ..precision import wide

__all__ = ["MLPDiscriminator", "MinibatchStd", "MultiScaleDiscriminator", "PatchDiscriminator", "ResidualDiscriminator"]


def _initialized(layer: nn.Module, spectral_norm: bool, slope: float = SLOPE) -> nn.Module:
    """The layer with He's initialization, which keeps the signal's size without normalization layers."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, a=slope)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    # torch's parametrization clones its vectors, so that several forwards may come before one backward
    return spectral(layer) if spectral_norm else layer


def _check_optional(name: str, value: Tensor | None, wanted: bool, switch: str) -> None:
    """Raises ValueError when an input is missing, or is there without a network built for it."""
    if wanted and value is None:
        raise ValueError(f"{name} must be given to a discriminator built with {switch}; got None")
    if not wanted and value is not None:
        raise ValueError(f"{name} must be None for a discriminator built without {switch}; got a tensor")


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


class _Block(nn.Module):
    """(skip(x) + conv(lrelu(conv(x) + time))) / sqrt 2, halved by average pooling: (B, C, H, W) to (B, D, H/2, W/2)."""

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
            h = h + self.adapt(embedding)[:, :, None, None]
        h = F.leaky_relu(self.conv2(F.leaky_relu(h, SLOPE)), SLOPE)
        return (self.skip(F.avg_pool2d(x, 2)) + F.avg_pool2d(h, 2)) / math.sqrt(2)


class MinibatchStd(nn.Module):
    """One more channel, that says how much the examples of a group differ: (B, C, ...) to (B, C + 1, ...).

    For a group of g examples, (1/d) Σ_i sqrt(var_i + 1e-8) over the d dimensions i of an example: a generator whose
    samples are all alike gives itself away. Karras et al. 2017, arXiv 1710.10196, section 3.

    The groups are consecutive examples, g the largest number that divides the batch and is at most `group`; so a batch
    divided among processes in multiples of `group` has the same groups, and nothing is communicated. A logit then
    depends on its whole group. Raises ValueError for group < 1, and for x without channels.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        if group < 1:
            raise ValueError(f"group must be at least 1; got {group}")
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or not len(x):
            raise ValueError(f"x must be (B, C, ...) with B >= 1; got shape {tuple(x.shape)}")
        group = next(g for g in range(min(self.group, len(x)), 0, -1) if len(x) % g == 0)
        variance = wide(x).unflatten(0, (-1, group)).var(1, correction=0)
        spread = (variance + 1e-8).sqrt().flatten(1).mean(1).repeat_interleave(group).to(x.dtype)
        return torch.cat([x, spread.view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])], dim=1)


class ResidualDiscriminator(nn.Module):
    """Residual blocks with average pooling, no normalization: images (B, C, H, W) to logits (B,), float32 or wider.

    After Karras et al. 2020 (arXiv 1912.04958, "resnet" discriminator).

    Arguments: width times `multipliers`, the channels at each resolution, finest first (1, 2, 4, 4, ... down to 4x4 by
    default); spectral_norm on every layer that x passes; timed, for x_t: t adds to every block and must be given;
    given_channels, of a second image (B, given_channels, H, W) that must be given and is concatenated, such as the x_t
    of a pair; num_classes, for the projection discriminator, cond=None being the null class; minibatch_std, to append
    MinibatchStd before the last convolution (a logit then depends on its group of at most four examples).

    Raises ValueError for another `shape`, for a t, given or cond that does not fit how it was built, or x not
    (B, *shape).
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
        multipliers, (h, w) = pyramid(shape, multipliers)
        widths = [width * m for m in multipliers]
        self.time = TimeEmbedding(4 * width) if timed else None
        self.first = _initialized(nn.Conv2d(shape[0] + given_channels, widths[0], 3, padding=1), spectral_norm)
        self.blocks = nn.ModuleList(
            _Block(a, b, 4 * width if timed else None, spectral_norm) for a, b in zip(widths, widths[1:])
        )
        self.spread = MinibatchStd() if minibatch_std else nn.Identity()
        self.conv = _initialized(nn.Conv2d(widths[-1] + minibatch_std, widths[-1], 3, padding=1), spectral_norm)
        self.adapt = nn.Linear(4 * width, widths[-1]) if timed else None
        self.dense = _initialized(nn.Linear(widths[-1] * h * w, widths[-1]), spectral_norm)
        self.last = _Projection(widths[-1], num_classes, spectral_norm)

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Logits (B,): x (B, C, H, W), t (B,) or () in [0, 1], cond (B,) long, given (B, given_channels, H, W)."""
        check_event("x", x, self.shape)
        _check_optional("t", t, self.time is not None, "timed=True")
        _check_optional("given", given, self.given_channels > 0, "given_channels > 0")
        embedding = None if self.time is None or t is None else F.silu(self.time(t, x))
        if given is not None:
            check_event("given", given, (self.given_channels, *self.shape[1:]))
            x = torch.cat([x, given], dim=1)
        h = F.leaky_relu(self.first(x), SLOPE)
        for block in self.blocks:
            h = block(h, embedding)
        h = self.conv(self.spread(h))
        if self.adapt is not None:
            h = h + self.adapt(embedding)[:, :, None, None]
        h = F.leaky_relu(self.dense(F.leaky_relu(h, SLOPE).flatten(1)), SLOPE)
        return self.last(h, cond)


class MLPDiscriminator(nn.Module):
    """A plain LeakyReLU MLP: (B, *features) to logits (B,), float32 or wider; with spectral_norm 1-Lipschitz in x.

    That bound holds for num_classes=None, up to the error of the power iteration. Arguments: features, an int or the
    shape of an event, an image's for one, which is flattened; depth, the number of hidden layers of `width`, each of
    which t adds to when timed; given_features, an int or a shape, of a second event that is concatenated; the others as
    in ResidualDiscriminator.

    Raises ValueError for a t, given or cond that does not fit how it was built, or x not (B, *features).
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
        self.layers = nn.ModuleList(_initialized(nn.Linear(n, width), spectral_norm) for n in inputs)
        self.adapt = nn.ModuleList(nn.Linear(embedding, width) for _ in inputs) if timed else None
        self.last = _Projection(width, num_classes, spectral_norm)

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Logits (B,): x (B, *features), t (B,) or () in [0, 1], cond (B,) long, given (B, *given_features)."""
        check_event("x", x, self.features)
        _check_optional("t", t, self.time is not None, "timed=True")
        _check_optional("given", given, math.prod(self.given) > 0, "given_features > 0")
        embedding = None if self.time is None or t is None else F.silu(self.time(t, x))
        x = x.flatten(1)
        if given is not None:
            check_event("given", given, self.given)
            x = torch.cat([x, given.flatten(1)], dim=1)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.adapt is not None:
                x = x + self.adapt[i](embedding)
            x = F.leaky_relu(x, SLOPE)
        return self.last(x, cond)


class PatchDiscriminator(nn.Module):
    """Strided convolutions that judge overlapping patches: (B, C, H, W) to logits (B, 1, H / 2^layers, W / 2^layers).

    After Isola et al. 2016 (arXiv 1611.07004), but for two things: no BatchNorm, so that a logit depends on its patch
    only; and 3x3 convolutions where the paper's 4x4 ones shrink the map, so that 8x8 images work. A logit sees a patch
    of side 7 * 2^layers - 2: 26 pixels for two layers.

    Arguments: width, the channels after the first layer, doubled by each one up to 8 times. Takes no t, cond or given.
    Raises ValueError for those, and for x not (B, channels, H, W) with sides divisible by 2^layers.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 2, spectral_norm: bool = False) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1; got {layers}")
        self.channels, self.factor = channels, 2**layers
        widths = [channels] + [width * min(2**i, 8) for i in range(layers)]
        convs = [nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, widths[1:])]
        convs.append(nn.Conv2d(widths[-1], width * min(2**layers, 8), 3, padding=1))
        self.convs = nn.ModuleList(_initialized(conv, spectral_norm) for conv in convs)
        self.last = _initialized(nn.Conv2d(width * min(2**layers, 8), 1, 3, padding=1), spectral_norm, slope=1.0)

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Logits (B, 1, H / 2^layers, W / 2^layers), float32 or wider, of x (B, C, H, W)."""
        for name, value in (("t", t), ("cond", cond), ("given", given)):
            if value is not None:
                raise ValueError(f"{name} must be None for a PatchDiscriminator; got a tensor")
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W divisible by {self.factor}; "
                f"got shape {tuple(x.shape)}"
            )
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        return wide(self.last(x))


class MultiScaleDiscriminator(nn.Module):
    """PatchDiscriminators on x, on x halved, on x halved twice, ...: (B, C, H, W) to logits (B, scales h w).

    h = H / 2^layers and w = W / 2^layers are the sides of the finest map. Coarser ones are repeated to it, so that the
    mean over logits weighs every scale alike, as the sum of losses does in Wang et al. 2017 (arXiv 1711.11585, section
    3.2); halving is average pooling. A gradient penalty, which sums logits, therefore counts a coarse logit 4^i times.

    Arguments: channels C; scales >= 1; width, layers and spectral_norm of each PatchDiscriminator. Takes no t, cond or
    given. Raises ValueError for those, and for x not (B, C, H, W) with sides divisible by 2^(layers + scales - 1).
    """

    def __init__(
        self, channels: int, scales: int = 2, width: int = 64, layers: int = 2, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"scales must be at least 1; got {scales}")
        self.channels, self.factor = channels, 2 ** (layers + scales - 1)
        self.scales = nn.ModuleList(PatchDiscriminator(channels, width, layers, spectral_norm) for _ in range(scales))

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Logits (B, scales H W / 4^layers), the finest scale first, row by row, of x (B, C, H, W)."""
        refuse(self, t=t, cond=cond, given=given)
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W divisible by {self.factor}; "
                f"got shape {tuple(x.shape)}"
            )
        logits = []
        for i, discriminator in enumerate(self.scales):
            of_scale = discriminator(F.avg_pool2d(x, 2**i) if i else x)
            logits.append(of_scale.repeat_interleave(2**i, dim=2).repeat_interleave(2**i, dim=3).flatten(1))
        return torch.cat(logits, dim=1)


def refuse(network: nn.Module, **inputs: Tensor | None) -> None:
    """Raises ValueError for an input that the network does not take."""
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(f"{name} must be None for a {type(network).__name__}; got a tensor")
