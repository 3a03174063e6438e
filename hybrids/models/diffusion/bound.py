"""The variational bound of a diffusion model, in discrete or continuous time."""

from typing import Any

import torch
from torch import Tensor, nn

from components.denoisers import (
    DenoisedReconstruction,
    Denoiser,
    Denoising,
    Estimate,
    GaussianReconstruction,
    GreyLevelReconstruction,
    GreyLevels,
    PosteriorReconstruction,
    Reconstruction,
)
from components.distributions import Distribution, Normal, kl, per_example
from components.losses import TimeSampler, low_discrepancy
from components.precision import wide
from components.schedules import Schedule, Time

from ...terms import Terms
from ..rates import StandardNormal

__all__ = ["VariationalBound"]


class VariationalBound(nn.Module):
    """-log p(x) <= L_T + Σ_i L_{i-1} + L_0: a fixed encoder q(x_t|x) against a denoiser's chain p(x_s|x_t).

        L_T     = KL(q(x_1|x) ‖ N(0, σ² I))                  Ho 2020, 2006.11239, eq. 5
        L_{i-1} = E KL(q(x_s|x_t, x) ‖ p(x_s|x_t))           s = (i-1)/T, t = i/T; Kingma 2021, 2107.00630, eq. 13
        L_0     = E[-log p(x|x_first)]                       `reconstruction`

    In continuous time the sum is -½ ∫ λ'(t) E‖ε - ε̂‖² dt (Kingma 2021, eq. 17). The first level is t = 0 if the
    schedule has noise there, else t = 1/T, whose KL is that of the reconstruction.
    It owns the parameters of the reconstruction, if it has any, and no network: the denoiser is an argument.

    Arguments:
        denoiser: whose schedule, prediction and variance decide the default reconstruction; it is not kept.
        shape: of one x.
        reconstruction: p(x|x_first); by default around x_first/α if there is noise at t = 0, of the denoiser's own
            probabilities if it predicts `GreyLevels`, else around x̂ with the variance of Ho, section 3.3.
        grey_levels: K of x, for a default reconstruction that is a probability of pixels; None: a density.
        timesteps: T, or None for continuous time.
    Raises ValueError for timesteps below 1. Every method raises ValueError where the bound is infinite: in continuous
    time with a schedule that starts clean.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: int | tuple[int, ...],
        reconstruction: nn.Module | None = None,
        grey_levels: int | None = None,
        timesteps: int | None = None,
    ) -> None:
        super().__init__()
        if timesteps is not None and timesteps < 1:
            raise ValueError(f"timesteps must be at least 1, or None for continuous time; got {timesteps}")
        self.timesteps, self.noise = timesteps, StandardNormal(shape)
        self.starts_clean = denoiser.schedule.noiseless(0.0)
        self.schedule_name = type(denoiser.schedule).__name__
        if reconstruction is None:
            reconstruction = self._default(denoiser, grey_levels)
        elif getattr(reconstruction, "needs_noise", False) and self.starts_clean:
            raise ValueError(
                f"{type(reconstruction).__name__} needs noise at t = 0; {self.schedule_name} has σ = 0 there: "
                "use a finite log_snr_max, or DenoisedReconstruction"
            )
        own = denoiser.prediction.grey_levels if isinstance(denoiser.prediction, GreyLevels) else None
        if own not in (None, grey_levels) and grey_levels is not None:
            raise ValueError(f"grey_levels must be {own}, those that the denoiser predicts, or None; got {grey_levels}")
        if isinstance(reconstruction, PosteriorReconstruction) and own != reconstruction.grey_levels:
            raise ValueError(
                f"PosteriorReconstruction({reconstruction.grey_levels}) needs a denoiser that predicts GreyLevels of "
                f"as many; got prediction {denoiser.prediction.name!r} of {own}"
            )
        self.reconstruction: Any = reconstruction
        self.grey_levels: int | None = getattr(reconstruction, "grey_levels", None)

    # The bound of a batch.

    def nll(
        self,
        denoiser: Denoiser,
        x: Tensor,
        cond: Any = None,
        generator: torch.Generator | None = None,
        times: TimeSampler | None = None,
    ) -> Terms:
        """Return the bound with one random level: terms prior = L_T, diffusion, reconstruction = L_0. (B,) nats.

        Arguments:
            denoiser, x (B, *shape), cond.
            generator: of levels and noise.
            times: which level, such as `likelihood.proposal`; uniform by default. Its weights must be those of
                uniform t.
        """
        # Only in training do all ranks come here together, as sharing the offset of the levels needs.
        together = self.training
        if times is None:
            u = low_discrepancy(len(x), x.device, together, generator)
            diffusion = self.at(denoiser, x, u, cond, generator)
        else:
            u, weight = times(len(x), denoiser.schedule, x.device, together, generator)
            diffusion = self.at(denoiser, x, u, cond, generator)
            diffusion = weight.to(diffusion) * diffusion
        return self.ends(denoiser, x, cond, generator) + Terms(diffusion=diffusion)

    @torch.no_grad()
    def bound(
        self,
        denoiser: Denoiser,
        x: Tensor,
        cond: Any = None,
        strata: int = 128,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the bound with every level summed, terms as `nll`; in continuous time one t drawn in each stratum."""
        diffusion = self.rates(denoiser, x, cond, strata, generator).sum(0)
        return self.ends(denoiser, x, cond, generator) + Terms(diffusion=diffusion)

    @torch.no_grad()
    def rates(
        self,
        denoiser: Denoiser,
        x: Tensor,
        cond: Any = None,
        strata: int = 128,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return L_{i-1} of each level of `chain`, cleanest first, or of each stratum: (levels, B) nats."""
        if strata < 1:
            raise ValueError(f"strata must be at least 1; got {strata}")
        if self.timesteps is not None:
            parts = [self.level(denoiser, x, s, t, cond, generator) for s, t in self.chain]
        else:
            parts = []
            for i in range(strata):
                t = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator).add(i) / strata
                parts.append(self.rate_of_change(denoiser, x, t, cond, generator) / strata)
        return torch.stack(parts) if parts else x.new_zeros(0, len(x))

    # Its parts.

    def ends(self, denoiser: Denoiser, x: Tensor, cond: Any = None, generator: torch.Generator | None = None) -> Terms:
        """Return L_T and L_0, the terms prior and reconstruction: (B,) nats."""
        x, schedule = wide(x), denoiser.schedule
        prior = kl(schedule.marginal(x, 1.0), self.start(schedule))
        x_first, _ = schedule.corrupt(x, self.first, generator)
        return Terms(prior=prior, reconstruction=-self.decode(denoiser, x_first, cond).log_prob(x))

    def at(
        self, denoiser: Denoiser, x: Tensor, u: Tensor, cond: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the diffusion term at given u (B,) in [0, 1): t = u, or the level that u falls into. (B,) nats."""
        if self.timesteps is None:
            return self.rate_of_change(denoiser, x, u, cond, generator)
        skipped = int(self.starts_clean)
        many = self.timesteps - skipped
        if not many:
            return 0.0 * u
        i = (u * many).floor() + 1 + skipped
        return many * self.level(denoiser, x, (i - 1) / self.timesteps, i / self.timesteps, cond, generator)

    def level(
        self,
        denoiser: Denoiser,
        x: Tensor,
        s: Time,
        t: Time,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return KL(q(x_s|x_t, x) ‖ p(x_s|x_t)) at one draw of x_t: (B,) nats. Kingma 2021, 2107.00630, eq. 13.

        With the small variance ½ (SNR_s - SNR_t) ‖x - x̂‖² = ½ (SNR_s/SNR_t - 1) ‖ε - ε̂‖²: no large numbers cancel.
        """
        x, schedule = wide(x), denoiser.schedule
        at = schedule.level(t, x)
        x_t, epsilon = schedule.corrupt(x, at, generator)
        if denoiser.variance != "small":
            return kl(schedule.posterior(x_t, x, s, t), denoiser.reverse(x_t, s, t, cond))
        estimate = denoiser.clipped(x_t, at, cond)
        if estimate.prediction.name == "epsilon":
            weight = torch.expm1(schedule.log_snr(s) - schedule.log_snr(t))
            error = per_example((epsilon - estimate.epsilon).square())
        else:
            weight = schedule.log_snr(s).exp() - schedule.log_snr(t).exp()
            error = per_example((x - estimate.mean).square())
        return (0.5 * weight).to(error) * error

    def rate_of_change(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return -½ λ'(t) ‖ε - ε̂‖² at times t (B,): (B,) nats. Kingma 2021, 2107.00630, eq. 17.

        A learned schedule is given it, to minimize its variance.
        """
        schedule = denoiser.schedule
        with schedule.minimizing_variance() as losses:
            level = schedule.level(t, x)
            x_t, epsilon = schedule.corrupt(x, level, generator)
            error = per_example((epsilon - denoiser.clipped(x_t, level, cond).epsilon).square())
            rate = (-0.5 * schedule.slope(t)).to(error) * error
            losses.append(rate.detach())
        return rate

    def decode(self, denoiser: Denoising, x_first: Tensor, cond: Any = None) -> Distribution:
        """Return p(x|x_first) of x_first (B, *shape) at the first level."""
        level = denoiser.schedule.level(self.first, x_first)
        estimate: Estimate | None = None
        if getattr(self.reconstruction, "uses_estimate", True):
            estimate = denoiser.clipped(x_first, level, cond)
        return self.reconstruction(x_first, level, estimate)

    def start(self, schedule: Schedule) -> Normal:
        """Return p(x_1) = N(0, σ² I), σ = 1, or σ_1 where variance explodes."""
        standard = self.noise.distribution
        return Normal(standard.mean, schedule.terminal_std * standard.std)

    # Its levels.

    @property
    def first(self) -> float:
        """The time of the least noisy level."""
        if not self.starts_clean:
            return 0.0
        if self.timesteps is None:
            raise ValueError(
                f"{self.schedule_name} is noiseless at t = 0: in continuous time the bound is infinite; give "
                "timesteps, or a schedule with a finite log_snr_max"
            )
        return 1 / self.timesteps

    @property
    def chain(self) -> list[tuple[float, float]]:
        """(s, t) of every level of discrete time but that of the reconstruction, from the cleanest."""
        if self.timesteps is None:
            raise ValueError("continuous time has no chain of levels; timesteps=None")
        skipped = int(self.starts_clean)
        return [((i - 1) / self.timesteps, i / self.timesteps) for i in range(1 + skipped, self.timesteps + 1)]

    def _default(self, denoiser: Denoiser, grey_levels: int | None) -> Reconstruction | None:
        """Return that of Kingma 2021, section 3.3, or of Ho 2020, section 3.3; None where there is no bound."""
        if isinstance(denoiser.prediction, GreyLevels):
            return PosteriorReconstruction(denoiser.prediction.grey_levels)
        if not self.starts_clean:
            return GaussianReconstruction() if grey_levels is None else GreyLevelReconstruction(grey_levels)
        return (
            None if self.timesteps is None else DenoisedReconstruction(first_std(denoiser, self.timesteps), grey_levels)
        )


def first_std(denoiser: Denoiser, timesteps: int) -> float:
    """Return √β_1 for the large variance; for the small one, 0 at t = 1/T, that of the next level (Ho 2020, 3.2)."""
    schedule, step = denoiser.schedule, 1 / timesteps
    if denoiser.variance == "large" or timesteps == 1:
        return float(schedule.step(0.0, step)[1].sqrt())
    return float(schedule.posterior_coefficients(step, 2 * step).std)
