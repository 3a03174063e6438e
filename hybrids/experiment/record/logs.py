"""Where the numbers go: metrics.jsonl, TensorBoard, the progress bar; read from the device only when written."""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...files import append_line, write_whole
from ...finite import NotFinite

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Gathered", "Logs"]


class Gathered:
    """Logs of the steps since the last line, kept on the device: adding one costs no synchronisation."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.since, self.steps = time.perf_counter(), 0

    def add(self, logs: dict[str, Tensor]) -> None:
        """Note one step's logs."""
        self.steps += 1
        for tag, value in logs.items():
            self.values.setdefault(tag, []).append(value)

    def state(self) -> dict[str, Tensor]:
        """What was noted since the last line, for a checkpoint between two lines."""
        return {f"logs/{tag}": torch.stack(values) for tag, values in self.values.items()}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take back what `state` returned, on the device of the logs to come; other entries are passed over."""
        for tag, values in state.items():
            if tag.startswith("logs/"):
                self.values[tag.removeprefix("logs/")] = list(values.to(device, copy=True))

    def read(self, accelerator: "Accelerator", step: int, forget: bool = True) -> dict[str, float]:
        """The mean of each tag over the noted steps and all ranks; of lr/ and skipped/ the latest value. Forgets them.

        Every rank calls it. Raises NotFinite on every rank, naming the player and the term, if a loss is not finite.
        """
        if not self.values:
            return {}
        tags = sorted(self.values)
        device = accelerator.device
        latest = [tag.startswith(("lr/", "skipped/")) for tag in tags]
        means = [
            self.values[tag][-1].to(device, torch.float64)
            if last
            else torch.stack(self.values[tag]).to(device, torch.float64).mean()
            for tag, last in zip(tags, latest)
        ]
        mean = accelerator.reduce(torch.stack(means), "mean").tolist()
        if forget:
            self.values.clear()
        bad = [tag for tag, value in zip(tags, mean) if not math.isfinite(value)]
        if bad:
            kind, name, *term = bad[0].split("/")
            what = bad[0]
            if kind in ("loss", "grad_norm"):
                what = f"term {'/'.join(term)!r} of player {name!r}" if term else f"{kind} of player {name!r}"
            raise NotFinite(
                f"{what} is not finite in one of the {self.steps} steps up to {step} (not finite: {', '.join(bad)}); "
                "nothing was saved since; lower the learning rate, clip gradients, or look at the data"
            )
        return dict(zip(tags, mean))

    def rate(self) -> float:
        """Steps per second since the last call."""
        now = time.perf_counter()
        rate = self.steps / max(now - self.since, 1e-9)
        self.since, self.steps = now, 0
        return rate


class Logs:
    """The run folder's metrics.jsonl and tensorboard/. Only the main process makes one.

    TensorBoard is imported, and its file opened, with the first numbers or picture: texts wait until then.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.path, self.start = folder, folder / "metrics.jsonl", step
        self._cut_back(step)
        self.texts: dict[str, str] = {}
        self.board: Any = None
        self.failed = False

    def _open(self) -> Any:
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            purged = self.start + 1 if self.start else None
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purged)
        for tag, text in self.texts.items():
            self.board.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()))
        self.texts.clear()
        return self.board

    def _cut_back(self, step: int) -> None:
        """Forget what was logged after the step that the run goes on from."""
        if not self.path.exists():
            return
        earlier = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                if entry.get("step", 0) <= step:
                    earlier.append(line + "\n")
            except (ValueError, AttributeError, TypeError, RecursionError):
                continue  # a line cut off by a crash, or of another hand
        write_whole(self.path, "".join(earlier))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and a point on each curve."""
        append_line(self.path, json.dumps({"step": step, **values}))
        self._try(lambda: [self._open().add_scalar(tag, value, step) for tag, value in values.items()])

    def image(self, step: int, tag: str, drawn: Tensor) -> None:
        """A picture (3, H, W) in [0, 1]."""
        self._try(lambda: self._open().add_image(tag, drawn, step))

    def text(self, tag: str, text: str) -> None:
        """Text, shown as code; a later one of the same tag takes its place where none is written yet."""
        self.texts[tag] = text

    def close(self) -> None:
        """Flush everything."""
        if self.board is not None:
            self._try(lambda: self._open().close())

    def _try(self, action: Callable[[], object]) -> None:
        """TensorBoard is a convenience: where it fails, the run goes on."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:
            self.board, self.failed = None, True
            warnings.warn(f"TensorBoard failed ({error}); the run goes on without it", stacklevel=3)
