"""Every number of a comparison, what it says, and one call that measures them all."""

import difflib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache as once
from typing import Any

import torch
from torch import Tensor

from ..data import Data
from ..modes import evaluating, own_random_numbers
from .figures import Figure, Unavailable
from .model_metrics import OF_MODELS, Subject
from .samples.bench import OF_SAMPLES, Bench
from .samples.features import features_for
from .samples.reference import LEAST_SAMPLES, training_examples

__all__ = ["LEAST_SAMPLES", "METRICS", "Figure", "Metric", "draw", "measure", "measured_real", "measured_samples"]

ROWS = 500
"""Samples drawn at once."""
BY_NAME = {"fid", "kid"}
"""Metrics that are measured only where they are asked for: they need a package and weights of others."""


@dataclass(frozen=True)
class Metric:
    """A number of the report.

    Arguments: axis, one of quality, coverage, sharpness, control, likelihood, speed; better: lower, higher, real
    (nearest to what real data has) or neither (told only); unit; says: what it is, and its source.
    """

    name: str
    axis: str
    better: str
    unit: str
    says: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("frechet", "quality", "lower", "", "Fréchet distance of means and covariances in the feature space "
               "(a classifier of this data where it has labels, else pixels or points; Heusel 2017, 1706.08500)."),
        Metric("kernel", "quality", "lower", "", "Unbiased squared MMD under a cubic kernel in the feature space "
               "(Bińkowski 2018, 1801.01401)."),
        Metric("fid", "quality", "lower", "", "Fréchet Inception distance by torch-fidelity (Heusel 2017, "
               "1706.08500)."),
        Metric("kid", "quality", "lower", "", "Kernel Inception distance by torch-fidelity (Bińkowski 2018, "
               "1801.01401)."),
        Metric("sliced_wasserstein", "quality", "lower", "", "Root mean square of 2-Wasserstein distances along 256 "
               "fixed directions of pixels or points (Bonneel 2015)."),
        Metric("wasserstein", "quality", "lower", "", "2-Wasserstein distance of up to 2000 points of the plane, by "
               "the best pairing (Kuhn 1955)."),
        Metric("high_quality", "quality", "higher", "", "Share of samples within 3σ of a mode of the mixture (Lin "
               "2017, 1712.04086)."),
        Metric("log_density", "quality", "real", "nats", "Mean exact log p(x) of samples under the data's own density, "
               "each at least -50; real is minus the entropy."),
        Metric("confidence", "quality", "real", "", "Mean largest probability that a classifier of real digits gives."),
        Metric("precision", "quality", "higher", "", "Share of samples nearer to a real example than its 3rd nearest "
               "real one is, in the feature space (Kynkäänniemi 2019, 1904.06991)."),
        Metric("density", "quality", "real", "", "How many real examples' balls, to their 5th nearest, a sample lies "
               "in, over 5 (Naeem 2020, 2002.09797)."),
        Metric("recall", "coverage", "higher", "", "Share of real examples nearer to a sample than its 3rd nearest "
               "sample is, in the feature space (Kynkäänniemi 2019, 1904.06991)."),
        Metric("coverage", "coverage", "higher", "", "Share of real examples with a sample nearer than their 5th "
               "nearest real one (Naeem 2020, 2002.09797)."),
        Metric("modes", "coverage", "higher", "", "Modes with a sample; the floor is what as many exact samples find "
               "(Metz 2016, 1611.02163)."),
        Metric("kl", "coverage", "lower", "nats", "KL of the samples' histogram over modes from the even one; the "
               "floor is the plug-in bias of as many exact samples (Metz 2016, 1611.02163)."),
        Metric("nearest_train", "coverage", "real", "", "Median distance, in pixels, of samples to their nearest "
               "training example, over that of held-out examples: far below 1 is memorization."),
        Metric("high_frequency", "sharpness", "real", "", "Share of the power spectrum beyond half the Nyquist "
               "frequency, over that of real images (Durall 2020, 2003.01826)."),
        Metric("laplacian", "sharpness", "real", "", "Variance of the Laplacian, over that of real images "
               "(Pech-Pacheco 2000)."),
        Metric("reconstruction", "control", "lower", "", "Root mean square error of held-out examples by way of their "
               "latents; of models without encoder by inversion (Song 2020, 2010.02502) or search (Zhu 2016)."),
        Metric("probe", "control", "higher", "", "Held-out accuracy of a linear model of latents on labels, 500 "
               "examples; the floor is guessing (Alain & Bengio 2016, 1610.01644)."),
        Metric("probe_factors", "control", "higher", "", "Held-out R² of a linear model of latents on the factors "
               "that examples were made from, such as place and size."),
        Metric("smoothness", "control", "lower", "", "Longest step over mean step, in the feature space, of paths of "
               "16 between latents of two examples; 1 is even (after Karras 2018, 1812.04948)."),
        Metric("active_units", "control", "neither", "", "Latent dimensions whose posterior mean varies over examples "
               "(Burda 2015, 1509.00519)."),
        Metric("bits_per_dim", "likelihood", "lower", "bits/dim", "Bound on -log2 p(x) of held-out examples over grey "
               "levels, a dimension."),
        Metric("nats", "likelihood", "lower", "nats", "Bound on -log p(x) of held-out examples; the floor is the "
               "entropy, where it is known."),
        Metric("samples_per_second", "speed", "higher", "1/s", "Samples a second, drawn 256 at once."),
        Metric("evaluations", "speed", "lower", "", "Network evaluations a sample."),
        Metric("flops_per_sample", "speed", "lower", "", "FLOPs a sample, a multiplication and an addition being two."),
        Metric("parameters", "speed", "neither", "", "Numbers that the model's networks are made of."),
    )
}  # fmt: skip
"""All that `measure` can tell, in the report's order. What needs several runs, or a log, is the comparison's."""


def measure(
    model: Any,
    data: Data,
    device: torch.device,
    *,
    samples: int = 2000,
    seed: int = 0,
    metrics: Collection[str] | None = None,
    x: Tensor | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Figure]:
    """The metrics of a model on its data, with floors and intervals, in the order of METRICS.

    Distances and neighbours are of n samples against n real training examples, n = min(samples, half the training set),
    and their floors of the other half of those against the same. They are in the space of `features` (`features_for`);
    sliced_wasserstein and nearest_train in pixels, beyond 512 dimensions through a random projection (`Pixels`).
    The model is put in eval mode meanwhile; the run's random state is left as it was; draws depend on seed alone.

    Arguments: samples, how many are drawn; metrics, names in METRICS, or None for all that make sense, without fid and
    kid; x (N, *shape), samples that are there already; cache, a folder where a classifier is kept.
    Raises ValueError for an unknown name, with the nearest; for one that cannot be had for this model and data, naming
    it and why; for samples that are not finite, or of another shape.
    """
    names = _names(metrics)
    seen = once(lambda: features_for(data, features, cache))
    with own_random_numbers(device), evaluating(model):
        bench: list[Bench] = []

        def on_bench() -> Bench:
            if not bench:
                torch.manual_seed(seed)
                drawn = x if x is not None else draw(model, samples, seed, device)
                bench.append(Bench(drawn, data, seen, device))
            return bench[0]

        subject = Subject(model, data, device, seen, samples if x is None else len(x))
        return _measured(names, metrics is not None, seed, on_bench, subject)


def measured_real(
    data: Data,
    device: torch.device,
    *,
    samples: int = 2000,
    seed: int = 0,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Figure]:
    """The metrics of samples, of real examples as if they were samples: fresh draws of a density, else held-out ones.

    At most as many as there are; training examples of the other half where none is held out.
    """
    if data.density is not None:
        x = data.density.sample(samples, torch.Generator().manual_seed(seed + 1)).float()
    elif data.held_out is not None:
        order = torch.randperm(len(data.held_out), generator=torch.Generator().manual_seed(seed))
        x = data.decode(data.held_out[order[:samples]])
    else:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        x = training_examples(data, order[len(data) // 2 :][:samples])
    return measured_samples(x, data, device, seed=seed, features=features, cache=cache)


def measured_samples(
    x: Tensor,
    data: Data,
    device: torch.device,
    *,
    seed: int = 0,
    metrics: Collection[str] | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Figure]:
    """The metrics of samples x (N, *shape) that are there, whatever drew them; those that make no sense are left out.

    Raises ValueError for an unknown name, and for samples that are not finite, or of another shape.
    """
    seen = once(lambda: features_for(data, features, cache))
    with own_random_numbers(device):
        bench = Bench(x, data, seen, device)
        return _measured(_names(metrics), False, seed, lambda: bench, None)


@torch.no_grad()
def draw(model: Any, n: int, seed: int, device: torch.device, **how: Any) -> Tensor:
    """n samples (n, *shape), float32 on the CPU, 500 at once; they depend on the seed alone.

    how: what `sample` takes beside, such as sampler and steps. The caller's random state is left as it was.
    """
    generator = torch.Generator(device).manual_seed(seed)
    sizes = [min(ROWS, n - start) for start in range(0, n, ROWS)]
    with own_random_numbers(device, seed):  # the seed of what a model draws without asking
        return torch.cat([model.sample(size, generator=generator, **how).float().cpu() for size in sizes])


def _measured(
    names: list[str], asked: bool, seed: int, bench: Callable[[], Bench], subject: Subject | None
) -> dict[str, Figure]:
    found = {}
    for name in names:
        # Each starts from the seed, whatever else is measured.
        torch.manual_seed(seed)
        try:
            if name in OF_SAMPLES:
                found[name] = OF_SAMPLES[name](bench())
            elif subject is not None:
                found[name] = OF_MODELS[name](subject)
        except Unavailable as why:
            if asked:
                raise ValueError(f"metric {name} cannot be had: {why}") from why
    return found


def _names(metrics: Collection[str] | None) -> list[str]:
    if metrics is None:
        return [name for name in METRICS if name not in BY_NAME]
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"metric {name!r} is not known{hint} Expected some of {', '.join(METRICS)}")
    return [name for name in METRICS if name in metrics]
