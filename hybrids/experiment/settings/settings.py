"""The settings of a run: a dataclass, filled from its defaults, then a YAML file, then the command line.

A recipe subclasses `Settings` with fields of its own and calls `parse`. Everything that is wrong with file and command
line is reported at once.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ...data import Data
from ...own import is_own
from ...refusal import Refusal, is_main
from .fields import Rule, Setting, setting, settings_of
from .sources import help_text, read_arguments, read_file

__all__ = ["Conditional", "Settings", "parse", "to_yaml"]

S = TypeVar("S", bound="Settings")

_FP16 = (
    "fp16 needs a gradient scaler, and one scaler for the optimizers of several players shrinks their updates "
    "without an error; use bf16, or no for full precision"
)

_CONFIG = Setting(
    "config",
    Path,
    None,
    Rule("A YAML file of settings as `batch_size: 8`, such as a run's config.yaml; the command line goes before it."),
)


@dataclass
class Settings:
    """The settings that every recipe has.

    A recipe's subclass adds fields by `setting(default, help, ...)` and changes a default by `steps: int = 2000`.
    """

    structural: ClassVar[tuple[str, ...]] = ()
    """Settings that decide what the weights mean though not their shapes: a resume may not change them."""

    data: str = setting(
        "digits",
        "A data set by name, hub:OWNER/NAME, the path of a folder of images or a file of arrays, or FILE.py:FUNCTION.",
    )
    resolution: int | None = setting(None, "Height and width of the images; none: the data set's own.", at_least=1)
    channels: int | None = setting(None, "Channels of the images; none: the data set's own.", at_least=1)
    horizontal_flip: bool = setting(False, "Mirror every other image of a training batch, on average.")
    crop_padding: int = setting(
        0, "Pad training images by so many reflected pixels and crop them back anywhere.", at_least=0
    )
    skip_bad_images: int = setting(0, "How many images of a folder may be left out as unreadable.", at_least=0)
    workers: int = setting(
        2, "Processes that decode images which are too many for memory; 0: the run's own.", at_least=0
    )
    steps: int = setting(1000, "Length of the training; a step is one turn of all players.", at_least=1)
    batch_size: int = setting(64, "Examples per process and micro-batch.", at_least=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "Where to train; auto: an accelerator if any.")
    # NumPy's generators, which some data sets draw from, take no larger seed.
    seed: int = setting(0, "Seed of networks, data order and noise.", at_least=0, at_most=2**32 - 1)
    deterministic: bool = setting(False, "Deterministic kernels: slower, and exactly repeatable on a GPU too.")
    mixed_precision: Literal["no", "bf16"] = setting(
        "no", "Precision of the networks' arithmetic; losses are always in float32.", because={"fp16": _FP16}
    )
    accumulation: int = setting(1, "Micro-batches per step.", at_least=1)
    skip_nonfinite: int = setting(
        0, "How many steps may be skipped because a loss or gradient is not finite.", at_least=0
    )
    timeout: int = setting(
        1800, "Seconds that a process waits for the others before the run ends with a message.", at_least=1
    )
    out: Path | None = setting(None, "Run folder; none: runs/RECIPE/TIMESTAMP.")
    resume: str = setting(
        "never",
        "never: refuse a folder that holds a run. auto: go on from the newest checkpoint in --out, or start there. "
        "Otherwise the path of a checkpoint or run to go on from.",
    )
    overwrite: bool = setting(False, "Remove the run that --out holds, and only that.")
    dry_run: bool = setting(False, "Print players, networks, memory and FLOPs; train and write nothing.")
    checkpoint_every: int | None = setting(None, "Steps between checkpoints; none: only at the end.", at_least=1)
    keep_checkpoints: int = setting(2, "How many checkpoints to keep, newest first.", at_least=1)
    sample_every: int | None = setting(None, "Steps between sample grids; none: only at the end.", at_least=1)
    log_every: int = setting(50, "Steps between lines of the log.", at_least=1)
    evaluate_every: int | None = setting(None, "Steps between evaluations; none: never.", at_least=1)
    ema: float = setting(0.999, "Decay of the weights' moving average; 0 keeps none.", at_least=0, below=1)

    def check(self) -> list[str]:
        """What is wrong between settings; a subclass extends the list: `return super().check() + [...]`.

        Each error names its settings (`--resolution 10: ...`). One that names a setting whose own value was refused is
        left out, since that setting stands at its default meanwhile.
        """
        errors = []
        if self.device != "auto" and self.device not in (found := _devices()):
            errors.append(f"--device {self.device}: there is none here; expected auto or one of {', '.join(found)}")
        if self.resume == "auto" and self.out is None and not self.overwrite:
            errors.append("--resume auto: without --out the run folder is new and holds nothing to go on from; add it")
        if self.overwrite and self.resume == "auto":
            errors.append("--overwrite with --resume auto: one removes the run that the other goes on from; drop one")
        return errors


@dataclass
class Conditional(Settings):
    """The settings of a recipe that can learn p(x|label)."""

    conditional: bool = setting(False, "Learn p(x|label), and p(x) beside it.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)

    def classes(self, data: Data) -> int | None:
        """Return how many labels the networks take, or None. Raises ValueError where the data have none to take."""
        if self.conditional and not data.classes:
            raise ValueError(f"--conditional needs labels; --data {data.name} has none")
        return data.classes if self.conditional else None


def parse(cls: type[S], argv: Sequence[str] | None, recipe: str) -> S:
    """An instance of `cls` from its defaults, the file of `--config`, and the command line, the latter going first.

    `argv` is the command line without the program's name (`None`: `sys.argv[1:]`); `recipe` the recipe's name, which
    the file may state. `--help` prints the list of settings and exits with 0. Raises `Refusal` with all errors.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    known = settings_of(cls)
    on_command_line = {**known, "config": _CONFIG}
    if "--help" in words or "-h" in words:
        if is_main():
            print(help_text(cls, recipe, on_command_line, {**settings_of(Settings), "config": _CONFIG}))
        raise SystemExit(0)
    typed, errors = read_arguments(words, on_command_line)
    paths = [value for _, name, value in typed if name == "config"]
    entries = [entry for entry in typed if entry.name != "config"]
    if paths:
        from_file, file_errors = read_file(Path(paths[-1]), recipe, known)
        given = {name for _, name, _ in entries}
        file_errors += [
            f"{where}: {value} is a Python file, which is only run where you name it: --data {value}"
            for where, name, value in from_file
            if name == "data" and isinstance(value, str) and is_own(value) and name not in given
        ]
        entries, errors = from_file + entries, file_errors + errors
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    refused: set[str] = set()
    for where, name, value in entries:
        try:
            values[name] = known[name].convert(value)
            sources[name] = where
        except ValueError as error:
            errors.append(f"{where}: {error}")
            refused.add(name)
    settings = cls(**{name: value for name, value in values.items() if name not in refused})
    # No field: it is for the launch alone (`hybrids.launch`), which comes before defaults and after what is given.
    vars(settings)["sources"] = sources
    for message in settings.check():
        named = {flag.replace("-", "_") for flag in re.findall(r"--([a-z0-9_-]+)", message)}
        if not named & refused:
            errors.append(message)
    if errors:
        raise Refusal(errors)
    return settings


def _devices() -> list[str]:
    """The kinds of device that this machine has."""
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, there in present.items() if there]


def to_yaml(settings: Settings, recipe: str) -> str:
    """Every setting and the recipe's name as YAML that `--config` reads back to an equal instance."""
    import yaml

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    values = {field.name: plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    return yaml.safe_dump({"recipe": recipe, **values}, sort_keys=False, allow_unicode=True)
