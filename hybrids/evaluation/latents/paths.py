"""Paths between the latents of two examples, and how evenly pictures change along them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .asking import Latents, decode, flat, is_noise, shaped

__all__ = ["evenness", "interpolate", "interpolations", "smoothness", "spherical"]


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return sin((1 - s) θ)/sin θ a + sin(s θ)/sin θ b, θ the angle between a and b (B, d), s (S,): (B, S, d).

    White 2016, 1609.04468, section 2.1. Where a and b are of one length, so is all between. Straight where they point
    the same way, or exactly against each other, where no arc is the one.
    """
    cosine = nn.functional.cosine_similarity(a.double(), b.double(), dim=1).clamp(-1, 1)
    angle, s = cosine.acos()[:, None], share.double()[None]
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - s, ((1 - s) * angle).sin() / sine)
    right = torch.where(straight, s, (s * angle).sin() / sine)
    return (left[..., None] * a[:, None].double() + right[..., None] * b[:, None].double()).to(a)


def interpolate(model: Any, a: Latents, b: Latents, steps: int = 8) -> Latents:
    """Return `steps` latents (B, steps, ...) from a to b (B, ...), both included; of a tuple each so.

    On an arc where latents are noise, of diffusions and GANs: N(0, I) lies near the sphere of radius √d, and the middle
    of a chord, of length √(d/2), is where the network has never been. In a straight line for means of encoders, which
    are no draws of the prior and lie on no sphere. Raises ValueError for steps below 2 and latents of other shapes.
    """
    start, end = flat(a), flat(b)
    if steps < 2 or start.shape != end.shape:
        raise ValueError(
            f"a and b must be of one shape, and steps at least 2; got {tuple(start.shape)}, {tuple(end.shape)} and "
            f"{steps}"
        )
    share = torch.linspace(0, 1, steps, device=start.device, dtype=torch.float64)
    if is_noise(model):
        path = spherical(start, end, share)
    else:
        path = torch.lerp(start[:, None].double(), end[:, None].double(), share[None, :, None]).to(start)
    found = shaped(path.flatten(0, 1), a)
    many = (len(start), steps)
    return tuple(z.unflatten(0, many) for z in found) if isinstance(found, tuple) else found.unflatten(0, many)


@torch.no_grad()
def interpolations(model: Any, a: Latents, b: Latents, steps: int = 8) -> Tensor:
    """Return the pictures (B, steps, *event) of `interpolate`."""
    path = interpolate(model, a, b, steps)
    each = tuple(z.flatten(0, 1) for z in path) if isinstance(path, tuple) else path.flatten(0, 1)
    return decode(model, each).unflatten(0, (-1, steps))


def evenness(path: Tensor) -> Tensor:
    """Return the longest step of paths (B, S, F) over their mean step: (B,) float64 in [1, S - 1].

    1 where every step is as long as the other, S - 1 where all happens in one: there the picture jumps. What perceptual
    path length (Karras 2018, 1812.04948, section 4.1) says of one small step, made free of units. A path that does not
    move at all shows no control, and counts as S - 1. Raises ValueError for fewer than three points.
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
    """Return the mean `evenness` of the paths between latents a and b, in a space of features.

    Arguments: features, images (N, *event) → (N, F); None: the numbers of x themselves.
    """
    pictures = interpolations(model, a, b, steps)
    seen = pictures.flatten(0, 1)
    seen = seen if features is None else features(seen)
    return evenness(seen.flatten(1).unflatten(0, pictures.shape[:2])).mean().item()
