"""Measure the quality of samples over network evaluations, for every sampler on one diffusion run of images.

    python scripts/studies/samplers.py RUN [--evaluations 1 2 4 8 16 32 64 1000] [--samples 1000] [--out runs/samplers]

All samplers start from the same noise. Distances are to the held-out examples; those of as many training examples are
the values of a perfect model. Writes OUT/samplers.json, OUT/samplers.md and OUT/samplers.png; settings that are in
OUT/samplers.json already are not measured again. docs/samplers.md has the results.
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
    """Return (2 E‖x - y‖ - E‖x - x'‖ - E‖y - y'‖)/√D, unbiased; x (N, D), y (M, D). Székely & Rizzo 2013.

    Its expectation is 0 for equal distributions, and positive for others.
    """
    x, y = x.double(), y.double()

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return ((2 * torch.cdist(x, y).mean() - within(x) - within(y)) / math.sqrt(x.shape[1])).item()


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 500) -> float:
    """Return √ of the mean of W_2² over random directions; x (N, D), y (M, D). Rabin 2011. Finite sets have a floor."""
    x, y = x.double(), y.double()
    theta = torch.randn(x.shape[1], directions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    probabilities = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    a, b = (torch.quantile(z @ theta, probabilities, dim=0) for z in (x, y))
    return (a - b).square().mean().sqrt().item()


def measures(x: Tensor, held_out: Tensor, data: Data) -> dict[str, float]:
    """Return the metrics of images (N, C, H, W), by name."""
    flat, real = x.flatten(1), held_out.flatten(1)
    values = {
        "energy_distance": energy_distance(flat, real),
        "sliced_wasserstein": sliced_wasserstein(flat, real),
    }
    if data.name == "digits":
        statistics = agreement(x)
        values |= {name: statistics[name] for name in ("confidence", "rarest_class_share")}
    return values


def steps_for(diffusion: Any, name: str, evaluations: int) -> int:
    """Return the most steps of a sampler that take at most so many evaluations; 0 if there are none."""
    each = METHODS[name].evaluations
    if getattr(diffusion, "starts_clean", True) or diffusion.ends_in_mean:
        return (evaluations + each - 1) // each
    # The last step ends in x_0, which a reconstruction of one's own may take another evaluation to decode.
    return (evaluations - 1) // each


def draw_samples(model: Any, diffusion: Any, arguments: argparse.Namespace, **how: Any) -> tuple[Tensor, int]:
    """Draw samples; return them and the network evaluations per sample."""
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
    """Plot each metric over the number of evaluations in its own panel; real examples as a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    real, sampled = rows[0], rows[1:]
    shown = [name for name in ("energy_distance", "sliced_wasserstein", "confidence") if name in real]
    spacings = list(dict.fromkeys(row["spacing"] for row in sampled))
    figure = Figure(figsize=(5.5 * len(shown), 4.5), dpi=100)
    FigureCanvasAgg(figure)
    for i, measure in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        for colour, name in enumerate(METHODS):
            for spacing, dash in zip(spacings, ("-", "--", ":", "-.", (0, (1, 4)))):
                some = [row for row in sampled if (row["sampler"], row["spacing"]) == (name, spacing)]
                if not some:
                    continue
                label = name if len(spacings) == 1 else f"{name}, {spacing}"
                points = [row["evaluations"] for row in some], [row[measure] for row in some]
                axes.plot(*points, marker="o", markersize=3, color=f"C{colour}", linestyle=dash, label=label)
        axes.axhline(real[measure], color="black", linewidth=0.8, linestyle=(0, (5, 5)), label=REAL)
        axes.set_xscale("log", base=2)
        if measure != "confidence":
            # An unbiased distance near 0 may be negative.
            axes.set_yscale("symlog", linthresh=2e-3) if measure == "energy_distance" else axes.set_yscale("log")
            axes.set_ylim(bottom=min(-2e-3, 2 * real[measure]) if measure == "energy_distance" else None)
        axes.set(xlabel="evaluations of the network", title=measure.replace("_", " "))
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def study(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the table's rows: real examples, then all settings."""
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

    settings = {"run": str(folder), "checkpoint": source.name, "samples": arguments.samples, "seed": arguments.seed}
    path = arguments.out / "samplers.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    done = before.get("rows", []) if before.get("settings") == settings else []
    rows = [{"sampler": REAL, "spacing": "", **measures(real, held_out, data)}]
    # In order, and once where two budgets allow the same steps.
    cells = dict.fromkeys(
        (name, spacing, steps)
        for spacing in arguments.spacings
        for name in arguments.samplers
        for budget in sorted(arguments.evaluations)
        # The network of a discrete chain was not trained at times between its levels.
        if 0 < (steps := steps_for(diffusion, name, budget)) <= (getattr(diffusion, "timesteps", None) or steps)
    )
    bar = tqdm(cells, dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 10)
    for name, spacing, steps in bar:
        bar.set_description(f"{name}, {spacing}, {steps} steps")
        key = {"sampler": name, "spacing": spacing, "steps": steps}
        row = next((row for row in done if key.items() <= row.items()), None)
        if row is None:
            start = time.perf_counter()
            x, evaluations = draw_samples(model, diffusion, arguments, sampler=Sampler(name, steps, spacing))
            seconds = time.perf_counter() - start
            row = {**key, "evaluations": evaluations, **measures(x, held_out, data), "seconds": round(seconds, 2)}
        rows.append(row)
        path.write_text(
            json.dumps({"settings": settings, "rows": [*rows, *(r for r in done if r not in rows)]}, indent=2)
        )
    path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of samples over network evaluations.")
    add = parser.add_argument
    add("run", type=Path, help="run folder of a diffusion, or checkpoints/step-N within one")
    add("--evaluations", nargs="+", type=int, default=list(EVALUATIONS), help="network evaluations per sample")
    add("--samplers", nargs="+", choices=list(METHODS), default=DEFAULT, help="samplers (all but euler, which is ddim)")
    add("--spacings", nargs="+", choices=get_args(Spacing), default=["trailing"], help="spacings of times (trailing)")
    add("--samples", type=int, default=1000, help="samples drawn with each setting (1000)")
    add("--seed", type=int, default=0, help="seed of the noise (0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device")
    add("--recipe", type=Path, help="file of the run's recipe, if it is not one of recipes/")
    add("--out", type=Path, default=Path("runs/samplers"), help="folder of the table and the plot")
    arguments = parser.parse_args()
    if arguments.samples < 2 or min(arguments.evaluations) < 1:
        parser.error(
            f"--samples must be at least 2 and --evaluations at least 1; got {arguments.samples} and "
            f"{min(arguments.evaluations)}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    with refusing():
        rows = study(arguments)
    (arguments.out / "samplers.md").write_text(table(rows))
    plot(rows, arguments.out / "samplers.png")
    print(f"{table(rows)}{arguments.out / 'samplers.png'}")


if __name__ == "__main__":
    main()
