"""Who may use a run folder, and what becomes of what lies in it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files import remove
from ...refusal import Refusal, is_main
from .manifest import newest, steps_in, verify

__all__ = ["claim", "lock"]

# A run's own files, in the order in which they go: what marks the folder as a run's goes last, so that a removal that
# was cut off is still seen as a run.
_OWN = (
    "samples/step-*",
    "samples/reconstructions-*",
    "tensorboard/**/events.out.tfevents*",
    "tensorboard/**/hparams.y*ml",
    "checkpoints/.step-*",
    "checkpoints/step-*",
    ".*.tmp",
    "metrics.jsonl",
    "summary.json",
    "config.yaml",
)


@contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for this run: a second process is refused while the first lives.

    Only the main process holds the lock (`RUN/.lock`, by flock); the kernel releases it when that process ends, however
    it ends. Where the file system has no locks, warns and goes on.
    """
    if not is_main():
        yield
        return
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise Refusal(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Refusal(
                f"--out {folder}: is in use by {holder}; wait for it, stop it, or give another folder"
            ) from None
        except OSError as error:
            warnings.warn(f"{path}: no lock ({error.strerror}): start no second run in this folder", stacklevel=3)
        else:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        # The file stays: removing it would let two processes hold locks on two files of one name.
        yield


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or bool(steps_in(folder / "checkpoints"))


def _remove_run(folder: Path) -> None:
    for pattern in _OWN:
        for path in sorted(folder.glob(pattern)):
            remove(path)
    for name in ("samples", "tensorboard", "checkpoints"):
        for parent, _, _ in os.walk(folder / name, topdown=False):
            if not os.listdir(parent):
                os.rmdir(parent)


def _source(path: Path) -> Path:
    """The checkpoint that `--resume PATH` means: `path` itself, or the newest in the run `path`."""
    if (path / "manifest.json").exists() or re.fullmatch(r"step-\d+", path.name) and path.is_dir():
        verify(path)
        return path
    found = newest(path / "checkpoints" if (path / "checkpoints").is_dir() else path) if path.is_dir() else None
    if found is None:
        raise Refusal(
            f"--resume {path}: no valid checkpoint there (looked in {path.resolve()}); expected never, auto (the "
            "newest in --out), a folder checkpoints/step-N, or a run folder that holds one"
        )
    return found


def claim(folder: str | os.PathLike[str], resume: str = "never", overwrite: bool = False) -> Path | None:
    """Make a run folder ready and return the checkpoint to go on from; `None` starts at the beginning.

    `resume` is `never`, which refuses a folder that holds a run unless `overwrite` has that run's own files removed;
    `auto`, the newest valid checkpoint in `folder` if there is one; or the path of a checkpoint or run, verified. The
    main process calls it, holding `lock(folder)` (see `decide_on_main`). Raises `Refusal`.
    """
    folder = Path(folder)
    if overwrite and resume == "auto":
        raise Refusal("--overwrite with --resume auto: one removes the run that the other goes on from; drop one")
    source = None if resume in ("never", "auto") else _source(Path(resume))
    inside = source is not None and folder.resolve() in source.resolve().parents
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # By trying, as permissions say nothing on a read-only file system, nor to root.
        probe = folder / f".writable-{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refusal(
            f"--out {folder}: cannot be written ({error.strerror}; {folder.resolve()}); give a folder that can"
        ) from None
    if resume == "auto":
        return newest(folder / "checkpoints")
    if inside and overwrite:
        raise Refusal(f"--overwrite with --resume {resume}: would remove that checkpoint; drop one, or change --out")
    if _holds_run(folder) and not inside and not overwrite:
        raise Refusal(
            f"--out {folder}: holds another run; --resume auto goes on with it, --overwrite removes it, and another "
            "--out leaves it alone"
        )
    if overwrite:
        _remove_run(folder)
    return source
