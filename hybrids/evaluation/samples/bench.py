"""The metrics of samples: each a function of a `Bench`, on which samples lie beside real examples."""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ...data import Data, Mixture
from ..figures import Figure, Unavailable, about, mean_of, resampled
from .distances import fid_proper, frechet, kernel, kid_proper, sliced_wasserstein, wasserstein
from .features import Features
from .neighbours import nearest
from .recognition import agreement, coverage, stacked_coverage
from .reference import LEAST_SAMPLES, MOST_NEAREST, Reference, reference

__all__ = ["OF_SAMPLES", "Bench", "plug_in_kl"]

KERNEL_SUBSETS = 20
LEAST_LOG_DENSITY = -50.0
"""Of one sample, so that a stray one, or one off the checkerboard, does not decide alone."""
WITHIN = 3
"""σ around a mode within which a sample is of high quality, as `coverage` has it."""


class Bench:
    """Samples x (N, *shape), float32 on the CPU, and what several metrics of theirs share.

    Distances are between n samples and n real examples, n = min(N, half the training set), as floors are.
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
    def neighbours(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What each example contributes, and the floors."""
        real = self.real
        if "neighbours" not in real.kept:
            real.kept["neighbours"] = {k: v.mean().item() for k, v in real.neighbours(real.other_seen).items()}
        return real.neighbours(self.seen), real.kept["neighbours"]

    @cached_property
    def modes(self) -> tuple[dict[str, float], int, float]:
        """What is found of the modes, how many there are, and the share of exact samples that counts for one."""
        density = self.data.density
        if isinstance(density, Mixture):
            inside = torch.special.gammainc(torch.tensor(self.x.shape[1] / 2), torch.tensor(WITHIN**2 / 2)).item()
            return coverage(self.x, density), len(density.means), inside
        if self.data.name == "stacked-digits" and self.data.shape[0] == 3:
            return stacked_coverage(self.x), 1000, 1.0
        raise Unavailable(f"{self.data.name} has no modes that are known: mixtures and stacked digits do")


def _frechet(bench: Bench) -> Figure:
    real = bench.real
    floor = real.floor("frechet", lambda: frechet(real.seen, real.other_seen))
    deviation = resampled(bench.seen, lambda z: frechet(real.seen, z))
    return about(frechet(real.seen, bench.seen), deviation, floor, least=0.0)


def _kernel(bench: Bench) -> Figure:
    real = bench.real
    floor = real.floor("kernel", lambda: kernel(real.seen, real.other_seen, KERNEL_SUBSETS)[0])
    value, deviation = kernel(real.seen, bench.seen, KERNEL_SUBSETS)
    # Subsets of the whole deviate by nothing: that of small ones falls with the root of the size at least.
    if (size := min(1000, real.n)) == real.n:
        return Figure(value, floor)
    return about(value, deviation * math.sqrt(size / real.n), floor)


def _sliced_wasserstein(bench: Bench) -> Figure:
    real = bench.real
    x, other = real.pixels(real.x), real.pixels(real.other)
    return Figure(
        sliced_wasserstein(x, real.pixels(bench.fake)), real.floor("sliced", lambda: sliced_wasserstein(x, other))
    )


def _wasserstein(bench: Bench) -> Figure:
    if bench.data.shape != (2,):
        raise Unavailable(f"it is exact in the plane, where few points fill the space; {bench.data.name} is not there")
    real = bench.real
    return Figure(wasserstein(real.x, bench.fake), real.floor("exact", lambda: wasserstein(real.x, real.other)))


def _high_quality(bench: Bench) -> Figure:
    if not isinstance(bench.data.density, Mixture):
        raise Unavailable(f"{bench.data.name} is no mixture of Gaussians")
    found, _, inside = bench.modes
    share = found["high_quality"]
    return about(share, math.sqrt(share * (1 - share) / len(bench.x)), inside, least=0.0)


def _log_density(bench: Bench) -> Figure:
    density = bench.data.density
    if density is None:
        raise Unavailable(f"{bench.data.name} has no density that is known")

    def of(x: Tensor) -> Tensor:
        return density.log_prob(x.double()).clamp_min(LEAST_LOG_DENSITY)

    exact = of(density.sample(10_000, torch.Generator().manual_seed(0)))
    return mean_of(of(bench.x), exact.mean().item())


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
        values, floors = bench.neighbours
        return mean_of(values[name], floors[name])

    return measured


def _modes(bench: Bench) -> Figure:
    found, many, inside = bench.modes
    # Each mode is missed by n exact samples with probability (1 - inside/K)ⁿ.
    return Figure(found["modes"], many * (1 - (1 - inside / many) ** len(bench.x)))


def _kl(bench: Bench) -> Figure:
    found, many, _ = bench.modes
    return Figure(found["kl"], plug_in_kl(len(bench.x), many))


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
        usual = real.floor(f"{name} of real", lambda: look(real.x).mean().item())
        if usual == 0:
            raise Unavailable(f"real examples of {bench.data.name} have none")
        return mean_of(look(bench.x), real.floor(name, lambda: look(real.other).mean().item() / usual), 1 / usual)

    return measured


def _proper(name: str, distance: Callable[..., float]) -> Callable[[Bench], Figure]:
    def measured(bench: Bench) -> Figure:
        if not bench.data.is_image or bench.data.shape[0] not in (1, 3):
            raise Unavailable(f"{bench.data.name} holds no images of one or three channels")
        real = bench.real
        try:
            value = distance(bench.fake, real.x, device=bench.device)
            return Figure(value, real.floor(name, lambda: distance(real.other, real.x, device=bench.device)))
        except ValueError as error:
            raise Unavailable(str(error)) from error

    return measured


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
