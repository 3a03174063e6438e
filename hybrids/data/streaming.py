"""Images that are too many for memory: workers decode them when a batch needs them."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .images import BadImage, TooLarge, decode

__all__ = ["Encoded", "Skipping", "Stream", "WorkerDied", "Workers"]


class Encoded(Protocol):
    """Image files, wherever they are; copied into worker processes."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call it."""
        ...

    def open(self, index: int) -> BinaryIO:
        """Its bytes. Raises OSError."""
        ...


class Skipping:
    """The bad images so far, by name; ValueError as soon as there are more than `allowed`."""

    def __init__(self, of: str, allowed: int) -> None:
        self.of, self.allowed, self.bad = of, allowed, dict[str, str]()

    def add(self, bad: dict[str, str]) -> None:
        """Count these too: name → what is wrong with it."""
        self.bad |= bad
        if len(self.bad) <= self.allowed:
            return
        listed = "; ".join(f"{name}: {why}" for name, why in list(self.bad.items())[:5])
        more = f"; and {len(self.bad) - 5} more" if len(self.bad) > 5 else ""
        raise ValueError(
            f"--data {self.of}: {len(self.bad)} image(s) cannot be read: {listed}{more}. Mend or remove them, or "
            f"let bad ones be skipped by --skip-bad-images N (now {self.allowed})"
        )


@dataclass(frozen=True)
class Stream:
    """The images at `indices` of `files`, decoded when asked for.

    Arguments: files; indices, the training examples in their order; shape (C, R, R); workers, processes that decode;
    skipping, what to do with an image that turns out to be bad: where it may be skipped the next good one takes its
    place, with its own label.
    """

    files: Encoded
    indices: Tensor
    shape: tuple[int, ...]
    workers: int
    skipping: Skipping

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, examples: Tensor) -> tuple[Tensor, Tensor, dict[str, str]]:
        """Return the images (B, C, R, R) uint8 of examples (B,), the examples read (B,), and the bad ones: name → why.

        The examples read differ from those asked for where a bad image was skipped; labels are to be taken of them.
        """
        out, bad = torch.empty(len(examples), *self.shape, dtype=torch.uint8), dict[str, str]()
        read_examples = examples.clone()
        for row, start in enumerate(examples.tolist()):
            # One more than may be skipped: then `Skipping` refuses.
            for further in range(self.skipping.allowed + 1):
                example = (start + further) % len(self)
                index = int(self.indices[example])
                pixels, why = read(self.files, index, self.shape[-1], self.shape[0])
                if pixels is not None:
                    out[row], read_examples[row] = torch.from_numpy(np.array(pixels)), example
                    break
                bad[self.files.name(index)] = why
        return out, read_examples, bad


def read(files: Encoded, index: int, resolution: int, channels: int) -> tuple[np.ndarray | None, str]:
    """An image's pixels, or None and what is wrong with it. Raises ValueError where access is denied."""
    try:
        with files.open(index) as file:
            return decode(file, resolution, channels), ""
    except PermissionError as error:
        raise ValueError(f"{files.name(index)}: permission denied; make it readable or remove it") from error
    except TooLarge as error:
        raise ValueError(f"{files.name(index)} is refused: {error}") from error
    except (BadImage, OSError) as error:
        return None, str(error)


class _Batches(Dataset):
    """What a worker runs: position and examples → position, images, examples read, bad ones, and an error.

    The error is returned: an exception that crosses processes would lose its message among tracebacks.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, request: tuple[int, Tensor]) -> tuple[int, Tensor, Tensor, dict[str, str], str]:
        position, examples = request
        try:
            return position, *self.stream.read(examples), ""
        except ValueError as error:
            return position, torch.empty(0), examples, {}, str(error)


class WorkerDied(RuntimeError):
    """A process that decodes images was killed or ended; the message says how, and what helps."""


class Workers:
    """Batches of a stream, by position, read ahead by worker processes in the order in which they will be taken.

    Arguments: stream; plan, position → the examples (B,) of its batch, which must not refer to what holds these
    workers; step, from one position to the next; pin, whether batches go to a GPU.
    """

    def __init__(self, stream: Stream, plan: Callable[[int], Tensor], step: int, pin: bool = False) -> None:
        self.stream, self.plan, self.step, self.pin = stream, plan, step, pin
        self._next = -1
        self._iterator: Any = None

    def take(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the images (B, C, R, R) uint8 of the batch at a position, and the examples (B,) that they are.

        Raises ValueError for more bad images than may be skipped, WorkerDied if one has been killed.
        """
        if position != self._next:
            self._start(position)
        # A worker found dead, or an error below, ends these workers: then the next call starts new ones.
        self._next = -1
        self._check_alive()
        try:
            at, images, examples, bad, error = next(self._iterator)
        except RuntimeError:
            self._check_alive()
            raise
        assert at == position
        try:
            if error:
                raise ValueError(error)
            self.stream.skipping.add(bad)
        except ValueError:
            self.close()
            raise
        self._next = position + self.step
        return images, examples

    def _start(self, position: int) -> None:
        self.close()
        loader = DataLoader(
            _Batches(self.stream),
            batch_size=None,
            sampler=_Requests(self.plan, position, self.step),  # type: ignore[arg-type]
            num_workers=self.stream.workers,
            pin_memory=self.pin,
            worker_init_fn=_deafen,
            collate_fn=_unchanged,
            # Its own: the run's random numbers stay untouched.
            generator=torch.Generator(),
        )
        with _own_children():
            self._iterator = iter(loader)

    def close(self) -> None:
        """End the workers. They only read; one that another's death has left waiting for a lock ends no other way."""
        with _own_children():
            for worker in getattr(self._iterator, "_workers", []):
                worker.kill()
            self._iterator = None

    def __del__(self) -> None:
        self.close()

    def _check_alive(self) -> None:
        workers = getattr(self._iterator, "_workers", [])
        dead = next((worker for worker in workers if not worker.is_alive()), None)
        if dead is None:
            return
        code = dead.exitcode or 0
        self.close()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        remedy = {
            -signal.SIGKILL: "most likely the machine or its container ran out of memory: lower --workers "
            f"(now {self.stream.workers}) or --batch-size",
            -signal.SIGBUS: "most likely the shared memory is full: enlarge /dev/shm (docker run --shm-size), lower "
            "--batch-size, or use --workers 0",
        }.get(code, "--workers 0 reads the images in the run's own process and shows where it fails")
        raise WorkerDied(
            f"a data worker (pid {dead.pid}) {how}; {remedy}; go on from the last checkpoint with --resume auto"
        )


@dataclass(frozen=True)
class _Requests:
    """Positions from `start` on, without end, each with its examples."""

    plan: Callable[[int], Tensor]
    start: int
    step: int

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        position = self.start
        while True:
            yield position, self.plan(position)
            position += self.step


_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _deafen(worker: int) -> None:
    """A signal that stops the run goes to its whole process group; workers must last until the step is done."""
    for kind in _STOPPING:
        signal.signal(kind, signal.SIG_IGN)


@contextmanager
def _own_children() -> Iterator[None]:
    """No handler of SIGCHLD in here, and none of torch's afterwards; stopping signals wait until the end.

    torch's raises wherever the process happens to be, such as in the middle of a training step; `take` finds the dead
    too. A worker inherits the blocked signals, so that none reaches it before `_deafen` does.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _unchanged(item: Any) -> Any:
    return item
