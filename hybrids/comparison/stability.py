"""How stable training is: what one run's log tells, and how far runs of several seeds lie apart."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

__all__ = ["collapsed", "of_run", "spikes", "spread"]

Better = Literal["lower", "higher", "real", "neither"]
Run = TypeVar("Run")

SPIKE = 10.0
"""A gradient's norm is a spike above so many times the running median."""
BEFORE = 5
"""Norms that must come before one, so that their median says what is usual."""
WINDOW = 50
"""Norms that the running median is of: they shrink as training goes on."""


def of_run(run: Path | str) -> dict[str, float]:
    """What a run folder's metrics.jsonl and summary.json say of its training.

    ended: 1 if the run came to its end, and wrote summary.json. not_finite: logged losses and gradient norms that are
    NaN or infinite. diverged: 1 if there are such. A run that meets one is refused before it logs it: then not_finite
    is 0, and only whoever started the run knows why it did not end. lines: of losses. steps: of the last one.
    grad_norms: how many were logged, and spikes: the share of those with enough before them that are spikes, see
    `spikes`, all players together; absent where no norm has. Each is a mean over the steps since the line before.
    Raises FileNotFoundError without a metrics.jsonl, ValueError for one in which no line has a loss. A last line that a
    crash cut off is passed over.
    """
    run = Path(run)
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"run {run}: no metrics.jsonl there, so nothing was logged")
    lines = [line for line in map(_read, path.read_text(encoding="utf-8").splitlines()) if _logged(line)]
    if not lines:
        raise ValueError(f"run {run}: metrics.jsonl has no line with a loss; expected at least one logged step")
    bad = sum(not math.isfinite(value) for line in lines for value in _logged(line).values())
    norms: dict[str, list[float]] = {}
    for line in lines:
        for tag, value in _logged(line).items():
            if tag.startswith("grad_norm/"):
                norms.setdefault(tag, []).append(value)
    found = {
        "ended": float((run / "summary.json").is_file()),
        "diverged": float(bad > 0),
        "not_finite": float(bad),
        "lines": float(len(lines)),
        "steps": float(max(line.get("step", 0) for line in lines)),
        "grad_norms": float(sum(map(len, norms.values()))),
    }
    judged = [spike for values in norms.values() for spike in spikes(values)]
    return found | ({"spikes": sum(judged) / len(judged)} if judged else {})


def spikes(norms: Sequence[float], factor: float = SPIKE) -> list[bool]:
    """Whether each of a player's gradient norms, from the sixth, is above `factor` times the median of up to 50 before.

    What is not finite is a spike, and in no median.
    """
    usual: list[float] = []
    found = []
    for norm in norms:
        if len(usual) >= BEFORE:
            found.append(not math.isfinite(norm) or norm > factor * statistics.median(usual[-WINDOW:]))
        if math.isfinite(norm):
            usual.append(norm)
    return found


def spread(values: Sequence[float], better: Better = "lower", real: float | None = None) -> dict[str, float | None]:
    """How the values of several seeds lie: mean, std, low, high, worst, runs.

    std has n - 1 in its denominator; low and high are mean ± t std/√n, the 95% interval of Student's t with n - 1
    degrees of freedom, exact for Gaussian values (Student 1908). worst is the largest value where lower is better, the
    smallest where higher is, the farthest from `real` where that of real data is best; of "neither" there is none.
    One value has no std, low and high: None. Raises ValueError for no values, for such as are not finite, and for
    "real" without `real`.
    """
    if better not in get_args(Better):
        raise ValueError(f"better must be one of {', '.join(get_args(Better))}; got {better!r}")
    if better == "real" and real is None:
        raise ValueError("better='real' needs real, the value of real data; got None")
    values = [float(value) for value in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"values must be at least one finite number; got {values}")
    worst: float | None = None
    if better == "lower":
        worst = max(values)
    elif better == "higher":
        worst = min(values)
    elif better == "real":
        worst = max(values, key=lambda value: abs(value - real))  # type: ignore[operator]
    n, mean = len(values), statistics.fmean(values)
    found: dict[str, float | None] = {"mean": mean, "std": None, "low": None, "high": None, "worst": worst, "runs": n}
    if n > 1:
        from scipy.special import stdtrit

        std = statistics.stdev(values)
        half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
        found |= {"std": std, "low": mean - half, "high": mean + half}
    return found


def collapsed(runs: Sequence[Run | None], rule: Callable[[Run], bool]) -> float:
    """Share of runs that diverged, given as None, or of which the rule says that they collapsed.

    collapsed([figures or None for each seed], lambda figures: figures["modes"] < 13). Raises ValueError for no runs.
    """
    if not runs:
        raise ValueError("runs must be at least one; got none")
    return sum(run is None or bool(rule(run)) for run in runs) / len(runs)


def _read(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _logged(line: dict[str, Any]) -> dict[str, float]:
    """A line's losses and gradient norms."""
    return {
        tag: float(value)
        for tag, value in line.items()
        if tag.startswith(("loss/", "grad_norm/")) and isinstance(value, int | float)
    }
