"""Measure hybrids and the families that they combine: each recipe of STUDIES with its acceptance criterion.

    python scripts/studies/connections.py [--data stacked-digits ...] [--only NAME ...] [--seeds 3] [--out FOLDER]

Finished runs are not trained again; interrupted runs continue. The results of all runs in OUT are written to
OUT/connections.json, OUT/connections.md and OUT/connections.png. docs/connections.md has the results.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrids import load
from hybrids.comparison.study import cpu_seconds, mode_coverage, reached, real_examples, save_panels, table, train_once
from hybrids.data import Data, load_data
from hybrids.evaluation import likelihood
from hybrids.experiment import refusing


@dataclass(frozen=True)
class Study:
    """A recipe on a data set, with its acceptance criterion.

    Arguments:
        words: command-line arguments of the recipe.
        least, most: least and largest values of metrics, by name.
        samples: number that is classified by mode; None: SAMPLES of the data set.
    """

    data: str
    recipe: str
    words: str
    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    samples: int | None = None


POINTS = "--batch-size 256 --steps 6000 --loss relativistic --r1 0.05 --r2 0.05 --lr 1e-3 --critic-lr 1e-3"
"""The settings of the GAN that covers 25-gaussians: see docs/collapse.md."""
LARGE = "--schedule variance_preserving"
"""The paper's schedule: ᾱ is 0.52, 0.079, 0.0034, 0 after four steps; a cosine's is 0.85, 0.50, 0.15, 0."""
STACKED = "--flat --batch-size 128"
STUDIES = {
    "variational diffusion": Study(
        "25-gaussians", "variational_diffusion", "--batch-size 512 --steps 2000", {"modes": 25, "high_quality": 0.8}
    ),
    "variational diffusion of digits": Study(
        "digits", "variational_diffusion", "--resolution 8 --steps 600", most={"bits_per_dim": 2.05}
    ),
    "denoising GAN of points": Study(
        "8-gaussians", "adversarial_diffusion", POINTS, {"modes": 8, "high_quality": 0.85}
    ),
    "denoising GAN of points, no z": Study("8-gaussians", "adversarial_diffusion", f"{POINTS} --latent 0"),
    "denoising GAN of points, large steps": Study("8-gaussians", "adversarial_diffusion", f"{POINTS} {LARGE}"),
    "denoising GAN of points, large steps, no z": Study(
        "8-gaussians", "adversarial_diffusion", f"{POINTS} {LARGE} --latent 0", most={"high_quality": 0.5}
    ),
    "DDPM": Study("stacked-digits", "ddpm", f"{STACKED} --steps 4000 --sample-steps 1000", samples=10_000),
    "denoising GAN": Study(
        "stacked-digits", "adversarial_diffusion", f"{STACKED} --steps 2700 --lazy 2", {"modes": 995}, {"kl": 0.25}
    ),
    "latent diffusion": Study(
        "stacked-digits",
        "latent_diffusion",
        f"{STACKED} --latent 48 --first-steps 3000 --steps 4000",
        {"modes": 995},
        {"kl": 0.06},
    ),
    "flagship": Study(
        "stacked-digits",
        "latent_adversarial_diffusion",
        f"{STACKED} --latent 48 --first-steps 2000 --steps 2300",
    ),
}
SAMPLES = {"8-gaussians": 10_000, "25-gaussians": 10_000, "stacked-digits": 26_000, "digits": 0}
"""Samples that are classified by mode; for digits only the bound is measured. The floor of KL is O(1/samples)."""


def folder(out: Path, name: str, seed: int) -> Path:
    """Return the run folder."""
    return out / name.replace(",", "").replace(" ", "-").lower() / f"seed-{seed}"


def draw_samples(sample: Callable[..., Tensor], n: int) -> tuple[Tensor, float]:
    """Draw n samples; return them and the samples per second."""
    generator = torch.Generator().manual_seed(0)
    sample(1000, generator=generator)  # the first call is slower
    start = time.perf_counter()
    x = torch.cat([sample(1000, generator=generator) for _ in range(n // 1000)])
    return x, n / (time.perf_counter() - start)


def measure_model(model: Any, data: Data, n: int) -> tuple[dict[str, float], Tensor | None]:
    """Return the metrics of a model on its data, and its n samples."""
    metrics: dict[str, float] = {}
    x = None
    if n:
        x, per_second = draw_samples(model.sample, n)
        metrics = {**mode_coverage(x, data), "samples_per_second": per_second}
    if data.name == "digits":
        assert data.held_out is not None
        bound = likelihood(model, data.decode(data.held_out))
        metrics["bits_per_dim"] = bound["bits_per_dim"]
    return metrics, x


def collect(out: Path, data: Data) -> tuple[list[dict], list[tuple[str, Tensor]]]:
    """Return table rows of real examples and of every finished run on a data set, and sample panels of seed 0."""
    rows: list[dict] = []
    panels = []
    n = SAMPLES[data.name]
    if n:
        real = real_examples(data, n)
        rows.append({"data": data.name, "model": "real", **mode_coverage(real, data)})
        panels.append(("real", real))
    for name, study in STUDIES.items():
        if study.data != data.name:
            continue
        for run in sorted(folder(out, name, 0).parent.glob("seed-*")):
            if not (run / "summary.json").is_file():
                continue
            summary, model = json.loads((run / "summary.json").read_text()), load(run)
            details = {"seed": summary["seed"], "steps": summary["steps"], "cpu_seconds": cpu_seconds(run)}
            metrics, x = measure_model(model, data, study.samples or n)
            rows.append({"data": data.name, "model": name, **details, **metrics})
            if study.least or study.most:
                rows[-1]["reached"] = reached(metrics, study.least, study.most)
            if summary["seed"] == 0 and x is not None:
                panels.append((f"{name}\n{metrics['modes']:.0f} modes, KL {metrics['kl']:.3f}", x))
            if study.recipe == "latent_diffusion":
                # The same autoencoder with the prior N(0, I), to measure the effect of the diffusion prior.
                metrics, _ = measure_model(model.first, data, n)
                rows.append({"data": data.name, "model": "its autoencoder, N(0, I)", **details, **metrics})
    return rows, panels


def main() -> None:
    known = list(dict.fromkeys(study.data for study in STUDIES.values()))
    parser = argparse.ArgumentParser(description="Hybrids and the families that they combine.")
    parser.add_argument("--data", nargs="+", choices=known, default=known, help="data sets (all)")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES), help="studies to run (all)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds 0, 1, … (1); 0: write the tables only")
    parser.add_argument("--out", type=Path, default=Path("runs/connections"), help="folder of the runs and the tables")
    arguments = parser.parse_args()

    groups, panels = [], []
    with refusing():
        for seed in range(arguments.seeds):
            for name in arguments.only:
                study = STUDIES[name]
                if study.data in arguments.data:
                    words = f"{study.words} --data {study.data} --seed {seed} --checkpoint-every 1000"
                    train_once(study.recipe, words.split(), folder(arguments.out, name, seed))
        for data in arguments.data:
            rows, samples = collect(arguments.out, load_data(data))
            groups.append(rows)
            panels += [samples] if samples else []
    tables = "\n".join(map(table, groups))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "connections.json").write_text(json.dumps(sum(groups, []), indent=2) + "\n")
    (arguments.out / "connections.md").write_text(tables)
    if panels:
        save_panels(panels, arguments.out / "connections.png")
    print(f"{tables}{arguments.out / 'connections.md'}")


if __name__ == "__main__":
    main()
