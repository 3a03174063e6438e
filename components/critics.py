"""Discriminators made of discriminators: at several scales, on the features of a frozen network, on a pair's noise.

The first two return (B, N) logits in float32 or wider, of which the losses take the mean.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectral

from .discriminators import SLOPE, PatchDiscriminator
from .layers import ClassEmbedding, check_event
from .precision import wide, widest
from .schedules import Schedule, over

__all__ = ["FeatureDiscriminator", "MultiScaleDiscriminator", "NoiseOfPair"]


def _refuse(network: nn.Module, **inputs: Tensor | None) -> None:
    """Raises ValueError for an input that the network does not take."""
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(f"{name} must be None for a {type(network).__name__}; got a tensor")


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
        _refuse(self, t=t, cond=cond, given=given)
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


class _Head(nn.Module):
    """Strided convolutions with spectral norm until a side is at most 4, then a logit a place: to (B, 16).

    Maps of other sides than 4x4 are brought to them by nearest neighbours, so that all heads weigh alike.
    """

    def __init__(self, inputs: int, sides: tuple[int, int], width: int, num_classes: int | None) -> None:
        super().__init__()
        halvings = max((min(sides) - 1).bit_length() - 2, 0)
        convs = [nn.Conv2d(inputs, width, 3, padding=1)]
        convs += [nn.Conv2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        self.convs = nn.ModuleList(spectral(conv) for conv in convs)
        self.last = spectral(nn.Conv2d(width, 1, 3, padding=1))
        self.label = ClassEmbedding(num_classes, width)

    def forward(self, h: Tensor, cond: Tensor | None) -> Tensor:
        for conv in self.convs:
            h = F.leaky_relu(conv(h), SLOPE)
        logits = wide(self.last(h))
        label = self.label(cond, h)
        if label is not None:
            logits = logits + torch.einsum("bc,bchw->bhw", wide(label), wide(h)).unsqueeze(1) / math.sqrt(h.shape[1])
        return F.interpolate(logits, size=(4, 4), mode="nearest").flatten(1)


class FeatureDiscriminator(nn.Module):
    """A projected discriminator: small heads on the features of a frozen network: (B, C, H, W) to logits (B, 16 heads).

    The maps f_1 ... f_n, finest first, are mixed by fixed random convolutions, across channels and then across scales:
    h_n = conv(mix(f_n)), h_i = conv((mix(f_i) + up(h_{i+1}))/√2); mix is 1x1, conv 3x3, up bilinear. A head with
    spectral norm judges every h_i. Only the heads learn. Sauer et al. 2021, arXiv 2111.01007, section 3.2.

    Arguments: features, x to a list of maps (B, c_i, h_i, w_i), such as TimmFeatures, frozen here (parameters without
    gradient, eval mode); shape (C, H, W) of x, on zeros of which the maps are measured; width, the channels of mixed
    features and heads; num_classes, whose embedding <e(cond), h> / sqrt(width) adds to the logits as in Miyato and
    Koyama 2018 (arXiv 1802.05637), cond=None being the null class. Takes no t or given.
    Raises ValueError for those, for x not (B, *shape), and for features that are no such list.
    """

    def __init__(
        self, features: nn.Module, shape: tuple[int, int, int], width: int = 64, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.features, self.shape, self.num_classes = features, tuple(shape), num_classes
        features.requires_grad_(False).eval()
        device = next(features.parameters(), torch.empty(0)).device
        with torch.no_grad():
            maps = features(torch.zeros(1, *shape, device=device))
        if not isinstance(maps, list | tuple) or not maps or any(h.ndim != 4 for h in maps):
            raise ValueError("features must map x to a list of maps (B, c, h, w); got something else")
        # He's initialization for layers without a nonlinearity
        self.mixes = nn.ModuleList(nn.Conv2d(h.shape[1], width, 1) for h in maps)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in maps)
        for conv in [*self.mixes, *self.convs]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            nn.init.zeros_(conv.bias)
        self.mixes.requires_grad_(False)
        self.convs.requires_grad_(False)
        self.heads = nn.ModuleList(_Head(width, tuple(h.shape[2:]), width, num_classes) for h in maps)

    def train(self, mode: bool = True) -> "FeatureDiscriminator":
        """Heads only: the features stay in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Logits (B, 16 heads), the finest map first: x (B, C, H, W) in [-1, 1], cond (B,) long or None."""
        _refuse(self, t=t, given=given)
        check_event("x", x, self.shape)
        maps, logits = self.features(x), []
        mixed: Tensor | None = None
        for i in reversed(range(len(maps))):
            h = self.mixes[i](maps[i])
            if mixed is not None:
                above = F.interpolate(mixed, size=h.shape[2:], mode="bilinear", align_corners=False)
                h = (h + above) / math.sqrt(2)
            mixed = self.convs[i](h)
            logits.append(self.heads[i](mixed, cond))
        return torch.cat(logits[::-1], dim=1)


class NoiseOfPair(nn.Module):
    """D(x_s, x_t, t) of pairs, shown x_t as the noise that leads to it from x_s: ε = (x_t - α_{t|s} x_s)/σ_{t|s}.

    (x_s, x_t) ↔ (x_s, ε) is one-to-one at each t, so the optimal D and the value of the game are those of the pair
    (Xiao et al. 2021, arXiv 2112.07804, eq. 4 and 5). But a real pair's ε is N(0, I) and independent of x_s, for any
    data: a generator whose x_s vary too little around their mean, or are another's, gives itself away by its ε, where
    from x_t the network would first have to learn a denoiser. docs/connections.md has what that changes.

    Arguments: discriminator, of (x, given) and what else it takes, such as t and cond; schedule; timesteps T, where
    t = i/T and s = (i - 1)/T. Takes t (B,) or (), needed for T > 1, which is passed on as it came, and given = x_t.
    Raises ValueError for timesteps < 1, for a t or a given that is missing.
    """

    def __init__(self, discriminator: nn.Module, schedule: Schedule, timesteps: int) -> None:
        super().__init__()
        if timesteps < 1:
            raise ValueError(f"timesteps must be at least 1; got {timesteps}")
        self.discriminator, self.schedule, self.timesteps = discriminator, schedule, timesteps

    def forward(
        self, x: Tensor, t: Tensor | None = None, cond: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """The discriminator's logits: x = x_s (B, *event), given = x_t (B, *event)."""
        if given is None:
            raise ValueError("given must be x_t, from which the noise of the pair is found; got None")
        if t is None and self.timesteps > 1:
            raise ValueError(f"t must be given where timesteps = {self.timesteps} > 1; got None")
        noise = self.noise(x, given, widest(1.0, x.device) if t is None else t)
        optional = {name: value for name, value in (("t", t), ("cond", cond)) if value is not None}
        return self.discriminator(x, given=noise, **optional)

    def noise(self, x_s: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """ε = (x_t - α_{t|s} x_s)/σ_{t|s} (B, *event), differentiable in x_s; of a real pair N(0, I)."""
        s = ((widest(t) * self.timesteps).round() - 1) / self.timesteps
        ratio, variance = self.schedule.step(s, t)
        x_s, x_t = wide(x_s), wide(x_t)
        return (x_t - over(ratio, x_s) * x_s) / over(variance.sqrt(), x_s)
