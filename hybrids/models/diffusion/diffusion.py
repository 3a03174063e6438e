"""Diffusion, in discrete or continuous time: DDPM and variational diffusion are settings of it."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from components.denoisers import Denoiser, Estimate
from components.distributions import Delta, kl, per_example
from components.losses import TimeSampler, UniformTimes, WeightFunction
from components.precision import wide, widest
from components.samplers import Method, ProbabilityFlow, Sampler, invert
from components.schedules import NoiseLevel

from ...terms import Terms
from .bound import VariationalBound
from .likelihood import flow_log_prob, path_log_weight, proposal

__all__ = ["Diffusion", "NoisedBatch"]

Weighting = Literal["simple", "likelihood"]

SIGNAL_LEFT = 0.02
"""α_1² E[x²]/σ_1² above which a schedule is warned of: λ_1 = -5 leaves 0.0067 of data of unit variance."""


@dataclass(frozen=True)
class NoisedBatch:
    """A batch with noise, and the denoiser's estimate of it: what a diffusion's loss is made of.

    x, epsilon, x_t: (B, *shape), x_t = α_t x + σ_t ε; t: (B,), the levels; u: (B,), the times that were drawn, before
    they fell into a level; weight: (B,), that makes a mean over them one over uniform t; estimate: p(x|x_t).
    """

    x: Tensor
    epsilon: Tensor
    x_t: Tensor
    t: Tensor
    u: Tensor
    weight: Tensor
    estimate: Estimate


class Diffusion(nn.Module):
    """A fixed Gaussian encoder q(x_t|x) and a learned denoising decoder, with T levels or infinitely many.

    Ho 2020, 2006.11239; Kingma 2021, 2107.00630. Its bound is a `VariationalBound`.

    Arguments:
        denoiser: backbone, schedule and prediction.
        shape: of one x.
        reconstruction, grey_levels, timesteps: as in `VariationalBound`.
        weighting: of `loss`. simple is L_simple, E‖target - output‖² of what the network predicts; likelihood is
            `nll`; a function of `components.losses` gives E w(λ) ‖ε - ε̂‖².
            Beside simple and a function, the variance that a chain's denoiser with learned_range has learns from the
            bound, 0.001 Σ_t L_{t-1} with x̂ held fixed: Nichol & Dhariwal 2021, 2102.09672, eq. 16 (here in nats).
            A denoiser with self_condition is given its own x̂ in half of the batches of simple and of a function, and in
            sampling (Chen 2022, 2208.04202, section 3.2). `nll` and `bound` are of the chain that is given none, so to
            train on `nll`, as a VAE's prior, does not teach it to sample.
        times: which t `loss` trains on; uniform by default (with a log-SNR-linear schedule that is uniform in λ).
        sampler: what `sample` uses, or its method's name; its steps, at most T, are T by default, 250 in continuous
            time.
    Raises ValueError for settings that do not go together.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: int | tuple[int, ...],
        reconstruction: nn.Module | None = None,
        grey_levels: int | None = None,
        timesteps: int | None = None,
        weighting: Weighting | WeightFunction = "simple",
        times: TimeSampler | None = None,
        sampler: Sampler | Method | str = "ancestral",
    ) -> None:
        super().__init__()
        self.denoiser, self.weighting = denoiser, weighting
        self.elbo = VariationalBound(denoiser, shape, reconstruction, grey_levels, timesteps)
        self.times = UniformTimes() if times is None else times
        self.sampler = sampler if isinstance(sampler, Sampler) else Sampler(sampler)
        self._signal_checked = False
        self._check(bounded=weighting == "likelihood" or reconstruction is not None)

    # Training.

    def loss(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms:
        """Return the training objective on x (B, *shape): the term simple or weighted, or those of `nll`.

        The first batch of training goes through `check_signal`.
        """
        if self.weighting == "likelihood":
            self._meet(x)
            return self.nll(x, cond, generator)
        return self.objective(self.noised(x, cond, generator))

    def noised(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> NoisedBatch:
        """Draw t and ε, and estimate x from x_t: what `objective` takes, and an objective of one's own may.

        With one coin for the batch a self-conditioned denoiser is given its own x̂ of a first pass, without gradient.
        """
        self._meet(x)
        # t: which levels (Kingma 2021, appendix I.1)
        schedule, T = self.denoiser.schedule, self.timesteps
        u, weight = self.times(len(x), schedule, x.device, self.training, generator)
        t = u if T is None else (u * T).floor().add(1).clamp(max=T) / T
        # x_t = α x + σ ε (Ho 2020, eq. 4)
        x = wide(x)
        level = schedule.level(t, x)
        x_t, epsilon = schedule.corrupt(x, level, generator)
        # x̂, ε̂ (Chen 2022, section 3.2: on average the first pass is half a forward's cost)
        earlier: dict[str, Tensor] = {}
        if self.denoiser.self_condition and _coin(generator):
            with torch.no_grad():
                earlier = self.denoiser.self_conditioning(self.denoiser.clipped(x_t, level, cond))
        return NoisedBatch(x, epsilon, x_t, t, u, weight, self.denoiser(x_t, level, cond, **earlier))

    def objective(self, batch: NoisedBatch) -> Terms:
        """Return the weighted squared error of a noised batch, and the term of a learned variance: (B,).

        Raises ValueError for weighting 'likelihood', whose objective is `nll`.
        """
        estimate = batch.estimate
        if callable(self.weighting):
            name, error = "weighted", self._weighted(self.weighting, batch)
        elif self.weighting == "simple":
            # ‖target - output‖², for ε-prediction Ho 2020, eq. 14
            target = estimate.target(batch.x, batch.epsilon)
            name, error = "simple", per_example((target - estimate.output).square())
        else:
            raise ValueError("objective is of weighting simple or a function of λ; that of 'likelihood' is nll")
        if self.training:
            self.times.learn(batch.u, error)
        terms = Terms({name: batch.weight.to(error) * error})
        if self.denoiser.variance != "learned_range" or self.timesteps is None:
            return terms
        variance = self._variance_term(batch)
        return terms + Terms(variance=(0.001 * self.timesteps, batch.weight.to(variance) * variance))

    @torch.no_grad()
    def signal_left(self, x: Tensor) -> Tensor:
        """Return α_1² E[x²]/σ_1² (): the signal that is left at t = 1, against the noise that sampling starts from.

        Sampling takes N(0, σ_1²) for q(x_1), which is about α_1 x. With an exact denoiser of N(m, s²) many ancestral
        steps then draw a mean of m σ_1²/(α_1² s² + σ_1²), not m. Lin 2023, 2305.08891, section 3.1.
        Arguments: x (B, *shape), whose second moment is taken over all dimensions.
        """
        alpha, sigma = self.denoiser.schedule.alpha_sigma(1.0)
        return (alpha / sigma).square().to(x.device) * widest(x).square().mean()

    def _meet(self, x: Tensor) -> None:
        """Check the signal of the first batch of training: no later one waits, and compiled code has no break."""
        if self.training and not self._signal_checked and not torch.compiler.is_compiling():
            self._signal_checked = True
            self.check_signal(x)

    def check_signal(self, x: Tensor) -> None:
        """Warn of a schedule with which more of x (B, *shape) than `SIGNAL_LEFT` is left at t = 1.

        `loss` calls it with the first batch of training, unless it is compiled.
        """
        left = float(self.signal_left(x))
        if left > SIGNAL_LEFT:
            name, T = self.elbo.schedule_name, self.timesteps
            warnings.warn(
                f"{name} leaves signal at t = 1, where sampling starts from noise alone: α² E[x²]/σ² is {left:.2g} "
                f"there, expected at most {SIGNAL_LEFT}, so that samples miss the mean and scale of the data. Use a "
                "schedule that ends in more noise (a table of β with beta_start and beta_end times 1000/T"
                f"{'' if T is None else f' = {1000 / T:g}'}, or rescale_betas_zero_snr=True; a smaller log_snr_min; a "
                "larger sigma_max or beta_max), or data of unit scale",
                stacklevel=2,
            )

    def _weighted(self, weighting: WeightFunction, batch: NoisedBatch) -> Tensor:
        """Return w ‖ε - ε̂‖² (B,), by way of whichever of ε and x the network answers with more digits."""
        # At an end, where λ is infinite, w SNR has a limit that ∞ × 0 would miss.
        log_snr = self.denoiser.schedule.log_snr(batch.t).clamp(-80, 80)
        weight = weighting(log_snr)
        if batch.estimate.prediction.name == "epsilon":
            return weight.to(batch.x) * per_example((batch.epsilon - batch.estimate.epsilon).square())
        return (weight * log_snr.exp()).to(batch.x) * per_example((batch.x - batch.estimate.mean).square())

    def _variance_term(self, batch: NoisedBatch) -> Tensor:
        """Return KL(q(x_s|x_t, x) ‖ p(x_s|x_t)) (B,) nats of each level t, with a gradient in the variance alone.

        0 at the level below which there is no noise, whose reconstruction has a variance of its own.
        """
        assert self.timesteps is not None and batch.estimate.interpolation is not None
        schedule, estimate = self.denoiser.schedule, batch.estimate
        s = batch.t - 1 / self.timesteps
        rows = s * self.timesteps > 0.5 if self.starts_clean else torch.ones_like(s, dtype=torch.bool)
        s, t, x, x_t = s[rows], batch.t[rows], batch.x[rows], batch.x_t[rows]
        level = NoiseLevel(t, *schedule.alpha_sigma(t))
        fixed = Estimate(
            estimate.prediction, x_t, estimate.output[rows].detach(), level, batch.estimate.interpolation[rows]
        )
        p = self.denoiser.posterior(fixed, schedule.posterior_coefficients(s, t))
        rate = batch.x.new_zeros(len(batch.x))
        rate[rows] = kl(schedule.posterior(x_t, x, s, t), p).to(rate)
        return rate

    # Likelihood.

    def nll(
        self,
        x: Tensor,
        cond: Any = None,
        generator: torch.Generator | None = None,
        *,
        times: TimeSampler | None = None,
    ) -> Terms:
        """Return the bound with one random level: `VariationalBound.nll`. (B,) nats."""
        return self.elbo.nll(self.denoiser, x, cond, generator, times)

    def bound(self, x: Tensor, cond: Any = None, strata: int = 128, generator: torch.Generator | None = None) -> Terms:
        """Return the bound with every level summed: `VariationalBound.bound`. (B,) nats."""
        return self.elbo.bound(self.denoiser, x, cond, strata, generator)

    def rates(self, x: Tensor, cond: Any = None, strata: int = 128, generator: torch.Generator | None = None) -> Tensor:
        """Return each level of the bound: `VariationalBound.rates`. (levels, B) nats."""
        return self.elbo.rates(self.denoiser, x, cond, strata, generator)

    def ends(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms:
        """Return L_T and L_0 of the bound: `VariationalBound.ends`. (B,) nats."""
        return self.elbo.ends(self.denoiser, x, cond, generator)

    def log_weight(self, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x, x_t …) - log q(x_t …|x) of one draw of all levels: (B,) nats.

        Its mean is minus the bound, the mean of its exp is p(x). Raises ValueError in continuous time.
        """
        return path_log_weight(self.elbo, self.denoiser, x, cond, generator)

    def log_prob(
        self,
        x: Tensor,
        cond: Any = None,
        flow: ProbabilityFlow | None = None,
        dequantization: Literal["uniform", "encoder"] = "uniform",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log p(x) (B,) nats by the probability flow, exact for a density: `likelihood.flow_log_prob`.

        Arguments: flow, `self.flow()` by default. Raises ValueError for x off the grid of its grey levels.
        """
        flow = self.flow() if flow is None else flow
        return flow_log_prob(self.elbo, self.denoiser, x, flow, cond, dequantization, generator)

    def flow(self, first: float | None = None, **settings: Any) -> ProbabilityFlow:
        """Return the probability flow of the denoiser; settings are those of `ProbabilityFlow`.

        first: by default the chain's first level, below which nothing was trained; in continuous time t = 0, or 1e-5
        where the schedule is noiseless there.
        """
        if first is None:
            first = 1e-5 if self.starts_clean and self.timesteps is None else self.elbo.first
        return ProbabilityFlow(self.denoiser, first, **settings)

    def proposal(
        self, x: Tensor, cond: Any = None, bins: int = 100, generator: torch.Generator | None = None
    ) -> TimeSampler:
        """Return times for `nll` that lower its variance, measured on x (N, *shape): see `likelihood.proposal`."""
        return proposal(self.elbo, self.denoiser, x, cond, bins, generator=generator)

    # Samples.

    @torch.no_grad()
    def sample(
        self,
        n: int,
        cond: Any = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | Method | str | None = None,
    ) -> Tensor:
        """Draw (n, *shape): noise taken down to t = 0 by the sampler.

        Where the schedule has noise at t = 0 the last step is the denoiser's mean; a reconstruction of one's own
        decodes x_0 instead, after it.

        Arguments: sampler, instead of the model's own; or the name of its method, the rest being the model's own.
        Raises ValueError for one that is guided without cond, and for more steps than T.
        """
        chosen = self.sampler if sampler is None else sampler
        if not isinstance(chosen, Sampler):
            chosen = self.sampler.but(method=chosen)
        if sampler is not None and cond is None and chosen.guidance_scale != 1:
            raise ValueError(
                f"guidance_scale needs cond: there is nothing to guide by; got {chosen.guidance_scale} without"
            )
        self._check_steps(chosen)
        schedule = self.denoiser.schedule
        times = self._grid(chosen)
        x = self.noise(n, generator)
        if schedule.exploding and times[0] < 1:
            x = x * float(schedule.alpha_sigma(times[0])[1]) / schedule.terminal_std
        return self.from_noise(x, times, cond, generator, chosen)

    @torch.no_grad()
    def from_noise(
        self,
        x: Tensor,
        times: Tensor,
        cond: Any = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Take x (B, *shape) at times[0] down the grid to a sample, as `sample` does with what it draws.

        Arguments: times, (steps + 1,), as in `Sampler.__call__`; sampler, instead of the model's own.
        """
        sampler = self.sampler if sampler is None else sampler
        x = sampler(self.denoiser, x, cond, generator, times, self.ends_in_mean)
        if self.starts_clean or self.ends_in_mean:
            return x
        return self.elbo.decode(sampler.guided(self.denoiser, cond), x, cond).mean

    # Latents.

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw x_1 ~ N(0, σ_1² I): (n, *shape), σ_1 = 1 but where the variance explodes."""
        return self.denoiser.schedule.terminal_std * self.elbo.noise.sample(n, generator=generator)

    @torch.no_grad()
    def encode(self, x: Tensor, cond: Any = None, steps: int | None = None, iterations: int = 1) -> Tensor:
        """Return the noise from which `decode` comes to x, by DDIM's inversion: (B, *shape), at the grid's first time.

        The grid is that of the model's own sampler, its spacing included. Song 2020, 2010.02502, section 4.3.
        Arguments: steps, `sample_steps` by default; iterations, as in `components.samplers.invert`.
        """
        times = self._grid(self.sampler, steps)
        start = x if self.ends_in_mean else self.denoiser.schedule.marginal(x, 0.0).mean
        return invert(self.denoiser, start, times, cond, iterations, self.ends_in_mean)

    @torch.no_grad()
    def decode(self, z: Tensor, cond: Any = None, steps: int | None = None) -> Delta:
        """Return the sample of DDIM with η = 0 from the noise z (B, *shape), on the grid of `encode`."""
        return Delta(self.from_noise(z, self._grid(self.sampler, steps), cond, sampler=Sampler("ddim")))

    def _grid(self, sampler: Sampler, steps: int | None = None) -> Tensor:
        """Return the times that a sampler goes down, of so many steps in the place of its own."""
        sampler = sampler if steps is None else sampler.but(steps=steps)
        return sampler.times(self.denoiser.schedule, self.sample_steps, self.timesteps, self.ends_in_mean)

    def networks(self) -> dict[str, nn.Module]:
        """Return the denoiser's backbone."""
        return {"backbone": self.denoiser.backbone}

    # What it is made of.

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x."""
        return self.elbo.noise.shape

    @property
    def timesteps(self) -> int | None:
        """T, or None for continuous time."""
        return self.elbo.timesteps

    @property
    def grey_levels(self) -> int | None:
        """K of a likelihood that is discrete on the data's grid; None for a density."""
        return self.elbo.grey_levels

    @property
    def sample_steps(self) -> int:
        """How many steps `sample` takes by default."""
        return self.sampler.steps or self.timesteps or 250

    @property
    def starts_clean(self) -> bool:
        """Whether there is no noise at t = 0."""
        return self.elbo.starts_clean

    @property
    def ends_in_mean(self) -> bool:
        """Whether the last step of `sample` is the denoiser's mean, since there is noise at t = 0."""
        return not self.starts_clean and getattr(self.elbo.reconstruction, "leaves_noise", False)

    def _check(self, bounded: bool) -> None:
        if not callable(self.weighting) and self.weighting not in get_args(Weighting):
            known = ", ".join(get_args(Weighting))
            raise ValueError(f"weighting must be one of {known}, or a function of λ; got {self.weighting!r}")
        if self.weighting == "likelihood" and not isinstance(self.times, UniformTimes):
            raise ValueError(
                f"times must be None with weighting 'likelihood', whose levels are uniform; got "
                f"{type(self.times).__name__}: give it to nll"
            )
        if self.denoiser.self_condition and self.weighting == "likelihood":
            raise ValueError(
                "weighting must not be 'likelihood' for a backbone with self_condition=True: the bound is of a chain "
                "without earlier estimates, so none would be trained on; use simple, or a function of λ"
            )
        if bounded and self.timesteps is None and self.starts_clean:
            raise ValueError(
                f"{self.elbo.schedule_name} is noiseless at t = 0: in continuous time the bound is infinite; "
                "give timesteps, or a schedule with a finite log_snr_max"
            )
        self._check_steps(self.sampler)

    def _check_steps(self, sampler: Sampler) -> None:
        """Refuse more steps than levels: they would ask the network of times between all that it was trained on."""
        if self.timesteps is not None and sampler.steps is not None and sampler.steps > self.timesteps:
            raise ValueError(f"the sampler's steps must be at most timesteps, {self.timesteps}; got {sampler.steps}")


def _coin(generator: torch.Generator | None) -> bool:
    """True in one case of two."""
    return bool(torch.rand((), generator=generator, device=None if generator is None else generator.device) < 0.5)
