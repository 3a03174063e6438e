"""Each recipe on two ranks, straight and stopped and resumed; started by `tests/experiment/test_run.py`."""

import os
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("game", "experiment")]

import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from small import TINY  # noqa: E402
from test_script import ddpm, script  # noqa: E402

from hybrids import experiment  # noqa: E402
from hybrids.experiment import load_recipe  # noqa: E402
from hybrids.experiment.run import run as runs  # noqa: E402

OUT = Path(sys.argv[1])
END = Accelerator.end_training


def run(name, out, *argv):
    """One whole run; the process group stays for the next one. Its exit code."""
    # PartialState, which holds the process group, stays.
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    recipe = load_recipe(name)
    common = ["--device", "cpu", "--batch-size", "4", "--log-every", "50", "--keep-checkpoints", "9", "--steps", "6"]
    try:
        experiment.main(recipe.Settings, recipe.build, [*common, *TINY[name], "--out", str(OUT / out), *argv])
    except SystemExit as error:
        return error.code
    return 0


def signalled(players, batches, accelerator, steps, start, skip_nonfinite):
    """`train`, with a signal to rank 1 alone, in the middle of the accumulation of step 3."""
    calls, inner = [], players[0].loss
    takes_step, players[0].takes_step = players[0].takes_step, True

    def loss(x, step):
        calls.append(step)
        if step == 2 and calls.count(2) == 1 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(x, step=step) if takes_step else inner(x)

    object.__setattr__(players[0], "loss", loss)
    return TRAIN(players, batches, accelerator, steps, start, skip_nonfinite)


TRAIN = runs.train


def main():
    Accelerator.end_training = lambda self: None
    for name in TINY:
        every = ["--accumulation", "2", "--checkpoint-every", "3"]
        assert run(name, f"{name}-straight", *every) == 0
        runs.train = signalled
        assert run(name, f"{name}-resumed", *every) == experiment.STOPPED
        runs.train = TRAIN
        # Whatever is logged, all stop within two steps of the signal.
        newest = max(int(path.name[5:]) for path in (OUT / f"{name}-resumed/checkpoints").glob("step-*"))
        assert 3 <= newest <= 5, newest
        assert run(name, f"{name}-resumed", *every, "--resume", "auto") == 0
    for folder, stops in (("straight", [6]), ("stopped", [3, 6])):
        for seed, stop in enumerate(stops):
            AcceleratorState._reset_state(False)
            GradientState._reset_state()
            script(ddpm, OUT / f"script-{folder}", stop, seed)
    a = Accelerator(cpu=True)
    assert a.num_processes == 2
    a.wait_for_everyone()
    END(a)


if __name__ == "__main__":
    main()
