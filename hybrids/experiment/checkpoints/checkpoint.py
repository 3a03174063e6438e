"""Checkpoints: written whole or not at all, read only as they were written, and never through pickle.

`root` is a run's `checkpoints` folder throughout; `manifest.py` describes what lies in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...files import flush, refuse_lossy, remove, write_json, write_tensors, write_text
from ...processes import agree
from .manifest import (
    CheckpointError,
    OtherFormat,
    check_content,
    load_manifest,
    make_manifest,
    newest,
    steps_in,
    verify,
)
from .run_folder import claim, lock

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Checkpoint", "CheckpointError", "OtherFormat", "claim", "lock", "newest", "read", "save",
           "verify"]  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, on the CPU; the rank's parts are `None` where they are not of use to this rank."""

    folder: Path
    step: int
    card: dict[str, Any]
    world_size: int
    tensors: dict[str, dict[str, Tensor]]
    states: dict[str, Any]
    rank_tensors: dict[str, Tensor] | None
    rank_state: Any | None


def _replace(temporary: Path, target: Path) -> None:
    """Put a complete folder in its place; at no moment is there neither the old nor the new one to be found."""
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
    gone = [s for s in steps if s > step] + earlier[: max(0, len(earlier) - (keep - 1))]
    try:
        for s in gone:
            # Hidden first: half a removed checkpoint must not look like one.
            hidden = root / f".step-{s}.gone"
            remove(hidden)
            os.rename(steps[s], hidden)
        for path in root.glob(".step-*"):
            remove(path)
    except OSError as error:
        warnings.warn(f"old checkpoints in {root} were not all removed: {error}", stacklevel=3)


def save(
    root: str | os.PathLike[str],
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    states: Mapping[str, Any],
    card: Mapping[str, Any],
    accelerator: Accelerator,
    rank_tensors: Mapping[str, Tensor],
    rank_state: Any,
    keep: int,
) -> Path:
    """Write the checkpoint `root/step-N` from all ranks, and return its folder once it is whole and on the disk.

    `tensors` (file name → name → tensor) and `states` (file name → what JSON can hold) are the main process's; the
    `rank_` ones each process's own. The `keep` newest checkpoints stay; any of a later step are removed, being of a
    history that this run went back from. Every rank calls it, and if any fails, every rank raises `CheckpointError`
    with the cause, nothing is left over and the earlier checkpoints are as they were.
    """
    root = Path(root)
    target, temporary = root / f"step-{step}", root / f".step-{step}.tmp"
    main = accelerator.is_main_process

    def prepare() -> None:
        for name in [*tensors, *states]:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == "manifest" or name.startswith("rank-"):
                raise ValueError(f"a part's name must be a plain file name, not manifest or rank-; got {name!r}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        root.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()

    def write() -> None:
        if main:
            for name, part in tensors.items():
                write_tensors(temporary / f"{name}.safetensors", part)
            for name, state in states.items():
                write_json(temporary / f"{name}.json", state)
        write_tensors(temporary / f"rank-{accelerator.process_index}.safetensors", rank_tensors)
        write_json(temporary / f"rank-{accelerator.process_index}.json", rank_state)

    def finish() -> None:
        refuse_lossy(card, "card")
        write_text(temporary / "manifest.json", make_manifest(temporary, step, dict(card), accelerator.num_processes))
        flush(temporary)
        _replace(temporary, target)

    def together(action: Callable[[], None], everywhere: bool) -> None:
        cause: Exception | None = None
        if main or everywhere:
            try:
                action()
            except Exception as error:
                cause = error
        errors = agree(accelerator, None if cause is None else f"{type(cause).__name__}: {cause}")
        if not errors:
            return
        # After the agreement no rank writes there any more; before the barrier none exits, which would end this one.
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        accelerator.wait_for_everyone()
        free = f"{shutil.disk_usage(root).free / 2**20:.0f} MiB are free there" if root.is_dir() else "no such folder"
        raise CheckpointError(
            f"{target}: was not saved ({'; '.join(errors)}); {free}; earlier checkpoints are intact: make room or "
            "repair the cause, then --resume auto"
        ) from cause

    together(prepare, everywhere=False)
    together(write, everywhere=True)
    together(finish, everywhere=False)
    if main:
        _prune(root, step, keep)
    return target


def read(folder: str | os.PathLike[str], rank: int, world_size: int | None = None) -> Checkpoint:
    """The checkpoint in `folder` as rank `rank` needs it; what is read is what was verified.

    The rank's parts are `None` where the checkpoint has none for it, or was written by another number of processes than
    `world_size`. Raises `CheckpointError` as `verify` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    manifest = load_manifest(folder)

    def content(name: str) -> Any:
        raw = check_content(folder, name, manifest)
        try:
            return load(raw) if name.endswith(".safetensors") else json.loads(raw)
        except (ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder / name}: cannot be read ({error})") from None

    shared = [name for name in manifest["files"] if not name.startswith("rank-")]
    own = f"rank-{rank}.json" in manifest["files"] and world_size in (None, manifest["world_size"])
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        card=manifest["card"],
        world_size=manifest["world_size"],
        tensors={name.removesuffix(".safetensors"): content(name) for name in shared if name.endswith(".safetensors")},
        states={name.removesuffix(".json"): content(name) for name in shared if name.endswith(".json")},
        rank_tensors=content(f"rank-{rank}.safetensors") if own else None,
        rank_state=content(f"rank-{rank}.json") if own else None,
    )
