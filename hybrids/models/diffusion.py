"""Diffusion, in discrete or continuous time: DDPM and variational diffusion are settings of it."""

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from components.denoisers import Denoiser, Estimate, Guided, Thresholded
from components.distributions import kl, per_example
from components.losses import TimeSampler, UniformTimes, WeightFunction
from components.precision import wide
from components.samplers import SAMPLERS, Spacing, ancestral, time_grid

from ..terms import Terms
from .diffusion_bound import DiffusionBound

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


class Diffusion(DiffusionBound):
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
            `nll`; a function of `components.losses` gives E w(λ) ‖ε - ε̂‖².
            Beside simple and a function, the variance that a chain's denoiser with learned_range has learns from the
            bound, 0.001 Σ_t L_{t-1} with x̂ held fixed: Nichol & Dhariwal 2021, 2102.09672, eq. 16 (here in nats).
            A denoiser with self_condition is shown its own x̂ in half of the batches of simple and of a function, and in
            sampling (Chen 2022, 2208.04202, section 3.2). `nll` and `bound` are of the chain that is shown none, so to
            train on `nll`, as a VAE's prior, does not teach it to sample.
        times: which t `loss` trains on; uniform by default (with a log-SNR-linear schedule that is uniform in λ).
        sampler, sample_steps, guidance_scale: what `sample` uses; a sampler, or its name in `components.samplers`;
            steps, at most T, are T by default, 250 in continuous time.
    Raises ValueError for settings that do not go together, and for a sampler of no known name.
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
        sampler: Sampler | str = ancestral,
        sample_steps: int | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        if not callable(weighting) and weighting not in get_args(Weighting):
            known = ", ".join(get_args(Weighting))
            raise ValueError(f"weighting must be one of {known}, or a function of λ; got {weighting!r}")
        if denoiser.self_condition and weighting == "likelihood":
            raise ValueError(
                "weighting must not be 'likelihood' for a backbone with self_condition=True: the bound is of a chain "
                "without earlier estimates, so none would be trained on; use simple, or a function of λ"
            )
        bounded = weighting == "likelihood" or last is not None
        if bounded and timesteps is None and denoiser.schedule.noiseless(0.0):
            raise ValueError(
                f"{type(denoiser.schedule).__name__} is noiseless at t = 0: in continuous time the bound is infinite; "
                "give timesteps, or a schedule with a finite log_snr_max"
            )
        super().__init__(denoiser, shape, last, levels, timesteps)
        self.weighting = weighting
        self.times = UniformTimes() if times is None else times
        self.sampler = _named(sampler)
        self.sample_steps = self._at_most_timesteps("sample_steps", sample_steps or timesteps or 250)
        self.guidance_scale = guidance_scale

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

    @torch.no_grad()
    def sample(
        self,
        n: int,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | str | None = None,
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
        Raises ValueError for a guidance_scale without cond, for more steps than T, and for a sampler of no known name.
        """
        if cond is None and guidance_scale not in (None, 1):
            raise ValueError(f"guidance_scale needs cond: there is nothing to guide by; got {guidance_scale} without")
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        denoiser = self.denoiser
        if scale != 1 and cond is not None:
            denoiser = Guided(denoiser, scale, guidance_interval, guidance_rescale)
        if thresholding is not None:
            denoiser = Thresholded(denoiser, thresholding)
        schedule = denoiser.schedule
        steps = self.sample_steps if steps is None else self._at_most_timesteps("steps", steps)
        times = time_grid(steps, spacing=spacing, schedule=schedule, timesteps=self.timesteps or 1000)
        x = schedule.terminal_std * self.noise.sample(n, generator=generator)
        if schedule.exploding and times[0] < 1:
            x = x * float(schedule.alpha_sigma(times[0])[1]) / schedule.terminal_std
        x = (self.sampler if sampler is None else _named(sampler))(denoiser, x, times, cond, generator)
        return x if self.starts_clean else self.last(x, cond).mean  # type: ignore[misc]

    def _at_most_timesteps(self, name: str, steps: int) -> int:
        """The steps of a sampler: more would ask the network of times between all that it was trained on."""
        if self.timesteps is not None and steps > self.timesteps:
            raise ValueError(f"{name} must be at most timesteps, {self.timesteps}; got {steps}")
        return steps


def _named(sampler: Sampler | str) -> Sampler:
    """A sampler itself, or the one of a name."""
    if not isinstance(sampler, str):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, or a function like them; got {sampler!r}")
    return SAMPLERS[sampler]  # type: ignore[return-value]
