"""Checkpoints: written whole or not at all, read only as they were written, and never through pickle.

RUN/checkpoints/step-N/                    `root` is RUN/checkpoints throughout
    PART.safetensors, PART.json            shared by all processes: the tensors and values of a `State`
    rank-R.safetensors, rank-R.json        one of each per process
    manifest.json                          written last: sizes, SHA-256, shapes; without a right one it is none
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch

from ...files import flush, parse_tensors, refuse_lossy, remove, write_json, write_tensors, write_text
from ...processes import agree
from ...refusal import CANNOT_WRITE, Refusal, is_main
from .state import State

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    PathLike: TypeAlias = str | os.PathLike[str]
    Processes: TypeAlias = Accelerator | PartialState

__all__ = ["FORMAT", "Checkpoint", "CheckpointError", "OtherFormat", "check", "load_manifest", "newest", "read",
           "read_newest", "save", "steps_in", "verify"]  # fmt: skip

FORMAT = 2

T = TypeVar("T")


class CheckpointError(Refusal):
    """A checkpoint that cannot be written, or is not what was written."""


class OtherFormat(CheckpointError):
    """A checkpoint of another version of hybrids: whole, though not for this version to read or to write over."""


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, on the CPU; the rank's parts are `None` where they are not of use to this rank."""

    folder: Path
    step: int
    card: dict[str, Any]
    world_size: int
    state: State


def save(root: PathLike, step: int, state: State, card: dict[str, Any], accelerator: Processes, keep: int) -> Path:
    """Write the checkpoint `root/step-N` from all ranks, and return its folder once it is whole and on the disk.

    Into a temporary folder beside it go the parts, then the manifest; one rename puts it in its place; then all but the
    `keep` newest are removed, and those of a later step, being of a history that the run went back from.

    Arguments: root; step; state, of which each rank writes its own part and the main process the rest; card, what else
    JSON can hold of the run; keep, at least 1.
    Raises `CheckpointError` (exit code 74) on every rank if any fails, with the cause: nothing is left over, and the
    earlier checkpoints are as they were.
    """
    root = Path(root)
    target, temporary = root / f"step-{step}", root / f".step-{step}.tmp"
    main, rank = accelerator.is_main_process, accelerator.process_index
    digests: dict[str, str] = {}

    def prepare() -> None:
        for name in [*state.tensors, *state.values]:
            if not _PART.fullmatch(name) or name == "manifest" or name.startswith("rank-"):
                raise ValueError(f"a part's name must be a plain file name, not manifest or rank-; got {name!r}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        refuse_lossy(card, "card")
        if root.is_symlink():
            raise OSError(errno.ELOOP, "is a symbolic link, and nothing is written through one", str(root))
        root.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()

    def write() -> None:
        tensors = {**(state.tensors if main else {}), f"rank-{rank}": state.rank_tensors or {}}
        values = {**(state.values if main else {}), f"rank-{rank}": state.rank_values}
        # The processor hashes a file, and the disk writes it, while the next is made.
        with ThreadPoolExecutor() as pool:
            jobs = []
            for write_part, suffix, parts in ((write_tensors, ".safetensors", tensors), (write_json, ".json", values)):
                for name, part in parts.items():
                    path = temporary / f"{name}{suffix}"
                    write_part(path, part, wait=False)
                    jobs.append((path.name, pool.submit(flush, path), pool.submit(_digest, path)))
            for name, flushed, digest in jobs:
                flushed.result()
                digests[name] = digest.result()

    def finish() -> None:
        text = _manifest(temporary, step, card, accelerator.num_processes, digests)
        write_text(temporary / "manifest.json", text)
        flush(temporary)
        _replace(temporary, target)

    for action, everywhere in ((prepare, False), (write, True), (finish, False)):
        cause: Exception | None = None
        if main or everywhere:
            try:
                action()
            except Exception as error:
                cause = error
        if errors := agree(accelerator, None if cause is None else f"{type(cause).__name__}: {cause}"):
            # After the agreement no rank writes there any more; before the barrier none exits, which would end it.
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
            accelerator.wait_for_everyone()
            free = f"{shutil.disk_usage(root).free / 2**20:.0f} MiB are free there; " if root.is_dir() else ""
            raise CheckpointError(
                f"{target}: was not saved ({'; '.join(errors)}); {free}earlier checkpoints are intact: make room or "
                "repair the cause, then go on with --resume auto (in a script: hybrids.restore)",
                code=CANNOT_WRITE,
            ) from cause
    if main:
        _prune(root, step, keep)
    return target


def read(
    folder: PathLike,
    rank: int | None = None,
    world_size: int | None = None,
    only: Sequence[str] = ("*",),
) -> Checkpoint:
    """Return the checkpoint in `folder`; the bytes that are loaded are those whose SHA-256 was taken.

    Arguments: rank, whose own parts to read; world_size: they are left out where another number of processes wrote
    them; only, patterns of the shared parts to read, such as `stage-*`: the others may be damaged.
    Raises `CheckpointError` as `verify` does.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    own = f"rank-{rank}.json" in manifest["files"] and world_size in (None, manifest["world_size"])

    def shared(suffix: str) -> dict[str, Any]:
        names = [name for name in manifest["files"] if name.endswith(suffix) and not name.startswith("rank-")]
        stems = [name.removesuffix(suffix) for name in names]
        chosen = [stem for stem in stems if any(fnmatchcase(stem, pattern) for pattern in only)]
        return {stem: _content(folder, stem + suffix, manifest) for stem in chosen}

    state = State(
        tensors=shared(".safetensors"),
        values=shared(".json"),
        rank_tensors=_content(folder, f"rank-{rank}.safetensors", manifest) if own else None,
        rank_values=_content(folder, f"rank-{rank}.json", manifest) if own else None,
    )
    return Checkpoint(folder, manifest["step"], manifest["card"], manifest["world_size"], state)


def read_newest(
    source: PathLike, accelerator: Processes | None = None, only: Sequence[str] = ("*",)
) -> Checkpoint | None:
    """Return the checkpoint `source`, or the newest valid one in the folder `source`; None where there is none at all.

    Arguments: accelerator, of which every rank calls it and gets the same checkpoint, with its own parts (None: the
    shared parts alone); only, as in `read`.
    Warns of each that is passed over. Raises `CheckpointError` where all are damaged, with the reasons, and
    `OtherFormat` rather than pass over a checkpoint that another version of hybrids can read.
    """
    rank, size = (None, None) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    return _newest_valid(source, lambda folder: read(folder, rank, size, only), accelerator)


def newest(source: PathLike, only: Sequence[str] = ("*",)) -> Path | None:
    """Return the folder of the checkpoint that `read_newest` would return, with its files verified."""
    return _newest_valid(source, lambda folder: (verify(folder, only), folder)[1], None)


def verify(folder: PathLike, only: Sequence[str] = ("*",)) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose files are as they were written: all, or those of the parts `only`.

    Raises `CheckpointError` naming the file: as `load_manifest`, or missing, of another size, of another SHA-256.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    for name in manifest["files"]:
        if any(fnmatchcase(Path(name).stem, pattern) for pattern in only):
            check(folder, name, manifest)
    return manifest


def check(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Raise `CheckpointError` for a file that is missing, or of another size or SHA-256 than its manifest says."""
    _check_size(folder, name, manifest)
    _check_digest(folder, name, manifest, _digest(folder / name))


def load_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint folder, itself verified, its files not yet.

    Raises `CheckpointError` naming the file: nothing there, no manifest (the save was cut off), unreadable, of another
    format, a path that leads out of the folder, or a changed byte (its seal is the SHA-256 of the rest).
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such checkpoint folder (looked for {os.path.realpath(folder)})")
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, so the checkpoint is incomplete; {_REMEDY}")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {_REMEDY}") from None
    version = body.get("format") if isinstance(body, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: is no manifest: it states no format; {_REMEDY}")
    if version != FORMAT:
        older = "an older hybrids wrote it: go on with that version, or start over in another --out"
        remedy = older if version < FORMAT else "update hybrids"
        raise OtherFormat(f"{path}: is of format {version}, this hybrids reads format {FORMAT}; {remedy}")
    if not _well_formed(body):
        raise CheckpointError(f"{path}: is no manifest of format {version}: entries are missing; {_REMEDY}")
    for name in body["files"]:
        if not _FILE.fullmatch(name) or name == path.name:
            raise CheckpointError(f"{path}: lists {name!r}, which is no plain file name in its folder; {_REMEDY}")
    if body.pop("seal", None) != _seal(body):
        raise CheckpointError(f"{path}: was changed after it was written (its SHA-256 is another); {_REMEDY}")
    return body


def steps_in(root: PathLike) -> dict[int, Path]:
    """Return the checkpoint folders in `root` by step, valid or not, in ascending order.

    A save over an existing step moves the old folder aside under a hidden name; where it was killed before the new one
    was in place, the old one still counts.
    """
    steps: dict[int, Path] = {}
    for path in Path(root).glob("*") if Path(root).is_dir() else ():
        match = re.fullmatch(r"step-(\d+)|\.step-(\d+)\.old", path.name)
        if match and (match[1] or int(match[2]) not in steps):
            steps[int(match[1] or match[2])] = path
    return dict(sorted(steps.items()))


def _newest_valid(source: PathLike, attempt: Callable[[Path], T], accelerator: Processes | None) -> T | None:
    """Return what `attempt` returns for the newest checkpoint for which no rank raises `CheckpointError`."""
    source = Path(source)
    alone = (source / "manifest.json").exists() or bool(re.fullmatch(r"step-\d+", source.name))
    reasons: list[str] = []
    for folder in [source] if alone else reversed(steps_in(source).values()):
        result, error = None, None
        try:
            result = attempt(folder)
        except CheckpointError as problem:
            error = problem
        errors = [str(error)] if error else []
        if accelerator is not None:
            errors = agree(accelerator, str(error) if error else None)
        if isinstance(error, OtherFormat):
            raise error
        if not errors:
            if is_main():
                for reason in reasons:
                    warnings.warn(f"checkpoint passed over: {reason}", stacklevel=3)
            return result
        reasons += errors
    if alone:
        raise CheckpointError(reasons)
    if reasons:
        raise CheckpointError(
            f"{source}: none of its checkpoints is whole ({'; '.join(reasons)}); nothing was changed: "
            f"`python scripts/verify.py {source}` says what is still usable of each and how"
        )
    return None


# A name that stays inside its folder on every system and does not look like a temporary one.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FILE = re.compile(_PART.pattern + r"\.(safetensors|json)")
_REMEDY = "go on from another checkpoint, or let --resume auto choose one"


def _manifest(folder: Path, step: int, card: dict[str, Any], world_size: int, digests: dict[str, str]) -> str:
    """Return the text of the manifest of a folder whose files are all written; digests are those taken already.

    Each tensor file's header is read back, which a file cut short does not survive.
    """
    from safetensors import safe_open

    paths = sorted(folder.iterdir())
    files = {p.name: {"size": p.stat().st_size, "sha256": digests.get(p.name) or _digest(p)} for p in paths}
    for rank in range(world_size):
        if f"rank-{rank}.json" not in files:
            raise FileNotFoundError(f"{folder} lacks the files of rank {rank}: all processes must share the run folder")
    tensors: dict[str, dict[str, list[Any]]] = {}
    for name in files:
        if name.endswith(".safetensors"):
            with safe_open(folder / name, framework="pt") as content:
                slices = {key: content.get_slice(key) for key in content.keys()}
                tensors[name] = {key: [one.get_shape(), one.get_dtype()] for key, one in slices.items()}
    body = dict(format=FORMAT, step=step, card=card, world_size=world_size, tensors=tensors, files=files)
    return _render({**body, "seal": _seal(body)})


def _render(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1, sort_keys=True)


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(_render(body).encode()).hexdigest()


def _well_formed(body: dict[str, Any]) -> bool:
    kinds = {"step": int, "world_size": int, "card": dict, "tensors": dict, "files": dict}
    return (
        all(isinstance(body.get(key), kind) for key, kind in kinds.items())
        and body["step"] >= 0 < body["world_size"]
        and all(
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
            for entry in body["files"].values()
        )
        and all(
            isinstance(tensors, dict) and all(_is_shape_and_dtype(entry) for entry in tensors.values())
            for tensors in body["tensors"].values()
        )
    )


def _is_shape_and_dtype(entry: Any) -> bool:
    pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list) and isinstance(entry[1], str)
    return pair and all(isinstance(n, int) and n >= 0 for n in entry[0])


def _content(folder: Path, name: str, manifest: dict[str, Any]) -> Any:
    """Return what one file holds: it is mapped into memory, hashed there and parsed there, without a copy."""
    size = _check_size(folder, name, manifest)
    try:
        with (folder / name).open("rb") as file:
            # Copy on write: the tensors can be written to, and the file stays as it is.
            content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if size else bytearray()
    except OSError as error:
        raise CheckpointError(f"{folder / name}: cannot be read ({error.strerror}); {_REMEDY}") from error
    _check_digest(folder, name, manifest, hashlib.sha256(content).hexdigest())
    try:
        if name.endswith(".safetensors"):
            return parse_tensors(torch.frombuffer(content, dtype=torch.uint8) if size else torch.empty(0))
        return json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name}: cannot be read ({error})") from None


def _check_size(folder: Path, name: str, manifest: dict[str, Any]) -> int:
    path, expected = folder / name, manifest["files"].get(name, {}).get("size")
    if expected is None:
        raise CheckpointError(f"{path}: is not in the manifest; {_REMEDY}")
    # is_file, since opening a pipe or a device under this name could wait for ever.
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; {_REMEDY}")
    size = path.stat().st_size
    if size != expected:
        raise CheckpointError(f"{path}: has {size} bytes, expected {expected} (truncated?); {_REMEDY}")
    return size


def _check_digest(folder: Path, name: str, manifest: dict[str, Any], digest: str) -> None:
    expected = manifest["files"][name]["sha256"]
    if digest != expected:
        raise CheckpointError(
            f"{folder / name}: its SHA-256 is {digest[:12]}..., expected {expected[:12]}... (corrupted); {_REMEDY}"
        )


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error


def _replace(temporary: Path, target: Path) -> None:
    """Put a complete folder in its place; at no moment is there neither the old nor the new one."""
    aside = target.with_name(f".{target.name}.old")
    if target.exists():
        remove(aside)
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise
    flush(target.parent)
    remove(aside)


def _prune(root: Path, step: int, keep: int) -> None:
    # Later steps belong to a history that the run went back from: `newest` would return to it.
    steps = steps_in(root)
    earlier = [s for s in steps if s < step]
    try:
        for s in [s for s in steps if s > step] + earlier[: max(0, len(earlier) - (keep - 1))]:
            # Hidden first: half a removed checkpoint must not look like one.
            hidden = root / f".step-{s}.gone"
            remove(hidden)
            os.rename(steps[s], hidden)
        present = set(steps_in(root).values())
        for path in root.glob(".step-*"):
            if path not in present:
                remove(path)
    except OSError as error:
        warnings.warn(f"old checkpoints in {root} were not all removed: {error}", stacklevel=3)
