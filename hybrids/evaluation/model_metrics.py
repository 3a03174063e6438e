"""The metrics of a model: latents, likelihood, cost; each is a function of a `Subject`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import Data
from .costs import evaluations, flops_per_sample, parameters, samples_per_second
from .latents import (
    Latents,
    active_units,
    decode,
    encode,
    flat,
    invert,
    is_noise,
    latents_of,
    linear_probe,
    shaped,
    smoothness,
)
from .likelihood import likelihood
from .measurements import Measurement, Unavailable, interval_about, mean_of, proportion_interval
from .samples.features import Features
from .samples.reference import training_examples

__all__ = ["MODEL_METRICS", "Subject"]

EXAMPLES, SEARCHED = 256, 32
"""Held-out examples that are reconstructed: by an encoder in one pass, and by inversion or optimization."""
SEARCH = {"steps": 100, "restarts": 2}
PROBED, PROBED_HELD_OUT, PROBE_SEARCH = 500, 200, {"steps": 100, "restarts": 1}
"""Examples of a linear probe, training and held out, the same for all models; settings of `invert` for it."""
PATHS, SCORED, TIMED, COUNTED = 16, 2000, 256, 16
MOST_INVERSION_STEPS = 50


@dataclass
class Subject:
    """A model under measurement and its data, with the results that several of its metrics share."""

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
        """Whether latents are found by optimization (`invert`)."""
        return not hasattr(self.model, "encode") and is_noise(self.model)

    @property
    def steps(self) -> int | None:
        """Steps of the sampler that is inverted for latents; None for an encoder."""
        return getattr(self.model, "sample_steps", None)

    @cached_property
    def encoded(self) -> tuple[Tensor, Latents]:
        """Held-out examples and their latents, by the encoder, the inverted sampler, or optimization."""
        x = self.held_out(SEARCHED if self.searched or self.steps is not None else EXAMPLES)
        return x, latents_of(self.model, x, **(SEARCH if self.searched else {}))

    @cached_property
    def probed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of training examples, their latents (N, d), and the latents of the first held-out examples."""
        if self.searched and isinstance(self.model.noise(1), tuple):
            raise Unavailable(f"the latents of {type(self.model).__name__} have several parts: they are not probed")
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
        """The result of `likelihood` on up to SCORED held-out examples."""
        try:
            return likelihood(self.model, self.held_out(SCORED), log_scale=self.data.log_scale)
        except (TypeError, ValueError) as error:
            raise Unavailable(str(error)) from error


def _reconstruction(subject: Subject) -> Measurement:
    x, z = subject.encoded
    with torch.no_grad():
        squares = (decode(subject.model, z).double() - x.double()).square().flatten(1).mean(1)
    square = mean_of(squares)
    low, high = max(square.low or 0.0, 0.0), square.high or 0.0
    return Measurement(square.value**0.5, None, low**0.5, high**0.5)


def _linear_probe(subject: Subject) -> Measurement:
    data = subject.data
    if data.labels is None or data.held_out_labels is None:
        raise Unavailable(f"{data.name} has no labels")
    if data.name == "stacked-digits":
        raise Unavailable(f"stacked-digits has 1000 labels, more than the {PROBED} examples of the probe")
    index, z, z_held = subject.probed
    y, y_held = data.labels[index], data.held_out_labels[: len(z_held)]
    accuracy = linear_probe(z, y, z_held, y_held)
    # The accuracy of always predicting the most common label.
    floor = (y_held == y.mode().values).double().mean().item()
    deviation = (floor * (1 - floor) / len(y_held)) ** 0.5
    return Measurement(accuracy, floor, *proportion_interval(accuracy, len(y_held)), deviation)


def _linear_probe_of_factors(subject: Subject) -> Measurement:
    data = subject.data
    if data.factors is None or data.held_out_factors is None:
        raise Unavailable(f"{data.name} has no known factors")
    index, z, z_held = subject.probed
    y, y_held = data.factors[index], data.held_out_factors[: len(z_held)]
    # Labels and angles, which are periodic, are not targets of a linear regression.
    regressed = [i for i, name in enumerate(data.factor_names) if name not in ("kind", "hue", "rotation")]
    return Measurement(linear_probe(z, y[:, regressed], z_held, y_held[:, regressed]), 0.0)


def _smoothness(subject: Subject) -> Measurement:
    _, z = subject.encoded
    all_ = flat(z)
    half = min(PATHS, len(all_) // 2)
    if half < 1:
        raise Unavailable("it needs at least two held-out examples")
    features = subject.features()
    a, b = (shaped(part, z) for part in (all_[:half], all_[half : 2 * half]))
    with torch.no_grad():
        value = smoothness(subject.model, a, b, lambda x: features(x.cpu()))
    return Measurement(value, 1.0)


def _active_units(subject: Subject) -> Measurement:
    return Measurement(float(active_units(subject.model, subject.held_out(SCORED))))


def _bits_per_dim(subject: Subject) -> Measurement:
    estimate = subject.likelihood
    if "bits_per_dim" not in estimate:
        raise Unavailable("the likelihood is a density, not a probability of grey levels: see nats")
    error, freedom = estimate["bits_per_dim_standard_error"], estimate["examples"] - 1
    return interval_about(estimate["bits_per_dim"], error, freedom=freedom)


def _nats(subject: Subject) -> Measurement:
    estimate, density = subject.likelihood, subject.data.density
    error, freedom = estimate["nats_per_dim_standard_error"] * subject.data.dimensions, estimate["examples"] - 1
    entropy = None
    if density is not None:
        entropy = -density.log_prob(density.sample(10_000, torch.Generator().manual_seed(0))).mean().item()
    return interval_about(estimate["nats"], error, entropy, freedom=freedom)


def _samples_per_second(subject: Subject) -> Measurement:
    return Measurement(samples_per_second(subject.model, min(TIMED, subject.samples), subject.device))


def _evaluations(subject: Subject) -> Measurement:
    return Measurement(evaluations(subject.model, COUNTED))


def _flops(subject: Subject) -> Measurement:
    return Measurement(flops_per_sample(subject.model, COUNTED))


def _parameters(subject: Subject) -> Measurement:
    return Measurement(float(parameters(subject.model)))


MODEL_METRICS: dict[str, Callable[[Subject], Measurement]] = {
    "reconstruction": _reconstruction,
    "probe": _linear_probe,
    "probe_factors": _linear_probe_of_factors,
    "smoothness": _smoothness,
    "active_units": _active_units,
    "bits_per_dim": _bits_per_dim,
    "nats": _nats,
    "samples_per_second": _samples_per_second,
    "evaluations": _evaluations,
    "flops_per_sample": _flops,
    "parameters": _parameters,
}
