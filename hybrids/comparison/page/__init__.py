"""The report of a comparison for readers: an HTML page, a table and charts, made of report.json and saved samples."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ...files import write_whole
from .charts import Chart, plot_charts
from .columns import AXES, Column, csv_text, headlines, integer, interval, label, make_table, read_columns, rounded
from .panels import Panel, even, render_panels, render_sheet

__all__ = ["write_report"]

_PICTURES = ("samples", "reconstructions", "interpolations", "axes", "sampling", "training", "coverage-sharpness")
_MACHINE = {"device": "{}", "threads": "{} threads", "torch": "PyTorch {}", "python": "Python {}"}
_BUDGETS = {"images": "images seen", "seconds": "s of training", "flops": "FLOPs of training"}


def write_report(report: Mapping, out: Path) -> Path:
    """Write OUT/report.html, OUT/table.csv and OUT/figures/*.png; return the page's path.

    The same report and samples give the same bytes. Failed recipes, metrics that are missing or not finite, and runs
    without curve or samples are noted or left out without an error. Images of an earlier report that this report does
    not have are removed.

    Arguments:
        report: content of report.json, format 1.
        out: the comparison's folder, with the samples that the report names.
    Raises ValueError for another format.
    """
    if report.get("format") != 1:
        raise ValueError(f"report must have format 1; got {report.get('format')!r}: make the report again")
    every, panels = read_columns(report), render_panels(report, out)
    charts = plot_charts(report, every)
    for name in _PICTURES:
        (out / "figures" / f"{name}.png").unlink(missing_ok=True)
    for kind, group in _by_kind(panels).items():
        write_whole(out / "figures" / f"{kind}.png", render_sheet(group))
    for chart in charts:
        write_whole(out / "figures" / chart.name, chart.png)
    write_whole(out / "table.csv", csv_text(report))
    write_whole(out / "report.html", _page(report, every, charts, panels))
    return out / "report.html"


def _page(report: Mapping, every: Sequence[Column], charts: Sequence[Chart], panels: Sequence[Panel]) -> str:
    """Render page.html.jinja: one HTML document without external resources."""
    measured = [column for column in every if column.measured]
    axes = dict.fromkeys((*AXES, *(column.axis for column in measured)))
    by_axis = {axis: [column for column in measured if column.axis == axis] for axis in axes}
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True)  # fmt: skip
    page.filters |= {"axis": lambda name: AXES.get(name, name), "integer": integer, "sources": _sources,
                     "rounded": lambda value: "–" if value is None else rounded(float(value)),
                     "png": lambda png: f"data:image/png;base64,{b64encode(png).decode()}",
                     "letter": lambda i: chr(97 + i) if i < 26 else str(i)}  # fmt: skip
    return page.get_template("page.html.jinja").render(
        report=report,
        # For a folder or file, the last part of its path; the facts have the full path.
        title=f"{Path(report['data']).name}: {len(report['recipes'])} recipes side by side",
        facts=_facts(report),
        lost=_lost(report),
        warnings=[(recipe["title"], text) for recipe in report["recipes"] for text in recipe.get("warnings") or ()],
        overview=make_table("One measure for each axis.", headlines(every)),
        verdicts=_verdicts(report, every),
        panels=_by_kind(panels),
        even=even,
        charts=charts,
        tables=[make_table(AXES.get(axis, axis), here) for axis, here in by_axis.items() if here],
        absent=_absent(report, every),
        columns=every,
    )


def _by_kind(panels: Sequence[Panel]) -> dict[str, list[Panel]]:
    kinds = dict.fromkeys(panel.kind for panel in panels)
    return {kind: [panel for panel in panels if panel.kind == kind] for kind in kinds}


def _absent(report: Mapping, every: Sequence[Column]) -> dict[str, str]:
    """Return the metrics that no recipe has, with reasons: those of recipes that trained, else of all recipes."""
    absent: dict[str, list[str]] = {}
    for column in every:
        pairs = [(cell.why, recipe["state"]) for cell, recipe in zip(column.cells, report["recipes"])]
        if not column.measured:
            absent[column.label] = [why for why, state in pairs if state in ("finished", "partial")] or [
                why for why, _ in pairs]  # fmt: skip
    names = {column.name for column in every} | {"samples"}
    for recipe in report["recipes"]:
        for name, why in (recipe.get("missing") or {}).items():
            if name not in names:
                absent.setdefault(label(name), []).append(why)
    return {name: "; ".join(dict.fromkeys(whys)) for name, whys in absent.items()}


def _facts(report: Mapping) -> dict[str, str]:
    """Return the data, budget, sizes and machine of the comparison, {name: text}."""
    data = [report["data"], " × ".join(map(str, report["shape"]))]
    data += [f"{report['grey_levels']} grey levels"] if report.get("grey_levels") else []
    data += [f"{integer(report['examples'])} training examples" if report.get("examples") else "unlimited draws"]
    kind, value = report["budget"]["kind"], report["budget"]["value"]
    real = f"; {integer(report['real_n'])} of real data" if report.get("real_n") else ""
    machine = {key: value for key, value in report["machine"].items() if value is not None}
    known = [text.format(machine.pop(key)) for key, text in _MACHINE.items() if key in machine]
    facts = {
        "Data": ", ".join(data),
        "Budget": f"{integer(value)} {_BUDGETS.get(kind, kind)} for each run",
        "Parameters": f"about {integer(report['parameters'])} for each model" if report.get("parameters") else "",
        "Seeds": ", ".join(map(str, report["seeds"])),
        "Samples": f"{integer(report['samples'])} of each run, for each metric of samples{real}",
        "Machine": ", ".join([*known, *(f"{key} {value}" for key, value in machine.items())]),
    }
    return {name: text.replace(" 1 threads", " 1 thread") for name, text in facts.items() if text}


def _lost(report: Mapping) -> list[tuple[str, str, str]]:
    """Return (title, state, reason) of every recipe or run that did not finish."""
    lost = []
    for recipe in report["recipes"]:
        failed = [run for run in recipe["runs"] if run["state"] != "finished"]
        if recipe["state"] != "finished" and not failed:
            lost.append((recipe["title"], recipe["state"], recipe.get("why")))
        lost += [(f"{recipe['title']}, seed {run['seed']}", run["state"], run.get("why")) for run in failed]
    return [(title, state, why or "no reason was recorded") for title, state, why in lost]


def _verdicts(report: Mapping, every: Sequence[Column]) -> dict[str, list[dict[str, Any]]]:
    """Return the verdicts by axis, each with its column, title, number and interval as text."""
    columns = {column.name: column for column in every}
    indices = {recipe["recipe"]: i for i, recipe in enumerate(report["recipes"])}
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in report.get("adjectives") or ():
        column, i = columns.get(entry.get("metric")), indices.get(entry["recipe"])
        text, interval_text = "–", ""
        if entry.get("value") is not None:
            value, cell = float(entry["value"]), column.cells[i] if column and i is not None else None
            # The cell's interval determines the digits, if the number is that of the cell.
            ends = (cell.low, cell.high) if cell is not None and cell.value == value else (None, None)
            text, interval_text = rounded(value, *ends, bool(column and column.count)), interval(value, *ends)
        title = entry["recipe"] if i is None else report["recipes"][i]["title"]
        row = {**entry, "column": column, "title": title, "text": text, "interval": interval_text}
        groups.setdefault(entry["axis"], []).append(row)
    return groups


def _sources(text: str) -> Markup:
    """Return the text with its arXiv identifiers as links."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return Markup(re.sub(r"(?:\barXiv[: ])?\b(\d{4}\.\d{4,5})\b", link, str(escape(text))))
