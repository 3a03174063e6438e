"""Bring any run back in one line."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..data import Data, load_data
from ..refusal import Refusal, asked
from . import checkpoint as disk
from .fields import settings_of
from .settings import Settings
from .state import load_weights

__all__ = ["checkpoint_of", "data_of", "load", "load_recipe"]


def load_recipe(name: str, file: str | os.PathLike[str] | None = None) -> ModuleType:
    """The module of `recipes/NAME.py`, beside this package or in the current folder, or of a file the user names.

    A run records a name only, and only a plain one is looked up: a path read from a run folder is never executed.
    """
    if file is None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Refusal(
            f"a run's recipe must be a plain name to be looked up; got {name!r}; give its file: --recipe FILE"
        )
    places = [Path(__file__).parents[2] / "recipes", Path.cwd() / "recipes"]
    found = [place / f"{name}.py" for place in places] if file is None else [Path(file)]
    path = next((candidate for candidate in found if candidate.is_file()), None)
    if path is None:
        raise Refusal(f"recipe {name!r} is not in {', '.join(map(str, places))}; give its file with --recipe FILE")
    spec = importlib.util.spec_from_file_location(f"hybrids_recipe_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def checkpoint_of(run: str | os.PathLike[str]) -> Path:
    """The newest checkpoint of a run folder, or the folder itself if it is a checkpoint. Raises Refusal for neither."""
    folder = Path(run)
    source = folder if (folder / "manifest.json").is_file() else disk.newest(folder / "checkpoints")
    if source is None:
        raise Refusal(f"{folder}: no valid checkpoint there (looked in {(folder / 'checkpoints').resolve()})")
    return source


def data_of(checkpoint: Path) -> Data:
    """The data set that a checkpoint's run was trained on, its examples as they are, without augmentation."""
    settings = disk.load_manifest(checkpoint)["card"]["settings"]
    names = ("resolution", "channels", "skip_bad_images", "workers")
    with asked("data"):
        return load_data(settings["data"], **{name: settings[name] for name in names if settings.get(name) is not None})


def load(
    run: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | None = None,
    ema: bool = True,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The model of a run, or of one of its checkpoints, in eval mode and frozen: a teacher, a first stage, a prior.

    Arguments: run, its folder, or checkpoints/step-N within; recipe, the file of its recipe if that is not one of
    recipes/; ema, whether to take the moving average where there is one; device.
    Raises Refusal where there is no valid checkpoint, or the recipe now builds other networks.
    """
    source = checkpoint_of(run)
    saved = disk.read(source, rank=0)
    module = load_recipe(str(saved.card["recipe"]), recipe)
    settings = _settings(module, saved.card["settings"])
    stages = module.build(settings, Data.from_card(saved.card["data"]))
    index = saved.states["progress"]["stage"]
    for i in range(index + 1):
        load_weights(stages[i].root(), saved.tensors[f"stage-{i}"], f"{source}, stage {stages[i].name!r}")
    model = stages[index].model
    if ema and "ema" in saved.tensors:
        load_weights(model, saved.tensors["ema"], f"{source}, the moving average")
    return model.to(device).eval().requires_grad_(False)


def _settings(module: ModuleType, values: dict[str, Any]) -> Settings:
    known = settings_of(module.Settings)
    return module.Settings(**{name: known[name].convert(value) for name, value in values.items() if name in known})
