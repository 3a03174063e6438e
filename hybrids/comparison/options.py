"""What a comparison is asked for, and what is refused before anything trains."""

import difflib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data import Data, load_data
from ..experiment import Refusal, Settings, load_recipe, parse
from ..refusal import asked
from .budgets import KINDS

__all__ = ["OWNED", "Options", "check", "data_asked", "recipes_here", "settings_asked"]

OWNED = (
    "data", "resolution", "channels", "steps", "first_steps", "seed", "device", "out", "resume", "overwrite",
    "checkpoint_every", "keep_checkpoints", "log_every", "sample_every", "evaluate_every", "config",
)  # fmt: skip
"""Settings of a recipe that the comparison gives, so that nobody else may."""


@dataclass(frozen=True)
class Options:
    """The command line of scripts/compare.py.

    Arguments: recipes, by name; data, as `--data` of a recipe; kind and value of the budget; out, the folder;
    resolution, of images; parameters, that widths are chosen for, None for the median of the recipes' own; seeds, how
    many; samples, that each run is measured on; curve_samples, at each point of a curve; jobs, processes at once;
    metrics, by name, None for all; words, further settings by recipe; device.
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

    def fixed(self) -> dict[str, object]:
        """What may not change in a folder once there is something in it."""
        names = ("data", "resolution", "kind", "value", "parameters", "samples", "curve_samples", "metrics")
        found = {name: getattr(self, name) for name in names}
        return {**found, "metrics": None if self.metrics is None else sorted(self.metrics)}


def recipes_here() -> list[str]:
    """The names of all recipes, those of the current folder too."""
    places = (Path(__file__).parents[2] / "recipes", Path.cwd() / "recipes")
    return sorted({path.stem for place in places for path in place.glob("*.py")})


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def data_asked(options: Options) -> Data:
    """The data set; digits at 8 × 8 unless told otherwise, where they have grey levels of their own."""
    resolution = options.resolution or (8 if options.data == "digits" else None)
    with asked("--data"):
        return load_data(options.data, resolution)


def settings_asked(recipe: str, words: list[str]) -> Settings:
    """A recipe's settings with these words. Raises Refusal."""
    return parse(load_recipe(recipe).Settings, words, recipe)


def check(options: Options) -> None:
    """Raise Refusal with everything that is wrong, before anything is written or trained."""
    errors, here = [], recipes_here()
    for recipe in options.recipes:
        if recipe not in here:
            errors.append(
                f"--recipes {recipe}: there is no such recipe; {_nearest(recipe, here)}; your own are found by name in "
                "the folder recipes of the current one"
            )
    if len(set(options.recipes)) < len(options.recipes):
        errors.append("--recipes: a recipe is named twice; expected each once")
    if not options.recipes:
        errors.append("--recipes: names none; expected at least one")
    if options.kind not in KINDS:
        errors.append(f"the budget is {options.kind!r}; expected one of {', '.join(KINDS)}")
    if not options.value > 0:
        errors.append(f"--{options.kind} {options.value:g}: expected more than 0")
    for name in ("seeds", "jobs", "curve_samples"):
        if getattr(options, name) < 1:
            errors.append(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1")
    if options.parameters is not None and options.parameters < 1:
        errors.append(f"--parameters {options.parameters}: expected at least 1")
    errors += _metric_errors(options)
    for recipe, words in options.words.items():
        if recipe not in options.recipes:
            errors.append(
                f"--set {recipe}=…: is not among --recipes {' '.join(options.recipes)}; "
                f"{_nearest(recipe, list(options.recipes))}"
            )
        elif recipe in here:
            errors += _word_errors(recipe, words)
    errors += _folder_errors(options.out)
    if errors:
        raise Refusal(errors)


def _metric_errors(options: Options) -> list[str]:
    from ..evaluation import metrics

    errors = [
        f"--metrics {name}: there is no such metric; {_nearest(name, list(metrics.METRICS))}"
        for name in options.metrics or ()
        if name not in metrics.METRICS
    ]
    least = int(getattr(metrics, "LEAST_SAMPLES", 2))
    for name in ("samples", "curve_samples"):
        if getattr(options, name) < least:
            errors.append(
                f"--{name.replace('_', '-')} {getattr(options, name)}: the metrics need at least {least} samples"
            )
    return errors


def _word_errors(recipe: str, words: str) -> list[str]:
    try:
        split = shlex.split(words)
    except ValueError as error:
        return [f"--set {recipe}={words!r}: {error}"]
    owned = {word.partition("=")[0] for word in split if word.startswith("--")}
    taken = [flag for flag in sorted(owned) if flag[2:].replace("-", "_") in OWNED]
    if taken:
        return [f"--set {recipe}: {', '.join(taken)} is the comparison's own to give; drop it"]
    try:
        settings_asked(recipe, split)
    except Refusal as refusal:
        return [f"--set {recipe}: {error}" for error in refusal.errors]
    return []


def _folder_errors(out: Path) -> list[str]:
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return [f"--out {out}: {place} is a file; give a folder"]
    if not os.access(place, os.W_OK):
        return [f"--out {out}: cannot be written ({place.resolve()}); give a folder that can"]
    return []
