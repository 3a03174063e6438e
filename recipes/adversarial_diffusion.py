"""Denoising diffusion GAN: Xiao 2021, 2112.07804: a diffusion of four steps, each of them a conditional GAN."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Adam

from components.backbones import MLP, Stochastic, UNet
from components.conditions import drop
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, NoiseOfPair, ResidualDiscriminator
from components.schedules import CosineSchedule, VariancePreservingSchedule
from hybrids import AdversarialDiffusion, Critic, Player, experiment, warmup_cosine
from hybrids.batch import Batch, unpack
from hybrids.data import Data
from hybrids.experiment import Stage, setting

SCHEDULES = {"cosine": CosineSchedule, "variance_preserving": VariancePreservingSchedule}


@dataclass
class Settings(experiment.Settings):
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
    conditional: bool = setting(False, "Learn p(x|label), and p(x) beside it.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)
    loss: Literal["non_saturating", "hinge", "least_squares", "relativistic"] = setting(
        "non_saturating", "The pair of losses."
    )
    r1: float = setting(1.0, "γ of R1, γ/2 ‖∇D‖² in x_s; scales with (data scale)².", at_least=0)
    r2: float = setting(0.0, "γ of R2, the same on fakes; with relativistic, as much as γ of R1.", at_least=0)
    lazy: int = setting(1, "Steps between penalties, which are then multiplied by this.", at_least=1)
    lr: float = setting(4e-4, "Learning rate of the generator, decayed by a cosine to a fiftieth.", above=0)
    critic_lr: float = setting(1.6e-3, "Learning rate of the critic, decayed alike.", above=0)


def networks(settings: Settings, data: Data) -> tuple[nn.Module, nn.Module]:
    """A backbone, and a discriminator of pairs."""
    if settings.conditional and not data.classes:
        raise ValueError(f"--conditional needs labels; --data {data.name} has none")
    classes, timed = data.classes if settings.conditional else None, settings.timesteps > 1
    if data.is_image and not settings.flat:
        # Down to 4 × 4.
        multipliers = [1] + [2] * (data.shape[-1].bit_length() - 3)
        backbone = UNet(data.shape, settings.width, multipliers, blocks=1, num_classes=classes)
        discriminator = ResidualDiscriminator(
            data.shape, settings.width, timed=timed, given_channels=data.shape[0], num_classes=classes
        )
        return backbone, discriminator
    width = (10 if data.is_image else 4) * settings.width
    # The larger of the two: it tells all modes apart, at every level of noise.
    pairs = {"timed": timed, "given_features": data.shape, "num_classes": classes}
    discriminator = MLPDiscriminator(data.shape, 2 * width, depth=4, **pairs)
    return MLP(data.shape, width, num_classes=classes), discriminator


def build(settings: Settings, data: Data) -> list[Stage]:
    backbone, discriminator = networks(settings, data)
    generator = Stochastic(backbone, settings.latent) if settings.latent else backbone
    denoiser = Denoiser(generator, SCHEDULES[settings.schedule](), "sample")
    of_pairs = NoiseOfPair(discriminator, denoiser.schedule, settings.timesteps)
    critic = Critic(of_pairs, settings.loss, settings.r1, settings.r2, settings.lazy)
    model = AdversarialDiffusion(denoiser, critic, data.shape, settings.timesteps, settings.latent or None)
    decay = warmup_cosine(0, final=0.02)

    def seen(batch: Batch) -> tuple[Tensor, Tensor | None]:
        x, cond = unpack(batch)
        return x, drop(cond, settings.label_dropout, data.classes)

    def adam(lr: float) -> partial[Adam]:
        # No momentum: each player answers the other's last move.
        return partial(Adam, lr=lr, betas=(0.0, 0.99))

    players = [
        Player(
            lambda b, step: model.judge(*seen(b), step=step),
            [critic],
            optimizer=adam(settings.critic_lr),
            lr=decay,
            name="critic",
        ),
        Player(lambda b: model.loss(*seen(b)), [denoiser], optimizer=adam(settings.lr), lr=decay, name="generator"),
    ]
    return [Stage("adversarial_diffusion", model, players, conditional=settings.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
