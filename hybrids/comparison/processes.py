"""Several processes at once: each with its log, its share of cores and GPUs, and the signals that this one gets."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..experiment.signals import Signals

__all__ = ["Job", "Pool", "Stopped", "last_words", "reason"]

_REPOSITORY = Path(__file__).parents[2]
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """A signal has stopped the comparison; the processes have saved and ended."""


@dataclass
class Job:
    """A command, where its output goes, how to tell its progress, and not before which time it may start."""

    name: str
    command: list[str]
    log: Path
    progress: Callable[[], int] = lambda: 0
    after: float = 0.0


def _orphaned() -> None:
    # A killed parent cannot pass anything on: the kernel then asks the child to save and end.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Pool:
    """Runs jobs, so many at once.

    Arguments: at_once; gpus, the names that CUDA_VISIBLE_DEVICES is given in turn, none to leave it as it is; stop,
    asked between looks: on a signal the running jobs get SIGTERM, are waited for, and `Stopped` is raised.
    """

    def __init__(self, at_once: int, gpus: list[str], stop: Signals, every: float = 0.2) -> None:
        self.at_once, self.gpus, self.stop, self.every = at_once, gpus, stop, every

    def environment(self, slot: int) -> dict[str, str]:
        """What the process in a slot finds around it."""
        path = os.pathsep.join(filter(None, (str(_REPOSITORY), os.environ.get("PYTHONPATH"))))
        env = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.at_once)),
            # Waiting threads that spin make small networks many times slower on a busy machine.
            "OMP_WAIT_POLICY": "passive",
            **os.environ,
            "PYTHONPATH": path,
        }
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return env

    def run(self, jobs: deque[Job], watch: Callable[[list[Job]], None]) -> Iterator[tuple[Job, int]]:
        """Each job with its exit code, as they end; more may be put into `jobs` meanwhile. watch sees what runs."""
        running: dict[int, tuple[Job, subprocess.Popen]] = {}
        try:
            while jobs or running:
                if self.stop.received:
                    raise Stopped
                for slot in range(self.at_once):
                    ready = next((job for job in jobs if job.after <= time.monotonic()), None)
                    if slot not in running and ready is not None:
                        jobs.remove(ready)
                        running[slot] = (ready, self._start(ready, slot))
                watch([job for job, _ in running.values()])
                time.sleep(self.every)
                for slot, (job, process) in list(running.items()):
                    # A job that a stop has reached already is no failure of its own.
                    if not self.stop.received and process.poll() is not None:
                        del running[slot]
                        yield job, process.returncode
        finally:
            for _, process in running.values():
                if process.poll() is None:
                    process.terminate()
            for _, process in running.values():
                process.wait()

    def _start(self, job: Job, slot: int) -> subprocess.Popen:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            # A session of its own: else Ctrl-C would reach it twice, and a second signal ends it at once.
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                start_new_session=True,
                preexec_fn=_orphaned,
            )


def last_words(log: Path, most: int = 4000) -> list[str]:
    """The last lines of a log that hold something."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - most))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def reason(log: Path, code: int) -> str:
    """Why a job failed, in one line: its last refusal, its last line, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = last_words(log)
    refusals = [line.removeprefix("refused: ") for line in lines if line.startswith("refused: ")]
    if code == 2 and refusals:
        return refusals[-1]
    return lines[-1] if lines else f"exit code {code} without a word"
