"""A whole comparison: plan, pilots, training, measuring, report; whatever is finished is not done again."""

import json
import os
import platform
import sys
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..data import Data
from ..experiment import STOPPED, Refusal
from ..experiment.run_folder import lock
from ..experiment.signals import Signals
from ..files import write_whole
from .aggregate import aggregate
from .measuring import complete
from .options import Options, check, data_asked
from .plan import kept_plan, make_plan, run_words, with_lengths
from .processes import Job, Pool, Stopped, reason
from .runs import Run

__all__ = ["compare", "gpus", "report_of"]

PATIENCE = 150
"""How often a run is tried again whose folder is still held by a process of a comparison that was killed."""


def gpus(device: str) -> list[str]:
    """The names for CUDA_VISIBLE_DEVICES between which runs are dealt; none where there are not several."""
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def compare(options: Options, command: str = "") -> int:
    """Train and measure all that `options` ask for and is not done; the exit code, as of a run. Then: `report_of`.

    Raises Refusal, before anything is trained, for what cannot work.
    """
    check(options)
    data = data_asked(options)
    with ExitStack() as stack:
        stack.enter_context(lock(options.out))
        plan = make_plan(options, data)
        stop = stack.enter_context(Signals())
        whole = _Whole(options, plan, data, stop)
        try:
            whole.pilots()
            whole.train()
            whole.measure()
        except Stopped:
            print(
                f"stopped by a signal; what is finished is kept: the same command goes on in {options.out}", flush=True
            )
            return STOPPED
        finally:
            whole.close()
        write_whole(options.out / "machine.json", json.dumps({**_machine(options), "command": command}) + "\n")
    return 0


def report_of(out: Path) -> dict[str, Any]:
    """Write report.json and the page of what lies in `out`. Raises Refusal."""
    plan = kept_plan(out)
    if plan is None:
        raise Refusal(f"--out {out}: holds no comparison (there is no plan.json); give the folder of one")
    path = out / "machine.json"
    machine = json.loads(path.read_text()) if path.is_file() else {}
    report = aggregate(out, plan, {k: v for k, v in machine.items() if k != "command"}, machine.get("command", ""))
    try:
        from .page import write_report
    except ImportError as error:
        print(f"{out / 'report.json'} stands alone: {error}", file=sys.stderr)
        return report
    write_report(report, out)
    return report


def _machine(options: Options) -> dict[str, Any]:
    from .worker import device_of

    device = device_of(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    return {
        "device": name,
        "threads": int(threads) if threads.isdigit() else threads,
        "jobs": options.jobs,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


class _Whole:
    """The phases of a comparison, and its one progress bar."""

    def __init__(self, options: Options, plan: dict[str, Any], data: Data, stop: Signals) -> None:
        self.options, self.plan, self.data = options, plan, data
        self.pool = Pool(options.jobs, gpus(options.device), stop)
        self.bar: Any = None
        self.drawn = 0.0
        self.tried: dict[str, int] = {}

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The recipes that can train."""
        return {recipe: entry for recipe, entry in self.plan["recipes"].items() if entry["refused"] is None}

    def runs(self) -> list[Run]:
        """All runs whose length is settled, seed by seed, so that a comparison cut short has all recipes."""
        return [
            Run(self.options.out, recipe, seed)
            for seed in range(self.plan["seeds"])
            for recipe, entry in self.entries.items()
            if entry["lengths"] is not None
        ]

    def _worker(self, name: str, words: list[str], log: Path) -> Job:
        command = [sys.executable, "-m", "hybrids.comparison.worker", *words]
        return Job(name, [*command, "--out", str(self.options.out), "--device", self.options.device], log)

    def _show(self, text: str) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=0, unit="step", dynamic_ncols=True, desc="comparison")
        self.bar.set_postfix_str(text, refresh=False)
        # A log file is no terminal: a line in ten seconds is enough there.
        if time.monotonic() - self.drawn >= (0.2 if sys.stderr.isatty() else 10):
            self.bar.refresh()
            self.drawn = time.monotonic()

    def pilots(self) -> None:
        """Settle how many steps each recipe has, by what its steps cost where the budget is not of images."""
        out, kind = self.options.out, self.plan["asked"]["kind"]
        jobs: deque[Job] = deque()
        for recipe, entry in self.entries.items():
            if entry["lengths"] is not None:
                continue
            kept = out / "pilots" / f"{recipe}.json"
            if kind == "images":
                with_lengths(out, self.plan, recipe, None)
            elif kept.is_file():
                with_lengths(out, self.plan, recipe, json.loads(kept.read_text())[kind])
            else:
                jobs.append(self._worker(recipe, ["costs", recipe], out / "pilots" / f"{recipe}.log"))
        for job, code in self.pool.run(jobs, lambda now: self._show(f"what a step costs: {_names(now)}")):
            entry = self.plan["recipes"][job.name]
            if code:
                entry["why"] = f"its pilot failed: {reason(job.log, code)}"
                print(f"{job.name}: {entry['why']}", file=sys.stderr)
                continue
            kept = out / "pilots" / f"{job.name}.json"
            entry.pop("why", None)
            with_lengths(out, self.plan, job.name, json.loads(kept.read_text())[kind])

    def train(self) -> None:
        """Train every run that is not finished."""
        runs = {run.name: run for run in self.runs()}
        lengths = {name: sum(self.entries[run.recipe]["lengths"]) for name, run in runs.items()}
        done = {name: lengths[name] for name, run in runs.items() if run.finished()}
        jobs = deque(
            run.job(run_words(self.entries[run.recipe], run.seed, self.options.device))
            for name, run in runs.items()
            if name not in done
        )
        steps = {job.name: job.progress for job in jobs}
        self._show("")
        self.bar.total, self.bar.n = sum(lengths.values()), sum(done.values())
        ended: dict[str, int] = dict(done)

        def watch(now: list[Job]) -> None:
            going = {job.name for job in now}
            self.bar.n = sum(ended.values()) + sum(steps[name]() for name in going)
            self._show(f"training {_names(now)}, {len(ended)} of {len(runs)} runs ended")

        for job, code in self.pool.run(jobs, watch):
            if self._held(job, code, jobs):
                continue
            if code == STOPPED:
                # Somebody stopped the run itself: it goes on.
                jobs.append(job)
                continue
            outcome = runs[job.name].ended(code)
            ended[job.name] = lengths[job.name]
            if code:
                print(f"{job.name}: {'refused' if outcome['refused'] else 'failed'}: {outcome['why']}", file=sys.stderr)

    def _held(self, job: Job, code: int, jobs: deque[Job]) -> bool:
        """Whether the run's folder is still held by an earlier comparison's process, which is about to end."""
        if code != 2 or " is in use by " not in reason(job.log, code):
            return False
        self.tried[job.name] = self.tried.get(job.name, 0) + 1
        if self.tried[job.name] > PATIENCE:
            return False
        job.after = time.monotonic() + 2
        jobs.append(job)
        return True

    def measure(self) -> None:
        """Measure real examples and every finished run, but for those that are."""
        out, asked = self.options.out, self.plan["asked"]
        jobs: deque[Job] = deque()
        if not (out / "measured" / "real.json").is_file():
            jobs.append(self._worker("real examples", ["real"], out / "measured" / "real.log"))
        for run in self.runs():
            if run.finished() and not complete(run, asked):
                log = run.measured.with_suffix(".log")
                jobs.append(self._worker(run.name, ["run", run.recipe, str(run.seed)], log))
        names = {run.name: run for run in self.runs()}
        many = len(jobs)

        def watch(now: list[Job]) -> None:
            self._show(f"measuring {_names(now)}, {many - len(jobs) - len(now)} of {many} measured")

        for job, code in self.pool.run(jobs, watch):
            if job.name not in names:
                if code:
                    print(f"{job.name} were not measured: {reason(job.log, code)}", file=sys.stderr)
                continue
            run = names[job.name]
            failure = run.measured.with_name(f"{run.recipe}-seed-{run.seed}.failed.json")
            if code:
                write_whole(failure, json.dumps({"why": reason(job.log, code)}) + "\n")
                print(f"{job.name} was not measured: {reason(job.log, code)}", file=sys.stderr)
            else:
                failure.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.set_postfix_str("")
            self.bar.close()


def _names(jobs: list[Job]) -> str:
    return ", ".join(job.name for job in jobs) or "…"
