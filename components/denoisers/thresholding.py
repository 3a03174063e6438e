"""Dynamic thresholding of x̂, as a denoiser."""

import torch
from torch import Tensor, nn

from ..schedules import Time, over
from .denoiser import Denoiser, Estimate

__all__ = ["Thresholded"]


class Thresholded(Denoiser):
    """Dynamic thresholding as a denoiser, so that every sampler can use it: x̂ → clamp(x̂, -s, s)/s.

    s is the quantile of |x̂| over one example, but at least 1: large guidance scales then saturate no pixels. It stands
    in the place of `clip`, in `clipped` only: a loss sees x̂ as it is. Saharia 2022, 2205.11487, section 2.3.
    Arguments: denoiser of x in [-1, 1]; if it is to be guided, Thresholded(Guided(…)); quantile in (0, 1].
    """

    def __init__(self, denoiser: Denoiser, quantile: float = 0.995) -> None:
        nn.Module.__init__(self)
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1]; got {quantile}")
        self.denoiser, self.quantile = denoiser, quantile
        self.schedule, self.prediction = denoiser.schedule, denoiser.prediction
        self.variance, self.clip, self.sigma_data = denoiser.variance, None, denoiser.sigma_data
        self.self_condition = denoiser.self_condition

    def forward(self, x_t: Tensor, t: Time, cond: Tensor | None = None, **given: Tensor | None) -> Estimate:
        """The denoiser's own p(x|x_t)."""
        return self.denoiser(x_t, t, cond, **given)

    def clipped(self, x_t: Tensor, t: Time, cond: Tensor | None = None, **given: Tensor | None) -> Estimate:
        """The estimate with x̂ brought into [-1, 1]; ε̂ and v̂ follow."""
        estimate = self(x_t, t, cond, **given)
        x = estimate.mean
        # one example at a time: torch.quantile takes at most 16 million numbers
        largest = torch.stack([example.quantile(self.quantile) for example in x.abs().flatten(1)]).clamp(min=1)
        bound = over(largest, x)
        kept = torch.minimum(torch.maximum(x, -bound), bound) / bound
        alpha, sigma = self.schedule.alpha_sigma(t)
        return Estimate(x_t, alpha, sigma, "sample", kept, estimate.sigma_data, estimate.interpolation)
