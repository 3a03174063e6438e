"""What a report's tables say: a column of cells for each metric, numbers rounded for readers, and the CSV rows."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, mean
from typing import NamedTuple, TypeGuard

__all__ = ["AXES", "Cell", "Column", "Entry", "Floor", "Table", "common_floor", "csv_text", "finite", "headlines",
           "integer", "interval", "label", "leader", "make_table", "number", "places", "plus_minus", "read_columns",
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
    "modes": "Modes found",
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
"""Of the metrics whose name alone would not do; any other's label is its name."""

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
    """A noise floor, and its standard deviation over random splits of real data where it is known."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Cell:
    """One number of a recipe, or why there is none.

    value: mean over the finished runs, not finite where it diverged; low, high: its 95% interval; seeds: the value of
    each run; planned: how many runs there should be.
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
        """How many runs' numbers are not finite."""
        return sum(not math.isfinite(seed) for seed in self.seeds)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, where it is known and finite."""
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
        """Whether all its numbers are whole."""
        values = [self.real.value, *(seed for cell in self.cells for seed in cell.seeds)]
        return all(value == int(value) for value in values if finite(value))

    @property
    def anchor(self) -> str:
        """The id of its definition on the page."""
        return "metric-" + re.sub(r"[^\w.-]+", "-", self.name)


class Entry(NamedTuple):
    """A cell of a table as it is read: the number, small lines below it, `best`, `diverged` or `none`, and why none."""

    text: str
    small: list[str]
    kind: str = ""
    why: str = ""


class Table(NamedTuple):
    """A table of numbers: columns, rows of real data by name, a row for each recipe, and why numbers are missing."""

    caption: str
    columns: Sequence[Column]
    real: dict[str, list[Entry]]
    rows: list[list[Entry]]
    reasons: list[str]


def read_columns(report: Mapping) -> list[Column]:
    """Return every metric of the report in its order, with those that no recipe has; then the worst seed's quality."""
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
    """Return what a metric is called on the page."""
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


def number(value: float | str | None) -> float | None:
    """Return a number of the report, where numbers that are not finite are texts: JSON has none."""
    return None if value is None else float(value)


def finite(value: float | None) -> TypeGuard[float]:
    """Whether a number is there and is finite."""
    return value is not None and math.isfinite(value)


def _measured(figure: Mapping | None) -> Cell | None:
    """A figure of the report as a cell; None where it has no value."""
    if figure is None or figure.get("value") is None:
        return None
    value, floor, spread, low, high = (number(figure.get(part)) for part in _PARTS)
    return Cell(value, None if floor is None else Floor(floor, spread), low, high)


def _cell(recipe: Mapping, name: str, planned: int) -> Cell:
    """A recipe's number over its runs, or why it has none."""
    figures = [_measured((run.get("figures") or {}).get(name)) for run in recipe["runs"]]
    runs = [run for run in figures if run is not None]
    seeds = tuple(run.value for run in runs if run.value is not None)
    summary = (recipe.get("summary") or {}).get(name) or {}
    value = number(summary.get("mean"))
    if value is None and seeds:
        value = fmean(seeds)
    if value is None:
        return Cell(why=_reason(recipe, name), planned=planned)
    floors = [run.floor for run in runs if run.floor is not None]
    spreads = [floor.spread for floor in floors if floor.spread is not None]
    # `mean` is exact: of equal floors it is that floor to the last bit, so that recipes can share it.
    floor = Floor(mean(f.value for f in floors), mean(spreads) if spreads else None) if floors else None
    # Over seeds where there are several; else over the examples of the only run.
    ends = (runs[0].low, runs[0].high) if len(runs) == 1 else (number(summary.get("low")), number(summary.get("high")))
    return Cell(value, floor, *ends, seeds or (value,), planned)


def _reason(recipe: Mapping, name: str) -> str:
    """Why a recipe has no such number, as the report says."""
    for part in (recipe, *recipe["runs"]):
        missing = part.get("missing") or {}
        # Of runs whose samples are not finite nothing is measured.
        if why := missing.get(name) or missing.get("samples"):
            return why
    if recipe["state"] in ("refused", "failed"):
        return f"{recipe['state']}: {recipe.get('why') or 'no reason was recorded'}"
    return "not defined for this model on these data, or not measured"


def _worst(column: Column, recipes: Sequence[Mapping]) -> Column:
    """The worst seed of a metric: one bad run shows here, where a mean hides it."""
    cells = []
    for cell, recipe in zip(column.cells, recipes):
        # Nothing is worse than a seed that diverged.
        worst = math.nan if cell.lost else number(((recipe.get("summary") or {}).get(column.name) or {}).get("worst"))
        several = len(cell.seeds) > 1 and worst is not None
        why = cell.why or "takes two finished runs at least"
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
    """Return one metric an axis, for the first table and the charts: the best known one that some recipe has."""
    chosen = []
    for axis in dict.fromkeys((*AXES, *(column.axis for column in every))):
        here = {column.name: column for column in every if column.axis == axis and column.measured}
        first = next((name for name in _HEADLINES.get(axis, ()) if name in here), next(iter(here), None))
        if first is not None:
            chosen.append(here[first])
    return chosen


def common_floor(column: Column) -> Floor | None:
    """Return the floor that all recipes share, else that of real data, of which there may be fewer than samples."""
    floors = {cell.floor for cell in column.cells} - {None}
    return next(iter(floors)) if len(floors) == 1 else column.real.floor


def _badness(column: Column, cell: Cell) -> tuple[float, float, float] | None:
    """A cell's value and interval on a scale where less is better; None without an interval or a direction."""
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
    """Return the recipe whose interval is better than, and apart from, that of every other; None where it is open.

    Recipes that diverged, be it in one seed, are beaten by any; one without an interval leaves it open.
    """
    rivals = {i: _badness(column, cell) for i, cell in enumerate(column.cells) if finite(cell.value) and not cell.lost}
    known = {i: rival for i, rival in rivals.items() if rival is not None}
    if len(known) < 2 or len(known) < len(rivals):
        return None
    best = min(known, key=lambda i: known[i][0])
    return best if all(known[best][2] < known[i][1] for i in known if i != best) else None


def make_table(caption: str, chosen: Sequence[Column]) -> Table:
    """Return the columns as a table: real data, their noise floor, the recipes, and why numbers are missing.

    A number is best where its interval is better than, and apart from, those of all others in its column.
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
    """The number with its interval below, what became of lost runs, or a dash and why."""
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
    """Half the width of an interval; 0 where there is none, or it is a point."""
    return max(0.0, (high - low) / 2) if finite(low) and finite(high) else 0.0


def places(value: float, low: float | None = None, high: float | None = None, count: bool = False) -> int:
    """Return how many decimals a value deserves; negative ones round to tens, hundreds, ...

    Two digits of the interval's half-width where it begins with 1 or 2, else one, so that rounding costs a sixth of it
    at most; without an interval three significant digits, or none after the point of a count.
    """
    half = _half_width(low, high)
    if half > 0:
        first = math.floor(math.log10(half))
        return (1 if half / 10.0**first < 3 else 0) - first
    if value == 0 or (count and value == int(value) and abs(value) < 1e7):
        return 0
    return 2 - math.floor(math.log10(abs(value)))


def _fixed(value: float, decimals: int, like: float) -> str:
    """A number with so many decimals and a true minus: thousands apart, or a power of ten where `like` needs one."""
    if abs(like) >= 1e7 or 0 < abs(like) < 1e-4:
        power = math.floor(math.log10(abs(like)))
        mantissa = f"{value / 10.0**power:.{min(max(0, power + decimals), 6)}f}"
        text = f"{mantissa} × 10{str(power).translate(_SUPERSCRIPTS)}"
    else:
        text = f"{round(value, decimals):,.{max(0, decimals)}f}"
    # There is no negative zero.
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def rounded(value: float, low: float | None = None, high: float | None = None, count: bool = False) -> str:
    """Write a value to the digits that its 95% interval leaves it; `diverged` for what is not finite.

    Powers of ten are written from 10⁷ on and below 10⁻⁴.
    """
    return _fixed(value, places(value, low, high, count), value) if math.isfinite(value) else "diverged"


def interval(value: float, low: float | None, high: float | None) -> str:
    """Write `[low, high]` as the value is written; '' where there is none, or it is a point."""
    if low is None or high is None or not (finite(value) and _half_width(low, high) > 0):
        return ""
    decimals = places(value, low, high)
    return f"[{_fixed(low, decimals, value)}, {_fixed(high, decimals, value)}]"


def plus_minus(value: float, spread: float | None = None, count: bool = False) -> str:
    """Write `value ± spread` to the digits that the spread leaves; the value alone where there is none."""
    if not (finite(spread) and finite(value) and spread > 0):
        return rounded(value, count=count)
    decimals = places(value, value - spread, value + spread)
    return f"{_fixed(value, decimals, value)} ± {_fixed(spread, decimals, value)}"


def integer(value: float | None) -> str:
    """Write a count, thousands apart; large ones as powers of ten to three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if finite(value) and abs(value) < 1e9 else rounded(value)


def csv_text(report: Mapping) -> str:
    """Return table.csv: a row for each recipe and seed, and one for real data (recipe `real`).

    recipe, title, family, seed, state, why, parameters, steps, images, seconds, flops; then of each metric NAME,
    NAME_floor, NAME_floor_spread, NAME_low and NAME_high; last `missing`, `NAME: reason` joined by semicolons. A recipe
    without runs has one row without seed. Floats are written in full: they come back bit for bit.
    """
    names = [metric["name"] for metric in report["metrics"]]
    first = ["recipe", "title", "family", "seed", "state", "why", "parameters", *_RUN]
    of_metrics = {(name, part): name if part == "value" else f"{name}_{part}" for name in names for part in _PARTS}
    text = io.StringIO()
    rows = csv.DictWriter(text, [*first, *of_metrics.values(), "missing"], lineterminator="\n", extrasaction="ignore")
    rows.writeheader()

    def write(row: Mapping, figures: Mapping | None, missing: Mapping | None = None) -> None:
        parts = {head: ((figures or {}).get(name) or {}).get(part) for (name, part), head in of_metrics.items()}
        rows.writerow({**row, **parts, "missing": "; ".join(f"{name}: {why}" for name, why in (missing or {}).items())})

    write({"recipe": "real", "title": "Real data"}, report["real"])
    for recipe in report["recipes"]:
        for run in recipe["runs"] or [recipe]:
            write(
                {**recipe, **run}, run.get("figures"), {**(recipe.get("missing") or {}), **(run.get("missing") or {})}
            )
    return text.getvalue()
