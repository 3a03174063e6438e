"""Data sets by name, published files, folders of images, files of arrays and the hub's, in memory where they fit."""

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..own import is_own, own
from .arrays import SUFFIXES, arrays
from .augment import Augment
from .digits import digits, stacked_digits
from .folders import folder
from .hub import hub
from .images import EXTENSIONS
from .points import Checkerboard, Density, Mixture, gaussians_8, gaussians_25, swiss_roll, two_moons
from .published import PUBLISHED, fashion_10k, is_published, published, published_folder
from .shapes import shapes
from .source import Batches, Data

__all__ = [
    "NAMES",
    "Augment",
    "Batches",
    "Checkerboard",
    "Data",
    "Density",
    "Mixture",
    "arrays",
    "digits",
    "fashion_10k",
    "folder",
    "gaussians_8",
    "gaussians_25",
    "hub",
    "load_data",
    "published",
    "shapes",
    "stacked_digits",
    "swiss_roll",
    "two_moons",
]

POINTS: dict[str, Callable[[], Density]] = {
    "25-gaussians": gaussians_25,
    "8-gaussians": gaussians_8,
    "swiss-roll": swiss_roll,
    "checkerboard": Checkerboard,
    "two-moons": two_moons,
}
NAMES = ("digits", "stacked-digits", *POINTS, "shapes", "fashion-10k", *PUBLISHED)


def load_data(
    name: str,
    resolution: int | None = None,
    channels: int | None = None,
    *,
    horizontal_flip: bool = False,
    crop_padding: int = 0,
    skip_bad_images: int = 0,
    workers: int = 2,
) -> Data:
    """Return the data set of a name in NAMES, `hub:OWNER/NAME`, a folder of images or a file of `arrays`.

    A folder may also hold the files of MNIST, Fashion-MNIST or CIFAR-10 as they are published (see `published`).
    FILE.py:NAME is a data set of one's own: a function of no arguments that returns `Data`; the file is run.

    Arguments: resolution and channels, of images; None for the set's own (digits: 8 × 8 and 1); horizontal_flip and
    crop_padding, as in `Augment`; skip_bad_images and workers, for folders of images and the hub, as in `image_data`.
    Raises ValueError for an unknown name, with the nearest, and for a resolution or channels the set cannot have.
    """
    data = _load(name, resolution, channels, skip_bad_images, workers)
    if not horizontal_flip and not crop_padding:
        return data
    if not data.is_image:
        raise ValueError(f"--data {name} holds points, not images: drop --horizontal-flip and --crop-padding")
    side = min(data.shape[1:])
    if not 0 <= crop_padding < side:
        raise ValueError(f"--crop-padding must be in [0, {side}), the images' shorter side; got {crop_padding}")
    return replace(data, augment=Augment(horizontal_flip, crop_padding))


def _load(name: str, resolution: int | None, channels: int | None, skip_bad_images: int, workers: int) -> Data:
    if name == "digits":
        return digits(resolution or 8, channels or 1)
    if name == "stacked-digits":
        if resolution not in (None, 8) or channels not in (None, 3):
            raise ValueError(f"--data stacked-digits is 3 × 8 × 8; got --resolution {resolution} --channels {channels}")
        return stacked_digits()
    if name == "shapes":
        if channels not in (None, 3):
            raise ValueError(f"--data shapes is in colour, of 3 channels; got --channels {channels}")
        return shapes(resolution or 32)
    if name == "fashion-10k":
        return fashion_10k(resolution, channels)
    if name in PUBLISHED:
        return published(name, resolution, channels, skip_bad_images, workers)
    if name in POINTS:
        if resolution is not None or channels is not None:
            raise ValueError(f"--data {name} holds points, not images: drop --resolution and --channels")
        return _points(name, POINTS[name]())
    if is_own(name):
        return _own(name, resolution, channels)
    if name.startswith("hub:"):
        return hub(name, resolution, channels, skip_bad_images, workers)
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # longer than the system allows; a home of nobody
        raise ValueError(f"--data {name[:80]}{'…' * (len(name) > 80)} is no path that can be read: {error}") from error
    if not path.exists() and os.sep not in name and not name.startswith(("~", ".")):
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"--data {name!r} is not known{hint} Expected one of {', '.join(NAMES)}; hub:OWNER/NAME; FILE.py:FUNCTION; "
            f"a folder of images ({', '.join(EXTENSIONS)}), a file of arrays ({', '.join(SUFFIXES)}), but "
            f"{path.resolve()} is not there"
        )
    if path.suffix in SUFFIXES and not path.is_dir():
        return arrays(path, resolution, channels)
    if is_published(path):
        return published_folder(path, resolution, channels)
    return folder(path, resolution, channels, skip_bad_images, workers)


def _own(name: str, resolution: int | None, channels: int | None) -> Data:
    """Return the data set that FILE.py:NAME makes, under that name; its images have the size that they have."""
    make = own(name)
    data = make() if callable(make) else make
    if not isinstance(data, Data):
        raise ValueError(f"--data {name} must return a Data, such as Data.from_tensor(x); got {type(data).__name__}")
    size = (data.shape[-1], data.shape[0]) if data.is_image else (None, None)
    if resolution not in (None, size[0]) or channels not in (None, size[1]):
        raise ValueError(f"--data {name} is {data.shape}: drop --resolution and --channels")
    path, _, function = name.rpartition(":")
    return replace(data, name=f"{Path(path).expanduser().resolve()}:{function}")


def _points(name: str, density: Density) -> Data:
    generator = torch.Generator().manual_seed(0)
    x, held_out = density.sample(100_000, generator).float(), density.sample(10_000, generator).float()
    return Data(name, (2,), x=x, held_out=held_out, density=density)
