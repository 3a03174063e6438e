"""Refusals: bad settings or files end a run before it starts, in a message and without a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CANNOT_WRITE", "NOT_FINITE", "REFUSED", "STOPPED", "Refusal", "asked", "first_asked", "is_main", "needed",
           "refusing"]  # fmt: skip

REFUSED, CANNOT_WRITE, STOPPED, NOT_FINITE = 2, 74, 75, 76
"""Exit codes: refused; cannot write, resumable; stopped by a signal, resumable; not finite, last checkpoint intact."""


class Refusal(ValueError):
    """Something of the user's is refused: every reason at once, one to a line.

    Each reason names the setting or file, what was received, what was expected, and the remedy.
    Arguments: here, whether this process alone knows of it, and so prints it whichever it is; code, the exit code.
    """

    def __init__(self, errors: str | Iterable[str], here: bool = False, code: int = REFUSED) -> None:
        self.here, self.code = here, code
        self.errors: list[str] = [errors] if isinstance(errors, str) else list(errors)
        super().__init__("\n".join(self.errors))


def is_main() -> bool:
    """Whether this process speaks for the run, as the launcher's environment says (`RANK` unset or 0)."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a `Refusal` into a message on stderr and its exit code.

    Works as a context manager and as a decorator of `main`. Every process exits; the main one prints, and one that
    alone has a reason.
    """
    try:
        yield
    except Refusal as refusal:
        if is_main() or refusal.here:
            for error in refusal.errors:
                print(f"refused: {error}", file=sys.stderr, flush=True)
        raise SystemExit(refusal.code) from None


@contextmanager
def asked(what: str, here: bool = False) -> Iterator[None]:
    """A ValueError in here is the user's to mend: a refusal, with the place it came from; here, as in `Refusal`."""
    try:
        yield
    except Refusal:
        raise
    except ValueError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise Refusal(f"{what}: {error} ({Path(frame.filename).name}:{frame.lineno})", here) from error


def first_asked(what: str, steps: Iterator[Any]) -> Generator[Any, None, None]:
    """The steps; a ValueError in the first of them, where batches and losses are looked at, is a refusal."""
    # Each process has looked at a batch of its own.
    with asked(what, here=True):
        first = next(steps, None)
    if first is not None:
        yield first
        yield from steps


@contextmanager
def needed(requirement: str, what: str) -> Iterator[None]:
    """Around an import: ValueError in one line, with the command that installs `requirement` for `what`."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what} needs a package that is not here ({error}); install it: python -m pip install '{requirement}'"
        ) from error
