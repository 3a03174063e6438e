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
from .times import Spacing, check_times, time_grid

__all__ = ["Sampler", "walk"]


@dataclass(frozen=True)
class Sampler:
    """From noise at t = 1 down to x: a method, how many steps, where they lie, and what guides them.

        Sampler("heun", steps=18, spacing="karras")(denoiser, x)
        Sampler(DDIM(eta=0.5), steps=50, guidance_scale=2.0)(denoiser, x, cond)

    A self-conditioned denoiser is given each step's x̂ in the next (Chen 2022, 2208.04202, section 3.2). Noise is drawn
    for the whole batch from one generator: the same seed, grid and batch size give the same samples. Where the schedule
    has noise at t = 0 (EDM, exploding variance, a finite log_snr_max) the last step is the denoiser's mean, so that
    samples have none of it: EDM's N steps are N - 1 of the method and the mean (Karras 2022, 2206.00364, eq. 5).
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
        """Take x from times[0] to times[-1], or to the denoiser's mean there.

        Arguments:
            denoiser: of any backbone, schedule and prediction.
            x: (B, *event), the noise at times[0].
            cond: as the denoiser takes it.
            generator: of the noise that is added on the way.
            times: falling, in [0, 1]; by default `self.times(denoiser.schedule)`.
            mean_at_end: whether a last evaluation at times[-1] takes x̂ in the place of x. By default it does where
                that is t = 0 and the schedule has noise there; x above t = 0 stays noisy, as a later step needs it.
        Returns: (B, *event), at times[-1].
        """
        schedule = denoiser.schedule
        if times is not None:
            check_times(times, least=1)
        if mean_at_end is None:
            mean_at_end = (times is None or bool(times[-1] == 0)) and not schedule.noiseless(0.0)
        if times is None:
            times = self.times(schedule, mean_at_end=mean_at_end)
        guided = self.guided(denoiser, cond)
        return walk(self.method, guided, x, times, cond, generator, mean_at_end)  # type: ignore[arg-type]

    def times(
        self,
        schedule: Schedule,
        steps: int = 100,
        timesteps: int | None = None,
        mean_at_end: bool | None = None,
    ) -> Tensor:
        """Return the grid of the sampler's own steps, or so many: (steps + 1,), or (steps,) if the mean is the last.

        Arguments:
            schedule: the noising process.
            steps: for a sampler that has none of its own.
            timesteps: T of a chain; None for continuous time.
            mean_at_end: whether the last step is the mean at the grid's last time; by default, whether the schedule has
                noise at t = 0. The grid then ends at t = 0, but that of a chain, whose network knows t >= 1/T only, one
                step above it.
        """
        steps = self.steps or steps
        if mean_at_end is None:
            mean_at_end = not schedule.noiseless(0.0)
        above = mean_at_end and timesteps is not None
        if mean_at_end and steps == 1:
            return torch.ones(1, dtype=torch.float64)
        times = time_grid(
            steps - 1 if mean_at_end and not above else steps,
            spacing=self.spacing,
            schedule=schedule,
            timesteps=timesteps or 1000,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
        )
        return times[:-1] if above else times

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
    check_times(times, least=1 if mean_at_end else 2)
    x, grid = wide(x), Grid.of(denoiser.schedule, times, x.device)
    denoise, memory = Evaluation(denoiser, cond), None
    for coefficients in method.plan(denoiser.schedule, grid) if len(times) > 1 else ():
        x, memory = method.step(denoise, x, coefficients, memory, lambda: randn_like(x, generator))  # noqa: B023
    return denoise(x, grid.levels()[-1]).mean if mean_at_end else x
