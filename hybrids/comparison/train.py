"""Train and measure a comparison: pilots, runs, measurements, each a process of its own, so many at once.

Whatever is finished is not done again; stopped by a signal or killed, the same command goes on.
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
from .plan import Options, check, data_asked, keep_plan, make_plan, run_words, with_lengths
from .recipes import Recipe
from .runs import Run, progress, read_json, reason

__all__ = ["Comparison", "Job", "Pool", "Stopped", "compare", "gpus"]

REPOSITORY = Path(__file__).parents[2]
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1
PATIENCE = 150
"""How often a run is tried again whose folder is still held by a process of a comparison that was killed."""


def compare(options: Options, command: str = "") -> int:
    """Train and measure all that `options` ask for and is not done; return the exit code, as of a run.

    `summary.report_of` then makes the report. Raises Refusal, before anything is trained, for what cannot work.
    """
    check(options)
    data = data_asked(options)
    with lock(options.out):
        plan = make_plan(options, data)
        with Signals() as stop, _Bar() as bar:
            comparison = Comparison(options, plan, Pool(options.jobs, gpus(options.device), stop), bar.show)
            try:
                comparison.pilots()
                comparison.train()
                comparison.measure()
            except Stopped:
                print(f"stopped by a signal; the same command goes on in {options.out}", flush=True)
                return STOPPED
        write_whole(options.out / "machine.json", json.dumps({**_machine(options), "command": command}) + "\n")
    return 0


class Comparison:
    """The phases of a comparison.

    Arguments: options; plan, made of them; pool, of processes; show, called with a text, and with the steps done and
    the steps in all where they are known.
    """

    def __init__(self, options: Options, plan: dict[str, Any], pool: "Pool", show: Callable[..., None]) -> None:
        self.options, self.plan, self.pool, self.show = options, plan, pool, show
        self.entries = {name: entry for name, entry in plan["recipes"].items() if entry["refused"] is None}

    def pilots(self) -> None:
        """Settle how many steps each recipe has, by what its steps cost where the budget is not of images."""
        kind, folder = self.plan["asked"]["kind"], self.options.out / "pilots"
        jobs: deque[Job] = deque()

        def settle(name: str) -> bool:
            costs = None if kind == "images" else read_json(folder / f"{name}.json").get(kind)
            if kind != "images" and costs is None:
                return False
            self.entries[name].pop("why", None)
            try:
                with_lengths(self.options.out, self.plan, name, costs)
            except ValueError as error:
                self.entries[name]["why"] = _tell(name, "has no length", str(error))
            return True

        for name, entry in self.entries.items():
            if entry["lengths"] is None and not settle(name):
                jobs.append(self._worker(name, ["costs", name], folder / f"{name}.log"))
        for job, code in self.pool.run(jobs, lambda now: self.show(f"what a step costs: {_names(now)}")):
            if code or not settle(job.name):
                self.entries[job.name]["why"] = _tell(job.name, "its pilot failed", reason(job.log, code))
        keep_plan(self.options.out, self.plan)

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
            held = code == 2 and " is in use by " in why and tries[job.name] < PATIENCE
            if held or code == STOPPED:
                # A killed comparison's process is about to end; or somebody stopped the run itself: it goes on.
                tries[job.name] += held
                job.after = time.monotonic() + 2 * held
                jobs.append(job)
                continue
            ended.add(job.name)
            outcome = runs[job.name].ended(code)
            if outcome["code"]:
                _tell(job.name, "refused" if outcome["refused"] else "failed", outcome["why"])

    def measure(self) -> None:
        """Measure real examples and every finished run, but for those that are."""
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
            why = _tell(job.name, "not measured", reason(job.log, code)) if code else None
            if job.name in runs and why is None:
                runs[job.name].unmeasured.unlink(missing_ok=True)
            elif job.name in runs:
                write_whole(runs[job.name].unmeasured, json.dumps({"why": why}) + "\n")

    def runs(self) -> list[Run]:
        """All runs whose length is settled, seed by seed, so that a comparison cut short has all recipes."""
        settled = [name for name, entry in self.entries.items() if entry["lengths"] is not None]
        return [Run(self.options.out, name, seed) for seed in range(self.plan["seeds"]) for name in settled]

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


def _tell(name: str, state: str, why: str) -> str:
    print(f"{name}: {state}: {why}", file=sys.stderr, flush=True)
    return why


class _Bar:
    """A progress bar on stderr; in a log file, which is no terminal, a line in ten seconds."""

    def __enter__(self) -> "_Bar":
        from tqdm import tqdm

        self.bar: Any = tqdm(total=0, unit="step", dynamic_ncols=True, desc="comparison")
        self.drawn = 0.0
        return self

    def show(self, text: str, done: int | None = None, total: int | None = None) -> None:
        if done is not None:
            self.bar.n, self.bar.total = done, total
        self.bar.set_postfix_str(text, refresh=False)
        if time.monotonic() - self.drawn >= (0.2 if sys.stderr.isatty() else 10):
            self.bar.refresh()
            self.drawn = time.monotonic()

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
    """Return the names for CUDA_VISIBLE_DEVICES between which runs are dealt; none where there are not several."""
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


# Processes.


class Stopped(Exception):
    """A signal has stopped the comparison; the processes have saved and ended."""


@dataclass
class Job:
    """A command, where its output goes, and not before which time (of time.monotonic) it may start."""

    name: str
    command: list[str]
    log: Path
    after: float = 0.0


class Pool:
    """Runs jobs, so many at once, each with its log and its share of cores and GPUs.

    One loop polls all: executors of threads would not be shorter, and a child's death signal (below) is bound to the
    thread that started it, and must be set between fork and exec, which is not safe among threads.

    Arguments: at_once; gpus, the names that CUDA_VISIBLE_DEVICES is given in turn, none to leave it as it is; stop,
    looked at in between: on a signal the running jobs get SIGTERM, are waited for, and `Stopped` is raised.
    """

    def __init__(self, at_once: int, gpus: list[str], stop: Signals, every: float = 0.2) -> None:
        self.at_once, self.gpus, self.stop, self.every = at_once, gpus, stop, every

    def run(self, jobs: deque[Job], watch: Callable[[list[Job]], None]) -> Iterator[tuple[Job, int]]:
        """Yield each job with its exit code, as they end; more may be put into `jobs` meanwhile. watch sees what runs.

        Raises Stopped.
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
                    # A job that a stop has reached already is no failure of its own.
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
        """Return what the process in a slot finds around it."""
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        # Waiting threads that spin make small networks many times slower on a busy machine.
        threads = {"OMP_NUM_THREADS": str(_threads(self.at_once)), "OMP_WAIT_POLICY": "passive"}
        dealt = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        return {**threads, **os.environ, "PYTHONPATH": path, **dealt}

    def _start(self, job: Job, slot: int) -> subprocess.Popen:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            # A session of its own: else Ctrl-C would reach it twice, and a second signal ends it at once.
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
    # A killed parent cannot pass anything on: the kernel then asks the child to save and end.
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
