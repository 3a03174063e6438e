"""Training and measurement of a comparison: pilots, runs and measurements, each in its own process.

Finished work is skipped, so the same command continues a comparison that was interrupted or killed.
"""

import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..experiment import STOPPED
from ..experiment.checkpoints.run_folder import lock
from ..experiment.run.signals import Signals
from ..files import write_whole
from .measure import complete, device_named, real_complete
from .plan import Options, check, data_of_options, make_plan, run_words, with_lengths, write_plan
from .recipes import Recipe
from .runs import Run, progress, read_json, reason

__all__ = ["Comparison", "Job", "Pool", "Stopped", "compare", "gpus"]

REPOSITORY = Path(__file__).parents[2]
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
PATIENCE = 150
"""Most retries of a run whose folder is still locked by a process of a comparison that was killed."""


def compare(options: Options, command: str = "") -> int:
    """Train and measure what is not finished of a comparison; return the exit code, as of a run.

    `summary.report_of` then writes the report. Raises Refusal, before training, for invalid options.
    Arguments:
        options: of the comparison.
        command: the command line, for the report.
    """
    check(options)
    data = data_of_options(options)
    with lock(options.out):
        plan = make_plan(options, data)
        with Signals() as stop, _Bar() as bar:
            comparison = Comparison(options, plan, Pool(options.jobs, gpus(options.device), stop), bar.show)
            try:
                comparison.pilots()
                comparison.train()
                comparison.measure()
            except Stopped:
                print(f"stopped by a signal; the same command continues in {options.out}", flush=True)
                return STOPPED
        write_whole(options.out / "machine.json", json.dumps({**_machine(options), "command": command}) + "\n")
    return 0


class Comparison:
    """The phases of a comparison.

    Arguments:
        options: of the comparison.
        plan: `make_plan` of them.
        pool: runs the processes.
        show: called with a text, and with the finished and the total number of steps where they are known.
    """

    def __init__(self, options: Options, plan: dict[str, Any], pool: "Pool", show: Callable[..., None]) -> None:
        self.options, self.plan, self.pool, self.show = options, plan, pool, show
        self.entries = {name: entry for name, entry in plan["recipes"].items() if entry["refused"] is None}

    def pilots(self) -> None:
        """Set the number of steps of each recipe; for budgets other than images measure the cost of a step first."""
        kind, folder = self.plan["asked"]["kind"], self.options.out / "pilots"
        jobs: deque[Job] = deque()

        def set_length(name: str) -> bool:
            costs = None if kind == "images" else read_json(folder / f"{name}.json").get(kind)
            if kind != "images" and costs is None:
                return False
            self.entries[name].pop("why", None)
            try:
                with_lengths(self.options.out, self.plan, name, costs)
            except ValueError as error:
                self.entries[name]["why"] = _report_failure(name, "its number of steps is not defined", str(error))
            return True

        for name, entry in self.entries.items():
            if entry["lengths"] is None and not set_length(name):
                jobs.append(self._worker(name, ["costs", name], folder / f"{name}.log"))
        for job, code in self.pool.run(jobs, lambda now: self.show(f"measuring the cost of a step: {_names(now)}")):
            if code or not set_length(job.name):
                self.entries[job.name]["why"] = _report_failure(job.name, "its pilot failed", reason(job.log, code))
        write_plan(self.options.out, self.plan)

    def train(self) -> None:
        """Train every run that is not finished."""
        runs = {run.name: run for run in self.runs()}
        steps = {name: sum(self.entries[run.recipe]["lengths"]) for name, run in runs.items()}
        ended = {name for name, run in runs.items() if run.finished()}
        jobs = deque(self._training(run) for name, run in runs.items() if name not in ended)
        tries = dict.fromkeys(runs, 0)

        def watch(now: list[Job]) -> None:
            done = sum(steps[name] for name in ended) + sum(progress(runs[job.name].folder) for job in now)
            text = f"training {_names(now)}, {len(ended)} of {len(runs)} runs ended"
            self.show(text, done, sum(steps.values()))

        for job, code in self.pool.run(jobs, watch):
            why = reason(job.log, code) if code else ""
            locked = code == 2 and " is in use by " in why and tries[job.name] < PATIENCE
            if locked or code == STOPPED:
                # A process of a killed comparison is about to end, or a signal stopped this run alone: try again.
                tries[job.name] += locked
                job.after = time.monotonic() + 2 * locked
                jobs.append(job)
                continue
            ended.add(job.name)
            outcome = runs[job.name].ended(code)
            if outcome["code"]:
                _report_failure(job.name, "refused" if outcome["refused"] else "failed", outcome["why"])

    def measure(self) -> None:
        """Measure real examples and every finished run, skipping those that are measured."""
        out, request = self.options.out, self.plan["asked"]
        runs = {run.name: run for run in self.runs() if run.finished() and not complete(run, request)}
        jobs = deque(
            self._worker(name, ["run", run.recipe, str(run.seed)], run.measured.with_suffix(".log"))
            for name, run in runs.items()
        )
        if not real_complete(out, request):
            jobs.appendleft(self._worker("real examples", ["real"], out / "measured" / "real.log"))
        many = len(jobs)

        def watch(now: list[Job]) -> None:
            self.show(f"measuring {_names(now)}, {many - len(jobs) - len(now)} of {many} measured")

        for job, code in self.pool.run(jobs, watch):
            why = _report_failure(job.name, "not measured", reason(job.log, code)) if code else None
            if job.name in runs and why is None:
                runs[job.name].unmeasured.unlink(missing_ok=True)
            elif job.name in runs:
                write_whole(runs[job.name].unmeasured, json.dumps({"why": why}) + "\n")

    def runs(self) -> list[Run]:
        """Return all runs whose number of steps is set, ordered by seed, so that an early end leaves all recipes."""
        names = [name for name, entry in self.entries.items() if entry["lengths"] is not None]
        return [Run(self.options.out, name, seed) for seed in range(self.plan["seeds"]) for name in names]

    def _training(self, run: Run) -> "Job":
        entry = self.entries[run.recipe]
        file = Recipe(entry.get("given", run.recipe)).module().__file__
        words = run_words(entry, run.seed, self.options.device)
        command = [sys.executable, str(file), *words, "--out", str(run.folder), "--resume", "auto"]
        return Job(run.name, command, run.log)

    def _worker(self, name: str, words: list[str], log: Path) -> "Job":
        command = [sys.executable, "-m", "hybrids.comparison", *words]
        return Job(name, [*command, "--out", str(self.options.out), "--device", self.options.device], log)


def _names(jobs: list["Job"]) -> str:
    return ", ".join(job.name for job in jobs) or "…"


def _report_failure(name: str, state: str, why: str) -> str:
    """Print a failure to stderr, and return the reason."""
    print(f"{name}: {state}: {why}", file=sys.stderr, flush=True)
    return why


class _Bar:
    """A progress bar on stderr; where that is not a terminal, one line every ten seconds."""

    def __enter__(self) -> "_Bar":
        from tqdm import tqdm

        self.bar: Any = tqdm(total=0, unit="step", dynamic_ncols=True, desc="comparison")
        self.refreshed = 0.0
        return self

    def show(self, text: str, done: int | None = None, total: int | None = None) -> None:
        if done is not None:
            self.bar.n, self.bar.total = done, total
        self.bar.set_postfix_str(text, refresh=False)
        if time.monotonic() - self.refreshed >= (0.2 if sys.stderr.isatty() else 10):
            self.bar.refresh()
            self.refreshed = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.bar.set_postfix_str("")
        self.bar.close()


def _machine(options: Options) -> dict[str, Any]:
    device = device_named(options.device)
    threads = os.environ.get("OMP_NUM_THREADS", str(_threads(options.jobs)))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": int(threads) if threads.isdigit() else threads,
        "jobs": options.jobs,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _threads(at_once: int) -> int:
    return max(1, (os.cpu_count() or 1) // at_once)


def gpus(device: str) -> list[str]:
    """Return the values of CUDA_VISIBLE_DEVICES that jobs use in turn; an empty list for fewer than two GPUs."""
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


# Processes.


class Stopped(Exception):
    """Raised after a signal, once the running processes have saved and ended."""


@dataclass
class Job:
    """A command with its name, its log file, and the earliest time (of time.monotonic) of its start."""

    name: str
    command: list[str]
    log: Path
    after: float = 0.0


class Pool:
    """A pool of subprocesses, each with its log and its share of cores and GPUs.

    One loop polls all of them. A thread pool would not be shorter, and a child's death signal (below) belongs to the
    thread that started it, and must be set between fork and exec, which is not safe in a threaded process.

    Arguments:
        at_once: number of processes at a time.
        gpus: values of CUDA_VISIBLE_DEVICES, used in turn; empty: the variable is not changed.
        stop: received signals: the running jobs are sent SIGTERM and waited for, and `Stopped` is raised.
        every: seconds between polls.
    """

    def __init__(self, at_once: int, gpus: list[str], stop: Signals, every: float = 0.2) -> None:
        self.at_once, self.gpus, self.stop, self.every = at_once, gpus, stop, every

    def run(self, jobs: deque[Job], watch: Callable[[list[Job]], None]) -> Iterator[tuple[Job, int]]:
        """Yield each job with its exit code as it ends; jobs may be appended to `jobs` meanwhile. Raises Stopped.

        Arguments:
            watch: called with the running jobs at each poll.
        """
        running: dict[int, tuple[Job, subprocess.Popen]] = {}
        try:
            while jobs or running:
                if self.stop.received:
                    raise Stopped
                for slot in range(self.at_once):
                    ready = next((job for job in jobs if job.after <= time.monotonic()), None)
                    if slot not in running and ready is not None:
                        jobs.remove(ready)
                        running[slot] = (ready, self._start(ready, slot))
                watch([job for job, _ in running.values()])
                time.sleep(self.every)
                for slot, (job, process) in list(running.items()):
                    # After a stop, the exit code of a job does not mean that it failed.
                    if not self.stop.received and process.poll() is not None:
                        del running[slot]
                        yield job, process.returncode
        finally:
            for _, process in running.values():
                if process.poll() is None:
                    process.terminate()
            for _, process in running.values():
                process.wait()

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of the process in a slot."""
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        # Spinning threads make small networks many times slower on a busy machine.
        threads = {"OMP_NUM_THREADS": str(_threads(self.at_once)), "OMP_WAIT_POLICY": "passive"}
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        return {**threads, **os.environ, "PYTHONPATH": path, **gpu}

    def _start(self, job: Job, slot: int) -> subprocess.Popen:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            # A new session: otherwise Ctrl-C would reach the process twice, and the second signal ends it at once.
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )


def _end_with_parent() -> None:
    # If the parent is killed, the kernel sends the child SIGTERM, so that it saves and ends.
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
