"""The manifest of a checkpoint: what was saved, with sizes and SHA-256; a checkpoint without a right one is none.

RUN/checkpoints/step-N/
    NAME.safetensors, NAME.json            shared by all processes
    rank-R.safetensors, rank-R.json        one of each per process
    manifest.json                          written last
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from ...refusal import Refusal

__all__ = ["FORMAT", "CheckpointError", "OtherFormat", "check_content", "load_manifest", "make_manifest", "newest",
           "steps_in", "verify"]  # fmt: skip

FORMAT = 2

# A name that stays inside its folder on every system and does not look like a temporary one.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(safetensors|json)")
_REMEDY = "resume from another checkpoint, or let --resume auto choose one"


class CheckpointError(Refusal):
    """A checkpoint that cannot be written, or is not what was written."""


class OtherFormat(CheckpointError):
    """A checkpoint of another version of hybrids: whole, though not for this version to read or to write over."""


def _render(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1, sort_keys=True)


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(_render(body).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_manifest(folder: Path, step: int, card: dict[str, Any], world_size: int) -> str:
    """The text of the manifest of a folder whose files are all written.

    Each tensor file's header is read back, which a file cut short does not survive.
    """
    from safetensors import safe_open

    files = {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    for rank in range(world_size):
        if f"rank-{rank}.json" not in files:
            raise FileNotFoundError(f"{folder} lacks the files of rank {rank}: all processes must share the run folder")
    tensors: dict[str, dict[str, list[Any]]] = {}
    for name in files:
        if name.endswith(".safetensors"):
            with safe_open(folder / name, framework="pt") as content:
                parts = {key: content.get_slice(key) for key in content.keys()}
                tensors[name] = {key: [part.get_shape(), part.get_dtype()] for key, part in parts.items()}
    body = dict(format=FORMAT, step=step, card=card, world_size=world_size, tensors=tensors, files=files)
    return _render({**body, "seal": _seal(body)})


def _well_formed(body: dict[str, Any]) -> bool:
    kinds = {"step": int, "world_size": int, "card": dict, "tensors": dict}
    return all(isinstance(body.get(key), kind) for key, kind in kinds.items()) and all(
        isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        for entry in body["files"].values()
    )


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, itself verified, its files not yet.

    Raises `CheckpointError` naming the file: nothing there, no manifest (the save was cut off), unreadable, of another
    format, a path that leads out of the folder, or a changed byte (its seal is the SHA-256 of the rest).
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such checkpoint folder (looked for {folder.resolve()})")
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, so the checkpoint is incomplete; {_REMEDY}")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    version = body.get("format") if isinstance(body, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: is no manifest: it states no format; {_REMEDY}")
    if version > FORMAT:
        raise OtherFormat(f"{path}: is of format {version}, this hybrids reads format {FORMAT}; update hybrids")
    if version < FORMAT:
        raise OtherFormat(
            f"{path}: is of format {version}, which an older hybrids wrote; this one reads format {FORMAT}, in which "
            "modules and weights have other names: go on with that version, or start over in another --out"
        )
    files = body.get("files")
    if not isinstance(files, dict) or not _well_formed(body):
        raise CheckpointError(f"{path}: is no manifest of format {version}: entries are missing; {_REMEDY}")
    for name in files:
        if not _PLAIN.fullmatch(name) or name == path.name:
            raise CheckpointError(f"{path}: lists {name!r}, which is no plain file name in its folder; {_REMEDY}")
    if body.pop("seal", None) != _seal(body):
        raise CheckpointError(f"{path}: was changed after it was written (its SHA-256 is another); {_REMEDY}")
    return body


def _check_size(path: Path, entry: dict[str, Any]) -> None:
    # is_file, since opening a pipe or a device under this name could wait for ever.
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; {_REMEDY}")
    size = path.stat().st_size
    if size != entry["size"]:
        raise CheckpointError(f"{path}: has {size} bytes, expected {entry['size']} (truncated?); {_REMEDY}")


def _check_digest(path: Path, entry: dict[str, Any], found: str) -> None:
    if found != entry["sha256"]:
        raise CheckpointError(
            f"{path}: its SHA-256 is {found[:12]}..., expected {entry['sha256'][:12]}... (corrupted); {_REMEDY}"
        )


def check_content(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    """The bytes of one file, which are the ones that were checked: nothing can change in between."""
    path, entry = folder / name, manifest["files"].get(name)
    if entry is None:
        raise CheckpointError(f"{path}: is not in the manifest; {_REMEDY}")
    _check_size(path, entry)
    content = path.read_bytes()
    _check_digest(path, entry, hashlib.sha256(content).hexdigest())
    return content


def verify(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint every file of which is as it was written.

    Raises `CheckpointError` naming the file: as `load_manifest`, or missing, of another size, of another SHA-256.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    for name, entry in manifest["files"].items():
        _check_size(folder / name, entry)
    for name, entry in manifest["files"].items():
        _check_digest(folder / name, entry, _digest(folder / name))
    return manifest


def steps_in(root: str | os.PathLike[str]) -> dict[int, Path]:
    """The checkpoint folders in `root` by step, valid or not, in ascending order.

    A save over an existing step moves the old folder aside under a hidden name; where it was killed before the new one
    was in place, the old one still counts.
    """
    found: dict[int, Path] = {}
    for path in Path(root).glob("*") if Path(root).is_dir() else ():
        match = re.fullmatch(r"step-(\d+)|\.step-(\d+)\.old", path.name)
        if match and (match[1] or int(match[2]) not in found):
            found[int(match[1] or match[2])] = path
    return dict(sorted(found.items()))


def newest(root: str | os.PathLike[str]) -> Path | None:
    """The newest valid checkpoint in `root` (a run's `checkpoints`), or `None`.

    Warns of each invalid or incomplete one that it passes over. Raises `OtherFormat` rather than pass over a checkpoint
    that another version of hybrids can read.
    """
    for folder in reversed(steps_in(root).values()):
        try:
            verify(folder)
        except OtherFormat:
            raise
        except CheckpointError as error:
            warnings.warn(f"checkpoint passed over: {error}", stacklevel=2)
        else:
            return folder
    return None
