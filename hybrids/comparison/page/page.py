"""The page of a report: one HTML file with all its pictures in it."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from .columns import AXES, Column, headlines
from .drawing import Picture
from .markup import Html, element, joined
from .panels import Panel, even
from .rounding import integer, shown
from .style import STYLE
from .tables import adjectives, captioned, definitions, figures_of, scrolling

__all__ = ["page"]

_MACHINE = {"device": "{}", "threads": "{} threads", "torch": "PyTorch {}", "python": "Python {}"}


def _image(png: bytes, alt: str) -> Html:
    return element("img", src=f"data:image/png;base64,{b64encode(png).decode()}", alt=alt)


def _budget(report: Mapping) -> str:
    kind, value = report["budget"]["kind"], report["budget"]["value"]
    unit = {"images": "images seen", "seconds": "s of training", "flops": "FLOPs of training"}.get(kind, kind)
    return f"{integer(value)} {unit} for each run"


def _machine(machine: Mapping) -> str:
    """Device first, then what else is known of it."""
    known = [said.format(machine[key]) for key, said in _MACHINE.items() if machine.get(key) is not None]
    more = [f"{key} {value}" for key, value in machine.items() if key not in _MACHINE and value is not None]
    return ", ".join([*known, *more]).replace(" 1 threads", " 1 thread")


def _title(report: Mapping) -> str:
    # Of a folder or file the last part of its path; the facts have the whole.
    return f"{Path(report['data']).name}: {len(report['recipes'])} recipes side by side"


def _facts(report: Mapping) -> Html:
    shape = " × ".join(map(str, report["shape"]))
    data = [f"{report['data']}, {shape}"]
    data += [f"{report['grey_levels']} levels"] if report.get("grey_levels") else []
    data += [f"{integer(report['examples'])} training examples"] if report.get("examples") else ["drawn without end"]
    seeds = report["seeds"]
    facts: list[tuple[str, str]] = [("Data", ", ".join(data)), ("Budget", _budget(report))]
    if report.get("parameters"):
        facts.append(("Parameters", f"about {integer(report['parameters'])} for each model"))
    facts += [("Seeds", ", ".join(map(str, seeds)))]
    facts += [("Samples", f"{integer(report['samples'])} of each run, for each metric of samples")]
    facts += [("Machine", _machine(report["machine"]))]
    facts += [("Make it again", _command(report["command"]))]
    return element("dl", *(element(tag, part) for name, value in facts for tag, part in (("dt", name), ("dd", value))))


def _command(command: str) -> Html:
    """What to type; lines break between words only, never within `--seeds`."""
    words = [element("span", word, class_="word") for word in command.split(" ")]
    return element("pre", element("code", joined(words, " ")))


def _incomplete(report: Mapping) -> list[tuple[str, str, str]]:
    """(title, what became of it, why) of every recipe or run that did not finish."""
    found = []
    for recipe in report["recipes"]:
        failed = [run for run in recipe["runs"] if run["state"] != "finished"]
        if recipe["state"] != "finished" and not failed:
            found.append((recipe["title"], recipe["state"], recipe.get("why") or "no reason was recorded"))
        for run in failed:
            name = f"{recipe['title']}, seed {run['seed']}"
            found.append((name, run["state"], run.get("why") or "no reason was recorded"))
    return found


def _warning(report: Mapping) -> Html:
    """What did not finish, at the top, where no one can miss it."""
    lost = _incomplete(report)
    if not lost:
        return Html("")
    items = [element("li", element("b", title), f": {state}: {why}") for title, state, why in lost[:6]]
    if len(lost) > 6:
        items.append(element("li", element("a", f"and {len(lost) - 6} more", href="#failed")))
    return element(
        "div", element("b", "Not everything finished."), element("ul", *items), class_="warning", role="note"
    )


def _failed(report: Mapping) -> Html:
    lost = _incomplete(report)
    if not lost:
        return element("p", "None: every run of every recipe finished.")
    rows = [element("tr", element("th", title, scope="row"), element("td", state, class_="state"),
                    element("td", why, class_="why")) for title, state, why in lost]  # fmt: skip
    head = element("tr", *(element("th", name, scope="col") for name in ("Recipe or run", "State", "Why")))
    caption = "What was refused before training, or failed in it."
    return scrolling(caption, element("table", captioned(caption), element("thead", head),
                                      element("tbody", *rows), class_="words"))  # fmt: skip


def _runs(report: Mapping) -> Html:
    """Steps, images, seconds, FLOPs of each run; parameters and settings of each recipe."""
    names = ("Recipe", "Parameters", "Settings", "Seed", "State", "Steps", "Images", "Seconds", "FLOPs", "Run")
    counts = {"Parameters", "Steps", "Images", "Seconds", "FLOPs", "Seed"}
    head = [element("th", n, scope="col", class_="number" if n in counts else None) for n in names]
    groups = []
    for recipe in report["recipes"]:
        runs = recipe["runs"] or [{"state": recipe["state"]}]
        first = [
            element("th", recipe["title"], element("code", recipe["recipe"], class_="small"), scope="rowgroup",
                    rowspan=len(runs)),
            element("td", integer(recipe.get("parameters")), rowspan=len(runs), class_="number"),
            element("td", element("code", recipe.get("words") or "–"), rowspan=len(runs), class_="settings"),
        ]  # fmt: skip
        rows = []
        for k, run in enumerate(runs):
            seconds = run.get("seconds")
            told = [str(run.get("seed", "–")), run["state"], integer(run.get("steps")), integer(run.get("images")),
                    "–" if seconds is None else f"{seconds:,.1f}", _flops(run.get("flops")),
                    run.get("run") or "–"]  # fmt: skip
            cells = [element("td", element("code", text) if name == "Run" else text,
                             class_="number" if name in counts else None)
                     for name, text in zip(names[3:], told)]  # fmt: skip
            rows.append(element("tr", *(first if k == 0 else []), *cells))
        groups.append(element("tbody", *rows))
    caption = "Every run. Seconds are of training alone, on this machine; FLOPs are of all its training steps."
    return scrolling(caption, element("table", captioned(caption), element("thead", element("tr", *head)),
                                      *groups, class_="words runs"))  # fmt: skip


def _flops(value: float | None) -> str:
    return "–" if value is None else shown(float(value))


def _grids(made: Sequence[Panel], kind: str) -> Html:
    shown = [panel for panel in made if panel.kind == kind]
    wide = any(panel.pixels.shape[2] > 1.5 * panel.pixels.shape[1] for panel in shown)
    figures = [
        element("figure", element("figcaption", element("b", panel.title), f" {panel.note}" if panel.note else ""),
                element("div", _image(panel.png, panel.alt), class_="card"))
        for panel in shown
    ]  # fmt: skip
    if wide:
        return element("div", *figures, class_="grid wide")
    return element("div", *figures, class_="grid", style=f"--across: {even(len(figures))}")


def _chart(picture: Picture) -> Html:
    card = element("div", _image(picture.png, picture.alt), class_="card", style=f"--wide: {picture.width}px")
    return element("figure", card, element("figcaption", picture.caption), class_="chart")


def _sources(markup: Html) -> Html:
    """arXiv identifiers as links to follow; nothing is fetched."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>'
    return Html(re.sub(r"(?:\barXiv[: ])?\b(\d{4}\.\d{4,5})\b", link, markup))


def _how(report: Mapping) -> str:
    many = (
        "Each number is the mean over seeds; below it its 95% interval over seeds, or over examples where only one run "
        "has it."
    )
    one = "One seed: intervals, where there are any, are over examples (95%) and tell nothing of other seeds."
    signs = "↓ lower is better, ↑ higher is better, ◎ nearest to real data is better."
    floor = (
        "The noise floor is the same metric between two halves of real data, or its known value for exact samples, on "
        "as many examples as the row. Held-out real data may be fewer; their distances and floor are then higher."
    )
    bold = "Bold: better than every other in its column, with an interval that overlaps none of theirs."
    return f"{many if len(report['seeds']) > 1 else one} {signs} {floor} {bold}"


def _measures(found: Sequence[Column], recipes: Sequence[Mapping]) -> list[Html]:
    """A table for each axis with all that was measured, and what was measured for nobody."""
    tables = []
    for axis in dict.fromkeys((*AXES, *(column.axis for column in found))):
        if here := [column for column in found if column.axis == axis and column.measured]:
            tables.append(figures_of(AXES.get(axis, axis), here, recipes))
    absent = [column.label for column in found if not column.measured]
    told = [element("p", f"Measured for none of these recipes: {', '.join(absent)}.", class_="note")] if absent else []
    return [element("div", *tables, class_="tables"), *told]


def page(report: Mapping, found: Sequence[Column], drawn: Sequence[Picture], made: Sequence[Panel]) -> str:
    """The report as one HTML document that fetches nothing."""
    recipes, measured = report["recipes"], [column for column in found if column.measured]
    kinds = {panel.kind for panel in made}
    parts: list[Html] = [element("h1", _title(report)), _facts(report)]
    sections: list[tuple[str, str, list[Html]]] = []

    body = [element("p", _how(report), class_="note"),
            figures_of("One measure for each axis.", headlines(found), recipes, axis=True)]  # fmt: skip
    if not measured:
        body = [element("p", "No number was measured.")]
    sections.append(("numbers", "The numbers", body))
    if report.get("adjectives"):
        sections.append(("words", "What is usually said", [adjectives(report, found)]))
    if "samples" in kinds:
        sections.append(("samples", "Samples", [_grids(made, "samples")]))
    for kind in ("reconstructions", "interpolations"):
        if kind in kinds:
            says = {
                "reconstructions": "Of models that reconstruct: held-out examples above, their reconstructions below."
                if len(report["shape"]) == 3
                else "Of models that reconstruct: held-out examples (filled), each joined to its reconstruction.",
                "interpolations": "Of models with latents: from one latent to another in equal steps.",
            }[kind]
            sections.append((kind, kind.capitalize(), [element("p", says, class_="note"), _grids(made, kind)]))
    if drawn:
        sections.append(("charts", "Charts", [_chart(picture) for picture in drawn]))
    if measured:
        sections.append(("measures", "Every measure", _measures(found, recipes)))
    sections.append(("metrics", "What the metrics are", [_sources(definitions(found))]))
    sections.append(("failed", "What failed or was refused", [_failed(report)]))
    sections.append(("runs", "Every run", [_runs(report)]))

    links = [joined([element("a", title, href=f"#{name}"), " "]) for name, title, _ in sections]
    parts += [_warning(report), element("nav", *links, aria_label="Contents")]
    parts += [element("section", element("h2", title, id=f"{name}"), *inside) for name, title, inside in sections]
    head = element("head", element("meta", charset="utf-8"),
                   element("meta", name="viewport", content="width=device-width, initial-scale=1"),
                   element("title", _title(report)),
                   element("style", Html(STYLE)))  # fmt: skip
    whole = element("html", "\n", head, "\n", element("body", element("main", joined(parts, "\n"))), "\n", lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"
