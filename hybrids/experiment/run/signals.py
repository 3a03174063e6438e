"""Stop after a signal: the step is finished and the run saved."""

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 only set a flag, read between steps; a second one ends the process at once.

    One that follows within a second is the same: a terminal or a scheduler signals a process and its launcher, which
    passes the signal on.
    """

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    same = 1.0

    def __init__(self) -> None:
        self.received, self.when = False, 0.0
        self.previous: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self.when = True, time.monotonic()
        elif time.monotonic() - self.when > self.same:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {kind: signal.signal(kind, self._note) for kind in self.kinds}
        return self

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self.previous.items():
            signal.signal(kind, handler)
