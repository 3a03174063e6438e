"""A comparison that never was: made-up numbers, and noise or blurred digits for samples."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

METRICS = [
    ("frechet", "quality", "lower", "", "Fréchet distance of features (Heusel et al. 2017, arXiv:1706.08500)."),
    ("kernel", "quality", "lower", "", "Unbiased squared MMD (Bińkowski et al. 2018, arXiv:1801.01401)."),
    ("precision", "coverage", "higher", "", "Share of samples near real ones (arXiv:1904.06991)."),
    ("coverage", "coverage", "higher", "", "Share of real examples with a sample nearby (arXiv:2002.09797)."),
    ("nearest_train", "coverage", "neither", "", "Distance to the nearest training example, over that of held-out."),
    ("high_frequency", "sharpness", "real", "", "Share of the power spectrum above half of Nyquist, over real."),
    ("laplacian", "sharpness", "real", "", "Variance of the Laplacian, over real."),
    ("reconstruction", "control", "lower", "", "RMSE of reconstructions in [-1, 1] units."),
    ("probe", "control", "higher", "", "Accuracy of a linear probe on latents."),
    ("bits_per_dim", "likelihood", "lower", "bits/dim", "Bound of -log p by dimension."),
    ("samples_per_second", "speed", "higher", "1/s", "Samples a second on this machine."),
    ("evaluations", "speed", "lower", "", "Network evaluations a sample."),
    ("flops_per_sample", "speed", "lower", "FLOPs", "Of one sample."),
    ("spikes", "stability", "lower", "", "Share of gradient norms above ten times their running median."),
    ("factor_vae", "control", "higher", "", "Measured for nobody."),
    ("my own/metric", "my axis", "higher", "", "A metric of a user's own."),
]
REAL = {
    "frechet": 0.41,
    "kernel": 0.0004,
    "precision": 0.91,
    "coverage": 0.93,
    "nearest_train": 1.0,
    "high_frequency": 1.0,
    "laplacian": 1.0,
}
GAN = ("reconstruction", "probe", "bits_per_dim")
UNDEFINED = {"reconstruction": "the model offers no decode", "probe": "the model offers no encode",
             "bits_per_dim": "the model offers neither nll nor bound"}  # fmt: skip
TYPICAL = {
    "vae": ("VAE", "VAE", (5.2, 0.02, 0.62, 0.71, 1.4, 0.42, 0.37, 0.21, 0.9, 1.9, 9000, 1, 3e6, 0.0), ()),
    "gan": ("GAN", "GAN", (2.4, 0.012, 0.83, 0.58, 1.1, 1.06, 1.1, 0, 0, 0, 12000, 1, 3e6, 0.05), GAN),
    "ddpm": ("DDPM", "diffusion", (1.3, 0.004, 0.86, 0.9, 1.05, 0.98, 0.96, 0.05, 0.7, 2.2, 40, 100, 3e8, 0.0), ()),
    "hierarchical_vae": (
        "Hierarchical VAE",
        "VAE × diffusion",
        (3.1, 0.011, 0.7, 0.8, 1.2, 0.7, 0.66, 0.12, 0.88, 1.7, 700, 10, 4e7, 0.01),
        (),
    ),
    "latent_diffusion": (
        "Latent diffusion",
        "VAE × diffusion",
        (1.9, 0.007, 0.78, 0.84, 1.1, 0.8, 0.78, 0.1, 0.93, 2.4, 900, 51, 2e7, 0.0),
        ("bits_per_dim",),
    ),
    "adversarial_diffusion": (
        "Denoising diffusion GAN",
        "GAN × diffusion",
        (1.6, 0.006, 0.88, 0.82, 1.06, 1.02, 1.03, 0, 0, 0, 2500, 4, 1.2e7, 0.02),
        GAN,
    ),
}


def images(n: int, seed: int, blur: float = 0.0, noise: float = 0.0) -> Tensor:
    """Digits in [-1, 1], (n, 1, 8, 8), blurred and noisy."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(seed)
    all_ = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    x = all_[torch.randint(len(all_), (n,), generator=generator)]
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)
    x = (1 - blur) * x + blur * smooth
    return (x + noise * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def points(n: int, seed: int, noise: float = 0.05) -> Tensor:
    """Eight blobs on a circle, (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator) * torch.pi / 4
    return 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + noise * torch.randn(n, 2, generator=generator)


def _kept(out: Path, name: str, tensors: dict[str, Tensor]) -> str:
    from safetensors.torch import save_file

    (out / "samples").mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, out / "samples" / name)
    return f"samples/{name}"


def _samples(out: Path, name: str, family: str, seed: int, plane: bool) -> str:
    def draw(n, s, strength=0.0):
        return points(n, s, 0.05 + 0.2 * strength) if plane else images(n, s, blur=strength)

    strength = {"VAE": 0.8, "GAN": 0.0}.get(family, 0.3)
    tensors = {"samples": draw(64, seed, strength)}
    if "VAE" in family:
        x, a, b = draw(16, seed + 9), draw(4, seed + 5, strength), draw(4, seed + 6, strength)
        way = torch.linspace(0, 1, 8).view(1, 8, *[1] * (x.ndim - 1))
        tensors |= {
            "originals": x,
            "reconstructions": 0.9 * x,
            "interpolations": a[:, None] * (1 - way) + b[:, None] * way,
        }
    return _kept(out, name, tensors)


def _figure(rng: random.Random, name: str, value: float) -> dict:
    value *= 1 if name in ("evaluations", "flops_per_sample") else 1 + rng.gauss(0, 0.05)
    floor = REAL.get(name)
    ends = {"low": value - 0.03 * abs(value), "high": value + 0.03 * abs(value)}
    return {"value": value, "floor": floor, "floor_spread": None if floor is None else 0.1 * floor, **ends}


def summarized(runs: list[dict]) -> dict:
    """Mean, standard deviation, an interval, the worst, as the comparison writes them."""
    found = {}
    better = {name: better for name, _, better, _, _ in METRICS}
    for name in dict.fromkeys(name for run in runs for name in run["figures"]):
        values = [run["figures"][name]["value"] for run in runs if name in run["figures"]]
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
        half = 4.3 * std / len(values) ** 0.5
        several = len(values) > 1
        found[name] = {
            "mean": mean,
            "std": std if several else None,
            "low": mean - half if several else None,
            "high": mean + half if several else None,
            "worst": min(values) if better[name] == "higher" else max(values),
            "runs": len(values),
        }
    return found


def recipe_of(out: Path, recipe: str, seeds: list[int], plane: bool = False, title: str | None = None) -> dict:
    """A finished recipe, like the typical one whose name it bears or else the VAE."""
    usual, family, values, without = TYPICAL.get(recipe, TYPICAL["vae"])
    title = title or usual
    rng, runs = random.Random(f"{recipe} {title}"), []
    for seed in seeds:
        figures = {
            name: _figure(rng, name, value)
            for (name, *_), value in [*zip(METRICS, values), (METRICS[-1], 4.5)]
            if name not in without and not (plane and name in ("high_frequency", "laplacian"))
        }
        end, speed = figures["frechet"]["value"], figures["samples_per_second"]["value"]
        steps, pace, floor = (
            range(200, 1001, 200),
            rng.uniform(0.04, 0.09),
            {"frechet_floor": 0.3, "frechet_floor_spread": 0.02},
        )
        run = {
            "seed": seed,
            "run": f"runs/{recipe}/seed-{seed}",
            "state": "finished",
            "why": None,
            "seconds": 1000 * pace,
            "steps": 1000,
            "images": 64000,
            "flops": 1.3e12,
            "figures": figures,
            "missing": {name: UNDEFINED[name] for name in without},
            "curve": [
                {"step": n, "seconds": n * pace, "images": 64 * n, "frechet": end * (1000 / n) ** 0.8} | floor
                for n in steps
            ],
            "evaluations_curve": [
                {"evaluations": n, "frechet": end * (1 + 8 / n), "samples_per_second": 100 * speed / n}
                for n in (2, 5, 10, 20, 50, 100)
            ]
            if "diffusion" in family
            else [],
            "samples": _samples(out, f"{recipe}-seed-{seed}.safetensors", family, seed, plane),
        }
        runs.append(run)
    words = f"--data digits --width 40 --steps 1000 --recipe-words {recipe}"
    cost = {"flops": 1.25e12, "steps": 1001, "images": 64064.0, "seconds": None}
    return {"recipe": recipe, "title": title, "family": family, "words": words, "parameters": 498_000 + len(recipe),
            "state": "finished", "why": None, "runs": runs, "summary": summarized(runs), "cost": cost,
            "missing": {name: UNDEFINED[name] for name in without} | {"factor_vae": "these data have no factors"},
            "warnings": []}  # fmt: skip


def refused(recipe: str, title: str, why: str) -> dict:
    """A recipe that would not train on these data."""
    return {"recipe": recipe, "title": title, "family": "GAN", "words": "", "parameters": None, "state": "refused",
            "why": why, "runs": [], "summary": {}}  # fmt: skip


def report_of(out: Path, recipes=tuple(TYPICAL), seeds=(0, 1, 2), plane: bool = False) -> dict:
    """A whole report with its samples in `out`."""
    listed = [recipe_of(out, name, list(seeds), plane) for name in recipes]
    real = {"samples": points(2000, 7) if plane else images(64, 7)}
    adjectives = [
        ("sharpness", "blurry", "vae", "high_frequency", "confirmed", "0.43 of real is below 0.9"),
        ("sharpness", "excellent", "ddpm", "high_frequency", "confirmed", "within 10% of real"),
        ("coverage", "poor", "gan", "coverage", "confirmed", "far below the floor"),
        ("coverage", "good", "vae", "coverage", "contradicted", "below 0.8"),
        ("likelihood", "none", "gan", "bits_per_dim", "not measured", "the model has none"),
        ("likelihood", "exact", "ddpm", "bits_per_dim", "undecided", "the interval spans the limit"),
        ("likelihood", None, "latent_diffusion", "bits_per_dim", "no usual word", "a hybrid"),
    ]
    means = {r["recipe"]: {name: s["mean"] for name, s in r["summary"].items()} for r in listed}
    report = {
        "format": 1,
        "real_n": 1750,
        "data": "8-gaussians" if plane else "digits",
        "shape": [2] if plane else [1, 8, 8],
        "grey_levels": None if plane else 17,
        "examples": None if plane else 1500,
        "budget": {"kind": "images", "value": 64000},
        "parameters": 500_000,
        "seeds": list(seeds),
        "samples": 2000,
        "curve_samples": 500,
        "machine": {"device": "cpu", "threads": 1, "torch": "2.13.0", "python": "3.11"},
        "command": "python scripts/compare.py --recipes vae gan ddpm --data digits --images 64000 --seeds 3",
        "metrics": [dict(zip(("name", "axis", "better", "unit", "says"), metric)) for metric in METRICS],
        "real": {name: {"value": 1.02 * v, "floor": v, "floor_spread": 0.1 * v} for name, v in REAL.items()},
        "real_samples": _kept(out, "real.safetensors", real),
        "recipes": listed,
        "adjectives": [
            {"axis": axis, "usual": usual, "recipe": recipe, "metric": metric,
             "value": means.get(recipe, {}).get(metric), "verdict": verdict, "because": because}
            for axis, usual, recipe, metric, verdict, because in adjectives
        ],
    }  # fmt: skip
    (out / "report.json").write_text(json.dumps(report))
    return report


@pytest.fixture
def made_up():
    """`report`, `recipe`, `refused`, `summarized`, `metrics` for tests that make reports of their own."""
    from types import SimpleNamespace

    return SimpleNamespace(report=report_of, recipe=recipe_of, refused=refused, summarized=summarized, metrics=METRICS)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """(report, folder) of six recipes and three seeds, written once."""
    from hybrids.comparison.page import write_report

    out = tmp_path_factory.mktemp("report")
    report = report_of(out)
    write_report(report, out)
    return report, out
