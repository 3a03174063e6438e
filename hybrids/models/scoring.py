"""How a diffusion is scored beyond its bound: by its paths, by its flow, and with times that make the bound quieter."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.distributions import Delta, Distribution, Normal, check_grid, dequantized, log_bin, per_example
from components.losses import LossAwareTimes
from components.precision import wide, widest
from components.samplers import ProbabilityFlow

if TYPE_CHECKING:
    from .diffusion_bound import DiffusionBound

__all__ = [
    "answer",
    "distortion",
    "flow_log_prob",
    "implicit",
    "log_ratio",
    "path_log_weight",
    "tabulated_times",
    "weight_of_prior",
]


def log_ratio(p: Distribution, q: Distribution, y: Tensor) -> Tensor:
    """log p(y) - log q(y) (B,) nats, float64; of two Gaussians by dimension, so that near ones lose no digits.

    Two points are one and the same where nothing is left to choose: 0.
    """
    if isinstance(p, Delta) and isinstance(q, Delta):
        return widest(y.new_zeros(len(y)))
    if isinstance(p, Normal) and isinstance(q, Normal):
        of_p, of_q = ((widest(y) - widest(each.mean)) / widest(each.std) for each in (p, q))
        return per_example(0.5 * (of_q - of_p) * (of_q + of_p) + (widest(q.std) / widest(p.std)).log())
    return widest(p.log_prob(y)) - widest(q.log_prob(y))


def answer(part: Any, role: str, x: Tensor, cond: Any = None) -> Distribution:
    """What an encoder or a decoder says of x. Raises TypeError, naming it, where that is a tensor."""
    found = part(x, cond)
    if isinstance(found, Tensor):
        raise TypeError(
            f"{role} must return one of components.distributions, such as Normal(mean, std) or Delta(point); "
            f"{type(part).__name__} returned a tensor of shape {tuple(found.shape)}"
        )
    return found


def distortion(p: Distribution, x: Tensor) -> Tensor:
    """-log p(x|z): (B,) nats. Raises TypeError for a point, whose likelihood is 0 and has no gradient."""
    if isinstance(p, Delta):
        raise TypeError(
            "decoder must return a likelihood; got Delta, a point, which has none: instead of DeltaHead give it a head "
            "such as NormalHead"
        )
    return -p.log_prob(x)


def weight_of_prior(prior: Any, z: Tensor, cond: Any = None) -> Tensor:
    """log p(z), or log p(z, …) - log q(…|z) of a prior with latents of its own: (B,), the mean of its exp is p(z).

    Raises ValueError, naming it, for a prior that offers neither.
    """
    if not hasattr(prior, "log_weight"):
        name = type(prior).__name__
        raise ValueError(f"prior must offer log_weight for an importance-weighted bound; {name} does not")
    return prior.log_weight(z, cond)


def implicit(model: Any) -> TypeError:
    """What a model that can only be sampled answers when it is asked for a likelihood."""
    return TypeError(
        f"{type(model).__name__} is an implicit model: it has samples, but no likelihood and no bound on one; score "
        "its samples instead, with coverage, agreement or stacked_coverage of hybrids.evaluation"
    )


@torch.no_grad()
def path_log_weight(diffusion: "DiffusionBound", x: Tensor, cond: Any = None) -> Tensor:
    """log p(x, x_{t_1} … x_{t_T}) - log q(x_{t_1} … x_{t_T}|x) at one draw from q, down the chain: (B,) nats.

    T evaluations of the network. Raises ValueError for continuous time, whose paths have no such density.
    """
    if diffusion.timesteps is None:
        raise ValueError(
            "log_weight is of a chain of levels; this diffusion has timesteps=None: use `bound`, or `log_prob`"
        )
    denoiser, schedule = diffusion.denoiser, diffusion.denoiser.schedule
    x = wide(x)
    q = schedule.marginal(x, 1.0)
    x_t = q.rsample()
    start = diffusion.noise.distribution
    total = log_ratio(Normal(start.mean, schedule.terminal_std * start.std), q, x_t)
    for s, t in reversed(diffusion.chain):
        r = schedule.posterior(x_t, x, s, t)
        x_s = r.rsample()
        total = total + log_ratio(denoiser.reverse(x_t, s, t, cond), r, x_s)
        x_t = x_s
    return total + widest(diffusion.last(x_t, cond).log_prob(x))  # type: ignore[misc]


@torch.no_grad()
def flow_log_prob(
    diffusion: "DiffusionBound",
    x: Tensor,
    cond: Any,
    flow: ProbabilityFlow,
    dequantization: str,
    generator: torch.Generator | None,
) -> Tensor:
    """What `Diffusion.log_prob` says: (B,) nats, float64."""
    if diffusion.levels is None:
        return flow.log_prob(x, cond, generator)
    check_grid(x, diffusion.levels)
    if dequantization == "uniform":
        y = dequantized(x, diffusion.levels, generator)
        return flow.log_prob(y, cond, generator) + x[0].numel() * log_bin(diffusion.levels)
    if dequantization != "encoder":
        raise ValueError(f"dequantization must be 'uniform' or 'encoder'; got {dequantization!r}")
    if flow.first != diffusion.first:
        raise ValueError(
            f"flow must start at the diffusion's first level for dequantization 'encoder'; got first={flow.first:g}, "
            f"not {diffusion.first:g}"
        )
    q = diffusion.denoiser.schedule.marginal(x, flow.first)
    x_first = q.rsample(generator)
    decoded = diffusion.last(x_first, cond).log_prob(x)  # type: ignore[misc]
    return flow.log_density(x_first, cond, generator) - widest(q.log_prob(x_first)) + widest(decoded)


@torch.no_grad()
def tabulated_times(
    diffusion: "DiffusionBound", x: Tensor, cond: Any = None, bins: int = 100, strata: int = 1000
) -> LossAwareTimes:
    """p(t) ∝ √E[L_t²] over bins of t, of the terms L_t of the bound, measured on x: the quietest times for `nll`.

    The weights 1/(bins p) leave the mean what it is, whatever was measured. Nichol & Dhariwal 2021, 2102.09672, eq. 18.
    Arguments: x (N, *shape) and cond, of which each example is looked at strata/N times, at least once.
    """
    times = LossAwareTimes(bins).to(x.device)
    squares, seen = torch.zeros_like(times.squares), torch.zeros_like(times.seen)
    passes = max(1, -(-strata // len(x)))
    for i in range(passes):
        # N strata of each pass, shifted so that all passes together are even.
        u = (torch.arange(len(x), dtype=torch.float64, device=x.device) + (i + 0.5) / passes) / len(x)
        u = u[torch.randperm(len(x), device=x.device)]
        rate = diffusion.at(x, u, cond).double()
        bin_ = (u * bins).long().clamp(max=bins - 1)
        squares.index_add_(0, bin_, rate.square())
        seen.index_add_(0, bin_, torch.ones_like(rate))
    times.squares.copy_(squares / seen.clamp(min=1))
    times.seen.copy_(seen)
    return times
