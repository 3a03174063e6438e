"""Files that are whole or not there, and hold what they were given: JSON and tensors, no pickle.

Nothing is written through a symbolic link: a run folder may come from a stranger.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["append_line", "flush", "no_follow", "parse_tensors", "refuse_lossy", "remove", "warning_if_full",
           "write_json", "write_tensors", "write_text", "write_whole"]  # fmt: skip


def no_follow(path: str | os.PathLike[str], flags: int) -> int:
    """An opener, for `open(..., opener=no_follow)`, that refuses to open a symbolic link (OSError, ELOOP)."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


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
    temporary.unlink(missing_ok=True)
    try:
        if callable(content):
            content(temporary)
        else:
            with open(temporary, "xb", opener=no_follow) as file:
                file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line whole or not at all. Raises OSError where it does not fit on the disk."""
    with open(path, "ab", buffering=0, opener=no_follow) as file:
        end = file.tell()
        content = line.encode() + b"\n"
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise


@contextmanager
def warning_if_full(what: str) -> Iterator[None]:
    """Warn where the disk has no room for `what`, or it cannot be written there, and go on; raise other errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EISDIR):
            raise
        warnings.warn(f"{what} was not written ({error}); the run goes on", stacklevel=3)


def write_text(path: Path, text: str) -> None:
    """Write a text file and wait for the disk."""
    with open(path, "w", encoding="utf-8", opener=no_follow) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


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


def write_json(path: Path, state: Any, wait: bool = True) -> None:
    """Write what JSON can hold (floats come back bit for bit; tuples as lists) and wait for the disk."""
    refuse_lossy(state, path.name)
    with open(path, "w", encoding="utf-8", opener=no_follow) as file:
        file.write(json.dumps(state))
    if wait:
        flush(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], wait: bool = True) -> None:
    """Write tensors by name as safetensors and wait for the disk.

    Tensors of any stride and device, of no elements or dimensions, and such as share their storage; each is written in
    full.
    """
    from safetensors.torch import save_file

    storages: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        # safetensors refuses two names for one storage (tied weights, views of one buffer).
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    # safetensors makes files that only their owner may read; a run folder is often shared.
    path.touch()
    mode = path.stat().st_mode
    save_file(plain, path)
    path.chmod(mode)
    if wait:
        flush(path)


def parse_tensors(content: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as views of its bytes (N,) uint8: no second copy is made.

    The file is a length (8 bytes, little-endian), a JSON header NAME → dtype, shape, data_offsets, and the data.
    Raises ValueError for bytes that are no such file.
    """
    start = 8 + int.from_bytes(bytes(content[:8].tolist()), "little")
    if not 8 <= start <= len(content):
        raise ValueError("its header is longer than the file")
    header = json.loads(content[8:start].numpy().tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    return {name: _view(content[start:], name, entry) for name, entry in header.items()}


# safetensors' names of dtypes.
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F16": torch.float16, "BF16": torch.bfloat16,
    "U16": torch.uint16, "I16": torch.int16, "F32": torch.float32, "U32": torch.uint32, "I32": torch.int32,
    "F64": torch.float64, "U64": torch.uint64, "I64": torch.int64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _view(data: Tensor, name: str, entry: Any) -> Tensor:
    try:
        dtype, shape, (first, last) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not (all(n >= 0 for n in shape) and 0 <= first <= last <= len(data)):
            raise ValueError
        if math.prod(shape) * dtype.itemsize != last - first:
            raise ValueError
        if first == last:
            return torch.empty(shape, dtype=dtype)
        part = data[first:last]
        # A tensor begins at a multiple of its element's size, except in files that another library has written.
        return (part if part.data_ptr() % dtype.itemsize == 0 else part.clone()).view(dtype).view(shape)
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"its entry {name[:80]!r} does not fit its data: {repr(entry)[:200]}") from None
