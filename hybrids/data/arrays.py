"""Examples of one's own, in a file of arrays."""

import os
import zipfile
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .source import Data

__all__ = ["SUFFIXES", "arrays"]

SUFFIXES = (".npy", ".npz", ".safetensors")
_EXPECTED = "expected x, images (N, C, H, W) or vectors (N, D), and labels (N,) or nothing else"


def arrays(path: str | os.PathLike[str], resolution: int | None = None, channels: int | None = None) -> Data:
    """The examples of a file, a tenth of them held out: images (N, C, H, W) or vectors (N, D).

    A .npy file holds x; .npz and .safetensors hold x, and labels (N,), whole numbers from 0, where there are some.
    Images are uint8, of 256 grey levels, or floats in [-1, 1], which count as continuous. They are taken as they
    are: resolution and channels may be theirs or None. Raises ValueError, naming the file, for anything else; no file's
    content is ever executed.
    """
    path = Path(path).expanduser().resolve()
    try:
        found = _read(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--data {path}: cannot be read ({error})") from error
    if "x" not in found or found.keys() - {"x", "labels"}:
        raise ValueError(f"--data {path}: holds {', '.join(sorted(found)) or 'nothing'}; {_EXPECTED}")
    x, labels = found["x"], found.get("labels")
    _check(path, x, labels)
    for flag, asked, own in (("resolution", resolution, x.shape[2:]), ("channels", channels, x.shape[1:2])):
        if asked is not None and (x.ndim == 2 or set(own) != {asked}):
            raise ValueError(f"--data {path}: holds x of shape {tuple(x.shape)}, taken as it is; got --{flag} {asked}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, kept = order[: len(x) // 10].sort().values, order[len(x) // 10 :].sort().values
    return Data(
        str(path),
        tuple(x.shape[1:]),
        classes=0 if labels is None else int(labels.max()) + 1,
        grey_levels=256 if x.dtype == torch.uint8 else None,
        x=x[kept],
        labels=None if labels is None else labels[kept],
        held_out=x[held],
        held_out_labels=None if labels is None else labels[held],
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name; x as uint8 or float32, labels as int64 if they are whole numbers."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
        except SafetensorError as error:
            raise ValueError(error) from error
    else:
        read = numpy.load(path, allow_pickle=False)
        # Arrays of another byte order or of uint16 are not torch's.
        whole = {"x": read} if path.suffix == ".npy" else dict(read)
        found = {name: _tensor(name, array) for name, array in whole.items()}
    if "x" in found and found["x"].dtype.is_floating_point:
        found["x"] = found["x"].float()
    if "labels" in found and not found["labels"].dtype.is_floating_point:
        found["labels"] = found["labels"].long()
    return found


def _tensor(name: str, array: numpy.ndarray) -> Tensor:
    try:
        return torch.from_numpy(numpy.ascontiguousarray(array))
    except TypeError as error:
        raise ValueError(f"{name} is of dtype {array.dtype}") from error


def _check(path: Path, x: Tensor, labels: Tensor | None) -> None:
    from ..batch import check_batch

    of = f"--data {path}: x must be images (N, C, H, W) or vectors (N, D)"
    if x.ndim not in (2, 4) or not x.numel():
        raise ValueError(f"{of}; got shape {tuple(x.shape)}")
    if x.ndim == 4 and x.shape[1] > 4 >= x.shape[3]:
        raise ValueError(f"{of}; got shape {tuple(x.shape)}, whose channels seem to be last: transpose(0, 3, 1, 2)")
    if x.dtype != torch.uint8 or x.ndim == 2:
        try:
            check_batch(x)
        except ValueError as error:
            raise ValueError(f"--data {path}: {error}") from error
        if x.ndim == 4 and x.abs().max() > 1 + 1e-3:
            raise ValueError(f"--data {path}: images must be in [-1, 1]; got {x.min():g} to {x.max():g}")
    if labels is None:
        return
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64 or labels.min() < 0:
        raise ValueError(
            f"--data {path}: labels must be ({len(x)},), whole numbers from 0; got shape {tuple(labels.shape)} of "
            f"dtype {labels.dtype}" + (f", the least {int(labels.min())}" if labels.numel() else "")
        )
