"""report.json: all results in a comparison's folder, with statistics over seeds and the costs of each recipe."""

import json
import math
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..evaluation.measurements import interval_about
from ..evaluation.metrics import METRICS
from ..experiment import Refusal
from ..files import write_whole
from .measure import QUALITIES
from .plan import read_plan
from .recipes import FAMILIES, Recipe
from .runs import Run, read_json, stability, timeline
from .verdicts import verdicts

__all__ = ["report_of", "seed_statistics", "summarize"]

FORMAT = 1
FAR = 0.1
"""Relative difference from the median number of parameters or training operations above which there is a warning."""
WORDS = {"high_quality": "share of high quality", "frechet": "Fréchet distance"}
PARTS = ("name", "axis", "better", "unit", "says")
EXTRA = [
    ("training_seconds", "speed", "lower", "s", "Seconds of training steps, without start-up and pictures."),
    ("flops_per_step", "speed", "lower", "", "FLOPs of one training step, all players, forward and backward; for "
     "several stages the mean over the run's steps."),
    ("seconds_to_quality", "speed", "lower", "s", "Seconds of training until the first checkpoint whose Fréchet "
     "distance (for points: share of high quality) is at least as good as the median of all recipes' final ones; "
     "missing where no checkpoint is."),
    ("rate_at_quality", "speed", "higher", "1/s", "Samples per second with the fewest network evaluations at which the "
     "Fréchet distance (for points: share of high quality) is at least as good as the median of all recipes' final "
     "ones; missing where it never is."),
    ("spread", "stability", "lower", "", "Standard deviation over seeds of the Fréchet distance (for points: share of "
     "high quality), divided by its mean."),
    ("diverged", "stability", "lower", "", "Share of runs whose loss or gradients became infinite or NaN."),
    ("spikes", "stability", "lower", "", "Share of logged gradient norms above ten times their running median."),
]  # fmt: skip
"""Metrics of runs and of several seeds, beside those of `evaluation.METRICS`: name, axis, better, unit, says."""

Better = Literal["lower", "higher", "real", "neither"]


def report_of(out: Path) -> dict[str, Any]:
    """Write report.json and the page of the comparison in `out`, and return the report.

    Raises Refusal for a folder without a comparison.
    """
    plan = read_plan(out)
    if plan is None:
        raise Refusal(f"--out {out}: there is no plan.json in it; give the folder of a comparison")
    machine = read_json(out / "machine.json")
    report = summarize(out, plan, machine, machine.pop("command", ""))
    try:
        from .page import write_report
    except ImportError as error:
        print(f"only {out / 'report.json'} was written, without the page: {error}", file=sys.stderr)
        return report
    write_report(report, out)
    return report


def summarize(out: Path, plan: Mapping[str, Any], machine: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return the report of the comparison in `out`, and write it to report.json, non-finite numbers as strings."""
    measured = read_json(out / "measured" / "real.json")
    real = measured.get("figures", {})
    metrics: dict[str, dict[str, str]] = {
        name: {part: getattr(metric, part) for part in PARTS} for name, metric in METRICS.items()
    }
    metrics |= {extra[0]: dict(zip(PARTS, extra)) for extra in EXTRA}
    known = set(metrics)
    recipes = [_recipe(out, plan, name, entry, metrics) for name, entry in plan["recipes"].items()]
    quality = _quality(recipes)
    _qualities(recipes, quality)
    for recipe in recipes:
        recipe["summary"] = _summary(recipe["runs"], metrics, real, quality)
        recipe["missing"] = _missing(recipe)
    _warn(recipes)
    card, request = plan["data"], plan["asked"]
    used = {name for recipe in recipes for part in (recipe["summary"], *(run["figures"] for run in recipe["runs"]))
            for name in part}  # fmt: skip
    used |= set(request["metrics"] or ()) | (set(metrics) - known)
    shown = out / "samples" / "real.safetensors"
    report = {
        "format": FORMAT,
        "data": card["name"],
        "shape": card["shape"],
        "grey_levels": card["grey_levels"],
        "examples": card["examples"],
        "budget": {"kind": request["kind"], "value": request["value"]},
        "parameters": plan["parameters"],
        "seeds": list(range(plan["seeds"])),
        "samples": request["samples"],
        "curve_samples": request["curve_samples"],
        "machine": dict(machine),
        "command": command,
        "metrics": [metric for name, metric in metrics.items() if name in used],
        "real": real,
        "real_n": measured.get("n"),
        "real_missing": measured.get("missing", {}),
        "real_samples": str(shown.relative_to(out)) if shown.is_file() else None,
        "recipes": recipes,
        "adjectives": verdicts(recipes),
    }
    write_whole(out / "report.json", json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    return report


def _plain(value: Any) -> Any:
    """Return the same with the strings "nan", "inf" and "-inf" for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# One recipe, one run.


def _recipe(
    out: Path, plan: Mapping[str, Any], name: str, entry: Mapping[str, Any], metrics: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """Return a recipe's entry in the report, without its summary; add the user's metrics to `metrics`."""
    runs, whys = [], []
    refused = entry["refused"]
    for seed in range(plan["seeds"]) if refused is None and entry["lengths"] is not None else ():
        run = Run(out, name, seed)
        outcome = run.outcome()
        if outcome["refused"]:
            refused = outcome["why"]
            continue
        results = read_json(run.measured)
        metrics |= {own["name"]: own for own in results.get("own_metrics", [])}
        runs.append(_run(run, entry, outcome, results))
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
        "recipe": name,
        "title": Recipe(entry.get("given", name)).title,
        # Not by loading the recipe: a file whose path is read from a folder is not executed.
        "family": entry.get("family", FAMILIES.get(name)),
        "words": shlex.join(words),
        "parameters": entry["parameters"],
        "state": state,
        "why": why,
        "cost": _cost(runs),
        "warnings": [],
        "missing": {},
        "runs": runs,
    }


def _run(run: Run, entry: Mapping[str, Any], outcome: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's entry in the report; results are its measurements."""
    finished, spent = run.finished(), timeline(run.folder)
    results = results if finished else {}
    steps = sum(entry["lengths"]) if finished else (spent[-1][0] if spent else 0)
    seconds = spent[-1][1] if spent else None
    why = outcome["why"]
    if finished and "evaluations_curve" not in results:
        why = f"not measured: {read_json(run.unmeasured).get('why', 'the comparison was stopped before')}"
    elif not finished and why is None:
        why = "training has not finished"
    per_step = results.get("flops_per_step")
    flops = None if per_step is None else sum(a * b for a, b in zip(per_step, entry["lengths"]))
    of_training = stability(run.folder)
    if "not finite" in (outcome["why"] or ""):
        of_training["diverged"] = 1.0
    if finished and seconds is not None:
        of_training["training_seconds"] = seconds
    if flops is not None:
        of_training["flops_per_step"] = flops / steps
    return {
        "seed": run.seed,
        "run": str(run.folder.relative_to(run.out)),
        "state": "finished" if finished and why is None else "failed",
        "why": why,
        "seconds": seconds,
        "steps": steps,
        "images": steps * entry["batch"],
        "flops": flops,
        "figures": {name: _measurement(value) for name, value in of_training.items()} | results.get("figures", {}),
        "missing": dict(results.get("missing") or {}),
        "curve": results.get("curve", []),
        "evaluations_curve": results.get("evaluations_curve", []),
        "samples": str(run.samples.relative_to(run.out)) if finished and run.samples.is_file() else None,
    }


def _measurement(value: float) -> dict[str, float | None]:
    return {"value": value, "floor": None, "low": None, "high": None}


# Costs.


def _cost(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean cost of training a run: FLOPs of all stages, steps, training examples, seconds."""
    values = {
        name: [run[name] for run in runs if run[name] is not None] for name in ("flops", "steps", "images", "seconds")
    }
    return {name: statistics.fmean(some) if some else None for name, some in values.items()}


def _warn(recipes: Sequence[dict[str, Any]]) -> None:
    """Add a warning to each recipe whose parameters or training operations are far from the median of all."""
    for what, unit in (("parameters", "trained parameters"), ("flops", "training operations (FLOPs)")):
        values = [recipe[what] if what == "parameters" else recipe["cost"][what] for recipe in recipes]
        values = [None if recipe["state"] == "refused" else value for recipe, value in zip(recipes, values)]
        known = [value for value in values if value]
        median = statistics.median(known) if known else math.nan
        for recipe, value in zip(recipes, values):
            if value and abs(value / median - 1) > FAR:
                share = f"{abs(value / median - 1):.0%} {'more' if value > median else 'fewer'} than"
                recipe["warnings"].append(f"{value:.4g} {unit}, {share} the recipes' median, {median:.4g}")


# Cost of a given quality, and statistics over seeds.


def _quality(recipes: Sequence[Mapping[str, Any]]) -> str:
    """Return the metric of QUALITIES that the report uses: the first among the runs' metrics, else on their curves."""
    runs = [run for recipe in recipes for run in recipe["runs"]]
    measured = {name for run in runs for name in run["figures"]}
    curves = {name for run in runs for point in run["curve"] for name in point}
    return next((name for known in (measured, curves) for name in QUALITIES if name in known), "frechet")


def _qualities(recipes: Sequence[Mapping[str, Any]], name: str) -> None:
    """Add seconds_to_quality and rate_at_quality to runs; the target is the median over recipes of final quality."""
    lower = QUALITIES[name] == "lower"
    final = []
    for recipe in recipes:
        values = [run["curve"][-1].get(name, math.nan) for run in recipe["runs"] if run["curve"]]
        values = [value for value in values if math.isfinite(value)]
        final += [statistics.fmean(values)] if values else []
    if not final:
        return
    target = statistics.median_low(final) if lower else statistics.median_high(final)

    def reached(point: Mapping[str, Any]) -> bool:
        value = point.get(name, math.nan)
        return value <= target if lower else value >= target

    for run in (run for recipe in recipes for run in recipe["runs"]):
        reaching = {
            "seconds_to_quality": [point["seconds"] for point in run["curve"] if reached(point)],
            "rate_at_quality": [point["samples_per_second"] for point in run["evaluations_curve"] if reached(point)],
        }
        for metric, values in reaching.items():
            if values:
                run["figures"][metric] = _measurement(values[0])
            elif run["figures"]:
                run["missing"].setdefault(metric, f"never reaches a {WORDS[name]} of {target:.4g}")


def _missing(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the reasons for missing metrics, {metric: reason}, where no run has the metric and all have a reason."""
    reasons = [run["missing"] for run in recipe["runs"] if run["missing"]]
    some = dict.fromkeys(name for each in reasons for name in each if name != "samples")
    names = [name for name in some if all(name in each or "samples" in each for each in reasons)]
    return {
        name: "; ".join(dict.fromkeys(each.get(name) or each["samples"] for each in reasons))
        for name in names
        if name not in recipe["summary"]
    }


def _summary(
    runs: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, str]],
    real: Mapping[str, Any],
    quality: str,
) -> dict[str, Any]:
    """Return the statistics of each metric over seeds, finite values only, and the spread of `quality`."""
    summary: dict[str, Any] = {}
    for name, metric in metrics.items():
        better: Any = metric["better"]
        values = [run["figures"][name]["value"] for run in runs if name in run["figures"]]
        values = [float(value) for value in values if value is not None and math.isfinite(value)]
        reference = real.get(name, {}).get("value")
        if better == "real" and reference is None:
            # The project's are ratios to real data; the value of real data of a user's metric is unknown.
            better, reference = ("real", 1.0) if name in METRICS else ("neither", None)
        if values:
            summary[name] = seed_statistics(values, better, reference)
    over_seeds = summary.get(quality)
    if over_seeds and over_seeds["std"] is not None and over_seeds["mean"]:
        share = over_seeds["std"] / abs(over_seeds["mean"])
        summary["spread"] = {
            "mean": share,
            "std": None,
            "low": None,
            "high": None,
            "worst": None,
            "runs": over_seeds["runs"],
        }
    return summary


def seed_statistics(
    values: Sequence[float], better: Better = "lower", real: float | None = None
) -> dict[str, float | None]:
    """Return statistics of the values of several seeds: mean, std, low, high, worst, runs.

    std is unbiased in the variance (n - 1); low and high are mean ± t std/√n, the 95% interval of Student's t with
    n - 1 degrees of freedom, exact for Gaussian values (Student 1908). worst is the largest value where lower is
    better, the smallest where higher is, the farthest from `real` where better is "real", None for "neither". std, low
    and high of one value are None.
    Raises ValueError for no values, for values that are not finite, and for better="real" without `real`.
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
    summary: dict[str, float | None] = {"mean": mean, "std": None, "low": None, "high": None, "worst": worst, "runs": n}
    if n > 1:
        std = statistics.stdev(values)
        about = interval_about(mean, std / math.sqrt(n), freedom=n - 1)
        summary |= {"std": std, "low": about.low, "high": about.high}
    return summary
