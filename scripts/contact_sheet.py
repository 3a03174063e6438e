"""Put real examples and the samples of several runs side by side, with what a classifier of real digits makes of them.

python scripts/contact_sheet.py RUN [RUN …] --out FILE.png
"""

import argparse
import json
from pathlib import Path

import torch

from hybrids import load
from hybrids.data import digits
from hybrids.evaluation import agreement
from hybrids.experiment import refusing
from hybrids.experiment.pictures import picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Real digits and the samples of runs, side by side.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, trained on digits")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    arguments = parser.parse_args()

    panels = []
    for run in arguments.runs:
        with refusing():
            model = load(run)
        x = model.sample(200, generator=torch.Generator().manual_seed(arguments.seed))
        summary = json.loads((run / "summary.json").read_text())
        panels.append((f"{summary['recipe']}, {summary['steps']} steps", x))
    real = digits(panels[0][1].shape[-1])
    assert real.held_out is not None
    panels.insert(0, ("real, held out", real.decode(real.held_out)))

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(panels), 3.5), dpi=100)
    FigureCanvasAgg(figure)
    for i, (title, x) in enumerate(panels):
        seen = agreement(x)
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.imshow(picture(x[:64]).permute(1, 2, 0).numpy())
        axes.set_axis_off()
        axes.set_title(f"{title}\nconfidence {seen['confidence']:.2f}, {seen['classes']:.0f} classes", fontsize=9)
        print(f"{title}: {', '.join(f'{name} {value:.3f}' for name, value in seen.items())}")
    for run in arguments.runs:
        print(f"{run.name}: grids in {run / 'samples'}, TensorBoard logs in {run / 'tensorboard'}")
    figure.tight_layout()
    figure.savefig(arguments.out)
    print(f"side by side: {arguments.out}")


if __name__ == "__main__":
    main()
