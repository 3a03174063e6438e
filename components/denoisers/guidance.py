"""Classifier-free guidance, as a denoiser."""

import torch
from torch import Tensor, nn

from ..conditions import Condition, masked
from ..precision import widest
from ..schedules import Time, over
from .denoiser import Denoiser, Estimate

__all__ = ["Guided"]


class Guided(Denoiser):
    """Classifier-free guidance as a denoiser, so that every sampler can use it: ε̂ = ε_∅ + s (ε_c - ε_∅).

    s = guidance_scale as in diffusers: 1 is the conditional model, 0 the unconditional one, above 1 it extrapolates
    (w = s - 1 in Ho & Salimans 2022, 2207.12598, eq. 6). Both predictions come from one forward of twice the batch.
    Arguments: denoiser, trained with dropped conditions; guidance_scale; interval, the times in which it guides, 1
    elsewhere (Kynkäänniemi 2024, 2404.07724); rescale in [0, 1], how far x̂ is brought back to the spread of the
    conditional x̂ (Lin 2023, 2305.08891, section 3.4), for events of two elements or more: a call with others raises
    ValueError. A learned variance is the conditional model's; an earlier estimate of x is shown to both.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        guidance_scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
    ) -> None:
        nn.Module.__init__(self)
        if not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"interval must be (low, high) with 0 <= low < high <= 1; got {interval}")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1]; got {rescale}")
        self.denoiser, self.guidance_scale, self.interval, self.rescale = denoiser, guidance_scale, interval, rescale
        self.schedule, self.prediction = denoiser.schedule, denoiser.prediction
        self.variance, self.clip, self.sigma_data = denoiser.variance, denoiser.clip, denoiser.sigma_data
        self.self_condition = denoiser.self_condition

    def forward(self, x_t: Tensor, t: Time, cond: Condition | None = None, **given: Tensor | None) -> Estimate:
        """The guided p(x|x_t); without cond, the unconditional model's."""
        if self.rescale and x_t[:1].numel() == 1:
            raise ValueError(
                f"rescale must be 0 for events of one element, which have no spread; "
                f"got rescale {self.rescale} for x_t of shape {tuple(x_t.shape)}"
            )
        t = t.to(x_t.device) if isinstance(t, Tensor) else widest(t, x_t.device)
        if cond is None or self.guidance_scale == 1:
            return self.denoiser(x_t, t, cond, **given)
        twice = {name: None if value is None else torch.cat([value, value]) for name, value in given.items()}
        null_too = _with_null(cond, self.denoiser)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]) if t.ndim else t, null_too, **twice)
        conditional, null = both.output.chunk(2)
        low, high = self.interval
        scale = torch.ones_like(widest(t)).masked_fill((t >= low) & (t <= high), self.guidance_scale)
        # x̂, ε̂, v̂ are affine in the output with one slope, so guiding the output guides each of them alike.
        guided = null + over(scale, null) * (conditional - null)
        learned = None if both.interpolation is None else both.interpolation.chunk(2)[0]
        alpha, sigma = self.schedule.alpha_sigma(t)
        estimate = Estimate(x_t, alpha, sigma, both.prediction, guided, both.sigma_data, learned)
        if not self.rescale:
            return estimate
        plain = Estimate(x_t, alpha, sigma, both.prediction, conditional, both.sigma_data).mean
        spread = plain.flatten(1).std(1) / estimate.mean.flatten(1).std(1).clamp(min=1e-12)
        rescaled = estimate.mean * over(self.rescale * spread + 1 - self.rescale, estimate.mean)
        return Estimate(x_t, alpha, sigma, "sample", rescaled, both.sigma_data, learned)


def _with_null(cond: Condition, denoiser: Denoiser) -> Condition:
    """cond, then as many null conditions."""
    if isinstance(cond, tuple):
        tokens, mask = masked(cond)
        return torch.cat([tokens, tokens]), torch.cat([mask, torch.zeros_like(mask)])
    # A backbone may be wrapped: the label's table is somewhere in it.
    found = (getattr(module, "num_classes", None) for module in denoiser.backbone.modules())
    num_classes = next((number for number in found if number is not None), None)
    if num_classes is None:
        raise ValueError(f"{type(denoiser.backbone).__name__} has no num_classes: it takes no labels to guide by")
    return torch.cat([cond, torch.full_like(cond, num_classes)])
