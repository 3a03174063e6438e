"""Diffusion models: the model and its training objective, its variational bound, and its other likelihoods."""

from .bound import VariationalBound
from .diffusion import Diffusion, NoisedBatch

__all__ = ["Diffusion", "NoisedBatch", "VariationalBound"]
