"""Data sets in the files that their authors publish: MNIST and Fashion-MNIST (IDX), CIFAR-10 (its binary version)."""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .arrays import fitted
from .hub import hub
from .source import Data, say

__all__ = ["PUBLISHED", "fashion_10k", "is_published", "published", "published_folder"]

CLASSES, CIFAR_SIZE = 10, (3, 32, 32)
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
DEBIAN = Path("/usr/share/datasets")
"""Where Debian's package dataset-fashion-mnist puts its folder."""
MOST = 2**30
"""Bytes of one file, unpacked, above which it is refused; EMNIST, the largest in IDX, has 0.55e9."""
_FASHION_LABELS = "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"
"""SHA-256 of Fashion-MNIST's 10,000 test labels: MNIST's files have the same names."""

Split = tuple[Tensor, Tensor]
"""Images (N, C, H, W) uint8 and labels (N,) int64."""


@dataclass(frozen=True)
class Published:
    """A published data set.

    Arguments: class_names, in the order of the labels, or () where a label is its name; folder, below ./data, that
    torchvision's download or the archive makes; hub, OWNER/NAME; download, the command that puts the files into ./data.
    """

    class_names: tuple[str, ...]
    folder: str
    hub: str
    download: str


_TORCHVISION = "python -c \"from torchvision.datasets import {0}; {0}('data', download=True)\""
PUBLISHED = {
    "fashion-mnist": Published(
        FASHION, "FashionMNIST/raw", "zalando-datasets/fashion_mnist", _TORCHVISION.format("FashionMNIST")
    ),
    "mnist": Published((), "MNIST/raw", "ylecun/mnist", _TORCHVISION.format("MNIST")),
    "cifar10": Published(
        CIFAR,
        "cifar-10-batches-bin",
        "uoft-cs/cifar10",
        "mkdir -p data && curl -L https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz | tar -xz -C data",
    ),
}


def published(
    name: str, resolution: int | None = None, channels: int | None = None, skip_bad_images: int = 0, workers: int = 2
) -> Data:
    """Return a data set of PUBLISHED; the published test set is held out.

    Its files are looked for in /usr/share/datasets/NAME, where Debian puts them, then in ./data and ~/data, laid out as
    by torchvision; where they are in none of these the hub's set is loaded. What is read is printed.

    Arguments: as in `load_data`; skip_bad_images and workers are of the hub's images.
    Raises ValueError where the set is nowhere, with all places and the download, or its files are malformed.
    """
    known = PUBLISHED[name]
    roots = ("data", os.path.expanduser("~/data"))
    places = [DEBIAN / name, *(Path(root, known.folder).absolute() for root in roots)]
    for place in places:
        if is_published(place):
            return _of_folder(name, place, known.class_names, resolution, channels)
    try:
        data = hub(f"hub:{known.hub}", resolution, channels, skip_bad_images, workers)
    except ValueError as error:
        raise ValueError(
            f"--data {name}: its files are in none of {', '.join(map(str, places))}, and the hub's set cannot be used: "
            f"{error}. Download them into ./data: {known.download}; or give their folder: --data FOLDER; "
            "--data fashion-10k needs no download"
        ) from error
    return replace(data, name=name, class_names=known.class_names)


def is_published(folder: Path) -> bool:
    """Return whether a folder holds a file with the name of one of MNIST's or CIFAR-10's."""
    return any(_file(folder, name) for name in (*IDX, *BATCHES))


def published_folder(folder: Path, resolution: int | None = None, channels: int | None = None) -> Data:
    """Return the data set of a folder of published files; the published test set is held out.

    The classes have names where the files are CIFAR-10's, or Fashion-MNIST's by its test labels. Arguments: as in
    `load_data`. Raises ValueError, with the file's name: it is missing, cut short, of another format, or disagrees with
    the others in size.
    """
    folder = folder.resolve()
    return _of_folder(str(folder), folder, None, resolution, channels)


def fashion_10k(resolution: int | None = None, channels: int | None = None) -> Data:
    """Return Fashion-MNIST's 10,000 test images, which come with the package: 9,000 to train on and 1,000 held out.

    28 × 28, 256 grey levels, ten classes of 900 and 100. The held-out images of each class are the first 100 in a
    permutation by numpy's RandomState(0). A model of this set has trained on the images that `fashion-mnist` holds out.
    Xiao, Rasul & Vollgraf 2017, 1708.07747; MIT licence, fashion_10k/LICENSE.
    """
    folder = resources.files(__package__) / "fashion_10k"
    x, labels = _labelled(*(folder / f"{name}.gz" for name in IDX[2:]))
    order = torch.as_tensor(np.random.RandomState(0).permutation(len(x)))
    by_class = order[labels[order].argsort(stable=True)].view(CLASSES, -1)
    training, held = (part.flatten().sort().values for part in (by_class[:, 100:], by_class[:, :100]))
    splits = (x[training], labels[training]), (x[held], labels[held])
    return _data("fashion-10k", FASHION, splits, resolution, channels)


def _of_folder(
    name: str, folder: Path, class_names: tuple[str, ...] | None, resolution: int | None, channels: int | None
) -> Data:
    """Return the data set of the files in a folder; class_names None: those of the set that the files are of."""
    try:
        is_idx = any(_file(folder, stem) for stem in IDX)
        splits = _mnist(folder) if is_idx else _cifar10(folder)
    except ValueError as error:
        raise ValueError(f"--data {name}: {error}") from error
    if class_names is None:
        class_names = CIFAR if not is_idx else FASHION if _are_fashion(splits[1][1]) else ()
    (x, _), (held_out, _) = splits
    form = "IDX files" if is_idx else "the binary version of CIFAR-10"
    say(f"--data {name}: {len(x)} training and {len(held_out)} held-out images from {form} in {folder}")
    return _data(name, class_names, splits, resolution, channels)


def _data(
    name: str, class_names: tuple[str, ...], splits: tuple[Split, Split], resolution: int | None, channels: int | None
) -> Data:
    (x, labels), (held_out, held_out_labels) = splits
    try:
        both = fitted(torch.cat([x, held_out]), resolution or 0, channels or x.shape[1])
    except ValueError as error:
        raise ValueError(f"--data {name}: {error}") from error
    x, held_out = both[: len(x)], both[len(x) :]
    shape = tuple(x.shape[1:])
    return Data(name, shape, CLASSES, 256, x, labels, held_out, held_out_labels, class_names=class_names)


def _are_fashion(labels: Tensor) -> bool:
    return hashlib.sha256(labels.to(torch.uint8).numpy().tobytes()).hexdigest() == _FASHION_LABELS


def _file(folder: Path, name: str) -> Path | None:
    """Return the file of that name, with or without .gz and with .idx in place of -idx; None where there is none."""
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz")
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    files = {name: _file(folder, name) for name in names}
    if missing := [name for name, file in files.items() if file is None]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}; expected {', '.join(names)}")
    return [file for file in files.values() if file is not None]


def _mnist(folder: Path) -> tuple[Split, Split]:
    """Return the training and the test examples of MNIST's four IDX files."""
    files = _files(folder, IDX)
    train, test = _labelled(*files[:2]), _labelled(*files[2:])
    if train[0].shape[1:] != test[0].shape[1:]:
        own, other = (" × ".join(map(str, x.shape[2:])) for x, _ in (test, train))
        raise ValueError(f"{files[2]}: its images are {own}; those of {files[0].name} are {other}")
    return train, test


def _labelled(images: Path | Traversable, labels: Path | Traversable) -> Split:
    x, y = _idx(images, 3)[:, None], _idx(labels, 1)
    if len(x) != len(y):
        raise ValueError(f"{labels}: holds {len(y)} labels; {images.name} has {len(x)} images")
    return x, _checked(y, labels)


def _idx(file: Path | Traversable, dimensions: int) -> Tensor:
    """Return the array of uint8 in an IDX file, of as many dimensions.

    Its header is big-endian uint32: 0x0800 + dimensions (8: uint8), then the length of each; the values follow.
    """
    values, start, expected = _read(file), 4 + 4 * dimensions, 0x800 + dimensions
    magic, *sizes = np.frombuffer(values[:start].ljust(start, b"\0"), ">u4").tolist()
    if magic != expected:
        raise ValueError(
            f"{file}: starts with {magic:#010x}; expected {expected:#010x}, an IDX file of uint8 in {dimensions} "
            "dimension(s)"
        )
    size, stored = math.prod(sizes), max(0, len(values) - start)
    if not size or size != stored:
        raise ValueError(
            f"{file}: holds {stored} bytes after its header, which states {' × '.join(map(str, sizes))}; download it "
            "again"
        )
    return torch.frombuffer(bytearray(values), dtype=torch.uint8, offset=start).view(sizes)


def _cifar10(folder: Path) -> tuple[Split, Split]:
    """Return the training and the test examples of CIFAR-10's six files: records of a label and 3 × 32 × 32 bytes."""
    record, parts = 1 + math.prod(CIFAR_SIZE), []
    for file in _files(folder, BATCHES):
        values = _read(file)
        if not values or len(values) % record:
            raise ValueError(f"{file}: holds {len(values)} bytes; expected records of {record}; download it again")
        rows = torch.frombuffer(bytearray(values), dtype=torch.uint8).view(-1, record)
        parts.append((rows[:, 1:].reshape(-1, *CIFAR_SIZE), _checked(rows[:, 0], file)))
    x, labels = (torch.cat(values) for values in zip(*parts[:-1]))
    return (x, labels), parts[-1]


def _read(file: Path | Traversable) -> bytes:
    """Return what a file holds, plain or gzipped. Raises ValueError where it is damaged, or larger than MOST."""
    try:
        with file.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            values: bytes = (gzip.GzipFile(fileobj=plain) if packed else plain).read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read ({error}); download it again") from error
    if len(values) > MOST:
        raise ValueError(f"{file}: holds more than {MOST} bytes, which no published set does; remove it")
    return values


def _checked(labels: Tensor, file: Path | Traversable) -> Tensor:
    """Return labels (N,) as int64. Raises ValueError outside 0 … 9."""
    if labels.max() >= CLASSES:
        raise ValueError(
            f"{file}: labels must be 0 … {CLASSES - 1}; got {int(labels.max())}: for other classes store images and "
            "labels as x and labels of a .npz file"
        )
    return labels.long()
