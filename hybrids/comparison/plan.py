"""The plan of a comparison: each recipe's width, words and number of steps, decided once and kept in plan.json."""

import json
import shlex
from pathlib import Path
from typing import Any

from ..data import Data
from ..experiment import Refusal, load_recipe
from ..experiment.fields import settings_of
from ..experiment.settings import Settings
from ..files import write_whole
from ..stage import check_moved
from .budgets import lengths, matched, trained_parameters
from .options import Options, settings_asked

__all__ = ["checkpoint_every", "kept_plan", "make_plan", "run_words", "settings_of_plan", "with_lengths"]

FORMAT = 1
CHECKPOINTS = 6
"""Of the last stage, evenly spaced, that the curve of quality over time is measured at."""
SPARE = 20
"""More checkpoints than planned that are kept: each stop writes one."""
LINES = 200
"""Of metrics.jsonl, about, whatever the number of steps."""


def kept_plan(out: Path) -> dict[str, Any] | None:
    """The plan that lies in a folder, if there is one."""
    path = out / "plan.json"
    return json.loads(path.read_text()) if path.is_file() else None


def make_plan(options: Options, data: Data) -> dict[str, Any]:
    """The plan that lies in `options.out`, with recipes and seeds that are new; written there.

    A recipe that the data, or its own settings on this data, cannot have is in it as refused, with the reason.
    Raises Refusal for options that have changed otherwise, with the difference.
    """
    plan = kept_plan(options.out)
    card = {**data.card(), "examples": len(data)}
    if plan is None:
        plan = {"format": FORMAT, "asked": options.fixed(), "seeds": 0, "data": card, "parameters": None, "recipes": {}}
    _refuse_changes(plan, options, card)
    plan["seeds"] = options.seeds
    new = [recipe for recipe in options.recipes if recipe not in plan["recipes"]]
    entries = {recipe: _entry(recipe, options, data) for recipe in new}
    if plan["parameters"] is None:
        counts = sorted(entry["parameters"] for entry in entries.values() if entry["refused"] is None)
        # The lower median: half of the recipes shrink and half of them grow, none far from what it was made for.
        plan["parameters"] = options.parameters or (counts[(len(counts) - 1) // 2] if counts else None)
    for recipe, entry in entries.items():
        if entry["refused"] is None:
            _match(recipe, entry, data, plan["parameters"])
        plan["recipes"][recipe] = entry
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "plan.json", json.dumps(plan, indent=2) + "\n")
    return plan


def _refuse_changes(plan: dict[str, Any], options: Options, card: dict[str, Any]) -> None:
    if plan["format"] != FORMAT:
        raise Refusal(f"{options.out / 'plan.json'}: is of format {plan['format']}; expected {FORMAT}")
    errors = []
    asked = json.loads(json.dumps(options.fixed()))
    for name, value in asked.items():
        if plan["asked"].get(name) != value:
            errors.append(f"{name}: {plan['asked'].get(name)} → {value}")
    if json.loads(json.dumps(card)) != plan["data"]:
        errors.append(f"data: {plan['data']} → {card}")
    if options.seeds < plan["seeds"]:
        errors.append(f"seeds: {plan['seeds']} → {options.seeds}")
    for recipe, entry in plan["recipes"].items():
        if recipe not in options.recipes:
            errors.append(f"recipes: {recipe} is dropped")
        elif entry["own"] != options.words.get(recipe, ""):
            errors.append(f"set {recipe}: {entry['own']!r} → {options.words.get(recipe, '')!r}")
    if errors:
        raise Refusal(
            f"--out {options.out}: holds a comparison of other options ({'; '.join(errors)}); recipes and seeds may be "
            "added, for anything else give another --out"
        )


def _entry(recipe: str, options: Options, data: Data) -> dict[str, Any]:
    own = options.words.get(recipe, "")
    words = ["--data", options.data]
    if data.is_image:
        words += ["--resolution", str(data.shape[-1])]
    words += shlex.split(own)
    settings = settings_asked(recipe, words)
    entry: dict[str, Any] = {
        "own": own,
        "words": words,
        "width": getattr(settings, "width", None),
        "parameters": None,
        "batch": settings.batch_size * settings.accumulation,
        "stages": [],
        "lengths": None,
        "refused": None,
    }
    try:
        data.batches(settings.batch_size)
        stages = load_recipe(recipe).build(settings, Data.from_card(data.card()))
        check_moved(stages)
    except ValueError as error:
        entry["refused"] = str(error)
    except Exception as error:
        # What one recipe cannot do must not cost the others.
        entry["refused"] = f"{type(error).__name__}: {error}"
    else:
        entry["parameters"] = trained_parameters(stages)
        entry["stages"] = [stage.name for stage in stages]
    return entry


def _match(recipe: str, entry: dict[str, Any], data: Data, target: int) -> None:
    """Choose the width, unless the recipe has none or --set gives it."""
    known = settings_of(load_recipe(recipe).Settings)
    given = {word.partition("=")[0] for word in entry["words"]}
    if "width" not in known or "--width" in given:
        return
    module, card = load_recipe(recipe), Data.from_card(data.card())

    def count(width: int) -> int:
        settings = settings_asked(recipe, [*entry["words"], "--width", str(width)])
        return trained_parameters(module.build(settings, card))

    width, entry["parameters"] = matched(count, target, int(known["width"].rule.at_least or 1))
    entry["width"] = width
    entry["words"] += ["--width", str(width)]


def with_lengths(out: Path, plan: dict[str, Any], recipe: str, costs: list[float] | None) -> None:
    """Settle how many steps each stage of a recipe has; costs, of a step of each, None where an image is the unit."""
    entry, asked = plan["recipes"][recipe], plan["asked"]
    if costs is None:
        costs = [float(entry["batch"])] * len(entry["stages"])
    split = len(costs) == 2 and "first_steps" in settings_of(load_recipe(recipe).Settings)
    entry["lengths"] = lengths(asked["value"], costs, split)
    entry["split"] = split
    write_whole(out / "plan.json", json.dumps(plan, indent=2) + "\n")


def checkpoint_every(entry: dict[str, Any]) -> int:
    """Steps between the checkpoints of a recipe whose lengths are settled."""
    return -(-entry["lengths"][-1] // CHECKPOINTS)


def run_words(entry: dict[str, Any], seed: int, device: str) -> list[str]:
    """The words of one run of a recipe whose lengths are settled, but for its folder."""
    steps = entry["lengths"]
    words = [*entry["words"], "--steps", str(steps[-1]), "--seed", str(seed), "--device", device]
    if entry["split"]:
        words += ["--first-steps", str(steps[0])]
    every = checkpoint_every(entry)
    words += ["--checkpoint-every", str(every), "--keep-checkpoints", str(sum(steps) // every + SPARE)]
    return [*words, "--log-every", str(max(1, sum(steps) // LINES))]


def settings_of_plan(recipe: str, entry: dict[str, Any], device: str = "cpu") -> Settings:
    """The settings that a recipe's costs are measured with: those of its runs but for their length."""
    return settings_asked(recipe, [*entry["words"], "--steps", "1000000", "--device", device])
