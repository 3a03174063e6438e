"""Draw samples from a run: a picture, and the numbers if asked.

    python scripts/sample.py RUN [--number 64] [--seed 0] [--label 3] [--out FILE.png] [--tensor FILE.safetensors]
    python scripts/sample.py RUN --sampler dpm_solver_pp --steps 16 --spacing karras         # diffusion, also latent
    accelerate launch --num_processes 4 scripts/sample.py RUN --number 50000 --tensor FILE   # the same samples, sooner

Samples are drawn in chunks, which are dealt to the processes. A chunk has a generator of its own, of the seed and its
number, so the number of processes changes nothing; another --chunk is other noise.
"""

import argparse
import inspect
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from components.samplers import SAMPLERS, Spacing
from hybrids import load
from hybrids.experiment import Refusal, refusing
from hybrids.experiment.pictures import save_picture
from hybrids.experiment.ranks import agree

STRIDE = 1_000_003
"""Between the seeds of chunks: runs of neighbouring seeds have no chunk in common, as they would at a stride of 1."""
GUIDING = ("guidance_scale", "guidance_interval", "guidance_rescale")


def given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw samples from a run.", allow_abbrev=False)
    add = parser.add_argument
    add("run", type=Path, help="run folder, or checkpoints/step-N within one")
    add("--number", type=int, default=64, help="how many samples (64)")
    add("--seed", type=int, default=0, help="seed of the noise (0)")
    add("--label", type=int, help="the class to draw, of a conditional model; without, any")
    add("--sampler", choices=list(SAMPLERS), help="of diffusions; default: the run's own, as of all that follow")
    add("--steps", type=int, help="of the sampler; each is one evaluation of the network, of heun's two")
    add("--spacing", choices=get_args(Spacing), help="of the sampler's times")
    add("--eta", type=float, help="noise of ddim, from 0, none, to 1, as much as ancestral")
    add("--guidance-scale", type=float, help="as in diffusers, 1 is none")
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="the times, 0 to 1, that are guided")
    add("--guidance-rescale", type=float, help="0 to 1: how far guided x̂ is brought back to the spread without")
    add("--thresholding", type=float, help="quantile of dynamic thresholding, such as 0.995")
    add("--chunk", type=int, default=256, help="samples drawn at a time (256)")
    add("--no-ema", action="store_true", help="the weights themselves, not their moving average")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw them")
    add("--recipe", type=Path, help="the file of the run's recipe, if it is not one of recipes/")
    add("--out", type=Path, help="picture; default RUN/samples/drawn-SEED.png")
    add("--tensor", type=Path, help="also write the samples here, as safetensors, in [-1, 1]")
    arguments = parser.parse_args()
    if arguments.number < 1 or arguments.chunk < 1:
        parser.error(f"--number and --chunk must be at least 1; got {arguments.number} and {arguments.chunk}")
    if arguments.eta is not None and arguments.sampler != "ddim":
        parser.error(f"--eta goes with --sampler ddim; got --sampler {arguments.sampler}")
    return arguments


def drawing(arguments: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    """What the model's `sample` is given beside noise and labels. Raises Refusal for what it does not take."""
    classes = next((c for m in model.modules() if (c := getattr(m, "num_classes", None)) is not None), 0)
    label, errors = arguments.label, []
    if label is not None and not 0 <= label < classes:
        errors.append(f"--label {label}: expected " + (f"0 to {classes - 1}" if classes else "none: no labels"))
    options = {
        name: value
        for name in ("sampler", "steps", "spacing", *GUIDING, "thresholding")
        if (value := getattr(arguments, name)) is not None
    }
    # A latent model hands what it does not know on to its second stage.
    known = {**inspect.signature(model.sample).parameters}  # type: ignore[arg-type]
    known |= inspect.signature(model.second.sample).parameters if hasattr(model, "second") else {}  # type: ignore[operator,union-attr]
    for name in options:
        flag = f"--{name.replace('_', '-')}"
        if name not in known:
            errors.append(f"{flag}: {type(model).__name__} has no such thing")
        elif name in GUIDING and label is None:
            errors.append(f"{flag}: there is nothing to guide by without --label")
        elif name in GUIDING[1:] and options.get("guidance_scale", 1.0) == 1.0:
            errors.append(f"{flag}: changes nothing without guidance; give --guidance-scale other than 1")
    if errors:
        raise Refusal(errors)
    if "sampler" in options:
        sampler = SAMPLERS[arguments.sampler]
        options["sampler"] = sampler if arguments.eta is None else partial(sampler, eta=arguments.eta)
    return options


def draw(
    model: nn.Module, arguments: argparse.Namespace, device: torch.device, accelerator: Accelerator
) -> Tensor | None:
    """All samples (number, *event) on the main process, None on others."""
    options, main = drawing(arguments, model), accelerator.is_main_process
    own: list[tuple[int, Tensor]] = []
    numbers = range(accelerator.process_index, math.ceil(arguments.number / arguments.chunk), accelerator.num_processes)
    sizes = {i: min(arguments.chunk, arguments.number - i * arguments.chunk) for i in numbers}
    pause = 0.2 if sys.stderr.isatty() else 10
    bar = tqdm(total=sum(sizes.values()), unit="sample", dynamic_ncols=True, mininterval=pause, disable=not main)
    failure = None
    try:
        with bar:
            for i, size in sizes.items():
                generator = torch.Generator(device).manual_seed(arguments.seed + STRIDE * i)
                cond = None if arguments.label is None else torch.full((size,), arguments.label, device=device)
                own.append((i, model.sample(size, cond=cond, generator=generator, **options).cpu()))  # type: ignore[operator]
                bar.update(size)
    except ValueError as error:
        failure = f"samples: {error}"
    # a process that has no chunk would wait for those that failed
    if errors := agree(accelerator, failure):
        raise Refusal(errors)
    every = sorted(gather_object(own), key=lambda chunk: chunk[0])
    return torch.cat([x for _, x in every]) if main else None


def main() -> None:
    arguments = given()
    accelerator = Accelerator(cpu=torch.device(arguments.device).type == "cpu")
    device = torch.device(arguments.device) if accelerator.num_processes == 1 else accelerator.device
    with refusing():
        model = load(arguments.run, arguments.recipe, ema=not arguments.no_ema, device=device)
        x = draw(model, arguments, device, accelerator)
    if x is not None:
        run, name = arguments.run, f"drawn-{arguments.seed}.png"
        if run.parent.name == "checkpoints":
            run, name = run.parent.parent, f"{run.name}-{name}"
        out = arguments.out or run / "samples" / name
        save_picture(x, out)
        print(f"{len(x)} samples of {tuple(x.shape[1:])}: {out}")
        if arguments.tensor is not None:
            from safetensors.torch import save_file

            save_file({"x": x.contiguous()}, arguments.tensor)
            print(f"as numbers: {arguments.tensor}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
