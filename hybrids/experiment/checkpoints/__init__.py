"""Checkpoints: what a run must remember, written whole or not at all, and the folder that holds them."""

from .script import restore, save

__all__ = ["restore", "save"]
