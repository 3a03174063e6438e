"""Samplers: from noise at t = 1 down a grid of times to x. Any sampler runs any denoiser.

A self-conditioned denoiser is given each step's x̂ in the next (Chen 2022, 2208.04202, section 3.2).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from .denoisers import Denoiser
from .distributions import randn_like
from .schedules import over

__all__ = ["ancestral", "ddim", "time_grid"]


def time_grid(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """steps + 1 times falling evenly from start to end (diffusers' trailing spacing): (steps + 1,), float64, CPU."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if not 0 <= end < start <= 1:
        raise ValueError(f"0 <= end < start <= 1 must hold; got start {start} and end {end}")
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def _check(times: Tensor) -> None:
    if times.ndim != 1 or len(times) < 2 or bool((times.diff() >= 0).any()):
        raise ValueError(f"times must be (steps + 1,), strictly falling; got {times.tolist()}")


@torch.no_grad()
def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_s ~ p(x_s|x_t) down the grid; a last step to no noise takes the mean. Ho 2020, 2006.11239, algorithm 2.

    Arguments: x, the noise at times[0] (B, *event); times (steps + 1,), falling. Returns x at times[-1].
    """
    _check(times)
    earlier: dict[str, Tensor] = {}
    for t, s in pairwise(times):
        estimate = denoiser.clipped(x, t, cond, **earlier)
        earlier = denoiser.recalled(estimate)
        p = denoiser.posterior(estimate, s, t)
        x = p.mean if denoiser.schedule.noiseless(s) else p.rsample(generator)
    return x


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    eta: float = 0.0,
) -> Tensor:
    """x_s = α_s x̂ + √(σ_s² - τ²) ε̂ + τ ξ, with τ = η times the posterior's std. Song 2020, 2010.02502, eq. 12.

    η = 0 is deterministic given x, η = 1 is ancestral with the small variance. Arguments and result as `ancestral`.
    """
    _check(times)
    if not (math.isfinite(eta) and 0 <= eta <= 1):
        raise ValueError(f"eta must be in [0, 1]; got {eta}")
    earlier: dict[str, Tensor] = {}
    for t, s in pairwise(times):
        estimate = denoiser.clipped(x, t, cond, **earlier)
        earlier = denoiser.recalled(estimate)
        alpha, sigma = denoiser.schedule.alpha_sigma(s)
        noise = eta * denoiser.schedule.posterior_coefficients(s, t)[2]
        along = (sigma.square() - noise.square()).clamp(min=0).sqrt()
        x = over(alpha, x) * estimate.mean + over(along, x) * estimate.epsilon
        if eta > 0:
            x = x + over(noise, x) * randn_like(x, generator)
    return x
