"""Image files, from a folder or a hub, as a data set: looked through, converted, decoded once or streamed."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .images import MAX_PIXELS, BadImage, Header, TooLarge, header
from .source import Data
from .streaming import Encoded, Skipping, Stream, read

__all__ = ["IN_MEMORY", "load_encoded", "say"]

IN_MEMORY = 2 * 2**30
"""Bytes of decoded training images up to which they are kept in memory."""

T = TypeVar("T")


def say(text: str) -> None:
    """Print it, on the main process."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def load_encoded(
    name: str,
    files: Encoded,
    held: Tensor,
    labels: Tensor | None,
    class_names: Sequence[str],
    resolution: int | None,
    channels: int | None,
    skip_bad_images: int = 0,
    workers: int = 2,
    in_memory: int = IN_MEMORY,
) -> Data:
    """The data set of some image files.

    Arguments: name, as in `--data`; files; held (N,) bool, those to hold out; labels (N,) or None; class_names;
    resolution, None if all files have the same square size; channels, 1 or 3 (None: 1 if none has colours);
    skip_bad_images, how many may be left out; workers and in_memory: decoded training images of more bytes than
    in_memory are streamed through so many processes, and as many held-out images kept as fit into a quarter of it.
    Raises ValueError naming the file for what cannot be read, and for what does not fit.
    """
    skipping = Skipping(name, skip_bad_images)
    headers = _survey(name, files, skipping)
    good = torch.tensor(sorted(headers), dtype=torch.long)
    if not headers:
        raise ValueError(f"--data {name}: no image is left to train on")
    resolution = resolution or _common_size(name, headers)
    channels = channels or (1 if all(h.grey for h in headers.values()) else 3)
    if channels not in (1, 3):
        raise ValueError(f"--data {name} can have --channels 1 or 3; got {channels}")
    _report(name, headers, resolution, channels)
    shape = (channels, resolution, resolution)
    bytes_each = channels * resolution**2
    train, held_out = good[~held[good]], good[held[good]]
    if not len(train):
        train, held_out = held_out, train
    stream = None
    if len(train) * bytes_each > in_memory:
        # Any subset would do: the files' order does not depend on which are held out.
        held_out = held_out[: max(64, in_memory // 4 // bytes_each)]
        stream = Stream(files, train, shape, workers, skipping)
        say(f"--data {name}: {len(train)} images are decoded by {workers} worker(s) as batches need them")
        x = None
    else:
        x, train = _decoded(files, train, shape, skipping)
    held_x, held_out = _decoded(files, held_out, shape, skipping)
    if skipping.found:
        say(f"--data {name}: skipped {len(skipping.found)} bad image(s): {', '.join(list(skipping.found)[:5])}")
    if not len(train):
        raise ValueError(f"--data {name}: no image is left to train on")
    return Data(
        name,
        shape,
        0 if labels is None else len(class_names),
        256,
        x,
        None if labels is None else labels[train],
        held_x if len(held_x) else None,
        None if labels is None or not len(held_x) else labels[held_out],
        stream=stream,
        class_names=tuple(class_names),
    )


def _in_threads(work: Callable[[Tensor], T], indices: Tensor) -> list[T]:
    """`work` on chunks of indices; Pillow decodes without Python's lock."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, indices.split(256)))


def _survey(name: str, files: Encoded, skipping: Skipping) -> dict[int, Header]:
    """The headers of the files that have one."""

    def look(chunk: Tensor) -> tuple[dict[int, Header], dict[str, str]]:
        found, bad = dict[int, Header](), dict[str, str]()
        for index in chunk.tolist():
            try:
                with files.open(index) as file:
                    found[index] = header(file)
            except TooLarge as error:
                raise ValueError(
                    f"--data {name}: {files.name(index)} is refused: {error}, as more may be a decompression bomb: "
                    "make it smaller or remove it"
                ) from error
            except PermissionError as error:
                raise ValueError(
                    f"--data {name}: {files.name(index)}: permission denied; make it readable or remove it"
                ) from error
            except (BadImage, OSError) as error:
                bad[files.name(index)] = str(error)
        return found, bad

    with warnings.catch_warnings():
        # Pillow's warning of large images: they are refused.
        warnings.filterwarnings("ignore", f".*exceeds limit of {MAX_PIXELS} pixels")
        parts = _in_threads(look, torch.arange(len(files)))
    skipping.add({file: why for _, bad in parts for file, why in bad.items()})
    return {index: found for part, _ in parts for index, found in part.items()}


def _common_size(name: str, headers: dict[int, Header]) -> int:
    sizes = Counter((h.height, h.width) for h in headers.values())
    if len(sizes) == 1 and (size := next(iter(sizes)))[0] == size[1]:
        return size[0]
    low, high = (f"{height} × {width}" for height, width in (min(sizes), max(sizes)))
    got = f"{len(sizes)} sizes, {low} to {high}" if len(sizes) > 1 else low
    raise ValueError(
        f"--data {name}: its images are of {got} (height × width): give --resolution N, to which the middle square of "
        "each is resized"
    )


def _report(name: str, headers: dict[int, Header], resolution: int, channels: int) -> None:
    """What is done to the images, said once."""
    kinds = Counter(h.kind for h in headers.values())
    own = {1: "grayscale", 3: "RGB"}[channels]
    how = {"with alpha": "with alpha, laid over white", "16-bit": "16-bit, of which the high byte is kept"}
    changed = [f"{count} {how.get(kind, kind)}" for kind, count in sorted(kinds.items()) if kind != own]
    if changed:
        say(f"--data {name}: converted to {channels} channel(s): {'; '.join(changed)}")
    resized = sum((h.height, h.width) != (resolution, resolution) for h in headers.values())
    if resized:
        say(f"--data {name}: {resized} image(s): the middle square resized to {resolution} × {resolution} (bicubic)")


def _decoded(files: Encoded, indices: Tensor, shape: tuple[int, ...], skipping: Skipping) -> tuple[Tensor, Tensor]:
    """The images at `indices` that are good, (N, *shape) uint8, and their indices (N,)."""
    out = torch.empty(len(indices), *shape, dtype=torch.uint8)
    good = torch.ones(len(indices), dtype=torch.bool)

    def fill(rows: Tensor) -> dict[str, str]:
        bad = {}
        for row in rows.tolist():
            index = int(indices[row])
            pixels, why = read(files, index, shape[-1], shape[0])
            if pixels is None:
                good[row] = False
                bad[files.name(index)] = why
            else:
                out[row] = torch.from_numpy(np.array(pixels))
        return bad

    parts = _in_threads(fill, torch.arange(len(indices)))
    skipping.add({file: why for bad in parts for file, why in bad.items()})
    return (out, indices) if good.all() else (out[good], indices[good])
