"""The metrics of samples; each is a function of a `SampleSet`, samples with the real examples to compare them with."""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..data import Data
from .measurements import (
    Measurement,
    Unavailable,
    bootstrap_deviation,
    interval_about,
    mean_of,
    proportion_interval,
    ratio_of,
    variance_beyond,
)
from .samples.distances import (
    fid,
    frechet,
    frechet_variance,
    kernel,
    kernel_interval,
    kid,
    sliced_wasserstein,
    sliced_wasserstein_of_splits,
    wasserstein,
)
from .samples.features import Features
from .samples.neighbours import nearest, neighbours_of_splits, neighbours_variance
from .samples.recognition import WITHIN, agreement, coverage, stacked_coverage
from .samples.reference import LEAST_SAMPLES, MOST_NEAREST, Reference, reference

__all__ = ["AT_EQUAL_NUMBERS", "SAMPLE_METRICS", "SampleSet", "plug_in_kl"]

KERNEL_SUBSETS, KERNEL_SIZE = 20, 1000
LEAST_LOG_DENSITY = -50.0
"""The least log-density of one sample: a lower one, such as -inf off the checkerboard, would decide the mean alone."""


class SampleSet:
    """Samples x (N, *shape), float32 on the CPU, with the results that several of their metrics share.

    Distances are between n samples and n real examples, n = min(N, half the training set); a floor is the mean of the
    same distance over random splits of 2n real examples. Vectors are compared at unit scale, as models see
    them, so that every dimension counts alike whatever its unit.
    Raises ValueError for samples of another shape, or not finite.
    """

    def __init__(self, x: Tensor, data: Data, features: Callable[[], Features], device: torch.device) -> None:
        if tuple(x.shape[1:]) != tuple(data.shape):
            raise ValueError(f"samples must be {('N', *data.shape)} for {data.name}; got shape {tuple(x.shape)}")
        bad = ~x.flatten(1).isfinite().all(1)
        if bad.any():
            raise ValueError(f"samples must be finite; sample {int(bad.nonzero()[0])} has NaN or infinite values")
        self.x, self.data, self._features, self.device = x.detach().float().cpu(), data, features, device

    @cached_property
    def real(self) -> Reference:
        """The real examples. Raises Unavailable for fewer than LEAST_SAMPLES samples."""
        if len(self.x) < LEAST_SAMPLES:
            raise Unavailable(f"it needs at least {LEAST_SAMPLES} samples; got {len(self.x)}")
        return reference(self.data, len(self.x), self._features())

    @property
    def fake(self) -> Tensor:
        """The first n samples."""
        return self.x[: self.real.n]

    @cached_property
    def embeddings(self) -> Tensor:
        """The features of the first n samples (n, d)."""
        return self.real.features(self.fake)

    @cached_property
    def neighbours(self) -> tuple[dict[str, float], dict[str, float], int]:
        """The four metrics of neighbours, their variances, and the degrees of freedom of these."""
        values = {name: each.mean().item() for name, each in self.real.neighbours(self.embeddings).items()}
        return values, *neighbours_variance(self.real.embeddings, self.embeddings)

    @cached_property
    def modes(self) -> tuple[dict[str, float], int, float]:
        """Coverage of the modes, the number of modes, and the share of exact samples that are within a mode."""
        mixture = self.data.modes
        if mixture is not None:
            inside = torch.special.gammainc(torch.tensor(self.x.shape[1] / 2), torch.tensor(WITHIN**2 / 2)).item()
            return coverage(self.x, mixture), len(mixture.means), inside
        if self.data.name == "stacked-digits" and self.data.shape[0] == 3:
            return stacked_coverage(self.x), 1000, 1.0
        raise Unavailable(f"{self.data.name} has no known modes: mixtures and stacked-digits have")


def _frechet(samples: SampleSet) -> Measurement:
    """The interval is that of the expected distance at n against n examples, bias included, both sets being random."""
    real = samples.real
    floor, spread = real.floor("frechet", lambda: real.over_splits(real.all_embeddings, frechet))
    variance = variance_beyond(frechet_variance(real.embeddings, samples.embeddings), spread**2)
    return interval_about(frechet(real.embeddings, samples.embeddings), math.sqrt(variance), floor, spread, least=0.0)


def _kernel(samples: SampleSet) -> Measurement:
    real = samples.real
    # The floor uses one subset a split, the value KERNEL_SUBSETS; its deviation between equal distributions is O(1/n).
    floor, spread = real.floor(
        "kernel", lambda: real.over_splits(real.all_embeddings, lambda a, b: kernel(a, b, 1, KERNEL_SIZE)[0])
    )
    share = (min(KERNEL_SIZE, real.n) / real.n) ** 2
    spread *= math.sqrt(share + (1 - share) / KERNEL_SUBSETS)
    value, first, second = kernel(real.embeddings, samples.embeddings, KERNEL_SUBSETS, KERNEL_SIZE)
    return Measurement(value, floor, *kernel_interval(value, first, second), spread)


def _sliced_wasserstein(samples: SampleSet) -> Measurement:
    real = samples.real
    x = real.pixels(real.x)
    floor, spread = real.floor(
        "sliced", lambda: sliced_wasserstein_of_splits(torch.cat([x, real.pixels(real.other)]), real.halves)
    )
    return Measurement(sliced_wasserstein(x, real.pixels(samples.fake)), floor, floor_spread=spread)


def _wasserstein(samples: SampleSet) -> Measurement:
    if samples.data.shape != (2,):
        raise Unavailable(f"it needs points of the plane; {samples.data.name} has shape {samples.data.shape}")
    real = samples.real
    floor, spread = real.floor("exact", lambda: real.over_splits(torch.cat([real.x, real.other]), wasserstein))
    return Measurement(wasserstein(real.x, samples.fake), floor, floor_spread=spread)


def _high_quality(samples: SampleSet) -> Measurement:
    if samples.data.modes is None:
        raise Unavailable(f"{samples.data.name} is not a mixture of Gaussians")
    modes, _, inside = samples.modes
    share, n = modes["high_quality"], len(samples.x)
    return Measurement(share, inside, *proportion_interval(share, n), math.sqrt(inside * (1 - inside) / n))


def _log_density(samples: SampleSet) -> Measurement:
    density = samples.data.density
    if density is None:
        raise Unavailable(f"{samples.data.name} has no known density")

    def of(x: Tensor) -> Tensor:
        return density.log_prob(x.double()).clamp_min(LEAST_LOG_DENSITY)

    exact = of(density.sample(10_000, torch.Generator().manual_seed(0)))
    return mean_of(of(samples.x), exact.mean().item(), exact.std().item() / len(samples.x) ** 0.5)


def _confidence(samples: SampleSet) -> Measurement:
    names = {"digits": agreement, "stacked-digits": stacked_coverage}
    if samples.data.name not in names or not samples.data.is_image:
        raise Unavailable(f"its classifier is of digits and stacked-digits; the data are {samples.data.name}")
    statistics, floor = names[samples.data.name], None
    if samples.data.held_out is not None:
        floor = statistics(samples.data.decode(samples.data.held_out[: len(samples.x)]))["confidence"]
    return Measurement(statistics(samples.x)["confidence"], floor)


def _neighbour(name: str) -> Callable[[SampleSet], Measurement]:
    def measured(samples: SampleSet) -> Measurement:
        values, variances, freedom = samples.neighbours
        real, value, variance = samples.real, values[name], variances[name]
        floors = real.cached("neighbours", lambda: neighbours_of_splits(real.all_embeddings, real.halves))
        floor = real.floor(name, lambda: floors[name])
        if name == "density":
            return interval_about(value, math.sqrt(variance), *floor, least=0.0, freedom=freedom)
        # The effective number of independent examples, at most n.
        n, binomial = float(real.n), value * (1 - value)
        if binomial > 0 and variance > 0:
            n = min(n, binomial / variance)
        return Measurement(value, floor[0], *proportion_interval(value, n, freedom), floor[1])

    return measured


def _modes(samples: SampleSet) -> Measurement:
    modes, many, inside = samples.modes
    # Each mode is missed by n exact samples with probability (1 - inside/K)ⁿ.
    return Measurement(modes["modes"], many * (1 - (1 - inside / many) ** len(samples.x)))


def _kl(samples: SampleSet) -> Measurement:
    modes, many, _ = samples.modes
    n = len(samples.x)
    return interval_about(
        modes["kl"], modes["kl_standard_error"], plug_in_kl(n, many), math.sqrt((many - 1) / 2) / n, least=0.0
    )


def plug_in_kl(n: int, modes: int) -> float:
    """Return the expectation of KL(histogram of n exact samples ‖ uniform over K modes) in nats.

    It is K E[X/n log X/n] + log K, X ~ Binomial(n, 1/K), about (K - 1)/2n for n much larger than K. Miller 1955.
    """
    from scipy.stats import binom

    counts = torch.arange(n + 1, dtype=torch.float64)
    share = counts / n
    chance = torch.as_tensor(binom.pmf(counts.numpy(), n, 1 / modes))
    return modes * (chance * torch.xlogy(share, share)).sum().item() + math.log(modes)


def _nearest_train(samples: SampleSet) -> Measurement:
    real = samples.real
    held_out = real.held_out_distance
    if held_out == 0:
        raise Unavailable(f"the median held-out example of {samples.data.name} is a copy of a training example")
    distances = nearest(real.pixels(samples.x[:MOST_NEAREST]), real.training) / held_out
    return interval_about(
        distances.median().item(), bootstrap_deviation(distances, lambda d: d.median().item()), 1.0, least=0.0
    )


def _sharp(name: str) -> Callable[[SampleSet], Measurement]:
    def measured(samples: SampleSet) -> Measurement:
        from .samples import sharpness

        if not samples.data.is_image or min(samples.data.shape[-2:]) < 3:
            raise Unavailable(
                f"it needs images of at least 3 × 3 pixels; {samples.data.name} has shape {samples.data.shape}"
            )
        function, real = getattr(sharpness, name), samples.real
        of_real = real.cached(f"{name} of real", lambda: torch.cat([function(real.x), function(real.other)]))
        if of_real[: real.n].mean() == 0:
            raise Unavailable(f"it is 0 for real examples of {samples.data.name}, so the ratio to it is not defined")
        floor = real.floor(name, lambda: real.over_splits(of_real, lambda a, b: (b.mean() / a.mean()).item()))
        return ratio_of(function(samples.x), of_real[: real.n], *floor)

    return measured


def _inception(name: str, distance: Callable[..., float]) -> Callable[[SampleSet], Measurement]:
    def measured(samples: SampleSet) -> Measurement:
        if not samples.data.is_image or samples.data.shape[0] not in (1, 3):
            raise Unavailable(
                f"it needs images of one or three channels; {samples.data.name} has shape {samples.data.shape}"
            )
        real = samples.real
        try:
            value = distance(samples.fake, real.x, device=samples.device)
            # One split only: each takes a pass of Inception over all examples.
            return Measurement(value, real.cached(name, lambda: distance(real.other, real.x, device=samples.device)))
        except ValueError as error:
            raise Unavailable(str(error)) from error

    return measured


AT_EQUAL_NUMBERS = {
    "frechet", "kernel", "fid", "kid", "sliced_wasserstein", "wasserstein",
    "precision", "recall", "density", "coverage", "modes", "kl",
}  # fmt: skip
"""Metrics that depend on the number of examples, and are comparable at equal numbers only."""

SAMPLE_METRICS: dict[str, Callable[[SampleSet], Measurement]] = {
    "frechet": _frechet,
    "kernel": _kernel,
    "fid": _inception("fid", fid),
    "kid": _inception("kid", kid),
    "sliced_wasserstein": _sliced_wasserstein,
    "wasserstein": _wasserstein,
    "high_quality": _high_quality,
    "log_density": _log_density,
    "confidence": _confidence,
    **{name: _neighbour(name) for name in ("precision", "recall", "density", "coverage")},
    "modes": _modes,
    "kl": _kl,
    "nearest_train": _nearest_train,
    **{name: _sharp(name) for name in ("high_frequency", "laplacian")},
}
