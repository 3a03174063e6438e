"""What every test starts from: one thread, Accelerate's process-wide state as new, small recipes and data."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
# Small players that the tests of one process and those of two ranks share, and known denoisers.
sys.path[:0] = [str(REPOSITORY / "tests" / folder) for folder in ("game", "common")]
# Runs are compared to the bit, and subprocesses get one thread too.
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Print the files that took longest, fixtures included, of all processes."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            seconds[getattr(report, "nodeid", "").partition("::")[0]] += getattr(report, "duration", 0.0)
    slowest = [f"{file} {spent:.0f} s" for file, spent in seconds.most_common(8) if spent >= 1]
    if slowest:
        terminalreporter.write_line(f"slowest files: {', '.join(slowest)}; all {sum(seconds.values()):.0f} s")


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its settings in a process-wide singleton, where the first test's would stay for all."""
    from accelerate.state import AcceleratorState, GradientState

    def reset():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.fixture
def few_digits(monkeypatch):
    """`--data digits` with 24 training and 16 held-out examples: epochs end after three batches of eight."""
    from hybrids import data
    from hybrids.experiment.run import run

    def few(*args, **options):
        whole = data.load_data(*args, **options)
        assert whole.x is not None and whole.labels is not None and whole.held_out is not None
        return replace(whole, x=whole.x[:24], labels=whole.labels[:24], held_out=whole.held_out[:16])

    monkeypatch.setattr(run, "load_data", few)


@pytest.fixture(scope="session")
def launch():
    """Start a script on two ranks of the CPU; `accelerate launch --cpu --num_processes 2` would start one (trap 7)."""

    def start(script, *argv, timeout=240):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        process = subprocess.Popen(
            [*command, str(script), *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # The launcher ends its ranks when it is asked to; killed, it would leave them waiting for each other.
            process.terminate()
            said, _ = process.communicate()
            raise AssertionError(f"two ranks were still running after {timeout} s: {said[-6000:]}") from None
        assert process.returncode == 0, said[-8000:]
        return said

    return start
