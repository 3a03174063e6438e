"""Interpolation between the latents of two examples, and the evenness of the change along the path."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .encoding import Latents, decode, flat, is_noise, shaped

__all__ = ["evenness", "interpolate", "interpolations", "smoothness", "spherical"]


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return the spherical interpolation sin((1 - s) θ)/sin θ a + sin(s θ)/sin θ b: (B, S, d).

    θ is the angle between a and b (B, d), s = share (S,). Where a and b have the same norm, so has every point between.
    The interpolation is linear where they are parallel or antiparallel, where sin θ = 0. White 2016, 1609.04468,
    section 2.1.
    """
    cosine = nn.functional.cosine_similarity(a.double(), b.double(), dim=1).clamp(-1, 1)
    angle, s = cosine.acos()[:, None], share.double()[None]
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - s, ((1 - s) * angle).sin() / sine)
    right = torch.where(straight, s, (s * angle).sin() / sine)
    return (left[..., None] * a[:, None].double() + right[..., None] * b[:, None].double()).to(a)


def interpolate(model: Any, a: Latents, b: Latents, steps: int = 8) -> Latents:
    """Return `steps` latents (B, steps, ...) from a to b (B, ...), both included; for a tuple each of its parts so.

    Noise, the latents of diffusion models and GANs, is interpolated on an arc: draws of N(0, I) lie near the sphere of
    radius √d, while the middle of a chord has norm √(d/2), for which the network was not trained. Means of encoders are
    not draws of the prior and are interpolated linearly. Raises ValueError for steps below 2 and for a and b of
    different shapes.
    """
    start, end = flat(a), flat(b)
    if steps < 2 or start.shape != end.shape:
        raise ValueError(
            f"a and b must have the same shape, and steps be at least 2; got {tuple(start.shape)}, {tuple(end.shape)} "
            f"and {steps}"
        )
    share = torch.linspace(0, 1, steps, device=start.device, dtype=torch.float64)
    if is_noise(model):
        path = spherical(start, end, share)
    else:
        path = torch.lerp(start[:, None].double(), end[:, None].double(), share[None, :, None]).to(start)
    points = shaped(path.flatten(0, 1), a)
    sizes = (len(start), steps)
    return tuple(z.unflatten(0, sizes) for z in points) if isinstance(points, tuple) else points.unflatten(0, sizes)


@torch.no_grad()
def interpolations(model: Any, a: Latents, b: Latents, steps: int = 8) -> Tensor:
    """Return the examples decoded from `interpolate`: (B, steps, *event)."""
    path = interpolate(model, a, b, steps)
    z = tuple(part.flatten(0, 1) for part in path) if isinstance(path, tuple) else path.flatten(0, 1)
    return decode(model, z).unflatten(0, (-1, steps))


def evenness(path: Tensor) -> Tensor:
    """Return the longest step of paths (B, S, F) over their mean step: (B,) float64 in [1, S - 1].

    1 where all steps are equally long, S - 1 where the whole change is in one step. This is the perceptual path length
    (Karras 2018, 1812.04948, section 4.1) of a whole path, without units. A constant path counts as S - 1: its latents
    control nothing. Raises ValueError for fewer than three points.
    """
    if path.ndim != 3 or path.shape[1] < 3:
        raise ValueError(f"path must be (B, S, F) with S at least 3; got shape {tuple(path.shape)}")
    path = path.double()
    lengths = path.diff(dim=1).norm(dim=2)
    still = lengths.sum(1) <= 1e-6 * path.norm(dim=2).amax(1)
    return torch.where(still, float(lengths.shape[1]), lengths.amax(1) / torch.where(still, 1.0, lengths.mean(1)))


def smoothness(
    model: Any, a: Latents, b: Latents, features: Callable[[Tensor], Tensor] | None = None, steps: int = 16
) -> float:
    """Return the mean `evenness` of the paths between latents a and b, in a feature space.

    Arguments:
        features: images (N, *event) → (N, F); None is the identity.
    """
    images = interpolations(model, a, b, steps)
    flat_images = images.flatten(0, 1)
    embeddings = flat_images if features is None else features(flat_images)
    return evenness(embeddings.flatten(1).unflatten(0, images.shape[:2])).mean().item()
