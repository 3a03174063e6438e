"""The metrics by name, with their definitions, and `measure`, which computes them, a user's own included."""

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as cache_result
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..data import Data
from ..models.model import NotOffered, offered
from ..modes import evaluating, own_random_numbers
from ..own import is_own, own
from .measurements import Measurement, Unavailable
from .model_metrics import MODEL_METRICS, Subject
from .sample_metrics import AT_EQUAL_NUMBERS, SAMPLE_METRICS, SampleSet
from .samples.features import Features, features_for
from .samples.reference import LEAST_SAMPLES, training_examples

__all__ = [
    "LEAST_SAMPLES",
    "METRICS",
    "MetricLike",
    "Better",
    "Measurement",
    "Measurements",
    "Metric",
    "check_range",
    "draw_samples",
    "measure",
    "measured_real",
    "measured_samples",
    "metric_of",
    "metrics_of",
]

ROWS = 500
"""Samples drawn in one call."""
FAR = 30
"""Root mean square of vectors above which, and standard deviation below 1 / FAR, they may be the data's own values."""
BY_NAME = {"fid", "kid"}
"""Metrics that "all" leaves out: they need an optional package and its weights."""


Better = Literal["lower", "higher", "real", "neither"]


@dataclass(frozen=True)
class Metric:
    """The definition of a metric.

    Arguments:
        name: letters, digits and _.
        axis: quality, coverage, sharpness, control, likelihood, speed, or a word of the user's.
        better: lower, higher, real (nearest to the value of real data) or neither.
        unit: such as nats.
        says: the definition, with its source.
        function: of a user's metric: (samples (N, *shape), real examples (N, *shape), features) → a number or a
            `Measurement`; features maps examples to (N, d), the space in which distances are measured.
    """

    name: str
    axis: str = "own"
    better: Better = "neither"
    unit: str = ""
    says: str = ""
    function: Callable[[Tensor, Tensor, Features], float | Measurement] | None = None


MetricLike = str | Metric | Callable[[Tensor, Tensor, Features], float | Measurement]
"""A name in METRICS, "all" for those (but BY_NAME), FILE.py:NAME, or a user's own `Metric` or function."""


class Measurements(dict[str, Measurement]):
    """Measurements by name, in the order of METRICS; `missing` has a reason for each metric without a value."""

    def __init__(self, *given: Any, missing: dict[str, str] | None = None) -> None:
        super().__init__(*given)
        self.missing = {} if missing is None else missing


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("frechet", "quality", "lower", "", "Fréchet distance of means and covariances in the feature space "
               "(a classifier of this data where it has labels, else pixels or points; Heusel 2017, 1706.08500). "
               "Biased upwards for finite numbers of examples, as is its floor; the interval is of its expectation at "
               "these numbers, samples and real examples both being random."),
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
               "optimal assignment (Kuhn 1955)."),
        Metric("high_quality", "quality", "higher", "", "Share of samples within 3σ of a mode of the mixture (Lin "
               "2017, 1712.04086)."),
        Metric("log_density", "quality", "real", "nats", "Mean exact log p(x) of samples under the data's density, "
               "each at least -50; real data have minus the entropy."),
        Metric("confidence", "quality", "real", "", "Mean largest probability that a classifier of real digits gives."),
        Metric("precision", "quality", "higher", "", "Share of samples nearer to a real example than its 3rd nearest "
               "real one is, in the feature space (Kynkäänniemi 2019, 1904.06991)."),
        Metric("density", "quality", "real", "", "Mean number of real examples' balls, up to their 5th nearest real "
               "one, that contain a sample, over 5 (Naeem 2020, 2002.09797)."),
        Metric("recall", "coverage", "higher", "", "Share of real examples nearer to a sample than its 3rd nearest "
               "sample is, in the feature space (Kynkäänniemi 2019, 1904.06991)."),
        Metric("coverage", "coverage", "higher", "", "Share of real examples with a sample nearer than their 5th "
               "nearest real one (Naeem 2020, 2002.09797)."),
        Metric("modes", "coverage", "higher", "", "Number of modes with a sample; the floor is its expectation for as "
               "many exact samples (Metz 2016, 1611.02163)."),
        Metric("kl", "coverage", "lower", "nats", "KL of the samples' histogram over modes to the uniform one; the "
               "floor is its expectation for as many exact samples (Metz 2016, 1611.02163)."),
        Metric("nearest_train", "coverage", "real", "", "Median distance, in pixels, of samples to their nearest "
               "training example, over that of held-out examples: far below 1 means memorization."),
        Metric("high_frequency", "sharpness", "real", "", "Share of the power spectrum beyond half the Nyquist "
               "frequency, over that of real images (Durall 2020, 2003.01826)."),
        Metric("laplacian", "sharpness", "real", "", "Variance of the Laplacian, over that of real images "
               "(Pech-Pacheco 2000)."),
        Metric("reconstruction", "control", "lower", "", "Root mean square reconstruction error of held-out examples; "
               "the latents of models without encoder are found by inversion (Song 2020, 2010.02502) or optimization "
               "(Zhu 2016, 1609.03552)."),
        Metric("probe", "control", "higher", "", "Held-out accuracy of a linear classifier of labels from the latents "
               "of 500 examples; the floor is that of the most common label (Alain & Bengio 2016, 1610.01644)."),
        Metric("probe_factors", "control", "higher", "", "Held-out R² of a linear regression of the data's known "
               "factors, such as position and size, on latents."),
        Metric("smoothness", "control", "lower", "", "Longest step over mean step, in the feature space, of paths of "
               "16 points between the latents of two examples; 1 is even (after Karras 2018, 1812.04948)."),
        Metric("active_units", "control", "neither", "", "Latent dimensions whose posterior mean varies over examples "
               "(Burda 2015, 1509.00519)."),
        Metric("bits_per_dim", "likelihood", "lower", "bits/dim", "Bound on -log2 p(x) of held-out examples over grey "
               "levels, per dimension."),
        Metric("nats", "likelihood", "lower", "nats", "Bound on -log p(x) of held-out examples, of vectors in the "
               "data's own values, where all other metrics are at unit scale, (value - mean) / scale; the floor is the "
               "entropy, where it is known."),
        Metric("samples_per_second", "speed", "higher", "1/s", "Samples per second, in batches of 256."),
        Metric("evaluations", "speed", "lower", "", "Network evaluations per sample."),
        Metric("flops_per_sample", "speed", "lower", "", "FLOPs per sample; a multiplication and an addition are two."),
        Metric("parameters", "speed", "neither", "", "Number of scalar parameters of the model."),
    )
}  # fmt: skip
"""The metrics of `measure`, in the order of reports; those that need several runs or a log are in the comparison."""


def measure(
    model: Any,
    data: Data,
    device: torch.device,
    *,
    samples: int = 2000,
    seed: int = 0,
    metrics: Sequence[MetricLike] | None = None,
    x: Tensor | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Measurements:
    """Return the metrics of a model on its data, with floors and intervals, in the order of METRICS.

    Distances and metrics of neighbours compare n samples with n real training examples, n = min(samples, half the
    training set); their floors compare real examples with real examples, n against n. They are computed in the space
    of `features` (`features_for`), but sliced_wasserstein and nearest_train in pixels, beyond 512 dimensions after a
    random projection (`Pixels`). The model is in eval mode meanwhile; the caller's random state is restored; draws
    depend on the seed alone.

    Arguments:
        model: offers `sample`, and further methods for further metrics.
        data: the data set that it was trained on.
        device: of the model.
        samples: number of samples drawn.
        seed: of the draws.
        metrics: each as `MetricLike`; None is "all".
        x: samples (N, *shape) to measure instead of drawing; vectors at unit scale, as of `Data.to_unit`.
        features: as in `features_for`.
        cache: folder in which a trained classifier is stored.
    Returns: `Measurements`, whose `missing` has a reason for each metric without a value.
    Raises ValueError for an unknown name, with the nearest known one; where no metric has a value, with all reasons;
    for samples that are not finite, of another shape, or of another range than [-1, 1] or unit scale (`check_range`).
    """
    chosen = metrics_of(metrics)
    feature_space = cache_result(lambda: features_for(data, features, cache))
    with own_random_numbers(device), evaluating(model):

        @cache_result
        def sample_set() -> SampleSet:
            torch.manual_seed(seed)
            drawn = x if x is not None else draw_samples(model, samples, seed, device)
            check_range(drawn, data)
            return SampleSet(drawn, data, feature_space, device)

        subject = Subject(model, data, device, feature_space, samples if x is None else len(x))
        measurements = _measured(chosen, seed, sample_set, subject)
    if not measurements:
        reasons = "; ".join(f"{name}: {why}" for name, why in measurements.missing.items())
        raise ValueError(f"none of the metrics has a value: {reasons or 'metrics is empty; give some or None for all'}")
    return measurements


def measured_real(
    data: Data,
    device: torch.device,
    *,
    samples: int = 2000,
    seed: int = 0,
    metrics: Sequence[MetricLike] | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Measurements:
    """Return the metrics of real examples in place of samples: draws of a known density, else held-out examples.

    Without held-out examples they are training examples of the half that samples are not compared with. Where there are
    fewer than `samples`, the metrics AT_EQUAL_NUMBERS are missing, since they could not be compared with those of
    samples: their floor is the value for real data.
    """
    if data.density is not None:
        x = data.density.sample(samples, torch.Generator().manual_seed(seed + 1)).float()
    elif data.held_out is not None:
        order = torch.randperm(len(data.held_out), generator=torch.Generator().manual_seed(seed))
        x = data.decode(data.held_out[order[:samples]])
    else:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        x = training_examples(data, order[len(data) // 2 :][:samples])
    measurements = measured_samples(x, data, device, seed=seed, metrics=metrics, features=features, cache=cache)
    half = len(data) // 2
    if min(len(x), half) < min(samples, half):
        for name in AT_EQUAL_NUMBERS & set(measurements):
            del measurements[name]
            measurements.missing[name] = f"{len(x)} held-out examples are fewer than {samples} samples: see the floor"
    return measurements


def measured_samples(
    x: Tensor,
    data: Data,
    device: torch.device,
    *,
    seed: int = 0,
    metrics: Sequence[MetricLike] | None = None,
    features: str = "auto",
    cache: str | os.PathLike[str] | None = None,
) -> Measurements:
    """Return the metrics of samples x (N, *shape), without a model. Other arguments as in `measure`.

    Vectors are expected at unit scale, as models see them: `Data.to_unit` maps the data's own values there. Raises
    ValueError for an unknown name, and for samples that are not finite, of another shape, or vectors that are the
    data's own values (`check_range`).
    """
    feature_space = cache_result(lambda: features_for(data, features, cache))
    with own_random_numbers(device):
        _check_unit_scale(x, data)
        sample_set = SampleSet(x, data, feature_space, device)
        return _measured(metrics_of(metrics), seed, lambda: sample_set, None)


@torch.no_grad()
def draw_samples(model: Any, n: int, seed: int, device: torch.device, **how: Any) -> Tensor:
    """Draw n samples (n, *shape), float32 on the CPU, ROWS in one call; they depend on the seed alone.

    Arguments:
        how: further arguments of `sample`, such as sampler. The caller's random state is restored.
    """
    sample = offered(model, "sample")
    generator = torch.Generator(device).manual_seed(seed)
    sizes = [min(ROWS, n - start) for start in range(0, n, ROWS)]
    with own_random_numbers(device, seed):  # seeds the draws of a model that ignores `generator`
        return torch.cat([sample(size, generator=generator, **how).float().cpu() for size in sizes])


def check_range(x: Tensor, data: Data) -> None:
    """Raise ValueError for images that are not in [-1, 1], and for vectors that are not at unit scale.

    Images without a negative value are refused where they reach above 2, or where every real image has values below
    -0.5. Vectors are refused where they have about unit scale only after `Data.to_unit`: samples of a model that has
    diverged or collapsed are measured.
    """
    _check_unit_scale(x, data)
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


def _check_unit_scale(x: Tensor, data: Data) -> None:
    if not data.scale or x.shape[1:] != tuple(data.shape) or len(x) < 2 or not x.isfinite().all():
        return
    x = x.double()
    unit = data.to_unit(x)
    far = x.square().mean(0).sqrt().max() > FAR or x.std(0).max() < 1 / FAR
    if far and unit.square().mean(0).sqrt().max() < 3 and unit.std(0).max() > 1 / 3:
        raise ValueError(
            f"samples must be at unit scale, (value - mean) / scale; they span {x.min():g} to {x.max():g}, as the own "
            f"values of {data.name}: give data.to_unit(x)"
        )


def metric_of(given: MetricLike) -> Metric:
    """Return the `Metric` of a name in METRICS, of FILE.py:NAME, or of a function.

    The metric of a function has its name, and the first line of its docstring as definition. Raises ValueError for an
    unknown name, with the nearest known one, and for an object that is not callable.
    """
    if isinstance(given, Metric):
        if given.function is None and given.name not in METRICS:
            raise ValueError(f"Metric {given.name!r} must be a name in METRICS or have a function; give function=")
        if given.function is not None and (given.name in METRICS or not re.fullmatch(r"[A-Za-z_]\w*", given.name)):
            raise ValueError(
                f"name of a Metric with a function must be new, of letters, digits and _; got {given.name!r}"
            )
        if given.better not in get_args(Better):
            raise ValueError(f"better must be one of {', '.join(get_args(Better))}; got {given.better!r}")
        return given
    if isinstance(given, str) and is_own(given):
        return metric_of(own(given))
    if isinstance(given, str):
        if given not in METRICS:
            near = difflib.get_close_matches(given, METRICS, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"metric {given!r} is not known{hint} Expected all, FILE.py:FUNCTION or one of {', '.join(METRICS)}"
            )
        return METRICS[given]
    if not callable(given):
        raise ValueError(f"a metric must be a name, a Metric or a function; got {type(given).__name__}")
    says = (given.__doc__ or "A user's metric.").strip().splitlines()[0]
    return metric_of(Metric(getattr(given, "__name__", type(given).__name__), says=says, function=given))


def metrics_of(metrics: Sequence[MetricLike] | None) -> list[Metric]:
    """Return the `Metric` of each, in the order of METRICS, a user's own last. None is "all"."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a list of names; got {metrics!r}")
    chosen: dict[str, Metric] = {}
    for each in ["all"] if metrics is None else metrics:
        some = [METRICS[name] for name in METRICS if name not in BY_NAME] if each == "all" else [metric_of(each)]
        for metric in some:
            if metric.name in chosen and chosen[metric.name].function is not metric.function:
                raise ValueError(f"two metrics are called {metric.name}; give one of them another name")
            chosen[metric.name] = metric
    order = [*METRICS, *(name for name in chosen if name not in METRICS)]
    return [chosen[name] for name in order if name in chosen]


def _measured(
    metrics: list[Metric], seed: int, sample_set: Callable[[], SampleSet], subject: Subject | None
) -> Measurements:
    """Return the metrics of a sample set and a model, or the reasons why they are missing."""
    measurements = Measurements()
    if any(metric.function is not None or metric.name in SAMPLE_METRICS for metric in metrics):
        # Invalid samples are an error of the call, not of one metric.
        with suppress(NotOffered):
            sample_set()
    for metric in metrics:
        # Each metric starts from the seed, independent of the others.
        torch.manual_seed(seed)
        try:
            if metric.function is not None:
                measurements[metric.name] = _own_measurement(metric, sample_set())
            elif metric.name in SAMPLE_METRICS:
                measurements[metric.name] = SAMPLE_METRICS[metric.name](sample_set())
            elif subject is None:
                measurements.missing[metric.name] = "it is a metric of a model, not of samples alone"
            else:
                measurements[metric.name] = MODEL_METRICS[metric.name](subject)
        except (Unavailable, NotOffered) as why:
            measurements.missing[metric.name] = str(why)
        except Exception as error:
            # The failure of one metric must not lose the others.
            measurements.missing[metric.name] = f"{type(error).__name__}: {error}"
    return measurements


def _own_measurement(metric: Metric, samples: SampleSet) -> Measurement:
    """Call a user's metric. Raises Unavailable where it returns no finite number."""
    assert metric.function is not None
    value = metric.function(samples.fake, samples.real.x, samples.real.features)
    if isinstance(value, Measurement):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Unavailable(f"its function must return a finite number or a Measurement; got {value!r}")
    return Measurement(number)
