"""A projected discriminator: small heads on the features of a frozen network."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectral

from ..conditions import ClassEmbedding
from ..layers import SLOPE, Features, HiddenFeatures, check_event
from ..precision import wide
from .single import refuse

__all__ = ["FeatureDiscriminator"]


class FeatureDiscriminator(nn.Module):
    """A projected discriminator: small heads on the features of a frozen network: (B, C, H, W) to logits (B, 16 heads).

    The maps f_0 ... f_n, finest first, are mixed by fixed random convolutions, across channels and then across scales:

        h_n = conv(mix(f_n)),        h_i = conv((mix(f_i) + up(h_{i+1}))/√2)

    mix is 1x1, conv 3x3, up bilinear. A head with spectral norm judges every h_i. Only the heads learn. Sauer et al.
    2021, arXiv 2111.01007, section 3.2.

    `layers`, its hidden layers, are map_n, head_n, ..., map_0, head_0, the coarsest first, each (B, width, h, w): map_i
    is h_i, and head_i what its head computes before the logits.

    Arguments:
        features: x to a list of maps (B, c_i, h_i, w_i), such as TimmFeatures; frozen here (parameters without
            gradient, eval mode).
        shape: (C, H, W) of x; the maps are measured on zeros of it.
        width: channels of mixed features and heads.
        num_classes: for labels, whose embedding <e(cond), h> / √width adds to the logits as in Miyato and Koyama 2018
            (arXiv 1802.05637), cond=None being the null class.
    Raises:
        ValueError: features returns no such list.
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
            got = [tuple(h.shape) for h in maps] if isinstance(maps, list | tuple) else type(maps).__name__
            raise ValueError(f"features must map x to a list of maps (B, c, h, w); got {got}")
        # He's initialization for layers without a nonlinearity
        self.mixes = nn.ModuleList(nn.Conv2d(h.shape[1], width, 1) for h in maps)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in maps)
        for conv in [*self.mixes, *self.convs]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            nn.init.zeros_(conv.bias)
        self.mixes.requires_grad_(False)
        self.convs.requires_grad_(False)
        self.heads = nn.ModuleList(_Head(width, tuple(h.shape[2:]), width, num_classes) for h in maps)
        self.layers = tuple(f"{kind}_{i}" for i in reversed(range(len(maps))) for kind in ("map", "head"))

    def train(self, mode: bool = True) -> "FeatureDiscriminator":
        """Set the mode of the heads only: the features stay in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        cond: Tensor | None = None,
        given: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return logits (B, 16 heads), the finest map first; with `hidden`, (logits, features by name).

        Arguments:
            x: (B, C, H, W) in [-1, 1].
            t, given: None.
            cond: labels (B,) int64, or None for the null class.
            hidden: names out of `layers`.
        Raises:
            ValueError: x is not (B, *shape), t or given is not None, cond does not fit, or a name in `hidden` is
                unknown.
        """
        refuse(self, t=t, given=given)
        check_event("x", x, self.shape)
        features = HiddenFeatures(self.layers, hidden)
        maps, logits = self.features(x), []
        mixed: Tensor | None = None
        for i in reversed(range(len(maps))):
            h = self.mixes[i](maps[i])
            if mixed is not None:
                above = F.interpolate(mixed, size=h.shape[2:], mode="bilinear", align_corners=False)
                h = (h + above) / math.sqrt(2)
            mixed = features.record(f"map_{i}", self.convs[i](h))
            of_head, h = self.heads[i](mixed, cond)
            features.record(f"head_{i}", h)
            logits.append(of_head)
        return features.beside(torch.cat(logits[::-1], dim=1))


class _Head(nn.Module):
    """Strided convolutions with spectral norm until a side is at most 4, then a logit for each position: to (B, 16).

    Maps of other sides than 4x4 are resized to them by nearest neighbours, so that all heads have equal weight.

    Arguments:
        inputs: channels of the map.
        sides: (h, w) of the map.
        width: channels of the convolutions.
        num_classes: as for FeatureDiscriminator.
    """

    def __init__(self, inputs: int, sides: tuple[int, int], width: int, num_classes: int | None) -> None:
        super().__init__()
        halvings = max((min(sides) - 1).bit_length() - 2, 0)
        convs = [nn.Conv2d(inputs, width, 3, padding=1)]
        convs += [nn.Conv2d(width, width, 4, stride=2, padding=1) for _ in range(halvings)]
        self.convs = nn.ModuleList(spectral(conv) for conv in convs)
        self.last = spectral(nn.Conv2d(width, 1, 3, padding=1))
        self.label = ClassEmbedding(num_classes, width)

    def forward(self, h: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return logits (B, 16) and the features (B, width, h, w) before them."""
        for conv in self.convs:
            h = F.leaky_relu(conv(h), SLOPE)
        logits = wide(self.last(h))
        label = self.label(cond, h)
        if label is not None:
            logits = logits + torch.einsum("bc,bchw->bhw", wide(label), wide(h)).unsqueeze(1) / math.sqrt(h.shape[1])
        return F.interpolate(logits, size=(4, 4), mode="nearest").flatten(1), h
