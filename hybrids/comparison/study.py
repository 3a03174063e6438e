"""Parts of a study of several runs: train each once, measure the coverage of modes, write a table and a picture."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data import Data
from ..evaluation import coverage, stacked_coverage
from ..experiment import experiment, load_recipe, parse
from ..pictures import picture

__all__ = ["cpu_seconds", "mode_coverage", "reached", "real_examples", "save_panels", "table", "train_once"]


def cpu_seconds(run: Path) -> float:
    """Return the CPU seconds that `train_once` has spent on a run."""
    file = run / "cpu_seconds.json"
    return float(json.loads(file.read_text())) if file.is_file() else 0.0


def train_once(recipe: str, words: Sequence[str], run: Path) -> None:
    """Train recipes/RECIPE.py with these arguments into a run folder, unless it is finished; resume an interrupted run.

    If a signal stops the run, the process exits with the run's code. The CPU seconds are added to the run's
    cpu_seconds.json, except those of a killed process.
    """
    if (run / "summary.json").is_file():
        return
    print(run, flush=True)
    module, start = load_recipe(recipe), time.process_time()
    settings = parse(module.Settings, [*words, "--resume", "auto", "--out", str(run)], recipe)
    code = experiment(settings, module.build, recipe)
    (run / "cpu_seconds.json").write_text(json.dumps(cpu_seconds(run) + time.process_time() - start) + "\n")
    if code:
        sys.exit(code)


def real_examples(data: Data, n: int) -> Tensor:
    """Return n examples in the models' scale: drawn where the data has a density, else the first training examples."""
    if data.density is not None:
        return data.density.sample(n, torch.Generator().manual_seed(0))
    assert data.x is not None
    return data.decode(data.x[:n])


def mode_coverage(x: Tensor, data: Data) -> dict[str, float]:
    """Return `coverage` of a mixture, or `stacked_coverage` of stacked digits."""
    return stacked_coverage(x) if data.modes is None else coverage(x, data.modes)


def reached(values: Mapping[str, float], least: Mapping[str, float], most: Mapping[str, float]) -> bool:
    """Return whether values are at least `least` and at most `most`, by name."""
    return all(values[name] >= low for name, low in least.items()) and all(
        values[name] <= high for name, high in most.items()
    )


def table(rows: Sequence[dict[str, object]]) -> str:
    """Return a Markdown table with a row for each dictionary; the columns are all names, in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: object) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names), *([cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def save_panels(rows: Sequence[Sequence[tuple[str, Tensor]]], path: Path) -> None:
    """Write rows of panels (title, examples) to an image file: images as a grid, points as a scatter plot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(3 * columns, 3.5 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    for i, panels in enumerate(rows):
        for j, (title, x) in enumerate(panels):
            axes = figure.add_subplot(len(rows), columns, i * columns + j + 1)
            axes.imshow(picture(x[:64] if x.ndim == 4 else x[:4000], limit=2.0).permute(1, 2, 0).numpy())
            axes.set_axis_off()
            axes.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
