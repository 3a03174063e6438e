"""The tables of a report: a column of cells for each metric, rounding of numbers, and the CSV file."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, mean
from typing import NamedTuple, TypeGuard

__all__ = ["AXES", "Cell", "Column", "Entry", "Floor", "Table", "common_floor", "csv_text", "decimal_places", "finite",
           "headlines", "integer", "interval", "label", "leader", "make_table", "number", "plus_minus", "read_columns",
           "rounded"]  # fmt: skip

AXES = {
    "quality": "Quality",
    "coverage": "Mode coverage",
    "sharpness": "Sharpness",
    "control": "Latent control",
    "likelihood": "Likelihood",
    "speed": "Speed and cost",
    "stability": "Stability",
    "other": "Other",
}
_LABELS = {
    "frechet": "Fréchet distance",
    "fid": "FID",
    "kid": "KID",
    "kernel": "Kernel distance",
    "sliced_wasserstein": "Sliced Wasserstein",
    "high_quality": "High-quality share",
    "log_density": "Log-density of samples",
    "confidence": "Classifier confidence",
    "modes": "Modes covered",
    "kl": "KL of modes",
    "nearest_train": "Nearest training example",
    "high_frequency": "High frequencies",
    "laplacian": "Variance of Laplacian",
    "reconstruction": "Reconstruction error",
    "probe": "Linear probe",
    "probe_factors": "Linear probe of factors",
    "smoothness": "Interpolation smoothness",
    "bits_per_dim": "Bits per dimension",
    "evaluations": "Network evaluations",
    "flops_per_sample": "FLOPs per sample",
    "flops_per_step": "FLOPs per step",
    "spread": "Spread over seeds",
    "diverged": "Diverged runs",
    "spikes": "Gradient spikes",
}
"""Labels of metrics; the label of any other metric is its name."""

_HEADLINES = {
    "quality": ("high_quality", "frechet", "wasserstein"),
    "coverage": ("kl", "coverage", "recall"),
    "sharpness": ("high_frequency", "laplacian"),
    "control": ("probe", "reconstruction"),
    "likelihood": ("bits_per_dim", "nats"),
    "speed": ("samples_per_second",),
    "stability": ("worst_seed", "spikes", "diverged"),
}
_RUN = ("steps", "images", "seconds", "flops")
_PARTS = ("value", "floor", "floor_spread", "low", "high")
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class Floor(NamedTuple):
    """A noise floor, and its standard deviation over random splits of real data, or None."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Cell:
    """One number of a recipe, or the reason for its absence.

    Arguments:
        value: mean over the finished runs; not finite where one diverged.
        floor: noise floor.
        low, high: ends of the 95% interval.
        seeds: the value of each run.
        planned: number of planned runs.
        why: the reason for a missing value.
    """

    value: float | None = None
    floor: Floor | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()
    planned: int = 0
    why: str = ""

    @property
    def lost(self) -> int:
        """The number of runs whose value is not finite."""
        return sum(not math.isfinite(seed) for seed in self.seeds)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, if it is known and finite, else None."""
        return (self.low, self.high) if finite(self.low) and finite(self.high) else None


@dataclass(frozen=True)
class Column:
    """A metric and its cells, in the order of the report's recipes."""

    name: str
    label: str
    axis: str
    better: str
    unit: str
    says: str
    cells: tuple[Cell, ...]
    real: Cell

    @property
    def measured(self) -> bool:
        return any(cell.value is not None for cell in self.cells)

    @property
    def count(self) -> bool:
        """Whether all numbers are integers."""
        values = [self.real.value, *(seed for cell in self.cells for seed in cell.seeds)]
        return all(value == int(value) for value in values if finite(value))

    @property
    def anchor(self) -> str:
        """The HTML id of its definition on the page."""
        return "metric-" + re.sub(r"[^\w.-]+", "-", self.name)


class Entry(NamedTuple):
    """The text of a table cell: number, small lines below it, kind (`best`, `diverged`, `none` or empty), reason."""

    text: str
    small: list[str]
    kind: str = ""
    why: str = ""


class Table(NamedTuple):
    """A table: columns, rows of real data by name, a row for each recipe, and the reasons for missing numbers."""

    caption: str
    columns: Sequence[Column]
    real: dict[str, list[Entry]]
    rows: list[list[Entry]]
    reasons: list[str]


def read_columns(report: Mapping) -> list[Column]:
    """Return a column for each metric of the report, in its order; with several seeds also the worst seed's quality."""
    recipes, planned = report["recipes"], len(report["seeds"])
    missing = report.get("real_missing") or {}
    every = [
        Column(
            name=metric["name"],
            label=label(metric["name"]),
            axis=metric.get("axis") or "other",
            **{key: metric.get(key) or "" for key in ("better", "unit", "says")},
            cells=tuple(_cell(recipe, metric["name"], planned) for recipe in recipes),
            real=_measured(report["real"].get(metric["name"])) or Cell(why=missing.get(metric["name"], "")),
        )
        for metric in report["metrics"]
    ]
    quality = next((column for column in headlines(every) if column.axis == "quality"), None)
    return [*every, _worst(quality, recipes)] if quality is not None and planned > 1 else every


def label(name: str) -> str:
    """Return the label of a metric on the page."""
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


def number(value: float | str | None) -> float | None:
    """Return a number of the report, in which numbers that are not finite are strings."""
    return None if value is None else float(value)


def finite(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return value is not None and math.isfinite(value)


def _measured(measurement: Mapping | None) -> Cell | None:
    """Return a measurement of the report as a cell; None where it has no value."""
    if measurement is None or measurement.get("value") is None:
        return None
    value, floor, spread, low, high = (number(measurement.get(part)) for part in _PARTS)
    return Cell(value, None if floor is None else Floor(floor, spread), low, high)


def _cell(recipe: Mapping, name: str, planned: int) -> Cell:
    """Return a recipe's number over its runs, or the reason for its absence."""
    cells = [_measured((run.get("figures") or {}).get(name)) for run in recipe["runs"]]
    runs = [run for run in cells if run is not None]
    seeds = tuple(run.value for run in runs if run.value is not None)
    summary = (recipe.get("summary") or {}).get(name) or {}
    value = number(summary.get("mean"))
    if value is None and seeds:
        value = fmean(seeds)
    if value is None:
        return Cell(why=_reason(recipe, name), planned=planned)
    floors = [run.floor for run in runs if run.floor is not None]
    spreads = [floor.spread for floor in floors if floor.spread is not None]
    # `mean` is exact: the mean of equal floors is equal to them, so that the column has a common floor.
    floor = Floor(mean(f.value for f in floors), mean(spreads) if spreads else None) if floors else None
    # The interval over seeds where there are several, else over the examples of the only run.
    ends = (runs[0].low, runs[0].high) if len(runs) == 1 else (number(summary.get("low")), number(summary.get("high")))
    return Cell(value, floor, *ends, seeds or (value,), planned)


def _reason(recipe: Mapping, name: str) -> str:
    """Return the report's reason for a missing number of a recipe."""
    for part in (recipe, *recipe["runs"]):
        missing = part.get("missing") or {}
        # "samples" is a reason for all metrics: the samples are not finite.
        if why := missing.get(name) or missing.get("samples"):
            return why
    if recipe["state"] in ("refused", "failed"):
        return f"{recipe['state']}: {recipe.get('why') or 'no reason was recorded'}"
    return "not defined for this model on these data, or not measured"


def _worst(column: Column, recipes: Sequence[Mapping]) -> Column:
    """Return a column of the worst seed of a metric, which the mean can hide."""
    cells = []
    for cell, recipe in zip(column.cells, recipes):
        # A seed that diverged is the worst.
        worst = math.nan if cell.lost else number(((recipe.get("summary") or {}).get(column.name) or {}).get("worst"))
        several = len(cell.seeds) > 1 and worst is not None
        why = cell.why or "needs at least two finished runs"
        cells.append(replace(cell, value=worst, low=None, high=None) if several else Cell(why=why))
    return replace(
        column,
        name="worst_seed",
        label=f"{column.label}, worst seed",
        axis="stability",
        says=f"The worst {column.label} of all seeds.",
        cells=tuple(cells),
        real=Cell(),
    )


def headlines(every: Sequence[Column]) -> list[Column]:
    """Return one metric of each axis, for the first table and the charts: the first of _HEADLINES that was measured."""
    chosen = []
    for axis in dict.fromkeys((*AXES, *(column.axis for column in every))):
        here = {column.name: column for column in every if column.axis == axis and column.measured}
        first = next((name for name in _HEADLINES.get(axis, ()) if name in here), next(iter(here), None))
        if first is not None:
            chosen.append(here[first])
    return chosen


def common_floor(column: Column) -> Floor | None:
    """Return the floor that all recipes have in common, else that of real data (perhaps of fewer examples)."""
    floors = {cell.floor for cell in column.cells} - {None}
    return next(iter(floors)) if len(floors) == 1 else column.real.floor


def _badness(column: Column, cell: Cell) -> tuple[float, float, float] | None:
    """Return a cell's value and interval on a scale where lower is better; None without an interval or a direction."""
    value = cell.value
    if cell.ends is None or not finite(value):
        return None
    low, high = cell.ends
    if column.better == "lower":
        return value, low, high
    if column.better == "higher":
        return -value, -high, -low
    real = column.real.value
    if column.better == "real" and finite(real):
        ends = abs(low - real), abs(high - real)
        return abs(value - real), 0.0 if low <= real <= high else min(ends), max(ends)
    return None


def leader(column: Column) -> int | None:
    """Return the index of the recipe whose interval is better than, and disjoint from, that of every other, or None.

    Recipes with a diverged seed are not considered; a recipe without an interval makes the result None.
    """
    rivals = {i: _badness(column, cell) for i, cell in enumerate(column.cells) if finite(cell.value) and not cell.lost}
    known = {i: rival for i, rival in rivals.items() if rival is not None}
    if len(known) < 2 or len(known) < len(rivals):
        return None
    best = min(known, key=lambda i: known[i][0])
    return best if all(known[best][2] < known[i][1] for i in known if i != best) else None


def make_table(caption: str, chosen: Sequence[Column]) -> Table:
    """Return the columns as a table: real data, their noise floor, the recipes, and reasons for missing numbers.

    The number of `leader` is marked as best in its column.
    """
    floors, leaders = [common_floor(column) for column in chosen], [leader(column) for column in chosen]
    real = {
        "Real data": [_entry(column, column.real, False, column.real.floor) for column in chosen],
        "Noise floor": [Entry("" if floor is None else plus_minus(*floor, column.count), [])
                        for column, floor in zip(chosen, floors)],
    }  # fmt: skip
    rows = [
        [_entry(column, cell, leaders[k] == i, floors[k]) for k, (column, cell) in enumerate(zip(chosen, cells))]
        for i, cells in enumerate(zip(*(column.cells for column in chosen)))
    ]
    real = {name: row for name, row in real.items() if any(entry.text for entry in row)}
    reasons = dict.fromkeys(entry.why for row in (*real.values(), *rows) for entry in row if entry.kind == "none")
    return Table(caption, chosen, real, rows, list(reasons))


def _entry(column: Column, cell: Cell, best: bool, floor: Floor | None) -> Entry:
    """Return the number with its interval and diverged or missing runs below it, or a dash with the reason."""
    if cell.value is None:
        return Entry("–", [], "none", cell.why) if cell.why else Entry("", [])
    small = []
    if not finite(cell.value):
        small.append(f"{max(1, cell.lost)} of {max(1, len(cell.seeds))} runs")
    else:
        small.append(interval(cell.value, cell.low, cell.high))
        if cell.lost:
            small.append(f"{cell.lost} of {len(cell.seeds)} diverged")
        elif 0 < len(cell.seeds) < cell.planned:
            small.append(f"{len(cell.seeds)} of {cell.planned} runs")
    if cell.floor is not None and finite(cell.floor.value) and cell.floor != floor:
        small.append(f"floor {plus_minus(*cell.floor, column.count)}")
    kind = "best" if best else "" if finite(cell.value) else "diverged"
    return Entry(rounded(cell.value, cell.low, cell.high, column.count), [line for line in small if line], kind)


def _half_width(low: float | None, high: float | None) -> float:
    """Return half the width of an interval; 0 where there is none."""
    return max(0.0, (high - low) / 2) if finite(low) and finite(high) else 0.0


def decimal_places(value: float, low: float | None = None, high: float | None = None, count: bool = False) -> int:
    """Return the number of decimals of a value; negative ones round to tens, hundreds, ...

    The half-width of the interval is shown with two digits where it begins with 1 or 2, else with one, so that the
    rounding error is at most a sixth of it. Without an interval there are three significant digits; a count has no
    decimals.
    """
    half = _half_width(low, high)
    if half > 0:
        first = math.floor(math.log10(half))
        return (1 if half / 10.0**first < 3 else 0) - first
    if value == 0 or (count and value == int(value) and abs(value) < 1e7):
        return 0
    return 2 - math.floor(math.log10(abs(value)))


def _fixed(value: float, decimals: int, like: float) -> str:
    """Format a number with decimals, thousands separators and a minus sign, or as a power of ten like `like`."""
    if abs(like) >= 1e7 or 0 < abs(like) < 1e-4:
        power = math.floor(math.log10(abs(like)))
        mantissa = f"{value / 10.0**power:.{min(max(0, power + decimals), 6)}f}"
        text = f"{mantissa} × 10{str(power).translate(_SUPERSCRIPTS)}"
    else:
        text = f"{round(value, decimals):,.{max(0, decimals)}f}"
    # No minus sign before zero.
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def rounded(value: float, low: float | None = None, high: float | None = None, count: bool = False) -> str:
    """Format a value to the digits that are significant given its 95% interval; `diverged` where it is not finite.

    Values from 10⁷ on and below 10⁻⁴ are written with powers of ten.
    """
    return _fixed(value, decimal_places(value, low, high, count), value) if math.isfinite(value) else "diverged"


def interval(value: float, low: float | None, high: float | None) -> str:
    """Format `[low, high]` with the decimals of the value; '' where there is no interval."""
    if low is None or high is None or not (finite(value) and _half_width(low, high) > 0):
        return ""
    decimals = decimal_places(value, low, high)
    return f"[{_fixed(low, decimals, value)}, {_fixed(high, decimals, value)}]"


def plus_minus(value: float, spread: float | None = None, count: bool = False) -> str:
    """Format `value ± spread` to the significant digits of the spread; the value alone where there is none."""
    if not (finite(spread) and finite(value) and spread > 0):
        return rounded(value, count=count)
    decimals = decimal_places(value, value - spread, value + spread)
    return f"{_fixed(value, decimals, value)} ± {_fixed(spread, decimals, value)}"


def integer(value: float | None) -> str:
    """Format a count with thousands separators; large ones as powers of ten with three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if finite(value) and abs(value) < 1e9 else rounded(value)


def csv_text(report: Mapping) -> str:
    """Return table.csv: a row for each recipe and seed, and one for real data (recipe `real`).

    The columns are recipe, title, family, seed, state, why, parameters, steps, images, seconds, flops; for each metric
    NAME, NAME_floor, NAME_floor_spread, NAME_low and NAME_high; and `missing`, `NAME: reason` joined by semicolons. A
    recipe without runs has one row without seed. Floats are written with full precision.
    """
    names = [metric["name"] for metric in report["metrics"]]
    first = ["recipe", "title", "family", "seed", "state", "why", "parameters", *_RUN]
    of_metrics = {(name, part): name if part == "value" else f"{name}_{part}" for name in names for part in _PARTS}
    text = io.StringIO()
    rows = csv.DictWriter(text, [*first, *of_metrics.values(), "missing"], lineterminator="\n", extrasaction="ignore")
    rows.writeheader()

    def write(row: Mapping, measurements: Mapping | None, missing: Mapping | None = None) -> None:
        parts = {head: ((measurements or {}).get(name) or {}).get(part) for (name, part), head in of_metrics.items()}
        rows.writerow({**row, **parts, "missing": "; ".join(f"{name}: {why}" for name, why in (missing or {}).items())})

    write({"recipe": "real", "title": "Real data"}, report["real"])
    for recipe in report["recipes"]:
        for run in recipe["runs"] or [recipe]:
            write(
                {**recipe, **run}, run.get("figures"), {**(recipe.get("missing") or {}), **(run.get("missing") or {})}
            )
    return text.getvalue()
