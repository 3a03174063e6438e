"""What a method of sampling is: a plan of coefficients for a grid of times, and one step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoising, Estimate
from ..distributions import Delta, Normal
from ..schedules import NoiseLevel, PosteriorCoefficients, Schedule

__all__ = ["Evaluation", "Grid", "Method", "option"]


class Method(ABC):
    """A way to go down a grid of times. Subclasses are frozen dataclasses of options that give `plan` and `step`.

    evaluations: of the network in a step, but for the last one to no noise.
    """

    evaluations: ClassVar[int] = 1

    @abstractmethod
    def plan(self, schedule: Schedule, grid: "Grid") -> Sequence[Any]:
        """Return the coefficients of every step, in float64 and as Python floats: the schedule is evaluated once."""

    @abstractmethod
    def step(
        self, denoise: "Evaluation", x: Tensor, coefficients: Any, memory: Any, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Any]:
        """Return x one step down, and what the next step needs to know.

        Arguments:
            denoise: (x, level) → the estimate of x.
            x: (B, *event), at the step's first time.
            coefficients: of this step, an entry of the plan.
            memory: what the step before returned; None at the first.
            noise: draws N(0, I) like x.
        """


class Grid(NamedTuple):
    """A schedule at the times of a grid: t (N + 1,), falling, with α, σ and λ; float64, on the CPU.

    device is where x is, and the noise levels are made. mean_at_end: whether a further step follows, which takes the
    denoiser's mean at the last of the times.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    device: torch.device
    mean_at_end: bool = False

    @staticmethod
    def of(schedule: Schedule, times: Tensor, device: torch.device, mean_at_end: bool = False) -> "Grid":
        """Evaluate the schedule at the times."""
        alpha, sigma = schedule.alpha_sigma(times)
        return Grid(times.cpu(), alpha.cpu(), sigma.cpu(), schedule.log_snr(times).cpu(), device, mean_at_end)

    def starts(self) -> "Grid":
        """Return the grid without its last time: where steps start from."""
        return Grid(self.t[:-1], self.alpha[:-1], self.sigma[:-1], self.log_snr[:-1], self.device)

    def levels(self) -> list[NoiseLevel]:
        """Return the noise level of each time, α and σ as Python floats."""
        times = self.t.to(self.device).unbind()
        return [NoiseLevel(*row) for row in zip(times, self.alpha.tolist(), self.sigma.tolist())]


class Evaluation:
    """The denoiser during one run of a sampler: x̂ of a noise level, with cond and self-conditioning taken care of."""

    def __init__(self, denoiser: Denoising, cond: Any) -> None:
        self.denoiser, self.cond = denoiser, cond
        self.earlier: dict[str, Any] = {}

    def __call__(self, x: Tensor, level: NoiseLevel) -> Estimate:
        """Return the clipped estimate of x (B, *event) at the level."""
        estimate = self.denoiser.clipped(x, level, self.cond, **self.earlier)
        self.earlier = self.denoiser.self_conditioning(estimate)
        return estimate

    def posterior(self, estimate: Estimate, coefficients: PosteriorCoefficients, variance: Any) -> Normal | Delta:
        """Return p(x_s|x_t): `Denoiser.posterior`."""
        return self.denoiser.posterior(estimate, coefficients, variance)


def option(default: Any, help: str) -> Any:
    """Return a field of a sampler or of a method, with the sentence that a command's --help has for it."""
    return field(default=default, metadata={"help": help})
