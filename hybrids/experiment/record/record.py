"""What a run leaves for people: the log, pictures, evaluations, the summary. Written by the main process."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Batches, Data
from ...data.source import few
from ...files import warning_if_full, write_whole
from ...modes import evaluating
from ...pictures import COLUMNS, labels_shown, save_picture
from ...stage import Stage
from ..settings import Settings, to_yaml
from .logs import Gathered, Logs
from .players import players_table

__all__ = ["Record"]


class Record:
    """The run folder's files besides checkpoints. Every rank makes one; only the main process's writes."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        recipe: str,
        data: Data,
        stages: Sequence[Stage],
        accelerator: Any,
        start: int,
    ) -> None:
        self.folder, self.settings, self.recipe, self.data = folder, settings, recipe, data
        self.stages, self.accelerator = stages, accelerator
        self.main: bool = accelerator.is_main_process
        self.values: dict[str, float] = {}
        self.evaluation: dict[str, float] = {}
        self.announced = False
        self.began, self.before = time.perf_counter(), 0.0
        if self.main:
            write_whole(folder / "config.yaml", to_yaml(settings, recipe))
            self.logs = Logs(folder, start)
            self.logs.text("settings", to_yaml(settings, recipe))

    @property
    def seconds(self) -> float:
        """Training time so far, earlier sessions of the run included."""
        return self.before + time.perf_counter() - self.began

    @property
    def examples_per_step(self) -> int:
        """The effective batch size."""
        return self.settings.batch_size * self.settings.accumulation * self.accelerator.num_processes

    def parameters(self) -> dict[str, int]:
        """Parameters by stage, those of critics included."""
        return {stage.name: sum(p.numel() for p in stage.root().parameters()) for stage in self.stages}

    def bar(self, name: str, done: int, steps: int) -> Any:
        """The progress of a stage, on the main process."""
        from tqdm import tqdm

        return tqdm(
            total=steps,
            initial=done,
            desc=name,
            unit="step",
            dynamic_ncols=True,
            # A log file is no terminal: a line in ten seconds is enough there.
            mininterval=0.2 if sys.stderr.isatty() else 10,
            disable=not self.main,
        )

    def log(self, step: int, gathered: Gathered, bar: Any, write: bool = True) -> None:
        """Read the gathered logs and write a line. Every rank calls it; NotFinite on all if a value is not finite.

        Without `write` it is that check alone.
        """
        values = gathered.read(self.accelerator, step, forget=write)
        if not values or not write:
            return
        rate = gathered.rate()
        values["time/images_per_second"] = rate * self.examples_per_step
        values["time/step_ms"] = 1000 / rate
        self.values = values
        if self.main:
            self.logs.scalars(step, values)
            totals = {tag: f"{v:.4g}" for tag, v in values.items() if tag.startswith("loss/") and tag.count("/") == 1}
            shown = {tag.removeprefix("loss/"): text for tag, text in totals.items()}
            bar.set_postfix({**shown, "img/s": f"{values['time/images_per_second']:.0f}"}, refresh=False)

    def picture(self, step: int, model: Any, conditional: bool = False) -> None:
        """A grid from fixed noise, a column a class; and reconstructions of held-out images, where a model has them."""
        if not self.main:
            return
        with evaluating(model), torch.no_grad():
            generator = torch.Generator(self.accelerator.device).manual_seed(self.settings.seed)
            if conditional:
                cond = labels_shown(self.data.classes).to(self.accelerator.device)
                x, columns = model.sample(len(cond), cond=cond, generator=generator), min(self.data.classes, COLUMNS)
            else:
                x, columns = model.sample(64 if self.data.is_image else 4000, generator=generator), None
            self._show(step, x, "step", "samples/ema", columns)
            if hasattr(model, "reconstruct") and self.data.held_out is not None and self.data.is_image:
                seen = self.data.decode(self.data.held_out[:32]).to(self.accelerator.device)
                # Each image beside its reconstruction.
                pairs = torch.stack([seen, model.reconstruct(seen)], 1).flatten(0, 1)
                self._show(step, pairs, "reconstructions", "reconstructions")

    def _show(self, step: int, x: Tensor, name: str, tag: str, columns: int | None = None) -> None:
        path = self.folder / "samples" / f"{name}-{step}.png"
        scale = {"mean": self.data.mean, "scale": self.data.scale}
        self.logs.image(step, tag, save_picture(self.data.to_data(x), path, columns, **scale))

    def evaluate(self, step: int, model: nn.Module, conditional: bool = False) -> None:
        """The cheap numbers of `hybrids.evaluation`."""
        if not self.main:
            return
        from ...evaluation import evaluate

        with evaluating(model), torch.no_grad():
            self.evaluation = evaluate(
                model, self.data, self.accelerator.device, self.settings.seed, conditional=conditional
            )
        self.logs.scalars(step, {f"evaluation/{name}": value for name, value in self.evaluation.items()})

    def summary(self, step: int) -> None:
        """summary.json, at the end."""
        if not self.main:
            return
        summary = {
            "recipe": self.recipe,
            "steps": step,
            "seconds": self.seconds,
            "images_per_second": self.values.get("time/images_per_second"),
            "parameters": self.parameters(),
            "losses": {tag.removeprefix("loss/"): v for tag, v in self.values.items() if tag.startswith("loss/")},
            "world_size": self.accelerator.num_processes,
            "seed": self.settings.seed,
            "evaluation": self.evaluation,
        }
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    def announce(self, source: Path | None, start: int) -> None:
        """Say what is about to happen, the effective batch size above all."""
        s, a = self.settings, self.accelerator
        self.say(
            f"{self.recipe} on {self.data.name} {self.data.shape} ({len(self.data)} examples), device {a.device}\n"
            f"effective batch {self.examples_per_step} = {s.batch_size} × {a.num_processes} process(es) × "
            f"{s.accumulation} micro-batch(es); parameters {self.parameters()}; run folder {self.folder}"
            + (f"\nclasses {self.data.describe_classes()}" if self.data.classes else "")
            + (f"\ngoing on from {source} at step {start}" if source else "")
        )

    def players(self, index: int, batches: Any) -> None:
        """Write players.txt, who moves what, and print it: all of it at first, then each stage's part as it starts.

        Every rank calls it, since a loss may communicate: each is computed on a batch, which is not taken from the
        training's, with nothing drawn or changed. A stage whose data are made of the stages before it shows its losses
        once it starts. Arguments: index, of the stage that starts; batches, its own.
        """
        tables = []
        for i, stage in enumerate(self.stages):
            data: Any = self.data if stage.batches is None else stage.batches
            if i == index:
                data = batches.data if isinstance(batches, Batches) else None
            batch = None
            if isinstance(data, Data) and len(data):
                # As many as in training: kernels chosen and graphs compiled for them are those of the first step.
                examples = few(data, self.settings.batch_size)
                batch = next(iter(examples.batches(len(examples), 0, 0, 1, self.accelerator.device, stage.conditional)))
            tables.append(players_table(stage, stage.steps or self.settings.steps, batch))
        if self.main:
            text = "\n".join(tables)
            with warning_if_full("players.txt"):
                write_whole(self.folder / "players.txt", text + "\n")
            self.logs.text("players", text)
        self.say(tables[index] if self.announced else "\n".join(tables))
        self.announced = True

    def say(self, text: str) -> None:
        """Print it once."""
        if self.main:
            print(text, flush=True)

    def close(self) -> None:
        """Flush the logs."""
        if self.main:
            self.logs.close()
