"""The chains of p(x_s|x_t): ancestral sampling, DDIM, and DDIM backwards."""

import math
from copy import copy
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from ..denoisers import Denoiser, Estimate, Variance
from ..distributions import randn_like
from ..precision import wide
from ..schedules import Schedule, over
from .times import check_times

__all__ = ["ancestral", "ddim", "invert", "stepped"]


@torch.no_grad()
def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    variance: Variance | None = None,
) -> Tensor:
    """Draw x_s ~ p(x_s|x_t) down the grid; a last step to no noise takes the mean. Ho 2020, 2006.11239, algorithm 2.

    One evaluation of the network a step. Arguments: x, the noise at times[0] (B, *event); times (steps + 1,), falling;
    variance, instead of the denoiser's own: small and large go with any. Returns x at times[-1]. Raises ValueError for
    'learned_range' with a denoiser that has learned none.
    """
    check_times(times)
    reverse = _with_variance(denoiser, variance)
    earlier: dict[str, Tensor] = {}
    for t, s in pairwise(times):
        estimate = denoiser.clipped(x, t, cond, **earlier)
        earlier = denoiser.recalled(estimate)
        if reverse is not denoiser:
            estimate.interpolation = None
        p = reverse.posterior(estimate, s, t)
        x = p.mean if denoiser.schedule.noiseless(s) else p.rsample(generator)
    return x


def _with_variance(denoiser: Denoiser, variance: Variance | None) -> Denoiser:
    """The denoiser whose `posterior` has another variance."""
    if variance is None or variance == denoiser.variance:
        return denoiser
    if variance not in get_args(Variance):
        raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {variance!r}")
    if variance == "learned_range":
        raise ValueError(
            f"variance 'learned_range' needs a denoiser that has learned one; got a {type(denoiser).__name__} with "
            f"variance {denoiser.variance!r}"
        )
    # its parts are shared with the denoiser, which stays as it is
    other = copy(denoiser)
    other.variance = variance
    return other


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

    η = 0 is deterministic given x: Euler's method on the probability flow in x/α over σ/α. η = 1 is ancestral with the
    small variance. One evaluation of the network a step; of first order. Arguments and result as `ancestral`.
    """
    check_times(times)
    if not (math.isfinite(eta) and 0 <= eta <= 1):
        raise ValueError(f"eta must be in [0, 1]; got {eta}")
    earlier: dict[str, Tensor] = {}
    for t, s in pairwise(times):
        estimate = denoiser.clipped(x, t, cond, **earlier)
        earlier = denoiser.recalled(estimate)
        x = stepped(denoiser.schedule, estimate, s, t, eta, generator)
    return x


def stepped(
    schedule: Schedule,
    estimate: Estimate,
    s: Tensor,
    t: Tensor,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x_s (B, *event) of an estimate at t: DDIM's step, and with it that of every sampler here."""
    alpha, sigma = schedule.alpha_sigma(s)
    x = estimate.mean
    if eta == 0:
        return over(alpha, x) * x + over(sigma, x) * estimate.epsilon
    noise = eta * schedule.posterior_coefficients(s, t)[2]
    along = (sigma.square() - noise.square()).clamp(min=0).sqrt()
    return over(alpha, x) * x + over(along, x) * estimate.epsilon + over(noise, x) * randn_like(x, generator)


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    iterations: int = 1,
) -> Tensor:
    """The noise at times[0] from which `ddim` with η = 0 comes to x at times[-1]: its steps undone, from the last.

    A step undone is x_t = (α_t/α_s) x_s + (σ_t - α_t σ_s/α_s) ε̂(x_t, t), solved for x_t by so many iterations from x_s.
    One is DDIM inversion as diffusers has it for ε (Song 2020, 2010.02502, section 4.3), whose error falls as 1/steps;
    more undo the very same steps, whatever their size (Pan 2023, 2309.04907). The network never sees a time without
    noise. One evaluation a step and iteration.
    Arguments: x (B, *event); times, the falling grid that `ddim` would go down; iterations. What clipping cut off does
    not come back, and a self-conditioned denoiser is shown the x̂ of its last evaluation, which going down it would not
    be. Raises ValueError for a grid of the one step from pure noise (α = 0) to none: it forgets where it started.
    """
    check_times(times)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    schedule, x = denoiser.schedule, wide(x)
    earlier: dict[str, Tensor] = {}
    for s, t in pairwise(times.flip(0)):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
        if bool((alpha_t == 0) & (sigma_s == 0)):
            raise ValueError("times must have a step between pure noise and none to be inverted; got one for both")
        ratio = alpha_t / alpha_s
        found = x
        for _ in range(iterations):
            estimate = denoiser.clipped(found, t, cond, **earlier)
            earlier = denoiser.recalled(estimate)
            if alpha_t == 0:
                # x_t is ε̂ itself, which says nothing; so does x̂ of x_s and x_t, which does
                found = over(sigma_t / sigma_s, x) * (x - over(alpha_s, x) * estimate.mean)
            else:
                found = over(ratio, x) * x + over(sigma_t - ratio * sigma_s, x) * estimate.epsilon
        x = found
    return x
