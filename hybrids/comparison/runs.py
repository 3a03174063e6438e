"""The runs of a comparison on disk: where they lie, how far they are, how they ended."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..experiment.loading import load_recipe
from ..files import write_whole
from .processes import Job, reason

__all__ = ["Run", "progress", "timeline"]


@dataclass(frozen=True)
class Run:
    """One recipe with one seed in a comparison's folder `out`."""

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
    def measured(self) -> Path:
        return self.out / "measured" / f"{self.recipe}-seed-{self.seed}.json"

    @property
    def samples(self) -> Path:
        return self.out / "samples" / f"{self.recipe}-seed-{self.seed}.safetensors"

    def finished(self) -> bool:
        """Whether it has been trained to its end."""
        # Not by its summary, which is written before the last checkpoint.
        return self.outcome()["code"] == 0

    def outcome(self) -> dict[str, Any]:
        """How its last training ended: code, None where it has not; and why, of a failure."""
        path = self.folder.with_name(f"seed-{self.seed}.json")
        return json.loads(path.read_text()) if path.is_file() else {"code": None, "why": None}

    def ended(self, code: int) -> dict[str, Any]:
        """Keep how its training ended, and return it: what a NaN stopped has failed, whatever its code."""
        why = None if code == 0 else reason(self.log, code)
        stopped = why is not None and why.startswith("stopped")
        outcome = {"code": code, "why": why, "refused": code == 2 and not stopped}
        write_whole(self.folder.with_name(f"seed-{self.seed}.json"), json.dumps(outcome) + "\n")
        return outcome

    def job(self, words: list[str]) -> Job:
        """Its training as a process of its own."""
        recipe = load_recipe(self.recipe).__file__
        assert recipe is not None
        command = [sys.executable, recipe, *words, "--out", str(self.folder), "--resume", "auto"]
        return Job(self.name, command, self.log, lambda: progress(self.folder))


def _lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # a line that is being written
    return found


def progress(run: Path) -> int:
    """The last step that a run has logged."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return 0


def timeline(run: Path) -> list[tuple[int, float]]:
    """(step, seconds of training up to it) at each logged step: of steps alone, without start-up and pictures."""
    found, before, seconds = [], 0, 0.0
    for entry in _lines(run):
        if "time/step_ms" in entry:
            seconds += (entry["step"] - before) * entry["time/step_ms"] / 1000
            before = entry["step"]
            found.append((before, seconds))
    return found
