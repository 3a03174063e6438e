"""Classifier-free guidance, as a denoiser."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditions import Condition, masked
from ..precision import widest
from ..schedules import NoiseLevel, Time, over
from .denoiser import DenoiserWrapper
from .prediction import Estimate

__all__ = ["Guided"]


class Guided(DenoiserWrapper):
    """Classifier-free guidance as a denoiser, so that every sampler can use it: ε̂ = ε_∅ + s (ε_c - ε_∅).

    Both predictions come from one forward of twice the batch; where no example is within `interval`, the conditional
    one alone, of the batch itself. A learned variance is the conditional model's; an earlier estimate of x is given to
    both. Ho & Salimans 2022, 2207.12598, eq. 6.

    Arguments:
        denoiser: trained with dropped conditions.
        guidance_scale: s as in diffusers: 1 is the conditional model, 0 the unconditional one, above 1 it extrapolates
            (w = s - 1 in Ho & Salimans).
        interval: the times in which it guides, both ends included; s = 1 elsewhere (Kynkäänniemi 2024, 2404.07724).
            To decide, each call waits for t, if that is on another device; with (0, 1) none does.
        rescale: φ in [0, 1] of x̂ → (φ std(x̂_c)/std(x̂) + 1 - φ) x̂, the standard deviations over one example (Lin 2023,
            2305.08891, section 3.4, eq. 15 and 16). There, and in diffusers' `guidance_rescale`, what is rescaled is
            the network's output, whatever it predicts; here it is x̂, so that every prediction is rescaled alike. For
            events of two elements or more: a call with others raises ValueError.
    Raises ValueError for an interval or rescale out of range; when called, for labels with a backbone that takes none.
    """

    def __init__(
        self,
        denoiser: Any,
        guidance_scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser)
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"interval must be (low, high) with 0 <= low < high <= 1; got {interval}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1]; got {rescale}")
        self.guidance_scale, self.interval, self.rescale = guidance_scale, interval, rescale

    def forward(
        self,
        x_t: Tensor,
        t: Time | NoiseLevel,
        cond: Condition | None = None,
        hidden: Sequence[str] = (),
        **given: Tensor | None,
    ) -> Estimate:
        """Return the guided p(x|x_t); without cond, the unconditional model's. Hidden features are of cond alone."""
        if self.rescale and x_t[:1].numel() == 1:
            raise ValueError(
                f"rescale must be 0 for events of one element, which have no spread; "
                f"got rescale {self.rescale} for x_t of shape {tuple(x_t.shape)}"
            )
        level = t if isinstance(t, NoiseLevel) else self.schedule.level(t, x_t)
        if cond is None or self.guidance_scale == 1:
            return self.denoiser(x_t, level, cond, hidden, **given)
        low, high = self.interval
        within = (level.t >= low) & (level.t <= high)
        if self.interval != (0.0, 1.0) and not within.any():
            return self.denoiser(x_t, level, cond, hidden, **given)
        twice = {name: None if value is None else torch.cat([value, value]) for name, value in given.items()}
        both_levels = NoiseLevel(*(_twice(c) for c in level))  # type: ignore[arg-type]
        both = self.denoiser(torch.cat([x_t, x_t]), both_levels, _with_null(cond, self.denoiser), hidden, **twice)
        conditional, null = both.output.chunk(2)
        scale = torch.ones_like(widest(level.t)).masked_fill(within, self.guidance_scale)
        # x̂, ε̂, v̂ are affine in the output with one slope, so guiding the output guides each of them alike.
        guided = null + over(scale, null) * (conditional - null)
        learned = None if both.interpolation is None else both.interpolation.chunk(2)[0]
        features = {name: feature.chunk(2)[0] for name, feature in both.hidden.items()}
        estimate = Estimate(both.prediction, x_t, guided, level, learned, features)
        if not self.rescale:
            return estimate
        plain = Estimate(both.prediction, x_t, conditional, level).mean
        spread = plain.flatten(1).std(1) / estimate.mean.flatten(1).std(1).clamp(min=1e-12)
        return estimate.with_mean(estimate.mean * over(self.rescale * spread + 1 - self.rescale, estimate.mean))


def _twice(coefficient: Tensor | float) -> Tensor | float:
    """Return a coefficient (B,) for twice the batch; one for all stays as it is."""
    if isinstance(coefficient, Tensor) and coefficient.ndim:
        return torch.cat([coefficient, coefficient])
    return coefficient


def _with_null(cond: Condition, denoiser: Any) -> Condition:
    """Return cond, then as many null conditions."""
    if isinstance(cond, tuple):
        tokens, mask = masked(cond)
        return torch.cat([tokens, tokens]), torch.cat([mask, torch.zeros_like(mask)])
    # A backbone may be wrapped: the label's table is somewhere in it.
    modules = denoiser.modules() if hasattr(denoiser, "modules") else (denoiser,)
    tables = (getattr(module, "num_classes", None) for module in modules)
    num_classes = next((number for number in tables if number is not None), None)
    if num_classes is None:
        name = type(getattr(denoiser, "backbone", denoiser)).__name__
        raise ValueError(f"{name} has no num_classes: it takes no labels to guide by")
    return torch.cat([cond, torch.full_like(cond, num_classes)])
