"""Latents of x under any model: of its encoder, or, of noise without one, by a search along the gradient."""

import math
from typing import Any

import torch
from torch import Tensor

from ...models.model import offered
from ...modes import untouched
from .asking import ROWS, Latents, decode, encode, flat, is_noise, shaped

__all__ = ["invert", "latents", "reconstruct", "reconstruction"]


def invert(model: Any, x: Tensor, steps: int = 200, restarts: int = 4, lr: float = 0.1, seed: int = 0) -> Latents:
    """Return latents z of x (B, *event) under a model whose samples are decode(noise): min ‖decode(z) - x‖², by Adam.

    From `restarts` draws of N(0, I) for each example, all in one batch, `steps` steps with a learning rate that falls
    to 0 in a straight line; the best z on the way is kept. z stays in the ball of radius √d + 3, beyond which N(0, I),
    and so the model, has nothing. Zhu 2016, 1609.03552; Lipton & Tripathi 2017, 1702.04782. Of AdversarialDiffusion
    all the noise is found, of which the last step's alone is of as many numbers as x: it says how much of x the model
    can make, not that it has put x in order. The model and the random numbers stay as they are.
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
        found = torch.cat([_invert(model, some, like, steps, restarts, lr, generator) for some in x.split(rows)])
    return shaped(found, like)


def _invert(
    model: Any, x: Tensor, like: Latents, steps: int, restarts: int, lr: float, generator: torch.Generator
) -> Tensor:
    """Return z (B, d) of x."""
    d = flat(like).shape[1]
    wanted = x.detach().repeat_interleave(restarts, 0)
    z = torch.randn(len(wanted), d, generator=generator).to(x).requires_grad_()
    adam = torch.optim.Adam([z], lr=lr)
    best, least = z.detach().clone(), x.new_full((len(wanted),), math.inf)
    for i in range(steps + 1):
        error = (decode(model, shaped(z, like)) - wanted).square().flatten(1).sum(1)
        better = error.detach() < least
        best[better], least = z.detach()[better], torch.where(better, error.detach(), least)
        if i == steps:
            break
        # Not backward(): the model's parameters are to get no gradient.
        (z.grad,) = torch.autograd.grad(error.sum(), z)
        adam.param_groups[0]["lr"] = lr * (1 - i / steps)
        adam.step()
        with torch.no_grad():
            z.mul_(((math.sqrt(d) + 3) / z.norm(dim=1, keepdim=True)).clamp(max=1))
    chosen = least.view(-1, restarts).argmin(1)
    return best.view(-1, restarts, d)[torch.arange(len(x)), chosen]


def latents(model: Any, x: Tensor, **search: Any) -> Latents:
    """Return the latents of x: `encode`, or, of noise without an encoder, `invert` with such settings.

    Raises NotOffered for a model that offers neither.
    """
    if hasattr(model, "encode") or not is_noise(model):
        return encode(model, x)
    return invert(model, x, **search)


def reconstruct(model: Any, x: Tensor, **search: Any) -> Tensor:
    """Return x (B, *event) by way of its `latents`: decode(latents(x)), whatever the model is."""
    with torch.no_grad():
        return decode(model, latents(model, x, **search))


def reconstruction(model: Any, x: Tensor, **search: Any) -> float:
    """Return the root mean square error of `reconstruct` over all of x (B, *event), in the units of x."""
    return (reconstruct(model, x, **search).double() - x.double()).square().mean().sqrt().item()
