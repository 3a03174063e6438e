"""Partial results of an evaluation on disk, so that one that was interrupted continues from there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import flush, remove, write_json, write_tensors, write_whole

__all__ = ["Chunks"]


class Chunks:
    """A folder of finished chunks of results, {name: (N,)} each, by number, with the settings that they belong to.

    A chunk is written atomically, and is on the disk once `write` returns. Any number of processes may write, each its
    own chunk numbers.

    Arguments:
        folder: created by `claim`.
        settings: JSON-serializable; chunks of other settings are discarded by `claim`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))

    def claim(self) -> list[str]:
        """Prepare the folder: remove chunks of other settings; return the names of the settings that differ.

        One process calls it, before any process writes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "card.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            before = None
        if before == self.settings:
            return []
        for stale in self.folder.glob("chunk-*"):
            remove(stale)
        self._write(path, lambda temporary: write_json(temporary, self.settings))
        old = before if isinstance(before, dict) else self.settings
        return sorted(name for name in {**old, **self.settings} if old.get(name) != self.settings.get(name))

    def __contains__(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, values: Mapping[str, Tensor]) -> None:
        """Write a chunk atomically."""
        self._write(self._path(number), lambda temporary: write_tensors(temporary, values))

    def read(self, number: int) -> dict[str, Tensor]:
        """Return a chunk that was written before. Raises ValueError where it is no such file any more."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(number)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error}); remove it and evaluate again") from None

    def remove(self) -> None:
        """Remove the folder with all chunks."""
        remove(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.safetensors"

    def _write(self, path: Path, write: Any) -> None:
        write_whole(path, write)
        flush(self.folder)
