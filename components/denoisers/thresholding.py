"""Dynamic thresholding of x̂, as a denoiser."""

from typing import Any

import torch

from ..schedules import over
from .denoiser import DenoiserWrapper
from .prediction import Estimate

__all__ = ["Thresholded"]


class Thresholded(DenoiserWrapper):
    """Dynamic thresholding as a denoiser, so that every sampler can use it: x̂ → clamp(x̂, -s, s)/s.

    s is the quantile of |x̂| over one example, but at least 1: large guidance scales then saturate no pixels. It stands
    in the place of `clip`, in `clipped` only: a loss is of x̂ as it is. Saharia 2022, 2205.11487, section 2.3.

    Arguments:
        denoiser: of x in [-1, 1]; to threshold a guided one, Thresholded(Guided(…)).
        quantile: in (0, 1].
    Raises ValueError for another quantile.
    """

    def __init__(self, denoiser: Any, quantile: float = 0.995) -> None:
        super().__init__(denoiser)
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1]; got {quantile}")
        self.quantile = quantile

    def bounded(self, estimate: Estimate) -> Estimate:
        """Return the estimate with x̂ brought into [-1, 1]; ε̂ and the others follow."""
        x = estimate.mean
        # one example at a time: torch.quantile takes at most 16 million numbers
        largest = torch.stack([example.quantile(self.quantile) for example in x.abs().flatten(1)]).clamp(min=1)
        bound = over(largest, x)
        return estimate.with_mean(torch.minimum(torch.maximum(x, -bound), bound) / bound)  # type: ignore[operator,arg-type]
