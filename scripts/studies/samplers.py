"""How good are samples for how many evaluations of the network? Every sampler on one diffusion run of images.

    python scripts/studies/samplers.py RUN [--evaluations 1 2 4 8 16 32 64 1000] [--samples 1000] [--out runs/samplers]

All start from the same noise. Each number is against the held-out examples, beside that of as many training examples,
which is what a perfect model would have. Writes OUT/samplers.json, OUT/samplers.md and OUT/samplers.png; what is found
there already is not drawn again. docs/samplers.md tells what came out.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from components.samplers import METHODS, Sampler, Spacing
from hybrids import load
from hybrids.comparison.measure import sample_steps
from hybrids.comparison.study import table
from hybrids.data import Data
from hybrids.evaluation import agreement
from hybrids.experiment import Refusal, checkpoint_of, data_of, refusing

EVALUATIONS = (1, 2, 4, 8, 16, 32, 64, 1000)
DEFAULT = [name for name in METHODS if name != "euler"]
CHUNK = 250
REAL = "training examples"


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖ over √d, unbiased; x (N, D), y (M, D). Székely & Rizzo 2013.

    It is 0 in mean for equal distributions, and above for others.
    """
    x, y = x.double(), y.double()

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return ((2 * torch.cdist(x, y).mean() - within(x) - within(y)) / math.sqrt(x.shape[1])).item()


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 500) -> float:
    """√ of the mean of W_2² over random directions; x (N, D), y (M, D). Rabin 2011; it is not 0 for finite sets."""
    x, y = x.double(), y.double()
    theta = torch.randn(x.shape[1], directions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    a, b = (torch.quantile(z @ theta, levels, dim=0) for z in (x, y))
    return (a - b).square().mean().sqrt().item()


def measures(x: Tensor, held_out: Tensor, data: Data) -> dict[str, float]:
    """What is said of images (N, C, H, W)."""
    flat, real = x.flatten(1), held_out.flatten(1)
    found = {
        "energy_distance": energy_distance(flat, real),
        "sliced_wasserstein": sliced_wasserstein(flat, real),
    }
    if data.name == "digits":
        seen = agreement(x)
        found |= {name: seen[name] for name in ("confidence", "rarest_class_share")}
    return found


def steps_for(name: str, evaluations: int, clean: bool) -> int:
    """The most steps of a sampler that take no more evaluations; 0 if there are none."""
    # a last step to no noise is Euler's; where noise is left at t = 0 the end is one more evaluation, for the mean
    each = METHODS[name].evaluations
    return (evaluations + each - 1) // each if clean else (evaluations - 1) // each


def draw(model: Any, diffusion: Any, arguments: argparse.Namespace, **how: Any) -> tuple[Tensor, int]:
    """Samples, and how often each asked the network."""
    calls = []
    (network,) = diffusion.networks().values()
    hook = network.register_forward_hook(lambda *_: calls.append(None))
    generator = torch.Generator(arguments.device).manual_seed(arguments.seed)
    sizes = [min(CHUNK, arguments.samples - done) for done in range(0, arguments.samples, CHUNK)]
    try:
        x = torch.cat([model.sample(size, generator=generator, **how).cpu() for size in sizes])
    finally:
        hook.remove()
    return x, len(calls) // len(sizes)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Each measure over the number of evaluations, a panel for each; the dashed line is that of real examples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    real, drawn = rows[0], rows[1:]
    shown = [name for name in ("energy_distance", "sliced_wasserstein", "confidence") if name in real]
    spacings = list(dict.fromkeys(row["spacing"] for row in drawn))
    figure = Figure(figsize=(5.5 * len(shown), 4.5), dpi=100)
    FigureCanvasAgg(figure)
    for i, measure in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        for colour, name in enumerate(METHODS):
            for spacing, dash in zip(spacings, ("-", "--", ":", "-.", (0, (1, 4)))):
                some = [row for row in drawn if (row["sampler"], row["spacing"]) == (name, spacing)]
                if not some:
                    continue
                label = name if len(spacings) == 1 else f"{name}, {spacing}"
                points = [row["evaluations"] for row in some], [row[measure] for row in some]
                axes.plot(*points, marker="o", markersize=3, color=f"C{colour}", linestyle=dash, label=label)
        axes.axhline(real[measure], color="black", linewidth=0.8, linestyle=(0, (5, 5)), label=REAL)
        axes.set_xscale("log", base=2)
        if measure != "confidence":
            # What is left of the distance is near 0, and may be below where it is unbiased.
            axes.set_yscale("symlog", linthresh=2e-3) if measure == "energy_distance" else axes.set_yscale("log")
            axes.set_ylim(bottom=min(-2e-3, 2 * real[measure]) if measure == "energy_distance" else None)
        axes.set(xlabel="evaluations of the network", title=measure.replace("_", " "))
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows: real examples, then every setting."""
    folder = arguments.run
    source = checkpoint_of(folder)
    model = load(source, arguments.recipe, device=arguments.device)
    diffusion = getattr(model, "second", model)
    if sample_steps(model) is None:
        raise Refusal(f"{folder}: expected a diffusion, or a latent one; got a {type(model).__name__}")
    data = data_of(source)
    if not data.is_image or data.x is None or data.held_out is None:
        raise Refusal(f"{folder}: expected a data set of images with held-out examples in memory; got {data.name}")
    held_out, real = data.decode(data.held_out[:2000]), data.decode(data.x[: arguments.samples])

    card = {"run": str(folder), "checkpoint": source.name, "samples": arguments.samples, "seed": arguments.seed}
    path = arguments.out / "samplers.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    done = before.get("rows", []) if before.get("settings") == card else []
    rows = [{"sampler": REAL, "spacing": "", **measures(real, held_out, data)}]
    clean = getattr(diffusion, "starts_clean", True)
    # in their order, and once where two budgets allow the same steps
    cells = dict.fromkeys(
        (name, spacing, steps)
        for spacing in arguments.spacings
        for name in arguments.samplers
        for budget in sorted(arguments.evaluations)
        # between a chain's levels its network was not trained
        if 0 < (steps := steps_for(name, budget, clean)) <= (getattr(diffusion, "timesteps", None) or steps)
    )
    bar = tqdm(cells, dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 10)
    for name, spacing, steps in bar:
        bar.set_description(f"{name}, {spacing}, {steps} steps")
        key = {"sampler": name, "spacing": spacing, "steps": steps}
        row = next((row for row in done if key.items() <= row.items()), None)
        if row is None:
            start = time.perf_counter()
            x, evaluations = draw(model, diffusion, arguments, sampler=Sampler(name, steps, spacing))
            seconds = time.perf_counter() - start
            row = {**key, "evaluations": evaluations, **measures(x, held_out, data), "seconds": round(seconds, 2)}
        rows.append(row)
        path.write_text(json.dumps({"settings": card, "rows": [*rows, *(r for r in done if r not in rows)]}, indent=2))
    path.write_text(json.dumps({"settings": card, "rows": rows}, indent=2) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Samples against evaluations of the network.")
    add = parser.add_argument
    add("run", type=Path, help="run folder of a diffusion, or checkpoints/step-N within one")
    add("--evaluations", nargs="+", type=int, default=list(EVALUATIONS), help="how many each sample may take")
    add("--samplers", nargs="+", choices=list(METHODS), default=DEFAULT, help="which (all but euler, which is ddim)")
    add("--spacings", nargs="+", choices=get_args(Spacing), default=["trailing"], help="of their times (trailing)")
    add("--samples", type=int, default=1000, help="how many are drawn of each (1000)")
    add("--seed", type=int, default=0, help="seed of the noise (0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to draw them")
    add("--recipe", type=Path, help="the file of the run's recipe, if it is not one of recipes/")
    add("--out", type=Path, default=Path("runs/samplers"), help="folder of the table and the plot")
    arguments = parser.parse_args()
    if arguments.samples < 2 or min(arguments.evaluations) < 1:
        parser.error("--samples must be at least 2 and --evaluations at least 1")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with refusing():
        rows = study(arguments)
    (arguments.out / "samplers.md").write_text(table(rows))
    plot(rows, arguments.out / "samplers.png")
    print(f"{table(rows)}{arguments.out / 'samplers.png'}")


if __name__ == "__main__":
    main()
