"""Refusals: bad settings or files end a run before it starts, in a message and without a traceback."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CANNOT_WRITE", "NOT_FINITE", "REFUSED", "STOPPED", "Refusal", "as_refusal", "steps_as_refusal", "is_main",
           "malformed", "needed", "refusing"]  # fmt: skip

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
def as_refusal(what: str, here: bool = False) -> Iterator[None]:
    """Turn a ValueError inside into a refusal that names `what` and the place it came from; here, as in `Refusal`."""
    try:
        yield
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(f"{what}: {error} ({_place(error)})", here) from error


def steps_as_refusal(what: str, steps: Iterator[Any], start: int) -> Generator[Any, None, None]:
    """Yield what `steps` yields; a ValueError in one of them, whose batches and losses are checked, is a refusal.

    Arguments:
        what: as of `as_refusal`; the number of the step is added.
        steps: a generator, which is closed with this one.
        start: the number of steps before the first.
    """
    with closing(steps):  # type: ignore[type-var]
        for step in itertools.count(start + 1):
            try:
                result = next(steps, None)
            except Refusal:
                raise
            except ValueError as error:
                intact = "; checkpoints of the run are from before" if step > start + 1 else ""
                # Each process checks batches of its own.
                raise Refusal(f"{what}, step {step}: {error} ({_place(error)}){intact}", here=True) from error
            if result is None:
                return
            yield result


@contextmanager
def malformed(what: str) -> Iterator[None]:
    """Around what is made of a file's content, which may be anybody's: where it does not fit, a refusal naming `what`.

    It covers what content of other types, lengths and sizes raises, an allocation that fails included.
    """
    try:
        yield
    except Refusal:
        raise
    except (ArithmeticError, LookupError, AttributeError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise Refusal(
            f"{what}: its content does not fit: {kind}{first} ({_place(error)}); expected what a run of this recipe "
            "and of this version saves",
            here=True,
        ) from error


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


@contextmanager
def needed(requirement: str, what: str) -> Iterator[None]:
    """Around an import: ValueError in one line, with the command that installs `requirement` for `what`."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what} needs a package that is not here ({error}); install it: python -m pip install '{requirement}'"
        ) from error
