"""Every number of a comparison, what it says, and one call that measures them all, and a user's own."""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as once
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..data import Data
from ..models.model import NotOffered, offered
from ..modes import evaluating, own_random_numbers
from ..own import is_own, own
from .figures import Figure, Unavailable
from .model_metrics import OF_MODELS, Subject
from .samples.bench import AT_EQUAL_NUMBERS, OF_SAMPLES, Bench
from .samples.features import Features, features_for
from .samples.reference import LEAST_SAMPLES, training_examples

__all__ = [
    "LEAST_SAMPLES",
    "METRICS",
    "Asked",
    "Better",
    "Figure",
    "Figures",
    "Metric",
    "check_range",
    "draw",
    "measure",
    "measured_real",
    "measured_samples",
    "metric_of",
    "metrics_of",
]

ROWS = 500
"""Samples drawn at once."""
BY_NAME = {"fid", "kid"}
"""Metrics that are measured only where they are asked for: they need a package and weights of others."""


Better = Literal["lower", "higher", "real", "neither"]


@dataclass(frozen=True)
class Metric:
    """A number of the report.

    Arguments:
        name, axis: axis is one of quality, coverage, sharpness, control, likelihood, speed, or a word of one's own.
        better: lower, higher, real (nearest to what real data has) or neither (told only).
        unit: such as nats; says: what it is, and its source.
        function: of a metric of one's own: (samples (N, *shape), as many real examples, features) → a number or a
            `Figure`; features maps examples to (N, d), the space that distances are measured in.
    """

    name: str
    axis: str = "own"
    better: Better = "neither"
    unit: str = ""
    says: str = ""
    function: Callable[[Tensor, Tensor, Features], float | Figure] | None = None


Asked = str | Metric | Callable[[Tensor, Tensor, Features], float | Figure]
"""How a metric is asked for: by its name in METRICS, "all" of these, FILE.py:NAME, or a metric of one's own."""


class Figures(dict[str, Figure]):
    """Figures by name, in the order of METRICS; `missing` tells of the others why they cannot be had."""

    def __init__(self, *given: Any, missing: dict[str, str] | None = None) -> None:
        super().__init__(*given)
        self.missing = {} if missing is None else missing


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("frechet", "quality", "lower", "", "Fréchet distance of means and covariances in the feature space "
               "(a classifier of this data where it has labels, else pixels or points; Heusel 2017, 1706.08500). "
               "Biased upwards by the number of examples, as its floor is; the interval is of its expectation at that "
               "number, samples and real examples both being redrawn."),
        Metric("kernel", "quality", "lower", "", "Unbiased squared MMD under a cubic kernel in the feature space "
               "(Bińkowski 2018, 1801.01401); its interval is that of a U-statistic (Sutherland & Deka 2019, "
               "1906.02104)."),
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
    metrics: Sequence[Asked] | None = None,
    x: Tensor | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Figures:
    """Return the metrics of a model on its data, with floors and intervals, in the order of METRICS.

    Distances and neighbours are of n samples against n real training examples, n = min(samples, half the training set),
    and their floors of the other half of those against the same. They are in the space of `features` (`features_for`);
    sliced_wasserstein and nearest_train in pixels, beyond 512 dimensions through a random projection (`Pixels`).
    The model is put in eval mode meanwhile; the run's random state is left as it was; draws depend on seed alone.

    Arguments: samples, how many are drawn; metrics, each as `Asked`, or None for "all", which are those in METRICS
    without fid and kid; x (N, *shape), samples that are there already; cache, a folder where a classifier is kept.
    Returns `Figures`, whose `missing` has a reason for each metric that this model and data cannot have.
    Raises ValueError for an unknown name, with the nearest; where none of the metrics can be had, with all reasons; for
    samples that are not finite, of another shape, or of another range than [-1, 1] (`check_range`).
    """
    chosen = metrics_of(metrics)
    seen = once(lambda: features_for(data, features, cache))
    with own_random_numbers(device), evaluating(model):
        bench: list[Bench] = []

        def on_bench() -> Bench:
            if not bench:
                torch.manual_seed(seed)
                drawn = x if x is not None else draw(model, samples, seed, device)
                check_range(drawn, data)
                bench.append(Bench(drawn, data, seen, device))
            return bench[0]

        subject = Subject(model, data, device, seen, samples if x is None else len(x))
        found = _measured(chosen, seed, on_bench, subject)
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.missing.items())
        raise ValueError(f"none of the metrics can be had: {reasons or 'none was asked for'}")
    return found


def measured_real(
    data: Data,
    device: torch.device,
    *,
    samples: int = 2000,
    seed: int = 0,
    metrics: Sequence[Asked] | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Figures:
    """Return the metrics of real examples as if they were samples: fresh draws of a density, else held-out ones.

    At most as many as there are; training examples of the other half where none is held out. Where they are fewer than
    `samples`, what depends on their number is missing: beside samples it would mislead, and the floor says it.
    """
    if data.density is not None:
        x = data.density.sample(samples, torch.Generator().manual_seed(seed + 1)).float()
    elif data.held_out is not None:
        order = torch.randperm(len(data.held_out), generator=torch.Generator().manual_seed(seed))
        x = data.decode(data.held_out[order[:samples]])
    else:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        x = training_examples(data, order[len(data) // 2 :][:samples])
    found = measured_samples(x, data, device, seed=seed, metrics=metrics, features=features, cache=cache)
    half = len(data) // 2
    if min(len(x), half) < min(samples, half):
        for name in AT_EQUAL_NUMBERS & set(found):
            del found[name]
            found.missing[name] = f"{len(x)} held-out examples are fewer than {samples} samples: read the floor"
    return found


def measured_samples(
    x: Tensor,
    data: Data,
    device: torch.device,
    *,
    seed: int = 0,
    metrics: Sequence[Asked] | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Figures:
    """Return the metrics of samples x (N, *shape) that are there, whatever drew them.

    Raises ValueError for an unknown name, and for samples that are not finite, or of another shape.
    """
    seen = once(lambda: features_for(data, features, cache))
    with own_random_numbers(device):
        bench = Bench(x, data, seen, device)
        return _measured(metrics_of(metrics), seed, lambda: bench, None)


@torch.no_grad()
def draw(model: Any, n: int, seed: int, device: torch.device, **how: Any) -> Tensor:
    """Draw n samples (n, *shape), float32 on the CPU, 500 at once; they depend on the seed alone.

    how: what `sample` takes beside, such as sampler and steps. The caller's random state is left as it was.
    """
    sample = offered(model, "sample")
    generator = torch.Generator(device).manual_seed(seed)
    sizes = [min(ROWS, n - start) for start in range(0, n, ROWS)]
    with own_random_numbers(device, seed):  # the seed of what a model draws without asking
        return torch.cat([sample(size, generator=generator, **how).float().cpu() for size in sizes])


def check_range(x: Tensor, data: Data) -> None:
    """Refuse images that are plainly in [0, 1] or 0 … 255, where the data's are in [-1, 1] (raises ValueError).

    None is below 0, and they reach above 2, or, up to 1, no real image is without values below -0.5.
    """
    if x.ndim != 4 or x.shape[1:] != tuple(data.shape) or not len(x) or not x.isfinite().all() or x.min() < 0:
        return
    low, high = x.min().item(), x.max().item()
    if high > 2:
        raise ValueError(f"samples must be images in [-1, 1]; they span {low:g} to {high:g}, as 0 … 255: x / 127.5 - 1")
    stored = data.x if data.held_out is None else data.held_out
    if stored is None or high - low < 0.5 or data.grey_levels is None:
        return
    real = data.decode(stored[:64])
    if (real.flatten(1).amin(1) < -0.5).all():
        raise ValueError(
            f"samples must be images in [-1, 1]; they span {low:g} to {high:g}, as in [0, 1], where every real image "
            "has values below -0.5: give 2 * x - 1"
        )


def metric_of(asked: Asked) -> Metric:
    """Return the metric of a name in METRICS, of FILE.py:NAME, or of a function.

    A function is called what it is, and its docstring's first line says what it is. Raises ValueError for an unknown
    name, with the nearest, and for what is no function.
    """
    if isinstance(asked, Metric):
        if asked.function is None and asked.name not in METRICS:
            raise ValueError(f"a metric of one's own needs function=; {asked.name} has none")
        if asked.function is not None and (asked.name in METRICS or not re.fullmatch(r"[A-Za-z_]\w*", asked.name)):
            raise ValueError(f"a metric of one's own needs a new name, of letters, digits and _; got {asked.name!r}")
        if asked.better not in get_args(Better):
            raise ValueError(f"better must be one of {', '.join(get_args(Better))}; got {asked.better!r}")
        return asked
    if isinstance(asked, str) and is_own(asked):
        return metric_of(own(asked))
    if isinstance(asked, str):
        if asked not in METRICS:
            near = difflib.get_close_matches(asked, METRICS, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"metric {asked!r} is not known{hint} Expected all, FILE.py:FUNCTION or some of {', '.join(METRICS)}"
            )
        return METRICS[asked]
    if not callable(asked):
        raise ValueError(f"a metric must be a name, a Metric or a function; got {type(asked).__name__}")
    says = (asked.__doc__ or "A metric of one's own.").strip().splitlines()[0]
    return metric_of(Metric(getattr(asked, "__name__", type(asked).__name__), says=says, function=asked))


def metrics_of(metrics: Sequence[Asked] | None) -> list[Metric]:
    """Return the metrics that are asked for, in the order of METRICS, those of one's own last."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a list of names; got {metrics!r}")
    asked = ["all"] if metrics is None else metrics
    found: dict[str, Metric] = {}
    for each in asked:
        some = [METRICS[name] for name in METRICS if name not in BY_NAME] if each == "all" else [metric_of(each)]
        for metric in some:
            if metric.name in found and found[metric.name].function is not metric.function:
                raise ValueError(f"two metrics are called {metric.name}; give one of them another name")
            found[metric.name] = metric
    order = [*METRICS, *(name for name in found if name not in METRICS)]
    return [found[name] for name in order if name in found]


def _measured(metrics: list[Metric], seed: int, bench: Callable[[], Bench], subject: Subject | None) -> Figures:
    found = Figures()
    if any(metric.function is not None or metric.name in OF_SAMPLES for metric in metrics):
        # Samples that are none are refused, whatever is measured of them.
        with suppress(NotOffered):
            bench()
    for metric in metrics:
        # Each starts from the seed, whatever else is measured.
        torch.manual_seed(seed)
        try:
            if metric.function is not None:
                found[metric.name] = _own_figure(metric, bench())
            elif metric.name in OF_SAMPLES:
                found[metric.name] = OF_SAMPLES[metric.name](bench())
            elif subject is None:
                found.missing[metric.name] = "it is of a model, not of samples alone"
            else:
                found[metric.name] = OF_MODELS[metric.name](subject)
        except (Unavailable, NotOffered) as why:
            found.missing[metric.name] = str(why)
        except Exception as error:
            # What fails in one metric must not cost the others.
            found.missing[metric.name] = f"{type(error).__name__}: {error}"
    return found


def _own_figure(metric: Metric, bench: Bench) -> Figure:
    """Call a metric of one's own. Raises Unavailable where it gives no number."""
    assert metric.function is not None
    value = metric.function(bench.fake, bench.real.x, bench.real.features)
    if isinstance(value, Figure):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Unavailable(f"its function must return a finite number or a Figure; got {value!r}")
    return Figure(number)
