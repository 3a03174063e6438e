"""Generators: decoders without normalization, made for adversarial games: z (B, latent) to a distribution."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..conditions import ClassEmbedding
from ..distributions import Distribution
from ..layers import SLOPE, check_event, check_image_shape, cropped, pyramid, zeroed
from ..precision import full_precision, wide
from .heads import DeltaHead, Head

__all__ = ["ModulatedConv", "ResidualGenerator", "Resampling", "StyleGenerator"]

Resampling = Literal["bilinear", "nearest"]


class ResidualGenerator(nn.Module):
    """Residual blocks without normalization: z (B, latent) to a distribution over (B, C, H, W).

    In the manner of R3GAN's generator (Huang et al. 2024, arXiv 2501.05441): a learned 4x4 basis times a linear map of
    z and label; at each resolution `blocks` fix-up blocks; interpolation between them, with a 1x1 convolution where the
    width changes; a 1x1 convolution at the end, and no tanh. As every block starts as the identity, the raw output
    is at first linear in z. `last` is the last layer with parameters.

    Arguments:
        latent: features of z.
        shape: (C, H, W) of x.
        head: turns the last features into a distribution; by default the point itself, DeltaHead(bounded=False).
        width: channels, times `multipliers` at each resolution.
        multipliers: finest resolution first as for ResidualDecoder, so the lowest is 4x4 for powers of two.
        blocks: residual blocks at each resolution.
        groups: for bottleneck blocks of a grouped 3x3 convolution of twice the channels, as the paper's; None for two
            plain 3x3 ones.
        resampling: "bilinear" or "nearest".
        num_classes: for labels, whose embedding is concatenated to z, cond=None being the null class.
    Raises:
        ValueError: `shape` is not (C, H, W) or a side is below the down-sampling factor, groups does not divide the
            channels, or resampling is another.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, int, int],
        head: Head | None = None,
        width: int = 64,
        multipliers: Sequence[int] | None = None,
        blocks: int = 2,
        groups: int | None = None,
        resampling: Resampling = "bilinear",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_image_shape(shape, "MLPDecoder")
        self.head: Head = DeltaHead(bounded=False) if head is None else head
        self.latent, self.shape, self.num_classes, self.resampling = latent, tuple(shape), num_classes, resampling
        multipliers, sides = pyramid(shape, multipliers)
        (h, w), self.sides = sides[-1], sides[::-1]
        widths = [width * m for m in reversed(multipliers)]
        _check(widths, groups, resampling)
        self.label = ClassEmbedding(num_classes, latent)
        self.basis = nn.Parameter(torch.randn(widths[0], h, w))
        # z and a label have unit variance, and so has the trunk: no nonlinearity comes before the first block
        inputs = latent if num_classes is None else 2 * latent
        self.first = _scaled(nn.Linear(inputs, widths[0]), slope=1.0)
        self.changes = nn.ModuleList(
            nn.Identity() if a == b else _scaled(nn.Conv2d(a, b, 1, bias=False), slope=1.0)
            for a, b in zip([widths[0], *widths], widths)
        )
        branches = blocks * len(widths)
        self.levels = nn.ModuleList(
            nn.Sequential(*(_Block(c, groups, branches) for _ in range(blocks))) for c in widths
        )
        self.last = _scaled(nn.Conv2d(widths[-1], self.head.factor * shape[0], 1), slope=1.0)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z).

        Arguments:
            z: (B, latent).
            cond: labels (B,) int64, or None for the null class.
        Raises:
            ValueError: z is not (B, latent), or cond does not fit.
        """
        check_event("z", z, (self.latent,))
        label = self.label(cond, z)
        style = self.first(z if label is None else torch.cat([z, label], dim=1))
        h = self.basis * rearrange(style, "b c -> b c 1 1")
        for i, level in enumerate(self.levels):
            h = level(_doubled(self.changes[i](h), self.resampling, self.sides[i]) if i else h)
        return self.head(self.last(h))


class ModulatedConv(nn.Module):
    """A convolution whose weights are scaled by a style: (B, inputs, H, W), (B, inputs) to (B, outputs, H, W).

        w'_oik = s_i w_oik,        with demodulation w''_oik = w'_oik / √(Σ_ik w'_oik² + 1e-8)

    for each example its own: with inputs of unit variance and no correlation the outputs have them, too. Computed as
    the scaling of inputs and outputs around one common convolution. Karras et al. 2020, arXiv 1912.04958, eqs. 1 and 3.

    Arguments:
        inputs, outputs: channels.
        kernel: the side of the kernel, odd.
        demodulate: divide by the norm as above.
    Raises:
        ValueError: kernel is even.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd; got {kernel}")
        self.inputs, self.demodulate = inputs, demodulate
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, outputs, H, W) of x (B, inputs, H, W); raises ValueError for a style that is not (B, inputs)."""
        if style.shape != (len(x), self.inputs):
            raise ValueError(f"style must be ({len(x)}, {self.inputs}); got shape {tuple(style.shape)}")
        scale = rearrange(style, "b c -> b c 1 1").to(x.dtype)
        h = F.conv2d(x * scale, self.weight, padding=self.weight.shape[2] // 2)
        if self.demodulate:
            h = h * rearrange(self._demodulation(style), "b c -> b c 1 1").to(h.dtype)
        return h + rearrange(self.bias, "c -> c 1 1").to(h.dtype)

    @full_precision()
    def _demodulation(self, style: Tensor) -> Tensor:
        """Return 1 / √(Σ_ik w'_oik² + 1e-8) (B, outputs), in float32: squares of bf16 keep two digits."""
        return (wide(style).square() @ wide(self.weight).square().sum((2, 3)).T + 1e-8).rsqrt()


class StyleGenerator(nn.Module):
    """A mapping network and modulated convolutions: z (B, latent) to a distribution over (B, C, H, W).

    z / rms(z) goes through an MLP to w; an affine map of w styles each convolution on a learned constant, two at each
    resolution; at each, one more adds to the image, doubled from resolution to resolution. Karras et al. 2020, arXiv
    1912.04958, figures 2c and 7 ("skip"). Left out: the noise inputs, so that z alone decides what is drawn; equalized
    learning rates (there the mapping network learns 100 times slower than the rest); path regularization. `last` is the
    layer that computes the finest image.

    Arguments:
        latent, shape, head, width, multipliers: as for ResidualGenerator.
        depth: the number of linear layers of the mapping network, at least 1.
        num_classes: for labels, whose embedding is normalized like z and concatenated, cond=None being the null class.
    Raises:
        ValueError: `shape` is not (C, H, W) or a side is below the down-sampling factor, or depth is below 1.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, int, int],
        head: Head | None = None,
        width: int = 64,
        multipliers: Sequence[int] | None = None,
        depth: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        check_image_shape(shape, "MLPDecoder")
        self.head: Head = DeltaHead(bounded=False) if head is None else head
        self.latent, self.shape, self.num_classes = latent, tuple(shape), num_classes
        multipliers, sides = pyramid(shape, multipliers)
        (h, w), self.sides = sides[-1], sides[::-1]
        widths = [width * m for m in reversed(multipliers)]
        self.label = ClassEmbedding(num_classes, latent)
        inputs = [latent if num_classes is None else 2 * latent] + [latent] * (depth - 1)
        self.mapping = nn.ModuleList(_scaled(nn.Linear(n, latent)) for n in inputs)
        self.constant = nn.Parameter(torch.randn(widths[0], h, w))
        pairs = [pair for a, b in zip([widths[0], *widths], widths) for pair in ((a, b), (b, b))]
        self.convs = nn.ModuleList(ModulatedConv(a, b) for a, b in pairs)
        self.styles = nn.ModuleList(self._style(a) for a, _ in pairs)
        raw = self.head.factor * shape[0]
        self.images = nn.ModuleList(ModulatedConv(c, raw, kernel=1, demodulate=False) for c in widths)
        self.image_styles = nn.ModuleList(self._style(c) for c in widths)

    def _style(self, channels: int) -> nn.Linear:
        """Return a layer of w (B, latent) to a style (B, channels), at first about 1."""
        layer = nn.Linear(self.latent, channels)
        _scaled(layer, slope=1.0)
        nn.init.ones_(layer.bias)
        return layer

    @property
    def last(self) -> nn.Module:
        """The layer that computes the finest image."""
        return self.images[-1]

    def style(self, z: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return w (B, latent), the latent of which all styles are affine maps; arguments and errors as `forward`."""
        check_event("z", z, (self.latent,))
        label = self.label(cond, z)
        w = _normalized(z) if label is None else torch.cat([_normalized(z), _normalized(label)], dim=1)
        for layer in self.mapping:
            w = F.leaky_relu(layer(w), SLOPE)
        return w

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z) of z (B, latent); cond and errors as for ResidualGenerator."""
        return self.synthesis(self.style(z, cond))

    def synthesis(self, w: Tensor) -> Distribution:
        """Return p(x|w) of w (B, latent); raises ValueError for another shape."""
        check_event("w", w, (self.latent,))
        h = self.constant.expand(len(w), -1, -1, -1)
        image: Tensor | None = None
        for i, (to_image, style) in enumerate(zip(self.images, self.image_styles)):
            if i:
                h = _doubled(h, "bilinear", self.sides[i])
            for j in (2 * i, 2 * i + 1):
                # sqrt 2 keeps the variance through a LeakyReLU, as the demodulation does through a convolution
                h = math.sqrt(2) * F.leaky_relu(self.convs[j](h, self.styles[j](w)), SLOPE)
            part = to_image(h, style(w))
            image = part if image is None else _doubled(image, "bilinear", self.sides[i]) + part
        return self.head(image)


def _check(widths: Sequence[int], groups: int | None, resampling: Resampling) -> None:
    """Raise ValueError for invalid arguments of a ResidualGenerator."""
    if resampling not in get_args(Resampling):
        raise ValueError(f"resampling must be 'bilinear' or 'nearest'; got {resampling!r}")
    if groups is not None and (groups < 1 or any(2 * c % groups for c in widths)):
        raise ValueError(f"groups must divide twice the channels {list(widths)}; got {groups}")


class _Block(nn.Module):
    """A residual block: x + conv(lrelu(conv(lrelu(conv(x))))), 1x1, grouped 3x3, 1x1.

    Without `groups`, x + conv(lrelu(conv(x))), 3x3. Fix-up (Zhang et al. 2019, arXiv 1901.09321): of m convolutions the
    last starts at zero and the others at He's scale times branches^(-1/(2m - 2)), for as many branches in the network.
    """

    def __init__(self, channels: int, groups: int | None, branches: int) -> None:
        super().__init__()
        if groups is None:
            convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        else:
            inner = 2 * channels
            convs = [
                nn.Conv2d(channels, inner, 1),
                nn.Conv2d(inner, inner, 3, padding=1, groups=groups),
                nn.Conv2d(inner, channels, 1),
            ]
        gain = branches ** (-1 / (2 * len(convs) - 2))
        self.convs = nn.ModuleList([*(_scaled(conv, gain) for conv in convs[:-1]), zeroed(convs[-1])])

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, conv in enumerate(self.convs):
            h = conv(F.leaky_relu(h, SLOPE) if i else h)
        return x + h


def _scaled(layer: nn.Conv2d | nn.Linear, gain: float = 1.0, slope: float = SLOPE) -> nn.Module:
    """Return the layer with He's initialization times `gain`."""
    nn.init.kaiming_normal_(layer.weight, a=slope)
    layer.weight.data.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _doubled(x: Tensor, mode: Resampling, sides: tuple[int, ...]) -> Tensor:
    """Return x (B, C, H, W) interpolated to (B, C, 2 H, 2 W), then cropped at the end to `sides`."""
    h = F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=None if mode == "nearest" else False)
    return cropped(h, sides)


def _normalized(z: Tensor) -> Tensor:
    """Return z / √(mean z² + 1e-8), over the features (Karras et al. 2017, arXiv 1710.10196, section 4.2)."""
    return z * (wide(z).square().mean(1, keepdim=True) + 1e-8).rsqrt().to(z.dtype)
