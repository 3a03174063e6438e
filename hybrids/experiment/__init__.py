"""A whole run: settings, run folder, logs, samples, moving average, checkpoints, resume."""

from ..refusal import Refusal, refusing
from ..stage import Stage
from .checkpoints import restore, save
from .run import STOPPED, checkpoint_of, data_of, experiment, load, load_recipe, main
from .settings import Conditional, Settings, parse, setting, to_yaml

__all__ = [
    "STOPPED",
    "Conditional",
    "Refusal",
    "Settings",
    "Stage",
    "checkpoint_of",
    "data_of",
    "experiment",
    "load",
    "load_recipe",
    "main",
    "parse",
    "refusing",
    "restore",
    "save",
    "setting",
    "to_yaml",
]
