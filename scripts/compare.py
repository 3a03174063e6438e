"""Train recipes on the same data with the same budget and as many parameters, measure them alike, write a report.

    python scripts/compare.py --data digits --images 64000 --seeds 3 --out runs/comparison
    python scripts/compare.py --recipes vae gan ddpm --data shapes --seconds 600 --jobs 2 --out runs/shapes

Each run is a process of its own, in OUT/runs/RECIPE/seed-K. Stopped or killed, the same command goes on: what is
finished is neither trained nor measured again. Recipes and seeds may be added to what is there.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from hybrids.comparison import DEFAULT, Options, compare, report_of
from hybrids.experiment import Refusal, refusing
from hybrids.experiment.study import table

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
    parser = argparse.ArgumentParser(description="Recipes beside each other, on equal terms.", allow_abbrev=False)
    add = parser.add_argument
    add("--recipes", nargs="+", default=list(DEFAULT), help="which (%(default)s)")
    add("--data", default="digits", help="as of a recipe: a data set by name, hub:OWNER/NAME, or a folder (digits)")
    add("--resolution", type=int, help="of images; digits are 8 × 8 unless told otherwise")
    add(
        "--images", type=float, help="budget of each run: examples seen; recipes of two stages split any budget in half"
    )
    add("--flops", type=float, help="budget of each run: floating-point operations of training")
    add("--seconds", type=float, help="budget of each run: seconds of training, by a pilot's time of a step")
    add("--parameters", type=int, help="that widths are chosen for (the median of what the recipes have by default)")
    add("--seeds", type=int, default=1, help="how many: 0, 1, … (1)")
    add("--samples", type=int, default=2000, help="that each run is measured on (2000)")
    add("--curve-samples", type=int, default=500, help="at each point of a curve (500)")
    add("--metrics", nargs="+", help="which (all that data and model can have)")
    add("--jobs", type=int, default=1, help="processes at once; with several GPUs each has one in turn (1)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to train and to measure")
    add("--set", action="append", default=[], metavar='RECIPE="--flag value ..."', help="further settings of a recipe")
    add("--out", type=Path, required=True, help="folder of runs, measurements and report")
    add("--report-only", action="store_true", help="train and measure nothing: the report of what is there")
    return parser.parse_args()


def options_of(given: argparse.Namespace) -> Options:
    """The options, of a command line that makes sense as such. Raises Refusal."""
    budgets = {kind: value for kind in ("images", "flops", "seconds") if (value := getattr(given, kind)) is not None}
    errors = []
    if len(budgets) != 1:
        named = " and ".join(f"--{kind}" for kind in budgets) or "none"
        errors.append(f"--images, --flops, --seconds: expected exactly one budget; got {named}")
    words: dict[str, str] = {}
    for one in given.set:
        recipe, equals, text = one.partition("=")
        if not equals or not recipe or recipe in words:
            errors.append(f'--set {one!r}: expected RECIPE="--flag value ...", each recipe once')
        words[recipe] = text
    if errors:
        raise Refusal(errors)
    kind, value = next(iter(budgets.items()))
    return Options(
        recipes=tuple(given.recipes),
        data=given.data,
        kind=kind,
        value=value,
        out=given.out,
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


def summary(report: dict[str, Any]) -> str:
    """The axes as a table of the means over seeds, and what went wrong."""
    names = [metric["name"] for metric in report["metrics"]]
    shown = [name for name in SHOWN if name in names]
    rows: list[dict[str, object]] = []
    if report["real"]:
        rows.append({"recipe": "real", **{n: report["real"][n]["value"] for n in shown if n in report["real"]}})
    for recipe in report["recipes"]:
        found = {name: recipe["summary"][name]["mean"] for name in shown if name in recipe["summary"]}
        rows.append({"recipe": recipe["recipe"], "parameters": recipe["parameters"] or "", **found})
        if recipe["state"] != "finished":
            rows[-1]["state"] = recipe["state"]
    lines = [f"{r['recipe']}: {r['state']}: {r['why']}" for r in report["recipes"] if r["state"] != "finished"]
    axes = {metric["name"]: metric["axis"] for metric in report["metrics"]}
    told = ", ".join(f"{axis}: {', '.join(n for n in shown if axes[n] == axis)}" for axis in AXES
                     if any(axes[n] == axis for n in shown))  # fmt: skip
    return "\n".join([table(rows), told, *lines])


def main() -> None:
    given = arguments()
    with refusing():
        if not given.report_only:
            code = compare(options_of(given), shlex.join(["python", "scripts/compare.py", *sys.argv[1:]]))
            if code:
                sys.exit(code)
        report = report_of(given.out)
    print(summary(report))
    page = given.out / "report.html"
    print(page if page.is_file() else given.out / "report.json")


if __name__ == "__main__":
    main()
