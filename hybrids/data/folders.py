"""Folders of images, searched through recursively; the folders right below name the classes."""

import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import torch

from .encoded import load_encoded, say
from .images import EXTENSIONS
from .source import Data

__all__ = ["Folder", "folder"]

HELD_OUT = 0.1


class Folder:
    """The image files below a folder, sorted by path.

    Raises ValueError, with the path, for a folder that is missing, empty, not permitted or within itself (by a link).
    """

    def __init__(self, root: Path) -> None:
        self.root, self.ignored = root, 0
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
        """The images' paths, relative to the root."""
        found = []
        path = folder
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                raise ValueError(f"--data {self.root}: {folder} links to a folder that it lies in; remove the link")
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = entry.path
                    if entry.is_dir():
                        found += self._search(path, (*above, here))
                    elif self._is_image(entry):
                        found.append(os.path.relpath(path, self.root))
                    else:
                        self.ignored += 1
        except PermissionError as error:
            raise ValueError(
                f"--data {self.root}: {error.filename or path}: permission denied; make it readable or remove it"
            ) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ValueError(f"--data {self.root}: {path} is a link that leads to itself; remove it") from error
            raise ValueError(f"--data {self.root}: {path} cannot be searched: {error.strerror}") from error
        return found

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        # Hidden files, such as the ._* of macOS, and pipes bear any name; a broken link is reported as a bad image.
        if entry.name.startswith(".") or not entry.name.lower().endswith(EXTENSIONS):
            return False
        return entry.is_file() or entry.is_symlink()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.root / self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """Its bytes."""
        return open(self.root / self.paths[index], "rb")

    def classes(self) -> tuple[tuple[str, ...], torch.Tensor | None]:
        """The folders right below the root, if every image is in one of at least two, and the label (N,) of each."""
        tops = [path.split(os.sep, 1)[0] if os.sep in path else "" for path in self.paths]
        names = tuple(sorted(set(tops)))
        if "" in names or len(names) < 2:
            return (), None
        number = {name: i for i, name in enumerate(names)}
        return names, torch.tensor([number[top] for top in tops])

    def held_out(self) -> torch.Tensor:
        """(N,) bool, about a tenth, by a hash of each path below the root: further images change no other's part."""
        hashes = (hashlib.sha256(path.replace(os.sep, "/").encode("utf-8", "surrogateescape")) for path in self.paths)
        return torch.tensor([int.from_bytes(h.digest()[:8]) < HELD_OUT * 2**64 for h in hashes])


def folder(
    path: str | os.PathLike[str],
    resolution: int | None = None,
    channels: int | None = None,
    skip_bad_images: int = 0,
    workers: int = 2,
) -> Data:
    """The images below a folder, a tenth of them held out; see `load_encoded` for the rest."""
    files = Folder(Path(path).expanduser().resolve())
    if files.ignored:
        say(f"--data {files.root}: {len(files)} images; ignored {files.ignored} other file(s)")
    names, labels = files.classes()
    return load_encoded(
        str(files.root), files, files.held_out(), labels, names, resolution, channels, skip_bad_images, workers
    )
