"""The runs of a comparison on disk: where they lie, how they ended, and what their logs tell."""

import json
import math
import os
import re
import signal
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_whole

__all__ = ["Run", "last_words", "logged", "progress", "read_json", "reason", "spikes", "stability", "timeline"]

SPIKE = 10.0
"""A gradient's norm is a spike above so many times the running median."""
BEFORE = 5
"""Norms that must come before one, so that their median says what is usual."""
WINDOW = 50
"""Norms that the running median is of: they shrink as training goes on."""


@dataclass(frozen=True)
class Run:
    """One recipe, by name, with one seed in a comparison's folder `out`."""

    out: Path
    recipe: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / "runs" / self.recipe / f"seed-{self.seed}"

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"seed-{self.seed}.log")

    @property
    def ending(self) -> Path:
        """Where it is kept how the training ended."""
        return self.folder.with_name(f"seed-{self.seed}.json")

    @property
    def measured(self) -> Path:
        return self.out / "measured" / f"{self.recipe}-seed-{self.seed}.json"

    @property
    def unmeasured(self) -> Path:
        """Where it is kept why measuring failed."""
        return self.measured.with_suffix(".failed.json")

    @property
    def samples(self) -> Path:
        return self.out / "samples" / f"{self.recipe}-seed-{self.seed}.safetensors"

    def finished(self) -> bool:
        """Whether it has been trained to its end."""
        # Not by its summary, which is written before the last checkpoint.
        return self.outcome()["code"] == 0

    def outcome(self) -> dict[str, Any]:
        """How its last training ended: code, None where it has not; why, of a failure; refused."""
        return read_json(self.ending) or {"code": None, "why": None, "refused": False}

    def ended(self, code: int) -> dict[str, Any]:
        """Keep how its training ended, and return it: what a NaN stopped has failed, whatever its code."""
        why = None if code == 0 else reason(self.log, code)
        if code == 0 and not (self.folder / "summary.json").is_file():
            code, why = 1, "ended without a run: a recipe's file must end in experiment.main(Settings, build)"
        stopped = why is not None and why.startswith("stopped")
        outcome = {"code": code, "why": why, "refused": code == 2 and not stopped}
        write_whole(self.ending, json.dumps(outcome) + "\n")
        return outcome


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where it is not there."""
    return json.loads(path.read_text()) if path.is_file() else {}


# What a process said.


def last_words(log: Path, most: int = 4000) -> list[str]:
    """Return the last lines of a text file that hold something, of its last `most` bytes."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - most))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def reason(log: Path, code: int) -> str:
    """Return why a process failed, in one line: its last refusal, its last line, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = last_words(log)
    refusals = [line.removeprefix("refused: ") for line in lines if line.startswith("refused: ")]
    if code == 2 and refusals:
        return refusals[-1]
    return lines[-1] if lines else f"exit code {code} without a word"


# What a run logged.


def _entries(lines: Sequence[str]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off by a crash, or being written
        entries += [entry] if isinstance(entry, dict) and "step" in entry else []
    return entries


def logged(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run folder's metrics.jsonl."""
    path = run / "metrics.jsonl"
    return _entries(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else []


def progress(run: Path) -> int:
    """Return the last step that a run has logged."""
    entries = _entries(last_words(run / "metrics.jsonl", 8192))
    return int(entries[-1]["step"]) if entries else 0


def timeline(run: Path) -> list[tuple[int, float]]:
    """Return (step, seconds of training up to it) at each logged step: steps alone, no start-up and no pictures."""
    points, before, seconds = [], 0, 0.0
    for entry in logged(run):
        if "time/step_ms" in entry:
            seconds += (entry["step"] - before) * entry["time/step_ms"] / 1000
            before = entry["step"]
            points.append((before, seconds))
    return points


def stability(run: Path) -> dict[str, float]:
    """Return what a run's log says of how stable its training was; nothing where no loss was logged.

    diverged: 1 if a logged loss or gradient norm is not finite, else 0. A run that meets one is stopped before it logs
    it: then only whoever started the run knows. spikes: the share of gradient norms, of all players together, that are
    `spikes`; absent where no player has enough of them.
    """
    values: dict[str, list[float]] = {}
    for entry in logged(run):
        for tag, value in entry.items():
            if tag.startswith(("loss/", "grad_norm/")) and isinstance(value, int | float):
                values.setdefault(tag, []).append(float(value))
    if not values:
        return {}
    figures = {"diverged": float(not all(math.isfinite(value) for some in values.values() for value in some))}
    judged = [spike for tag, some in values.items() if tag.startswith("grad_norm/") for spike in spikes(some)]
    return figures | ({"spikes": sum(judged) / len(judged)} if judged else {})


def spikes(norms: Sequence[float], factor: float = SPIKE) -> list[bool]:
    """Return whether each gradient norm, from the sixth, is above `factor` times the median of up to 50 before it.

    Arguments: norms, of one player, in their order. What is not finite is a spike, and in no median.
    """
    usual: list[float] = []
    judged = []
    for norm in norms:
        if len(usual) >= BEFORE:
            judged.append(not math.isfinite(norm) or norm > factor * statistics.median(usual[-WINDOW:]))
        if math.isfinite(norm):
            usual.append(norm)
    return judged
