"""What the processes of a run know of each other without a collective, through the process group's key-value store.

A rank that waits in a collective cannot take part in another: so each notes its step in the store, where a rank that
received a signal finds how far the others are, and one that waits in vain finds whom for.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
import time
from typing import Any

__all__ = ["Peers"]

BEAT = 1.0
"""Seconds between signs of life of a process: one that misses three is taken for frozen or dead."""

_runs = itertools.count()


class Peers:
    """The other processes of a run. A context manager; every rank makes one, as often as the others.

    Arguments:
        accelerator: of the run.
        timeout: seconds after which a collective fails: a process that has waited for most of them prints for whom.
        ahead: how many steps a process can be ahead of another one, in the steps of the host: those between two
            collectives, and on CUDA those that the device has not run yet.
    """

    def __init__(self, accelerator: Any, timeout: float, ahead: int = 1) -> None:
        self.ahead = ahead
        self.rank, self.size, self.timeout = accelerator.process_index, accelerator.num_processes, timeout
        self.step, self.since, self.requested = 0, time.monotonic(), False
        # Several runs of one process group must not read each other's notes.
        self.prefix = f"hybrids/{next(_runs)}"
        self.store = _store() if self.size > 1 else None
        self.ended = threading.Event()

    def __enter__(self) -> Peers:
        if self.store is not None:
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        if self.store is not None:
            self.thread.join(2 * BEAT)

    def stopping(self, step: int, received: bool) -> bool:
        """Note that this process has finished a step; return whether all stop after it, since one received a signal.

        That one writes the step to stop after: one later than the furthest of all can be when it reads that. No step
        waits for an answer of another process.
        """
        self.step, self.since = step, time.monotonic()
        if self.store is None:
            return received
        self.store.set(f"{self.prefix}/step/{self.rank}", str(step))
        stop = f"{self.prefix}/stop"
        if received and not self.requested:
            self.requested = True
            self.store.compare_set(stop, "", str(max(self._steps().values()) + self.ahead + 1))
        return self.store.check([stop]) and step >= int(self.store.get(stop))

    def lost(self, error: Exception) -> str | None:
        """Return whom this process waited for, if the error is of the process group; None if it is not."""
        if self.store is None or not re.search(r"gloo|nccl|connection|timed out|timeout", str(error), re.IGNORECASE):
            return None
        cause = str(error).strip().splitlines()[0][-200:]
        return f"{self._waiting(3 * BEAT)} ({cause})"

    def _steps(self) -> dict[int, int]:
        """The last step that each rank has noted; -1 before its first."""
        assert self.store is not None
        keys = {rank: f"{self.prefix}/step/{rank}" for rank in range(self.size)}
        return {rank: int(self.store.get(key)) if self.store.check([key]) else -1 for rank, key in keys.items()}

    def _beats(self) -> dict[int, bytes]:
        assert self.store is not None
        keys = {rank: f"{self.prefix}/beat/{rank}" for rank in range(self.size)}
        return {rank: self.store.get(key) if self.store.check([key]) else b"" for rank, key in keys.items()}

    def _beat(self) -> None:
        assert self.store is not None
        self.store.set(f"{self.prefix}/beat/{self.rank}", str(time.monotonic()))

    def _waiting(self, seconds: float) -> str:
        """Say who is behind; or who, in so many seconds, gives no sign of life."""
        here = f"rank {self.rank} waits after step {self.step}"
        try:
            before, end = self._beats(), time.monotonic() + seconds
            while time.monotonic() < end:
                # The others may be waiting here as well.
                self._beat()
                time.sleep(BEAT / 2)
            steps, beats = self._steps(), self._beats()
        except RuntimeError:
            return f"{here}: the launcher, or the process that holds the store, is gone"
        silent = [rank for rank in steps if rank != self.rank and beats[rank] == before[rank]]
        behind = [rank for rank in steps if steps[rank] < self.step]
        if silent:
            return f"{here}: {_named(silent, steps)} gives no sign of life: it is frozen or dead"
        if behind:
            return f"{here}: {_named(behind, steps)} is behind"
        return f"{here}: all are at this step; one may be reading data, or rank 0 drawing or evaluating"

    def _watch(self) -> None:
        """Give signs of life, and print once per wait whom this process waits for before the group fails."""
        warned = -1.0
        while True:
            try:
                self._beat()
            except RuntimeError:
                return
            waited = time.monotonic() - self.since
            if waited > 0.5 * self.timeout and self.since != warned and self.step > 0:
                warned = self.since
                text = f"waiting for {waited:.0f} s of --timeout {self.timeout:g}: {self._waiting(3 * BEAT)}"
                print(text, file=sys.stderr, flush=True)
            if self.ended.wait(BEAT):
                return


def _named(ranks: list[int], steps: dict[int, int]) -> str:
    return ", ".join(f"rank {rank} (after step {steps[rank]})" for rank in ranks)


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
