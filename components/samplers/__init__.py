"""Samplers: from noise at t = 1 down a grid of times to x, by one loop and many methods; and the probability flow."""

from .flow import Divergence, FlowMethod, ProbabilityFlow, drift, exact_divergence, hutchinson
from .inversion import invert
from .method import Evaluation, Grid, Method, option
from .methods import DDIM, METHODS, Ancestral, DPMSolverPP, Euler, Heun, SDEDPMSolverPP
from .sampler import Sampler, walk
from .times import Spacing, time_grid

__all__ = [
    "DDIM",
    "METHODS",
    "Ancestral",
    "DPMSolverPP",
    "Divergence",
    "Euler",
    "Evaluation",
    "FlowMethod",
    "Grid",
    "Heun",
    "Method",
    "ProbabilityFlow",
    "Sampler",
    "SDEDPMSolverPP",
    "Spacing",
    "drift",
    "exact_divergence",
    "hutchinson",
    "invert",
    "option",
    "time_grid",
    "walk",
]
