"""One loop for every sampler, and the sampler as a value: a method, a grid of times, guidance and thresholding."""

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from ..denoisers import Denoising, Guided, Thresholded
from ..distributions import randn_like
from ..precision import wide
from ..schedules import Schedule
from .method import Evaluation, Grid, Method, option
from .methods import METHODS
from .times import Spacing, check_times, ends_in_mean, time_grid

__all__ = ["Sampler", "walk"]


@dataclass(frozen=True)
class Sampler:
    """From noise at t = 1 down to x: a method, how many steps, where they lie, and what guides them.

        Sampler("heun", steps=18, spacing="karras")(denoiser, x)
        Sampler(DDIM(eta=0.5), steps=50, guidance_scale=2.0)(denoiser, x, cond)

    A self-conditioned denoiser is given each step's x̂ in the next (Chen 2022, 2208.04202, section 3.2). Noise is drawn
    for the whole batch from one generator: the same seed, grid and batch size give the same samples. Where the schedule
    has noise at t = 0 (EDM, exploding variance, a finite log_snr_max) the last step, from t to 0, returns x̂(x_t) as it
    does where there is none: EDM's N steps are N - 1 of the method and the mean (Karras 2022, 2206.00364, eq. 5).
    Raises ValueError for options out of range or that change nothing, and for a method of no known name.
    """

    method: Method | str = option("ancestral", "how a step is made")
    steps: int | None = option(None, "steps of the sampler, of one evaluation of the network each, of heun two")
    spacing: Spacing = option("trailing", "spacing of the sampler's times")
    sigma_min: float | None = option(None, "least σ/α of the spacings karras and log_snr")
    sigma_max: float | None = option(None, "largest σ/α of the spacings karras and log_snr")
    rho: float = option(7.0, "ρ of the spacing karras")
    guidance_scale: float = option(1.0, "classifier-free guidance as in diffusers, 1 is none")
    guidance_interval: tuple[float, float] = option((0.0, 1.0), "the times, 0 to 1, that are guided")
    guidance_rescale: float = option(0.0, "0 to 1: how far guided x̂ is brought back to the spread without")
    thresholding: float | None = option(None, "quantile of dynamic thresholding, such as 0.995")

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            if self.method not in METHODS:
                raise ValueError(f"method must be one of {', '.join(METHODS)}, or a Method; got {self.method!r}")
            object.__setattr__(self, "method", METHODS[self.method]())
        elif not isinstance(self.method, Method):
            raise ValueError(f"method must be one of {', '.join(METHODS)}, or a Method; got {self.method!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        self._check()

    def _check(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1 or not 0 <= self.guidance_rescale <= 1:
            raise ValueError(
                "guidance_interval must be (low, high) with 0 <= low < high <= 1 and guidance_rescale in [0, 1]; got "
                f"{self.guidance_interval} and {self.guidance_rescale}"
            )
        if self.thresholding is not None and not 0 < self.thresholding <= 1:
            raise ValueError(f"thresholding must be a quantile in (0, 1]; got {self.thresholding}")
        if self.spacing not in get_args(Spacing):
            raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}; got {self.spacing!r}")
        if self.spacing not in ("karras", "log_snr") and (self.sigma_min is not None or self.sigma_max is not None):
            raise ValueError(
                f"sigma_min and sigma_max change nothing with spacing {self.spacing!r}: they are of karras and "
                f"log_snr; got {self.sigma_min} and {self.sigma_max}"
            )
        if self.spacing != "karras" and self.rho != 7.0:
            raise ValueError(f"rho changes nothing with spacing {self.spacing!r}: it is of karras; got {self.rho}")
        if self.guidance_scale == 1 and (self.guidance_rescale or self.guidance_interval != (0.0, 1.0)):
            raise ValueError(
                "guidance_interval and guidance_rescale change nothing without guidance: give a guidance_scale other "
                f"than 1; got interval {self.guidance_interval} and rescale {self.guidance_rescale}"
            )

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoising,
        x: Tensor,
        cond: Any = None,
        generator: torch.Generator | None = None,
        times: Tensor | None = None,
        mean_at_end: bool | None = None,
    ) -> Tensor:
        """Take x from times[0] to times[-1].

        Arguments:
            denoiser: of any backbone, schedule and prediction.
            x: (B, *event), the noise at times[0].
            cond: as the denoiser takes it.
            generator: of the noise that is added on the way.
            times: (steps + 1,), falling, in [0, 1]; by default `self.times(denoiser.schedule)`.
            mean_at_end: whether the last step returns x̂ at times[-2]. By default it does where it is to t = 0 and the
                schedule has noise there; x above t = 0 stays noisy, as a later step needs it.
        Returns: (B, *event), at times[-1].
        """
        schedule = denoiser.schedule
        if times is None:
            times = self.times(schedule, mean_at_end=mean_at_end)
        if mean_at_end is None:
            mean_at_end = ends_in_mean(schedule, times)
        guided = self.guided(denoiser, cond)
        return walk(self.method, guided, x, times, cond, generator, mean_at_end)  # type: ignore[arg-type]

    def times(
        self,
        schedule: Schedule,
        steps: int = 100,
        timesteps: int | None = None,
        mean_at_end: bool | None = None,
    ) -> Tensor:
        """Return the grid of the sampler's own steps, or so many: (steps + 1,), from noise to t = 0.

        Arguments:
            schedule: the noising process.
            steps: for a sampler that has none of its own.
            timesteps: T of a chain; None for continuous time.
            mean_at_end: whether the last step is the denoiser's mean; by default, whether the schedule has noise at
                t = 0. That mean is taken at t = 0, so that the grid has 0 twice; in a chain, whose network knows
                t >= 1/T only, it is taken at the last time above 0, and sigma_min is by default that of 1/T.
        Raises ValueError as `time_grid`.
        """
        steps = self.steps or steps
        if mean_at_end is None:
            mean_at_end = not schedule.noiseless(0.0)
        if mean_at_end and steps == 1:
            return torch.tensor([1.0, 0.0], dtype=torch.float64)
        twice, sigma_min = mean_at_end and timesteps is None, self.sigma_min
        if mean_at_end and timesteps is not None and sigma_min is None and self.spacing in ("karras", "log_snr"):
            sigma_min = float(torch.exp(-schedule.log_snr(1 / timesteps) / 2))
        if twice and self.spacing == "leading" and steps > 1001:
            raise ValueError(f"steps must be at most 1001, the last the mean, with spacing 'leading'; got {steps}")
        times = time_grid(
            steps - 1 if twice else steps,
            spacing=self.spacing,
            schedule=schedule,
            timesteps=timesteps or 1000,
            sigma_min=sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
        )
        return torch.cat([times, times[-1:]]) if twice else times

    def guided(self, denoiser: Denoising, cond: Any = None) -> Denoising:
        """Return the denoiser with the sampler's guidance, where there is a cond, and thresholding."""
        if cond is not None and self.guidance_scale != 1:
            denoiser = Guided(denoiser, self.guidance_scale, self.guidance_interval, self.guidance_rescale)
        return denoiser if self.thresholding is None else Thresholded(denoiser, self.thresholding)

    def but(self, **options: Any) -> "Sampler":
        """Return the sampler with other options."""
        return replace(self, **options)


def walk(
    method: Method,
    denoiser: Denoising,
    x: Tensor,
    times: Tensor,
    cond: Any = None,
    generator: torch.Generator | None = None,
    mean_at_end: bool = False,
) -> Tensor:
    """Go down the grid by the method: the loop that all samplers share, differentiable where gradients are on.

    Arguments as `Sampler.__call__`.
    """
    check_times(times, mean_at_end)
    x, grid = wide(x), Grid.of(denoiser.schedule, times[:-1] if mean_at_end else times, x.device, mean_at_end)
    denoise, memory = Evaluation(denoiser, cond), None
    for coefficients in method.plan(denoiser.schedule, grid) if len(grid.t) > 1 else ():
        x, memory = method.step(denoise, x, coefficients, memory, lambda: randn_like(x, generator))  # noqa: B023
    return denoise(x, grid.levels()[-1]).mean if mean_at_end else x
