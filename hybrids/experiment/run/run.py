"""A whole run: settings, data, stages, the loop, checkpoints and resume."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ...data import Data, load_data
from ...ema import EMA
from ...game import NotFinite, assert_equal_on_ranks, train
from ...launch import launched
from ...processes import decide_on_main
from ...refusal import Refusal, asked, first_asked, is_main, refusing
from ...stage import Stage, check_finite, check_moved, checked
from ..checkpoints import checkpoint as disk
from ..checkpoints.run_folder import claim, lock
from ..checkpoints.state import (
    load_optimizers,
    load_weights,
    optimizers,
    random_numbers,
    restore_random_numbers,
    weights,
)
from ..record import Record, dry_run, few
from ..record.logs import Gathered
from ..settings import Settings, parse, to_yaml
from .batches import batches_of, read, seed_all
from .signals import Signals

__all__ = ["STOPPED", "experiment", "main"]

STOPPED = 75
"""Exit code of a run that a signal stopped after it was saved: start it again with --resume auto."""

NOT_FINITE = 76
"""Exit code of a run that a loss or gradient stopped which was not finite; its checkpoints are from before."""

Build = Callable[[Any, Data], list[Stage]]


def main(settings_class: type[Settings], build: Build, argv: Sequence[str] | None = None) -> None:
    """Run a recipe: parse its settings, run `experiment`, exit with 0, 2 (refused), 75 (stopped) or 76 (not finite)."""
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
        code = _Run(settings, build, recipe, accelerator).run()
        # Leaving while another rank still communicates aborts it (gloo). Not after an error, which may be one rank's.
        accelerator.wait_for_everyone()
        return code
    finally:
        accelerator.end_training()


def _accelerator(settings: Settings) -> Any:
    from accelerate import Accelerator

    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.mixed_precision)
    # Not by an argument, which ACCELERATE_GRADIENT_ACCUMULATION_STEPS overrides.
    accelerator.gradient_accumulation_steps = settings.accumulation
    return accelerator


class _Run:
    """One process's part of a run."""

    def __init__(self, settings: Settings, build: Build, recipe: str, accelerator: Any) -> None:
        self.settings, self.recipe, self.accelerator = settings, recipe, accelerator
        resolution = settings.resolution
        if resolution is None and settings.data == "digits":
            resolution = settings.digits_resolution
        with asked("data"):
            self.data = load_data(settings.data, resolution, settings.channels, **_options(settings))
            self.data.batches(settings.batch_size, 0, accelerator.process_index, accelerator.num_processes)
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
        with asked(f"recipe {recipe} with --data {settings.data}"):
            self.stages = checked(build(settings, self.data))
        for stage in self.stages:
            stage.root().to(accelerator.device)
        check_moved(self.stages)
        lengths = [stage.steps or settings.steps for stage in self.stages]
        self.ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        default = Path("runs") / recipe / datetime.now().strftime("%Y%m%d-%H%M%S")
        # The clock of one process decides for all.
        self.folder = decide_on_main(accelerator, lambda: settings.out or default) or default
        self.stop = Signals()
        self.skipped = 0

    def run(self) -> int:
        """Claim the folder, go on from a checkpoint or start, train every stage; the exit code."""
        if self.settings.dry_run:
            return dry_run(self.settings, self.recipe, self.data, self.stages, self.accelerator)
        with ExitStack() as stack:
            source = decide_on_main(self.accelerator, lambda: self._claim(stack))
            saved = None if source is None else self._read(source)
            done = 0 if saved is None else saved.step
            if done >= self.ends[-1]:
                if self.accelerator.is_main_process:
                    print(f"{self.folder}: the run had finished its {done} steps; nothing to do", flush=True)
                return 0
            s = self.settings
            self.record = Record(self.folder, s, self.recipe, self.data, self.stages, self.accelerator, done)
            stack.callback(self.record.close)
            self.record.announce(source, done)
            seed_all(s.seed + 1 + self.accelerator.process_index * 1_000_003)
            stack.enter_context(self.stop)
            for index, stage in enumerate(self.stages):
                if done >= self.ends[index]:
                    assert saved is not None
                    load_weights(stage.root(), saved.tensors[f"stage-{index}"], f"stage {stage.name!r}")
                    if done == self.ends[index]:
                        # The next stage has saved nothing of its own yet.
                        self._go_on(saved)
                    continue
                if not self._train(index, saved):
                    self.record.say(f"stopped by a signal, saved; go on with --resume auto --out {self.folder}")
                    return STOPPED
                saved = None
            skipped = f"; {self.skipped} step(s) skipped, not finite" if self.skipped else ""
            self.record.say(f"done: {self.folder}{skipped}")
        return 0

    def _claim(self, stack: ExitStack) -> Path | None:
        stack.enter_context(lock(self.folder))
        return claim(self.folder, self.settings.resume, self.settings.overwrite)

    def _read(self, source: Path) -> disk.Checkpoint:
        """A checkpoint of this recipe; what has changed since is said."""
        a = self.accelerator
        saved = disk.read(source, a.process_index, a.num_processes)
        if saved.card.get("recipe") != self.recipe:
            raise Refusal(f"--resume {source}: is of recipe {saved.card.get('recipe')!r}, this is {self.recipe!r}")
        stage, ends = saved.states["progress"]["stage"], saved.states["progress"].get("ends", self.ends)
        # A step's number is of a stage only as long as the stages before it keep their lengths.
        if ends[:stage] != self.ends[:stage] or (saved.step > self.ends[stage] and stage + 1 < len(self.ends)):
            raise Refusal(
                f"--resume {source}: was saved at step {saved.step}, in stage {self.stages[stage].name!r}, and the "
                f"stages ended at {ends}; with these --steps and --first-steps they end at {self.ends}"
            )
        before, now = saved.card["settings"], self._card()["settings"]
        changed = {key: f"{key}: {before.get(key)} → {value}" for key, value in now.items() if before.get(key) != value}
        if structural := [said for key, said in changed.items() if key in self.settings.structural]:
            raise Refusal(
                f"--resume {source}: its weights mean something else with other settings ({', '.join(structural)}); "
                "expected the same, or a new run in another --out"
            )
        self._check_data(source, saved.card["data"])
        if changed and a.is_main_process:
            print(f"settings changed since {source}: {', '.join(changed.values())}", flush=True)
        if saved.world_size != a.num_processes:
            warnings.warn(
                f"{source} was saved on {saved.world_size} processes, this is {a.num_processes}: the data order is "
                "kept, noise is drawn anew; the run is not bit-exact",
                stacklevel=2,
            )
        return saved

    def _check_data(self, source: Path, before: dict[str, Any]) -> None:
        """Refuse data whose labels or vectors mean something else than the checkpoint's; print a changed number."""
        now = self.data.card()
        before = now | before
        changed = [name for name in ("mean", "scale") if not _close(before[name], now[name], now["scale"])]
        if any(stage.conditional for stage in self.stages) and before["class_names"] != now["class_names"]:
            changed.append("class_names")
        if changed:
            raise Refusal(
                f"--resume {source}: the data's {' and '.join(changed)} have changed since, from "
                f"{before[changed[0]]} to {now[changed[0]]}; expected the data it was trained on, or a new run in "
                "another --out"
            )
        if before["examples"] != now["examples"] and self.accelerator.is_main_process:
            print(f"examples changed since {source}: {before['examples']} → {now['examples']}", flush=True)

    def _card(self) -> dict[str, Any]:
        import yaml

        own = yaml.safe_load(to_yaml(self.settings, self.recipe))
        kept = {key: value for key, value in own.items() if key not in ("recipe", "out", "resume", "overwrite")}
        return {"recipe": self.recipe, "data": self.data.card(), "settings": kept}

    def _train(self, index: int, saved: disk.Checkpoint | None) -> bool:
        """Train one stage to its end; False if a signal stopped it."""
        settings, stage, end = self.settings, self.stages[index], self.ends[index]
        first = 0 if index == 0 else self.ends[index - 1]
        with asked(f"stage {stage.name!r}"):
            batches = batches_of(stage, index, self.data, settings, self.accelerator)
        ema = EMA(stage.model, settings.ema) if settings.ema > 0 else None
        start = first
        if saved is not None and saved.step > first:
            start = saved.step
            self._restore(index, batches, ema, saved)
        self.record.players(index, batches)
        shown = stage.model if ema is None else ema.module
        gathered = Gathered()
        if saved is not None and saved.step > first and saved.rank_tensors is not None:
            gathered.restore(saved.rank_tensors)
        with asked(f"stage {stage.name!r}"):
            turns = train(
                stage.players,
                read(batches),
                self.accelerator,
                end - first,
                start - first,
                settings.skip_nonfinite,
            )
        steps = first_asked(f"stage {stage.name!r}", turns)
        with self.record.bar(stage.name, start - first, end - first) as bar, closing(steps):
            for n, logs in steps:
                step = first + n
                gathered.add(logs)
                skipped = any(tag.startswith("skipped/") for tag in logs)
                self.skipped += skipped
                if ema is not None and not skipped:
                    ema.update_parameters(stage.model)
                stopping = self._stopping(step)
                logging = step == end or _due(step, settings.checkpoint_every) or _due(step, settings.log_every)
                save = step == end or stopping or _due(step, settings.checkpoint_every)
                if save or logging:
                    # Where only a signal asks for a checkpoint no line is written: the resumed run writes the due one.
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
            self.record.picture(step, model, conditional)
        if _due(step, self.settings.evaluate_every):
            self.record.evaluate(step, model, conditional)
        if step == self.ends[-1]:
            self.record.summary(step)

    def _stopping(self, step: int) -> bool:
        """Whether to stop after this step: all ranks or none, so several of them agree whenever they log."""
        if self.accelerator.num_processes == 1:
            return self.stop.received
        if not _due(step, self.settings.log_every):
            return False
        flag = torch.tensor([float(self.stop.received)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _save(self, index: int, step: int, batches: Any, ema: EMA | None, gathered: Gathered) -> None:
        stage = self.stages[index]
        root = stage.root()
        assert_equal_on_ranks(stage.players, self.accelerator)
        tensors = {f"stage-{i}": weights(self.stages[i].root()) for i in range(index + 1)}
        tensors["optimizers"], rest = optimizers(root, stage.players)
        if ema is not None:
            tensors["ema"] = weights(ema.module)
        rank_tensors, rank_state = random_numbers(self.accelerator.device)
        disk.save(
            self.folder / "checkpoints",
            step,
            tensors=tensors,
            states={
                "progress": {"stage": index, "ends": self.ends, "seconds": self.record.seconds},
                "batches": batches.state_dict(),
                "optimizers": rest,
                "ema": {"updates": 1 if ema is None else int(ema.n_averaged)},
            },
            card=self._card(),
            accelerator=self.accelerator,
            rank_tensors=rank_tensors | gathered.state(),
            rank_state=rank_state,
            keep=self.settings.keep_checkpoints,
        )

    def _restore(self, index: int, batches: Any, ema: EMA | None, saved: disk.Checkpoint) -> None:
        stage = self.stages[index]
        root = stage.root()
        load_weights(root, saved.tensors[f"stage-{index}"], f"stage {stage.name!r}")
        load_optimizers(root, stage.players, saved.tensors["optimizers"], saved.states["optimizers"])
        if ema is not None:
            load_weights(ema.module, saved.tensors.get("ema", weights(stage.model)), "the moving average")
            ema.n_averaged.fill_(saved.states["ema"]["updates"])
        with asked("--seed"):
            batches.load_state_dict(saved.states["batches"])
        self._go_on(saved)

    def _go_on(self, saved: disk.Checkpoint) -> None:
        """Take up the clock and the random numbers where they were."""
        self.record.before = saved.states["progress"]["seconds"]
        if saved.world_size == self.accelerator.num_processes:
            restore_random_numbers(self.accelerator.device, saved.rank_tensors, saved.rank_state)


def _options(settings: Settings) -> dict[str, Any]:
    """What the settings say of the data beyond its shape, where it is not the default."""
    names = ("horizontal_flip", "crop_padding", "skip_bad_images", "workers")
    return {name: value for name in names if (value := getattr(settings, name)) != getattr(Settings, name)}


def _close(a: Sequence[float], b: Sequence[float], scale: Sequence[float]) -> bool:
    """Whether numbers are equal to a millionth of the scale: sums depend on how many threads add."""
    return len(a) == len(b) and all(abs(x - y) <= 1e-6 * s for x, y, s in zip(a, b, scale))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
