"""Diffusion, in discrete or continuous time: DDPM and variational diffusion are settings of it."""

from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from components.conditions import Guided
from components.denoisers import Denoiser, Estimate
from components.distributions import Normal, kl, per_example, randn_like
from components.last import DenoisedLast, GaussianLast, GridLast
from components.precision import wide
from components.probability_flow import ProbabilityFlow
from components.samplers import Spacing, Thresholded, ancestral, time_grid
from components.schedules import over
from components.timesteps import TimeSampler, UniformTimes, low_discrepancy
from components.weightings import WeightFunction

from ..terms import Terms
from .rates import StandardNormal
from .scoring import flow_log_prob, path_log_weight, tabulated_times

__all__ = ["Diffusion", "Sampler"]

Weighting = Literal["simple", "likelihood"]


class Sampler(Protocol):
    """From noise x at times[0] to x at times[-1]."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...


class Diffusion(nn.Module):
    """A fixed Gaussian encoder q(x_t|x) and a learned denoising decoder, with T levels or infinitely many.

    -log p(x) <= L_T + Σ_i KL(q(x_s|x_t, x) ‖ p(x_s|x_t)) + E[-log p(x|x_first)], s = (i-1)/T, t = i/T; in continuous
    time the sum is -½ ∫ λ'(t) E‖ε - ε̂‖² dt. The first level is t = 0 if the schedule has noise there, else 1/T.
    Ho 2020, 2006.11239, eq. 5; Kingma 2021, 2107.00630, eq. 11 to 17.

    Arguments:
        denoiser: backbone, schedule and parameterization.
        shape: of one x.
        last: the decoder p(x|x_first). By default around x_first/α if there is noise at t = 0 (`GaussianLast`,
            `GridLast`), else around x̂ with the variance of Ho, section 3.3 (`DenoisedLast`).
        levels: grey levels K of x, for a default `last` that is a probability of pixels; None: a density.
        timesteps: T, or None for continuous time.
        weighting: of `loss`. simple is L_simple, E‖target - output‖² of what the network predicts; likelihood is
            `nll`; a function of `components.weightings` gives E w(λ) ‖ε - ε̂‖².
            Beside simple and a function, the variance that a chain's denoiser with learned_range has learns from the
            bound, 0.001 Σ_t L_{t-1} with x̂ held fixed: Nichol & Dhariwal 2021, 2102.09672, eq. 16 (here in nats).
            A denoiser with self_condition is shown its own x̂ in half of the batches of simple and of a function, and in
            sampling (Chen 2022, 2208.04202, section 3.2). `nll` and `bound` are of the chain that is shown none, so to
            train on `nll`, as a VAE's prior, does not teach it to sample.
        times: which t `loss` trains on; uniform by default (with a log-SNR-linear schedule that is uniform in λ).
        sampler, sample_steps, guidance_scale: what `sample` uses; steps are T by default, 250 in continuous time.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: int | tuple[int, ...],
        last: nn.Module | None = None,
        levels: int | None = None,
        timesteps: int | None = None,
        weighting: Weighting | WeightFunction = "simple",
        times: TimeSampler | None = None,
        sampler: Sampler = ancestral,
        sample_steps: int | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not callable(weighting) and weighting not in get_args(Weighting):
            known = ", ".join(get_args(Weighting))
            raise ValueError(f"weighting must be one of {known}, or a function of λ; got {weighting!r}")
        if timesteps is not None and timesteps < 1:
            raise ValueError(f"timesteps must be at least 1, or None for continuous time; got {timesteps}")
        self.denoiser, self.timesteps, self.weighting = denoiser, timesteps, weighting
        self.times = UniformTimes() if times is None else times
        if denoiser.self_condition and weighting == "likelihood":
            raise ValueError(
                "weighting must not be 'likelihood' for a backbone with self_condition=True: the bound is of a chain "
                "without earlier estimates, so none would be trained on; use simple, or a function of λ"
            )
        self.noise = StandardNormal(shape)
        self.sampler, self.sample_steps = sampler, sample_steps or timesteps or 250
        self.guidance_scale = guidance_scale
        self.starts_clean = denoiser.schedule.noiseless(0.0)
        if self.starts_clean and timesteps is None and (weighting == "likelihood" or last is not None):
            raise ValueError(
                f"{type(denoiser.schedule).__name__} is noiseless at t = 0: in continuous time the bound is infinite; "
                "give timesteps, or a schedule with a finite log_snr_max"
            )
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

    def loss(self, x: Tensor, cond: Tensor | None = None) -> Terms:
        """The training objective on x (B, *shape): the term simple or weighted, or those of `nll`."""
        if self.weighting == "likelihood":
            return self.nll(x, cond)
        schedule = self.denoiser.schedule
        t, share = self.times(len(x), schedule, x.device, across_ranks=self.training)
        drawn = t
        if self.timesteps is not None:
            t = (t * self.timesteps).floor().add(1).clamp(max=self.timesteps) / self.timesteps
        estimate, epsilon = self._estimate(x, t, cond, clip=False, recall=0.5)
        x = wide(x)
        if callable(self.weighting):
            name, error = "weighted", self._weighted(self.weighting, estimate, x, epsilon, t)
        else:
            name, error = "simple", per_example((estimate.target(x, epsilon) - estimate.output).square())
        if self.training:
            self.times.learn(drawn, error)
        terms = Terms({name: share.to(error) * error})
        if self.denoiser.variance != "learned_range" or self.timesteps is None:
            return terms
        variance = self._variance_term(x, t, estimate)
        return terms + Terms(variance=(0.001 * self.timesteps, share.to(variance) * variance))

    def _variance_term(self, x: Tensor, t: Tensor, estimate: Estimate) -> Tensor:
        """KL(q(x_s|x_t, x) ‖ p(x_s|x_t)) (B,) nats of each level t (B,), with a gradient in the learned variance alone.

        0 at the level below which there is no noise, whose decoder `last` has a variance of its own.
        """
        s = t - 1 / self.timesteps  # type: ignore[operator]
        kept = s * self.timesteps > 0.5 if self.starts_clean else torch.ones_like(s, dtype=torch.bool)
        assert estimate.interpolation is not None
        alpha, sigma = self.denoiser.schedule.alpha_sigma(t[kept])
        x_t, output = estimate.x_t[kept], estimate.output[kept].detach()
        fixed = Estimate(
            x_t, alpha, sigma, estimate.prediction, output, estimate.sigma_data, estimate.interpolation[kept]
        )
        q = self.denoiser.schedule.posterior(x_t, x[kept], s[kept], t[kept])
        found = x.new_zeros(len(x))
        found[kept] = kl(q, self.denoiser.posterior(fixed, s[kept], t[kept])).to(found)
        return found

    def _weighted(self, weighting: WeightFunction, estimate: Estimate, x: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """w ‖ε - ε̂‖² (B,), by way of whichever of ε and x the network answers with more digits."""
        # At an end, where λ is infinite, w SNR has a limit that ∞ × 0 would miss.
        log_snr = self.denoiser.schedule.log_snr(t).clamp(-80, 80)
        weight = weighting(log_snr)
        if estimate.prediction == "epsilon":
            return weight.to(x) * per_example((epsilon - estimate.epsilon).square())
        return (weight * log_snr.exp()).to(x) * per_example((x - estimate.mean).square())

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

    @torch.no_grad()
    def sample(
        self,
        n: int,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        spacing: Spacing = "trailing",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        thresholding: float | None = None,
    ) -> Tensor:
        """(n, *shape): noise taken down to the first level by the sampler, then the mean of the last decoder.

        A schedule that starts clean is taken down to t = 0, where the last step is that mean. guidance_scale as in
        diffusers: 1 is none; see `components.conditions.Guided`, for its interval and rescale too. spacing, of the
        grid of times; thresholding, the quantile of `components.samplers.Thresholded`, by default none.
        """
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        denoiser = self.denoiser
        if scale != 1 and cond is not None:
            denoiser = Guided(denoiser, scale, guidance_interval, guidance_rescale)
        if thresholding is not None:
            denoiser = Thresholded(denoiser, thresholding)
        schedule = denoiser.schedule
        steps = self.sample_steps if steps is None else steps
        times = time_grid(steps, spacing=spacing, schedule=schedule, timesteps=self.timesteps or 1000)
        x = schedule.terminal_std * self.noise.sample(n, generator=generator)
        if schedule.exploding and times[0] < 1:
            x = x * float(schedule.alpha_sigma(times[0])[1]) / schedule.terminal_std
        x = (sampler or self.sampler)(denoiser, x, times, cond, generator)
        return x if self.starts_clean else self.last(x, cond).mean  # type: ignore[misc]
