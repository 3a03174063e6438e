"""The generative adversarial network."""

import torch
from torch import Tensor, nn

from components.distributions import Distribution

from ..critic import Critic, check_critic
from ..terms import Terms
from .model import implicit
from .parts import distribution_of

__all__ = ["GAN"]


class GAN(nn.Module):
    """min_G max_D of a game on D(x) and D(G(z)), z ~ N(0, I). Goodfellow 2014, 1406.2661.

    It has two players: the generator moves `generator` on `loss`, the critic moves `critic` on `judge`.

    Arguments:
        generator: a decoder z → Distribution.
        critic: a `Critic`.
        latent: the shape of one z.
    Raises TypeError for a discriminator instead of a Critic.
    """

    def __init__(self, generator: nn.Module, critic: Critic, latent: int | tuple[int, ...]) -> None:
        super().__init__()
        check_critic(critic)
        self.generator, self.critic = generator, critic
        self.latent = (latent,) if isinstance(latent, int) else tuple(latent)

    def draw(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples (n, *event), differentiable in the generator's parameters."""
        return self.decode(self.noise(n, generator), cond).rsample(generator)

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw z ~ N(0, I): (n, *latent)."""
        like = next(self.generator.parameters(), torch.zeros(()))
        return torch.randn(n, *self.latent, generator=generator, device=like.device, dtype=like.dtype)

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return the generator's p(x|z), usually the point G(z)."""
        return distribution_of(self.generator, "generator", z, cond)

    def networks(self) -> dict[str, nn.Module]:
        """Return the generator."""
        return {"generator": self.generator}

    def loss(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Terms:
        """Return the generator's objective against real x (B, *event): the term adversarial."""
        return self.critic.fool(self.draw(len(x), cond, generator), real=x, **_given(cond))

    def judge(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the critic's objective: adversarial, penalties, logits."""
        with torch.no_grad():
            fake = self.draw(len(x), cond, generator)
        return self.critic.tell(x, fake, step=step, **_given(cond))

    def log_prob(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Raise NotOffered: the model is implicit."""
        raise implicit(self)

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples (n, *event), without gradient."""
        return self.draw(n, cond, generator)


def _given(cond: Tensor | None) -> dict[str, Tensor]:
    return {} if cond is None else {"cond": cond}
