"""Measurement of one run of a comparison: metrics, samples, cost of a step, quality over time and over evaluations."""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.samplers import Sampler

from ..data import Data
from ..data.source import few
from ..ema import EMA
from ..evaluation.metrics import ROWS, draw_samples, measure, measured_real, metric_of
from ..experiment import Settings, checkpoint_of, data_of, load
from ..experiment.checkpoints.checkpoint import steps_in
from ..experiment.run.batches import Readable, batches_of, seed_all
from ..files import write_tensors, write_whole
from ..game import train
from ..models import NotOffered
from ..own import is_own
from ..stage import Stage
from .plan import checkpoint_every, settings_of_plan
from .recipes import Recipe
from .runs import Run, timeline

__all__ = [
    "EVALUATIONS", "QUALITIES", "Setup", "complete", "costs", "curve_of", "device_named", "evaluations_of",
    "measure_real", "measure_run", "real_complete", "sample_steps",
]  # fmt: skip

FORMAT = 4
QUALITIES = {"high_quality": "higher", "frechet": "lower"}
"""The metric of quality on curves and over seeds, the first that the data has, and which end is better.

For mixtures it is the share of samples near a mode: means and covariances hardly change when points move between modes.
"""
EVALUATIONS = (1, 2, 4, 8, 16, 32, 64)
SAMPLER = "ddim"
"""The sampler of the curves: it works with every schedule and any number of steps."""
COUNTED = 4
"""Samples whose network evaluations are counted; the number per sample is constant."""
CURVE_STEPS = 32
"""Most steps of that sampler at a checkpoint: hundreds at each checkpoint would cost more than the training."""
SHOWN_IMAGES, SHOWN_POINTS = 256, 4000
PAIRS, BETWEEN = 4, 8
PILOT = 0.05, 2.0, 10.0
"""The share of a budget of seconds that the pilot of a stage takes, and its least and most seconds."""
WARM_UP = 5
"""Steps of a pilot before the clock starts."""


@dataclass(frozen=True)
class Setup:
    """The data, device and seed of all measurements of a run, and the folder in which classifiers are cached."""

    data: Data
    device: torch.device
    seed: int
    cache: Path


def device_named(name: str) -> torch.device:
    """Return the device of the option `--device`; auto is CUDA, MPS or the CPU, the first available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def measure_run(run: Run, entry: Mapping[str, Any], request: Mapping[str, Any], device: torch.device) -> None:
    """Measure a finished run, skipping parts that are done: results into `run.measured`, samples into `run.samples`.

    Arguments:
        entry: the recipe's entry in the plan.
        request: the plan's options (`Options.fixed`).
    """
    source, recipe = checkpoint_of(run.folder), Recipe(entry.get("given", run.recipe))
    done = previous(run.measured, key_of(source, request))
    model = load(source, recipe.file, device=device)
    setup = Setup(data_of(source, request["data"]), device, run.seed, run.out / "measured" / "features")

    def write(**parts: Any) -> None:
        done.update(parts)
        write_whole(run.measured, json.dumps(done) + "\n")

    if "figures" not in done or not run.samples.is_file():
        x = draw_samples(model, request["samples"], run.seed, device)
        samples = {"samples": shown(x), **pictures_of(model, setup)}
        write_whole(run.samples, lambda path: write_tensors(path, samples))
        measurements, missing = measurements_of(model, setup, x, request["metrics"])
        write(figures=measurements, missing=missing, own_metrics=own_metrics(request["metrics"]))
    if "flops_per_step" not in done:
        try:
            flops = flops_of_stages(settings_of_plan(recipe, entry), recipe.module().build, setup.data)
        except Exception as error:
            # A failure here must not lose the measurements.
            done["missing"]["flops_per_step"] = f"{type(error).__name__}: {error}"
            flops = None
        write(flops_per_step=flops)
    if "curve" not in done:
        every, samples_each = checkpoint_every(entry), request["curve_samples"]
        write(curve=curve_of(run.folder, recipe.file, entry["batch"], every, setup, samples_each))
    if "evaluations_curve" not in done:
        points, why = evaluations_of(model, setup, request["curve_samples"])
        if why is not None:
            done["missing"]["rate_at_quality"] = why
        write(evaluations_curve=points)


def measure_real(out: Path, data: Data, request: Mapping[str, Any], device: torch.device) -> None:
    """Measure real examples in place of samples, into OUT/measured/real.json; write some to OUT/samples."""
    n = request["samples"]
    cache = out / "measured" / "features"
    measurements = measured_real(data, device, samples=n, seed=0, metrics=request["metrics"], cache=cache)
    stored = data.held_out if data.held_out is not None else data.x
    if data.density is not None:
        some = data.density.sample(SHOWN_POINTS, torch.Generator().manual_seed(0))
    else:
        some = torch.empty(0) if stored is None else data.decode(stored[:SHOWN_POINTS])
        # The number of held-out examples, or, without them, of the half that samples are not compared with.
        n = min(n, len(data) - len(data) // 2 if data.held_out is None else len(data.held_out))
    body = {
        "key": key_of(None, request),
        "samples": request["samples"],
        "n": n,
        "figures": {name: asdict(measurement) for name, measurement in measurements.items()},
        "missing": measurements.missing,
    }
    write_whole(
        out / "samples" / "real.safetensors", lambda path: write_tensors(path, {"samples": shown(some.float())})
    )
    write_whole(out / "measured" / "real.json", json.dumps(body) + "\n")


# Earlier measurements.


def previous(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results in a file if they have this key, else the key alone."""
    with suppress(OSError, ValueError):
        done = json.loads(path.read_text())
        if done["key"] == key:
            return done
    return {"key": key}


def key_of(source: Path | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a measurement depends on: the weights (digest of their manifest), the request, files of metrics.

    Arguments:
        source: a checkpoint, or None for real examples.
        request: the plan's options.
    """

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    names = ("samples", "curve_samples", "metrics")
    own = [digest(Path(text.rpartition(":")[0])) for text in request["metrics"] or () if is_own(text)]
    return {
        "format": FORMAT,
        "digest": None if source is None else digest(source / "manifest.json"),
        "own": own,
        **{name: request[name] for name in names},
    }


def complete(run: Run, request: Mapping[str, Any]) -> bool:
    """Return whether a run has been measured completely."""
    done = previous(run.measured, key_of(checkpoint_of(run.folder), request))
    return "evaluations_curve" in done and run.samples.is_file()


def real_complete(out: Path, request: Mapping[str, Any]) -> bool:
    """Return whether real examples have been measured."""
    return "figures" in previous(out / "measured" / "real.json", key_of(None, request))


# Metrics and pictures.


def measurements_of(
    model: Any, setup: Setup, x: Tensor, metrics: Sequence[str] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the metrics of samples x, and the reasons for missing ones; the key "samples" is a reason for all.

    The metrics are {name: fields of `Measurement`}, as they are written to JSON.
    """
    if not x.isfinite().all():
        return {}, {"samples": "some samples are not finite"}
    given: dict[str, Any] = {"samples": len(x), "seed": setup.seed, "x": x, "cache": setup.cache}
    try:
        measurements = measure(model, setup.data, setup.device, metrics=metrics, **given)
    except ValueError as error:
        return {}, {"samples": str(error)}
    return {name: asdict(one) for name, one in measurements.items()}, dict(measurements.missing)


def own_metrics(metrics: Sequence[str] | None) -> list[dict[str, str]]:
    """Return the definitions of the user's metrics for the report: name, axis, better, unit, says."""
    own = [metric_of(text) for text in metrics or () if is_own(text)]
    return [{name: getattr(one, name) for name in ("name", "axis", "better", "unit", "says")} for one in own]


def pictures_of(model: Any, setup: Setup) -> dict[str, Tensor]:
    """Return held-out images, their reconstructions, and interpolations between them.

    The dictionary is empty for a model without latents. The latents of a model without encoder are found by
    optimization (`latents.invert`).
    """
    from ..evaluation import latents

    data = setup.data
    if data.held_out is None or not data.is_image:
        return {}
    x = data.decode(data.held_out[:16]).to(setup.device)
    try:
        z = latents.latents_of(model, x, steps=100, restarts=2)
        pictures = {"originals": x, "reconstructions": latents.decode(model, z)}
        if len(x) >= 2 * PAIRS:
            a, b = (
                tuple(part[rows] for part in z) if isinstance(z, tuple) else z[rows]
                for rows in (slice(PAIRS), slice(PAIRS, 2 * PAIRS))
            )
            pictures["interpolations"] = latents.interpolations(model, a, b, BETWEEN)
    except NotOffered:
        return {}
    return {name: value.detach().float().cpu() for name, value in pictures.items()}


def shown(x: Tensor) -> Tensor:
    """Return the first samples, as many as a report shows."""
    return x[: SHOWN_IMAGES if x.ndim == 4 else SHOWN_POINTS]


# Quality along curves.


def quality_of(model: Any, setup: Setup, samples: int, **how: Any) -> tuple[dict[str, Any], float] | None:
    """Return QUALITIES of newly drawn samples with their floors, and the samples per second.

    The keys are NAME, NAME_floor, and NAME_floor_spread where it is known. None where the data has none of QUALITIES.
    """
    start = time.perf_counter()
    x = draw_samples(model, samples, setup.seed, setup.device, **how)
    per_second = samples / (time.perf_counter() - start)
    if not x.isfinite().all():
        return {"frechet": math.nan}, per_second
    modes = setup.data.modes is not None
    names = [name for name in QUALITIES if modes or name != "high_quality"]
    measurements, _ = measurements_of(model, setup, x, names)
    if not measurements:
        return None
    values: dict[str, Any] = {name: one["value"] for name, one in measurements.items()}
    for part in ("floor", "floor_spread"):
        values |= {f"{name}_{part}": one[part] for name, one in measurements.items() if one.get(part) is not None}
    return values, per_second


def curve_of(
    run: Path, recipe: Path | None, batch: int, every: int, setup: Setup, samples: int
) -> list[dict[str, Any]]:
    """Return quality over training time: QUALITIES at the last stage's checkpoints, every `every` steps and the last.

    Checkpoints in between, which an interruption wrote, are left out. Where the sampler can be chosen, samples are
    drawn in at most CURVE_STEPS steps of SAMPLER.
    Arguments:
        run: the run's folder.
        recipe: the user's own recipe file, or None.
        batch: examples of a step.
        samples: number drawn at each checkpoint.
    """
    spent, points = timeline(run), []
    for step, folder in steps_in(run / "checkpoints").items():
        progress = json.loads((folder / "progress.json").read_text())
        if progress["stage"] != len(progress["ends"]) - 1 or step <= ([0, *progress["ends"]])[-2]:
            continue
        if step % every and step != progress["ends"][-1]:
            continue
        model = load(folder, recipe, device=setup.device)
        steps = sample_steps(model) or 0
        how = {"sampler": Sampler(SAMPLER, CURVE_STEPS)} if steps > CURVE_STEPS else {}
        quality = quality_of(model, setup, samples, **how)
        if quality is not None:
            seconds = max((t for s, t in spent if s <= step), default=0.0)
            points.append({"step": step, "seconds": seconds, "images": step * batch, **quality[0]})
    return points


def sample_steps(model: Any) -> int | None:
    """Return the steps of the sampler of a model, or of its second stage, if `sample` takes a `sampler`; else None."""
    steps = _of_sampler(model, "sample_steps")
    return steps if isinstance(steps, int) and "sampler" in inspect.signature(model.sample).parameters else None


def _of_sampler(model: Any, name: str) -> Any:
    return getattr(model, name, getattr(getattr(model, "second", None), name, None))


def evaluations_of(model: Any, setup: Setup, samples: int) -> tuple[list[dict[str, Any]], str | None]:
    """Return quality over network evaluations per sample: a curve where the sampler can be chosen, else one point.

    The second value is the reason where there is none: the model offers no networks(), or the data has none of
    QUALITIES.
    """
    from ..evaluation.costs import evaluations

    hows: list[dict[str, Any]] = [{}]
    if sample_steps(model) is not None:
        # The network of a discrete chain was not trained at times between its levels.
        most = _of_sampler(model, "timesteps") or math.inf
        hows = [{"sampler": Sampler(SAMPLER, steps)} for steps in EVALUATIONS if steps <= most]
    draw_samples(model, min(ROWS, samples), setup.seed, setup.device)  # the first call is slower
    points = []
    for how in hows:
        try:
            count = evaluations(model, COUNTED, **how)
        except NotOffered as error:
            return [], str(error)
        quality = quality_of(model, setup, samples, **how)
        if quality is None:
            return [], f"{setup.data.name} has none of {', '.join(QUALITIES)}"
        point = {"evaluations": count, **quality[0], "samples_per_second": quality[1]}
        points.append({**point, "sampler": SAMPLER} if how else point)
    return points, None


# The cost of a step.


def costs(recipe: Recipe, entry: Mapping[str, Any], request: Mapping[str, Any], data: Data, device: str) -> list[float]:
    """Return the cost of one step of each stage of a recipe, in the budget's unit, FLOPs or seconds."""
    settings, build = settings_of_plan(recipe, entry, device), recipe.module().build
    if request["kind"] == "flops":
        return flops_of_stages(settings, build, data)
    share, least, most = PILOT
    return seconds_of_stages(
        settings, build, data, min(max(share * request["value"] / len(entry["stages"]), least), most)
    )


def flops_of_stages(settings: Settings, build: Callable[..., list[Stage]], data: Data) -> list[float]:
    """Return the FLOPs of one step of each stage, all players and micro-batches: `evaluation.costs.flops_per_step`."""
    from ..evaluation.costs import batch_of, flops_per_step

    some = few(data, 4 * settings.batch_size)
    seed_all(0)
    stages = build(settings, some)
    return [
        settings.accumulation * flops_per_step(stage, batch_of(stage, some, settings.batch_size)) for stage in stages
    ]


def seconds_of_stages(
    settings: Settings, build: Callable[..., list[Stage]], data: Data, seconds: float, warm_up: int = WARM_UP
) -> list[float]:
    """Return the seconds of one step of each stage, without the first steps; each stage runs for about `seconds`.

    A step is as in a run: batch, turns of all players, logs, moving average. Its time is the mean over the fastest
    fifth of the seconds, since other load on the machine can only slow a step. Streamed images are decoded before, as
    workers do it in a run. Work that comes every k steps, such as a lazy penalty, is missed where a fifth of the
    seconds has fewer than k steps.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.mixed_precision)
    some = few(data, 4 * settings.batch_size)
    seed_all(0)
    seconds_each = []
    for index, stage in enumerate(build(settings, some)):
        stage.root().to(accelerator.device)
        batches = batches_of(stage, index, some, settings, accelerator)
        ema = EMA(stage.model, settings.ema) if settings.ema > 0 else None
        begin = window = time.perf_counter()
        first, fastest = warm_up, math.inf
        # The clock ends the loop below, after at least five timed steps.
        for n, logs in train(stage.players, Readable(batches), accelerator, 10**9):
            if ema is not None:
                ema.update_parameters(stage.model)
            if n % 10 == 0 or n <= warm_up:
                # Reading a value synchronizes with the device.
                float(next(iter(logs.values())))
            now = time.perf_counter()
            if n == warm_up:
                begin = window = now
            elif n % 10 == 0 and n - first >= 5 and now - window >= seconds / 5:
                fastest = min(fastest, (now - window) / (n - first))
                first, window = n, now
                if now - begin >= seconds:
                    break
        seconds_each.append(fastest)
    return seconds_each
