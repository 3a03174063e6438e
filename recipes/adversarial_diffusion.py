"""Denoising diffusion GAN: Xiao 2021, 2112.07804: a diffusion of four steps, each of them a conditional GAN.

s = t - 1/T;  x_s ~ q(x_s|x);  x_t ~ q(x_t|x_s);  z ~ N(0, I);  x̂ = G(x_t, z, t);  x'_s ~ q(x_s|x_t, x̂)
critic:     minimize  E[-log D(x_s, x_t, t)] + E[-log(1 - D(x'_s, x_t, t))] + γ/2 E‖∇D(x_s, x_t, t)‖²
generator:  minimize  E[-log D(x'_s, x_t, t)]
sample      x_1 ~ N(0, I);  for t = 1, 1 - 1/T, …, 1/T:  x_s ~ q(x_s|x_t, G(x_t, z, t))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Adam

from components.backbones import MLP, Stochastic, UNet, multipliers_to
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, NoiseOfPair, ResidualDiscriminator
from components.schedules import CosineSchedule, VariancePreservingSchedule
from hybrids import AdversarialDiffusion, Batch, Critic, Player, Terms, experiment, unpack, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(model: AdversarialDiffusion, s: Settings, data: Data) -> list[Player]:
    def judge(batch: Batch, step: int) -> Terms:
        x, cond = unpack(batch, s.label_dropout, data.classes)
        return model.judge(x, cond, step)

    def fool(batch: Batch) -> Terms:
        x, cond = unpack(batch, s.label_dropout, data.classes)
        return model.loss(x, cond)

    # No momentum: each player answers the other's last move.
    adam, decay = partial(Adam, betas=(0.0, 0.99)), warmup_cosine(0, final=0.02)
    return [
        Player(judge, [model.critic], optimizer=partial(adam, lr=s.critic_lr), lr=decay, name="critic"),
        Player(fool, [model.denoiser], optimizer=partial(adam, lr=s.lr), lr=decay, name="generator"),
    ]


def networks(s: Settings, data: Data) -> AdversarialDiffusion:
    backbone, discriminator = backbone_and_discriminator(s, data)
    generator = Stochastic(backbone, s.latent) if s.latent else backbone
    denoiser = Denoiser(generator, SCHEDULES[s.schedule](), "sample")
    of_pairs = NoiseOfPair(discriminator, denoiser.schedule, s.timesteps)
    critic = Critic(of_pairs, s.loss, s.r1, s.r2, s.lazy)
    return AdversarialDiffusion(denoiser, critic, data.shape, s.timesteps, s.latent or None)


def backbone_and_discriminator(s: Settings, data: Data) -> tuple[nn.Module, nn.Module]:
    pairs = {"timed": s.timesteps > 1, "num_classes": s.classes(data)}
    if data.is_image and not s.flat:
        backbone = UNet(data.shape, s.width, multipliers_to(4, data.shape), blocks=1, num_classes=s.classes(data))
        return backbone, ResidualDiscriminator(data.shape, s.width, given_channels=data.shape[0], **pairs)
    width = (10 if data.is_image else 4) * s.width
    # The critic is the larger of the two: it tells all modes apart, at every level of noise.
    discriminator = MLPDiscriminator(data.shape, 2 * width, depth=4, given_features=data.shape, **pairs)
    return MLP(data.shape, width, num_classes=s.classes(data)), discriminator


SCHEDULES = {"cosine": CosineSchedule, "variance_preserving": VariancePreservingSchedule}


@dataclass
class Settings(experiment.Conditional):
    structural: ClassVar[tuple[str, ...]] = ("timesteps", "schedule")

    steps: int = 3000
    timesteps: int = setting(4, "T, the steps from noise to x: 1, 2, 4 or 8.", at_least=1)
    schedule: Literal["cosine", "variance_preserving"] = setting(
        "cosine", "variance_preserving, the paper's: of four steps to noise two take the last 8% of the signal."
    )
    latent: int = setting(64, "Dimensions of the generator's own z; 0: without z, as the paper ablates.", at_least=0)
    width: int = setting(
        32, "Channels at the highest resolution; units are four times as many for points, ten with --flat.", at_least=8
    )
    flat: bool = setting(False, "Residual MLPs for images too, where these are small.")
    loss: Literal["non_saturating", "hinge", "least_squares", "relativistic"] = setting(
        "non_saturating", "The pair of losses."
    )
    r1: float = setting(1.0, "γ of R1, γ/2 ‖∇D‖² in x_s; scales with (data scale)².", at_least=0)
    r2: float = setting(0.0, "γ of R2, the same on fakes; with relativistic, as much as γ of R1.", at_least=0)
    lazy: int = setting(1, "Steps between penalties, which are then multiplied by this.", at_least=1)
    lr: float = setting(4e-4, "Learning rate of the generator, decayed by a cosine to a fiftieth.", above=0)
    critic_lr: float = setting(1.6e-3, "Learning rate of the critic, decayed alike.", above=0)


def build(s: Settings, data: Data) -> list[Stage]:
    model = networks(s, data)
    return [Stage("adversarial_diffusion", model, players(model, s, data), conditional=s.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
