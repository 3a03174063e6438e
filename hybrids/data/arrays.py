"""Examples of one's own, in a file of arrays."""

import os
import zipfile
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import check_batch
from .source import Data, say, trained_on

__all__ = ["SUFFIXES", "arrays", "fitted"]

SUFFIXES = (".npy", ".npz", ".safetensors")
_EXPECTED = "expected x, images (N, C, H, W) or vectors (N, D), and labels (N,) or nothing else"
_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601), as in Pillow's mode L."""


def arrays(path: str | os.PathLike[str], resolution: int | None = None, channels: int | None = None) -> Data:
    """Return the examples of a file, a tenth of them held out but no class's only one: images (N, C, H, W) or (N, D).

    A .npy file holds x; .npz and .safetensors hold x, and labels (N,), where there are some. Images are uint8, of 256
    grey levels, or floats in [-1, 1], which count as continuous. Vectors of any scale, floats or integers, are
    standardized, each dimension to mean 0 and variance 1 over the training examples; `Data.to_data` maps back. No
    file's content is executed.

    Arguments:
        resolution: R; of images of another size the middle square is resized to R × R (bicubic, antialiased).
        channels: 1 or 3, to which images of 3 or 1 are converted. None leaves either as it is.
    Raises:
        ValueError: with the file's name: it cannot be read, holds anything else, x or its variance is not finite,
            images are nearly black, or labels are not 0 … K - 1 with at least one example each.
    """
    path = Path(path).expanduser().resolve()
    try:
        values = _read(path)
        if "x" not in values or values.keys() - {"x", "labels"}:
            raise ValueError(f"holds {', '.join(sorted(values)) or 'nothing'}; {_EXPECTED}")
        x, labels = values["x"], values.get("labels")
        if x.ndim == 2 and not x.is_floating_point() and not x.is_complex():
            x = x.double()
        _check(x, labels)
        if x.ndim == 4:
            x = fitted(x, resolution or 0, channels or x.shape[1])
        elif resolution or channels:
            raise ValueError(f"holds vectors of shape {tuple(x.shape)}: drop --resolution and --channels")
    except ValueError as error:
        raise ValueError(f"--data {path}: {error}") from error
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(x), dtype=torch.bool)
    held[order[: len(x) // 10]] = True
    if labels is not None:
        held = trained_on(held, labels)
    train = ~held
    data = Data(
        str(path),
        tuple(x.shape[1:]),
        classes=0 if labels is None else int(labels.max()) + 1,
        grey_levels=256 if x.dtype == torch.uint8 else None,
        x=x[train],
        labels=None if labels is None else labels[train],
        held_out=x[held] if held.any() else None,
        held_out_labels=labels[held] if labels is not None and held.any() else None,
    )
    if data.is_image:
        return data
    try:
        data = data.standardized()
    except ValueError as error:
        raise ValueError(f"--data {path}: {error}") from error
    of = f"mean {_span(data.mean)} and standard deviation {_span(data.scale)}"
    say(f"--data {path}: vectors of {of} are standardized; samples are mapped back")
    return data


def _span(values: tuple[float, ...]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _read(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a file by name, labels as int64 if they are whole numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            values = load_file(path)
        elif path.suffix == ".npy":
            # Mapped, so that a header which claims more than the file has is refused before memory is asked for.
            values = {"x": _tensor("x", numpy.load(path, mmap_mode="r", allow_pickle=False))}
        else:
            with numpy.load(path, allow_pickle=False) as file:
                values = {name: _tensor(name, file[name]) for name in file}
    except (OSError, ValueError, EOFError, MemoryError, AttributeError, zipfile.BadZipFile, SafetensorError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if "labels" in values and not values["labels"].dtype.is_floating_point:
        values["labels"] = values["labels"].long()
    return values


def _tensor(name: str, array: numpy.ndarray) -> Tensor:
    """Return a copy of an array, in the machine's order of bytes."""
    try:
        return torch.from_numpy(numpy.array(array, dtype=array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise ValueError(f"{name} is of dtype {array.dtype}") from error


def _check(x: Tensor, labels: Tensor | None) -> None:
    of = "x must be images (N, C, H, W) or vectors (N, D)"
    if x.ndim not in (2, 4) or not x.numel():
        raise ValueError(f"{of}; got shape {tuple(x.shape)}")
    if x.ndim == 4 and x.shape[1] > 4 >= x.shape[3]:
        raise ValueError(f"{of}; got shape {tuple(x.shape)}, whose channels seem to be last: transpose(0, 3, 1, 2)")
    if x.ndim == 4 and x.dtype == torch.uint8:
        if x.max() <= 16:
            raise ValueError(
                f"images of uint8 must be 0 (black) … 255 (white); got at most {int(x.max())}, nearly black: multiply "
                f"by {255 // max(1, int(x.max()))}"
            )
    elif x.ndim == 4 and not x.is_floating_point():
        raise ValueError(
            f"images must be uint8 or floats in [-1, 1]; got {x.dtype}: divide by the largest value there can be (4095 "
            "of 12 bits, 65535 of 16), then 2 * x - 1"
        )
    else:
        check_batch(x)
        if x.ndim == 4 and x.abs().max() > 1 + 1e-3:
            raise ValueError(f"images must be in [-1, 1]; got {x.min():g} to {x.max():g}")
    if labels is None:
        return
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be ({len(x)},), whole numbers from 0; got shape {tuple(labels.shape)} of dtype {labels.dtype}"
        )
    numbers = labels.unique()
    if not torch.equal(numbers, torch.arange(len(numbers))):
        raise ValueError(
            f"labels must be 0 … K - 1, each with an example, since every other would be a class without any; got "
            f"{len(numbers)} numbers from {int(numbers[0])} to {int(numbers[-1])}: store "
            "numpy.unique(labels, return_inverse=True)[1]"
        )


def fitted(x: Tensor, resolution: int, channels: int) -> Tensor:
    """Return images (N, C, H, W) in the channels, and of the resolution unless it is 0; of the dtype that they have."""
    own, (height, width) = x.shape[1], x.shape[2:]
    if channels != own and {channels, own} != {1, 3}:
        raise ValueError(f"images of {own} channel(s) cannot have --channels {channels}; expected {own}, or 1 from 3")
    resolution = resolution if {height, width} != {resolution} else 0
    if channels == own and not resolution:
        return x if x.dtype == torch.uint8 else x.float()
    say(
        f"x {tuple(x.shape[1:])}: brought to {channels} channel(s)"
        + f", middle square of {resolution}" * bool(resolution)
    )
    return torch.cat([_converted(part, resolution, channels) for part in x.split(1024)])


def _converted(x: Tensor, resolution: int, channels: int) -> Tensor:
    whole = x.dtype == torch.uint8
    x = x.float()
    if channels > x.shape[1]:
        x = x.expand(-1, channels, -1, -1)
    elif channels < x.shape[1]:
        x = (x * x.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    if resolution:
        height, width = x.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        middle, size = x[..., top : top + side, left : left + side], (resolution, resolution)
        x = F.interpolate(middle, size=size, mode="bicubic", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8) if whole else x.clamp(-1, 1)
