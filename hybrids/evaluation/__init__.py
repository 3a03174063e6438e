"""Evaluation of models: likelihood, metrics of samples, of latents and of cost."""

from typing import Any

import torch

from ..data import Data
from ..modes import own_random_numbers
from .likelihood import Scorer, importance_weighted, likelihood
from .metrics import METRICS, Measurement, Measurements, Metric, measure, measured_real, measured_samples
from .samples.recognition import agreement, coverage, stacked_coverage

__all__ = [
    "METRICS",
    "Measurement",
    "Measurements",
    "Metric",
    "Scorer",
    "agreement",
    "coverage",
    "evaluate",
    "importance_weighted",
    "likelihood",
    "measure",
    "measured_real",
    "measured_samples",
    "stacked_coverage",
]

CHEAP = ("frechet", "recall", "high_frequency")
"""Metrics that are measured during training, on few samples: quality, coverage and sharpness."""


def evaluate(
    model: Any, data: Data, device: torch.device, seed: int = 0, samples: int = 300, conditional: bool = False
) -> dict[str, float]:
    """Return the cheap metrics that are defined for a model and its data, {name: value}, for curves during training.

    They are the bounds in nats and bits/dim of models with `nll`, on up to 2000 held-out examples; `coverage` of
    mixtures; CHEAP of `measured_samples` (pixels as features, a classifier for digits); `agreement` of digits and of
    their reconstructions; `stacked_coverage`. The caller's random state is restored.

    Arguments:
        model: offers `sample`; `nll` and `reconstruct` where it has them.
        data: the data set that it was trained on.
        device: of the model.
        seed: of all random numbers.
        samples: number drawn; ten times as many of stacked digits, where the floor of the KL is high.
        conditional: draw equally many samples of each label; label_agreement is the share of samples that a classifier
            assigns to their label.
    """
    with own_random_numbers(device, seed):
        held_out = None if data.held_out is None else data.decode(data.held_out[:2000]).to(device)
        numbers: dict[str, float] = {}
        if hasattr(model, "nll") and held_out is not None:
            # Only numbers that change during training; settings and numbers of examples are left out.
            bounds = likelihood(model, held_out, log_scale=data.log_scale)
            numbers = {
                name: v for name, v in bounds.items() if isinstance(v, float) and name.startswith(("nats", "bits"))
            }
        generator = torch.Generator(device).manual_seed(seed)
        if data.modes is not None:
            return numbers | coverage(model.sample(10_000, generator=generator), data.modes)
        if data.name == "stacked-digits":
            samples *= 10
        labels = torch.arange(samples, device=device) % data.classes if conditional else None
        given = {} if labels is None else {"cond": labels}
        x = model.sample(samples, generator=generator, **given)
        if data.x is not None and x.isfinite().all():
            # For other data a classifier would have to be trained first.
            features = "auto" if data.name in ("digits", "stacked-digits") else "pixels"
            measurements = measured_samples(x, data, device, seed=seed, metrics=CHEAP, features=features)
            numbers |= {name: measurement.value for name, measurement in measurements.items()}
        if data.name == "stacked-digits":
            return numbers | stacked_coverage(x)
        if data.name != "digits":
            return numbers
        numbers |= agreement(x, labels)
        if hasattr(model, "reconstruct") and held_out is not None:
            reconstructed = agreement(model.reconstruct(held_out))
            numbers |= {f"reconstruction_{name}": reconstructed[name] for name in ("confidence", "classes")}
        return numbers
