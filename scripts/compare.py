"""Compare recipes on the same data, with the same budget and number of parameters: train, measure, write a report.

    python scripts/compare.py --data digits --images 64000 --seeds 3 --out runs/comparison
    python scripts/compare.py --recipes vae gan ddpm --data shapes --seconds 600 --jobs 2 --out runs/shapes
    python scripts/compare.py --recipes vae ./mine.py --images 64000 --metrics all ./mine.py:metric --out runs/mine

Each run is a process of its own, in OUT/runs/RECIPE/seed-K. The same command continues an interrupted comparison:
finished runs are neither trained nor measured again. Recipes and seeds can be added to a comparison.
"""

import argparse
import shlex
import string
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrids.comparison import DEFAULT, Options, compare, report_of
from hybrids.comparison.plan import BUDGETS, errors_of
from hybrids.comparison.study import table
from hybrids.experiment import Refusal, refusing

AXES = ("quality", "coverage", "sharpness", "control", "likelihood", "speed", "stability")
SHOWN = (
    "high_quality",
    "frechet",
    "kl",
    "recall",
    "high_frequency",
    "probe",
    "bits_per_dim",
    "nats",
    "samples_per_second",
    "spikes",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare recipes: same data, budget and number of parameters.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--recipes", nargs="+", default=list(DEFAULT), help="recipes by name, or your own by file (%(default)s)")
    add(
        "--data",
        default="digits",
        help="data set as of a recipe: a name, hub:OWNER/NAME, a folder, FILE.py:NAME (digits)",
    )
    add("--resolution", type=int, help="resolution of images (the data's own)")
    add("--images", type=float, help="budget of each run: training examples; two stages have half of any budget each")
    add("--flops", type=float, help="budget of each run: floating-point operations of training")
    add("--seconds", type=float, help="budget of each run: seconds of training; a pilot measures a step")
    add("--parameters", type=int, help="number of parameters for which widths are chosen (median of the default sizes)")
    add("--seeds", type=int, default=1, help="number of runs of each recipe, with seeds 0, 1, … (1)")
    add("--samples", type=int, default=2000, help="number of samples on which a run is measured (2000)")
    add("--curve-samples", type=int, default=500, help="number of samples at each point of a curve (500)")
    add("--metrics", nargs="+", help="metrics by name, all, or FILE.py:NAME (all)")
    add("--jobs", type=int, default=1, help="processes at a time; several GPUs are used in turn (1)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="device of training and measurement")
    add("--set", action="append", default=[], metavar='RECIPE="--flag value ..."', help="further settings of a recipe")
    add("--out", type=Path, help="folder of runs, measurements and report")
    add("--report-only", action="store_true", help="only write the report of an existing comparison")
    return parser.parse_args()


def options_of(given: argparse.Namespace) -> Options:
    """Return the options of a command line. Raises Refusal with all its errors."""
    budgets = {kind: value for kind in BUDGETS if (value := getattr(given, kind)) is not None}
    errors = []
    if len(budgets) != 1:
        named = " and ".join(f"--{kind}" for kind in budgets) or "none"
        errors.append(f"--images, --flops, --seconds: expected exactly one budget; got {named}")
    words: dict[str, str] = {}
    for one in given.set:
        recipe, equals, text = one.partition("=")
        if not equals or not recipe or recipe in words:
            errors.append(f'--set {one!r}: expected RECIPE="--flag value ...", each recipe once')
        else:
            words[recipe] = text
    if given.out is None:
        errors.append("--out: missing; give the folder of runs, measurements and report")
    kind, value = next(iter(budgets.items()), ("images", 1.0))
    options = Options(
        recipes=tuple(given.recipes),
        data=given.data,
        kind=kind,
        value=value,
        out=given.out or Path(),
        resolution=given.resolution,
        parameters=given.parameters,
        seeds=given.seeds,
        samples=given.samples,
        curve_samples=given.curve_samples,
        jobs=given.jobs,
        metrics=None if given.metrics is None else tuple(given.metrics),
        words=words,
        device=given.device,
    )
    if errors:
        raise Refusal([*errors, *errors_of(options)])
    return options


def summary(report: Mapping[str, Any]) -> str:
    """Return tables of means over seeds and of costs, with reasons for missing numbers, warnings and failures."""
    axes = {metric["name"]: metric["axis"] for metric in report["metrics"]}
    shown = [name for name in (*SHOWN, *(name for name in axes if axes[name] not in AXES)) if name in axes]
    reasons: dict[str, str] = {}

    def cell(values: Mapping[str, float | None], missing: Mapping[str, str], name: str) -> object:
        why = missing.get(name) or missing.get("samples")
        if values.get(name) is not None or why is None:
            return values.get(name, "")
        return f"– ({reasons.setdefault(why, _letter(len(reasons)))})"

    rows: list[dict[str, object]] = []
    if report["real"]:
        real = {name: measurement["value"] for name, measurement in report["real"].items()}
        rows.append(
            {"recipe": "real", "parameters": "", **{name: cell(real, report["real_missing"], name) for name in shown}}
        )
    for recipe in report["recipes"]:
        means = {name: over_seeds["mean"] for name, over_seeds in recipe["summary"].items()}
        cells = {name: cell(means, recipe["missing"], name) for name in shown}
        rows.append({"recipe": recipe["recipe"], "parameters": recipe["parameters"] or "", **cells})
        if recipe["state"] != "finished":
            rows[-1]["state"] = recipe["state"]
    by_axis = ((axis, ", ".join(name for name in shown if axes[name] == axis)) for axis in dict.fromkeys(axes.values()))
    axes_shown = ", ".join(f"{axis}: {names}" for axis, names in by_axis if names)
    notes = [f"({letter}) {why}" for why, letter in reasons.items()]
    costs = [
        {"recipe": recipe["recipe"], **{name: "" if v is None else float(v) for name, v in recipe["cost"].items()}}
        for recipe in report["recipes"]
    ]
    warnings = [f"{recipe['recipe']}: {warning}" for recipe in report["recipes"] for warning in recipe["warnings"]]
    ends = [f"{r['recipe']}: {r['state']}: {r['why']}" for r in report["recipes"] if r["state"] != "finished"]
    return "\n".join(
        [table(rows), axes_shown, *notes, "", "training, the mean of a run", table(costs), *warnings, *ends]
    )


def _letter(i: int) -> str:
    """Return a, b, … z, aa, ab, …"""
    return (_letter(i // 26 - 1) if i >= 26 else "") + string.ascii_lowercase[i % 26]


def main() -> None:
    given = arguments()
    with refusing():
        if not given.report_only:
            code = compare(options_of(given), shlex.join(["python", "scripts/compare.py", *sys.argv[1:]]))
            if code:
                sys.exit(code)
        elif given.out is None:
            raise Refusal("--out: missing; give the folder of a comparison")
        report = report_of(given.out)
    print(summary(report))
    page = given.out / "report.html"
    print(page if page.is_file() else given.out / "report.json")


if __name__ == "__main__":
    main()
