"""Several recipes beside each other: the same data, budget and number of parameters, measured and reported alike."""

from .families import DEFAULT
from .plan import Options
from .summary import report_of
from .train import compare

__all__ = ["DEFAULT", "Options", "compare", "report_of"]
