"""The metrics of a model itself: latents, likelihood, cost; each a function of a `Subject`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import Data
from .costs import evaluations, flops_per_sample, parameters, rate
from .figures import Figure, Unavailable, mean_of, proportion_interval
from .latents import (
    Latents,
    active_units,
    decode,
    encode,
    flat,
    invert,
    is_noise,
    latents,
    probe,
    shaped,
    smoothness,
)
from .likelihood import likelihood
from .samples.features import Features
from .samples.reference import training_examples

__all__ = ["OF_MODELS", "Subject"]

EXAMPLES, SEARCHED = 256, 32
"""Held-out examples that are reconstructed: by an encoder in one pass, and by an inversion or a search."""
SEARCH = {"steps": 100, "restarts": 2}
PROBED, PROBED_HELD_OUT, PROBE_SEARCH = 500, 200, {"steps": 100, "restarts": 1}
"""Of a linear probe: the same numbers for all models, so that none has more to learn from."""
PATHS, SCORED, TIMED, COUNTED = 16, 2000, 256, 16
MOST_INVERSION_STEPS = 50


@dataclass
class Subject:
    """A model under measurement, its data, and what several of its metrics share."""

    model: Any
    data: Data
    device: torch.device
    features: Callable[[], Features]
    samples: int

    def held_out(self, n: int) -> Tensor:
        """Return the first n held-out examples, on the model's device."""
        if self.data.held_out is None or len(self.data.held_out) < 2:
            raise Unavailable(f"{self.data.name} has no held-out examples")
        return self.data.decode(self.data.held_out[:n]).to(self.device)

    @property
    def searched(self) -> bool:
        """Whether latents have to be searched for."""
        return not hasattr(self.model, "encode") and is_noise(self.model)

    @property
    def steps(self) -> int | None:
        """Steps of a sampler by which latents are found; None where an encoder finds them in one pass."""
        return getattr(self.model, "sample_steps", None)

    @cached_property
    def encoded(self) -> tuple[Tensor, Latents]:
        """Held-out examples and their latents: of the encoder, the inverted chain, or a search."""
        x = self.held_out(SEARCHED if self.searched or self.steps is not None else EXAMPLES)
        return x, latents(self.model, x, **(SEARCH if self.searched else {}))

    @cached_property
    def probed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of training examples, their latents (N, d), and those of the first held-out ones."""
        if self.searched and isinstance(self.model.noise(1), tuple):
            raise Unavailable(f"the noise of {type(self.model).__name__} has several parts, which are not probed")
        index = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))[:PROBED]
        parts = [training_examples(self.data, index).to(self.device), self.held_out(PROBED_HELD_OUT)]
        how: dict[str, Any] = PROBE_SEARCH if self.searched else {}
        if self.steps is not None and "steps" in inspect.signature(self.model.encode).parameters:
            how = {"steps": min(self.steps, MOST_INVERSION_STEPS)}
        find = invert if self.searched else encode
        z, z_held = (flat(find(self.model, x, **how)).cpu() for x in parts)
        return index, z, z_held

    @cached_property
    def likelihood(self) -> dict[str, Any]:
        try:
            return likelihood(self.model, self.held_out(SCORED), log_scale=self.data.log_scale)
        except (TypeError, ValueError) as error:
            raise Unavailable(str(error)) from error


def _reconstruction(subject: Subject) -> Figure:
    x, z = subject.encoded
    with torch.no_grad():
        squares = (decode(subject.model, z).double() - x.double()).square().flatten(1).mean(1)
    found = mean_of(squares)
    low, high = max(found.low or 0.0, 0.0), found.high or 0.0
    return Figure(found.value**0.5, None, low**0.5, high**0.5)


def _probe(subject: Subject) -> Figure:
    data = subject.data
    if data.labels is None or data.held_out_labels is None:
        raise Unavailable(f"{data.name} has no labels")
    if data.name == "stacked-digits":
        raise Unavailable("stacked-digits has 1000 labels, of which so few examples are probed")
    index, z, z_held = subject.probed
    y, y_held = data.labels[index], data.held_out_labels[: len(z_held)]
    share = probe(z, y, z_held, y_held)
    # Guessing the most common label.
    guess = (y_held == y.mode().values).double().mean().item()
    return Figure(share, guess, *proportion_interval(share, len(y_held)), (guess * (1 - guess) / len(y_held)) ** 0.5)


def _probe_factors(subject: Subject) -> Figure:
    data = subject.data
    if data.factors is None or data.held_out_factors is None:
        raise Unavailable(f"{data.name} has no factors that are known")
    index, z, z_held = subject.probed
    y, y_held = data.factors[index], data.held_out_factors[: len(z_held)]
    # Labels, and angles, whose ends meet, are no numbers to regress on.
    kept = [i for i, name in enumerate(data.factor_names) if name not in ("kind", "hue", "rotation")]
    return Figure(probe(z, y[:, kept], z_held, y_held[:, kept]), 0.0)


def _smoothness(subject: Subject) -> Figure:
    _, z = subject.encoded
    all_ = flat(z)
    half = min(PATHS, len(all_) // 2)
    if half < 1:
        raise Unavailable("it needs two held-out examples")
    features = subject.features()
    a, b = (shaped(part, z) for part in (all_[:half], all_[half : 2 * half]))
    with torch.no_grad():
        value = smoothness(subject.model, a, b, lambda x: features(x.cpu()))
    return Figure(value, 1.0)


def _active_units(subject: Subject) -> Figure:
    return Figure(float(active_units(subject.model, subject.held_out(SCORED))))


def _bits_per_dim(subject: Subject) -> Figure:
    found = subject.likelihood
    if "bits_per_dim" not in found:
        raise Unavailable(f"the likelihood is a density, not of grey levels; see nats ({subject.data.name})")
    value, error = found["bits_per_dim"], found["bits_per_dim_standard_error"]
    return Figure(value, None, value - 1.96 * error, value + 1.96 * error)


def _nats(subject: Subject) -> Figure:
    found, density = subject.likelihood, subject.data.density
    value, error = found["nats"], found["nats_per_dim_standard_error"] * subject.data.dimensions
    entropy = None
    if density is not None:
        entropy = -density.log_prob(density.sample(10_000, torch.Generator().manual_seed(0))).mean().item()
    return Figure(value, entropy, value - 1.96 * error, value + 1.96 * error)


def _samples_per_second(subject: Subject) -> Figure:
    return Figure(rate(subject.model, min(TIMED, subject.samples), subject.device))


def _evaluations(subject: Subject) -> Figure:
    return Figure(evaluations(subject.model, COUNTED))


def _flops(subject: Subject) -> Figure:
    return Figure(flops_per_sample(subject.model, COUNTED))


def _parameters(subject: Subject) -> Figure:
    return Figure(float(parameters(subject.model)))


OF_MODELS: dict[str, Callable[[Subject], Figure]] = {
    "reconstruction": _reconstruction,
    "probe": _probe,
    "probe_factors": _probe_factors,
    "smoothness": _smoothness,
    "active_units": _active_units,
    "bits_per_dim": _bits_per_dim,
    "nats": _nats,
    "samples_per_second": _samples_per_second,
    "evaluations": _evaluations,
    "flops_per_sample": _flops,
    "parameters": _parameters,
}
