"""Numbers of an evaluation that are kept as they come, so that one that was killed goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import flush, remove, write_json, write_tensors, write_whole

__all__ = ["Chunks"]


class Chunks:
    """A folder of finished chunks, {name: (N,)} each, by number; beside them a card that says what they are of.

    A chunk is there whole or not at all, and on the disk once `write` returns. Any number of processes may write,
    each its own numbers.
    Arguments: folder; card, of what JSON holds: chunks under another card are of another evaluation.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any]) -> None:
        self.folder, self.card = folder, json.loads(json.dumps(card))

    def claim(self) -> list[str]:
        """Keep what is there under this very card, else start over; the names of the settings that had changed.

        One process calls it, before any writes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "card.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before == self.card:
            return []
        for stale in self.folder.glob("chunk-*"):
            remove(stale)
        self._whole(path, lambda temporary: write_json(temporary, self.card))
        known = before if isinstance(before, dict) else self.card
        return sorted(name for name in {**known, **self.card} if known.get(name) != self.card.get(name))

    def __contains__(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, values: Mapping[str, Tensor]) -> None:
        """Keep a chunk."""
        self._whole(self._path(number), lambda temporary: write_tensors(temporary, values))

    def read(self, number: int) -> dict[str, Tensor]:
        """A chunk that was kept."""
        from safetensors.torch import load_file

        return load_file(self._path(number))

    def remove(self) -> None:
        """Remove all of them."""
        remove(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.safetensors"

    def _whole(self, path: Path, write: Any) -> None:
        write_whole(path, write)
        flush(self.folder)
