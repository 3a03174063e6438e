"""The critic: a discriminator, a pair of losses, and its penalties."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from components.losses import (
    AdversarialLoss,
    gradient_penalty,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    squared_gradient,
    wasserstein,
)
from components.precision import full_precision

from .terms import Terms

__all__ = ["Critic", "check_critic"]

PAIRS = {pair.name: pair for pair in (minimax, non_saturating, least_squares, wasserstein, hinge, relativistic)}


class Critic(nn.Module):
    """A discriminator that tells real from fake, and what the generator hears from it.

    Arguments:
        discriminator: (x, **given) → logits (B,) or patches.
        pair: the losses of both sides, from `components.losses`, or the name of one there.
        r1, r2: γ of the zero-centred penalties γ/2 ‖∇D‖² on real and on fake, in units of (data scale)²; 0 is none.
        gp: λ of the gradient penalty between real and fake, 10 with the wasserstein pair; 0 is none.
        lazy: apply the penalties every so many steps, multiplied by this number (Karras 2019, 1912.04958, section 2.2).
            Relativistic pairs want 1: lazily they fail on stacked digits (Huang 2024, 2501.05441).
        augment: a differentiable function applied to real and fake alike (Zhao 2020, 2006.10738); the penalties
            differentiate through it.
    Raises ValueError for a pair of no known name, for negative penalties and for lazy below 1.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        pair: AdversarialLoss | str = non_saturating,
        r1: float = 0.0,
        r2: float = 0.0,
        lazy: int = 1,
        gp: float = 0.0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if r1 < 0 or r2 < 0:
            raise ValueError(f"r1 and r2 must not be negative; got {r1} and {r2}")
        if gp < 0:
            raise ValueError(f"gp must not be negative; got {gp}")
        if lazy < 1:
            raise ValueError(f"lazy must be at least 1; got {lazy}")
        if isinstance(pair, str) and pair not in PAIRS:
            raise ValueError(f"pair must be one of {', '.join(PAIRS)}; got {pair!r}")
        self.discriminator, self.augment = discriminator, augment
        self.pair = PAIRS[pair] if isinstance(pair, str) else pair
        self.r1, self.r2, self.gp, self.lazy = r1, r2, gp, lazy

    def forward(self, x: Tensor, **given: Tensor) -> Tensor:
        """The logits of x, augmented if the critic augments."""
        return self.discriminator(self.augment(x) if self.augment else x, **given)

    def tell(self, real: Tensor, fake: Tensor, step: int | None = None, **given: Tensor) -> Terms:
        """The critic's objective: terms adversarial, r1, r2, gp, and the measurements logits/real and logits/fake.

        Arguments: real and fake (B, *event), both detached here; step, needed for lazy penalties; given, what the
        discriminator takes besides x (t, cond, given).
        """
        if self.lazy > 1 and step is None:
            raise ValueError(f"a critic with lazy={self.lazy} penalties needs tell(..., step=step)")
        due = max(self.r1, self.r2, self.gp) > 0 and (step or 0) % self.lazy == 0
        real = real.detach().requires_grad_(due and self.r1 > 0)
        fake = fake.detach().requires_grad_(due and self.r2 > 0)
        # A penalty differentiates twice: in bf16 its gradient is noise.
        with full_precision() if due else nullcontext():
            on_real, on_fake = self(real, **given), self(fake, **given)
            penalties = {
                name: (0.5 * gamma * self.lazy, squared_gradient(logits, x))
                for name, gamma, logits, x in (("r1", self.r1, on_real, real), ("r2", self.r2, on_fake, fake))
                if x.requires_grad and torch.is_grad_enabled()
            }
            if due and self.gp > 0 and torch.is_grad_enabled():
                penalties["gp"] = (self.gp * self.lazy, gradient_penalty(lambda x: self(x, **given), real, fake))
        return Terms(
            {
                "adversarial": self.pair.discriminator(on_real, on_fake),
                **penalties,
                "logits/real": (0.0, on_real.flatten(1).mean(1) if on_real.ndim > 1 else on_real),
                "logits/fake": (0.0, on_fake.flatten(1).mean(1) if on_fake.ndim > 1 else on_fake),
            }
        )

    def fool(self, fake: Tensor, real: Tensor | None = None, **given: Tensor) -> Terms:
        """The generator's objective: the term adversarial.

        Arguments: fake (B, *event), not detached; real, needed by relativistic pairs; given, as in `tell`.
        """
        if not self.pair.relativistic:
            return Terms(adversarial=self.pair.generator(self(fake, **given)))
        if real is None:
            raise ValueError(f"a critic with the {self.pair.name} pair needs fool(fake, real=x)")
        return Terms(adversarial=self.pair.generator(self(fake, **given), self(real.detach(), **given)))


def check_critic(critic: nn.Module) -> None:
    """Refuse what neither tells nor fools, such as a discriminator by itself (raises TypeError, with its name)."""
    if not (hasattr(critic, "tell") and hasattr(critic, "fool")):
        name = type(critic).__name__
        raise TypeError(f"critic must offer tell and fool, as Critic(discriminator) does; got a {name}")
