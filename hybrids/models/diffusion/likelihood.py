"""Likelihoods of a diffusion beyond its bound: by its paths, by its flow, and times that make the bound less noisy."""

from typing import Any, Literal

import torch
from torch import Tensor

from components.denoisers import Denoiser
from components.distributions import check_grid, dequantized, log_bin
from components.losses import LossAwareTimes
from components.precision import wide, widest
from components.samplers import ProbabilityFlow

from ..parts import log_ratio
from .bound import VariationalBound

__all__ = ["flow_log_prob", "path_log_weight", "proposal"]


@torch.no_grad()
def path_log_weight(
    elbo: VariationalBound, denoiser: Denoiser, x: Tensor, cond: Any = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return log p(x, x_{t_1} … x_{t_T}) - log q(x_{t_1} … x_{t_T}|x) at one draw from q, down the chain: (B,) nats.

    T evaluations of the network. Raises ValueError for continuous time, whose paths have no such density.
    """
    if elbo.timesteps is None:
        raise ValueError(
            "log_weight is of a chain of levels; this diffusion has timesteps=None: use `bound`, or `log_prob`"
        )
    x, schedule = wide(x), denoiser.schedule
    # x_1: p(x_1)/q(x_1|x)
    q = schedule.marginal(x, 1.0)
    x_t = q.rsample(generator)
    total = log_ratio(elbo.start(schedule), q, x_t)
    # x_s given x_t: p(x_s|x_t)/q(x_s|x_t, x)
    for s, t in reversed(elbo.chain):
        r = schedule.posterior(x_t, x, s, t)
        x_s = r.rsample(generator)
        total = total + log_ratio(denoiser.reverse(x_t, s, t, cond), r, x_s)
        x_t = x_s
    # x given x_first
    return total + widest(elbo.decode(denoiser, x_t, cond).log_prob(x))


@torch.no_grad()
def flow_log_prob(
    elbo: VariationalBound,
    denoiser: Denoiser,
    x: Tensor,
    flow: ProbabilityFlow,
    cond: Any = None,
    dequantization: Literal["uniform", "encoder"] = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return log p(x) (B,) nats, float64, by the probability flow. Song 2020, 2011.13456, section 4.3.

    Of a density: log p(x) itself. Of grey levels, a bound from below on log P(x) in expectation over noise:

        uniform   E log p(x + Δ u) + d log Δ, u ~ U[-½, ½)               (Theis 2015, 1511.01844, section 3.1)
        encoder   E_q[log p(x_first) + log p(x|x_first) - log q(x_first|x)]

    Raises ValueError for x off the grid, another dequantization, and for encoder with a flow that starts elsewhere.
    """
    if elbo.grey_levels is None:
        return flow.log_prob(x, cond, generator)
    check_grid(x, elbo.grey_levels)
    if dequantization == "uniform":
        y = dequantized(x, elbo.grey_levels, generator)
        return flow.log_prob(y, cond, generator) + x[0].numel() * log_bin(elbo.grey_levels)
    if dequantization != "encoder":
        raise ValueError(f"dequantization must be 'uniform' or 'encoder'; got {dequantization!r}")
    if flow.first != elbo.first:
        raise ValueError(
            f"flow must start at the diffusion's first level for dequantization 'encoder'; got first={flow.first:g}, "
            f"not {elbo.first:g}"
        )
    q = denoiser.schedule.marginal(x, flow.first)
    x_first = q.rsample(generator)
    decoded = elbo.decode(denoiser, x_first, cond).log_prob(x)
    return flow.log_density(x_first, cond, generator) - widest(q.log_prob(x_first)) + widest(decoded)


@torch.no_grad()
def proposal(
    elbo: VariationalBound,
    denoiser: Denoiser,
    x: Tensor,
    cond: Any = None,
    bins: int = 100,
    strata: int = 1000,
    generator: torch.Generator | None = None,
) -> LossAwareTimes:
    """Return p(t) ∝ √E[L_t²] over bins of t, of the terms L_t of the bound measured on x: the best times for `nll`.

    The weights 1/(bins p) leave the mean what it is, whatever was measured. Nichol & Dhariwal 2021, 2102.09672, eq. 18.

    Arguments:
        x: (N, *shape), and cond; each example is evaluated strata/N times, at least once.
        bins: of t.
    """
    times = LossAwareTimes(bins).to(x.device)
    squares, counts = torch.zeros_like(times.squares), torch.zeros_like(times.counts)
    passes = max(1, -(-strata // len(x)))
    for i in range(passes):
        # N strata of each pass, shifted so that all passes together are even.
        u = (torch.arange(len(x), dtype=torch.float64, device=x.device) + (i + 0.5) / passes) / len(x)
        u = u[torch.randperm(len(x), device=x.device, generator=generator)]
        rate = elbo.at(denoiser, x, u, cond, generator).double()
        bin_ = (u * bins).long().clamp(max=bins - 1)
        squares.index_add_(0, bin_, rate.square())
        counts.index_add_(0, bin_, torch.ones_like(rate))
    times.squares.copy_(squares / counts.clamp(min=1))
    times.counts.copy_(counts)
    return times
