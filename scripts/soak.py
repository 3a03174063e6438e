"""Kill runs at random moments, resume them, and compare what they end with to a run that was never stopped.

    python scripts/soak.py [--kills 30] [--seed 0] [--keep FOLDER]

Each kill takes the next of two recipes, on one process and on two: a run with a checkpoint every third step is started,
killed by SIGKILL (all of its processes) or by a signal that lets it save, at a random moment, resumed by --resume auto
until it is done. Weights, optimizers, averages, random numbers and position must then be the straight run's to the bit.
Exit codes: 0, no difference; 1, some.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = {
    "vae": "--width 8 --latent 4",
    "ddpm": "--width 8 --resolution 8 --timesteps 8 --sample-steps 4 --dropout 0.1",
}
STEPS = 60
LIMIT = 600
"""Seconds until a run that has not ended counts as hanging."""


def start(recipe: str, processes: int, out: Path, *more: str) -> list[subprocess.Popen]:
    """Start the processes of a run, without a launcher, whose death would leave them alive."""
    run = (
        f"{REPOSITORY}/recipes/{recipe}.py --device cpu --batch-size 4 --steps {STEPS} --checkpoint-every 3 --out {out}"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        ranks = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    started = []
    for rank in range(processes):
        own = {**env, **ranks, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else env
        with out.with_name(f"{out.name}-{rank}.log").open("a") as log:
            words = [sys.executable, *run.split(), *RECIPES[recipe].split(), *more]
            started.append(subprocess.Popen(words, env=own, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(run: list[subprocess.Popen], out: Path) -> None:
    """Wait for a run to end. Raises SystemExit, with what its first process printed, if it failed."""
    codes = [process.wait(LIMIT) for process in run]
    if any(codes):
        raise SystemExit(f"a run ended with {codes}:\n{out.with_name(f'{out.name}-0.log').read_text()[-4000:]}")


def kill(run: list[subprocess.Popen], kind: signal.Signals, after: float) -> None:
    """Send a signal to all processes of a run, so many seconds from now, and wait for their end."""
    time.sleep(after)
    for process in run:
        # One that has ended, and was not waited for, takes it without effect.
        process.send_signal(kind)
    for process in run:
        process.wait(LIMIT)


def differences(a: Path, b: Path) -> list[str]:
    """The names of what is not bit-equal in the last checkpoints of two runs."""
    folders = [run / "checkpoints" / f"step-{STEPS}" for run in (a, b)]
    a_names, b_names = (
        {path.name for path in folder.iterdir()} - {"manifest.json", "progress.json"} for folder in folders
    )
    different = sorted(a_names ^ b_names)
    for name in sorted(a_names & b_names):
        one, other = (folder / name for folder in folders)
        if not name.endswith(".safetensors"):
            different += [name] * (one.read_bytes() != other.read_bytes())
            continue
        tensors, others = load_file(one), load_file(other)
        both = tensors.keys() & others.keys()
        different += [f"{name}: {key}" for key in tensors.keys() ^ others.keys()]
        different += [f"{name}: {key}" for key in both if not torch.equal(tensors[key], others[key])]
    logs = [[_untimed(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    return different + ["metrics.jsonl"] * (logs[0] != logs[1])


def _untimed(line: str) -> dict[str, float]:
    return {tag: value for tag, value in json.loads(line).items() if not tag.startswith("time/")}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the soak; exit with 1 if a resumed run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="a folder in which the runs stay")
    given = parser.parse_args(argv)
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = given.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        cases = [("vae", 1), ("ddpm", 2), ("vae", 2), ("ddpm", 1)]
        seconds: dict[tuple[str, int], float] = {}
        killed, failed, number = 0, 0, 0
        while killed < given.kills:
            recipe, processes = cases[number % len(cases)]
            out, number = root / f"{recipe}-{processes}-{number}", number + 1
            if (recipe, processes) not in seconds:
                began = time.perf_counter()
                straight = root / f"{recipe}-{processes}"
                finish(start(recipe, processes, straight, "--overwrite"), straight)
                seconds[recipe, processes] = time.perf_counter() - began
            for _ in range(min(moments.randint(1, 3), given.kills - killed)):
                kind = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                after = moments.uniform(0.2, 1) * seconds[recipe, processes]
                kill(start(recipe, processes, out, "--resume", "auto"), kind, after)
                killed += 1
            finish(start(recipe, processes, out, "--resume", "auto"), out)
            wrong = differences(root / f"{recipe}-{processes}", out)
            failed += bool(wrong)
            print(f"{killed} kills: {recipe} on {processes}: {', '.join(wrong[:5]) or 'no difference'}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
