"""The settings of a run: a dataclass, filled from its defaults, a YAML file, and the command line."""

from .fields import setting, settings_of
from .settings import Conditional, Settings, parse, to_yaml

__all__ = ["Conditional", "Settings", "parse", "setting", "settings_of", "to_yaml"]
