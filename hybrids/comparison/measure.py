"""Measure one run of a comparison: what its steps cost, its figures and samples, quality over time and evaluations."""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.samplers import Sampler

from ..data import Data
from ..ema import EMA
from ..evaluation.metrics import ROWS, draw, measure, measured_real, metric_of
from ..experiment import Settings, checkpoint_of, data_of, load
from ..experiment.checkpoints.manifest import steps_in
from ..experiment.run.batches import batches_of, read, seed_all
from ..files import write_tensors, write_whole
from ..game import train
from ..models import NotOffered
from ..own import is_own
from ..stage import Stage
from .plan import checkpoint_every, settings_of_plan
from .recipes import Recipe
from .runs import Run, timeline

__all__ = [
    "EVALUATIONS", "QUALITIES", "Bench", "complete", "costs", "curve_of", "device_named", "evaluations_of",
    "measure_real", "measure_run", "real_complete", "sample_steps",
]  # fmt: skip

FORMAT = 4
QUALITIES = {"high_quality": "higher", "frechet": "lower"}
"""What quality is told in along curves and over seeds, and which end is better: the first that the data has.

Of points with a known density the share near a mode: means and covariances hardly tell points between modes from points
on them.
"""
EVALUATIONS = (1, 2, 4, 8, 16, 32, 64)
SAMPLER = "ddim"
"""What the curve over evaluations draws with: the one solver that every schedule and any number of steps has."""
COUNTED = 4
"""Samples whose evaluations are counted; all take as many."""
CURVE_STEPS = 32
"""Of that sampler, at most, at each checkpoint: a chain's own hundreds at each would cost more than its training."""
SHOWN_IMAGES, SHOWN_POINTS = 256, 4000
PAIRS, BETWEEN = 4, 8
PILOT = 0.05, 2.0, 10.0
"""The share of a budget of seconds that a pilot of a stage takes, and the least and most seconds of it."""
WARM_UP = 5


@dataclass(frozen=True)
class Bench:
    """What everything is measured with: the data, the device, the seed, and a folder where classifiers are kept."""

    data: Data
    device: torch.device
    seed: int
    cache: Path


def device_named(name: str) -> torch.device:
    """Return the device that `--device` means."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def measure_run(run: Run, entry: Mapping[str, Any], request: Mapping[str, Any], device: torch.device) -> None:
    """Measure a finished run, but for what has been: part by part into `run.measured`, samples into `run.samples`.

    Arguments: entry, of the plan; request, what the plan was asked for.
    """
    source, recipe = checkpoint_of(run.folder), Recipe(entry.get("given", run.recipe))
    done = earlier(run.measured, key_of(source, request))
    model = load(source, recipe.file, device=device)
    bench = Bench(data_of(source, request["data"]), device, run.seed, run.out / "measured" / "features")

    def keep(**parts: Any) -> None:
        done.update(parts)
        write_whole(run.measured, json.dumps(done) + "\n")

    if "figures" not in done or not run.samples.is_file():
        x = draw(model, request["samples"], run.seed, device)
        samples = {"samples": shown(x), **pictures_of(model, bench)}
        write_whole(run.samples, lambda path: write_tensors(path, samples))
        figures, missing = figures_of(model, bench, x, request["metrics"])
        keep(figures=figures, missing=missing, own_metrics=own_metrics(request["metrics"]))
    if "flops_per_step" not in done:
        try:
            flops = flops_of_stages(settings_of_plan(recipe, entry), recipe.module().build, bench.data)
        except Exception as error:
            # What cannot be counted must not cost what is measured.
            done["missing"]["flops_per_step"] = f"{type(error).__name__}: {error}"
            flops = None
        keep(flops_per_step=flops)
    if "curve" not in done:
        every, samples_each = checkpoint_every(entry), request["curve_samples"]
        keep(curve=curve_of(run.folder, recipe.file, entry["batch"], every, bench, samples_each))
    if "evaluations_curve" not in done:
        points, why = evaluations_of(model, bench, request["curve_samples"])
        if why is not None:
            done["missing"]["rate_at_quality"] = why
        keep(evaluations_curve=points)


def measure_real(out: Path, data: Data, request: Mapping[str, Any], device: torch.device) -> None:
    """Measure real examples as if they were samples, into `out`/measured/real.json, and keep some of them."""
    n = request["samples"]
    cache = out / "measured" / "features"
    figures = measured_real(data, device, samples=n, seed=0, metrics=request["metrics"], cache=cache)
    stored = data.held_out if data.held_out is not None else data.x
    if data.density is not None:
        some = data.density.sample(SHOWN_POINTS, torch.Generator().manual_seed(0))
    else:
        some = torch.empty(0) if stored is None else data.decode(stored[:SHOWN_POINTS])
        # As many as there are, of the half that samples are not compared with where none is held out.
        n = min(n, len(data) - len(data) // 2 if data.held_out is None else len(data.held_out))
    body = {
        "key": key_of(None, request),
        "samples": request["samples"],
        "n": n,
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "missing": figures.missing,
    }
    write_whole(
        out / "samples" / "real.safetensors", lambda path: write_tensors(path, {"samples": shown(some.float())})
    )
    write_whole(out / "measured" / "real.json", json.dumps(body) + "\n")


# What has been measured before.


def earlier(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured before of the same; nothing of anything else."""
    with suppress(OSError, ValueError):
        done = json.loads(path.read_text())
        if done["key"] == key:
            return done
    return {"key": key}


def key_of(source: Path | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a measurement depends on: weights (their manifest's digest), what was asked, files of metrics.

    source: a checkpoint, or None for real examples.
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
    """Whether all of a run has been measured."""
    done = earlier(run.measured, key_of(checkpoint_of(run.folder), request))
    return "evaluations_curve" in done and run.samples.is_file()


def real_complete(out: Path, request: Mapping[str, Any]) -> bool:
    """Whether real examples have been measured."""
    return "figures" in earlier(out / "measured" / "real.json", key_of(None, request))


# Figures and pictures.


def figures_of(
    model: Any, bench: Bench, x: Tensor, metrics: Sequence[str] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the figures of samples x, and of the other metrics why they are missing; "samples": why all are."""
    if not x.isfinite().all():
        return {}, {"samples": "some samples are not finite"}
    given: dict[str, Any] = {"samples": len(x), "seed": bench.seed, "x": x, "cache": bench.cache}
    try:
        figures = measure(model, bench.data, bench.device, metrics=metrics, **given)
    except ValueError as error:
        return {}, {"samples": str(error)}
    return {name: asdict(figure) for name, figure in figures.items()}, dict(figures.missing)


def own_metrics(metrics: Sequence[str] | None) -> list[dict[str, str]]:
    """Return what the report says of the metrics of one's own: name, axis, better, unit, says."""
    own = [metric_of(text) for text in metrics or () if is_own(text)]
    return [{name: getattr(one, name) for name in ("name", "axis", "better", "unit", "says")} for one in own]


def pictures_of(model: Any, bench: Bench) -> dict[str, Tensor]:
    """Return held-out images, what comes back of them by way of latents, and ways from one to another.

    Nothing for a model that has no latents. Where it has no encoder, they are searched for: `latents.invert`.
    """
    from ..evaluation import latents

    data = bench.data
    if data.held_out is None or not data.is_image:
        return {}
    x = data.decode(data.held_out[:16]).to(bench.device)
    try:
        z = latents.latents(model, x, steps=100, restarts=2)
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
    """Return as many samples as a report shows."""
    return x[: SHOWN_IMAGES if x.ndim == 4 else SHOWN_POINTS]


# Quality along curves.


def quality_of(model: Any, bench: Bench, samples: int, **how: Any) -> tuple[dict[str, Any], float] | None:
    """Return QUALITIES of newly drawn samples, the floor of each at that number of samples, and samples a second.

    NAME, NAME_floor, and NAME_floor_spread where it is known. None where the data has none of them.
    """
    start = time.perf_counter()
    x = draw(model, samples, bench.seed, bench.device, **how)
    rate = samples / (time.perf_counter() - start)
    if not x.isfinite().all():
        return {"frechet": math.nan}, rate
    modes = bench.data.modes is not None
    figures, _ = figures_of(model, bench, x, [name for name in QUALITIES if modes or name != "high_quality"])
    if not figures:
        return None
    values: dict[str, Any] = {name: figure["value"] for name, figure in figures.items()}
    for part in ("floor", "floor_spread"):
        values |= {f"{name}_{part}": each[part] for name, each in figures.items() if each.get(part) is not None}
    return values, rate


def curve_of(
    run: Path, recipe: Path | None, batch: int, every: int, bench: Bench, samples: int
) -> list[dict[str, Any]]:
    """Return quality over training time: QUALITIES at checkpoints of the last stage, each `every` steps and last.

    What a stop wrote in between is left out: the curve is that of the plan. Where the sampler can be adjusted, samples
    are drawn in at most CURVE_STEPS steps of SAMPLER. Arguments: recipe, the file of one's own.
    """
    spent, points = timeline(run), []
    for step, folder in steps_in(run / "checkpoints").items():
        progress = json.loads((folder / "progress.json").read_text())
        if progress["stage"] != len(progress["ends"]) - 1 or step <= ([0, *progress["ends"]])[-2]:
            continue
        if step % every and step != progress["ends"][-1]:
            continue
        model = load(folder, recipe, device=bench.device)
        steps = sample_steps(model) or 0
        how = {"sampler": Sampler(SAMPLER, CURVE_STEPS)} if steps > CURVE_STEPS else {}
        quality = quality_of(model, bench, samples, **how)
        if quality is not None:
            seconds = max((t for s, t in spent if s <= step), default=0.0)
            points.append({"step": step, "seconds": seconds, "images": step * batch, **quality[0]})
    return points


def sample_steps(model: Any) -> int | None:
    """Return the steps of the sampler that `sample(sampler=)` takes, of the model or of its second stage; else None."""
    steps = _of_sampler(model, "sample_steps")
    return steps if isinstance(steps, int) and "sampler" in inspect.signature(model.sample).parameters else None


def _of_sampler(model: Any, name: str) -> Any:
    return getattr(model, name, getattr(getattr(model, "second", None), name, None))


def evaluations_of(model: Any, bench: Bench, samples: int) -> tuple[list[dict[str, Any]], str | None]:
    """Return quality over network evaluations a sample: a curve where the sampler can be adjusted, else one point.

    And why there is none, of a model that does not name its networks, or data that has none of QUALITIES.
    """
    from ..evaluation.costs import evaluations

    hows: list[dict[str, Any]] = [{}]
    if sample_steps(model) is not None:
        # Between a chain's levels its network was not trained.
        most = _of_sampler(model, "timesteps") or math.inf
        hows = [{"sampler": Sampler(SAMPLER, steps)} for steps in EVALUATIONS if steps <= most]
    draw(model, min(ROWS, samples), bench.seed, bench.device)  # the first call is slower
    points = []
    for how in hows:
        try:
            count = evaluations(model, COUNTED, **how)
        except NotOffered as error:
            return [], str(error)
        quality = quality_of(model, bench, samples, **how)
        if quality is None:
            return [], f"{bench.data.name} has none of {', '.join(QUALITIES)}"
        point = {"evaluations": count, **quality[0], "samples_per_second": quality[1]}
        points.append({**point, "sampler": SAMPLER} if how else point)
    return points, None


# What a step costs.


def costs(recipe: Recipe, entry: Mapping[str, Any], request: Mapping[str, Any], data: Data, device: str) -> list[float]:
    """Return what one step of each stage of a recipe costs, in the budget's unit, FLOPs or seconds."""
    settings, build = settings_of_plan(recipe, entry, device), recipe.module().build
    if request["kind"] == "flops":
        return flops_of_stages(settings, build, data)
    share, least, most = PILOT
    return seconds_of_stages(
        settings, build, data, min(max(share * request["value"] / len(entry["stages"]), least), most)
    )


def few(data: Data, n: int) -> Data:
    """Return the first n examples, where they are in memory: enough to know what a step costs."""
    parts = {name: getattr(data, name) for name in ("x", "labels", "factors")}
    return replace(data, **{name: part[:n] for name, part in parts.items() if part is not None})


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
    """Return the seconds of one step of each stage, the first steps left out; about `seconds` are spent on each stage.

    A step is what a run does in it: the batch, all turns, the logs, the moving average. Its time is the mean over the
    fastest fifth of those seconds: what else a machine does can only slow a step, and would cost a recipe its steps.
    Work that comes every k steps, as a lazy penalty, is missed where a fifth of the seconds has fewer than k.
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
        # Never reached: the loop below ends it by the clock, after at least five steps that count.
        for n, logs in train(stage.players, read(batches), accelerator, 10**9):
            if ema is not None:
                ema.update_parameters(stage.model)
            if n % 10 == 0 or n <= warm_up:
                # Reading a number waits for the device.
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
