"""Mode collapse, shown and cured: the GAN of recipes/gan.py with three losses, all else equal, its samples by mode.

    python scripts/collapse.py [--data 25-gaussians stacked-digits] [--seeds 1] [--out runs/collapse]

Finished runs are not trained again, and one that was stopped goes on. What is found in OUT is written to
OUT/collapse.json, OUT/collapse.md and OUT/collapse.png. docs/collapse.md tells what came out.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hybrids import load
from hybrids.data import Data, load_data
from hybrids.data.points import Mixture
from hybrids.evaluation import coverage, stacked_coverage
from hybrids.experiment import experiment, load_recipe, parse, refusing
from hybrids.experiment.pictures import picture

LOSSES = {
    "non-saturating": ("non_saturating", False, False),
    "non-saturating + R1": ("non_saturating", True, False),
    "relativistic + R1 + R2": ("relativistic", True, True),
}
"""The pair of losses, and which penalties there are."""
PLAIN, CURED = "non-saturating", "relativistic + R1 + R2"


@dataclass(frozen=True)
class Study:
    """What is equal for all losses on a data set: settings of the recipe, γ of penalties, samples to count; and the
    line that the cured GAN must reach, as least and largest figures."""

    words: str
    gamma: float
    samples: int
    least: dict[str, float]
    most: dict[str, float]

    def accepts(self, figures: dict[str, float]) -> bool:
        """Whether figures reach the line."""
        reached = [figures[name] >= low for name, low in self.least.items()]
        return all(reached + [figures[name] <= high for name, high in self.most.items()])


STUDIES = {
    # The decay of a learning rate as large as 1e-3 is what lets samples settle within 3σ.
    "25-gaussians": Study(
        "--steps 15000 --batch-size 512 --lr 1e-3 --final-lr 0.02", 0.05, 10_000, {"high_quality": 0.7}, {"kl": 0.01}
    ),
    "stacked-digits": Study(
        "--flat --width 40 --steps 5000 --batch-size 128 --lr 4e-4", 0.5, 26_000, {"modes": 995}, {"kl": 0.12}
    ),
}
COLLAPSED = 0.5
"""From this KL on the plain GAN counts as failed, in nats."""


def folder(out: Path, data: str, loss: str, seed: int) -> Path:
    """The run folder."""
    return out / data / loss.replace(" + ", "-").lower() / f"seed-{seed}"


def train(run: Path, data: str, loss: str, seed: int) -> None:
    """Train one GAN, unless it is; leaves the script with the run's code if a signal stops it."""
    study, (pair, r1, r2) = STUDIES[data], LOSSES[loss]
    recipe = load_recipe("gan")
    words = [*study.words.split(), "--data", data, "--loss", pair, "--seed", str(seed)]
    words += ["--r1", str(study.gamma * r1), "--r2", str(study.gamma * r2)]
    words += ["--device", "cpu", "--checkpoint-every", "1000", "--resume", "auto", "--out", str(run)]
    print(f"{data}, {loss}, seed {seed}", flush=True)
    if code := experiment(parse(recipe.Settings, words, "gan"), recipe.build, "gan"):
        sys.exit(code)


def measure(x: Tensor, data: Data) -> dict[str, float]:
    """Modes, KL and quality of samples."""
    return coverage(x, data.density) if isinstance(data.density, Mixture) else stacked_coverage(x)


def collect(out: Path, name: str) -> tuple[list[dict], list[tuple[str, Tensor]]]:
    """The figures of real examples and of every finished run on a data set, and panels of seed 0 to look at."""
    study, data = STUDIES[name], load_data(name)
    generator = torch.Generator().manual_seed(0)
    if data.density is not None:
        real = data.density.sample(study.samples, generator)
    else:
        assert data.x is not None
        real = data.decode(data.x[: study.samples])
    rows: list[dict] = [{"data": name, "loss": "real", **measure(real, data)}]
    panels = [("real", real)]
    for loss in LOSSES:
        for run in sorted(folder(out, name, loss, 0).parent.glob("seed-*")):
            if not (run / "summary.json").is_file():
                continue
            summary, model = json.loads((run / "summary.json").read_text()), load(run)
            generator.manual_seed(0)
            x = torch.cat([model.sample(1000, generator=generator) for _ in range(study.samples // 1000)])
            figures = measure(x, data)
            told = {"seed": summary["seed"], "steps": summary["steps"], "seconds": summary["seconds"]}
            rows.append({"data": name, "loss": loss, **told, **figures})
            if loss == CURED:
                rows[-1]["accepted"] = study.accepts(figures)
            if loss == PLAIN:
                rows[-1]["collapsed"] = figures["kl"] >= COLLAPSED
            if summary["seed"] == 0:
                panels.append((f"{loss}\n{figures['modes']:.0f} modes, KL {figures['kl']:.3f}", x))
    return rows, panels


def table(rows: list[dict]) -> str:
    """Markdown, a row a run."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: object) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names), *([cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw(rows: list[list[tuple[str, Tensor]]], path: Path) -> None:
    """A row of panels a data set."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description="GANs that collapse, and one that does not.")
    parser.add_argument("--data", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="what on (both)")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES), help="which to train (all)")
    parser.add_argument("--seeds", type=int, default=1, help="how many: 0, 1, … (1); 0: write the table only")
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"), help="folder of the runs and of the table")
    arguments = parser.parse_args()

    groups, panels = [], []
    with refusing():
        for data in arguments.data:
            for seed in range(arguments.seeds):
                for loss in arguments.losses:
                    train(folder(arguments.out, data, loss, seed), data, loss, seed)
            found, shown = collect(arguments.out, data)
            groups.append(found)
            panels.append(shown)
    tables = "\n".join(map(table, groups))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "collapse.json").write_text(json.dumps(sum(groups, []), indent=2) + "\n")
    (arguments.out / "collapse.md").write_text(tables)
    draw(panels, arguments.out / "collapse.png")
    print(f"{tables}{arguments.out / 'collapse.png'}")


if __name__ == "__main__":
    main()
