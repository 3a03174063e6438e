"""Numbers that say how good a model is: bits/dim, mode coverage, what a classifier sees."""

from typing import Any

import torch

from ..data import Data
from ..modes import own_random_numbers
from .likelihood import Scorer, importance_weighted, likelihood
from .metrics import METRICS, Figure, Figures, Metric, measure, measured_real, measured_samples
from .samples.recognition import agreement, coverage, stacked_coverage

__all__ = [
    "METRICS",
    "Figure",
    "Figures",
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
"""Metrics that are measured while a run trains: quality, coverage and sharpness of its few samples."""


def evaluate(
    model: Any, data: Data, device: torch.device, seed: int = 0, samples: int = 300, conditional: bool = False
) -> dict[str, float]:
    """All the cheap numbers that make sense for a model and its data; the run's own random numbers stay untouched.

    conditional: samples are of all labels alike, and label_agreement is the share that is seen as what was asked for.
    Of stacked digits ten times as many samples are drawn: with few of them KL is all floor. frechet, recall and
    high_frequency are those of `measure` with as many samples, in pixels but for digits.
    """
    with own_random_numbers(device, seed):
        held_out = None if data.held_out is None else data.decode(data.held_out[:2000]).to(device)
        found: dict[str, float] = {}
        if hasattr(model, "nll") and held_out is not None:
            # Curves are of what changes: not of the grid, nor of how many examples there are.
            said = likelihood(model, held_out, log_scale=data.log_scale)
            found = {name: v for name, v in said.items() if isinstance(v, float) and name.startswith(("nats", "bits"))}
        generator = torch.Generator(device).manual_seed(seed)
        if data.modes is not None:
            return found | coverage(model.sample(10_000, generator=generator), data.modes)
        if data.name == "stacked-digits":
            samples *= 10
        labels = torch.arange(samples, device=device) % data.classes if conditional else None
        given = {} if labels is None else {"cond": labels}
        x = model.sample(samples, generator=generator, **given)
        if data.x is not None and x.isfinite().all():
            # Other data's classifier would have to be trained first.
            features = "auto" if data.name in ("digits", "stacked-digits") else "pixels"
            figures = measured_samples(x, data, device, seed=seed, metrics=CHEAP, features=features)
            found |= {name: figure.value for name, figure in figures.items()}
        if data.name == "stacked-digits":
            return found | stacked_coverage(x)
        if data.name != "digits":
            return found
        found |= agreement(x, labels)
        if hasattr(model, "reconstruct") and held_out is not None:
            seen = agreement(model.reconstruct(held_out))
            found |= {f"reconstruction_{name}": seen[name] for name in ("confidence", "classes")}
        return found
