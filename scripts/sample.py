"""Draw samples from a run: a picture, and the numbers if asked.

    python scripts/sample.py RUN [--number 64] [--seed 0] [--label 3] [--out FILE.png] [--tensor FILE.safetensors]
"""

import argparse
import inspect
from pathlib import Path

import torch
from torch import nn

from hybrids import load
from hybrids.experiment import refusing
from hybrids.experiment.pictures import save_picture
from hybrids.experiment.refusal import asked


def draw(
    model: nn.Module, n: int, label: int | None, generator: torch.Generator, options: dict[str, float]
) -> torch.Tensor:
    """n samples, of one label if there is one. Raises ValueError for what the model does not take."""
    classes = next((c for m in model.modules() if (c := getattr(m, "num_classes", None)) is not None), 0)
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"--label {label}: expected " + (f"0 to {classes - 1}" if classes else "none: no labels"))
    cond = None if label is None else torch.full((n,), label, device=generator.device)
    # A latent model hands what it does not know on to its second stage.
    known = {**inspect.signature(model.sample).parameters}
    known |= inspect.signature(model.second.sample).parameters if hasattr(model, "second") else {}  # type: ignore[operator,union-attr]
    if options and label is None:
        raise ValueError("--guidance-scale: there is nothing to guide by without --label")
    for name in options:
        if name not in known:
            raise ValueError(f"--{name.replace('_', '-')}: {type(model).__name__} has no such thing")
    return model.sample(n, cond=cond, generator=generator, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw samples from a run.")
    parser.add_argument("run", type=Path, help="run folder, or checkpoints/step-N within one")
    parser.add_argument("--number", type=int, default=64, help="how many samples (64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    parser.add_argument("--label", type=int, help="the class to draw, of a conditional model; without, any")
    parser.add_argument("--guidance-scale", type=float, help="as in diffusers, 1 is none; default: the run's own")
    parser.add_argument("--chunk", type=int, default=256, help="samples drawn at a time (256)")
    parser.add_argument("--no-ema", action="store_true", help="the weights themselves, not their moving average")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw them")
    parser.add_argument("--recipe", type=Path, help="the file of the run's recipe, if it is not one of recipes/")
    parser.add_argument("--out", type=Path, help="picture; default RUN/samples/drawn-SEED.png")
    parser.add_argument("--tensor", type=Path, help="also write the samples here, as safetensors, in [-1, 1]")
    arguments = parser.parse_args()
    if arguments.number < 1 or arguments.chunk < 1:
        parser.error(f"--number and --chunk must be at least 1; got {arguments.number} and {arguments.chunk}")

    with refusing():
        model = load(arguments.run, arguments.recipe, ema=not arguments.no_ema, device=arguments.device)
    generator = torch.Generator(arguments.device).manual_seed(arguments.seed)
    sizes = [min(arguments.chunk, arguments.number - done) for done in range(0, arguments.number, arguments.chunk)]
    options = {} if arguments.guidance_scale is None else {"guidance_scale": arguments.guidance_scale}
    with refusing(), asked("samples"):
        x = torch.cat([draw(model, size, arguments.label, generator, options).cpu() for size in sizes])
    folder = arguments.run.parent.parent if arguments.run.parent.name == "checkpoints" else arguments.run
    out = arguments.out or folder / "samples" / f"drawn-{arguments.seed}.png"
    save_picture(x, out)
    print(f"{len(x)} samples of {tuple(x.shape[1:])}: {out}")
    if arguments.tensor is not None:
        from safetensors.torch import save_file

        save_file({"x": x.contiguous()}, arguments.tensor)
        print(f"as numbers: {arguments.tensor}")


if __name__ == "__main__":
    main()
