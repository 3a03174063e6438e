"""A run on two ranks, of which rank 1 signals itself, or has a bad batch, in its fourth step; see `test_run.py`."""

import os
import signal
import sys

import torch
from torch import nn

from hybrids import Player, Terms, experiment
from hybrids.experiment import Stage

KIND, OUT = sys.argv[1:]


def build(settings, data):
    layer = nn.Linear(64, 1)
    layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)

    def loss(x, step):
        if step == 3 and os.environ["RANK"] == "1" and KIND != "NaN":
            os.kill(os.getpid(), getattr(signal, KIND))
        return Terms(a=layer(x.flatten(1))[:, 0].square())

    return [Stage("toy", layer, [Player(loss, [layer], name="toy")], batches=Bad() if KIND == "NaN" else None)]


class Bad:
    """Batches of zeros; the fourth of rank 1 is NaN."""

    def __iter__(self):
        yield from [torch.zeros(4, 1, 8, 8)] * 3
        yield torch.full((4, 1, 8, 8), float("nan") if os.environ["RANK"] == "1" else 0.0)

    def state_dict(self):
        return {}


if __name__ == "__main__":
    words = f"--device cpu --resolution 8 --batch-size 4 --steps 9 --checkpoint-every 2 --timeout 8 --out {OUT}"
    experiment.main(experiment.Settings, build, words.split())
