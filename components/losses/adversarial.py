"""Adversarial losses in pairs, and gradient penalties: pure functions of logits, one value in nats per example.

D is the logit: high for real, low for fake. Logits are (B,) or patches (B, 1, h, w), whose losses are averaged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import wide

__all__ = [
    "AdversarialLoss",
    "gradient_penalty",
    "hinge",
    "least_squares",
    "minimax",
    "non_saturating",
    "relativistic",
    "squared_gradient",
    "wasserstein",
]


@dataclass(frozen=True)
class AdversarialLoss:
    """The discriminator's loss of (D(real), D(fake)) and the generator's of (D(fake), D(real)).

    Arguments:
        name: for the error messages.
        of_discriminator, of_generator: both return elementwise values.
        relativistic: the generator's loss needs D(real), too.
    """

    name: str
    of_discriminator: Callable[[Tensor, Tensor], Tensor]
    of_generator: Callable[[Tensor, Tensor], Tensor]
    relativistic: bool = False

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss (B,), averaged over patches.

        Arguments:
            real, fake: logits (B,) or (B, 1, h, w).
        Raises: ValueError unless both have one shape.
        """
        _check_pair(real, fake)
        return _per_example(self.of_discriminator(wide(real), wide(fake)))

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the generator's loss (B,), averaged over patches.

        Arguments:
            fake: logits (B,) or (B, 1, h, w).
            real: the same; ignored unless the loss is relativistic.
        Raises: ValueError for a relativistic loss without real, or with one of another shape.
        """
        if real is None and self.relativistic:
            raise ValueError(f"the {self.name} loss compares fake with real: pass real to the generator's loss, too")
        if real is not None and self.relativistic:
            _check_pair(real, fake)
        return _per_example(self.of_generator(wide(fake), fake if real is None else wide(real)))


non_saturating = AdversarialLoss(
    "non_saturating",
    lambda real, fake: F.softplus(-real) + F.softplus(fake),
    lambda fake, real: F.softplus(-fake),
)
"""Goodfellow 2014, 1406.2661: -log D(x) - log(1 - D(G(z))) against -log D(G(z))."""

minimax = AdversarialLoss(
    "minimax",
    lambda real, fake: F.softplus(-real) + F.softplus(fake),
    lambda fake, real: -F.softplus(fake),
)
"""Goodfellow 2014, 1406.2661, eq. 1: log D(x) + log(1 - D(G(z))) for both; G's gradient vanishes where D is sure."""

least_squares = AdversarialLoss(
    "least_squares",
    lambda real, fake: 0.5 * ((real - 1).square() + fake.square()),
    lambda fake, real: 0.5 * (fake - 1).square(),
)
"""Mao 2016, 1611.04076, eq. 9: the targets of the logits are 1 on real and 0 on fake; for G it is 1 on fake."""

wasserstein = AdversarialLoss("wasserstein", lambda real, fake: fake - real, lambda fake, real: -fake)
"""Arjovsky 2017, 1701.07875: for a 1-Lipschitz critic, as `gradient_penalty` makes it; no logits, no probabilities."""

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
    """Return ‖∇_x D(x)‖² (B,), differentiable: γ/2 times its mean is R1 on real x, R2 on fake.

    Mescheder 2018, arXiv 1801.04406, eq. 9.

    Arguments:
        logits: D(x), (B,) or patches, which are summed.
        x: (B, *event), which requires a gradient.
    Raises: ValueError for x that requires no gradient.
    """
    return _gradient(logits, x).square().sum(1)


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Return (‖∇D(x̃)‖ - 1)² (B,) at x̃ = u x + (1 - u) G(z), u ~ U[0, 1) for each example, differentiable in D.

    Its mean is weighted by λ = 10 in Gulrajani 2017, arXiv 1704.00028, eq. 3. Batch norm mixes examples, and does not
    go with it (section 4 there).

    Arguments:
        discriminator: a function of x (B, *event) that returns (B,) or patches, which are summed.
        real, fake: (B, *event), both detached here.
        generator: of u.
    Raises: ValueError unless real and fake have one shape.
    """
    _check_pair(real, fake)
    real, fake = wide(real.detach()), wide(fake.detach())
    u = torch.rand(len(real), *[1] * (real.ndim - 1), generator=generator, device=real.device, dtype=real.dtype)
    x = (u * real + (1 - u) * fake).requires_grad_()
    # Unlike a square root, a vector's norm has a finite gradient at 0.
    return (torch.linalg.vector_norm(_gradient(discriminator(x), x), dim=1) - 1).square()


def _gradient(logits: Tensor, x: Tensor) -> Tensor:
    """Return ∇_x Σ D(x) (B, dimensions), differentiable."""
    if not x.requires_grad:
        raise ValueError("x must require a gradient; call x.requires_grad_() before computing logits from it")
    (gradient,) = torch.autograd.grad(wide(logits).sum(), x, create_graph=True)
    return wide(gradient).flatten(1)


def _per_example(values: Tensor) -> Tensor:
    """Average patches (B, 1, h, w): (B,)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _check_pair(real: Tensor, fake: Tensor) -> None:
    """Raises ValueError unless both have one shape."""
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have the same shape; got {tuple(real.shape)} and {tuple(fake.shape)}")
