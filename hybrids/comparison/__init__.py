"""Comparison of recipes on the same data, with the same budget and number of parameters: training, metrics, report."""

from .plan import Options
from .recipes import DEFAULT
from .summary import report_of
from .train import compare

__all__ = ["DEFAULT", "Options", "compare", "report_of"]
