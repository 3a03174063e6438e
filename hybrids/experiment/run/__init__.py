"""A run from its settings to its last checkpoint, and a trained model back from its folder."""

from .loading import checkpoint_of, data_of, load, load_recipe
from .run import STOPPED, experiment, main

__all__ = ["STOPPED", "checkpoint_of", "data_of", "experiment", "load", "load_recipe", "main"]
