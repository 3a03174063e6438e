"""Folders of images: which files are found, what is converted, what is decoded once and what is streamed.

The folders right below the root name the classes. `image_data` does the same for image files from elsewhere (the hub).
"""

import errno
import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from .images import EXTENSIONS, MAX_PIXELS, BadImage, Header, TooLarge, header
from .source import Data, say, trained_on
from .streaming import Encoded, Skipping, Stream, read

__all__ = ["IN_MEMORY", "Folder", "folder", "image_data"]

HELD_OUT = 0.1
IN_MEMORY = 2 * 2**30
"""Bytes of decoded training images up to which they are kept in memory."""
SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing", "heldout"}
)
"""Folders that hold parts of a data set and not classes, in lower case, without - and _."""

T = TypeVar("T")


def folder(
    path: str | os.PathLike[str],
    resolution: int | None = None,
    channels: int | None = None,
    skip_bad_images: int = 0,
    workers: int = 2,
) -> Data:
    """Return the images below a folder, a tenth of them held out by a hash of each path, but never all of a class.

    Where every image is in one of at least two folders right below the root, these are its classes, in the order of
    their names (numbers in them count as numbers: 2 is before 10). Hidden folders and files that are no images are
    ignored and counted.

    Arguments: as for `image_data`.
    Raises:
        ValueError: the folder is missing, holds no images, holds train and validation folders instead of classes, is
            not permitted or within itself (by a link); or as for `image_data`.
    """
    files = Folder(Path(path).expanduser().resolve())
    if files.ignored:
        hidden = f", {files.hidden} hidden folder(s) among them" if files.hidden else ""
        say(f"--data {files.root}: {len(files)} images; ignored {files.ignored} other file(s){hidden}")
    names, labels = files.classes()
    held = files.held_out() if labels is None else trained_on(files.held_out(), labels)
    return image_data(str(files.root), files, held, labels, names, resolution, channels, skip_bad_images, workers)


def image_data(
    name: str,
    files: Encoded,
    held: Tensor,
    labels: Tensor | None,
    class_names: Sequence[str],
    resolution: int | None,
    channels: int | None,
    skip_bad_images: int = 0,
    workers: int = 2,
) -> Data:
    """Return the data set of some image files, in memory if its decoded training images fit into IN_MEMORY bytes.

    Of a larger one the training images are streamed, and as many held-out images kept as fit into a quarter of that.

    Arguments:
        name: as in `--data`.
        files: the encoded images.
        held: (N,) bool, those to hold out.
        labels: (N,) int64, or None.
        class_names: what the labels mean.
        resolution: R of the middle square of each; None if all files have the same square size.
        channels: 1 or 3; None for 1 if none has colours, else 3.
        skip_bad_images: how many may be left out.
        workers: processes that decode streamed images.
    Raises:
        ValueError: a file cannot be read (with its name), the sizes differ and no resolution is given, there is no
            image left, or none of a class, or 16-bit images hold 12 bits or less.
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
    x, stream = None, None
    if len(train) * bytes_each > IN_MEMORY:
        # Any subset would do: the files' order does not depend on which are held out.
        held_out = held_out[: max(64, IN_MEMORY // 4 // bytes_each)]
        stream = Stream(files, train, shape, workers, skipping)
        say(f"--data {name}: {len(train)} images are decoded by {workers} worker(s) as batches need them")
    else:
        x, train = _decoded(files, train, shape, skipping)
    held_x, held_out = _decoded(files, held_out, shape, skipping)
    if skipping.bad:
        say(f"--data {name}: skipped {len(skipping.bad)} bad image(s): {', '.join(list(skipping.bad)[:5])}")
    if not len(train):
        raise ValueError(f"--data {name}: no image is left to train on")
    _check_classes(name, labels, held, train, class_names)
    parts = [(held_x, held_out)] if x is None else [(x, train), (held_x, held_out)]
    _check_depth(name, headers, parts)
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


class Folder:
    """The image files below a folder, sorted by path.

    Arguments: root. Attributes: paths of the images relative to it; ignored, how many other files and hidden folders
    there are; hidden, how many of these are hidden folders.
    Raises ValueError, with the path, for a folder that is missing, empty, not permitted or within itself (by a link).
    """

    def __init__(self, root: Path) -> None:
        self.root, self.ignored, self.hidden = root, 0, 0
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "is not there"
            raise ValueError(f"--data {root} {what}; expected a folder of images ({', '.join(EXTENSIONS)})")
        self.paths = sorted(self._search(str(root), ()))
        if not self.paths:
            raise ValueError(
                f"--data {root} holds no images, and {self.ignored} other file(s); expected files that end in "
                f"{', '.join(EXTENSIONS)}, here or in folders below"
            )

    def _search(self, folder: str, above: tuple[tuple[int, int], ...]) -> list[str]:
        """Return the images' paths, relative to the root."""
        paths, path = [], folder
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                raise ValueError(f"--data {self.root}: {folder} links to a folder that it lies in; remove the link")
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = entry.path
                    is_folder = entry.is_dir()
                    if is_folder and not _is_hidden(entry.name):
                        paths += self._search(path, (*above, here))
                    elif not is_folder and _is_image(entry):
                        paths.append(os.path.relpath(path, self.root))
                    else:
                        self.ignored += 1
                        self.hidden += is_folder
        except PermissionError as error:
            raise ValueError(
                f"--data {self.root}: {error.filename or path}: permission denied; make it readable or remove it"
            ) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ValueError(f"--data {self.root}: {path} is a link that leads to itself; remove it") from error
            raise ValueError(f"--data {self.root}: {path} cannot be searched: {error.strerror}") from error
        return paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return its path."""
        return str(self.root / self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """Open it for reading."""
        return open(self.root / self.paths[index], "rb")

    def classes(self) -> tuple[tuple[str, ...], Tensor | None]:
        """Return the folders right below the root, if every image is in one of at least two, and the labels (N,).

        Raises ValueError where all these folders have the names of splits, such as train and val; where there is one
        folder only, that holds for those in it.
        """
        tops, names, splits = _tops(self.root, self.paths)
        root, within = self.root, self.paths
        while len(names) == 1 and names[0]:
            root, within = root / names[0], [path.split(os.sep, 1)[1] for path in within]
            _, names, _ = _tops(root, within)
        if "" in names or root != self.root:
            if "" not in names:
                say(f"--data {self.root} holds one folder, so no classes; to train on classes: --data {root}")
            return (), None
        if splits:
            say(f"--data {self.root}: {', '.join(splits)} is trained on as a class, whatever its name")
        number = {name: i for i, name in enumerate(names)}
        return tuple(names), torch.tensor([number[top] for top in tops])

    def held_out(self) -> Tensor:
        """Return which to hold out, (N,) bool: about a tenth, by a hash of each path below the root.

        Further images change no other's part.
        """
        hashes = (hashlib.sha256(path.replace(os.sep, "/").encode("utf-8", "surrogateescape")) for path in self.paths)
        return torch.tensor([int.from_bytes(h.digest()[:8]) < HELD_OUT * 2**64 for h in hashes])


def _tops(root: Path, paths: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the folder right below the root of each path ("" for none), these in order, and those named as splits.

    Raises ValueError where all of them are named as splits.
    """
    tops = [path.split(os.sep, 1)[0] if os.sep in path else "" for path in paths]
    names = sorted(set(tops), key=_in_order)
    folders = [name for name in names if name]
    splits = [name for name in folders if re.sub("[-_ ]", "", name.lower()) in SPLITS]
    if folders and splits == folders:
        first = next((name for name in names if name.lower().startswith("train")), folders[0])
        raise ValueError(
            f"--data {root} holds {' and '.join(splits)}: parts of a data set, not classes; expected a folder of "
            f"training images, whose own folders are the classes: --data {root / first}"
        )
    return tops, names, splits


def _is_hidden(name: str) -> bool:
    """Whether a folder is an application's own: .git, .ipynb_checkpoints, macOS's __MACOSX, a NAS's @eaDir, ..."""
    return name.startswith(".") or name in ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found")


def _is_image(entry: os.DirEntry[str]) -> bool:
    # Hidden files, such as the ._* of macOS, and pipes bear any name; a broken link is reported as a bad image.
    if entry.name.startswith(".") or not entry.name.lower().endswith(EXTENSIONS):
        return False
    return entry.is_file() or entry.is_symlink()


def _in_order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Return the key that sorts names as text, and the numbers in them as numbers."""
    parts = re.split("([0-9]+)", name)
    return [(0, int(part)) if part.isdecimal() and part.isascii() else (1, part) for part in parts if part], name


def _in_threads(work: Callable[[Tensor], T], indices: Tensor) -> list[T]:
    """Return `work` on chunks of indices; Pillow decodes without Python's lock."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, indices.split(256)))


def _survey(name: str, files: Encoded, skipping: Skipping) -> dict[int, Header]:
    """Return the headers of the files that have one."""

    def look(chunk: Tensor) -> tuple[dict[int, Header], dict[str, str]]:
        headers, bad = dict[int, Header](), dict[str, str]()
        for index in chunk.tolist():
            try:
                with files.open(index) as file:
                    headers[index] = header(file)
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
        return headers, bad

    with warnings.catch_warnings():
        # Pillow's warning of large images: they are refused.
        warnings.filterwarnings("ignore", f".*exceeds limit of {MAX_PIXELS} pixels")
        parts = _in_threads(look, torch.arange(len(files)))
    skipping.add({file: why for _, bad in parts for file, why in bad.items()})
    return {index: header for part, _ in parts for index, header in part.items()}


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
    """Print what is done to the images, once."""
    kinds = Counter(h.kind for h in headers.values())
    own = {1: "grayscale", 3: "RGB"}[channels]
    how = {"with alpha": "with alpha, laid over white", "16-bit": "16-bit, of which the high byte is kept"}
    changed = [f"{count} {how.get(kind, kind)}" for kind, count in sorted(kinds.items()) if kind != own]
    if changed:
        say(f"--data {name}: converted to {channels} channel(s): {'; '.join(changed)}")
    resized = sum((h.height, h.width) != (resolution, resolution) for h in headers.values())
    if resized:
        say(f"--data {name}: {resized} image(s): the middle square resized to {resolution} × {resolution} (bicubic)")


def _check_classes(name: str, labels: Tensor | None, held: Tensor, train: Tensor, class_names: Sequence[str]) -> None:
    """Refuse a class whose training images are all bad; print which classes of the hub's list have none.

    Arguments: labels (N,) of all images; held (N,) bool; train, the indices of those to train on; class_names.
    """
    if labels is None:
        return
    listed, good = (torch.bincount(part, minlength=len(class_names)) > 0 for part in (labels[~held], labels[train]))
    if lost := [class_name for class_name, bad in zip(class_names, listed & ~good) if bad]:
        raise ValueError(
            f"--data {name}: no image of {', '.join(lost[:5])} is left to train on, since the rest cannot be read; "
            "mend them or remove the class"
        )
    if empty := [class_name for class_name, some in zip(class_names, good) if not some]:
        which = f"{len(empty)} of its {len(class_names)} classes"
        say(f"--data {name}: {which} have no training image: {', '.join(empty[:5])}")


def _check_depth(name: str, headers: dict[int, Header], parts: list[tuple[Tensor, Tensor]]) -> None:
    """Refuse 16-bit images that hold 12 bits or less: their high bytes alone would be nearly black.

    Arguments: parts, pairs of decoded images (N, C, R, R) and their indices (N,).
    """
    deep = torch.tensor([index for index, h in headers.items() if h.kind == "16-bit"], dtype=torch.long)
    brightest = [int(x[rows].max()) for x, indices in parts if (rows := torch.isin(indices, deep)).any()]
    # One more than 4095 >> 8, since resizing overshoots.
    if brightest and max(brightest) <= 16:
        raise ValueError(
            f"--data {name}: its {len(deep)} 16-bit images hold no value above 4095, as of 12 bits or less; expected "
            "0 (black) to 65535 (white), of which the high byte is kept: multiply the values (12 bits: by 16), or save "
            "8 bits"
        )


def _decoded(files: Encoded, indices: Tensor, shape: tuple[int, ...], skipping: Skipping) -> tuple[Tensor, Tensor]:
    """Return the images at `indices` that are good, (N, *shape) uint8, and their indices (N,)."""
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
