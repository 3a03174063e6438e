"""Who may use a run folder, and what becomes of the files that are in it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...files import no_follow, remove
from ...refusal import Refusal, is_main
from .checkpoint import newest, steps_in

__all__ = ["check_writable", "claim", "lock", "refuse_links"]


def claim(folder: str | os.PathLike[str], resume: str = "never", overwrite: bool = False) -> Path | None:
    """Make a run folder ready and return what to go on from; None: start at the beginning.

    Arguments:
        folder: the run's.
        resume: `never`, which refuses a folder that holds a run unless `overwrite`; `auto`, the checkpoints in `folder`
            if there are any; or the path of a checkpoint or a run.
        overwrite: remove that run's own files, once what `resume` names is verified.
    Returns: a checkpoint, or a folder that holds some, for `read_newest`.
    Raises Refusal. The main process calls it, holding `lock(folder)` (see `decide_on_main`).
    """
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    if overwrite and resume == "auto":
        raise Refusal("--overwrite with --resume auto: one removes the run that the other goes on from; drop one")
    source = None if resume in ("never", "auto") else _source(Path(resume))
    check_writable(folder)
    refuse_links(folder)
    if resume == "auto":
        return checkpoints if steps_in(checkpoints) else None
    inside = source is not None and Path(os.path.realpath(folder)) in Path(os.path.realpath(source)).parents
    if inside and overwrite:
        raise Refusal(f"--overwrite with --resume {resume}: would remove that checkpoint; drop one, or change --out")
    if _holds_run(folder) and not inside and not overwrite:
        raise Refusal(
            f"--out {folder}: holds another run; --resume auto goes on with it, --overwrite removes it, and another "
            "--out leaves it alone"
        )
    if overwrite:
        if source is not None:
            newest(source)
        _remove_run(folder)
    return source


# Descriptors of the locks that this process holds.
_held: set[int] = set()


@contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run folder for this run: a second process is refused while the first lives.

    Only the main process holds the lock (`RUN/.lock`, by flock); the kernel releases it when that process ends, however
    it ends and whatever children it leaves. Where the file system has no locks, warns and goes on.
    """
    if not is_main():
        yield
        return
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = no_follow(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(path) from None
        raise Refusal(f"--out {folder}: cannot be written ({error.strerror}); give a folder that can") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise Refusal(
                f"--out {folder}: is in use by {holder}; wait for it, stop it, or give another folder"
            ) from None
        except OSError as error:
            warnings.warn(f"{path}: no lock ({error.strerror}): start no second run in this folder", stacklevel=3)
        else:
            _held.add(descriptor)
            _write_holder(descriptor, path)
        # The file stays: removing it would let two processes hold locks on two files of one name.
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _release_in_child() -> None:
    """Close a forked child's copy of each lock, which would hold it after the run has died: data workers are forked."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


def _write_holder(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        # The lock holds all the same; only a second run's message will not name this process.
        warnings.warn(f"{path}: cannot be written ({error.strerror})", stacklevel=3)


# Where a run writes, besides temporary names, which are never opened if they exist.
_FILES = (".lock", "config.yaml", "players.txt", "metrics.jsonl", "summary.json")
_FOLDERS = ("samples", "tensorboard", "checkpoints")


def refuse_links(folder: Path, files: Sequence[str] = _FILES, folders: Sequence[str] = _FOLDERS) -> None:
    """Refuse a run folder in which a name to be written under is a symbolic link, or of another kind. Raises Refusal.

    Arguments: folder, the run's; files and folders, the names that must be a file or a folder, or not be there.
    """
    for name in [*files, *folders]:
        path = folder / name
        if path.is_symlink():
            raise _linked(path)
        if path.exists() and not (path.is_file() if name in files else path.is_dir()):
            expected = "a file" if name in files else "a folder"
            raise Refusal(f"--out {folder}: {name} is there and is not {expected}, as a run needs; remove it")


def _linked(path: Path) -> Refusal:
    return Refusal(
        f"--out {path.parent}: {path.name} is a symbolic link to {os.readlink(path)}, and a run writes through none; "
        "remove the link (to keep a run on another disk, link or name the whole run folder)"
    )


def check_writable(folder: Path, option: str = "--out") -> None:
    """Make a folder, if need be, and refuse one in which nothing can be written. Raises Refusal, naming the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # By trying, as permissions say nothing on a read-only file system, nor to root.
        probe = folder / f".writable-{os.getpid()}.tmp"
        probe.unlink(missing_ok=True)
        os.close(no_follow(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError as error:
        raise Refusal(
            f"{option} {folder}: cannot be written ({error.strerror}; {os.path.realpath(folder)}); give a folder that "
            "can"
        ) from None


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or bool(steps_in(folder / "checkpoints"))


def _source(path: Path) -> Path:
    """Return the checkpoint, or the folder of checkpoints, that `--resume PATH` means."""
    if (path / "manifest.json").exists() or (re.fullmatch(r"step-\d+", path.name) and path.is_dir()):
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not steps_in(root):
        raise Refusal(
            f"--resume {path}: no checkpoint there (looked in {os.path.realpath(path)}); expected never, auto (the "
            "newest in --out), a folder checkpoints/step-N, or a run folder that holds one"
        )
    return root


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
    "players.txt",
    "metrics.jsonl",
    "summary.json",
    "config.yaml",
)


def _remove_run(folder: Path) -> None:
    for pattern in _OWN:
        for path in sorted(folder.glob(pattern)):
            remove(path)
    for name in ("samples", "tensorboard", "checkpoints"):
        for parent, _, _ in os.walk(folder / name, topdown=False):
            if not os.listdir(parent):
                os.rmdir(parent)
