"""Report what the checkpoints of a run hold, whether they are whole, and what of a damaged one can still be used."""

from __future__ import annotations

import math
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...refusal import Refusal
from .checkpoint import CheckpointError, OtherFormat, check, load_manifest, steps_in

__all__ = ["report"]


def report(run: str | os.PathLike[str]) -> tuple[str, bool]:
    """Describe a checkpoint, or all checkpoints of a run folder, newest last; no code of the run is read.

    Arguments: run, a run folder, its `checkpoints`, or a checkpoint.
    Returns: the text, and whether all of it is whole.
    Raises Refusal where there is no checkpoint.
    """
    folder = Path(run)
    root = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    folders = [folder] if (folder / "manifest.json").exists() else list(steps_in(root).values()) or [folder]
    if not folders[0].is_dir() or not any(folders[0].iterdir()):
        raise Refusal(
            f"{run}: no checkpoint there (looked in {os.path.realpath(root)}); expected a run folder or a checkpoint"
        )
    parts = [_describe(one) for one in folders]
    whole = [one for one, (_, good) in zip(folders, parts) if good]
    lines = [line for described, _ in parts for line in described]
    if len(folders) > 1 or not whole:
        lines.append(f"the newest whole one: {whole[-1]}" if whole else "no checkpoint is whole: no exact resume")
    return "\n".join(lines), len(whole) == len(folders)


def _describe(folder: Path) -> tuple[list[str], bool]:
    try:
        manifest = load_manifest(folder)
    except OtherFormat as error:
        return [f"{folder}: {error}"], False
    except CheckpointError as error:
        return [f"{folder}: damaged: {error}", *_unverified(folder)], False
    card, files = manifest["card"], manifest["files"]
    made = f"recipe {card['recipe']}" if "recipe" in card else "a script"
    size = sum(entry["size"] for entry in files.values())
    lines = [
        f"{folder}: format {manifest['format']}, step {manifest['step']} of {made}, "
        f"{manifest['world_size']} process(es), {len(files)} files of {_megabytes(size)}"
    ]
    damaged = {}
    for name, entry in files.items():
        try:
            check(folder, name, manifest)
        except CheckpointError as error:
            damaged[name] = str(error)
        tensors: dict[str, Any] = manifest["tensors"].get(name, {})
        numbers = sum(math.prod(shape) for shape, _ in tensors.values())
        content = f"{len(tensors)} tensors, {numbers:,} numbers" if name in manifest["tensors"] else ""
        state = "DAMAGED" if name in damaged else "whole"
        lines.append(f"  {state:8} {name:28} {_megabytes(entry['size']):>10}  {content}".rstrip())
    return lines + [f"  {reason}" for reason in damaged.values()] + _usable(
        folder, set(files), set(damaged)
    ), not damaged


def _usable(folder: Path, files: set[str], damaged: set[str]) -> list[str]:
    """Say how to use a checkpoint whose manifest is right, some of whose files may not be."""

    def whole(*patterns: str) -> bool:
        return not any(fnmatchcase(name, pattern) for name in damaged for pattern in patterns)

    recipe = "progress.json" in files and "stage-0.safetensors" in files
    resume = f"--resume {folder}" if recipe else f"hybrids.restore({str(folder.parent.parent)!r}, ...)"
    if not damaged:
        return [f"  all of it is whole: go on by {resume}"]
    lines = ["  it cannot be gone on from exactly"]
    if recipe and whole("stage-*", "progress.json"):
        option = "" if whole("ema.*") else ", ema=False"
        what = "the weights" + (" and their average" if "ema.safetensors" in files and not option else "")
        lines.append(
            f"  usable: {what}: hybrids.load({str(folder)!r}{option}), or scripts/sample.py and scripts/evaluate.py "
            f"{folder}{' --no-ema' if option else ''}"
        )
        return lines
    tensors = sorted(name for name in files - damaged if name.endswith(".safetensors") and not name.startswith("rank-"))
    return lines + [f"  usable: safetensors.torch.load_file({str(folder / name)!r})" for name in tensors]


def _unverified(folder: Path) -> list[str]:
    """Name the tensor files that can be opened though no manifest vouches for them."""
    from safetensors import SafetensorError, safe_open

    lines = []
    for path in sorted(folder.glob("*.safetensors")):
        # Opening a pipe or a device under this name could wait for ever.
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="pt") as content:
                count = len(list(content.keys()))
        except (OSError, SafetensorError):
            continue
        lines.append(
            f"  perhaps usable, though unverified: safetensors.torch.load_file({str(path)!r}), {count} tensors"
        )
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} B"
