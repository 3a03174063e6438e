"""Latents of x under any model, and what latents look like: encoders, DDIM backwards, or a search."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.samplers import Sampler, time_grid
from components.samplers import invert as inverted_chain

from ...models import GAN, VAE, AdversarialDiffusion, Autoencoder, Diffusion, HierarchicalVAE, LatentModel
from ...models.parts import picture
from ...modes import evaluating
from ..costs import untouched

__all__ = ["decode", "encode", "invert"]

ROWS = 512
"""Examples that go through a model at once."""


def encode(model: nn.Module, x: Tensor, steps: int | None = None, iterations: int = 1) -> Tensor | None:
    """The latents (B, d) of x (B, *event) that the model's own encoder gives, without noise; None where it has none.

    VAE and Autoencoder: the mean of q(z|x) (with codes, z before it is rounded). LatentModel: of q(w|x).
    HierarchicalVAE: the means of all levels from the top, each given the means above. Diffusion: the noise x_1 from
    which DDIM comes to x, by its inversion (Song 2020, 2010.02502, section 4.3). GAN and AdversarialDiffusion: None,
    see `invert`.
    Labels are not given: a conditional model is asked without.
    Arguments: steps and iterations, of a Diffusion's inversion: its own `sample_steps` by default, and see
    `components.samplers.invert`. Raises TypeError for another model.
    """
    if isinstance(model, GAN | AdversarialDiffusion):
        return None
    with evaluating(model), torch.no_grad():
        return torch.cat([_encode(model, some, steps, iterations).flatten(1) for some in x.split(ROWS)])


def _encode(model: nn.Module, x: Tensor, steps: int | None, iterations: int) -> Tensor:
    if isinstance(model, VAE):
        return model.encoder(x).mean
    if isinstance(model, Autoencoder):
        return model.encode(x).mean
    if isinstance(model, LatentModel):
        return model.encoded(x).mean
    if isinstance(model, HierarchicalVAE):
        seen = x if model.encoder is None else model.encoder(x)
        return _down(model, lambda level, above, start: level.posterior(above, seen).mean)[1]
    if isinstance(model, Diffusion):
        start = model.denoiser.schedule.marginal(x, 0.0).mean
        return inverted_chain(model.denoiser, start, _grid(model, steps), iterations=iterations)
    raise _unknown(model)


def decode(model: nn.Module, z: Tensor, steps: int | None = None) -> Tensor:
    """The pictures (B, *event) of latents z (B, d), without noise: the counterpart of `encode` and `invert`.

    The means of decoders; of a Diffusion, DDIM with η = 0 from x_1 = z, on the same grid; of a GAN, G(z).
    AdversarialDiffusion draws noise in every step: z holds it all, the noise x_1, then each step's z and, but for the
    last step, the noise of its x_s, each ~ N(0, I). Differentiable in z for these two.
    Raises TypeError for another model, ValueError for another d than the model's.
    """
    with evaluating(model):
        return torch.cat([_decode(model, some, steps) for some in z.split(ROWS)])


def _decode(model: nn.Module, z: Tensor, steps: int | None) -> Tensor:
    if isinstance(model, GAN):
        return picture(model.generator(_shaped(z, model.latent)))
    if isinstance(model, AdversarialDiffusion):
        return _denoised(model, z)
    with torch.no_grad():
        if isinstance(model, VAE):
            return picture(model.decoder(_shaped(z, _latent_shape(model))))
        if isinstance(model, Autoencoder):
            return picture(model.decode(_shaped(z, model.latent)))
        if isinstance(model, LatentModel):
            return model.decoded(_shaped(z, model.latent))
        if isinstance(model, HierarchicalVAE):
            return picture(model.decoder(_descended(model, z)))
        if isinstance(model, Diffusion):
            return model.from_noise(_shaped(z, model.shape), _grid(model, steps), sampler=Sampler("ddim"))
    raise _unknown(model)


def _down(model: HierarchicalVAE, choose: Callable[..., Tensor]) -> tuple[Any, Tensor]:
    """Down a ladder with z = choose(level, above, numbers chosen before): what the lowest level leaves, and all z."""
    above, chosen, start = None, [], 0
    for level in model.ladder:
        z = choose(level, above, start)
        above = level.below(above, z, None) if hasattr(level, "below") else z
        chosen.append(z.flatten(1))
        start += chosen[-1].shape[1]
    return above, torch.cat(chosen, 1)


def _descended(model: HierarchicalVAE, z: Tensor) -> Any:
    """What the lowest level leaves, each level's z being its part of z (B, d), in the shape that its prior has."""

    def choose(level: Any, above: Any, start: int) -> Tensor:
        shape = level.prior(above).mean.shape[1:]
        part = z[:, start : start + shape.numel()]
        if part.shape[1] != shape.numel():
            raise ValueError(f"z must be (B, d), of all levels; got shape {tuple(z.shape)}, which is too few")
        return part.unflatten(1, shape)

    left, chosen = _down(model, choose)
    if chosen.shape != z.shape:
        raise ValueError(f"z must be (B, {chosen.shape[1]}), of all levels; got shape {tuple(z.shape)}")
    return left


def _denoised(model: AdversarialDiffusion, z: Tensor) -> Tensor:
    """The chain of an AdversarialDiffusion on noise that is given."""
    if z.ndim != 2 or z.shape[1] != _noise_dimensions(model):
        raise ValueError(f"z must be (B, {_noise_dimensions(model)}); got shape {tuple(z.shape)}")
    d, k, steps = math.prod(model.shape), model.latent or 0, model.timesteps
    parts = iter(z.split([d] + [k, d] * (steps - 1) + [k], dim=1))
    x = model.denoiser.schedule.terminal_std * next(parts).unflatten(1, model.shape)
    for i in reversed(range(steps)):
        own = next(parts)
        p = model.denoiser.reverse(x, i / steps, (i + 1) / steps, None, **({"z": own} if k else {}))
        x = p.mean if i == 0 else p.mean + p.std * next(parts).unflatten(1, model.shape)  # type: ignore[union-attr]
    return x


def _noise_dimensions(model: nn.Module) -> int:
    """d of the noise that a GAN or an AdversarialDiffusion makes a sample of."""
    if isinstance(model, GAN):
        return math.prod(model.latent)
    if isinstance(model, AdversarialDiffusion):
        return model.timesteps * (math.prod(model.shape) + (model.latent or 0))
    raise TypeError(f"invert is for a GAN or an AdversarialDiffusion; use encode for a {type(model).__name__}")


def invert(model: nn.Module, x: Tensor, steps: int = 200, restarts: int = 4, lr: float = 0.1, seed: int = 0) -> Tensor:
    """Latents z (B, d) of x (B, *event) under a GAN or an AdversarialDiffusion: min ‖decode(z) - x‖², by Adam.

    From `restarts` draws of N(0, I) for each example, all in one batch, `steps` steps with a learning rate that falls
    to 0 in a straight line; the best z on the way is kept. z stays in the ball of radius √d + 3, beyond which N(0, I),
    and so the model, has nothing. Zhu 2016, 1609.03552; Lipton & Tripathi 2017, 1702.04782. Of AdversarialDiffusion
    all the noise is found, of which the last step's alone is of as many numbers as x: it says how much of x the model
    can make, not that it has put x in order. The model and the random numbers stay as they are.
    Raises TypeError for another model, ValueError for steps or restarts below 1 and lr that is not above 0.
    """
    d = _noise_dimensions(model)
    if steps < 1 or restarts < 1 or not lr > 0:
        raise ValueError(f"steps and restarts must be at least 1 and lr above 0; got {steps}, {restarts} and {lr}")
    generator = torch.Generator().manual_seed(seed)
    with untouched(model), torch.enable_grad():
        model.eval()
        rows = max(1, ROWS // restarts)
        return torch.cat([_invert(model, some, d, steps, restarts, lr, generator) for some in x.split(rows)])


def _invert(
    model: nn.Module, x: Tensor, d: int, steps: int, restarts: int, lr: float, generator: torch.Generator
) -> Tensor:
    wanted = x.detach().repeat_interleave(restarts, 0)
    z = torch.randn(len(wanted), d, generator=generator).to(x).requires_grad_()
    adam = torch.optim.Adam([z], lr=lr)
    best, least = z.detach().clone(), x.new_full((len(wanted),), math.inf)
    for i in range(steps + 1):
        error = (_decode(model, z, None) - wanted).square().flatten(1).sum(1)
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


def _grid(model: Diffusion, steps: int | None) -> Tensor:
    """The times that `Diffusion.sample` would go down."""
    steps = model.sample_steps if steps is None else steps
    return time_grid(steps, schedule=model.denoiser.schedule, timesteps=model.timesteps or 1000)


def _latent_shape(model: VAE) -> tuple[int, ...]:
    """The shape of one z, as encoder or prior says."""
    found = getattr(model.encoder, "latent", None)
    if found is None:
        found = getattr(model.prior, "shape", None)
    if found is None:
        raise TypeError(
            f"the latent's shape is unknown: {type(model.encoder).__name__} has no latent, nor has the prior"
        )
    return (found,) if isinstance(found, int) else tuple(found)


def _shaped(z: Tensor, shape: tuple[int, ...]) -> Tensor:
    if z.ndim != 2 or z.shape[1] != math.prod(shape):
        raise ValueError(f"z must be (B, {math.prod(shape)}), latents {tuple(shape)} flat; got shape {tuple(z.shape)}")
    return z.unflatten(1, shape)


def _unknown(model: nn.Module) -> TypeError:
    return TypeError(f"model must be one of hybrids.models, whose latents are known; got a {type(model).__name__}")
