"""Files that are on the disk when the call returns, and that hold what they were given: JSON and tensors, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["flush", "refuse_lossy", "remove", "write_json", "write_tensors", "write_text", "write_whole"]


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file whole or not at all: under a name of this process's own, which then takes the file's place.

    Arguments: path, in a folder that is made if need be; content: text (UTF-8), bytes, or a function that writes a
    file at the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if callable(content):
        content(temporary)
    else:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file and wait for the disk."""
    path.write_text(text, encoding="utf-8")
    flush(path)


def refuse_lossy(state: Any, where: str) -> None:
    """Raise `TypeError` for keys that are not text: JSON turns 1 into "1" in silence, and a resumed run looks for 1."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: keys must be text, as JSON has no others; got {key!r}")
            refuse_lossy(value, where)
    elif isinstance(state, list | tuple):
        for value in state:
            refuse_lossy(value, where)


def write_json(path: Path, state: Any) -> None:
    """Write what JSON can hold (floats come back bit for bit; tuples as lists) and wait for the disk."""
    refuse_lossy(state, path.name)
    write_text(path, json.dumps(state))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors and wait for the disk.

    Tensors of any stride and device, of no elements or dimensions, and such as share their storage; each is written in
    full.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        # safetensors refuses two names for one storage (tied weights, views of one buffer).
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    # safetensors makes files that only their owner may read; a run folder is often shared.
    path.touch()
    mode = path.stat().st_mode
    save_file(plain, path)
    path.chmod(mode)
    flush(path)
