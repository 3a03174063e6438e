"""The metrics of a model itself: latents, likelihood, cost; each a function of a `Subject`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import Data
from .figures import Figure, Unavailable, mean_of
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
        """The first n held-out examples, on the model's device."""
        if self.data.held_out is None or len(self.data.held_out) < 2:
            raise Unavailable(f"{self.data.name} has no held-out examples")
        return self.data.decode(self.data.held_out[:n]).to(self.device)

    @cached_property
    def encoded(self) -> tuple[Tensor, Tensor]:
        """Held-out examples and their latents: of the encoder, the inverted chain, or a search."""
        from ..models import Diffusion
        from .latents import control

        searched = self.searched
        x = self.held_out(SEARCHED if searched or isinstance(self.model, Diffusion) else EXAMPLES)
        return x, control.latents(self.model, x, **(SEARCH if searched else {}))

    @property
    def searched(self) -> bool:
        """Whether latents have to be searched for. Raises Unavailable for a model whose latents are not known."""
        from .latents.control import encode

        try:
            return encode(self.model, self.held_out(2)) is None
        except TypeError as error:
            raise Unavailable(str(error)) from error

    @cached_property
    def probed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of training examples, their latents, and those of the first held-out ones."""
        from ..models import AdversarialDiffusion, Diffusion
        from .latents import control

        if isinstance(self.model, AdversarialDiffusion):
            raise Unavailable("all the noise of an AdversarialDiffusion's chain is more numbers than an example has")
        index = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))[:PROBED]
        parts = [training_examples(self.data, index).to(self.device), self.held_out(PROBED_HELD_OUT)]
        searched = self.searched
        steps = min(self.model.sample_steps, MOST_INVERSION_STEPS) if isinstance(self.model, Diffusion) else None
        z, z_held = (
            control.invert(self.model, x, **PROBE_SEARCH) if searched else control.encode(self.model, x, steps)
            for x in parts
        )
        assert z is not None and z_held is not None
        return index, z.cpu(), z_held.cpu()

    @cached_property
    def likelihood(self) -> dict[str, Any]:
        from .likelihood import likelihood

        try:
            return likelihood(self.model, self.held_out(SCORED))
        except (TypeError, ValueError) as error:
            raise Unavailable(str(error)) from error


def _reconstruction(subject: Subject) -> Figure:
    from .latents import control

    x, z = subject.encoded
    with torch.no_grad():
        squares = (control.decode(subject.model, z).double() - x.double()).square().flatten(1).mean(1)
    found = mean_of(squares)
    low, high = max(found.low or 0.0, 0.0), found.high or 0.0
    return Figure(found.value**0.5, None, low**0.5, high**0.5)


def _probe(subject: Subject) -> Figure:
    from .latents.control import probe

    data = subject.data
    if data.labels is None or data.held_out_labels is None:
        raise Unavailable(f"{data.name} has no labels")
    if data.name == "stacked-digits":
        raise Unavailable("stacked-digits has 1000 labels, of which so few examples are probed")
    index, z, z_held = subject.probed
    y, y_held = data.labels[index], data.held_out_labels[: len(z_held)]
    share = probe(z, y, z_held, y_held)
    error = (share * (1 - share) / len(y_held)) ** 0.5
    # Guessing the most common label.
    guess = (y_held == y.mode().values).double().mean().item()
    return Figure(share, guess, max(share - 1.96 * error, 0.0), min(share + 1.96 * error, 1.0))


def _probe_factors(subject: Subject) -> Figure:
    from .latents.control import probe

    data = subject.data
    if data.factors is None or data.held_out_factors is None:
        raise Unavailable(f"{data.name} has no factors that are known")
    index, z, z_held = subject.probed
    y, y_held = data.factors[index], data.held_out_factors[: len(z_held)]
    # Labels, and angles, whose ends meet, are no numbers to regress on.
    kept = [i for i, name in enumerate(data.factor_names) if name not in ("kind", "hue", "rotation")]
    return Figure(probe(z, y[:, kept], z_held, y_held[:, kept]), 0.0)


def _smoothness(subject: Subject) -> Figure:
    from .latents import control

    _, z = subject.encoded
    half = min(PATHS, len(z) // 2)
    if half < 1:
        raise Unavailable("it needs two held-out examples")
    seen = subject.features()
    with torch.no_grad():
        value = control.smoothness(subject.model, z[:half], z[half : 2 * half], lambda x: seen(x.cpu()))
    return Figure(value, 1.0)


def _active_units(subject: Subject) -> Figure:
    from .latents.control import active_units

    found = active_units(subject.model, subject.held_out(SCORED))
    if found is None:
        raise Unavailable(f"a {type(subject.model).__name__} has no learned q(z|x)")
    return Figure(float(found))


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
    from .costs import rate

    return Figure(rate(subject.model, min(TIMED, subject.samples), subject.device))


def _cost(name: str, **n: int) -> Callable[[Subject], Figure]:
    def measured(subject: Subject) -> Figure:
        from . import costs

        try:
            return Figure(float(getattr(costs, name)(subject.model, **n)))
        except TypeError as error:
            raise Unavailable(str(error)) from error

    return measured


OF_MODELS: dict[str, Callable[[Subject], Figure]] = {
    "reconstruction": _reconstruction,
    "probe": _probe,
    "probe_factors": _probe_factors,
    "smoothness": _smoothness,
    "active_units": _active_units,
    "bits_per_dim": _bits_per_dim,
    "nats": _nats,
    "samples_per_second": _samples_per_second,
    "evaluations": _cost("evaluations", n=COUNTED),
    "flops_per_sample": _cost("flops_per_sample", n=COUNTED),
    "parameters": _cost("parameters"),
}
