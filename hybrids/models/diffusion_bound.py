"""What a diffusion scores: its bound level by level, and the likelihoods that go beyond it."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.denoisers import DenoisedLast, Denoiser, Estimate, GaussianLast, GridLast
from components.distributions import Normal, kl, per_example, randn_like
from components.losses import TimeSampler, low_discrepancy
from components.precision import wide
from components.samplers import ProbabilityFlow
from components.schedules import over

from ..terms import Terms
from .rates import StandardNormal
from .scoring import flow_log_prob, path_log_weight, tabulated_times

__all__ = ["DiffusionBound"]


class DiffusionBound(nn.Module):
    """The likelihood side of a `Diffusion`, which says what it is and what its arguments are."""

    def __init__(
        self,
        denoiser: Denoiser,
        shape: int | tuple[int, ...],
        last: nn.Module | None = None,
        levels: int | None = None,
        timesteps: int | None = None,
    ) -> None:
        super().__init__()
        if timesteps is not None and timesteps < 1:
            raise ValueError(f"timesteps must be at least 1, or None for continuous time; got {timesteps}")
        self.denoiser, self.timesteps = denoiser, timesteps
        self.noise = StandardNormal(shape)
        self.starts_clean = denoiser.schedule.noiseless(0.0)
        self.last = last if last is not None else self._default_last(levels)
        self.levels: int | None = getattr(self.last, "levels", None)

    def _default_last(self, levels: int | None) -> nn.Module | None:
        schedule = self.denoiser.schedule
        if not self.starts_clean:
            return GaussianLast(schedule) if levels is None else GridLast(schedule, levels)
        if self.timesteps is None:
            return None
        return DenoisedLast(self.denoiser, 1 / self.timesteps, self.first_std(), levels)

    def first_std(self) -> float:
        """√β_1 for the large variance; for the small one, which is 0 at t = 1/T, that of the next level, as Ho."""
        if self.timesteps is None:
            raise ValueError("first_std is of discrete time; this diffusion has timesteps=None")
        schedule, step = self.denoiser.schedule, 1 / self.timesteps
        if self.denoiser.variance == "large" or self.timesteps == 1:
            return float(schedule.step(0.0, step)[1].sqrt())
        return float(schedule.posterior_coefficients(step, 2 * step)[2])

    @property
    def first(self) -> float:
        """The time of the least noisy level."""
        if not self.starts_clean:
            return 0.0
        if self.timesteps is None:
            raise ValueError(
                f"{type(self.denoiser.schedule).__name__} is noiseless at t = 0: in continuous time the bound is "
                "infinite; give timesteps, or a schedule with a finite log_snr_max"
            )
        return 1 / self.timesteps

    @property
    def chain(self) -> list[tuple[float, float]]:
        """(s, t) of every level of discrete time but the last decoder's, from the cleanest."""
        if self.timesteps is None:
            raise ValueError("continuous time has no chain of levels; timesteps=None")
        skipped = int(self.starts_clean)
        return [((i - 1) / self.timesteps, i / self.timesteps) for i in range(1 + skipped, self.timesteps + 1)]

    def nll(self, x: Tensor, cond: Tensor | None = None, times: TimeSampler | None = None) -> Terms:
        """The bound with one random level: terms prior = L_T, diffusion, reconstruction = L_0. (B,) nats.

        times: which level, such as `proposal`; uniform by default. Its weights must be those of uniform t.
        """
        if times is None:
            diffusion = self.at(x, self._uniform(x), cond)
        else:
            u, share = times(len(x), self.denoiser.schedule, x.device, across_ranks=self.training)
            diffusion = self.at(x, u, cond)
            diffusion = share.to(diffusion) * diffusion
        return self.ends(x, cond) + Terms(diffusion=diffusion)

    def at(self, x: Tensor, u: Tensor, cond: Tensor | None = None) -> Tensor:
        """The diffusion term of `nll` at given u (B,) in [0, 1): t = u, or the level that u falls into. (B,) nats."""
        if self.timesteps is None:
            return self._rate_of_change(x, u, cond)
        skipped, many = int(self.starts_clean), self.timesteps - int(self.starts_clean)
        i = (u * many).floor() + 1 + skipped
        return many * self.level(x, (i - 1) / self.timesteps, i / self.timesteps, cond) if many else 0.0 * u

    def proposal(self, x: Tensor, cond: Tensor | None = None, bins: int = 100) -> TimeSampler:
        """Times for `nll` that lower its variance, measured on x (N, *shape): see `tabulated_times`."""
        return tabulated_times(self, x, cond, bins)

    @torch.no_grad()
    def bound(self, x: Tensor, cond: Tensor | None = None, levels: int = 128) -> Terms:
        """The bound with every level summed, terms as `nll`; continuous time: `levels` strata, one t drawn in each."""
        diffusion = self.rates(x, cond, levels).sum(0)
        return self.ends(x, cond) + Terms(diffusion=diffusion)

    @torch.no_grad()
    def rates(self, x: Tensor, cond: Tensor | None = None, levels: int = 128) -> Tensor:
        """L_{t-1} of each level of `chain`, from the cleanest; in continuous time of each stratum: (levels, B) nats."""
        if self.timesteps is None:
            strata = (torch.rand(len(x), dtype=torch.float64, device=x.device).add(i) / levels for i in range(levels))
            parts = [self._rate_of_change(x, t, cond) / levels for t in strata]
        else:
            parts = [self.level(x, s, t, cond) for s, t in self.chain]
        return torch.stack(parts) if parts else x.new_zeros(0, len(x))

    def log_weight(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """log p(x, x_t …) - log q(x_t …|x) of one draw of all levels: (B,) nats.

        Its mean is minus the bound, the mean of its exp is p(x). Raises ValueError in continuous time.
        """
        return path_log_weight(self, x, cond)

    def flow(self, first: float | None = None, **settings: Any) -> ProbabilityFlow:
        """The probability flow of the denoiser; settings are those of `ProbabilityFlow`.

        first: by default the chain's first level, below which nothing was trained; in continuous time t = 0, or 1e-5
        where the schedule is noiseless there.
        """
        if first is None:
            first = 1e-5 if self.starts_clean and self.timesteps is None else self.first
        return ProbabilityFlow(self.denoiser, first, **settings)

    def log_prob(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        flow: ProbabilityFlow | None = None,
        dequantization: Literal["uniform", "encoder"] = "uniform",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x) (B,) nats by the probability flow, exact for a density. Song 2020, 2011.13456, section 4.3.

        Of grey levels it is a bound from below on log P(x), in expectation over noise: uniform takes the flow's density
        over x's bin for P (Theis 2015, 1511.01844); encoder takes the diffusion's own q(x_first|x) and last decoder,
        E_q[log p(x_first) + log p(x|x_first) - log q(x_first|x)], which costs less where the model knows the levels.
        Arguments: flow, `self.flow()` by default. Raises ValueError for x off the grid of its levels.
        """
        return flow_log_prob(self, x, cond, self.flow() if flow is None else flow, dequantization, generator)

    def level(self, x: Tensor, s: Tensor | float, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """KL(q(x_s|x_t, x) ‖ p(x_s|x_t)) at one draw of x_t: (B,) nats.

        With the small variance ½ (SNR_s - SNR_t) ‖x - x̂‖² = ½ (SNR_s/SNR_t - 1) ‖ε - ε̂‖²: no large numbers cancel.
        """
        if self.denoiser.variance != "small":
            x_t = self.denoiser.schedule.marginal(wide(x), t).rsample()
            q = self.denoiser.schedule.posterior(x_t, wide(x), s, t)
            return kl(q, self.denoiser.reverse(x_t, s, t, cond))
        estimate, epsilon = self._estimate(x, t, cond, clip=True)
        schedule = self.denoiser.schedule
        if estimate.prediction == "epsilon":
            weight = torch.expm1(schedule.log_snr(s) - schedule.log_snr(t))
            error = per_example((epsilon - estimate.epsilon).square())
        else:
            weight = schedule.log_snr(s).exp() - schedule.log_snr(t).exp()
            error = per_example((wide(x) - estimate.mean).square())
        return (0.5 * weight).to(error) * error

    def _rate_of_change(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """-½ λ'(t) ‖ε - ε̂‖²: (B,). A learned schedule hears of it, to minimize its variance."""
        schedule = self.denoiser.schedule
        with schedule.minimizing_variance() as heard:
            estimate, epsilon = self._estimate(x, t, cond, clip=True)
            error = per_example((epsilon - estimate.epsilon).square())
            rate = (-0.5 * schedule.slope(t)).to(error) * error
            heard.append(rate.detach())
        return rate

    def ends(self, x: Tensor, cond: Tensor | None = None) -> Terms:
        """L_T and L_0."""
        x = wide(x)
        schedule = self.denoiser.schedule
        start = self.noise.distribution
        prior = kl(schedule.marginal(x, 1.0), Normal(start.mean, schedule.terminal_std * start.std))
        x_first = schedule.marginal(x, self.first).rsample()
        return Terms(prior=prior, reconstruction=-self.last(x_first, cond).log_prob(x))  # type: ignore[misc]

    def _estimate(
        self, x: Tensor, t: Tensor | float, cond: Tensor | None, clip: bool, recall: float = 0.0
    ) -> tuple[Estimate, Tensor]:
        """The denoiser's answer to x_t = α x + σ ε, and ε.

        With probability `recall` a self-conditioned denoiser is shown its own x̂ of a first pass, which has no gradient.
        """
        x = wide(x)
        epsilon = randn_like(x)
        alpha, sigma = self.denoiser.schedule.alpha_sigma(t)
        x_t = over(alpha, x) * x + over(sigma, x) * epsilon
        earlier: dict[str, Tensor] = {}
        # one coin for the batch, as in Chen et al. 2022: on average a first pass is half a forward's cost
        if recall and self.denoiser.self_condition and torch.rand(()) < recall:
            with torch.no_grad():
                earlier = self.denoiser.recalled(self.denoiser.clipped(x_t, t, cond))
        return (self.denoiser.clipped if clip else self.denoiser)(x_t, t, cond, **earlier), epsilon

    def _uniform(self, x: Tensor) -> Tensor:
        # Only in training do all ranks come here together, as sharing the offset needs.
        return low_discrepancy(len(x), x.device, across_ranks=self.training)
