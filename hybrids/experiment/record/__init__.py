"""What a run writes for people: logs, pictures, evaluations, the summary."""

from .record import Record

__all__ = ["Record"]
