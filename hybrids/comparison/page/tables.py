"""The tables of numbers of a report: recipes down, metrics across, real data and their noise floor first."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from .columns import AXES, Cell, Column, common_floor, leader
from .markup import Html, element, joined
from .rounding import finite, interval, shown

__all__ = ["adjectives", "captioned", "definitions", "figures_of", "scrolling"]

_ARROWS = {"lower": ("↓", "lower is better"), "higher": ("↑", "higher is better"), "real": ("◎", "nearest to real")}


def scrolling(label: str, *parts: str) -> Html:
    """What may be wider than the page: it scrolls by itself, with the keyboard too."""
    return element("div", *parts, class_="scroll", tabindex=0, role="region", aria_label=label)


def captioned(says: str) -> Html:
    """A table's caption, which stays in sight while the table scrolls."""
    return element("caption", element("span", says))


def _arrow(better: str) -> Html:
    if better not in _ARROWS:
        return Html("")
    sign, says = _ARROWS[better]
    return joined(["\u00a0", element("span", sign, class_="arrow", title=says, aria_hidden="true"),
                   element("span", f" ({says})", class_="hidden")])  # fmt: skip


def _head(column: Column, axis: bool) -> Html:
    """A metric as the head of its column: its axis if asked for, its name, direction and unit."""
    name = [element("a", column.label, href=f"#metric-{column.name}"), _arrow(column.better)]
    above = [element("span", AXES.get(column.axis, column.axis), class_="axis")] if axis else []
    below = [element("span", column.unit, class_="unit")] if column.unit else []
    return element("th", *above, *name, *below, scope="col")


class _Notes:
    """Reasons, each with a letter of its own."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, why: str) -> Html:
        if why not in self.reasons:
            self.reasons.append(why)
        i = self.reasons.index(why)
        return element("sup", chr(97 + i) if i < 26 else str(i))

    def listed(self) -> Html:
        if not self.reasons:
            return Html("")
        notes = [element("li", self.mark(why), " ", why) for why in self.reasons]
        return element("ul", *notes, class_="notes")


def _numbers(column: Column, cell: Cell, notes: _Notes, best: bool, floor: float | None) -> Html:
    """A cell: the number with its interval below, what became of lost runs, or a dash and why."""
    if cell.value is None:
        return element("td", "–", notes.mark(cell.why), class_="none", title=cell.why)
    small = []
    if not finite(cell.value):
        small.append(f"{max(1, cell.lost)} of {max(1, len(cell.seeds))} runs")
    else:
        small.append(interval(cell.value, cell.low, cell.high))
        if cell.lost:
            small.append(f"{cell.lost} of {len(cell.seeds)} diverged")
        elif 0 < len(cell.seeds) < cell.planned:
            small.append(f"{len(cell.seeds)} of {cell.planned} runs")
    if finite(cell.floor) and cell.floor != floor:
        small.append(f"floor {shown(cell.floor, whole=column.whole)}")
    value = shown(cell.value, cell.low, cell.high, column.whole)
    below = [element("span", part, class_="small") for part in small if part]
    kind = "best" if best else "diverged" if not finite(cell.value) else None
    return element("td", element("strong", value) if best else value, *below, class_=kind)


def figures_of(caption: str, columns: Sequence[Column], recipes: Sequence[Mapping], axis: bool = False) -> Html:
    """Caption, real data, floor, then a row for each recipe; below it why numbers are missing.

    A number is bold where its interval is better than, and apart from, those of all others in its column.
    """
    notes = _Notes()
    floors, leaders = [common_floor(column) for column in columns], [leader(column) for column in columns]
    rows = []
    for name, values in (("Real data", [column.real.value for column in columns]), ("Noise floor", floors)):
        if any(value is not None for value in values):
            cells = [element("td", "" if value is None else shown(value, whole=column.whole))
                     for column, value in zip(columns, values)]  # fmt: skip
            rows.append(element("tr", element("th", name, scope="row"), *cells, class_="real"))
    for i, recipe in enumerate(recipes):
        told = [element("span", recipe["family"], class_="small")] if recipe["family"] != recipe["title"] else []
        if recipe["state"] != "finished":
            told.append(element("a", recipe["state"], href="#failed", class_="small state"))
        cells = [
            _numbers(column, column.cells[i], notes, leaders[k] == i, floors[k]) for k, column in enumerate(columns)
        ]
        rows.append(element("tr", element("th", recipe["title"], *told, scope="row"), *cells))
    head = element("tr", element("th", "Recipe", scope="col"), *(_head(column, axis) for column in columns))
    whole = element("table", captioned(caption), element("thead", head), element("tbody", *rows),
                    class_="figures")  # fmt: skip
    return element("div", scrolling(caption, whole), notes.listed())


def adjectives(report: Mapping, columns: Sequence[Column]) -> Html:
    """The usual word for each recipe beside the number that confirms or contradicts it."""
    named = {column.name: column for column in columns}
    places = {recipe["recipe"]: i for i, recipe in enumerate(report["recipes"])}
    groups = []
    for axis, said in groupby(report["adjectives"], lambda entry: entry["axis"]):
        entries, rows = list(said), []
        for k, entry in enumerate(entries):
            column, i = named.get(entry.get("metric")), places.get(entry["recipe"])
            cell = column.cells[i] if column and i is not None else Cell()
            value = None if entry.get("value") is None else float(entry["value"])
            # The cell's interval tells the digits, if it is that cell's number.
            mine = value is not None and cell.value == value
            ends = (cell.low, cell.high) if mine else (None, None)
            number = "–" if value is None else shown(value, *ends, bool(column and column.whole))
            spread = interval(value, *ends) if value is not None else ""
            told = [element("span", spread, class_="small")] if spread else []
            label = [element("a", column.label, href=f"#metric-{column.name}"), _arrow(column.better)] if column else [
                str(entry.get("metric") or "–")]  # fmt: skip
            unit = [element("span", column.unit, class_="unit")] if column and column.unit else []
            verdict = element("span", entry["verdict"], class_=f"verdict {entry['verdict'].replace(' ', '-')}")
            first = [element("th", AXES.get(axis, axis), scope="rowgroup", rowspan=len(entries))] if k == 0 else []
            title = report["recipes"][i]["title"] if i is not None else entry["recipe"]
            rows.append(
                element("tr", *first, element("td", title), element("td", f"“{entry['usual']}”"),
                        element("td", *label, *unit), element("td", number, *told, class_="number"),
                        element("td", verdict), element("td", entry["because"], class_="why"))
            )  # fmt: skip
        groups.append(element("tbody", *rows))
    names = ("Axis", "Recipe", "Usual word", "Measured by", "Number", "Verdict", "Why")
    head = element("tr", *(element("th", n, scope="col", class_="number" if n == "Number" else None) for n in names))
    caption = "What is usually said of each family, and what was measured here."
    whole = element("table", captioned(caption), element("thead", head), *groups, class_="words")
    return scrolling(caption, whole)


def definitions(columns: Sequence[Column]) -> Html:
    """Every metric: what it is called here and in the files, its direction, unit, definition and source."""
    rows = []
    for column in columns:
        code = element("code", column.name, class_="small")
        better = _ARROWS.get(column.better, ("", "told only"))
        sign = joined([element("span", better[0], aria_hidden="true"), f" {better[1]}"]) if better[0] else better[1]
        rows.append(
            element("tr", element("th", column.label, code, scope="row"),
                    element("td", AXES.get(column.axis, column.axis)), element("td", sign),
                    element("td", column.unit or "–"), element("td", column.says, class_="why"),
                    id=f"metric-{column.name}")
        )  # fmt: skip
    names = ("Metric", "Axis", "Better", "Unit", "Definition and source")
    head = element("tr", *(element("th", name, scope="col") for name in names))
    caption = "Every metric of this report; names in code are those of table.csv and report.json."
    whole = element("table", captioned(caption), element("thead", head), element("tbody", *rows),
                    class_="words")  # fmt: skip
    return scrolling(caption, whole)
