"""Samplers of the random times, that is, noise levels, of a batch in diffusion training.

A time sampler is a module: (n, schedule, device, across_ranks, generator) → times (n,) in [0, 1], and a weight (n,) for
each that makes the weighted mean an average over uniform t, or 1 where its own density is part of the objective.
"""

import math

import torch
from torch import Tensor, nn

from ..ranks import rank_and_world, shared, sum_over_ranks
from ..schedules import Schedule

__all__ = ["LogNormalTimes", "LossAwareTimes", "TimeSampler", "UniformLogSNRTimes", "UniformTimes", "low_discrepancy"]


def low_discrepancy(
    n: int,
    device: torch.device | None = None,
    across_ranks: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw t_i = (u + i/N) mod 1 with one uniform u: each t_i is uniform, and together they cover [0, 1) evenly.

    Kingma 2021, 2107.00630, appendix I.1.

    Arguments:
        n: how many.
        device: where.
        across_ranks: N counts the examples of all processes, which share u and must all call this; else N = n.
        generator: of u.
    Returns: (n,), float64.
    """
    u = torch.rand((), dtype=torch.float64, device=device, generator=generator)
    rank, world = rank_and_world() if across_ranks else (0, 1)
    if across_ranks:
        u = shared(u)
    index = torch.arange(rank * n, (rank + 1) * n, dtype=torch.float64, device=device)
    return (u + index / (n * world)) % 1


class TimeSampler(nn.Module):
    """A sampler of the times of a batch; abstract: subclasses define `forward`."""

    def forward(
        self,
        n: int,
        schedule: Schedule,
        device: torch.device | None = None,
        across_ranks: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return times (n,) in [0, 1] and their weights (n,), both float64."""
        raise TypeError(f"{type(self).__name__} is abstract: a time sampler must define forward")

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Update the sampler from the losses (n,) at times t (n,); most samplers do nothing."""


class UniformTimes(TimeSampler):
    """t ~ U[0, 1), stratified over the batch of all ranks."""

    def forward(
        self,
        n: int,
        schedule: Schedule,
        device: torch.device | None = None,
        across_ranks: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return times (n,) and weights 1."""
        t = low_discrepancy(n, device, across_ranks, generator)
        return t, torch.ones_like(t)


class UniformLogSNRTimes(TimeSampler):
    """λ_t uniform between two ends for any schedule: each octave of noise has the same share.

    Weights are 1: with ‖ε - ε̂‖² this is the bound between these ends, up to a constant (Kingma 2021, 2107.00630,
    section 5.1).

    Arguments:
        log_snr_max, log_snr_min: finite; λ beyond the schedule's range is moved to its end.
    """

    def __init__(self, log_snr_max: float = 10.0, log_snr_min: float = -6.0) -> None:
        super().__init__()
        if not (math.isfinite(log_snr_max) and math.isfinite(log_snr_min) and log_snr_max > log_snr_min):
            raise ValueError(f"log_snr_max > log_snr_min, both finite, must hold; got {log_snr_max} and {log_snr_min}")
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min

    def forward(
        self,
        n: int,
        schedule: Schedule,
        device: torch.device | None = None,
        across_ranks: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return times (n,) and weights 1."""
        u = low_discrepancy(n, device, across_ranks, generator)
        t = schedule.time(self.log_snr_max + (self.log_snr_min - self.log_snr_max) * u).clamp(0, 1)
        return t, torch.ones_like(t)


class LogNormalTimes(TimeSampler):
    """log(σ_t/α_t) ~ N(P_mean, P_std²), stratified. Karras 2022, 2206.00364, table 1, EDM's column.

    Weights are 1: the density is part of that objective. σ beyond the schedule's range is moved to its end.

    Arguments:
        P_mean, P_std: as in the paper.
    """

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2) -> None:
        super().__init__()
        if not P_std > 0:
            raise ValueError(f"P_std must be above 0; got {P_std}")
        self.P_mean, self.P_std = P_mean, P_std

    def forward(
        self,
        n: int,
        schedule: Schedule,
        device: torch.device | None = None,
        across_ranks: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return times (n,) and weights 1."""
        u = low_discrepancy(n, device, across_ranks, generator).clamp(1e-9, 1 - 1e-9)
        log_sigma = self.P_mean + self.P_std * torch.special.ndtri(u)
        t = schedule.time(-2 * log_sigma).clamp(0, 1)
        return t, torch.ones_like(t)


class LossAwareTimes(TimeSampler):
    """p(t) ∝ √E[L_t²] over bins of t, which minimizes the estimator's variance. Nichol & Dhariwal 2021, 2102.09672.

    With the weights 1/(bins p) the weighted mean is that of uniform t. The averages E[L_t²] are over all ranks, and are
    buffers, saved in checkpoints.

    Arguments:
        bins: of t.
        decay: of the averages.
        uniform: the share of draws that stays uniform.
    """

    squares: Tensor
    counts: Tensor

    def __init__(self, bins: int = 100, decay: float = 0.9, uniform: float = 0.01) -> None:
        super().__init__()
        if bins < 1 or not 0 <= decay < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"bins must be at least 1, decay in [0, 1) and uniform in (0, 1]; got {bins}, {decay} and {uniform}"
            )
        self.bins, self.decay, self.uniform = bins, decay, uniform
        self.register_buffer("squares", torch.ones(bins, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))

    @property
    def probabilities(self) -> Tensor:
        """p of each bin (bins,); uniform until every bin has a loss."""
        measured = (self.counts > 0).all()
        p = torch.where(measured, self.squares.sqrt().clamp(min=1e-30), 1.0)  # losses may all be 0
        return (1 - self.uniform) * p / p.sum() + self.uniform / self.bins

    def forward(
        self,
        n: int,
        schedule: Schedule,
        device: torch.device | None = None,
        across_ranks: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return times (n,) and weights 1/(bins p) (n,)."""
        p = self.probabilities
        edges = torch.cat([p.new_zeros(1), p.cumsum(0)])
        u = low_discrepancy(n, device, across_ranks, generator) * edges[-1]
        bin_ = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, self.bins - 1)
        t = (bin_ + ((u - edges[bin_]) / p[bin_]).clamp(0, 1 - 1e-12)) / self.bins
        return t, 1 / (self.bins * p[bin_])

    @torch.no_grad()
    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Average the squared losses (n,) into the bins of t (n,); every rank calls it."""
        bin_ = (t.detach().double() * self.bins).floor().long().clamp(0, self.bins - 1)
        both = torch.zeros(2, self.bins, dtype=torch.float64, device=bin_.device)
        both[0].index_add_(0, bin_, losses.detach().double().square())
        both[1].index_add_(0, bin_, torch.ones_like(t, dtype=torch.float64))
        total, count = sum_over_ranks(both)
        mean = total / count.clamp(min=1)
        fresh = torch.where(self.counts > 0, self.decay * self.squares + (1 - self.decay) * mean, mean)
        self.squares.copy_(torch.where(count > 0, fresh, self.squares))
        self.counts.add_(count)
