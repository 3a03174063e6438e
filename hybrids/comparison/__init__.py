"""Several recipes beside each other: the same data, budget and number of parameters, measured and reported alike."""

from .plan import Options
from .recipes import DEFAULT
from .summary import report_of
from .train import compare

__all__ = ["DEFAULT", "Options", "compare", "report_of"]
