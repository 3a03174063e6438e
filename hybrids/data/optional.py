"""Packages that only some data sets need."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needed"]


@contextmanager
def needed(requirement: str, what: str) -> Iterator[None]:
    """Around an import: ValueError in one line, with the command that installs `requirement` for `what`."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{what} needs a package that is not here ({error}); install it: python -m pip install '{requirement}'"
        ) from error
