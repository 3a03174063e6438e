"""What a model's latents are good for: reconstructions, linear probes, interpolations, active units."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...models import GAN, VAE, AdversarialDiffusion, Autoencoder, Diffusion, HierarchicalVAE, LatentModel
from ...models.hierarchical import DiffusionLadder
from .search import decode, encode, invert

__all__ = [
    "active_units",
    "decode",
    "encode",
    "evenness",
    "interpolate",
    "interpolations",
    "invert",
    "latents",
    "probe",
    "reconstruct",
    "reconstruction",
    "smoothness",
    "spherical",
]


def latents(model: nn.Module, x: Tensor, **inversion: Any) -> Tensor:
    """The latents (B, d) of x: `encode`, or, where the model has no encoder, `invert` with such settings."""
    z = encode(model, x)
    return invert(model, x, **inversion) if z is None else z


def reconstruct(model: nn.Module, x: Tensor, **inversion: Any) -> Tensor:
    """x (B, *event) by way of its `latents`: decode(latents(x)), whatever the model is."""
    with torch.no_grad():
        return decode(model, latents(model, x, **inversion))


def reconstruction(model: nn.Module, x: Tensor, **inversion: Any) -> float:
    """Root mean square error of `reconstruct` over all of x (B, *event), in its units: of images, [-1, 1]."""
    return (reconstruct(model, x, **inversion).double() - x.double()).square().mean().sqrt().item()


# Paths between latents.


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """sin((1 - s) θ)/sin θ a + sin(s θ)/sin θ b, θ the angle between a and b (B, d), s (S,): (B, S, d).

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


def interpolate(model: nn.Module, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
    """`steps` latents (B, steps, d) from a to b (B, d), both included.

    On an arc for noise, of diffusions, GANs and AdversarialDiffusion: N(0, I) lies near the sphere of radius √d, and
    the middle of a chord, of length √(d/2), is where the network has never been. In a straight line for means of
    encoders, which are no draws of the prior and lie on no sphere. Raises ValueError for steps below 2.
    """
    if steps < 2 or a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"a and b must be (B, d), and steps at least 2; got {tuple(a.shape)}, {tuple(b.shape)} and {steps}"
        )
    share = torch.linspace(0, 1, steps, device=a.device, dtype=torch.float64)
    if isinstance(model, GAN | AdversarialDiffusion | Diffusion):
        return spherical(a, b, share)
    return torch.lerp(a[:, None].double(), b[:, None].double(), share[None, :, None]).to(a)


@torch.no_grad()
def interpolations(model: nn.Module, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
    """The pictures (B, steps, *event) of `interpolate`."""
    path = interpolate(model, a, b, steps)
    return decode(model, path.flatten(0, 1)).unflatten(0, path.shape[:2])


def evenness(path: Tensor) -> Tensor:
    """The longest step of paths (B, S, F) over their mean step: (B,) float64 in [1, S - 1].

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
    model: nn.Module, a: Tensor, b: Tensor, features: Callable[[Tensor], Tensor] | None = None, steps: int = 16
) -> float:
    """The mean `evenness` of the paths between latents a and b (B, d), in a space of features.

    Arguments: features, images (N, *event) → (N, F); None: the numbers of x themselves.
    """
    pictures = interpolations(model, a, b, steps)
    seen = pictures.flatten(0, 1)
    seen = seen if features is None else features(seen)
    return evenness(seen.flatten(1).unflatten(0, pictures.shape[:2])).mean().item()


# What latents tell.


def probe(z: Tensor, y: Tensor, z_held_out: Tensor, y_held_out: Tensor) -> float:
    """How well a linear model of latents z (N, d) tells y, on held-out ones: accuracy of labels, R² of factors.

    Integers y (N,) are labels, for logistic regression; real numbers (N,) or (N, F) are factors, for ridge regression
    (weight 1), R² being their mean. Latents are standardized by the mean and standard deviation of the training part.
    Alain & Bengio 2016, 1610.01644. Raises ValueError for shapes that do not fit, latents that are not finite, and
    labels of one class only.
    """
    if z.ndim != 2 or z_held_out.ndim != 2 or z.shape[1] != z_held_out.shape[1]:
        raise ValueError(f"z must be (N, d) and (M, d); got shapes {tuple(z.shape)} and {tuple(z_held_out.shape)}")
    least = 2 if y.is_floating_point() else 1
    if len(z) != len(y) or len(z_held_out) != len(y_held_out) or len(y_held_out) < least:
        raise ValueError(
            f"y must be of as many examples as z, {least} held-out ones at least; got {len(y)} for {len(z)}, and held "
            f"out {len(y_held_out)} for {len(z_held_out)}"
        )
    if not (z.isfinite().all() and z_held_out.isfinite().all()):
        raise ValueError("z must be finite; got NaN or infinite latents")
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if y.is_floating_point():
        reader: Any = Ridge(alpha=1.0)
    elif y.ndim != 1 or len(y.unique()) < 2:
        raise ValueError(f"labels y must be (N,), of two classes at least; got shape {tuple(y.shape)}")
    else:
        reader = LogisticRegression(max_iter=1000)
    fitted = make_pipeline(StandardScaler(), reader).fit(z.double().cpu().numpy(), y.cpu().numpy())
    return float(fitted.score(z_held_out.double().cpu().numpy(), y_held_out.cpu().numpy()))


def active_units(model: nn.Module, x: Tensor, least: float = 0.01) -> int | None:
    """How many latent dimensions have Var_x(E_q[z|x]) > least over x (N, *event). Burda 2015, 1509.00519, section 5.

    Of the posterior of a VAE, an Autoencoder with a KL, the first stage of a LatentModel (as it made them, not
    normalized) and a HierarchicalVAE, where each level's mean is given the means above. None where there is no learned
    q(z|x): diffusions, GANs, codes. Raises ValueError for fewer than two x.
    """
    if len(x) < 2:
        raise ValueError(f"x must be at least two examples; got {len(x)}")
    if isinstance(model, LatentModel):
        return active_units(model.first, x, least)
    codes = isinstance(model, Autoencoder) and model.bottleneck is not None
    fixed = isinstance(model, HierarchicalVAE) and isinstance(model.ladder, DiffusionLadder)
    if codes or fixed or not isinstance(model, VAE | Autoencoder | HierarchicalVAE):
        return None
    z = encode(model, x)
    assert z is not None
    return int((z.double().var(0) > least).sum())
