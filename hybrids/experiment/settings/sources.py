"""Where settings come from: the words of a command line, the entries of a YAML file, and the help that lists both."""

from __future__ import annotations

import difflib
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .fields import Setting, show

__all__ = ["Entry", "help_text", "read_arguments", "read_file"]

# What diffusers' training scripts call a thing, and ours: (setting, remark).
_COUNTERPARTS = {
    "max_train_steps": ("steps", ""),
    "num_train_epochs": ("steps", "a length is given in steps"),
    "train_batch_size": ("batch_size", ""),
    "gradient_accumulation_steps": ("accumulation", ""),
    "output_dir": ("out", ""),
    "resume_from_checkpoint": ("resume", "`latest` is `auto` here"),
    "checkpointing_steps": ("checkpoint_every", ""),
    "checkpoints_total_limit": ("keep_checkpoints", ""),
    "validation_steps": ("evaluate_every", ""),
    "train_data_dir": ("data", ""),
    "dataset_name": ("data", "hub:OWNER/NAME"),
    "learning_rate": ("lr", ""),
    "use_ema": ("ema", "its decay; 0 keeps no average"),
    "ema_decay": ("ema", ""),
}


class Entry(NamedTuple):
    """A value as it was given, and the words by which a message names its place."""

    where: str
    name: str
    value: Any


def read_arguments(argv: Sequence[str], known: Mapping[str, Setting]) -> tuple[list[Entry], list[str]]:
    """Return the entries of a command line, and what is wrong with its form.

    `--name value`, `--name=value`, `--flag` and `--no-flag`, with hyphens or underscores; never an abbreviation, whose
    meaning would change with each new setting. A tuple takes all words up to the next `--`. The last of two wins.
    """
    entries: list[Entry] = []
    errors: list[str] = []
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            groups.append((flag, [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            errors.append(f"{word!r}: a value without a setting; expected --name value")
    for flag, values in groups:
        name = flag[2:].replace("-", "_")
        positive = name.removeprefix("no_")
        if name not in known and positive in known and known[positive].is_bool:
            name, values = positive, ["false", *values]
        if name not in known:
            errors.append(_unknown(flag, name, known, flags=True))
        elif not values and not known[name].is_bool:
            errors.append(f"{flag}: a value is missing; expected {known[name].expected}")
        elif known[name].takes_many and values != ["none"]:
            entries.append(Entry(flag, name, values))
        else:
            value, *surplus = values or ["true"]
            entries.append(Entry(flag, name, value))
            errors += [f"{word!r} after {flag}: one value too many" for word in surplus]
    return entries, errors


def read_file(path: Path, recipe: str, known: Mapping[str, Setting]) -> tuple[list[Entry], list[str]]:
    """Return the entries of a YAML file, and what is wrong with its form.

    A run's own `config.yaml` is such a file: its `recipe` must be this one.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [], [f"--config {path}: no such file (looked for {os.path.realpath(path)})"]
    except OSError as error:
        return [], [f"--config {path}: cannot be read ({error.strerror}); expected a YAML file"]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [], [f"{path}: is not YAML: {' '.join(str(error).split())}"]
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        return [], [f"{path}: holds {kind}; expected a mapping with lines such as `batch_size: 8`"]
    entries, errors = [], []
    for key, value in content.items():
        name, where = str(key).replace("-", "_"), f"{path}: {key}"
        if name in known:
            entries.append(Entry(where, name, value))
        elif name != "recipe":
            errors.append(_unknown(where, name, known, flags=False))
        elif value != recipe:
            errors.append(f"{where}: is {show(value)}, but this recipe is {recipe!r}; run that one, or drop the line")
    return entries, errors


def _unknown(where: str, name: str, known: Mapping[str, Setting], flags: bool) -> str:
    """The refusal of a name that is no setting, with its counterpart or its nearest match."""
    counterpart, remark = _COUNTERPARTS.get(name, ("", ""))
    match = [counterpart] if counterpart in known else difflib.get_close_matches(name, known, n=1)
    spelled = known[match[0]].flag if match and flags else "".join(match)
    if counterpart in known:
        return f"{where}: no such setting; here it is {spelled}" + (f" ({remark})" if remark else "")
    return f"{where}: no such setting; " + (f"did you mean {spelled}?" if match else "--help lists them all")


def _listed(settings: Iterable[Setting]) -> list[str]:
    lines = []
    for one in settings:
        default = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        usage = f"{one.flag}, --no-{one.flag[2:]}" if one.is_bool else one.flag
        kind = "" if one.is_bool else f"  {one.expected}"
        lines.append(f"  {usage}{kind}  [{str(default).lower() if one.is_bool or default is None else default}]")
        lines += textwrap.wrap(one.rule.help, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def help_text(cls: type, recipe: str, known: Mapping[str, Setting], common: Iterable[str]) -> str:
    """What `--help` prints: the recipe's first line, its own settings, the common ones, an example."""
    # A dataclass without a docstring is given its signature as one.
    own_doc = cls.__doc__ if not (cls.__doc__ or "").startswith(f"{cls.__name__}(") else ""
    doc = (getattr(sys.modules.get(cls.__module__), "__doc__", "") or own_doc or "").strip().partition("\n")[0]
    names = set(common)
    # As it was typed, where it was.
    script = "python " + (sys.argv[0] if cls.__module__ == "__main__" else f"recipes/{recipe}.py")
    lines = [f"{recipe}: {doc}" if doc else recipe, "", f"usage: {script} [--config FILE] [--setting value ...]", ""]
    own = [one for name, one in known.items() if name not in names]
    if own:
        lines += [f"settings of {recipe}  [default]", *_listed(own), ""]
    lines += ["settings of every recipe  [default]", *_listed(one for name, one in known.items() if name in names)]
    lines += ["", "example:", f"  {script} --steps 2000 --batch-size 32 --out runs/{recipe}/first"]
    return "\n".join(lines)
