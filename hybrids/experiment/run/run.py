"""A whole run: settings, data, stages, the loop, checkpoints and resume."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...data import Data, load_data
from ...data.source import few
from ...ema import EMA
from ...files import warning_if_full
from ...finite import LAG
from ...game import NotFinite, assert_equal_on_ranks, train
from ...launch import launched
from ...processes import agree, decide_on_main
from ...refusal import (
    CANNOT_WRITE,
    NOT_FINITE,
    STOPPED,
    Refusal,
    as_refusal,
    is_main,
    malformed,
    refusing,
    steps_as_refusal,
)
from ...stage import Stage, check_finite, check_moved, checked
from ..checkpoints import checkpoint as disk
from ..checkpoints.run_folder import claim, lock
from ..checkpoints.state import gather, load_weights, part, restore, restore_random_numbers
from ..record import Record, dry_run
from ..record.logs import Gathered
from ..settings import Settings, parse, to_yaml
from .batches import Readable, batches_of, seed_all
from .peers import Peers
from .signals import Signals

__all__ = ["STOPPED", "experiment", "main"]

Build = Callable[[Any, Data], list[Stage]]
T = TypeVar("T")


def main(settings_class: type[Settings], build: Build, argv: Sequence[str] | None = None) -> None:
    """Run a recipe: parse its settings, call `experiment`, exit with 0 or a code of `hybrids.refusal`."""
    recipe = Path(inspect.getfile(build)).stem
    with refusing():
        try:
            code = experiment(parse(settings_class, argv, recipe), build, recipe)
        except NotFinite as error:
            code = NOT_FINITE
            if is_main():
                print(f"stopped: {error}. Checkpoints of the run are from before", file=sys.stderr, flush=True)
    if code:
        sys.exit(code)


def experiment(settings: Settings, build: Build, recipe: str) -> int:
    """Train what `build` returns as the settings say, in a run folder; returns the exit code.

    Raises Refusal, before any training starts, for what cannot work.
    """
    settings = launched(settings)
    accelerator = _accelerator(settings)
    try:
        try:
            run = _Run(settings, build, recipe, accelerator)
        except (MemoryError, RuntimeError) as error:
            if (what := _memory_error(error)) is None:
                raise
            raise Refusal(
                f"recipe {recipe} with --data {settings.data}: {what}; lower --resolution, or its networks' sizes",
                here=True,
            ) from error
        try:
            code = run.run()
        except (MemoryError, RuntimeError) as error:
            if (why := _out_of_memory(error, settings) or run.peers.lost(error)) is None:
                raise
            intact = "checkpoints that were saved are intact: go on with --resume auto --out"
            raise Refusal(f"stopped: {why}; {intact} {run.folder}", here=True) from error
        # Leaving while another rank still communicates aborts it (gloo). Not after an error, which may be one rank's.
        accelerator.wait_for_everyone()
        return code
    finally:
        accelerator.end_training()


def _accelerator(settings: Settings) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    accelerator = Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=settings.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=settings.timeout))],
    )
    # Not by an argument, which ACCELERATE_GRADIENT_ACCUMULATION_STEPS overrides.
    accelerator.gradient_accumulation_steps = settings.accumulation
    return accelerator


class _Run:
    """One process's part of a run."""

    def __init__(self, settings: Settings, build: Build, recipe: str, accelerator: Any) -> None:
        self.settings, self.recipe, self.accelerator = settings, recipe, accelerator
        self.data = _together(accelerator, "data", lambda: _load(settings, accelerator))
        if settings.dry_run:
            self.data = few(self.data, max(64, settings.batch_size * accelerator.num_processes))
        # What config.yaml records is resolved.
        self.settings = settings = replace(settings, data=self.data.name)
        if self.data.is_image:
            channels, height, width = self.data.shape
            resolution = width if height == width else None
            self.settings = settings = replace(settings, resolution=resolution, channels=channels)
        # All ranks build the same networks; noise is seeded per rank, later.
        seed_all(settings.seed)
        where = f"recipe {recipe} with --data {settings.data}"
        self.stages = _together(accelerator, where, lambda: checked(build(settings, self.data)))
        for stage in self.stages:
            stage.root().to(accelerator.device)
        check_moved(self.stages)
        lengths = [stage.steps or settings.steps for stage in self.stages]
        self.ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        default = Path("runs") / recipe / datetime.now().strftime("%Y%m%d-%H%M%S")
        # The clock of one process decides for all.
        self.folder = decide_on_main(accelerator, lambda: settings.out or default) or default
        self.saved: disk.Checkpoint | None = None
        self.skipped = 0
        # Between two collectives lie as many steps as the most frequent player lets pass.
        ahead = max(min(player.every for player in stage.players) for stage in self.stages)
        ahead += LAG if accelerator.device.type == "cuda" else 0
        self.stop, self.peers = Signals(), Peers(accelerator, settings.timeout, ahead)

    def run(self) -> int:
        """Claim the folder, go on from a checkpoint or start, train every stage; the exit code."""
        if self.settings.dry_run:
            return dry_run(self.settings, self.recipe, self.data, self.stages, self.accelerator)
        with ExitStack() as stack:
            source = decide_on_main(self.accelerator, lambda: self._claim(stack))
            self.saved = None if source is None else self._read(source)
            done = 0 if self.saved is None else self.saved.step
            if done >= self.ends[-1]:
                if self.accelerator.is_main_process:
                    print(f"{self.folder}: the run had finished its {done} steps; nothing to do", flush=True)
                return 0
            self.record = self._open_record(done)
            stack.callback(self.record.close)
            self.record.announce(None if self.saved is None else self.saved.folder, done)
            seed_all(self.settings.seed + 1 + self.accelerator.process_index * 1_000_003)
            if self.saved is not None:
                self._go_on(self.saved)
            stack.enter_context(self.stop)
            stack.enter_context(self.peers)
            for index, stage in enumerate(self.stages):
                if self.saved is not None and done >= self.ends[index]:
                    tensors = part(self.saved.state.tensors, f"stage-{index}", str(self.saved.folder))
                    load_weights(stage.root(), tensors, f"stage {stage.name!r}")
                elif not self._train(index):
                    self.record.say(f"stopped by a signal, saved; go on with --resume auto --out {self.folder}")
                    return STOPPED
            skipped = f"; {self.skipped} step(s) skipped, not finite" if self.skipped else ""
            self.record.say(f"done: {self.folder}{skipped}")
        return 0

    def _claim(self, stack: ExitStack) -> Path | None:
        stack.enter_context(lock(self.folder))
        return claim(self.folder, self.settings.resume, self.settings.overwrite)

    def _read(self, source: Path) -> disk.Checkpoint:
        """Read a checkpoint of this run, on all ranks alike, and print what has changed since."""
        saved = disk.read_newest(source, self.accelerator)
        assert saved is not None
        with malformed(f"--resume {saved.folder}"):
            progress = part(saved.state.values, "progress", str(source))
            _check_same_stages(saved, progress, self.recipe, self.stages, self.ends)
            changed = _changed_settings(saved, self._card()["settings"], self.settings.structural)
            changed += _changed_data(saved, self.data.card(), any(stage.conditional for stage in self.stages))
        if changed and self.accelerator.is_main_process:
            print(f"settings changed since {saved.folder}: {', '.join(changed)}", flush=True)
        if saved.world_size != self.accelerator.num_processes:
            warnings.warn(
                f"{saved.folder} was saved on {saved.world_size} processes, this is {self.accelerator.num_processes}: "
                "the data order is kept, noise is drawn anew; the run is not bit-exact",
                stacklevel=2,
            )
        return saved

    def _open_record(self, done: int) -> Record:
        """Write config.yaml and cut the log back to the step that the run goes on from; refused on every rank."""
        record, error = None, None
        try:
            record = Record(self.folder, self.settings, self.recipe, self.data, self.stages, self.accelerator, done)
        except OSError as problem:
            error = f"--out {self.folder}: cannot be written ({problem}); make room, or give another folder"
        if errors := agree(self.accelerator, error):
            raise Refusal(errors, code=CANNOT_WRITE)
        assert record is not None
        return record

    def _card(self) -> dict[str, Any]:
        import yaml

        own = yaml.safe_load(to_yaml(self.settings, self.recipe))
        settings = {key: value for key, value in own.items() if key not in ("recipe", "out", "resume", "overwrite")}
        return {"recipe": self.recipe, "data": self.data.card(), "settings": settings}

    def _train(self, index: int) -> bool:
        """Train one stage to its end; False if a signal stopped it."""
        settings, stage, end = self.settings, self.stages[index], self.ends[index]
        first = 0 if index == 0 else self.ends[index - 1]
        with as_refusal(f"stage {stage.name!r}"):
            batches = batches_of(stage, index, self.data, settings, self.accelerator)
        ema = EMA(stage.model, settings.ema) if settings.ema > 0 else None
        gathered, start = Gathered(), first
        # It is let go here: while a file of it is in use, its space on the disk is taken.
        saved, self.saved = self.saved, None
        # At the end of a stage the next one has saved nothing of its own yet.
        if saved is not None and saved.step > first:
            start = saved.step
            with malformed(f"--resume {saved.folder}"), as_refusal(f"--resume {saved.folder}"):
                restore(saved.state, (f"stage-{index}", stage.root()), stage.players, batches, ema, str(saved.folder))
                gathered.restore(saved.state.rank_tensors or {}, self.accelerator.device)
        del saved
        self.record.players(index, batches)
        shown = stage.model if ema is None else ema.module
        with as_refusal(f"stage {stage.name!r}"):
            turns = train(
                stage.players,
                Readable(batches),
                self.accelerator,
                end - first,
                start - first,
                settings.skip_nonfinite - self.skipped,
            )
        steps = steps_as_refusal(f"stage {stage.name!r}", turns, start)
        with self.record.bar(stage.name, start - first, end - first) as bar, closing(steps):
            for n, logs in steps:
                step = first + n
                gathered.add(logs)
                skipped = any(tag.startswith("skipped/") for tag in logs)
                self.skipped += skipped
                if ema is not None and not (skipped and not any(tag.startswith("lr/") for tag in logs)):
                    ema.update_parameters(stage.model)
                stopping = self.peers.stopping(step, self.stop.received)
                logging = step == end or _due(step, settings.checkpoint_every) or _due(step, settings.log_every)
                save = step == end or stopping or _due(step, settings.checkpoint_every)
                if save or logging:
                    # Where only a signal asks for a checkpoint no line is written: the resumed run writes the due one.
                    with warning_if_full(f"the log's line of step {step}"):
                        self.record.log(step, gathered, bar, write=logging)
                if save:
                    check_finite(stage, step)
                bar.update(1)
                try:
                    self._show(step, end, shown, stage.conditional)
                except Exception:
                    # What a model cannot draw must not cost what it has learned. A save is all ranks' or none's.
                    if save or self.accelerator.num_processes == 1:
                        check_finite(stage, step)
                        self._save(index, step, batches, ema, gathered)
                        self.record.say(f"saved at step {step}, before the error below: {self.folder}")
                    raise
                if save:
                    self._save(index, step, batches, ema, gathered)
                if stopping and step < self.ends[-1]:
                    return False
        return True

    def _show(self, step: int, end: int, model: Any, conditional: bool) -> None:
        """What is due after a step: pictures, an evaluation, the summary."""
        if step == end or _due(step, self.settings.sample_every):
            with warning_if_full(f"the picture of step {step}"):
                self.record.picture(step, model, conditional)
        if _due(step, self.settings.evaluate_every):
            with warning_if_full(f"the evaluation of step {step}"):
                self.record.evaluate(step, model, conditional)
        if step == self.ends[-1]:
            with warning_if_full("summary.json"):
                self.record.summary(step)

    def _save(self, index: int, step: int, batches: Any, ema: EMA | None, gathered: Gathered) -> None:
        """Write the state of all stages so far."""
        players = self.stages[index].players
        assert_equal_on_ranks(players, self.accelerator)
        state = gather(
            {f"stage-{i}": stage.root() for i, stage in enumerate(self.stages[: index + 1])},
            players,
            batches,
            ema,
            self.accelerator.device,
            progress={"stage": index, "ends": self.ends, "seconds": self.record.seconds, "skipped": self.skipped},
            logs=gathered.state(),
        )
        disk.save(
            self.folder / "checkpoints", step, state, self._card(), self.accelerator, self.settings.keep_checkpoints
        )

    def _go_on(self, saved: disk.Checkpoint) -> None:
        """Set the clock and the random numbers to what they were."""
        with malformed(f"--resume {saved.folder}"):
            progress = saved.state.values["progress"]
            self.record.before, self.skipped = float(progress["seconds"]), int(progress.get("skipped", 0))
            if saved.world_size == self.accelerator.num_processes:
                restore_random_numbers(self.accelerator.device, saved.state.rank_tensors, saved.state.rank_values)


def _together(accelerator: Any, what: str, action: Callable[[], T]) -> T:
    """Return what an action returns; what it refuses on one rank, every rank refuses."""
    result, refusal = None, None
    try:
        with as_refusal(what):
            result = action()
    except Refusal as error:
        refusal = error
    errors = agree(accelerator, None if refusal is None else "\n".join(refusal.errors))
    if refusal is not None and accelerator.num_processes == 1:
        raise refusal
    if errors:
        raise Refusal(errors) from refusal
    return result  # type: ignore[return-value]


def _load(settings: Settings, accelerator: Any) -> Data:
    data = load_data(settings.data, settings.resolution, settings.channels, **_options(settings))
    data.batches(settings.batch_size, 0, accelerator.process_index, accelerator.num_processes)
    return data


def _check_same_stages(
    saved: disk.Checkpoint, progress: dict[str, Any], recipe: str, stages: list[Stage], ends: list[int]
) -> None:
    """Refuse a checkpoint of another recipe, or one whose step would now be of another stage."""
    source = saved.folder
    if saved.card.get("recipe") != recipe:
        raise Refusal(f"--resume {source}: is of recipe {saved.card.get('recipe')!r}, this is {recipe!r}")
    stage, before = progress["stage"], progress.get("ends", ends)
    if not 0 <= stage < len(stages):
        raise ValueError(f"its stage is number {stage}, of {len(stages)}")
    # A step's number is of a stage only as long as the stages before it keep their lengths.
    if before[:stage] != ends[:stage] or (saved.step > ends[stage] and stage + 1 < len(ends)):
        raise Refusal(
            f"--resume {source}: was saved at step {saved.step}, in stage {stages[stage].name!r}, and the stages ended "
            f"at {before}; with these --steps and --first-steps they end at {ends}"
        )


def _changed_settings(saved: disk.Checkpoint, now: dict[str, Any], structural: Sequence[str]) -> list[str]:
    """Return what differs from the settings of a checkpoint; refuse what decides what its weights mean."""
    before = saved.card["settings"]
    changed = {key: f"{key}: {before.get(key)} → {value}" for key, value in now.items() if before.get(key) != value}
    if refused := [change for key, change in changed.items() if key in structural]:
        raise Refusal(
            f"--resume {saved.folder}: its weights mean something else with other settings ({', '.join(refused)}); "
            "expected the same, or a new run in another --out"
        )
    return list(changed.values())


def _changed_data(saved: disk.Checkpoint, now: dict[str, Any], conditional: bool) -> list[str]:
    """Return a changed number of examples; refuse data whose labels or vectors mean something else than before."""
    # Without mean and scale, as in runs from before vectors were standardized, the values were taken as they are.
    identity = {"mean": [0.0] * len(now["mean"]), "scale": [1.0] * len(now["scale"])}
    before = now | identity | saved.card["data"]
    changed = [name for name in ("mean", "scale") if not _close(before[name], now[name], now["scale"])]
    if conditional and before["class_names"] != now["class_names"]:
        changed.append("class_names")
    if changed:
        raise Refusal(
            f"--resume {saved.folder}: the data's {' and '.join(changed)} have changed since, from "
            f"{before[changed[0]]} to {now[changed[0]]}; expected the data it was trained on, or a new run in another "
            "--out"
        )
    if before["examples"] == now["examples"]:
        return []
    return [f"examples: {before['examples']} → {now['examples']}"]


def _out_of_memory(error: BaseException, settings: Settings) -> str | None:
    """Return what to do about an error that says that memory ran out; None for another."""
    half = max(settings.batch_size // 2, 1)
    return (what := _memory_error(error)) and (
        f"{what}; lower --batch-size and raise --accumulation, which keeps the effective batch: "
        f"--batch-size {half} --accumulation {settings.accumulation * 2}"
    )


def _memory_error(error: BaseException) -> str | None:
    """Return what an error says if it is that memory ran out; None for another."""
    text = str(error)
    cpu = "DefaultCPUAllocator" in text or "can't allocate memory" in text
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not cpu:
        return None
    return f"out of memory ({text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__})"


def _options(settings: Settings) -> dict[str, Any]:
    """What the settings say of the data beyond its shape, where it is not the default."""
    names = ("horizontal_flip", "crop_padding", "skip_bad_images", "workers")
    return {name: value for name in names if (value := getattr(settings, name)) != getattr(Settings, name)}


def _close(a: Sequence[float], b: Sequence[float], scale: Sequence[float]) -> bool:
    """Whether numbers are equal to a millionth of the scale: sums depend on how many threads add."""
    return len(a) == len(b) and all(abs(x - y) <= 1e-6 * s for x, y, s in zip(a, b, scale))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
