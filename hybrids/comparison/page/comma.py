"""The table as comma-separated values: a row for each recipe and seed, and one for real data."""

import csv
import io
from collections.abc import Mapping

__all__ = ["comma_separated"]

_RUN = ("steps", "images", "seconds", "flops")
_PARTS = ("value", "floor", "low", "high")


def _written(value: float | str | None) -> str:
    """Floats in full, so that they come back bit for bit; nothing for nothing."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def comma_separated(report: Mapping) -> str:
    """recipe, title, family, seed, state, why, parameters, steps, images, seconds, flops; then of each metric NAME,
    NAME_floor, NAME_low and NAME_high.

    Real data are the row of recipe `real`; a recipe without runs has one row without seed.
    """
    names = [metric["name"] for metric in report["metrics"]]
    head = ["recipe", "title", "family", "seed", "state", "why", "parameters", *_RUN]
    head += [name if part == "value" else f"{name}_{part}" for name in names for part in _PARTS]

    def measured(figures: Mapping | None) -> list[str]:
        return [_written(((figures or {}).get(name) or {}).get(part)) for name in names for part in _PARTS]

    lines = [["real", "Real data", "", "", "", "", "", *[""] * len(_RUN), *measured(report["real"])]]
    for recipe in report["recipes"]:
        of_recipe = [recipe["recipe"], recipe["title"], recipe["family"]]
        for run in recipe["runs"] or [{"state": recipe["state"], "why": recipe["why"]}]:
            of_run = [run.get("seed"), run["state"], run.get("why"), recipe.get("parameters")]
            of_run += [run.get(key) for key in _RUN]
            lines.append([*of_recipe, *map(_written, of_run), *measured(run.get("figures"))])
    kept = io.StringIO()
    csv.writer(kept, lineterminator="\n").writerows([head, *lines])
    return kept.getvalue()
