"""What a run writes for people: the table of its players, logs, pictures, evaluations, the summary; --dry-run."""

from .dry_run import dry_run
from .record import Record

__all__ = ["Record", "dry_run"]
