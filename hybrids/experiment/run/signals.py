"""Stopping politely: a signal lets the step finish and the run be saved."""

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 only set a flag, read between steps; a second one ends the process at once."""

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = False
        self.previous: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = True

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {kind: signal.signal(kind, self._note) for kind in self.kinds}
        return self

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self.previous.items():
            signal.signal(kind, handler)
