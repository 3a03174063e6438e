"""Measure mode collapse of the GAN of recipes/gan.py with three losses and otherwise equal settings.

    python scripts/studies/collapse.py [--data 25-gaussians stacked-digits] [--seeds 1] [--out runs/collapse]

Finished runs are not trained again; interrupted runs continue. The results of all runs in OUT are written to
OUT/collapse.json, OUT/collapse.md and OUT/collapse.png. docs/collapse.md has the results.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hybrids import load
from hybrids.comparison.study import cpu_seconds, mode_coverage, reached, real_examples, save_panels, table, train_once
from hybrids.data import load_data
from hybrids.experiment import refusing

LOSSES = {
    "non-saturating": ("non_saturating", False, False),
    "non-saturating + R1": ("non_saturating", True, False),
    "relativistic + R1 + R2": ("relativistic", True, True),
}
"""The pair of losses, and whether R1 and R2 are used."""
PLAIN, CURED = "non-saturating", "relativistic + R1 + R2"


@dataclass(frozen=True)
class Study:
    """The settings on a data set that are equal for all losses, and the acceptance criterion of the cured GAN.

    Arguments:
        words: command-line arguments of the recipe.
        gamma: weight of the penalties.
        samples: number that is classified by mode.
        least, most: least and largest values of metrics, by name.
    """

    words: str
    gamma: float
    samples: int
    least: dict[str, float]
    most: dict[str, float]


STUDIES = {
    # With a learning rate of 1e-3, its decay is needed for samples to settle within 3σ.
    "25-gaussians": Study(
        "--steps 15000 --batch-size 512 --lr 1e-3 --final-lr 0.02", 0.05, 10_000, {"high_quality": 0.7}, {"kl": 0.01}
    ),
    "stacked-digits": Study(
        "--flat --width 40 --steps 5000 --batch-size 128 --lr 4e-4", 0.5, 26_000, {"modes": 995}, {"kl": 0.12}
    ),
}
COLLAPSED = 0.5
"""KL in nats from which the plain GAN is collapsed."""


def folder(out: Path, data: str, loss: str, seed: int) -> Path:
    """Return the run folder."""
    return out / data / loss.replace(" + ", "-").lower() / f"seed-{seed}"


def train(run: Path, data: str, loss: str, seed: int) -> None:
    """Train one GAN, unless it is finished."""
    study, (pair, r1, r2) = STUDIES[data], LOSSES[loss]
    words = [*study.words.split(), "--data", data, "--loss", pair, "--seed", str(seed)]
    words += ["--r1", str(study.gamma * r1), "--r2", str(study.gamma * r2)]
    train_once("gan", [*words, "--device", "cpu", "--checkpoint-every", "1000"], run)


def collect(out: Path, name: str) -> tuple[list[dict], list[tuple[str, Tensor]]]:
    """Return table rows of real examples and of every finished run on a data set, and sample panels of seed 0."""
    study, data = STUDIES[name], load_data(name)
    real = real_examples(data, study.samples)
    generator = torch.Generator()
    rows: list[dict] = [{"data": name, "loss": "real", **mode_coverage(real, data)}]
    panels = [("real", real)]
    for loss in LOSSES:
        for run in sorted(folder(out, name, loss, 0).parent.glob("seed-*")):
            if not (run / "summary.json").is_file():
                continue
            summary, model = json.loads((run / "summary.json").read_text()), load(run)
            generator.manual_seed(0)
            x = torch.cat([model.sample(1000, generator=generator) for _ in range(study.samples // 1000)])
            coverage = mode_coverage(x, data)
            details = {"seed": summary["seed"], "steps": summary["steps"], "cpu_seconds": cpu_seconds(run)}
            rows.append({"data": name, "loss": loss, **details, **coverage})
            if loss == CURED:
                rows[-1]["accepted"] = reached(coverage, study.least, study.most)
            if loss == PLAIN:
                rows[-1]["collapsed"] = coverage["kl"] >= COLLAPSED
            if summary["seed"] == 0:
                panels.append((f"{loss}\n{coverage['modes']:.0f} modes, KL {coverage['kl']:.3f}", x))
    return rows, panels


def main() -> None:
    parser = argparse.ArgumentParser(description="Mode collapse of GANs with three losses.")
    parser.add_argument("--data", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="data sets (both)")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES), help="losses to train (all)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds 0, 1, … (1); 0: write the table only")
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"), help="folder of the runs and of the table")
    arguments = parser.parse_args()

    groups, panels = [], []
    with refusing():
        for data in arguments.data:
            for seed in range(arguments.seeds):
                for loss in arguments.losses:
                    train(folder(arguments.out, data, loss, seed), data, loss, seed)
            rows, samples = collect(arguments.out, data)
            groups.append(rows)
            panels.append(samples)
    tables = "\n".join(map(table, groups))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "collapse.json").write_text(json.dumps(sum(groups, []), indent=2) + "\n")
    (arguments.out / "collapse.md").write_text(tables)
    save_panels(panels, arguments.out / "collapse.png")
    print(f"{tables}{arguments.out / 'collapse.png'}")


if __name__ == "__main__":
    main()
