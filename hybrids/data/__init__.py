"""Data sets by name, decoded once and kept in memory."""

import difflib

import torch

from .digits import digits, stacked_digits
from .points import Mixture, gaussians_25
from .source import Batches, Data

__all__ = ["NAMES", "Batches", "Data", "Mixture", "digits", "gaussians_25", "load_data", "stacked_digits"]

NAMES = ("digits", "stacked-digits", "25-gaussians")


def load_data(name: str, resolution: int | None = None, channels: int | None = None) -> Data:
    """The data set of a name in NAMES.

    Arguments: resolution and channels, of images; None for the set's own (digits: 16 × 16 and 1).
    Raises ValueError for an unknown name, with the nearest, and for a resolution or channels the set cannot have.
    """
    if name == "digits":
        return digits(resolution or 16, channels or 1)
    if name == "stacked-digits":
        if resolution not in (None, 8) or channels not in (None, 3):
            raise ValueError(f"--data stacked-digits is 3 × 8 × 8; got --resolution {resolution} --channels {channels}")
        return stacked_digits()
    if name == "25-gaussians":
        if resolution is not None or channels is not None:
            raise ValueError("--data 25-gaussians holds points, not images: drop --resolution and --channels")
        mixture = gaussians_25()
        generator = torch.Generator().manual_seed(0)
        x, held_out = mixture.sample(100_000, generator).float(), mixture.sample(10_000, generator).float()
        return Data(name, (2,), x=x, held_out=held_out, density=mixture)
    near = difflib.get_close_matches(name, NAMES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"--data {name!r} is not known{hint} Expected one of {', '.join(NAMES)}")
