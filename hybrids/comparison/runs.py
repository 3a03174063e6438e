"""The runs of a comparison on disk: their paths, their outcome, and statistics of their logs."""

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
from ..refusal import CANNOT_WRITE, NOT_FINITE, REFUSED

__all__ = ["Run", "last_lines", "logged", "progress", "read_json", "reason", "spikes", "stability", "timeline"]

SPIKE = 10.0
"""A gradient norm above so many times the running median is a spike."""
BEFORE = 5
"""Least number of earlier norms for a running median."""
WINDOW = 50
"""Most norms in the running median, which follows their decrease during training."""


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
        """The file with the outcome of the training."""
        return self.folder.with_name(f"seed-{self.seed}.json")

    @property
    def measured(self) -> Path:
        return self.out / "measured" / f"{self.recipe}-seed-{self.seed}.json"

    @property
    def unmeasured(self) -> Path:
        """The file with the reason for a failed measurement."""
        return self.measured.with_suffix(".failed.json")

    @property
    def samples(self) -> Path:
        return self.out / "samples" / f"{self.recipe}-seed-{self.seed}.safetensors"

    def finished(self) -> bool:
        """Return whether it has been trained to its end."""
        # Its summary.json does not tell, since it is written before the last checkpoint.
        return self.outcome()["code"] == 0

    def outcome(self) -> dict[str, Any]:
        """Return the outcome of its last training: code, None where it has not ended; why it failed; refused."""
        return read_json(self.ending) or {"code": None, "why": None, "refused": False}

    def ended(self, code: int) -> dict[str, Any]:
        """Write the outcome of a training that ended with an exit code, and return it."""
        why = None if code == 0 else reason(self.log, code)
        if code == 0 and not (self.folder / "summary.json").is_file():
            code, why = 1, "it wrote no run: a recipe's file must end in experiment.main(Settings, build)"
        stopped = why is not None and why.startswith("stopped")
        outcome = {"code": code, "why": why, "refused": code == 2 and not stopped}
        write_whole(self.ending, json.dumps(outcome) + "\n")
        return outcome


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty dictionary where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


# The output of a process.


def last_lines(log: Path, most: int = 4000) -> list[str]:
    """Return the lines in the last `most` bytes of a text file that are not blank."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - most))
        text = file.read().decode(errors="replace")
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def reason(log: Path, code: int) -> str:
    """Return the reason for the failure of a process: its last refusal, its last line, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = last_lines(log)
    refusals = [line.removeprefix("refused: ") for line in lines if line.startswith("refused: ")]
    if code in (REFUSED, CANNOT_WRITE, NOT_FINITE) and refusals:
        return refusals[-1]
    return lines[-1] if lines else f"exit code {code} without output"


# The log of a run.


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
    """Return the entries of a run folder's metrics.jsonl."""
    path = run / "metrics.jsonl"
    return _entries(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else []


def progress(run: Path) -> int:
    """Return the last step that a run has logged."""
    entries = _entries(last_lines(run / "metrics.jsonl", 8192))
    return int(entries[-1]["step"]) if entries else 0


def timeline(run: Path) -> list[tuple[int, float]]:
    """Return (step, seconds of training up to it) at each logged step, without start-up and pictures."""
    points, before, seconds = [], 0, 0.0
    for entry in logged(run):
        if "time/step_ms" in entry:
            seconds += (entry["step"] - before) * entry["time/step_ms"] / 1000
            before = entry["step"]
            points.append((before, seconds))
    return points


def stability(run: Path) -> dict[str, float]:
    """Return metrics of a run's stability from its log; an empty dictionary where no loss was logged.

    diverged: 1 if a logged loss or gradient norm is not finite, else 0. A run that stops at such a value does not log
    it: its exit code tells. spikes: the share of gradient norms of all players that are `spikes`; absent where no
    player has enough norms.
    """
    values: dict[str, list[float]] = {}
    for entry in logged(run):
        for tag, value in entry.items():
            if tag.startswith(("loss/", "grad_norm/")) and isinstance(value, int | float):
                values.setdefault(tag, []).append(float(value))
    if not values:
        return {}
    diverged = float(not all(math.isfinite(value) for some in values.values() for value in some))
    flags = [spike for tag, some in values.items() if tag.startswith("grad_norm/") for spike in spikes(some)]
    return {"diverged": diverged} | ({"spikes": sum(flags) / len(flags)} if flags else {})


def spikes(norms: Sequence[float], factor: float = SPIKE) -> list[bool]:
    """Return whether each gradient norm, from the sixth, is above `factor` times the median of up to 50 before it.

    A norm that is not finite is a spike, and enters no median.
    Arguments:
        norms: of one player, in order.
    """
    earlier: list[float] = []
    flags = []
    for norm in norms:
        if len(earlier) >= BEFORE:
            flags.append(not math.isfinite(norm) or norm > factor * statistics.median(earlier[-WINDOW:]))
        if math.isfinite(norm):
            earlier.append(norm)
    return flags
