"""The critic: a discriminator, a pair of losses, and its penalties."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    """A discriminator of real and fake, with the objectives of both sides and its penalties.

    Arguments:
        discriminator: (x, **given) → logits (B,) or patches; with hidden=names → (logits, features by name).
        pair: the losses of both sides, from `components.losses`, or the name of one there.
        r1, r2: γ of the zero-centred penalties γ/2 ‖∇D‖² on real and on fake, in units of (data scale)²; 0 is none.
        gp: λ of the gradient penalty between real and fake, 10 with the wasserstein pair; 0 is none.
            Steps with a penalty run without autocast, and attention by its plain kernel, which takes memory quadratic
            in the number of tokens: fused ones cannot be differentiated twice.
        lazy: apply the penalties every so many steps, multiplied by this number (Karras 2019, 1912.04958, section 2.2).
            Relativistic pairs want 1: lazily they fail on stacked digits (Huang 2024, 2501.05441).
        augment: a differentiable function applied to real and fake alike (Zhao 2020, 2006.10738); the penalties
            differentiate through it.
    Raises:
        ValueError: the pair's name is unknown, a penalty is negative, or lazy is below 1.
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
        _check(pair, r1, r2, lazy, gp)
        self.discriminator, self.augment = discriminator, augment
        self.pair = PAIRS[pair] if isinstance(pair, str) else pair
        self.r1, self.r2, self.gp, self.lazy = r1, r2, gp, lazy

    def forward(
        self, x: Tensor, hidden: Sequence[str] = (), **given: Tensor
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of x, augmented if the critic augments; with `hidden`, (logits, features by name).

        Arguments:
            x: (B, *event).
            hidden: names out of `discriminator.layers`.
            given: what the discriminator takes besides x (t, cond, given).
        """
        x = self.augment(x) if self.augment else x
        return self.discriminator(x, hidden=hidden, **given) if hidden else self.discriminator(x, **given)

    def tell(self, real: Tensor, fake: Tensor, step: int | None = None, **given: Tensor) -> Terms:
        """Return the critic's objective: terms adversarial, r1, r2, gp, and measurements logits/real and logits/fake.

        Arguments:
            real, fake: (B, *event), both detached here.
            step: needed for lazy penalties.
            given: what the discriminator takes besides x (t, cond, given).
        Raises:
            ValueError: penalties are lazy and step is missing.
        """
        if self.lazy > 1 and step is None:
            raise ValueError(f"a critic with lazy={self.lazy} penalties needs tell(..., step=step)")
        due = max(self.r1, self.r2, self.gp) > 0 and (step or 0) % self.lazy == 0
        real = real.detach().requires_grad_(due and self.r1 > 0)
        fake = fake.detach().requires_grad_(due and self.r2 > 0)
        with _twice_differentiable() if due else nullcontext():
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
        """Return the generator's objective: the term adversarial.

        Arguments:
            fake: (B, *event), not detached.
            real: (B, *event), needed by relativistic pairs.
            given: as in `tell`.
        Raises:
            ValueError: the pair is relativistic and real is missing.
        """
        if not self.pair.relativistic:
            return Terms(adversarial=self.pair.generator(self(fake, **given)))
        if real is None:
            raise ValueError(f"a critic with the {self.pair.name} pair needs fool(fake, real=x)")
        return Terms(adversarial=self.pair.generator(self(fake, **given), self(real.detach(), **given)))


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Run what a penalty differentiates twice: in full precision, as in bf16 its gradient is noise, and attention by
    the one kernel of `scaled_dot_product_attention` whose derivative has a derivative."""
    with full_precision(), sdpa_kernel(SDPBackend.MATH):
        yield


def check_critic(critic: nn.Module) -> None:
    """Raise TypeError, with its name, for a critic without `tell` or `fool`, such as a discriminator by itself."""
    if not (hasattr(critic, "tell") and hasattr(critic, "fool")):
        name = type(critic).__name__
        raise TypeError(f"critic must offer tell and fool, as Critic(discriminator) does; got a {name}")


def _check(pair: AdversarialLoss | str, r1: float, r2: float, lazy: int, gp: float) -> None:
    """Raise ValueError for arguments of a Critic that cannot be."""
    if r1 < 0 or r2 < 0:
        raise ValueError(f"r1 and r2 must not be negative; got {r1} and {r2}")
    if gp < 0:
        raise ValueError(f"gp must not be negative; got {gp}")
    if lazy < 1:
        raise ValueError(f"lazy must be at least 1; got {lazy}")
    if isinstance(pair, str) and pair not in PAIRS:
        raise ValueError(f"pair must be one of {', '.join(PAIRS)}; got {pair!r}")
