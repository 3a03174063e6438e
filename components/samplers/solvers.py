"""Solvers of the probability flow and of the reverse SDE: Euler, Heun, DPM-Solver++."""

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..denoisers import Denoiser, Estimate
from ..distributions import randn_like
from ..schedules import Schedule, over
from .chains import stepped
from .times import check_times

__all__ = ["dpm_solver_pp", "euler", "heun", "sde_dpm_solver_pp"]

Variables = Literal["karras", "flow"]


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method on the probability flow, with churn: `heun` without its second half. Karras 2022, 2206.00364.

    d(x/α)/d(σ/α) = ε̂. A straight step keeps x̂ and ε̂, so that it is x_s = α_s x̂ + σ_s ε̂ in any variables that are
    ratios of combinations of x, α and σ: EDM's where the schedule explodes, Euler in t for the straight-line flow, and
    `ddim` with η = 0 for all. One evaluation of the network a step; of first order. Arguments and result as `heun`.
    """
    churn = _Churn(denoiser.schedule, len(times) - 1, s_churn, s_tmin, s_tmax, s_noise)
    return _straight(denoiser, x, times, cond, generator, churn, None)


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    variables: Variables | None = None,
) -> Tensor:
    """Heun's method on the probability flow, with churn. Karras 2022, 2206.00364, algorithm 2.

    The flow is dy/dτ = ε̂ - c x̂ for y = x/(α + c σ), τ = σ/(α + c σ), whatever c; its slope is averaged over both ends
    of a step. A last step to no noise is Euler's.
    Two evaluations of the network a step, one in a step to no noise; of second order.
    Arguments, beyond those of `ancestral`: s_churn, by which share of itself, over the number of steps and at most
    √2 - 1, σ/α is raised with fresh noise before a step, but not above that of t = 1; s_tmin and s_tmax, the σ/α within
    which it is; s_noise, what that noise is multiplied by; variables: karras, c = 0, is the paper's x/α over σ/α; flow,
    c = 1, is Heun in t on the straight-line flow. By default karras where the schedule explodes and flow elsewhere: the
    noisiest σ/α may be thousands there, or infinite, and karras multiplies the network's errors by as much.
    Raises ValueError for others than 0 <= s_churn, 0 <= s_tmin <= s_tmax, 0 < s_noise, and for karras from pure noise.
    """
    if variables is None:
        variables = "karras" if denoiser.schedule.exploding else "flow"
    if variables not in get_args(Variables):
        raise ValueError(f"variables must be one of {', '.join(get_args(Variables))}; got {variables!r}")
    churn = _Churn(denoiser.schedule, len(times) - 1, s_churn, s_tmin, s_tmax, s_noise)
    return _straight(denoiser, x, times, cond, generator, churn, variables)


class _Churn:
    """Steps of the forward process, between those of a solver."""

    def __init__(
        self, schedule: Schedule, steps: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> None:
        if not 0 <= s_churn < math.inf:
            raise ValueError(f"s_churn must be at least 0 and finite; got {s_churn}")
        if not 0 <= s_tmin <= s_tmax:
            raise ValueError(f"0 <= s_tmin <= s_tmax must hold; got {s_tmin} and {s_tmax}")
        if not 0 < s_noise < math.inf:
            raise ValueError(f"s_noise must be above 0 and finite; got {s_noise}")
        self.schedule, self.low, self.high, self.noise = schedule, s_tmin, s_tmax, s_noise
        self.share = min(s_churn / max(steps, 1), math.sqrt(2) - 1)

    def __call__(self, x: Tensor, t: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """x and the time it is of, after the noise."""
        log_snr = self.schedule.log_snr(t)
        if self.share == 0 or t >= 1 or not self.low <= float(torch.exp(-log_snr / 2)) <= self.high:
            return x, t
        later = self.schedule.time(log_snr - 2 * math.log1p(self.share)).clamp(max=1)
        ratio, variance = self.schedule.step(t, later)
        return over(ratio, x) * x + over(self.noise * variance.sqrt(), x) * randn_like(x, generator), later


def _straight(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None,
    generator: torch.Generator | None,
    churn: _Churn,
    variables: Variables | None,
) -> Tensor:
    """`heun` in such variables, `euler` for None."""
    check_times(times)
    schedule, c = denoiser.schedule, float(variables == "flow")
    if variables == "karras" and bool(schedule.alpha_sigma(times[0])[0] == 0):
        raise ValueError("variables must be 'flow' from pure noise (α = 0), where σ/α is infinite; got 'karras'")
    earlier: dict[str, Tensor] = {}
    for t, s in pairwise(times):
        x, t = churn(x, t, generator)
        first = denoiser.clipped(x, t, cond, **earlier)
        earlier = denoiser.recalled(first)
        x = stepped(schedule, first, s, t)
        if variables is not None and not schedule.noiseless(s):
            last = denoiser.clipped(x, s, cond, **earlier)
            earlier = denoiser.recalled(last)
            (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
            half = (sigma_s - (alpha_s + c * sigma_s) * sigma_t / (alpha_t + c * sigma_t)) / 2
            x = x + over(half, x) * (last.epsilon - c * last.mean - first.epsilon + c * first.mean)
    return x


@torch.no_grad()
def dpm_solver_pp(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    lower_order_final: bool = True,
) -> Tensor:
    """DPM-Solver++ 2M: DDIM's steps with x̂ drawn on in λ from the last two. Lu 2022, 2211.01095, algorithm 2.

    x_s = (σ_s/σ_t) x_t + (α_s - α_t σ_s/σ_t) D, D = x̂_t + ½ (λ_s - λ_t)/(λ_t - λ_r) (x̂_t - x̂_r), r the time before t.
    D = x̂_t, and the step is DDIM's, in the first step, in one to no noise (which is then exactly x̂) and in the one
    that follows pure noise, where λ is infinite. One evaluation of the network a step; of second order.
    Arguments and result as `ancestral`; lower_order_final, as in diffusers: D = x̂_t in the last of fewer than 15 steps.
    """
    return _multistep(denoiser, x, times, cond, generator, 0.0, lower_order_final)


@torch.no_grad()
def sde_dpm_solver_pp(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    lower_order_final: bool = True,
) -> Tensor:
    """SDE-DPM-Solver++ 2M, of the reverse SDE: ancestral steps with the D of `dpm_solver_pp`. Lu 2022, 2211.01095.

    x_s ~ q(x_s|x_t, D): ancestral with the small variance, if D were x̂. One evaluation of the network a step. Arguments
    and result as `dpm_solver_pp`.
    """
    return _multistep(denoiser, x, times, cond, generator, 1.0, lower_order_final)


def _multistep(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Tensor | None,
    generator: torch.Generator | None,
    eta: float,
    lower_order_final: bool,
) -> Tensor:
    """Both of the above, by DDIM's η."""
    check_times(times)
    schedule, steps = denoiser.schedule, len(times) - 1
    earlier: dict[str, Tensor] = {}
    before, past = None, None
    for i, (t, s) in enumerate(pairwise(times), 1):
        estimate = denoiser.clipped(x, t, cond, **earlier)
        earlier = denoiser.recalled(estimate)
        current, log_snr = estimate.mean, schedule.log_snr(t)
        last = schedule.noiseless(s) or (lower_order_final and i == steps < 15)
        if before is not None and past is not None and not last:
            share = 0.5 * (schedule.log_snr(s) - log_snr) / (log_snr - past)
            drawn_on = current + over(share, current) * (current - before)
            alpha, sigma = schedule.alpha_sigma(t)
            estimate = Estimate(estimate.x_t, alpha, sigma, "sample", drawn_on)
        x = stepped(schedule, estimate, s, t, eta, generator)
        before, past = current, log_snr
    return x
