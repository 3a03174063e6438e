"""Evaluate a run on held-out data: its likelihood with terms and standard errors, or metrics of its samples.

    python scripts/evaluate.py RUN --likelihood [--importance-samples 100] [--ode] [--examples 200] [--out FILE.json]
    accelerate launch --num_processes 4 scripts/evaluate.py RUN --likelihood      # the same numbers, in less time
    python scripts/evaluate.py RUN --metrics [frechet recall ...] [--samples 2000]     # as in scripts/compare.py
    python scripts/evaluate.py RUN --metrics all my_metrics.py:saturation              # with a metric of your own

Chunks of examples are distributed over the processes; the noise of a chunk depends on its number alone, so the result
does not depend on the number of processes. Finished chunks are stored beside --out, and the same command continues an
interrupted evaluation. --metrics runs on one process.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from hybrids import load
from hybrids.data import Data
from hybrids.evaluation import Measurements, Metric, Scorer, measure
from hybrids.evaluation.chunks import Chunks
from hybrids.evaluation.likelihood import measured_times
from hybrids.evaluation.metrics import LEAST_SAMPLES, metrics_of
from hybrids.experiment import Refusal, checkpoint_of, data_of, refusing
from hybrids.experiment.checkpoints.run_folder import check_writable, lock, refuse_links
from hybrids.files import write_whole
from hybrids.processes import agree, decide_on_main
from hybrids.refusal import as_refusal


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a run on held-out data.", allow_abbrev=False)
    add = parser.add_argument
    add("run", type=Path, help="run folder, or checkpoints/step-N within one")
    add(
        "--metrics",
        nargs="*",
        metavar="NAME",
        help="measure these metrics of samples, latents and cost, or all; FILE.py:FUNCTION is a metric of your own",
    )
    add("--samples", type=int, default=2000, help="number of samples for --metrics (2000)")
    add("--likelihood", action="store_true", help="measure the bound on -log p(x), in nats and bits/dim, and its terms")
    add("--every-level", action="store_true", help="sum the bound over all levels instead of drawing levels")
    add("--draws", type=int, default=4096, help="least number of draws over which random levels are averaged (4096)")
    add("--importance-times", action="store_true", help="draw a diffusion's levels in proportion to the bound")
    add("--importance-samples", type=int, default=0, help="K of the importance-weighted bound (0: none)")
    add("--ode", action="store_true", help="measure log p(x) by the probability flow")
    add("--no-bound", action="store_true", help="skip the bound, for flows of models that have none")
    add("--tolerance", type=float, default=1e-5, help="rtol and atol of the adaptive solver (1e-5)")
    add("--ode-steps", type=int, help="use this number of equal steps of rk4 instead of the adaptive solver")
    add("--divergence", choices=("exact", "rademacher", "gaussian"), help="exact up to 64 dimensions, else rademacher")
    add("--dequantization", choices=("uniform", "encoder"), default="uniform", help="of grey levels, for --ode")
    add("--labels", action="store_true", help="measure p(x|label) of a conditional model")
    add("--split", choices=("held-out", "train"), default="held-out", help="the examples to use (held-out)")
    add("--examples", type=int, help="use only the first so many examples")
    add("--batch-size", type=int, default=64, help="examples in a chunk; it changes the noise (64)")
    add("--seed", type=int, default=0, help="seed of the noise (0)")
    add("--no-ema", action="store_true", help="use the weights themselves, not their moving average")
    add("--device", choices=("auto", "cpu"), default="auto", help="device (auto)")
    add("--recipe", type=Path, help="file of the run's recipe, if it is not one of recipes/")
    add(
        "--data",
        help="data set instead of the run's (vectors at the run's scale); required for one of your own, FILE.py:NAME",
    )
    add("--out", type=Path, help="JSON file of the results (RUN/evaluation.json; with --metrics RUN/measured.json)")
    given = parser.parse_args()
    given.likelihood |= given.ode or given.importance_samples > 0
    if given.likelihood == (given.metrics is not None):
        parser.error(f"give either --likelihood or --metrics; got {'both' if given.likelihood else 'neither'}")
    least_of = {"batch_size": 1, "draws": 1, "importance_samples": 0, "examples": 1, "ode_steps": 1}
    for name, least in {**least_of, "samples": LEAST_SAMPLES}.items():
        if (value := getattr(given, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}; got {value}")
    if not given.tolerance > 0:
        parser.error(f"--tolerance must be above 0; got {given.tolerance}")
    return given


def examples(given: argparse.Namespace, source: Path) -> tuple[Data, Tensor, Tensor | None]:
    """Return the data set, its examples in the stored format, and their labels with --labels."""
    data = data_of(source, given.data)
    held_out = given.split == "held-out"
    x, labels = (data.held_out, data.held_out_labels) if held_out else (data.x, data.labels)
    if x is None or not len(x):
        raise Refusal(f"--split {given.split}: {data.name} has no such examples in memory; use the other split")
    if given.labels and labels is None:
        raise Refusal(f"--labels: {data.name} has no labels; leave it out")
    first = slice(given.examples)
    return data, x[first], labels[first] if given.labels and labels is not None else None


def scorer_of(
    model: nn.Module, given: argparse.Namespace, data: Data, x: Tensor, cond: Tensor | None, total: int
) -> Scorer:
    """Return the scorer that the options describe; x and cond are the first of `total` examples of the data."""
    flow = None
    if given.ode:
        divergence = given.divergence or ("exact" if x[0].numel() <= 64 else "rademacher")
        flow = {"divergence": divergence, "rtol": given.tolerance, "atol": given.tolerance}
        if given.ode_steps is not None:
            flow |= {"method": "rk4", "steps": given.ode_steps}
    return Scorer(
        model,
        repeats=1 if given.every_level else math.ceil(given.draws / total),
        every_level=given.every_level,
        times=measured_times(model, x, cond) if given.importance_times else None,
        importance_samples=given.importance_samples,
        flow=flow,
        dequantization=given.dequantization,
        bound=not given.no_bound,
        rows=max(512, given.batch_size),
        log_scale=data.log_scale,
    )


def finished(out: Path) -> dict[str, Any]:
    """Return the results of a finished evaluation, or an empty dictionary."""
    try:
        results = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    return results if isinstance(results, dict) and isinstance(results.get("likelihood"), dict) else {}


def table(likelihood: dict[str, Any]) -> str:
    """Return a line for each number of a likelihood."""
    width = max(map(len, likelihood), default=0)
    shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in likelihood.items()}
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())


def metrics_table(measurements: Measurements, known: Mapping[str, Metric]) -> str:
    """Return a line for each metric: value, interval, floor, unit; a dash and the reason for a missing one."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    rows = [("metric", "value", "95% interval", "floor", "unit")]
    for name, one in measurements.items():
        interval = "" if one.low is None else f"{number(one.low)} to {number(one.high)}"
        rows.append((name, number(one.value), interval, number(one.floor), known[name].unit))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    wide = max(map(len, [*measurements, *measurements.missing]))
    return "\n".join([*lines, *(f"{name:<{wide}}  -  {why}" for name, why in measurements.missing.items())])


def measure_samples(given: argparse.Namespace, accelerator: Accelerator) -> None:
    """Measure the metrics of --metrics on the main process, write and print them."""
    if not accelerator.is_main_process:
        return
    source = checkpoint_of(given.run)
    with as_refusal("--metrics"):
        metrics = metrics_of(given.metrics or None)
    out = out_of(given, source, "measured.json")
    model = load(source, given.recipe, ema=not given.no_ema, device=accelerator.device)
    with as_refusal(f"--metrics of {given.run}"):
        measurements = measure(
            model,
            data_of(source, given.data),
            accelerator.device,
            samples=given.samples,
            seed=given.seed,
            metrics=metrics,
        )
    settings = {"checkpoint": source.name, "samples": given.samples, "seed": given.seed}
    known = {metric.name: metric for metric in metrics}
    entries = {name: {**asdict(one), "says": known[name].says} for name, one in measurements.items()}
    body = {"run": str(given.run), "settings": settings, "metrics": entries, "missing": measurements.missing}
    write_whole(out, json.dumps(body, indent=2) + "\n")
    print(f"{metrics_table(measurements, known)}\n{out}")


def out_of(given: argparse.Namespace, source: Path, name: str) -> Path:
    """Return the file of the results, --out or `name` in the run folder of a checkpoint; refuse one not to be written.

    The parts are beside it, in a folder that must not lead out of a stranger's run.
    """
    folder = source.parent.parent if source.parent.name == "checkpoints" else source
    out: Path = given.out or folder / name
    if out.is_dir():
        raise Refusal(f"--out {out}: is a folder; expected the name of a JSON file")
    check_writable(out.parent)
    refuse_links(out.parent, files=(), folders=(parts_of(out).name,))
    return out


def parts_of(out: Path) -> Path:
    """Return the folder of the finished chunks of an evaluation."""
    return out.with_name(f".{out.name}.parts")


def measure_likelihood(given: argparse.Namespace, accelerator: Accelerator, stack: ExitStack) -> None:
    """Measure the likelihood on all processes; write and print it on the main one."""
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    source = checkpoint_of(given.run)
    out = decide_on_main(accelerator, lambda: out_of(given, source, "evaluation.json"))
    assert out is not None
    model = load(source, given.recipe, ema=not given.no_ema, device=accelerator.device)
    data, stored, labels = examples(given, source)
    cuts = [slice(i, i + given.batch_size) for i in range(0, len(stored), given.batch_size)]

    def of(part: slice) -> tuple[Tensor, Tensor | None]:
        x = data.decode(stored[part]).to(accelerator.device)
        return x, None if labels is None else labels[part].to(accelerator.device)

    others = ("run", "out", "device", "recipe", "metrics", "samples")
    settings = {name: value for name, value in vars(given).items() if name not in others}
    digest = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    settings |= {"checkpoint": source.name, "digest": digest, "data": data.name, "found": len(stored)}
    settings = json.loads(json.dumps(settings))
    chunks = Chunks(parts_of(out), settings)

    if decide_on_main(accelerator, lambda: out if finished(out).get("settings") == settings else None) is not None:
        if main:
            print(f"{table(finished(out)['likelihood'])}\n{out}: already finished with these settings", flush=True)
        return
    # All processes measure the importance of levels on the same noise, so that they agree.
    torch.manual_seed(given.seed)
    try:
        with as_refusal(f"--likelihood of {given.run}"):
            scorer = scorer_of(model, given, data, *of(slice(512)), len(stored))
    except TypeError as error:
        raise Refusal(f"--likelihood of {given.run}: {error}") from None

    def claim() -> None:
        stack.enter_context(lock(chunks.folder))
        if changed := chunks.claim():
            print(f"settings changed ({', '.join(changed)}): starting from the beginning", flush=True)

    decide_on_main(accelerator, claim)
    mine = range(rank, len(cuts), world)
    left = [number for number in mine if number not in chunks]
    bar = tqdm(left, total=len(mine), initial=len(mine) - len(left), desc="chunks", dynamic_ncols=True,
               mininterval=0.2 if sys.stderr.isatty() else 10, disable=not main)  # fmt: skip
    failure = None
    try:
        for number in bar:
            torch.manual_seed(given.seed + number)
            chunks.write(number, scorer(*of(cuts[number])))
    except (ValueError, TypeError) as error:
        failure = f"--likelihood of {given.run}: {error}"
    if errors := agree(accelerator, failure):
        if main and not any(number in chunks for number in range(len(cuts))):
            chunks.remove()
        raise Refusal(errors)
    if main:
        with as_refusal("--out"):
            values = [chunks.read(number) for number in range(len(cuts))]
        likelihood = scorer.summary(values, stored[0].numel())
        body = {"run": str(given.run), "settings": settings, "likelihood": likelihood}
        write_whole(out, json.dumps(body, indent=2) + "\n")
        chunks.remove()
        print(f"{table(likelihood)}\n{out}")
    accelerator.wait_for_everyone()


def main() -> None:
    given = arguments()
    accelerator = Accelerator(cpu=given.device == "cpu")
    try:
        with refusing(), ExitStack() as stack:
            if given.metrics is None:
                measure_likelihood(given, accelerator, stack)
            else:
                measure_samples(given, accelerator)
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    main()
