"""Several recipes beside each other: the same data, budget and number of parameters, measured and reported alike."""

from .families import DEFAULT
from .options import Options
from .whole import compare, report_of

__all__ = ["DEFAULT", "Options", "compare", "report_of"]
