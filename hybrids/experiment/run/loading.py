"""Bring any run back in one line."""

import os
import re
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ...data import NAMES, Data, load_data
from ...data.source import say
from ...own import is_own, load_module
from ...refusal import Refusal, as_refusal, malformed
from ..checkpoints import checkpoint as disk
from ..checkpoints.state import load_weights, part
from ..settings import Settings
from ..settings.fields import settings_of, show

__all__ = ["checkpoint_of", "data_of", "described_data", "load", "load_recipe"]


def load_recipe(name: str, file: str | os.PathLike[str] | None = None) -> ModuleType:
    """Return the module of the project's own `recipes/NAME.py`, or of a file that the user names.

    A run records a name only, and only a plain one is looked up, beside this package: neither a path that is read from
    a run folder nor a file of the current folder is ever executed. Raises Refusal where there is none.
    """
    if file is None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name):
        raise Refusal(
            f"a run's recipe must be a plain name to be looked up; got {show(name)}; give its file: --recipe FILE"
        )
    place = Path(__file__).parents[3] / "recipes"
    path = place / f"{name}.py" if file is None else Path(file)
    if not path.is_file():
        where = f"is not in {place}" if file is None else f"has no file {path}"
        raise Refusal(f"recipe {name!r} {where}; give its file with --recipe FILE")
    with as_refusal(f"recipe {path}"):
        return load_module(path)


WEIGHTS = ("stage-*", "progress", "ema")
"""The parts of a checkpoint that a model is loaded from: damage to the others does no harm there."""


def checkpoint_of(run: str | os.PathLike[str]) -> Path:
    """Return the newest checkpoint of a run folder whose weights are valid, or the folder itself if it is one.

    Raises Refusal for neither.
    """
    source = _source(run)
    return source if source.name != "checkpoints" else disk.newest(source, WEIGHTS) or source


def _source(run: str | os.PathLike[str]) -> Path:
    folder = Path(run)
    if (folder / "manifest.json").is_file():
        return folder
    if not disk.steps_in(folder / "checkpoints"):
        raise Refusal(f"{folder}: no valid checkpoint there (looked in {os.path.realpath(folder / 'checkpoints')})")
    return folder / "checkpoints"


def data_of(checkpoint: Path, data: str | None = None) -> Data:
    """Return the data set that a checkpoint's run was trained on, its examples as they are, without augmentation.

    Vectors are at the scale that the run was trained at: (value - mean) / scale, of its checkpoint and not of the file.
    Arguments: data, instead of what the run says; a run of data of one's own, FILE.py:NAME, needs it, since a file that
    a run names is not executed. Raises Refusal where it is missing, for examples of another shape, and, where the run
    is conditional, for other classes.
    """
    known = settings_of(Settings)
    with malformed(str(checkpoint)):
        card = disk.load_manifest(checkpoint)["card"]
        given = card["settings"]
        name = known["data"].convert(given["data"]) if data is None else data
        options = {key: known[key].convert(given[key]) for key in _OF_DATA if given.get(key) is not None}
    if data is None and is_own(name):
        raise Refusal(
            f"{checkpoint}: its data are made by a Python file, which is only run where you name it: --data {name}"
        )
    if data is None and name not in NAMES:
        # A run may be a stranger's, and names whatever it likes.
        say(f"{checkpoint}: reads the data that the run names, --data {name}")
    with malformed(str(checkpoint)) if data is None else nullcontext(), as_refusal("data"):
        return _as_trained(load_data(name, **options), card["data"], bool(given.get("conditional")))


_OF_DATA = ("resolution", "channels", "skip_bad_images", "workers")


def _as_trained(data: Data, card: dict[str, Any], conditional: bool) -> Data:
    """Return data as the run of a card took it: vectors by the card's mean and scale. Raises ValueError."""
    trained = Data.from_card(card)
    if data.shape != trained.shape:
        raise ValueError(f"{data.name} has examples of shape {data.shape}; the run was trained on {trained.shape}")
    # Runs from before names were recorded have none.
    same_names = "class_names" not in card or data.class_names == trained.class_names
    if conditional and not (data.classes == trained.classes and same_names):
        raise ValueError(
            f"{data.name} has the classes {data.describe_classes() or 'none'}; the run was trained on "
            f"{trained.describe_classes()}: its labels mean something else"
        )
    if (data.mean, data.scale) == (trained.mean, trained.scale):
        return data
    return data.rescaled(trained.mean, trained.scale)


def described_data(checkpoint: Path) -> Data:
    """Return the data set of a checkpoint's run without its examples: shape, names of classes, scale."""
    with malformed(str(checkpoint)):
        return Data.from_card(disk.load_manifest(checkpoint)["card"]["data"])


def load(
    run: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | None = None,
    ema: bool = True,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The model of a run, or of one of its checkpoints, in eval mode and frozen: a teacher, a first stage, a prior.

    Its `to_data(x)` maps samples of vectors to the data's own values (`Data.to_data`); images stay as they are.

    Arguments: run, its folder, or checkpoints/step-N within; recipe, the file of its recipe if that is not one of
    recipes/; ema, whether to take the moving average where there is one; device.
    Raises Refusal where there is no valid checkpoint, or the recipe now builds other networks.
    """
    saved = disk.read_newest(_source(run), only=WEIGHTS if ema else WEIGHTS[:-1])
    assert saved is not None
    source, tensors = saved.folder, saved.state.tensors
    if not {"recipe", "settings", "data"} <= saved.card.keys():
        raise Refusal(
            f"{source}: was saved by a script, not by a recipe: hybrids.restore puts it back into its players"
        )
    module = load_recipe(str(saved.card["recipe"]), recipe)
    with malformed(str(source)):
        data = Data.from_card(saved.card["data"])
        stages = module.build(_settings(module, saved.card["settings"], str(source)), data)
        index = part(saved.state.values, "progress", str(source))["stage"]
        if not 0 <= index < len(stages):
            raise ValueError(f"its stage is number {index}, of {len(stages)}")
        for i in range(index + 1):
            weights = part(tensors, f"stage-{i}", str(source))
            load_weights(stages[i].root(), weights, f"{source}, stage {stages[i].name!r}")
        model = stages[index].model
        if ema and "ema" in tensors:
            load_weights(model, tensors["ema"], f"{source}, the moving average")
    model.to_data = data.to_data
    return model.to(device).eval().requires_grad_(False)


def _settings(module: ModuleType, values: dict[str, Any], where: str) -> Settings:
    known, converted = settings_of(module.Settings), {}
    for name in known.keys() & values.keys():
        with as_refusal(f"{where}, setting {name}"):
            converted[name] = known[name].convert(values[name])
    return module.Settings(**converted)
