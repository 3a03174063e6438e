"""Generative adversarial network (GAN): Goodfellow 2014, 1406.2661; by default as R3GAN, Huang 2024, 2501.05441.

z ~ N(0, I);  G(z) = generator(z);  D(x) = discriminator(x), a logit
critic:     minimize  E softplus(D(G(z)) - D(x)) + γ/2 (E‖∇D(x)‖² + E‖∇D(G(z))‖²)     R1 and R2: Mescheder 2018
generator:  minimize  E softplus(D(x) - D(G(z)))
that is the relativistic pair of losses; others are settings
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch.optim import Adam

from components.decoders import DeltaHead, MLPDecoder, ResidualDecoder
from components.discriminators import MLPDiscriminator, ResidualDiscriminator
from hybrids import GAN, Batch, Critic, Player, Terms, experiment, unpack, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(gan: GAN, s: Settings, data: Data) -> list[Player]:
    def judge(batch: Batch, step: int) -> Terms:
        x, cond = unpack(batch, s.label_dropout, data.classes)
        return gan.judge(x, cond, step)

    def fool(batch: Batch) -> Terms:
        x, cond = unpack(batch, s.label_dropout, data.classes)
        return gan.loss(x, cond)

    # No momentum: each player answers the other's last move.
    adam, decay = partial(Adam, lr=s.lr, betas=(0.0, 0.99)), warmup_cosine(0, final=s.final_lr)
    return [
        Player(judge, moves=[gan.critic], optimizer=adam, lr=decay, name="critic"),
        Player(fool, moves=[gan.generator], optimizer=adam, lr=decay, name="generator"),
    ]


def networks(s: Settings, data: Data) -> GAN:
    classes, head = s.classes(data), DeltaHead(bounded=data.is_image)
    critics = {"spectral_norm": s.spectral_norm, "num_classes": classes}
    if data.is_image and not s.flat:
        generator = ResidualDecoder(s.latent, data.shape, head, s.width, num_classes=classes)
        discriminator = ResidualDiscriminator(data.shape, s.width, **critics)
    else:
        generator = MLPDecoder(s.latent, data.shape, head, 8 * s.width, num_classes=classes)
        discriminator = MLPDiscriminator(data.shape, 8 * s.width, **critics)
    return GAN(generator, Critic(discriminator, s.loss, s.r1, s.r2, s.lazy, s.gp), s.latent)


@dataclass
class Settings(experiment.Conditional):
    steps: int = 3000
    latent: int = setting(64, "Dimensions of z.", at_least=1)
    flat: bool = setting(False, "MLPs for images too, of eight times width units; points always have them.")
    width: int = setting(16, "Channels at the highest resolution; an MLP has eight times as many units.", at_least=8)
    loss: Literal["minimax", "non_saturating", "least_squares", "wasserstein", "hinge", "relativistic"] = setting(
        "relativistic", "The pair of losses."
    )
    r1: float = setting(0.5, "γ of R1, γ/2 ‖∇D‖² on real examples; scales with (data scale)².", at_least=0)
    r2: float = setting(0.5, "γ of R2, the same on fakes.", at_least=0)
    gp: float = setting(0.0, "λ of the gradient penalty, for wasserstein (10).", at_least=0)
    lazy: int = setting(1, "Steps between penalties, which are then multiplied by this.", at_least=1)
    spectral_norm: bool = setting(False, "Spectral norm in the discriminator.")
    lr: float = setting(5e-4, "Learning rate of both players, decayed by a cosine.", above=0)
    final_lr: float = setting(0.1, "The last learning rate, as a share of the first.", at_least=0, at_most=1)


def build(s: Settings, data: Data) -> list[Stage]:
    gan = networks(s, data)
    return [Stage("gan", gan, players(gan, s, data), conditional=s.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
