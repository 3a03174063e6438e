"""An autoencoder with a KL, VQ or FSQ bottleneck: the first stage of latent models."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from components.bottlenecks import Quantized
from components.distributions import Delta, Distribution, per_example
from components.precision import wide

from ..adaptive import adaptive
from ..critic import Critic, check_critic
from ..terms import Terms
from .parts import picture
from .rates import StandardNormal, distortion, rate

__all__ = ["Autoencoder"]

Reconstruction = Literal["likelihood", "l1", "l2"]
BETA = 1e-6
"""Weight of the KL, as Rombach et al. 2022 (2112.10752) have it beside sums over pixels."""


class Autoencoder(nn.Module):
    """reconstruction + perceptual + bottleneck + λ adversarial, for a decoder that a second stage finds latents for.

    Esser et al. 2021, 2012.09841; Rombach et al. 2022, 2112.10752, section 3.1. With the KL bottleneck z ~ q(z|x) and a
    small weight of KL(q ‖ N(0, I)); with codes (VQ, FSQ) z is the mean of q(z|x), and the decoder's side rounds it, so
    that a second stage learns continuous latents and its samples are rounded too, as Rombach's.
    It is one player, or two: the autoencoder moves `encoder`, `decoder` and `bottleneck` (`moved`) on `loss`, and the
    critic moves `critic` on `judge`.

    Arguments:
        encoder: x → Normal over its `latent`.
        decoder: z → p(x|z); the adaptive weight needs its `last`.
        bottleneck: VQ or FSQ; None: KL.
        beta: weight of the KL; 1e-6 by default. None with codes, where no KL is.
        reconstruction: -log p(x|z) with all its constants, or the sum of |x - x̂|, or of (x - x̂)².
        perceptual: a distance (x, y) → (B,), or None; perceptual_weight, as papers state it beside losses that are
            means over the dimensions d of x: d times that is its weight beside sums.
        critic: judges x̂ against x, or None. Its weight is critic_weight × `adaptive` × a ramp: 0 for critic_start
            steps, then rising in a straight line for critic_warmup steps. Until then its cost is not paid in `loss`; it
            learns from the first step, so that it has learned something when its weight rises.
    Raises ValueError for parts and options that do not go together, TypeError for a discriminator in the place of its
    critic.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        bottleneck: nn.Module | None = None,
        beta: float | None = None,
        reconstruction: Reconstruction = "likelihood",
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        critic: Critic | None = None,
        critic_weight: float = 1.0,
        critic_start: int = 0,
        critic_warmup: int = 0,
    ) -> None:
        super().__init__()
        latent: Any = encoder.latent
        self.latent: tuple[int, ...] = (latent,) if isinstance(latent, int) else tuple(latent)
        if reconstruction not in get_args(Reconstruction):
            known = ", ".join(get_args(Reconstruction))
            raise ValueError(f"reconstruction must be one of {known}; got {reconstruction!r}")
        if beta is not None and (bottleneck is not None or beta < 0):
            raise ValueError(
                f"beta weighs the KL, and must not be negative; got {beta} with "
                f"{'a ' + type(bottleneck).__name__ if bottleneck is not None else 'no'} bottleneck"
            )
        if min(perceptual_weight, critic_weight, critic_start, critic_warmup) < 0:
            raise ValueError(
                "perceptual_weight, critic_weight, critic_start and critic_warmup must not be negative; got "
                f"{perceptual_weight}, {critic_weight}, {critic_start} and {critic_warmup}"
            )
        if critic is not None:
            check_critic(critic)
            if not hasattr(decoder, "last"):
                raise ValueError(f"a critic's weight is measured at decoder.last; {type(decoder).__name__} has none")
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.bottleneck: Any = bottleneck
        self.prior = StandardNormal(self.latent)
        self.beta = BETA if beta is None else beta
        self.reconstruction, self.perceptual, self.perceptual_weight = reconstruction, perceptual, perceptual_weight
        self.critic, self.critic_weight = critic, critic_weight
        self.critic_start, self.critic_warmup = critic_start, critic_warmup
        _check_fit(self.latent, decoder, bottleneck)

    @property
    def moved(self) -> list[nn.Module]:
        """What the autoencoder's player moves; the critic's moves `critic`."""
        return [self.encoder, self.decoder, *([] if self.bottleneck is None else [self.bottleneck])]

    def posterior(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return q(z|x), or of codes Delta(z) of z before it is rounded: what a second stage learns (B, *latent)."""
        q = self.encoder(x, cond)
        return q if self.bottleneck is None else Delta(q.mean)

    def encode(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of q(z|x), of codes before it is rounded: (B, *latent)."""
        return self.encoder(x, cond).mean

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z) of z (B, *latent), rounded first where there are codes."""
        return self.decoder(z if self.bottleneck is None else self.bottleneck(z).z, cond)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Distribution | Quantized, Tensor, Distribution]:
        """Return q(z|x) or the codes, the z that is decoded, p(x|z)."""
        q = self.encoder(x, cond)
        if self.bottleneck is None:
            z = q.rsample(generator)
            return q, z, self.decoder(z, cond)
        codes = self.bottleneck(q.mean)
        return codes, codes.z, self.decoder(codes.z, cond)

    def loss(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the terms reconstruction, perceptual, those of `rate`, adversarial; measured: weight/adversarial.

        Raises ValueError without a step where the critic starts later or warms up.
        """
        q, z, p = self(x, cond, generator)
        prior = self.prior.to(z.device)
        distances = self._distortion(x, p)
        bottleneck = rate(q, z, prior)
        terms = distances + (self.beta * bottleneck if self.bottleneck is None else bottleneck)
        ramp = self._ramp(step)
        if self.critic is None or ramp == 0:
            return terms
        adversarial = self.critic.fool(picture(p, generator), real=x)
        weight = adaptive(distances.total, adversarial.total, self.decoder.last, ramp * self.critic_weight)
        return terms + adversarial * weight + Terms({"weight/adversarial": (0.0, weight)})

    def judge(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the critic's objective on x and its reconstruction: those of `Critic.tell`."""
        if self.critic is None:
            raise ValueError("judge needs a critic; this autoencoder has none")
        with torch.no_grad():
            _, _, p = self(x, cond, generator)
        return self.critic.tell(x, picture(p, generator), step=step)

    def _distortion(self, x: Tensor, p: Distribution) -> Terms:
        if self.reconstruction == "likelihood":
            terms = Terms(reconstruction=distortion(p, x))
        else:
            apart = wide(x) - picture(p)
            terms = Terms(reconstruction=per_example(apart.abs() if self.reconstruction == "l1" else apart.square()))
        if self.perceptual is None:
            return terms
        return terms + Terms(perceptual=(self.perceptual_weight * x[0].numel(), self.perceptual(picture(p), x)))

    def _ramp(self, step: int | None) -> float:
        """Return the share of the critic's weight in a step, in [0, 1]."""
        if self.critic is None or (self.critic_start == 0 and self.critic_warmup == 0):
            return 1.0
        if step is None:
            raise ValueError("a critic with critic_start or critic_warmup needs loss(..., step=step)")
        if step < self.critic_start:
            return 0.0
        return min(1.0, (step - self.critic_start + 1) / max(1, self.critic_warmup))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the picture of the mean of q(z|x): (B, *event)."""
        return picture(self.decode(self.encode(x, cond), cond))

    def networks(self) -> dict[str, nn.Module]:
        """Return the decoder, which `sample` calls."""
        return {"decoder": self.decoder}

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *event): pictures of z ~ N(0, I), or of codes drawn evenly. What a second stage has to beat."""
        if self.bottleneck is None:
            return picture(self.decoder(self.prior.sample(n, generator=generator), cond), generator)
        place = self.prior.place.device
        indices = torch.randint(self.bottleneck.codes, (n, *self.latent[1:]), generator=generator, device=place)
        return picture(self.decoder(self.bottleneck.lookup(indices), cond), generator)


def _check_fit(latent: tuple[int, ...], decoder: nn.Module, bottleneck: nn.Module | None) -> None:
    """Refuse a decoder or a bottleneck of other latents than the encoder's (raises ValueError, naming both)."""
    taken = getattr(decoder, "latent", latent)
    taken = (taken,) if isinstance(taken, int) else tuple(taken)
    if taken != latent:
        raise ValueError(f"the encoder makes latents {latent}, but {type(decoder).__name__} takes {taken}")
    features = getattr(bottleneck, "features", latent[0])
    if features != latent[0]:
        raise ValueError(
            f"the encoder makes latents {latent} of {latent[0]} channels, but {type(bottleneck).__name__} rounds "
            f"{features}: build one with the other's number"
        )
