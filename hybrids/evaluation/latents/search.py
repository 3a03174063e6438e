"""Latents of x under any model: by its encoder, or by optimization of the noise of a model without one."""

import math
from typing import Any

import torch
from torch import Tensor

from ...models.model import offered
from ...modes import untouched
from .encoding import ROWS, Latents, decode, encode, flat, is_noise, shaped

__all__ = ["invert", "latents_of"]


def invert(model: Any, x: Tensor, steps: int = 200, restarts: int = 4, lr: float = 0.1, seed: int = 0) -> Latents:
    """Return latents z of x (B, *event) under a model with samples decode(noise): argmin ‖decode(z) - x‖², by Adam.

    The search starts from `restarts` draws of N(0, I) for each example, takes `steps` steps with a learning rate that
    falls linearly to 0, and returns the best z of all steps. z is projected onto the ball of radius √d + 3, which has
    nearly all the mass of N(0, I). Zhu 2016, 1609.03552; Lipton & Tripathi 2017, 1702.04782. For AdversarialDiffusion
    the noise of all steps is optimized; that of the last step alone has as many numbers as x, so a small error shows
    that the model can generate x, not that z is a compact code of it. Model and random state are restored.

    Arguments:
        steps, lr: of Adam.
        restarts: starting points of each example, all in one batch.
        seed: of the starting points.
    Raises NotOffered for a model without `noise` or `decode`, ValueError for steps or restarts below 1 and lr that is
    not above 0.
    """
    offered(model, "decode"), offered(model, "noise")
    if steps < 1 or restarts < 1 or not lr > 0:
        raise ValueError(f"steps and restarts must be at least 1 and lr above 0; got {steps}, {restarts} and {lr}")
    generator = torch.Generator().manual_seed(seed)
    with untouched(model), torch.enable_grad():
        like = model.noise(1)
        rows = max(1, ROWS // restarts)
        z = torch.cat([_invert(model, some, like, steps, restarts, lr, generator) for some in x.split(rows)])
    return shaped(z, like)


def _invert(
    model: Any, x: Tensor, like: Latents, steps: int, restarts: int, lr: float, generator: torch.Generator
) -> Tensor:
    """Return the latents z (B, d) of x by `invert`'s search."""
    d = flat(like).shape[1]
    target = x.detach().repeat_interleave(restarts, 0)
    z = torch.randn(len(target), d, generator=generator).to(x).requires_grad_()
    adam = torch.optim.Adam([z], lr=lr)
    best, least = z.detach().clone(), x.new_full((len(target),), math.inf)
    for i in range(steps + 1):
        error = (decode(model, shaped(z, like)) - target).square().flatten(1).sum(1)
        better = error.detach() < least
        best[better], least = z.detach()[better], torch.where(better, error.detach(), least)
        if i == steps:
            break
        # autograd.grad, not backward(), which would fill the gradients of the model's parameters.
        (z.grad,) = torch.autograd.grad(error.sum(), z)
        adam.param_groups[0]["lr"] = lr * (1 - i / steps)
        adam.step()
        with torch.no_grad():
            z.mul_(((math.sqrt(d) + 3) / z.norm(dim=1, keepdim=True)).clamp(max=1))
    chosen = least.view(-1, restarts).argmin(1)
    return best.view(-1, restarts, d)[torch.arange(len(x)), chosen]


def latents_of(model: Any, x: Tensor, **search: Any) -> Latents:
    """Return the latents of x: by `encode`, or by `invert` for a model whose latents are noise without an encoder.

    Arguments:
        search: settings of `invert`.
    Raises NotOffered for a model with neither.
    """
    if hasattr(model, "encode") or not is_noise(model):
        return encode(model, x)
    return invert(model, x, **search)
