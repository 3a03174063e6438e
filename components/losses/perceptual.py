"""Perceptual distance: the distance of two images in the features of a network."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import check_images, halved
from ..precision import wide

__all__ = ["Perceptual", "RandomFeatures"]


class Perceptual(nn.Module):
    """Σ_l w_l mean_{hw} ‖f_l(x) - f_l(y)‖², each f_l normalized to length 1 over channels at every position: (B,).

    Zhang 2018, arXiv 1801.03924, eq. 1, with one weight for each layer instead of one learned for each channel: it is
    not LPIPS, and not comparable with it. The gradient is in x and y, not in the features' parameters.

    Arguments:
        features: (B, C, H, W) to maps [(B, c_l, h_l, w_l), ...], such as `components.encoders.TimmFeatures`; frozen
            here, and always in eval mode.
        weights: w_l >= 0, one for each map; None: 1 each.
    Raises: ValueError for weights that are empty or negative.
    """

    def __init__(self, features: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and (not len(weights) or min(weights) < 0):
            raise ValueError(f"weights must be one for each map, and not negative; got {tuple(weights)}")
        self.features = features.requires_grad_(False).eval()
        self.weights = None if weights is None else tuple(weights)

    @classmethod
    def random(cls, channels: int, weights: Sequence[float] | None = None, **settings: Any) -> "Perceptual":
        """Build a distance in untrained features, `RandomFeatures(channels, **settings)`."""
        return cls(RandomFeatures(channels, **settings), weights)

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in eval mode for any `mode`."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance (B,) of x to y.

        Arguments:
            x, y: images (B, C, H, W) in [-1, 1].
        Raises: ValueError for different shapes, and for another number of weights than maps.
        """
        if x.shape != y.shape:
            raise ValueError(f"x and y must have the same shape; got {tuple(x.shape)} and {tuple(y.shape)}")
        maps = list(zip(self.features(x), self.features(y)))
        weights = self.weights or (1.0,) * len(maps)
        if len(weights) != len(maps):
            raise ValueError(f"weights must be one for each of {len(maps)} maps; got {len(weights)}")
        distances = [w * (_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for w, (a, b) in zip(weights, maps)]
        return torch.stack(distances).sum(0)


class RandomFeatures(nn.Module):
    """Maps of untrained convolutions, finest first: (B, C, H, W) to [(B, w_i, H/2^i, W/2^i), ...].

    A stand-in where no trained network is available: they respond to edges and colours, but are not tuned to human
    judgements of similarity; `pretrained` is False. The weights are fixed, set by `seed`, and saved with the model.

    Arguments:
        channels: C.
        widths: the channels w_i of the maps.
        seed: of the weights.
    Raises: ValueError for no widths, and for x that is not (B, C, H, W).
    """

    pretrained = False

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths must hold at least one number of channels; got none")
        generator = torch.Generator().manual_seed(seed)
        self.channels, self.widths = channels, tuple(widths)
        self.convolutions = nn.ModuleList()
        for inputs, outputs in zip((channels, *widths), widths):
            layer = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.orthogonal_(layer.weight.data.flatten(1), generator=generator)
            nn.init.normal_(layer.bias.data, std=0.1, generator=generator)  # type: ignore[union-attr]
            self.convolutions.append(layer)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of x (B, C, H, W)."""
        check_images(x, self.channels)
        maps: list[Tensor] = []
        for layer in self.convolutions:
            x = F.relu(layer(halved(x) if maps else x))
            maps.append(x)
        return maps


def _unit(h: Tensor) -> Tensor:
    """Return h (B, c, h, w) over its norm along c at every position; 0, with a finite gradient, at norm 0."""
    return F.normalize(wide(h), dim=1, eps=1e-10)
