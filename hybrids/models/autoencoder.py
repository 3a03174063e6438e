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
from .parts import mean_or_draw
from .rates import StandardNormal, distortion, rate

__all__ = ["Autoencoder"]

Reconstruction = Literal["likelihood", "l1", "l2"]
BETA = 1e-6
"""Weight of the KL beside sums over pixels, as of Rombach et al. 2022 (2112.10752)."""


class Autoencoder(nn.Module):
    """An autoencoder, the first stage of a latent model: reconstruction + perceptual + bottleneck + λ adversarial.

    Esser et al. 2021, 2012.09841; Rombach et al. 2022, 2112.10752, section 3.1. With the KL bottleneck, z ~ q(z|x) and
    KL(q ‖ N(0, I)) has a small weight. With codes (VQ, FSQ), z is the mean of q(z|x) and is quantized as the first step
    of decoding, so that a second stage models continuous latents and its samples are quantized too, as in Rombach's.
    It has one or two players: the autoencoder moves `encoder`, `decoder` and `bottleneck` (`moved`) on `loss`, the
    critic moves `critic` on `judge`.

    Arguments:
        encoder: x → Normal over its `latent`.
        decoder: z → p(x|z); the adaptive weight needs its `last`.
        bottleneck: VQ or FSQ; None: KL.
        beta: weight of the KL; 1e-6 by default. Must be None with codes, which have no KL.
        reconstruction: likelihood: -log p(x|z) with all constants; l1, l2: the sum of |x - x̂|, of (x - x̂)².
        perceptual: a distance (x, y) → (B,), or None.
        perceptual_weight: beside losses that are means over the d dimensions of x, as papers state it; it is multiplied
            by d, since losses here are sums.
        critic: compares x̂ with x, or None.
        critic_weight: the critic's term has the weight critic_weight × `adaptive` × ramp.
        critic_start, critic_warmup: the ramp is 0 for critic_start steps (the term is then not computed), and rises
            linearly to 1 in critic_warmup steps. The critic itself trains from the first step.
    Raises ValueError for incompatible parts and options, TypeError for a discriminator instead of a Critic.
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
                f"beta is the weight of the KL: it must not be negative, and must be None with codes; got {beta} with "
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
                raise ValueError(
                    f"a critic needs decoder.last, the final layer, for its adaptive weight; {type(decoder).__name__} "
                    "has none"
                )
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
        """The modules that the autoencoder's player moves; the critic's moves `critic`."""
        return [self.encoder, self.decoder, *([] if self.bottleneck is None else [self.bottleneck])]

    def posterior(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return q(z|x), or with codes Delta(z) for z before quantization: the data of a second stage (B, *latent)."""
        q = self.encoder(x, cond)
        return q if self.bottleneck is None else Delta(q.mean)

    def encode(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of q(z|x), with codes before quantization: (B, *latent)."""
        return self.encoder(x, cond).mean

    def decode(self, z: Tensor, cond: Tensor | None = None) -> Distribution:
        """Return p(x|z) for z (B, *latent), which is quantized first with codes."""
        return self.decoder(z if self.bottleneck is None else self.bottleneck(z).z, cond)

    def forward(
        self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Distribution | Quantized, Tensor, Distribution]:
        """Return q(z|x) or the codes, the decoded z, and p(x|z)."""
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
        """Return the terms reconstruction, perceptual, those of `rate`, adversarial, and weight/adversarial (weight 0).

        Raises ValueError without `step` where the critic has critic_start or critic_warmup.
        """
        q, z, p = self(x, cond, generator)
        prior = self.prior.to(z.device)
        distances = self._distortion(x, p)
        bottleneck = rate(q, z, prior)
        terms = distances + (self.beta * bottleneck if self.bottleneck is None else bottleneck)
        ramp = self._ramp(step)
        if self.critic is None or ramp == 0:
            return terms
        adversarial = self.critic.fool(mean_or_draw(p, generator), real=x)
        weight = adaptive(distances.total, adversarial.total, self.decoder.last, ramp * self.critic_weight)
        return terms + adversarial * weight + Terms({"weight/adversarial": (0.0, weight)})

    def judge(
        self,
        x: Tensor,
        cond: Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Return the critic's objective on x and its reconstruction: the terms of `Critic.tell`.

        Raises ValueError without a critic.
        """
        if self.critic is None:
            raise ValueError("judge needs a critic; this Autoencoder has critic=None")
        with torch.no_grad():
            _, _, p = self(x, cond, generator)
        return self.critic.tell(x, mean_or_draw(p, generator), step=step)

    def _distortion(self, x: Tensor, p: Distribution) -> Terms:
        if self.reconstruction == "likelihood":
            terms = Terms(reconstruction=distortion(p, x))
        else:
            error = wide(x) - mean_or_draw(p)
            terms = Terms(reconstruction=per_example(error.abs() if self.reconstruction == "l1" else error.square()))
        if self.perceptual is None:
            return terms
        return terms + Terms(perceptual=(self.perceptual_weight * x[0].numel(), self.perceptual(mean_or_draw(p), x)))

    def _ramp(self, step: int | None) -> float:
        """Return the factor of the critic's weight at a step, in [0, 1]."""
        if self.critic is None or (self.critic_start == 0 and self.critic_warmup == 0):
            return 1.0
        if step is None:
            raise ValueError("critic_start and critic_warmup need loss(..., step=step); got step=None")
        if step < self.critic_start:
            return 0.0
        return min(1.0, (step - self.critic_start + 1) / max(1, self.critic_warmup))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z) at the mean of q(z|x): (B, *event)."""
        return mean_or_draw(self.decode(self.encode(x, cond), cond))

    def networks(self) -> dict[str, nn.Module]:
        """Return the decoder, which `sample` calls."""
        return {"decoder": self.decoder}

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, *event): the mean of p(x|z), z ~ N(0, I) or uniform codes: the baseline of a second stage."""
        if self.bottleneck is None:
            return mean_or_draw(self.decoder(self.prior.sample(n, generator=generator), cond), generator)
        device = self.prior.zero.device
        indices = torch.randint(self.bottleneck.codes, (n, *self.latent[1:]), generator=generator, device=device)
        return mean_or_draw(self.decoder(self.bottleneck.lookup(indices), cond), generator)


def _check_fit(latent: tuple[int, ...], decoder: nn.Module, bottleneck: nn.Module | None) -> None:
    """Raise ValueError, naming both, where decoder or bottleneck have another latent shape than the encoder."""
    expected = getattr(decoder, "latent", latent)
    expected = (expected,) if isinstance(expected, int) else tuple(expected)
    if expected != latent:
        raise ValueError(f"decoder must take the encoder's latents {latent}; {type(decoder).__name__} takes {expected}")
    features = getattr(bottleneck, "features", latent[0])
    if features != latent[0]:
        raise ValueError(
            f"bottleneck must have the {latent[0]} channels of the encoder's latents {latent}; "
            f"{type(bottleneck).__name__} has {features}"
        )
