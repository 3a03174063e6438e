"""The 1797 handwritten digits that scikit-learn ships (8 × 8, 17 grey levels; Alpaydin & Kaynak, UCI 1998)."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..refusal import needed
from .source import Data

__all__ = ["digits", "stacked_digits"]

NATIVE, GREY_LEVELS, HELD_OUT = 8, 17, 297


def _split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images (N, 1, 8, 8) uint8 in 0 … 16, and their labels.

    What scikit-learn's load_digits and train_test_split(test_size=297, random_state=0) return, from the file that the
    package holds: importing the package takes as long as importing torch.
    """
    package = find_spec("sklearn")
    with needed("scikit-learn>=1.5", "--data digits"):
        if package is None or package.origin is None:
            raise ModuleNotFoundError("No module named 'sklearn'")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = torch.as_tensor(np.loadtxt(file, delimiter=",", dtype=np.int64))
    order = torch.as_tensor(np.random.RandomState(0).permutation(len(rows)))
    x, labels = rows[:, :-1].to(torch.uint8).view(-1, 1, NATIVE, NATIVE), rows[:, -1]
    held, training = order[:HELD_OUT], order[HELD_OUT:]
    return x[training], x[held], labels[training], labels[held]


def _resized(x: Tensor, resolution: int) -> Tensor:
    """8 × 8 images of 17 levels, bilinearly enlarged to 256 levels."""
    size = (resolution, resolution)
    image = F.interpolate(x.float() / (GREY_LEVELS - 1), size=size, mode="bilinear", align_corners=False)
    return (image * 255).round().to(torch.uint8)


def digits(resolution: int = NATIVE, channels: int = 1) -> Data:
    """1500 training and 297 held-out digits. At 8 × 8 they have their own 17 grey levels; enlarged, 256."""
    x, x_held, y, y_held = _split()
    if resolution != NATIVE:
        x, x_held = _resized(x, resolution), _resized(x_held, resolution)
    x, x_held = x.expand(-1, channels, -1, -1).contiguous(), x_held.expand(-1, channels, -1, -1).contiguous()
    grey_levels = GREY_LEVELS if resolution == NATIVE else 256
    return Data("digits", (channels, resolution, resolution), 10, grey_levels, x, y, x_held, y_held)


def stacked_digits(examples: int = 60_000) -> Data:
    """Three digits in three channels of 8 × 8: 1000 modes, labelled 100 a + 10 b + c, drawn evenly with a fixed seed.

    The construction of Stacked MNIST (Metz 2016, 1611.02163). Training and held-out digits are never mixed.
    """
    x, x_held, y, y_held = _split()
    generator = torch.Generator().manual_seed(0)

    def stack(images: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(images), (n, 3), generator=generator)
        return images[index, 0], (labels[index] * torch.tensor([100, 10, 1])).sum(1)

    stacked, modes = stack(x, y, examples)
    held, held_modes = stack(x_held, y_held, 10_000)
    return Data("stacked-digits", (3, NATIVE, NATIVE), 1000, GREY_LEVELS, stacked, modes, held, held_modes)
