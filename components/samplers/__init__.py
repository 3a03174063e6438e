"""Samplers: from noise at t = 1 down a grid of times to x. Any sampler runs any denoiser.

A self-conditioned denoiser is given each step's x̂ in the next (Chen 2022, 2208.04202, section 3.2). Noise is drawn for
the whole batch from one generator: the same seed, grid and batch size give the same samples.
"""

from .chains import ancestral, ddim, invert
from .flow import Divergence, FlowMethod, ProbabilityFlow, drift, exact_divergence, hutchinson
from .solvers import dpm_solver_pp, euler, heun, sde_dpm_solver_pp
from .times import Spacing, time_grid

__all__ = [
    "SAMPLERS",
    "Spacing",
    "Divergence",
    "FlowMethod",
    "ProbabilityFlow",
    "ancestral",
    "ddim",
    "dpm_solver_pp",
    "drift",
    "euler",
    "exact_divergence",
    "heun",
    "hutchinson",
    "invert",
    "sde_dpm_solver_pp",
    "time_grid",
]

SAMPLERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm_solver_pp": dpm_solver_pp,
    "sde_dpm_solver_pp": sde_dpm_solver_pp,
}
"""The samplers by name, all called alike: (denoiser, x, times, cond, generator) → x at times[-1]."""
