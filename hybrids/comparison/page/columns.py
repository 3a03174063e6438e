"""The numbers of a report by metric: a cell for each recipe, what real data have, and which recipe leads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .rounding import finite

__all__ = ["AXES", "Cell", "Column", "columns", "common_floor", "headlines", "leader", "number"]

AXES = {
    "quality": "Quality",
    "coverage": "Mode coverage",
    "sharpness": "Sharpness",
    "control": "Latent control",
    "likelihood": "Likelihood",
    "speed": "Speed and cost",
    "stability": "Stability",
}
_LABELS = {
    "frechet": "Fréchet distance",
    "fid": "FID",
    "kid": "KID",
    "kernel": "Kernel distance",
    "sliced_wasserstein": "Sliced Wasserstein",
    "wasserstein": "Wasserstein",
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
    "nats": "Nats",
    "samples_per_second": "Samples per second",
    "evaluations": "Network evaluations",
    "flops_per_sample": "FLOPs per sample",
    "flops_per_step": "FLOPs per step",
    "spread": "Spread over seeds",
    "diverged": "Diverged runs",
    "spikes": "Gradient spikes",
}
_HEADLINES = {
    "quality": ("high_quality", "frechet", "wasserstein"),
    "coverage": ("kl", "coverage", "recall"),
    "sharpness": ("high_frequency", "laplacian"),
    "control": ("probe", "reconstruction"),
    "likelihood": ("bits_per_dim", "nats"),
    "speed": ("samples_per_second",),
    "stability": ("worst_seed", "spikes", "diverged"),
}


@dataclass(frozen=True)
class Cell:
    """One number of a recipe, or why there is none.

    value: mean over the finished runs, not finite where it diverged; low, high: its 95% interval; seeds: the value of
    each run; lost: runs whose number is not finite; planned: how many runs there should be.
    """

    value: float | None = None
    floor: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()
    planned: int = 0
    why: str = ""

    @property
    def lost(self) -> int:
        return sum(not math.isfinite(seed) for seed in self.seeds)


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
    def whole(self) -> bool:
        """Whether it counts: all its numbers are whole."""
        values = [self.real.value, *(seed for cell in self.cells for seed in cell.seeds)]
        return all(value == int(value) for value in values if finite(value))


def number(value: float | str | None) -> float | None:
    """A number of the report, where such as are not finite are texts: JSON has none."""
    return None if value is None else float(value)


def _figure(figure: Mapping | None, why: str) -> Cell:
    if figure is None or figure.get("value") is None:
        return Cell(why=why)
    value, floor, low, high = (number(figure.get(key)) for key in ("value", "floor", "low", "high"))
    return Cell(value, floor, low, high)


def _reason(recipe: Mapping, metric: Mapping) -> str:
    """Why a recipe has no such number: what the report says of it, else what its axis tells."""
    for told in (recipe, *recipe["runs"]):
        if metric["name"] in (told.get("missing") or {}):
            return told["missing"][metric["name"]]
    if recipe["state"] in ("refused", "failed"):
        return f"{recipe['state']}: {recipe.get('why') or 'no reason was recorded'}"
    return {
        "likelihood": "the model gives neither a likelihood nor a bound of it",
        "control": "the model has no latents that this can be read from",
    }.get(metric["axis"], "not defined for this model on these data, or not measured")


def _cell(recipe: Mapping, metric: Mapping, planned: int) -> Cell:
    name = metric["name"]
    runs = [_figure(run["figures"][name], "") for run in recipe["runs"] if name in (run.get("figures") or {})]
    runs = [run for run in runs if run.value is not None]
    seeds = tuple(run.value for run in runs if run.value is not None)
    summary = (recipe.get("summary") or {}).get(name) or {}
    value = number(summary.get("mean"))
    if value is None and seeds:
        value = fmean(seeds)
    if value is None:
        return Cell(why=_reason(recipe, metric), planned=planned)
    floors = {run.floor for run in runs if run.floor is not None}
    # Over seeds where there are several; else over the examples of the only one.
    told = runs[0] if len(runs) == 1 else Cell(low=number(summary.get("low")), high=number(summary.get("high")))
    floor = min(floors) if floors else None
    return Cell(value, floor, told.low, told.high, seeds or (value,), planned)


def _worst(column: Column, recipes: Sequence[Mapping]) -> Column:
    """How bad the worst seed is on a metric: one bad run shows here, where a mean hides it."""
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
        real=Cell(why="real data are not trained"),
    )


def columns(report: Mapping) -> list[Column]:
    """Every metric of the report in its order, with those that nobody has; then the worst seed's quality."""
    recipes, planned = report["recipes"], len(report["seeds"])
    found = [
        Column(
            **{key: metric[key] for key in ("name", "axis", "better", "unit", "says")},
            label=_LABELS.get(metric["name"], metric["name"].replace("_", " ").capitalize()),
            cells=tuple(_cell(recipe, metric, planned) for recipe in recipes),
            real=_figure(report["real"].get(metric["name"]), "not measured on real data"),
        )
        for metric in report["metrics"]
    ]
    quality = next((column for column in headlines(found) if column.axis == "quality"), None)
    if quality is not None and planned > 1:
        found.append(_worst(quality, recipes))
    return found


def headlines(found: Sequence[Column]) -> list[Column]:
    """One metric an axis, for the first table and the charts: the best known one that somebody has."""
    chosen = []
    for axis in dict.fromkeys((*AXES, *(column.axis for column in found))):
        here = {column.name: column for column in found if column.axis == axis and column.measured}
        first = next((name for name in _HEADLINES.get(axis, ()) if name in here), next(iter(here), None))
        if first is not None:
            chosen.append(here[first])
    return chosen


def common_floor(column: Column) -> float | None:
    """The floor that all recipes share, else that of real data, of which there may be fewer than samples."""
    floors = {cell.floor for cell in column.cells} - {None}
    return next(iter(floors)) if len(floors) == 1 else column.real.floor


def _badness(column: Column, cell: Cell) -> tuple[float, float, float] | None:
    """A cell's value and interval on a scale where less is better; None without an interval or a direction."""
    low, value, high = cell.low, cell.value, cell.high
    if not (finite(low) and finite(value) and finite(high)):
        return None
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
    """The recipe whose interval is better than, and apart from, that of every other; None where it is open.

    Recipes that diverged, be it in one seed, are beaten by any; one without an interval leaves it open.
    """
    rivals = {i: _badness(column, cell) for i, cell in enumerate(column.cells) if finite(cell.value) and not cell.lost}
    known = {i: rival for i, rival in rivals.items() if rival is not None}
    if len(known) < 2 or len(known) < len(rivals):
        return None
    best = min(known, key=lambda i: known[i][0])
    return best if all(known[best][2] < known[i][1] for i in known if i != best) else None
