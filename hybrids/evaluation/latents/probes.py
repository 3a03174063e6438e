"""What latents tell: a linear probe of them, and how many of them vary."""

from typing import Any

import torch
from torch import Tensor

from components.distributions import Delta

from ...models.model import NotOffered, offered
from ...modes import evaluating
from .asking import ROWS

__all__ = ["active_units", "probe"]


def probe(z: Tensor, y: Tensor, z_held_out: Tensor, y_held_out: Tensor) -> float:
    """Return how well a linear model of latents z (N, d) tells y, on held-out ones: accuracy of labels, R² of factors.

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


def active_units(model: Any, x: Tensor, least: float = 0.01) -> int:
    """Return how many latent dimensions have Var_x(E_q[z|x]) > least over x (N, *event). Burda 2015, 1509.00519, § 5.

    Of the model's learned `posterior`; of several levels all together, each level's mean given the means above.
    Raises NotOffered for a model without one: diffusions, GANs, codes. Raises ValueError for fewer than two x.
    """
    if len(x) < 2:
        raise ValueError(f"x must be at least two examples; got {len(x)}")
    ask = offered(model, "posterior")
    means = []
    with evaluating(model), torch.no_grad():
        for some in x.split(ROWS):
            q = ask(some)
            levels = q if isinstance(q, tuple) else (q,)
            if any(isinstance(level, Delta) for level in levels):
                raise NotOffered(f"the posterior of this {type(model).__name__} is a point, of codes, not q(z|x)")
            means.append(torch.cat([level.mean.flatten(1) for level in levels], 1))
    return int((torch.cat(means).double().var(0) > least).sum())
