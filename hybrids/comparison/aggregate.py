"""report.json: everything that lies in a comparison's folder, in one file."""

import json
import math
import shlex
import statistics
from pathlib import Path
from typing import Any

from ..files import write_whole
from .families import family, title
from .runs import Run, timeline
from .stability import of_run, spread
from .verdicts import adjectives

__all__ = ["aggregate"]

FORMAT = 1
QUALITIES = {"high_quality": "higher", "frechet": "lower"}
"""What quality is told in along curves and over seeds, and which end is better: the first that the data has.

Of points with a known density the share near a mode: means and covariances hardly tell points between modes from points
on them.
"""
WORDS = {"high_quality": "share of high quality", "frechet": "Fréchet distance"}
EXTRA = [
    ("training_seconds", "speed", "lower", "s", "Seconds of training steps, start-up and pictures left out."),
    ("flops_per_step", "speed", "lower", "", "FLOPs of one training step, all players, forward and backward; of stages "
     "the mean over the run's steps."),
    ("seconds_to_quality", "speed", "lower", "s", "Seconds of training until the Fréchet distance (of points, the "
     "share of high quality) is, at a checkpoint, the median recipe's last one or better; absent where it never is."),
    ("rate_at_quality", "speed", "higher", "1/s", "Samples a second with the fewest network evaluations whose Fréchet "
     "distance (of points, share of high quality) is the median recipe's last one or better; absent where none is."),
    ("spread", "stability", "lower", "", "Standard deviation over seeds of the Fréchet distance (of points, the "
     "share of high quality), over its mean."),
    ("diverged", "stability", "lower", "", "Share of runs whose loss or gradients ceased to be finite."),
    ("spikes", "stability", "lower", "", "Share of logged gradient norms above ten times their running median."),
]  # fmt: skip
"""What the comparison itself knows of runs: name, axis, better, unit, says."""


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def aggregate(out: Path, plan: dict[str, Any], machine: dict[str, Any], command: str) -> dict[str, Any]:
    """The report of what lies in `out`, written to report.json. Numbers that are not finite are texts there."""
    real = _json(out / "measured" / "real.json").get("figures", {})
    recipes = [_recipe(out, plan, recipe, entry) for recipe, entry in plan["recipes"].items()]
    metrics = _metrics()
    quality = _quality(recipes)
    _qualities(recipes, quality)
    for recipe in recipes:
        recipe["summary"] = _summary(recipe["runs"], metrics, real, quality)
    card, asked = plan["data"], plan["asked"]
    used = {name for recipe in recipes for name in recipe["summary"]} | set(real)
    used |= {name for recipe in recipes for run in recipe["runs"] for name in run["figures"]}
    report = {
        "format": FORMAT,
        "data": card["name"],
        "shape": card["shape"],
        "grey_levels": card["grey_levels"],
        "examples": card["examples"],
        "budget": {"kind": asked["kind"], "value": asked["value"]},
        "parameters": plan["parameters"],
        "seeds": list(range(plan["seeds"])),
        "samples": asked["samples"],
        "curve_samples": asked["curve_samples"],
        "machine": machine,
        "command": command,
        "metrics": [metric for metric in metrics if metric["name"] in used],
        "real": real,
        "real_samples": "samples/real.safetensors" if (out / "samples" / "real.safetensors").is_file() else None,
        "recipes": recipes,
        "adjectives": adjectives(recipes, {name: figure["value"] for name, figure in real.items()}),
    }
    write_whole(out / "report.json", json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    return report


def _plain(value: Any) -> Any:
    """The same with "nan", "inf" and "-inf" for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _metrics() -> list[dict[str, str]]:
    from ..evaluation.metrics import METRICS

    names = ("name", "axis", "better", "unit", "says")
    known = [{name: getattr(metric, name) for name in names} for metric in METRICS.values()]
    return known + [dict(zip(names, extra)) for extra in EXTRA if extra[0] not in METRICS]


def _recipe(out: Path, plan: dict[str, Any], recipe: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the report says of a recipe, but for its summary."""
    runs, whys = [], []
    refused = entry["refused"]
    for seed in range(plan["seeds"]) if refused is None and entry["lengths"] is not None else ():
        run = Run(out, recipe, seed)
        outcome = run.outcome()
        if outcome.get("refused"):
            refused = outcome["why"]
            continue
        runs.append(_run(run, entry, outcome))
        whys += [f"seed {seed}: {runs[-1]['why']}"] if runs[-1]["why"] else []
    good = sum(run["state"] == "finished" for run in runs)
    if refused is not None and not runs:
        state, why = "refused", refused
    else:
        state = "finished" if runs and good == len(runs) else "partial" if good else "failed"
        why = "; ".join(whys) or (None if state == "finished" else entry.get("why") or "was not trained")
    words = [*entry["words"], *(["--steps", str(entry["lengths"][-1])] if entry["lengths"] else [])]
    if entry.get("split"):
        words += ["--first-steps", str(entry["lengths"][0])]
    return {
        "recipe": recipe,
        "title": title(recipe),
        "family": family(recipe),
        "words": shlex.join(words),
        "parameters": entry["parameters"],
        "state": state,
        "why": why,
        "runs": runs,
    }


def _run(run: Run, entry: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    """What the report says of one run."""
    found, spent = _json(run.measured), timeline(run.folder)
    finished = run.finished()
    steps = sum(entry["lengths"]) if finished else (spent[-1][0] if spent else 0)
    seconds = spent[-1][1] if spent else None
    figures: dict[str, Any] = dict(found.get("figures", {})) if finished else {}

    def add(name: str, value: float | None) -> None:
        if value is not None and name not in figures:
            figures[name] = {"value": value, "floor": None, "low": None, "high": None}

    why = outcome["why"]
    measuring = _json(run.measured.with_name(f"{run.recipe}-seed-{run.seed}.failed.json")).get("why")
    if finished and "evaluations_curve" not in found:
        why = f"not measured: {measuring or 'the comparison was stopped before'}"
    elif not finished and why is None:
        why = "was not trained to its end"
    per_step = found.get("flops_per_step")
    flops = None if per_step is None else sum(a * b for a, b in zip(per_step, entry["lengths"]))
    if finished:
        add("training_seconds", seconds)
        add("flops_per_step", None if flops is None else flops / steps)
    for name, value in _stability(run, outcome).items():
        add(name, value)
    return {
        "seed": run.seed,
        "run": str(run.folder.relative_to(run.out)),
        "state": "finished" if finished and why is None else "failed",
        "why": why,
        "seconds": seconds,
        "steps": steps,
        "images": steps * entry["batch"],
        "flops": flops if finished else None,
        "figures": figures,
        "missing": found.get("missing") or {},
        "curve": found.get("curve", []) if finished else [],
        "evaluations_curve": found.get("evaluations_curve", []) if finished else [],
        "samples": str(run.samples.relative_to(run.out)) if finished and run.samples.is_file() else None,
    }


def _stability(run: Run, outcome: dict[str, Any]) -> dict[str, float]:
    stopped = "not finite" in (outcome["why"] or "")
    try:
        found = of_run(run.folder)
    except (FileNotFoundError, ValueError):
        return {"diverged": 1.0} if stopped else {}
    kept = {name: value for name, value in found.items() if name in ("diverged", "spikes")}
    return kept | ({"diverged": 1.0} if stopped else {})


def _quality(recipes: list[dict[str, Any]]) -> str:
    """The name in QUALITIES that quality is told in: the first that runs have as a figure, else on their curves."""
    runs = [run for recipe in recipes for run in recipe["runs"]]
    figures = {name for run in runs for name in run["figures"]}
    curves = {name for run in runs for point in run["curve"] for name in point}
    return next((name for known in (figures, curves) for name in QUALITIES if name in known), "frechet")


def _qualities(recipes: list[dict[str, Any]], name: str) -> None:
    """Add what it takes to reach the stated quality: the median over recipes of the last one on their curves."""
    lower = QUALITIES[name] == "lower"
    last = []
    for recipe in recipes:
        values = [run["curve"][-1].get(name, math.nan) for run in recipe["runs"] if run["curve"]]
        values = [value for value in values if math.isfinite(value)]
        last += [statistics.fmean(values)] if values else []
    if not last:
        return
    stated = statistics.median_low(last) if lower else statistics.median_high(last)

    def reached(point: dict[str, Any]) -> bool:
        value = point.get(name, math.nan)
        return value <= stated if lower else value >= stated

    for recipe in recipes:
        for run in recipe["runs"]:
            found = {
                "seconds_to_quality": [p["seconds"] for p in run["curve"] if reached(p)],
                "rate_at_quality": [p["samples_per_second"] for p in run["evaluations_curve"] if reached(p)],
            }
            for figure, values in found.items():
                if values:
                    run["figures"][figure] = {"value": values[0], "floor": None, "low": None, "high": None}
                elif run["figures"]:
                    run["missing"][figure] = f"never reaches a {WORDS[name]} of {stated:.4g}"


def _summary(
    runs: list[dict[str, Any]], metrics: list[dict[str, str]], real: dict[str, Any], quality: str
) -> dict[str, Any]:
    """Each figure over seeds, and the spread of `quality`; numbers that are not finite are seen in the runs alone."""
    found: dict[str, Any] = {}
    for metric in metrics:
        name, better = metric["name"], metric["better"]
        values = [run["figures"][name]["value"] for run in runs if name in run["figures"]]
        values = [float(value) for value in values if value is not None and math.isfinite(value)]
        reference = real.get(name, {}).get("value")
        if better == "real" and reference is None:
            # Ratios to real.
            reference = 1.0
        if values:
            found[name] = spread(values, better, reference)  # type: ignore[arg-type]
    told = found.get(quality)
    if told and told["std"] is not None and told["mean"]:
        share = told["std"] / abs(told["mean"])
        found["spread"] = {
            "mean": share,
            "std": None,
            "low": None,
            "high": None,
            "worst": None,
            "runs": told["runs"],
        }
    return found
