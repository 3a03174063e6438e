"""The metrics of samples: each a function of a `Bench`, on which samples lie beside real examples."""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ...data import Data
from ..figures import (
    Figure,
    Unavailable,
    about,
    mean_of,
    proportion_interval,
    ratio_of,
    resampled,
    variance_beyond,
)
from .distances import (
    fid_proper,
    frechet,
    frechet_variance,
    kernel,
    kernel_interval,
    kid_proper,
    sliced_wasserstein,
    sliced_wasserstein_of_splits,
    wasserstein,
)
from .features import Features
from .neighbours import nearest, neighbours_of_splits, neighbours_variance
from .recognition import agreement, coverage, stacked_coverage
from .reference import LEAST_SAMPLES, MOST_NEAREST, Reference, reference

__all__ = ["AT_EQUAL_NUMBERS", "OF_SAMPLES", "Bench", "plug_in_kl"]

KERNEL_SUBSETS, KERNEL_SIZE = 20, 1000
LEAST_LOG_DENSITY = -50.0
"""Of one sample, so that a stray one, or one off the checkerboard, does not decide alone."""
WITHIN = 3
"""σ around a mode within which a sample is of high quality, as `coverage` has it."""


class Bench:
    """Samples x (N, *shape), float32 on the CPU, and what several metrics of theirs share.

    Distances are between n samples and n real examples, n = min(N, half the training set); floors are the mean of the
    same over random splits of 2n real examples. Vectors are compared at unit scale, as models see them, where every
    dimension counts alike whatever its unit.
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
        if len(self.x) < LEAST_SAMPLES:
            raise Unavailable(f"it needs at least {LEAST_SAMPLES} samples; got {len(self.x)}")
        return reference(self.data, len(self.x), self._features())

    @property
    def fake(self) -> Tensor:
        """As many samples as there are real examples in a half."""
        return self.x[: self.real.n]

    @cached_property
    def seen(self) -> Tensor:
        return self.real.features(self.fake)

    @cached_property
    def neighbours(self) -> tuple[dict[str, float], dict[str, float], int]:
        """The four metrics, their variances, and the degrees of freedom of these."""
        values = {name: each.mean().item() for name, each in self.real.neighbours(self.seen).items()}
        return values, *neighbours_variance(self.real.seen, self.seen)

    @cached_property
    def modes(self) -> tuple[dict[str, float], int, float]:
        """What is found of the modes, how many there are, and the share of exact samples that counts for one."""
        mixture = self.data.modes
        if mixture is not None:
            inside = torch.special.gammainc(torch.tensor(self.x.shape[1] / 2), torch.tensor(WITHIN**2 / 2)).item()
            return coverage(self.x, mixture), len(mixture.means), inside
        if self.data.name == "stacked-digits" and self.data.shape[0] == 3:
            return stacked_coverage(self.x), 1000, 1.0
        raise Unavailable(f"{self.data.name} has no modes that are known: mixtures and stacked digits do")


def _frechet(bench: Bench) -> Figure:
    """The interval is of what the distance is expected to be at n against n, bias included, both being redrawn."""
    real = bench.real
    floor, spread = real.floor("frechet", lambda: real.over_splits(real.all_seen, frechet))
    variance = variance_beyond(frechet_variance(real.seen, bench.seen), spread**2)
    return about(frechet(real.seen, bench.seen), math.sqrt(variance), floor, spread, least=0.0)


def _kernel(bench: Bench) -> Figure:
    real = bench.real
    # One subset a split. Between equal distributions the deviation falls as 1/n; the value is the mean of many subsets.
    floor, spread = real.floor(
        "kernel", lambda: real.over_splits(real.all_seen, lambda a, b: kernel(a, b, 1, KERNEL_SIZE)[0])
    )
    share = (min(KERNEL_SIZE, real.n) / real.n) ** 2
    spread *= math.sqrt(share + (1 - share) / KERNEL_SUBSETS)
    value, first, second = kernel(real.seen, bench.seen, KERNEL_SUBSETS, KERNEL_SIZE)
    return Figure(value, floor, *kernel_interval(value, first, second), spread)


def _sliced_wasserstein(bench: Bench) -> Figure:
    real = bench.real
    x = real.pixels(real.x)
    floor, spread = real.floor(
        "sliced", lambda: sliced_wasserstein_of_splits(torch.cat([x, real.pixels(real.other)]), real.halves)
    )
    return Figure(sliced_wasserstein(x, real.pixels(bench.fake)), floor, floor_spread=spread)


def _wasserstein(bench: Bench) -> Figure:
    if bench.data.shape != (2,):
        raise Unavailable(f"it is exact in the plane, where few points fill the space; {bench.data.name} is not there")
    real = bench.real
    floor, spread = real.floor("exact", lambda: real.over_splits(torch.cat([real.x, real.other]), wasserstein))
    return Figure(wasserstein(real.x, bench.fake), floor, floor_spread=spread)


def _high_quality(bench: Bench) -> Figure:
    if bench.data.modes is None:
        raise Unavailable(f"{bench.data.name} is no mixture of Gaussians")
    found, _, inside = bench.modes
    share, n = found["high_quality"], len(bench.x)
    return Figure(share, inside, *proportion_interval(share, n), math.sqrt(inside * (1 - inside) / n))


def _log_density(bench: Bench) -> Figure:
    density = bench.data.density
    if density is None:
        raise Unavailable(f"{bench.data.name} has no density that is known")

    def of(x: Tensor) -> Tensor:
        return density.log_prob(x.double()).clamp_min(LEAST_LOG_DENSITY)

    exact = of(density.sample(10_000, torch.Generator().manual_seed(0)))
    return mean_of(of(bench.x), exact.mean().item(), exact.std().item() / len(bench.x) ** 0.5)


def _confidence(bench: Bench) -> Figure:
    names = {"digits": agreement, "stacked-digits": stacked_coverage}
    if bench.data.name not in names or not bench.data.is_image:
        raise Unavailable(f"its classifier reads digits and stacked digits; {bench.data.name} is neither")
    look, floor = names[bench.data.name], None
    if bench.data.held_out is not None:
        floor = look(bench.data.decode(bench.data.held_out[: len(bench.x)]))["confidence"]
    return Figure(look(bench.x)["confidence"], floor)


def _neighbour(name: str) -> Callable[[Bench], Figure]:
    def measured(bench: Bench) -> Figure:
        values, variances, freedom = bench.neighbours
        real, value, variance = bench.real, values[name], variances[name]
        floors = real.known("neighbours", lambda: neighbours_of_splits(real.all_seen, real.halves))
        floor = real.floor(name, lambda: floors[name])
        if name == "density":
            return about(value, math.sqrt(variance), *floor, least=0.0, freedom=freedom)
        # So many independent examples would know it as well; no more than there are.
        n, binomial = float(real.n), value * (1 - value)
        if binomial > 0 and variance > 0:
            n = min(n, binomial / variance)
        return Figure(value, floor[0], *proportion_interval(value, n, freedom), floor[1])

    return measured


def _modes(bench: Bench) -> Figure:
    found, many, inside = bench.modes
    # Each mode is missed by n exact samples with probability (1 - inside/K)ⁿ.
    return Figure(found["modes"], many * (1 - (1 - inside / many) ** len(bench.x)))


def _kl(bench: Bench) -> Figure:
    found, many, _ = bench.modes
    n = len(bench.x)
    return about(found["kl"], found["kl_standard_error"], plug_in_kl(n, many), math.sqrt((many - 1) / 2) / n, least=0.0)


def plug_in_kl(n: int, modes: int) -> float:
    """E KL(histogram of n exact samples ‖ uniform over K modes), nats: K E[X/n log X/n] + log K, X ~ Binomial(n, 1/K).

    About (K - 1)/2n once n is many times K. Miller 1955.
    """
    from scipy.stats import binom

    counts = torch.arange(n + 1, dtype=torch.float64)
    share = counts / n
    chance = torch.as_tensor(binom.pmf(counts.numpy(), n, 1 / modes))
    return modes * (chance * torch.xlogy(share, share)).sum().item() + math.log(modes)


def _nearest_train(bench: Bench) -> Figure:
    real = bench.real
    held_out = real.held_out_distance
    if held_out == 0:
        raise Unavailable(f"the median held-out example of {bench.data.name} is a copy of a training example")
    distances = nearest(real.pixels(bench.x[:MOST_NEAREST]), real.training) / held_out
    return about(distances.median().item(), resampled(distances, lambda d: d.median().item()), 1.0, least=0.0)


def _sharp(name: str) -> Callable[[Bench], Figure]:
    def measured(bench: Bench) -> Figure:
        from . import sharpness

        if not bench.data.is_image or min(bench.data.shape[-2:]) < 3:
            raise Unavailable(f"{bench.data.name} holds no images of at least 3 × 3 pixels")
        look, real = getattr(sharpness, name), bench.real
        usual = real.known(f"{name} of real", lambda: torch.cat([look(real.x), look(real.other)]))
        if usual[: real.n].mean() == 0:
            raise Unavailable(f"real examples of {bench.data.name} have none")
        floor = real.floor(name, lambda: real.over_splits(usual, lambda a, b: (b.mean() / a.mean()).item()))
        return ratio_of(look(bench.x), usual[: real.n], *floor)

    return measured


def _proper(name: str, distance: Callable[..., float]) -> Callable[[Bench], Figure]:
    def measured(bench: Bench) -> Figure:
        if not bench.data.is_image or bench.data.shape[0] not in (1, 3):
            raise Unavailable(f"{bench.data.name} holds no images of one or three channels")
        real = bench.real
        try:
            value = distance(bench.fake, real.x, device=bench.device)
            # One split: each is a pass of Inception over all.
            return Figure(value, real.known(name, lambda: distance(real.other, real.x, device=bench.device)))
        except ValueError as error:
            raise Unavailable(str(error)) from error

    return measured


AT_EQUAL_NUMBERS = {
    "frechet", "kernel", "fid", "kid", "sliced_wasserstein", "wasserstein",
    "precision", "recall", "density", "coverage", "modes", "kl",
}  # fmt: skip
"""Metrics that depend on the number of examples: figures of different numbers of them are not to be compared."""

OF_SAMPLES: dict[str, Callable[[Bench], Figure]] = {
    "frechet": _frechet,
    "kernel": _kernel,
    "fid": _proper("fid", fid_proper),
    "kid": _proper("kid", kid_proper),
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
