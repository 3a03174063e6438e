"""Charts of a report: one panel for each axis, quality over evaluations and training time, coverage over sharpness."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .columns import AXES, Cell, Column, Floor, common_floor, finite, headlines, number, plus_minus

__all__ = ["INK", "Chart", "literal", "new_figure", "plot_charts", "png"]

INK, MUTED, LINE = "#1f2328", "#6b7280", "#e5e7eb"
# The colour-blind safe palette of Okabe & Ito (2008) without yellow and black, and two darker colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A51A3", "#7F6A3A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_DASHED: Any = (0, (2, 2))
_ENDS = {"lower": "← better", "higher": "better →", "real": "nearest to real is better"}


@dataclass(frozen=True)
class Chart:
    """A rendered figure: file name, PNG, caption, alternative text, and width in pixels."""

    name: str
    png: bytes
    caption: str
    alt: str
    width: int


def plot_charts(report: Mapping, every: Sequence[Column]) -> list[Chart]:
    """Plot all charts for which the report has numbers; the same numbers give the same bytes."""
    titles = [recipe["title"] for recipe in report["recipes"]]
    chosen = headlines(every)
    charts = (
        _axes(chosen, titles),
        _curves(
            report, every, "sampling.png", "evaluations_curve",
            {"evaluations": "Network evaluations per sample", "samples_per_second": "Samples per second"}, 1.5,
            "the cost of a sample: network evaluations (left) and measured speed (right). Thick: mean over seeds; "
            "thin: each seed; single marker: a model with one sampler only.",
        ),
        _curves(
            report, every, "training.png", "curve", {"seconds": "Training time (s)"}, 20,
            "training time on this machine. Thick: mean over seeds; thin: each seed.",
        ),
        _trade(chosen, titles),
    )  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _axes(chosen: Sequence[Column], titles: Sequence[str]) -> Chart | None:
    """Plot a panel for each axis with a row for each recipe."""
    if not chosen:
        return None
    across = min(4, len(chosen))
    down = math.ceil(len(chosen) / across)
    fig = new_figure(11 if across > 2 else 8, down * (1.05 + 0.27 * len(titles)) + 0.35)
    panels = fig.subplots(down, across, squeeze=False, sharey=True)
    for axes, column in zip(panels.flat, chosen):
        _dots(axes, column)
        axes.set_yticks(range(len(titles)), [literal(title) for title in titles])
        axes.tick_params(axis="y", labelcolor=INK)
    for axes in panels.flat[len(chosen) :]:
        axes.set_axis_off()
    marks = {
        "mean": {"color": INK, "marker": "o", "markersize": 6, "linewidth": 0},
        "a seed": {"color": INK, "marker": "o", "markersize": 3.5, "markerfacecolor": "white", "linewidth": 0},
        "95% interval": {"color": INK, "linewidth": 2.2, "alpha": 0.55},
        "real data": {"color": MUTED, "linewidth": 1.2},
        "noise floor": {"color": MUTED, "linewidth": 1.2, "linestyle": _DASHED},
    }
    handles = [Line2D([], [], **style) for style in marks.values()]
    fig.legend(handles, list(marks), loc="outside lower left", ncols=5, frameon=False, fontsize=8.5, labelcolor=INK)
    spread = any(floor is not None and floor.spread for floor in map(common_floor, chosen))
    return _chart(
        "axes.png",
        fig,
        "One metric for each axis, on its own scale, with the better end in words above the panel. In a panel of the "
        "worst seed the large mark is that seed."
        + (" Grey band: the standard deviation of the noise floor over random splits of real data." if spread else ""),
        f"Dot plots of {len(chosen)} metrics for {len(titles)} recipes; the first table has the numbers.",
    )


def _dots(axes: Axes, column: Column) -> None:
    """Plot a row for each recipe: its interval as a line, its seeds as small marks, their mean as a large mark."""
    floor = common_floor(column)
    values = [v for cell in column.cells for v in (*cell.seeds, cell.value)]
    shown = [v for v in (*values, floor and floor.value, column.real.value) if finite(v)]
    logarithmic = _wide(shown, 30)
    for i, cell in enumerate(column.cells):
        if not finite(cell.value):
            # A recipe without the number has a row with a text, so that a gap is not read as zero.
            text = "not measured" if cell.value is None else "diverged"
            axes.text(0.02, i, text, transform=axes.get_yaxis_transform(), size=7.5, color=MUTED, va="center")
            continue
        if logarithmic and cell.ends is not None:
            cell = replace(cell, low=max(cell.ends[0], min(shown) * 0.7))
        _mark(axes, i, cell, Cell(float(i), seeds=(float(i),) * len(cell.seeds)))
    _lines_of_real(axes, column, upright=True, band=True)
    axes.set_ylim(len(column.cells) - 0.4, -0.6)
    if logarithmic:
        _logarithmic(axes, "x")
    else:
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
    _tidy(axes)
    axes.spines["left"].set_visible(False)
    axes.set_title(_named(column), size=9, color=INK, loc="left", pad=16)
    text = f"{AXES.get(column.axis, column.axis)} · {_ENDS.get(column.better, 'neither end is better')}"
    axes.annotate(
        literal(text, 60), (0, 1), (0, 5), "axes fraction", "offset points", size=7.5, color=MUTED, va="bottom"
    )


def _points(report: Mapping, key: str) -> list[Mapping]:
    return [point for recipe in report["recipes"] for run in recipe["runs"] for point in run.get(key) or ()]


def _metric_of_curves(report: Mapping, key: str, every: Sequence[Column]) -> Column | None:
    """Return the metric of the curves: the headline of quality if they have it, else their first known metric."""
    points = _points(report, key)
    order = [*(c for c in headlines(every) if c.axis == "quality"), *(c for c in every if c.axis != "speed")]
    return next((c for c in order if any(finite(number(p.get(c.name))) for p in points)), None)


def _curves(
    report: Mapping,
    every: Sequence[Column],
    file: str,
    key: str,
    across: Mapping[str, str],
    wide: float,
    caption: str,
) -> Chart | None:
    """Plot quality against each of `across`; recipes without a curve are one point.

    Seeds are thin lines, their mean is a thick line with markers.
    Arguments:
        key: of the curves in a run's report.
        across: {name in the points of a curve: axis label}.
        wide: ratio of largest to smallest x from which the x-axis is logarithmic.
    """
    column = _metric_of_curves(report, key, every)
    if column is None:
        return None
    fig = new_figure(11 if len(across) > 1 else 9, 4.2 + max(0, len(report["recipes"]) - 12) * 0.2)
    panels = fig.subplots(1, len(across), squeeze=False, sharey=True)[0]
    by_name = {c.name: c for c in every}
    floor = _floor(report, key, column.name)
    handles: dict[int, Any] = {}
    for axes, (name, label) in zip(panels, across.items()):
        for i, recipe in enumerate(report["recipes"]):
            lines = [line for run in recipe["runs"] if (line := _line(run, key, name, column.name))]
            if not lines and name in by_name:
                x, y = by_name[name].cells[i].value, column.cells[i].value
                lines = [[(x, y)]] if finite(x) and finite(y) else []
            for line in lines if len(lines) > 1 else ():
                axes.plot(*zip(*line), color=_colour(i), linewidth=0.8, alpha=0.45)
            if lines:
                # Up to the end of the shortest curve; a gap in one is a gap in the mean.
                mean = [[sum(values) / len(values) for values in zip(*points)] for points in zip(*lines)]
                style: Any = {"color": _colour(i), "marker": _marker(i), "markersize": 5, "linewidth": 1.8}
                handles.setdefault(i, axes.plot(*zip(*mean), **style)[0])
        xs = [float(v) for line in axes.get_lines() for v in line.get_xdata()]
        ys = [float(v) for line in axes.get_lines() for v in line.get_ydata() if finite(float(v))]
        if _wide(xs, wide):
            _logarithmic(axes, "x")
        if _wide(ys, 1 if column.better == "lower" else 10):
            _logarithmic(axes, "y")
        if floor is not None:
            _floor_line(axes, floor, upright=False)
        axes.set_xlabel(label)
        _tidy(axes)
    panels[0].set_ylabel(_named(column) + {"lower": " ↓", "higher": " ↑"}.get(column.better, ""))
    _legend(fig, handles, [recipe["title"] for recipe in report["recipes"]])
    if floor is not None:
        size = f"{report['curve_samples']:,} samples, as many as at each point"
        caption += f" Dashed: the noise floor ({plus_minus(*floor)}) of {size}."
    labels = " and ".join(across.values()).lower()
    alt = f"Lines of {column.label} against {labels}, one for each recipe."
    return _chart(file, fig, f"{column.label} against {caption}", alt)


def _line(run: Mapping, key: str, x: str, quality: str) -> list[tuple[float, float]]:
    """Return the points of a run's curve in order, gaps as NaN; an empty list where there are only gaps."""
    points = [(number(p.get(x)), number(p.get(quality))) for p in run.get(key) or ()]
    line = [(a, b if finite(b) else math.nan) for a, b in points if finite(a)]
    return sorted(line) if any(finite(b) for _, b in line) else []


def _floor(report: Mapping, key: str, name: str) -> Floor | None:
    """Return the noise floor at the number of samples of each point, if it is the same for all points of the curves."""
    parts = f"{name}_floor", f"{name}_floor_spread"
    floors = {tuple(number(point.get(part)) for part in parts) for point in _points(report, key)} - {(None, None)}
    value, spread = next(iter(floors)) if len(floors) == 1 else (None, None)
    return Floor(value, spread) if finite(value) else None


def _trade(chosen: Sequence[Column], titles: Sequence[str]) -> Chart | None:
    """Plot coverage against sharpness."""
    by_axis = {column.axis: column for column in chosen}
    if not {"coverage", "sharpness"} <= by_axis.keys():
        return None
    x, y = by_axis["sharpness"], by_axis["coverage"]
    fig = new_figure(9, 4.6 + max(0, len(titles) - 12) * 0.2)
    axes = fig.subplots()
    handles: dict[int, Any] = {}
    for i, (across, up) in enumerate(zip(x.cells, y.cells)):
        if (handle := _mark(axes, i, across, up)) is not None:
            handles[i] = handle
    if not handles:
        return None
    _lines_of_real(axes, y, upright=False)
    _lines_of_real(axes, x, upright=True)
    axes.set_xlabel(_named(x) + {"lower": " ←", "higher": " →", "real": ", best nearest to real"}.get(x.better, ""))
    axes.set_ylabel(_named(y) + {"lower": " ↓", "higher": " ↑"}.get(y.better, ""))
    axes.margins(0.08)
    _tidy(axes)
    _legend(fig, handles, titles)
    return _chart(
        "coverage-sharpness.png",
        fig,
        f"{y.label} against {x.label.lower()}. Large: mean over seeds with its 95% intervals; small: each seed. Grey "
        "lines: real data, which lie where they cross; dashed: noise floor.",
        f"Scatter of {y.label} against {x.label.lower()}, a point for each recipe.",
    )


def _mark(axes: Axes, i: int, x: Cell, y: Cell) -> Any:
    """Plot a recipe if both numbers are finite: intervals as lines, seeds as small marks, the mean as a large one."""
    if not (finite(x.value) and finite(y.value)):
        return None
    for ends in ((x.ends, (y.value, y.value)), ((x.value, x.value), y.ends)):
        if None not in ends:
            axes.plot(*ends, color=_colour(i), linewidth=2.2, alpha=0.55, solid_capstyle="butt")
    seeds = [(a, b) for a, b in zip(x.seeds, y.seeds) if math.isfinite(a) and math.isfinite(b)]
    if len(seeds) > 1 and len(x.seeds) == len(y.seeds):
        style: Any = {"s": 9, "facecolor": "white", "edgecolor": _colour(i), "linewidth": 0.9, "zorder": 3}
        axes.scatter([a for a, _ in seeds], [b for _, b in seeds], **style)
    style = {"s": 36, "color": _colour(i), "marker": _marker(i), "zorder": 4, "linewidth": 0}
    return axes.scatter([x.value], [y.value], **style)


def _colour(i: int) -> str:
    """Return the colour of the report's i-th recipe in all charts."""
    return _COLOURS[i % len(_COLOURS)]


def _marker(i: int) -> str:
    """Return the marker of the i-th recipe: colour and marker together are unique among 64 recipes."""
    return _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]


def _named(column: Column) -> str:
    return literal(column.label + (f" ({column.unit})" if column.unit else ""), 44)


def _wide(values: Sequence[float], ratio: float) -> bool:
    """Return whether values call for a logarithmic axis: all are positive and span at least `ratio`."""
    return bool(values) and min(values) > 0 and max(values) >= ratio * min(values)


def _logarithmic(axes: Axes, which: str) -> None:
    """Make an axis logarithmic with plain numbers as labels, also between decades where there are few decades."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.2 else (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1000 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _lines_of_real(axes: Axes, column: Column, upright: bool, band: bool = False) -> None:
    """Plot the value of real data and the noise floor as lines."""
    floor, real = common_floor(column), column.real.value
    if finite(real):
        (axes.axvline if upright else axes.axhline)(real, color=MUTED, linewidth=1.2, zorder=1)
    if floor is not None and finite(floor.value) and floor.value != real:
        _floor_line(axes, floor if band else Floor(floor.value), upright)


def _floor_line(axes: Axes, floor: Floor, upright: bool) -> None:
    """Plot a noise floor as a dashed line, ± its standard deviation over splits as a band."""
    if finite(floor.spread) and floor.spread > 0:
        ends = floor.value - floor.spread, floor.value + floor.spread
        (axes.axvspan if upright else axes.axhspan)(*ends, color=MUTED, alpha=0.15, linewidth=0, zorder=0.5)
    (axes.axvline if upright else axes.axhline)(floor.value, color=MUTED, linewidth=1.2, linestyle=_DASHED, zorder=1)


def _tidy(axes: Axes) -> None:
    """Set the style of an axis: thin lines, small labels, a light grid, no box."""
    axes.grid(True, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#c4c9d0")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=INK)


def _legend(fig: Figure, handles: Mapping[int, Any], titles: Sequence[str]) -> None:
    """Add a legend of the plotted recipes on the right."""
    names = [literal(titles[i]) for i in handles]
    style: Any = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 1.6}
    fig.legend(list(handles.values()), names, loc="outside right upper", **style)


def literal(text: str, length: int = 28) -> str:
    """Return a name that matplotlib shows literally: dollars are no formula, a leading underscore does not hide it."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def new_figure(width: float, height: float, whole: bool = False) -> Figure:
    """Return an empty figure of width × height inches on white, for light and dark pages.

    Arguments:
        whole: without layout, for one axis that fills the figure.
    """
    layout = None if whole else ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    fig = Figure(figsize=(width, height), dpi=150, facecolor="white", layout=layout)
    FigureCanvasAgg(fig)
    return fig


def png(fig: Figure) -> bytes:
    """Return a figure as PNG; the bytes are the same for the same figure."""
    content = io.BytesIO()
    fig.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _chart(name: str, fig: Figure, caption: str, alt: str) -> Chart:
    return Chart(name, png(fig), caption, alt, round(fig.get_figwidth() * 100))
