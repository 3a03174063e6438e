"""DDIM backwards: the noise that a sample comes from."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoising
from ..precision import wide
from ..schedules import NoiseLevel
from .method import Evaluation, Grid
from .times import check_times, ends_in_mean

__all__ = ["invert"]


@torch.no_grad()
def invert(
    denoiser: Denoising,
    x: Tensor,
    times: Tensor,
    cond: Any = None,
    iterations: int = 1,
    mean_at_end: bool | None = None,
) -> Tensor:
    """Return the noise at times[0] from which `DDIM` with η = 0 comes to x at times[-1]: its steps undone.

    A step undone is x_t = (α_t/α_s) x_s + (σ_t - α_t σ_s/α_s) ε̂(x_t, t), solved for x_t by so many iterations from x_s.
    One is DDIM inversion as diffusers has it for ε (Song 2020, 2010.02502, section 4.3), whose error falls as 1/steps;
    more undo the very same steps, whatever their size (Pan 2023, 2309.04907). A last step that took the denoiser's mean
    is undone as one to no noise, α = 1 and σ = 0. The network is never evaluated at a time without noise. One
    evaluation a step and iteration. What clipping cut off does not come back, and a self-conditioned denoiser is given
    the x̂ of its last evaluation, which going down it would not be.

    Arguments:
        denoiser: of any backbone, schedule and prediction.
        x: (B, *event).
        times: (steps + 1,), the falling grid that `DDIM` would go down.
        cond: as the denoiser takes it.
        iterations: at least 1.
        mean_at_end: whether x is x̂ at times[-2]; by default as in `Sampler.__call__`.
    Returns: (B, *event).
    Raises ValueError for a grid of the one step from pure noise (α = 0) to none: it forgets where it started.
    """
    if mean_at_end is None:
        mean_at_end = ends_in_mean(denoiser.schedule, times)
    check_times(times, mean_at_end)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    x, denoise = wide(x), Evaluation(denoiser, cond)
    levels = Grid.of(denoiser.schedule, times, x.device).levels()
    if mean_at_end:
        levels[-1] = NoiseLevel(levels[-1].t, 1.0, 0.0)
    for s, t in pairwise(reversed(levels)):
        if t.alpha == 0 and s.sigma == 0:
            raise ValueError("times must have a step between pure noise and none to be inverted; got one for both")
        ratio = t.alpha / s.alpha
        x_t = x
        for _ in range(iterations):
            estimate = denoise(x_t, t)
            if t.alpha == 0:
                # x_t is ε̂ itself, which says nothing; so does x̂ of x_s and x_t, which does
                x_t = (t.sigma / s.sigma) * (x - s.alpha * estimate.mean)
            else:
                x_t = ratio * x + (t.sigma - ratio * s.sigma) * estimate.epsilon
        x = x_t
    return x
