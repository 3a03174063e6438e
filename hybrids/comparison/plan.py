"""The plan of a comparison: recipes with matched numbers of parameters, each with the steps that the budget allows.

It is made once and written to OUT/plan.json, so that the same command continues an interrupted comparison.
"""

import difflib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Data, load_data
from ..experiment import Refusal, Settings, parse
from ..experiment.settings.fields import settings_of
from ..files import write_whole
from ..refusal import as_refusal
from ..stage import Stage, check_moved
from .recipes import Recipe

__all__ = [
    "BUDGETS", "Options", "check", "checkpoint_every", "data_of_options", "errors_of",
    "lengths", "make_plan", "matched", "read_plan", "run_words", "settings_of_plan", "trained_parameters",
    "with_lengths", "write_plan",
]  # fmt: skip

FORMAT = 1
BUDGETS = ("images", "flops", "seconds")
"""images: training examples, counted in every epoch; flops: floating-point operations of all players, forward and
backward; seconds: of training, without start-up, checkpoints and pictures."""
OWNED = (
    "data", "resolution", "channels", "steps", "first_steps", "seed", "device", "out", "resume", "overwrite",
    "checkpoint_every", "keep_checkpoints", "log_every", "sample_every", "evaluate_every", "config",
)  # fmt: skip
"""Settings of a recipe that the comparison sets, and that --set must not contain."""
CHECKPOINTS = 6
"""Checkpoints of the last stage, evenly spaced, at which the curve of quality over time is measured."""
SPARE = 20
"""Checkpoints that are stored in addition to the planned ones: each interruption writes one."""
LINES = 200
"""Approximate number of lines of metrics.jsonl, whatever the number of steps."""
WIDEST = 4096
"""Largest width that is tried."""


@dataclass(frozen=True)
class Options:
    """The options of a comparison, as of scripts/compare.py.

    Arguments:
        recipes: by name or file.
        data: as `--data` of a recipe.
        kind: of the budget, one of BUDGETS.
        value: of the budget, for each run.
        out: the comparison's folder.
        resolution: of images; None: the data's own.
        parameters: number for which widths are chosen; None: the median of the recipes' default sizes.
        seeds: number of runs of each recipe.
        samples: number on which each run is measured.
        curve_samples: number at each point of a curve.
        jobs: processes at a time.
        metrics: by name or FILE.py:NAME; None: all.
        words: further command-line arguments, by recipe.
        device: as `--device` of a recipe.
    """

    recipes: tuple[str, ...]
    data: str
    kind: str
    value: float
    out: Path
    resolution: int | None = None
    parameters: int | None = None
    seeds: int = 1
    samples: int = 2000
    curve_samples: int = 500
    jobs: int = 1
    metrics: tuple[str, ...] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"

    def chosen(self) -> dict[str, Recipe]:
        """Return the recipes by name."""
        return {recipe.name: recipe for recipe in map(Recipe, self.recipes)}

    def fixed(self) -> dict[str, Any]:
        """Return the options that cannot change in the folder of an existing comparison."""
        names = ("data", "resolution", "kind", "value", "parameters", "samples", "curve_samples")
        metrics = None if self.metrics is None else sorted(map(_resolved, self.metrics))
        return {**{name: getattr(self, name) for name in names}, "metrics": metrics}


def _resolved(metric: str) -> str:
    file, colon, name = metric.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if colon else metric


# The plan.


def read_plan(out: Path) -> dict[str, Any] | None:
    """Return the plan in a folder, or None."""
    path = out / "plan.json"
    return json.loads(path.read_text()) if path.is_file() else None


def write_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """Write a plan to OUT/plan.json."""
    write_whole(out / "plan.json", json.dumps(plan, indent=2) + "\n")


def make_plan(options: Options, data: Data) -> dict[str, Any]:
    """Make or extend the plan in `options.out` with new recipes and seeds, write it and return it.

    A recipe that cannot be built with its settings on this data is in the plan as refused, with the reason.
    Raises Refusal, with the differences, where other options have changed.
    """
    plan = read_plan(options.out)
    card = {**data.card(), "examples": len(data)}
    if plan is None:
        plan = {
            "format": FORMAT,
            "asked": options.fixed(),
            "seeds": 0,
            "data": card,
            "parameters": None,
            "recipes": {},
        }
    _refuse_changes(plan, options, card)
    plan["seeds"] = options.seeds
    new = {name: recipe for name, recipe in options.chosen().items() if name not in plan["recipes"]}
    entries = {name: _entry(recipe, options, data) for name, recipe in new.items()}
    if plan["parameters"] is None:
        counts = sorted(entry["parameters"] for entry in entries.values() if entry["refused"] is None)
        # The lower median: no recipe's size changes much from its default.
        plan["parameters"] = options.parameters or (counts[(len(counts) - 1) // 2] if counts else None)
    for name, entry in entries.items():
        if entry["refused"] is None:
            try:
                _match(new[name], entry, data, plan["parameters"])
            except Exception as error:
                entry["refused"] = f"no width gives {plan['parameters']} parameters: {type(error).__name__}: {error}"
        plan["recipes"][name] = entry
    write_plan(options.out, plan)
    return plan


def _refuse_changes(plan: dict[str, Any], options: Options, card: dict[str, Any]) -> None:
    """Raise Refusal, with all differences, where a plan is of other options or data (a data set's card)."""
    if plan["format"] != FORMAT:
        raise Refusal(f"{options.out / 'plan.json'}: is of format {plan['format']}; expected {FORMAT}")
    before, now = plan["asked"] | {"data set": plan["data"]}, options.fixed() | {"data set": card}
    now = json.loads(json.dumps(now))
    errors = [f"{name}: {before.get(name)} → {value}" for name, value in now.items() if before.get(name) != value]
    if options.seeds < plan["seeds"]:
        errors.append(f"seeds: {plan['seeds']} → {options.seeds}")
    chosen = options.chosen()
    for name, entry in plan["recipes"].items():
        given, own = entry.get("given", name), options.words.get(name, "")
        if name not in chosen:
            errors.append(f"recipes: {name} is missing")
        elif given != str(chosen[name].file or name):
            errors.append(f"recipes: {name} was {given}, and is {chosen[name].file or 'one of recipes/'}")
        elif entry["own"] != own:
            errors.append(f"set {name}: {entry['own']!r} → {own!r}")
        elif entry["words"] not in (
            words := _words(options, own, card["shape"]),
            [*words, "--width", str(entry["width"])],
        ):
            # They become the recipe's command line: arguments from the folder alone are refused.
            errors.append(f"words of {name}: {shlex.join(entry['words'])}")
    if errors:
        raise Refusal(
            f"--out {options.out}: contains a comparison with other options ({'; '.join(errors)}); only recipes and "
            "seeds can be added: for other options give another --out"
        )


def _words(options: Options, own: str, shape: Sequence[int]) -> list[str]:
    """Return a recipe's command-line arguments without its width: the data, and those of --set."""
    # Oblong images have the size that they have.
    size = ["--resolution", str(shape[-1])] if len(shape) == 3 and shape[1] == shape[2] else []
    return ["--data", options.data, *size, *shlex.split(own)]


def _entry(recipe: Recipe, options: Options, data: Data) -> dict[str, Any]:
    """Return a recipe's entry in the plan, refused with the reason where it cannot be built."""
    own = options.words.get(recipe.name, "")
    words = _words(options, own, data.shape)
    entry: dict[str, Any] = {
        "given": str(recipe.file or recipe.name),
        "family": None,
        "own": own,
        "words": words,
        "width": None,
        "parameters": None,
        "batch": None,
        "stages": [],
        "lengths": None,
        "refused": None,
    }
    try:
        entry["family"], settings = recipe.family(), _settings(recipe, words)
        entry |= {
            "width": getattr(settings, "width", None),
            "batch": settings.batch_size * settings.accumulation,
        }
        data.batches(settings.batch_size)
        stages = recipe.module().build(settings, Data.from_card(data.card()))
        check_moved(stages)
    except ValueError as error:
        entry["refused"] = str(error)
    except Exception as error:
        # The failure of one recipe must not stop the others.
        entry["refused"] = f"{type(error).__name__}: {error}"
    else:
        entry["parameters"] = trained_parameters(stages)
        entry["stages"] = [stage.name for stage in stages]
    return entry


def _match(recipe: Recipe, entry: dict[str, Any], data: Data, target: int) -> None:
    """Choose the width by `matched`, unless the recipe has no width or --set gives it."""
    module, card = recipe.module(), Data.from_card(data.card())
    known = settings_of(module.Settings)
    if "width" not in known or "--width" in {word.partition("=")[0] for word in entry["words"]}:
        return

    def count(width: int) -> int:
        return trained_parameters(module.build(_settings(recipe, [*entry["words"], "--width", str(width)]), card))

    width, entry["parameters"] = matched(count, target, int(known["width"].rule.at_least or 1))
    entry["width"] = width
    entry["words"] += ["--width", str(width)]


def with_lengths(out: Path, plan: dict[str, Any], name: str, costs: list[float] | None) -> None:
    """Set the number of steps of each stage of a recipe in the plan, and write the plan.

    Arguments:
        costs: of one step of each stage, in the budget's unit; None where the unit is images.
    """
    entry = plan["recipes"][name]
    if costs is None:
        costs = [float(entry["batch"])] * len(entry["stages"])
    known = settings_of(Recipe(entry.get("given", name)).module().Settings)
    entry["split"] = len(costs) == 2 and "first_steps" in known
    entry["lengths"] = lengths(plan["asked"]["value"], costs, entry["split"])
    write_plan(out, plan)


def checkpoint_every(entry: Mapping[str, Any]) -> int:
    """Return the steps between the checkpoints of a recipe whose lengths are set."""
    return -(-entry["lengths"][-1] // CHECKPOINTS)


def run_words(entry: Mapping[str, Any], seed: int, device: str) -> list[str]:
    """Return the command-line arguments of one run of a recipe whose lengths are set, without --out."""
    steps, every = entry["lengths"], checkpoint_every(entry)
    words = [*entry["words"], "--steps", str(steps[-1]), "--seed", str(seed), "--device", device]
    if entry["split"]:
        words += ["--first-steps", str(steps[0])]
    words += ["--checkpoint-every", str(every), "--keep-checkpoints", str(sum(steps) // every + SPARE)]
    return [*words, "--log-every", str(max(1, sum(steps) // LINES))]


def settings_of_plan(recipe: Recipe, entry: Mapping[str, Any], device: str = "cpu") -> Settings:
    """Return the settings with which a recipe's costs are measured: those of its runs except their length."""
    return _settings(recipe, [*entry["words"], "--steps", "1000000", "--device", device])


def _settings(recipe: Recipe, words: list[str]) -> Settings:
    return parse(recipe.module().Settings, words, recipe.name)


# Equal sizes and budgets.


def trained_parameters(stages: Sequence[Stage]) -> int:
    """Return the number of trained parameters of all stages, critics included, each counted once."""
    moved: set[Tensor] = {p for stage in stages for player in stage.players for p in player.parameters_moved()}
    return sum(p.numel() for p in moved)


def matched(count: Callable[[int], int], target: int, least: int = 1) -> tuple[int, int]:
    """Return the width whose count is nearest to `target`, and that count.

    Arguments:
        count: number of parameters by width, increasing; raises ValueError for an invalid width.
        target: number of parameters.
        least: smallest width.
    """

    def at(width: int) -> tuple[int, int]:
        for candidate in range(width, width + 16):
            try:
                return candidate, count(candidate)
            except ValueError as error:
                reason = error
        raise reason

    low = high = at(least)
    while high[1] < target and high[0] < WIDEST:
        low, high = high, at(2 * high[0])
    while high[0] - low[0] > 1:
        middle = at((low[0] + high[0]) // 2)
        if middle[0] >= high[0]:
            break
        low, high = (middle, high) if middle[1] < target else (low, middle)
    return min(low, high, key=lambda pair: (abs(pair[1] - target), pair[0]))


def lengths(value: float, costs: Sequence[float], split: bool) -> list[int]:
    """Return the steps of each stage within a budget, at least one.

    Arguments:
        value: the budget.
        costs: of one step of each stage, in the budget's unit.
        split: divide the budget equally between the stages; else all stages have the same number of steps.
    Raises ValueError for a cost that is not above 0.
    """
    if not all(cost > 0 for cost in costs):
        raise ValueError(f"costs of a step must be above 0; got {list(costs)}")
    if split:
        return [max(1, int(value / len(costs) / cost)) for cost in costs]
    return [max(1, int(value / sum(costs)))] * len(costs)


# Checks before training.


def data_of_options(options: Options) -> Data:
    """Return the data set of options."""
    with as_refusal("--data"):
        return load_data(options.data, options.resolution)


def check(options: Options) -> None:
    """Raise Refusal with all errors in the options, before anything is written or trained."""
    if errors := errors_of(options):
        raise Refusal(errors)


def errors_of(options: Options) -> list[str]:
    """Return all errors in the options, one text each."""
    recipes = [Recipe(given) for given in options.recipes]
    wrong = {recipe.name: error for recipe in recipes if (error := _recipe_error(recipe))}
    errors = list(wrong.values())
    for name in dict.fromkeys(recipe.name for recipe in recipes):
        if [recipe.name for recipe in recipes].count(name) > 1:
            errors.append(f"--recipes: {name} is given twice; expected each name (of a file: its stem) once")
    if not recipes:
        errors.append("--recipes: got none; expected at least one")
    if options.kind not in BUDGETS:
        errors.append(f"kind of the budget: got {options.kind!r}; expected one of {', '.join(BUDGETS)}")
    if not options.value > 0:
        errors.append(f"--{options.kind} {options.value:g}: expected more than 0")
    for name in ("seeds", "jobs", "parameters"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            errors.append(f"--{name} {getattr(options, name)}: expected at least 1")
    errors += _metric_errors(options)
    names = [recipe.name for recipe in recipes]
    for name, words in options.words.items():
        if name not in names:
            errors.append(f"--set {name}=…: {name} is not in --recipes {' '.join(names)}; {_nearest(name, names)}")
        elif name not in wrong:
            errors += _word_errors(options.chosen()[name], words)
    return errors + _folder_errors(options.out)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def _recipe_error(recipe: Recipe) -> str | None:
    here = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.py"))
    if recipe.file is None and recipe.name not in here:
        near = _nearest(recipe.name, here)
        return f"--recipes {recipe.given}: no such recipe; {near}; or give your own recipe by its file, ./mine.py"
    if recipe.file is not None and not recipe.file.is_file():
        return f"--recipes {recipe.given}: no such file: {recipe.file}"
    try:
        recipe.module()
        recipe.family()
    except Refusal as refusal:
        return f"--recipes {refusal}"
    except Exception as error:
        return f"--recipes {recipe.given}: cannot be loaded: {type(error).__name__}: {error}"
    return None


def _metric_errors(options: Options) -> list[str]:
    from ..evaluation import metrics

    errors = []
    for text in options.metrics or ():
        try:
            metrics.metrics_of([text])
        except ValueError as error:
            errors.append(f"--metrics {text}: {error}")
    for name in ("samples", "curve_samples"):
        if getattr(options, name) < metrics.LEAST_SAMPLES:
            flag = f"--{name.replace('_', '-')} {getattr(options, name)}"
            errors.append(f"{flag}: the metrics need at least {metrics.LEAST_SAMPLES} samples")
    return errors


def _word_errors(recipe: Recipe, words: str) -> list[str]:
    try:
        split = shlex.split(words)
    except ValueError as error:
        return [f"--set {recipe.name}={words!r}: {error}"]
    flags = {word.partition("=")[0] for word in split if word.startswith("--")}
    taken = [flag for flag in sorted(flags) if flag[2:].replace("-", "_") in OWNED]
    if taken:
        return [f"--set {recipe.name}: {', '.join(taken)} is set by the comparison; remove it"]
    try:
        _settings(recipe, split)
    except Refusal as refusal:
        return [f"--set {recipe.name}: {error}" for error in refusal.errors]
    return []


def _folder_errors(out: Path) -> list[str]:
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [f"--out {out}: {existing} is a file; give a folder"]
    if not os.access(existing, os.W_OK):
        return [f"--out {out}: {existing.resolve()} is not writable; give a writable folder"]
    return []
