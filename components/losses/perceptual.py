"""Perceptual distance: how far apart two images are to a network's features."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import check_images
from ..precision import wide

__all__ = ["Perceptual", "RandomFeatures"]


class RandomFeatures(nn.Module):
    """Maps of untrained convolutions, finest first: (B, C, H, W) to [(B, w_i, H/2^i, W/2^i), ...].

    A stand-in where no trained network may be had: it knows of edges and colours, and nothing of what people see.
    `pretrained` says so. Its weights are fixed, set by `seed`, and saved with the model.
    Arguments: channels C; widths, one map each; seed. Raises ValueError for no widths, and for x not (B, C, H, W).
    """

    pretrained = False

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths must name one map at least; got none")
        generator = torch.Generator().manual_seed(seed)
        self.channels, self.widths = channels, tuple(widths)
        self.layers = nn.ModuleList()
        for inputs, outputs in zip((channels, *widths), widths):
            layer = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.orthogonal_(layer.weight.data.flatten(1), generator=generator)
            nn.init.normal_(layer.bias.data, std=0.1, generator=generator)  # type: ignore[union-attr]
            self.layers.append(layer)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of x (B, C, H, W)."""
        check_images(x, self.channels)
        maps: list[Tensor] = []
        for layer in self.layers:
            x = F.relu(layer(F.avg_pool2d(x, 2) if maps else x))
            maps.append(x)
        return maps


class Perceptual(nn.Module):
    """Σ_l w_l mean_{hw} ‖f_l(x) - f_l(y)‖², each f_l normalized to length 1 over its channels at every place: (B,).

    Zhang 2018, 1801.03924, eq. 1, with one weight a layer in the place of one learned for each channel, which makes it
    neither LPIPS nor comparable with it. The gradient reaches x and y, not the features' parameters.
    Arguments: features, (B, C, H, W) to maps [(B, c_l, h_l, w_l), ...], such as `components.encoders.TimmFeatures`;
    weights, one for each map, not negative, 1 by default.
    """

    def __init__(self, features: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and (not len(weights) or min(weights) < 0):
            raise ValueError(f"weights must be one for each map, and not negative; got {tuple(weights)}")
        self.features = features.requires_grad_(False).eval()
        self.weights = None if weights is None else tuple(weights)

    @classmethod
    def random(cls, channels: int, weights: Sequence[float] | None = None, **settings: Any) -> "Perceptual":
        """By `RandomFeatures(channels, **settings)`, which nobody has trained."""
        return cls(RandomFeatures(channels, **settings), weights)

    def train(self, mode: bool = True) -> "Perceptual":
        """Nothing: it stays in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of x to y, both (B, C, H, W) in [-1, 1]: (B,)."""
        if x.shape != y.shape:
            raise ValueError(f"x and y must be of one shape; got {tuple(x.shape)} and {tuple(y.shape)}")
        maps = list(zip(self.features(x), self.features(y)))
        weights = self.weights or (1.0,) * len(maps)
        if len(weights) != len(maps):
            raise ValueError(f"weights must be one for each of {len(maps)} maps; got {len(weights)}")
        apart = (w * (_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for w, (a, b) in zip(weights, maps))
        return torch.stack(list(apart)).sum(0)


def _unit(h: Tensor) -> Tensor:
    """h (B, c, h, w) over its length at every place; where it is 0, 0 with a finite gradient."""
    return F.normalize(wide(h), dim=1, eps=1e-10)
