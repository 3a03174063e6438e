"""The methods that samplers go down by: chains of p(x_s|x_t), and solvers of the probability flow and the reverse SDE.

A plan is made for the whole grid at once: the index t stands for the times that steps start from, s for those that they
end at.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..denoisers import Estimate, Variance
from ..schedules import NoiseLevel, PosteriorCoefficients, Schedule
from .method import Evaluation, Grid, Method, option

__all__ = [
    "DDIM",
    "METHODS",
    "Ancestral",
    "DPMSolverPP",
    "Euler",
    "Heun",
    "SDEDPMSolverPP",
]

Variables = Literal["karras", "flow"]
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class Ancestral(Method):
    """Draw x_s ~ p(x_s|x_t) down the grid; a last step to no noise takes the mean. Ho 2020, 2006.11239, algorithm 2.

    Arguments: variance, instead of the denoiser's own: small and large go with any. Raises ValueError for another one,
    and when sampling for 'learned_range' of a denoiser that has learned none.
    """

    variance: Variance | None = option(None, "of ancestral's p(x_s|x_t), instead of the denoiser's own")

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in get_args(Variance):
            raise ValueError(f"variance must be one of {', '.join(get_args(Variance))}; got {self.variance!r}")

    def plan(self, schedule: Schedule, grid: Grid) -> list[tuple[NoiseLevel, PosteriorCoefficients]]:
        """Return the level of t and q(x_s|x_t, x)'s coefficients."""
        rows = zip(*(torch.as_tensor(c).tolist() for c in schedule.posterior_coefficients(grid.t[1:], grid.t[:-1])))
        return [(level, PosteriorCoefficients(*row)) for level, row in zip(grid.levels(), rows)]

    def step(self, denoise: Evaluation, x: Tensor, c: Any, memory: None, noise: Noise) -> tuple[Tensor, None]:
        """Draw x_s ~ p(x_s|x_t)."""
        level, coefficients = c
        p = denoise.posterior(denoise(x, level), coefficients, self.variance)
        return (p.mean if coefficients.noiseless else p.mean + p.std * noise()), None  # type: ignore[union-attr]


@dataclass(frozen=True)
class DDIM(Method):
    """x_s = α_s x̂ + √(σ_s² - τ²) ε̂ + τ ξ, with τ = η times the posterior's std. Song 2020, 2010.02502, eq. 12.

    η = 0 is deterministic given x: Euler's method on the probability flow in x/α over σ/α. η = 1 is ancestral with the
    small variance. Of first order. Arguments: eta in [0, 1]; raises ValueError for another one.
    """

    eta: float = option(0.0, "noise of ddim, from 0, none, to 1, as much as ancestral")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and 0 <= self.eta <= 1):
            raise ValueError(f"eta must be in [0, 1]; got {self.eta}")

    def plan(self, schedule: Schedule, grid: Grid) -> list[tuple[NoiseLevel, float, float, float]]:
        """Return the level of t, α_s, √(σ_s² - τ²) and τ."""
        tau, along = _noise_and_rest(schedule, grid, self.eta)
        return list(zip(grid.levels(), grid.alpha[1:].tolist(), along.tolist(), tau.tolist()))

    def step(self, denoise: Evaluation, x: Tensor, c: Any, memory: None, noise: Noise) -> tuple[Tensor, None]:
        """Return α_s x̂ + √(σ_s² - τ²) ε̂ + τ ξ."""
        level, alpha, along, tau = c
        estimate = denoise(x, level)
        x = torch.add(alpha * estimate.mean, estimate.epsilon, alpha=along) if along else alpha * estimate.mean
        return (torch.add(x, noise(), alpha=tau) if tau else x), None


def _noise_and_rest(schedule: Schedule, grid: Grid, eta: float) -> tuple[Tensor, Tensor]:
    """Return τ = η std(q(x_s|x_t, x)) and √(σ_s² - τ²), (N,) each."""
    std = torch.as_tensor(schedule.posterior_coefficients(grid.t[1:], grid.t[:-1]).std).cpu()
    tau = eta * std if eta else torch.zeros_like(std)
    return tau, (grid.sigma[1:].square() - tau.square()).clamp(min=0).sqrt()


class _Straight(NamedTuple):
    """A straight step: x's factor and its noise's std in the churn before (None: no churn), the level, α_s and σ_s."""

    churn: tuple[float, float] | None
    level: NoiseLevel
    alpha: float
    sigma: float


@dataclass(frozen=True)
class _Churning(Method):
    """A solver with fresh noise before its steps; `Heun` says what the options are."""

    s_churn: float = option(0.0, "fresh noise before each step of euler and heun")
    s_tmin: float = option(0.0, "least σ/α at which s_churn acts")
    s_tmax: float = option(math.inf, "largest σ/α at which s_churn acts")
    s_noise: float = option(1.0, "what the noise of s_churn is multiplied by")

    def __post_init__(self) -> None:
        if not 0 <= self.s_churn < math.inf:
            raise ValueError(f"s_churn must be at least 0 and finite; got {self.s_churn}")
        if not 0 <= self.s_tmin <= self.s_tmax:
            raise ValueError(f"0 <= s_tmin <= s_tmax must hold; got {self.s_tmin} and {self.s_tmax}")
        if not 0 < self.s_noise < math.inf:
            raise ValueError(f"s_noise must be above 0 and finite; got {self.s_noise}")

    def straight(self, schedule: Schedule, grid: Grid) -> tuple[Grid, list[_Straight]]:
        """Return the grid of the times that steps start from, after the churn, and the straight step of each."""
        start = grid.starts()
        steps = len(start.t)
        share = min(self.s_churn / max(steps + grid.mean_at_end, 1), math.sqrt(2) - 1)
        churn: list[tuple[float, float] | None] = [None] * steps
        noise_to_signal = torch.exp(-start.log_snr / 2)
        churns = (start.t < 1) & (noise_to_signal >= self.s_tmin) & (noise_to_signal <= self.s_tmax)
        if share > 0 and bool(churns.any()):
            raised = schedule.time(start.log_snr - 2 * math.log1p(share)).clamp(max=1).cpu()
            later = torch.where(churns, raised, start.t)
            factor, variance = (c.tolist() for c in schedule.step(start.t, later))
            pairs = zip(factor, (self.s_noise * math.sqrt(v) for v in variance))
            churn = [pair if on else None for on, pair in zip(churns.tolist(), pairs)]
            start = Grid.of(schedule, later, grid.device)
        ends = zip(grid.alpha[1:].tolist(), grid.sigma[1:].tolist())
        return start, [_Straight(c, level, *end) for c, level, end in zip(churn, start.levels(), ends)]


def _take_straight(denoise: Evaluation, x: Tensor, c: _Straight, noise: Noise) -> tuple[Tensor, Estimate]:
    """Return x_s = α_s x̂ + σ_s ε̂ after the churn, and the estimate that it is made of."""
    if c.churn is not None:
        x = torch.add(c.churn[0] * x, noise(), alpha=c.churn[1])
    first = denoise(x, c.level)
    return (torch.add(c.alpha * first.mean, first.epsilon, alpha=c.sigma) if c.sigma else c.alpha * first.mean), first


@dataclass(frozen=True)
class Euler(_Churning):
    """Euler's method on the probability flow, with churn: `Heun` without its second half. Karras 2022, 2206.00364.

    d(x/α)/d(σ/α) = ε̂. A straight step keeps x̂ and ε̂, so that it is x_s = α_s x̂ + σ_s ε̂ in any variables that are
    ratios of combinations of x, α and σ: EDM's where the schedule explodes, Euler in t for the straight-line flow, and
    `DDIM` with η = 0 for all. Of first order. Arguments as `Heun`, without variables.
    """

    def plan(self, schedule: Schedule, grid: Grid) -> list[_Straight]:
        """Return churn, level, α_s and σ_s."""
        return self.straight(schedule, grid)[1]

    def step(self, denoise: Evaluation, x: Tensor, c: _Straight, memory: None, noise: Noise) -> tuple[Tensor, None]:
        """Return α_s x̂ + σ_s ε̂."""
        return _take_straight(denoise, x, c, noise)[0], None


@dataclass(frozen=True)
class Heun(_Churning):
    """Heun's method on the probability flow, with churn. Karras 2022, 2206.00364, algorithm 2.

    The flow is dy/dτ = ε̂ - c x̂ for y = x/(α + c σ), τ = σ/(α + c σ), whatever c; its slope is averaged over both ends
    of a step. A last step to no noise is Euler's. Two evaluations of the network a step; of second order.

    Arguments:
        s_churn: by which share of itself, over the number of steps and at most √2 - 1, σ/α is raised with fresh noise
            before a step, but not above that of t = 1.
        s_tmin, s_tmax: the σ/α within which it is.
        s_noise: what that noise is multiplied by.
        variables: karras, c = 0, is the paper's x/α over σ/α; flow, c = 1, is Heun in t on the straight-line flow. By
            default karras where the schedule explodes and flow elsewhere: the noisiest σ/α may be thousands there, or
            infinite, and karras multiplies the network's errors by as much.
    Raises ValueError for others than 0 <= s_churn, 0 <= s_tmin <= s_tmax, 0 < s_noise, and for karras from pure noise.
    """

    evaluations = 2

    variables: Variables | None = option(None, "of heun: karras (x/α over σ/α) or flow; default by schedule")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variables is not None and self.variables not in get_args(Variables):
            raise ValueError(f"variables must be one of {', '.join(get_args(Variables))}; got {self.variables!r}")

    def plan(self, schedule: Schedule, grid: Grid) -> list[tuple[_Straight, NoiseLevel | None, float, float]]:
        """Return the straight step, the level of s (None: no noise there), half of a step in τ times α_s + c σ_s, c."""
        start, steps = self.straight(schedule, grid)
        variables = self.variables or ("karras" if schedule.exploding else "flow")
        c = float(variables == "flow")
        if variables == "karras" and bool(start.alpha[0] == 0):
            raise ValueError("variables must be 'flow' from pure noise (α = 0), where σ/α is infinite; got 'karras'")
        alpha, sigma = grid.alpha[1:], grid.sigma[1:]
        half = (sigma - (alpha + c * sigma) * start.sigma / (start.alpha + c * start.sigma)) / 2
        ends = (level if level.sigma else None for level in grid.levels()[1:])
        return [(*row, c) for row in zip(steps, ends, half.tolist())]

    def step(self, denoise: Evaluation, x: Tensor, c: Any, memory: None, noise: Noise) -> tuple[Tensor, None]:
        """Return the straight step's x_s, with the slope ε̂ - c x̂ averaged over both ends."""
        straight, end, half, on_x = c
        x, first = _take_straight(denoise, x, straight, noise)
        if end is not None:
            last = denoise(x, end)
            x = x + half * (last.epsilon - on_x * last.mean - first.epsilon + on_x * first.mean)
        return x, None


@dataclass(frozen=True)
class _Multistep(Method):
    """DDIM's steps with D in the place of x̂, extrapolated in λ from the last two, and noise of DDIM's η."""

    lower_order_final: bool = option(True, "the last of fewer than 15 steps of dpm_solver_pp is of first order")

    eta: ClassVar[float]

    def plan(self, schedule: Schedule, grid: Grid) -> list[tuple[NoiseLevel, float, float, float, float]]:
        """Return the level of t, the share of x̂_t - x̂_r in D, the factors of x_t and of D, and τ."""
        tau, along = _noise_and_rest(schedule, grid, self.eta)
        on_x = along / grid.sigma[:-1]
        on_d = grid.alpha[1:] - grid.alpha[:-1] * on_x
        share = torch.zeros_like(tau)
        steps = grid.log_snr.diff()
        share[1:] = 0.5 * steps[1:] / steps[:-1]
        share[grid.sigma[1:] == 0] = 0
        if self.lower_order_final and len(tau) < 15 and not grid.mean_at_end:
            share[-1] = 0
        return list(zip(grid.levels(), share.tolist(), on_x.tolist(), on_d.tolist(), tau.tolist()))

    def step(
        self, denoise: Evaluation, x: Tensor, c: Any, memory: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Return x_s made of x_t and D, and x̂_t for the next step."""
        level, share, on_x, on_d, tau = c
        mean = denoise(x, level).mean
        d = torch.add((1 + share) * mean, memory, alpha=-share) if share else mean  # type: ignore[arg-type]
        x = torch.add(on_d * d, x, alpha=on_x) if on_x else on_d * d
        return (torch.add(x, noise(), alpha=tau) if tau else x), mean


@dataclass(frozen=True)
class DPMSolverPP(_Multistep):
    """DPM-Solver++ 2M: DDIM's steps with x̂ extrapolated in λ from the last two. Lu 2022, 2211.01095, algorithm 2.

    x_s = (σ_s/σ_t) x_t + (α_s - α_t σ_s/σ_t) D, D = x̂_t + ½ (λ_s - λ_t)/(λ_t - λ_r) (x̂_t - x̂_r), r the time before t.
    D = x̂_t, and the step is DDIM's, in the first step, in one to no noise (which is then exactly x̂) and in the one
    that follows pure noise, where λ is infinite. Of second order.

    Arguments: lower_order_final, as in diffusers: D = x̂_t in the last of fewer than 15 steps; where the last is the
    denoiser's mean, it is that one.
    """

    eta = 0.0


@dataclass(frozen=True)
class SDEDPMSolverPP(_Multistep):
    """SDE-DPM-Solver++ 2M, of the reverse SDE: ancestral steps with the D of `DPMSolverPP`. Lu 2022, 2211.01095.

    x_s ~ q(x_s|x_t, D): ancestral with the small variance, if D were x̂. Arguments as `DPMSolverPP`.
    """

    eta = 1.0


METHODS: dict[str, type[Method]] = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm_solver_pp": DPMSolverPP,
    "sde_dpm_solver_pp": SDEDPMSolverPP,
}
"""The methods by name."""
