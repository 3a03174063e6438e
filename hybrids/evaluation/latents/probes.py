"""Information in latents: linear probes, and the number of active units."""

from typing import Any

import torch
from torch import Tensor

from components.distributions import Delta

from ...models.model import NotOffered, offered
from ...modes import evaluating
from .encoding import ROWS

__all__ = ["active_units", "linear_probe"]


def linear_probe(z: Tensor, y: Tensor, z_held_out: Tensor, y_held_out: Tensor) -> float:
    """Return the held-out accuracy (labels) or R² (factors) of a linear model that predicts y from latents z.

    Integers y (N,) are labels, predicted by logistic regression; real numbers y (N,) or (N, F) are factors, predicted
    by ridge regression (weight 1), R² being averaged over them. Latents are standardized by the mean and standard
    deviation of the training part. Alain & Bengio 2016, 1610.01644.
    Arguments:
        z, y: latents (N, d) and targets to train on.
        z_held_out, y_held_out: latents (M, d) and targets to score.
    Raises ValueError for shapes that do not match, latents that are not finite, and labels of one class only.
    """
    if z.ndim != 2 or z_held_out.ndim != 2 or z.shape[1] != z_held_out.shape[1]:
        raise ValueError(f"z must be (N, d) and (M, d); got shapes {tuple(z.shape)} and {tuple(z_held_out.shape)}")
    least = 2 if y.is_floating_point() else 1
    if len(z) != len(y) or len(z_held_out) != len(y_held_out) or len(y_held_out) < least:
        raise ValueError(
            f"y must have as many examples as z, and at least {least} held out; got {len(y)} for {len(z)}, and held "
            f"out {len(y_held_out)} for {len(z_held_out)}"
        )
    if not (z.isfinite().all() and z_held_out.isfinite().all()):
        raise ValueError("z must be finite; got NaN or infinite latents")
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if y.is_floating_point():
        regression: Any = Ridge(alpha=1.0)
    elif y.ndim != 1 or len(y.unique()) < 2:
        raise ValueError(f"labels y must be (N,) with at least two classes; got shape {tuple(y.shape)}")
    else:
        regression = LogisticRegression(max_iter=1000)
    fitted = make_pipeline(StandardScaler(), regression).fit(z.double().cpu().numpy(), y.cpu().numpy())
    return float(fitted.score(z_held_out.double().cpu().numpy(), y_held_out.cpu().numpy()))


def active_units(model: Any, x: Tensor, least: float = 0.01) -> int:
    """Return the number of latent dimensions with Var_x(E_q[z|x]) > least over x (N, *event).

    q is the model's learned `posterior`; the dimensions of several levels are counted together, the mean of each level
    being given the means above it. Burda 2015, 1509.00519, section 5. Raises NotOffered for a model without a learned
    posterior (diffusion models, GANs, codes), ValueError for fewer than two examples.
    """
    if len(x) < 2:
        raise ValueError(f"x must have at least two examples; got {len(x)}")
    posterior = offered(model, "posterior")
    means = []
    with evaluating(model), torch.no_grad():
        for some in x.split(ROWS):
            q = posterior(some)
            levels = q if isinstance(q, tuple) else (q,)
            if any(isinstance(level, Delta) for level in levels):
                raise NotOffered(f"the posterior of this {type(model).__name__} is a point (codes), no density q(z|x)")
            means.append(torch.cat([level.mean.flatten(1) for level in levels], 1))
    return int((torch.cat(means).double().var(0) > least).sum())
