"""Draw samples from a run: a picture, and the numbers if asked.

    python scripts/sample.py RUN [--number 64] [--seed 0] [--label 3] [--out FILE.png] [--tensor FILE.safetensors]
    python scripts/sample.py RUN --sampler dpm_solver_pp --steps 16 --spacing karras         # diffusion, also latent
    accelerate launch --num_processes 4 scripts/sample.py RUN --number 50000 --tensor FILE   # the same samples, sooner

Samples are drawn in chunks, which are dealt to the processes. A chunk has a generator of its own, of the seed and its
number, so the number of processes changes nothing; another --chunk is other noise.
"""

import argparse
import math
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from components.samplers import METHODS, Sampler
from hybrids import load
from hybrids.data import Data
from hybrids.experiment import Refusal, refusing
from hybrids.experiment.checkpoints.run_folder import check_writable, refuse_links
from hybrids.experiment.run.loading import checkpoint_of, described_data
from hybrids.files import write_tensors, write_whole
from hybrids.pictures import save_picture
from hybrids.processes import agree, decide_on_main

STRIDE = 1_000_003
"""Between the seeds of chunks: runs of neighbouring seeds have no chunk in common, as they would at a stride of 1."""


def sampler_options() -> dict[str, tuple[type, Field[Any]]]:
    """Every option of `Sampler` and of its methods by name, with the class that has it: each is a flag."""
    options: dict[str, tuple[type, Field[Any]]] = {}
    for kind in (Sampler, *METHODS.values()):
        options |= {field.name: (kind, field) for field in fields(kind) if field.name not in options}
    return options


def add_flag(parser: argparse.ArgumentParser, kind: type, field: Field[Any]) -> None:
    """Add the flag of an option, of the option's type; None means that it was not given."""
    hint = get_type_hints(kind)[field.name]
    if type(None) in get_args(hint):
        hint = next(part for part in get_args(hint) if part is not type(None))
    how: dict[str, Any] = {"help": field.metadata["help"], "default": None}
    if hint is bool:
        how["action"] = argparse.BooleanOptionalAction
    elif get_origin(hint) is Literal:
        how["choices"] = get_args(hint)
    elif get_origin(hint) is tuple:
        how |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
    else:
        how["type"] = hint
    parser.add_argument(f"--{field.name.replace('_', '-')}", **how)


def given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw samples from a run.", allow_abbrev=False)
    add = parser.add_argument
    add("run", type=Path, help="run folder, or checkpoints/step-N within one")
    add("--number", type=int, default=64, help="how many samples (64)")
    add("--seed", type=int, default=0, help="seed of the noise (0)")
    add("--label", help="the class to draw, by name or number, of a conditional model; without, any")
    add("--chunk", type=int, default=256, help="samples drawn at a time (256)")
    add("--no-ema", action="store_true", help="the weights themselves, not their moving average")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw them")
    add("--recipe", type=Path, help="the file of the run's recipe, if it is not one of recipes/")
    add("--out", type=Path, help="picture; default RUN/samples/drawn-SEED.png")
    add(
        "--tensor",
        type=Path,
        help="also write the samples here, as safetensors: images in [-1, 1], vectors as the data",
    )
    add("--sampler", choices=list(METHODS), help="of diffusions; default: the run's own, as of all that follow")
    for name, (kind, field) in sampler_options().items():
        if name != "method":
            add_flag(parser, kind, field)
    arguments = parser.parse_args()
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not on this machine
        parser.error(f"--device {arguments.device}: {str(error).splitlines()[0]}; expected cpu, cuda or mps")
    if arguments.number < 1 or arguments.chunk < 1:
        parser.error(f"--number and --chunk must be at least 1; got {arguments.number} and {arguments.chunk}")
    return arguments


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"


def sampler_of(arguments: argparse.Namespace, model: nn.Module) -> Sampler | None:
    """The model's sampler with the options that were given; None where none was. Raises Refusal for what cannot be."""
    options = {name: value for name in sampler_options() if (value := getattr(arguments, name, None)) is not None}
    own: Sampler | None = getattr(model, "sampler", None)
    if own is None:
        names = [*(["sampler"] if arguments.sampler else []), *options]
        if names:
            raise Refusal([f"{flag(name)}: {type(model).__name__} has no sampler to set" for name in names])
        return None
    of_sampler = {field.name for field in fields(Sampler)}
    of_method = {name: value for name, value in options.items() if name not in of_sampler}
    method = type(own.method) if arguments.sampler is None else METHODS[arguments.sampler]
    own_options = (
        {} if method is not type(own.method) else {f.name: getattr(own.method, f.name) for f in fields(method)}
    )
    errors, chosen = [], arguments.sampler or f"the method of the run, {method.__name__}"
    for name in of_method.keys() - {field.name for field in fields(method)}:
        owners = " or ".join(key for key, kind in METHODS.items() if name in {field.name for field in fields(kind)})
        errors.append(f"{flag(name)} goes with --sampler {owners}; got {chosen}")
    if arguments.label is None:
        errors += [
            f"{flag(name)}: there is nothing to guide by without --label"
            for name in options
            if name.startswith("guidance")
        ]
    if errors:
        raise Refusal(errors)
    options = {name: value for name, value in options.items() if name in of_sampler}
    if arguments.sampler is not None or of_method:
        options["method"] = method(**own_options | of_method)
    return own.but(**options) if options else None


def label_of(arguments: argparse.Namespace, model: nn.Module, data: Data) -> int | None:
    """Return the number of the label that was given, if one was. Raises Refusal for one that the model has not."""
    if arguments.label is None:
        return None
    classes = next((c for m in model.modules() if (c := getattr(m, "num_classes", None)) is not None), 0)
    if not classes:
        raise Refusal(f"--label {arguments.label}: expected none, since the model was trained without labels")
    try:
        return data.label(arguments.label)
    except ValueError as error:
        raise Refusal(f"--{error}") from error


def draw(
    model: nn.Module, arguments: argparse.Namespace, label: int | None, device: torch.device, accelerator: Accelerator
) -> Tensor | None:
    """All samples (number, *event) on the main process, None on others."""
    try:
        sampler = sampler_of(arguments, model)
    except ValueError as error:
        raise Refusal(str(error)) from error
    options: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    main = accelerator.is_main_process
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
                if label is not None:
                    options["cond"] = torch.full((size,), label, device=device)
                own.append((i, model.sample(size, generator=generator, **options).cpu()))  # type: ignore[operator]
                bar.update(size)
    except ValueError as error:
        failure = f"samples: {error}"
    # a process that has no chunk would wait for those that failed
    if errors := agree(accelerator, failure):
        raise Refusal(errors)
    every = sorted(gather_object(own), key=lambda chunk: chunk[0])
    return torch.cat([x for _, x in every]) if main else None


def check_outputs(arguments: argparse.Namespace) -> None:
    """Choose the default of --out, and refuse files that could not be written, before anything is drawn."""
    if arguments.out is None:
        run, name = arguments.run, f"drawn-{arguments.seed}.png"
        if run.parent.name == "checkpoints":
            run, name = run.parent.parent, f"{run.name}-{name}"
        refuse_links(run, files=(), folders=("samples",))
        arguments.out = run / "samples" / name
    for option, path in (("--out", arguments.out), ("--tensor", arguments.tensor)):
        if path is not None:
            if path.is_dir():
                raise Refusal(f"{option} {path}: is a folder; expected the name of a file")
            check_writable(path.parent, option)


def main() -> None:
    arguments = given()
    accelerator = Accelerator(cpu=torch.device(arguments.device).type == "cpu")
    device = torch.device(arguments.device) if accelerator.num_processes == 1 else accelerator.device
    with refusing():
        model = load(arguments.run, arguments.recipe, ema=not arguments.no_ema, device=device)
        data = described_data(checkpoint_of(arguments.run))
        label = label_of(arguments, model, data)
        decide_on_main(accelerator, lambda: check_outputs(arguments))
        x = draw(model, arguments, label, device, accelerator)
        if x is not None:
            x = data.to_data(x)
            save_picture(x, arguments.out, mean=data.mean, scale=data.scale)
            of = "" if label is None else f", label {label}"
            if label is not None and data.class_names:
                of += f" ({data.class_names[label]})"
            print(f"{len(x)} samples of {tuple(x.shape[1:])}{of}: {arguments.out}")
            if arguments.tensor is not None:
                write_whole(arguments.tensor, lambda temporary: write_tensors(temporary, {"x": x}))
                print(f"as numbers: {arguments.tensor}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
