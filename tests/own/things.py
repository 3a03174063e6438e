"""A data set and a metric, given on a command line as things.py:rings and things.py:saturation."""

from dataclasses import replace

import torch
from torch import Tensor

from hybrids.data import Data


def rings() -> Data:
    """Return 300 images of bright rings, 8 × 8 pixels; the label is one of three sizes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    centre = 0.2 * torch.randn(300, 2, 1, 1, generator=generator)
    radius = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    images = 2 * torch.exp(-20 * (radius - (0.3 + 0.2 * labels)[:, None, None]) ** 2) - 1
    data = Data.from_tensor(images[:, None], grey_levels=17)
    return replace(
        data, classes=3, x=data.x[:200], labels=labels[:200], held_out=data.x[200:], held_out_labels=labels[200:]
    )


def saturation(samples: Tensor, real: Tensor, features) -> float:
    """Share of values at an end of [-1, 1], over that of real examples."""
    share = [(x.abs() > 0.99).double().mean().item() for x in (samples, real)]
    return share[0] / max(share[1], 1e-9)
