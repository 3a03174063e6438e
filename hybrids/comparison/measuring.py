"""Measure one run of a comparison: its figures, its samples, quality over training time and over evaluations."""

import hashlib
import json
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.samplers import Sampler

from ..data import Data, Mixture
from ..evaluation.metrics import ROWS, draw
from ..experiment import checkpoint_of, data_of, load
from ..experiment.manifest import steps_in
from ..files import write_tensors, write_whole
from ..models import Diffusion
from .aggregate import QUALITIES
from .runs import Run, timeline

__all__ = ["EVALUATIONS", "Bench", "complete", "curve_of", "evaluations_of", "measure_real", "measure_run"]

FORMAT = 3
EVALUATIONS = (1, 2, 4, 8, 16, 32, 64)
SAMPLER = "ddim"
"""What the curve over evaluations draws with: the one solver that every schedule and any number of steps has."""
COUNTED = 4
"""Samples whose evaluations are counted; all take as many."""
CURVE_STEPS = 32
"""Of that sampler, at most, at each checkpoint: a chain's own hundreds at each would cost more than its training."""
SHOWN_IMAGES, SHOWN_POINTS = 256, 4000
PAIRS, BETWEEN = 4, 8


@dataclass(frozen=True)
class Bench:
    """What everything is measured with: the data, the device, the seed, and a folder where classifiers are kept."""

    data: Data
    device: torch.device
    seed: int
    cache: Path


def figures_of(
    model: Any, bench: Bench, x: Tensor, metrics: Collection[str] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The figures of samples x, and why those are missing that were asked for by name and cannot be had."""
    from ..evaluation.metrics import measure

    given: dict[str, Any] = {"samples": len(x), "seed": bench.seed, "x": x, "cache": bench.cache}
    missing: dict[str, str] = {}
    try:
        found = measure(model, bench.data, bench.device, metrics=metrics, **given)
    except ValueError:
        if metrics is None:
            raise
        # One that this model cannot have must not cost the others.
        found = {}
        for name in metrics:
            try:
                found |= measure(model, bench.data, bench.device, metrics=[name], **given)
            except ValueError as error:
                missing[name] = str(error)
    return {name: asdict(figure) for name, figure in found.items()}, missing


def pictures_of(model: Any, bench: Bench) -> dict[str, Tensor]:
    """Held-out images, what comes back of them by way of latents, and ways from one to another; of known models.

    Where a model has no encoder, latents are found by optimization: `hybrids.evaluation.latents.search.invert`.
    """
    from ..evaluation.latents import control

    data = bench.data
    if data.held_out is None or not data.is_image:
        return {}
    x = data.decode(data.held_out[:16]).to(bench.device)
    try:
        z = control.latents(model, x, steps=100, restarts=2)
        found = {"originals": x, "reconstructions": control.decode(model, z)}
        if len(z) >= 2 * PAIRS:
            found["interpolations"] = control.interpolations(model, z[:PAIRS], z[PAIRS : 2 * PAIRS], BETWEEN)
    except TypeError:
        # Another model than hybrids.models'.
        return {}
    return {name: value.detach().float().cpu() for name, value in found.items()}


def shown(x: Tensor) -> Tensor:
    """As many samples as a report shows."""
    return x[: SHOWN_IMAGES if x.ndim == 4 else SHOWN_POINTS]


def quality_of(model: Any, bench: Bench, samples: int, **how: Any) -> tuple[dict[str, Any], float] | None:
    """The metrics of QUALITIES of newly drawn samples, the floor of each (NAME_floor), and samples a second.

    None where the data has none of them.
    """
    start = time.perf_counter()
    x = draw(model, samples, bench.seed, bench.device, **how)
    rate = samples / (time.perf_counter() - start)
    if not x.isfinite().all():
        return {"frechet": float("nan")}, rate
    modes = isinstance(bench.data.density, Mixture)
    found, _ = figures_of(model, bench, x, [name for name in QUALITIES if modes or name != "high_quality"])
    if not found:
        return None
    values = {name: figure["value"] for name, figure in found.items()}
    return values | {f"{name}_floor": figure["floor"] for name, figure in found.items()}, rate


def curve_of(run: Path, batch: int, every: int, bench: Bench, samples: int) -> list[dict[str, Any]]:
    """Quality over training time: QUALITIES at checkpoints of the last stage, each `every` steps and last.

    What a stop wrote in between is left out: the curve is that of the plan. Where the sampler can be adjusted, samples
    are drawn in at most CURVE_STEPS steps of SAMPLER.
    """
    spent, points = timeline(run), []
    for step, folder in steps_in(run / "checkpoints").items():
        progress = json.loads((folder / "progress.json").read_text())
        if progress["stage"] != len(progress["ends"]) - 1 or step <= ([0, *progress["ends"]])[-2]:
            continue
        if step % every and step != progress["ends"][-1]:
            continue
        model = load(folder, device=bench.device)
        found = quality_of(model, bench, samples, **_quick(model))
        if found is not None:
            seconds = max((t for s, t in spent if s <= step), default=0.0)
            points.append({"step": step, "seconds": seconds, "images": step * batch, **found[0]})
    return points


def _quick(model: Any) -> dict[str, Any]:
    diffusion = getattr(model, "second", model)
    if not isinstance(diffusion, Diffusion) or diffusion.sample_steps <= CURVE_STEPS:
        return {}
    return {"sampler": Sampler(SAMPLER, CURVE_STEPS)}


def evaluations_of(model: Any, bench: Bench, samples: int) -> list[dict[str, Any]]:
    """Quality over network evaluations a sample: a curve where the sampler can be adjusted, else one point.

    Empty for a model whose networks are not known.
    """
    from ..evaluation.costs import evaluations

    diffusion, points = getattr(model, "second", model), []
    draw(model, min(ROWS, samples), bench.seed, bench.device)  # the first call is slower
    curve = isinstance(diffusion, Diffusion)
    for steps in EVALUATIONS if curve else (0,):
        if curve and steps > (diffusion.timesteps or steps):
            # Between a chain's levels its network was not trained.
            break
        how: dict[str, Any] = {"sampler": Sampler(SAMPLER, steps)} if curve else {}
        try:
            count = evaluations(model, COUNTED, **how)
        except TypeError:
            return []
        found = quality_of(model, bench, samples, **how)
        if found is None:
            return []
        point = {"evaluations": count, **found[0], "samples_per_second": found[1]}
        points.append({**point, "sampler": SAMPLER} if curve else point)
    return points


def kept(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """What was measured before of the same; nothing of anything else."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if found["key"] == key:
            return found
    return {"key": key}


def key_of(source: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What a measurement depends on: the weights, by the digest of their manifest, and what was asked."""
    digest = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    names = ("samples", "curve_samples", "metrics")
    return {"format": FORMAT, "digest": digest, **{name: asked[name] for name in names}}


def complete(run: Run, asked: dict[str, Any]) -> bool:
    """Whether all of a run has been measured."""
    found = kept(run.measured, key_of(checkpoint_of(run.folder), asked))
    return "evaluations_curve" in found and run.samples.is_file()


def measure_run(run: Run, entry: dict[str, Any], asked: dict[str, Any], device: torch.device) -> None:
    """Measure a finished run, but for what has been: part by part into `run.measured`, samples into `run.samples`."""
    from .budgets import flops_of_stages
    from .plan import checkpoint_every, settings_of_plan

    source = checkpoint_of(run.folder)
    found = kept(run.measured, key_of(source, asked))
    model: nn.Module = load(source, device=device)
    bench = Bench(data_of(source), device, run.seed, run.out / "measured" / "features")

    def keep(**parts: Any) -> None:
        found.update(parts)
        run.measured.parent.mkdir(parents=True, exist_ok=True)
        write_whole(run.measured, json.dumps(found) + "\n")

    if "figures" not in found or not run.samples.is_file():
        x = draw(model, asked["samples"], run.seed, device)
        run.samples.parent.mkdir(parents=True, exist_ok=True)
        samples = {"samples": shown(x), **pictures_of(model, bench)}
        write_whole(run.samples, lambda temporary: write_tensors(temporary, samples))
        if x.isfinite().all():
            figures, missing = figures_of(model, bench, x, asked["metrics"])
        else:
            figures, missing = {}, {"samples": "some samples are not finite"}
        keep(figures=figures, missing=missing)
    if "flops_per_step" not in found:
        from ..experiment import load_recipe

        try:
            flops = flops_of_stages(settings_of_plan(run.recipe, entry), load_recipe(run.recipe).build, bench.data)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            found.setdefault("missing", {})["flops_per_step"] = str(error)
            flops = None
        keep(flops_per_step=flops)
    if "curve" not in found:
        keep(curve=curve_of(run.folder, entry["batch"], checkpoint_every(entry), bench, asked["curve_samples"]))
    if "evaluations_curve" not in found:
        keep(evaluations_curve=evaluations_of(model, bench, asked["curve_samples"]))


def measure_real(out: Path, data: Data, asked: dict[str, Any], device: torch.device) -> None:
    """Measure real examples as if they were samples, into `out`/measured/real.json, and keep some of them."""
    from ..evaluation.metrics import measured_real

    figures = measured_real(data, device, samples=asked["samples"], seed=0, cache=out / "measured" / "features")
    if data.density is not None:
        some = data.density.sample(SHOWN_POINTS, torch.Generator().manual_seed(0))
    else:
        stored = data.held_out if data.held_out is not None else data.x
        some = torch.empty(0) if stored is None else data.decode(stored)
    (out / "samples").mkdir(parents=True, exist_ok=True)
    (out / "measured").mkdir(parents=True, exist_ok=True)
    write_tensors(out / "samples" / "real.safetensors", {"samples": shown(some.float())})
    body = {"samples": asked["samples"], "figures": {name: asdict(figure) for name, figure in figures.items()}}
    write_whole(out / "measured" / "real.json", json.dumps(body) + "\n")
