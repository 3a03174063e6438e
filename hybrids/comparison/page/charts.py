"""Charts of a report: the axes, quality against sampling steps and training time, coverage against sharpness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .columns import AXES, Cell, Column, common_floor, headlines, number
from .drawing import INK, MUTED, Picture, colour, figure, legend, literal, marker, png, tidy
from .rounding import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["charts"]

_ARROWS = {"lower": "← better", "higher": "better →", "real": "nearest to real is better"}


def _named(column: Column) -> str:
    return literal(column.label + (f" ({column.unit})" if column.unit else ""), 44)


def _wide(values: Sequence[float], ratio: float) -> bool:
    """Whether values deserve a logarithmic axis: all positive, and so far apart."""
    return bool(values) and min(values) > 0 and max(values) >= ratio * min(values)


def _logarithmic(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers; between decades too where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.2 else (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1000 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ends(cell: Cell) -> tuple[float, float] | None:
    return (cell.low, cell.high) if finite(cell.low) and finite(cell.high) else None


def _lines_of_real(axes: Axes, column: Column, upright: bool) -> None:
    """What real data have, and the floor, as lines across."""
    across = axes.axvline if upright else axes.axhline
    floor, real = common_floor(column), column.real.value
    if finite(real):
        across(real, color=MUTED, linewidth=1.2, zorder=1)
    if finite(floor) and floor != real:
        across(floor, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)


def _dots(axes: Axes, column: Column, n: int) -> None:
    """A row for each recipe: its interval as a line, its seeds small, their mean large."""
    reference = [v for v in (common_floor(column), column.real.value) if finite(v)]
    values = [v for cell in column.cells for v in (*cell.seeds, cell.value) if finite(v)]
    shown = [*values, *reference]
    logarithmic = _wide(shown, 30)
    for i, cell in enumerate(column.cells):
        if not finite(cell.value):
            # A recipe without the number keeps its row, so that a gap is never taken for a zero.
            said = "not measured" if cell.value is None else "diverged"
            axes.text(0.02, i, said, transform=axes.get_yaxis_transform(), size=7.5, color=MUTED, va="center")
            continue
        if (ends := _ends(cell)) is not None:
            low = max(ends[0], min(shown) * 0.7) if logarithmic else ends[0]
            axes.plot((low, ends[1]), (i, i), color=colour(i), linewidth=2.2, alpha=0.55, solid_capstyle="butt")
        if len(cell.seeds) > 1:
            seeds = [seed for seed in cell.seeds if math.isfinite(seed)]
            axes.scatter(seeds, [i] * len(seeds), s=9, facecolor="white", edgecolor=colour(i), linewidth=0.9, zorder=3)
        axes.scatter([cell.value], [i], s=34, color=colour(i), marker=marker(i), zorder=4, linewidth=0)
    _lines_of_real(axes, column, upright=True)
    axes.set_ylim(n - 0.4, -0.6)
    if logarithmic:
        _logarithmic(axes, "x")
    else:
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
    tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.set_title(_named(column), size=9, color=INK, loc="left", pad=16)
    says = f"{AXES.get(column.axis, column.axis)} · {_ARROWS.get(column.better, 'neither end is better')}"
    axes.annotate(says, (0, 1), (0, 5), "axes fraction", "offset points", size=7.5, color=MUTED, va="bottom")


def _axes(shown: Sequence[Column], titles: Sequence[str]) -> Picture | None:
    if not shown:
        return None
    from matplotlib.lines import Line2D

    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    drawn = figure(11 if across > 2 else 8, down * (1.05 + 0.27 * len(titles)) + 0.35)
    grid = drawn.subplots(down, across, squeeze=False, sharey=True)
    for axes, column in zip(grid.flat, shown):
        _dots(axes, column, len(titles))
        axes.set_yticks(range(len(titles)), [literal(title) for title in titles])
        axes.tick_params(axis="y", labelcolor=INK)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    marks = [
        Line2D([], [], color=INK, marker="o", markersize=6, linewidth=0),
        Line2D([], [], color=INK, marker="o", markersize=3.5, markerfacecolor="white", linewidth=0),
        Line2D([], [], color=INK, linewidth=2.2, alpha=0.55),
        Line2D([], [], color=MUTED, linewidth=1.2),
        Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (2, 2))),
    ]
    names = ["mean", "a seed", "95% interval", "real data", "noise floor"]
    drawn.legend(marks, names, loc="outside lower left", ncols=5, frameon=False, fontsize=8.5, labelcolor=INK)
    return Picture(
        "axes.png",
        png(drawn),
        "One measure for each axis, on its own scale; the words above a panel say which end is better. Where the panel "
        "is of the worst seed, the large mark is that seed.",
        f"Dot plots of {len(shown)} measures for {len(titles)} recipes; the first table has the numbers.",
        round(drawn.get_figwidth() * 100),
    )


def _points(run: Mapping, key: str, x: str, quality: str) -> list[tuple[float, float]]:
    """A curve of a run, in order, its gaps as NaN; empty where it has nothing but gaps."""
    points = [(number(p.get(x)), number(p.get(quality))) for p in run.get(key) or ()]
    line = [(a, b if finite(b) else math.nan) for a, b in points if finite(a)]
    return sorted(line) if any(finite(b) for _, b in line) else []


def _mean_line(lines: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of curves point by point, as far as all of them go; a gap in one is a gap in the mean."""
    return [tuple(sum(values) / len(values) for values in zip(*points)) for points in zip(*lines)]  # type: ignore[misc]


def _curves(axes: Axes, lines: Sequence[Sequence[tuple[float, float]]], i: int) -> Any:
    """Each seed as a thin line, their mean as a thick one with markers."""
    if len(lines) > 1:
        for line in lines:
            axes.plot(*zip(*line), color=colour(i), linewidth=0.8, alpha=0.45)
    mean = _mean_line(lines)
    return axes.plot(*zip(*mean), color=colour(i), marker=marker(i), markersize=5, linewidth=1.8)[0]


def _floor(report: Mapping, key: str, name: str) -> float | None:
    """The noise floor of a metric that all points of curves share: that of as many samples as are drawn at each."""
    points = [p for recipe in report["recipes"] for run in recipe["runs"] for p in run.get(key) or ()]
    floors = {number(p.get(f"{name}_floor")) for p in points} - {None}
    floor = next(iter(floors)) if len(floors) == 1 else None
    return floor if finite(floor) else None


def _finish(axes: Axes, x: str, floor: float | None, wide: float, log_quality: bool) -> None:
    """Scales and labels of a chart of quality."""
    xs = [float(v) for line in axes.get_lines() for v in list(line.get_xdata())]  # type: ignore[arg-type]
    ys = [y for line in axes.get_lines() for v in list(line.get_ydata()) if finite(y := float(v))]  # type: ignore[arg-type]
    if _wide(xs, wide):
        _logarithmic(axes, "x")
    if _wide(ys, 1.0) and (log_quality or _wide(ys, 10)):
        _logarithmic(axes, "y")
    if floor is not None:
        axes.axhline(floor, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)
    axes.set_xlabel(x)
    tidy(axes)


def _keyed(report: Mapping, key: str, found: Sequence[Column]) -> Column | None:
    """The metric that curves are told in: the headline of quality where they have it, else their first known one."""
    points = [p for recipe in report["recipes"] for run in recipe["runs"] for p in run.get(key) or ()]
    order = [*(c for c in headlines(found) if c.axis == "quality"), *found]
    return next((c for c in order if c.axis != "speed" and any(finite(number(p.get(c.name))) for p in points)), None)


def _against(
    report: Mapping, found: Sequence[Column], key: str, xs: Sequence[tuple[str, str]], wide: float
) -> tuple[bytes, Column, int] | None:
    """Quality against each of xs (name in the curve, label); recipes without a curve as one point."""
    column = _keyed(report, key, found)
    if column is None:
        return None
    drawn = figure(11 if len(xs) > 1 else 9, 4.2 + max(0, len(report["recipes"]) - 12) * 0.2)
    grid = drawn.subplots(1, len(xs), squeeze=False, sharey=True)[0]
    by_name = {c.name: c for c in found}
    handles: dict[int, Any] = {}
    for axes, (name, label) in zip(grid, xs):
        for i, recipe in enumerate(report["recipes"]):
            lines = [line for run in recipe["runs"] if (line := _points(run, key, name, column.name))]
            if not lines and name in by_name:
                ends = by_name[name].cells[i].value, column.cells[i].value
                lines = [[(ends[0], ends[1])]] if finite(ends[0]) and finite(ends[1]) else []
            if lines:
                handles.setdefault(i, _curves(axes, lines, i))
        _finish(axes, label, _floor(report, key, column.name), wide, column.better == "lower")
    arrow = {"lower": " ↓", "higher": " ↑"}.get(column.better, "")
    grid[0].set_ylabel(_named(column) + arrow)
    titles = [literal(recipe["title"]) for recipe in report["recipes"]]
    legend(drawn, list(handles.values()), [titles[i] for i in handles])
    return png(drawn), column, round(drawn.get_figwidth() * 100)


def _told(report: Mapping, key: str, name: str) -> str:
    """What the caption says of the floor."""
    if _floor(report, key, name) is None:
        return ""
    return f" Dashed: the noise floor of {report['curve_samples']:,} samples, as many as each point is measured on."


def _sampling(report: Mapping, found: Sequence[Column]) -> Picture | None:
    xs = [("evaluations", "Network evaluations a sample"), ("samples_per_second", "Samples per second")]
    made = _against(report, found, "evaluations_curve", xs, 1.5)
    return made and Picture(
        "sampling.png",
        made[0],
        f"{made[1].label} against what a sample costs: network evaluations (left) and measured speed (right). Thick: "
        "mean over seeds; thin: each seed; a lone marker: a model with one way to sample."
        + _told(report, "evaluations_curve", made[1].name),
        f"Lines of {made[1].label} against network evaluations and samples per second, one for each recipe.",
        made[2],
    )


def _training(report: Mapping, found: Sequence[Column]) -> Picture | None:
    made = _against(report, found, "curve", [("seconds", "Training time (s)")], 20)
    return made and Picture(
        "training.png",
        made[0],
        f"{made[1].label} against training time on this machine. Thick: mean over seeds; thin: each seed."
        + _told(report, "curve", made[1].name),
        f"Lines of {made[1].label} against seconds of training, one for each recipe.",
        made[2],
    )


def _trade(shown: Sequence[Column], titles: Sequence[str]) -> Picture | None:
    """Coverage against sharpness."""
    by_axis = {column.axis: column for column in shown}
    if not {"coverage", "sharpness"} <= by_axis.keys():
        return None
    x, y = by_axis["sharpness"], by_axis["coverage"]
    drawn = figure(9, 4.6 + max(0, len(titles) - 12) * 0.2)
    axes = drawn.subplots()
    handles: dict[int, Any] = {}
    for i, (across, up) in enumerate(zip(x.cells, y.cells)):
        if not (finite(across.value) and finite(up.value)):
            continue
        seeds = [(a, b) for a, b in zip(across.seeds, up.seeds) if math.isfinite(a) and math.isfinite(b)]
        if len(seeds) > 1 and len(across.seeds) == len(up.seeds):
            axes.scatter(
                [a for a, _ in seeds],
                [b for _, b in seeds],
                s=11,
                facecolor="white",
                edgecolor=colour(i),
                linewidth=0.9,
                zorder=3,
            )
        if (ends := _ends(across)) is not None:
            axes.plot(ends, (up.value, up.value), color=colour(i), linewidth=1.6, alpha=0.55)
        if (ends := _ends(up)) is not None:
            axes.plot((across.value, across.value), ends, color=colour(i), linewidth=1.6, alpha=0.55)
        handles[i] = axes.scatter(
            [across.value], [up.value], s=48, color=colour(i), marker=marker(i), zorder=4, linewidth=0
        )
    if not handles:
        return None
    _lines_of_real(axes, y, upright=False)
    _lines_of_real(axes, x, upright=True)
    arrows = {"lower": " ↓", "higher": " ↑"}
    axes.set_xlabel(_named(x) + {"lower": " ←", "higher": " →", "real": ", best nearest to real"}.get(x.better, ""))
    axes.set_ylabel(_named(y) + arrows.get(y.better, ""))
    axes.margins(0.08)
    tidy(axes)
    legend(drawn, list(handles.values()), [literal(titles[i]) for i in handles])
    return Picture(
        "coverage-sharpness.png",
        png(drawn),
        f"{y.label} against {x.label.lower()}. Large: mean over seeds with its 95% intervals; small: each seed. Grey "
        "lines: real data, which lie where they cross; dashed: noise floor.",
        f"Scatter of {y.label} against {x.label.lower()}, a point for each recipe.",
        900,
    )


def charts(report: Mapping, found: Sequence[Column]) -> list[Picture]:
    """All charts that the report has numbers for."""
    titles = [recipe["title"] for recipe in report["recipes"]]
    shown = headlines(found)
    made = (_axes(shown, titles), _sampling(report, found), _training(report, found), _trade(shown, titles))
    return [picture for picture in made if picture is not None]
