"""Adversarial losses as pairs, and gradient penalties: pure functions of logits, in nats, one value an example.

D is the logit: high for real, low for fake. Logits are (B,) or patches (B, 1, h, w), whose losses are averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import wide

__all__ = ["AdversarialLoss", "hinge", "non_saturating", "relativistic", "squared_gradient"]


@dataclass(frozen=True)
class AdversarialLoss:
    """What the discriminator minimizes of (D(real), D(fake)), and the generator of (D(fake), D(real)).

    Both take and return elementwise values. Where `relativistic`, the generator's loss needs D(real) too.
    """

    name: str
    of_discriminator: Callable[[Tensor, Tensor], Tensor]
    of_generator: Callable[[Tensor, Tensor], Tensor]
    relativistic: bool = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss: (B,)."""
        return _per_example(self.of_discriminator(wide(real), wide(fake)))

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """The generator's loss: (B,). Raises ValueError if the loss is relativistic and `real` is None."""
        if real is None and self.relativistic:
            raise ValueError(f"the {self.name} loss compares fake with real: the generator's turn needs real, too")
        return _per_example(self.of_generator(wide(fake), fake if real is None else wide(real)))


def _per_example(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values


non_saturating = AdversarialLoss(
    "non_saturating",
    lambda real, fake: F.softplus(-real) + F.softplus(fake),
    lambda fake, real: F.softplus(-fake),
)
"""Goodfellow 2014, 1406.2661: -log D(x) - log(1 - D(G(z))) against -log D(G(z))."""

hinge = AdversarialLoss(
    "hinge",
    lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
    lambda fake, real: -fake,
)
"""Lim & Ye 2017, 1705.02894: on the logits themselves, no tanh before."""

relativistic = AdversarialLoss(
    "relativistic",
    lambda real, fake: F.softplus(fake - real),
    lambda fake, real: F.softplus(real - fake),
    relativistic=True,
)
"""Jolicoeur-Martineau 2018, 1807.00734; with R1 and R2, R3GAN's (Huang 2024, 2501.05441)."""


def squared_gradient(logits: Tensor, x: Tensor) -> Tensor:
    """‖∇_x D(x)‖² (B,), differentiable: γ/2 times its mean is R1 on real x, R2 on fake.

    Arguments: logits = D(x), (B,) or patches, summed over patches; x (B, *event), which requires a gradient.
    Mescheder 2018, 1801.04406, eq. 9.
    """
    if not x.requires_grad:
        raise ValueError("x must require a gradient, and logits must have been computed from it")
    (gradient,) = torch.autograd.grad(wide(logits).sum(), x, create_graph=True)
    return wide(gradient).square().flatten(1).sum(1)
