"""A generative adversarial network: Goodfellow 2014, 1406.2661; with R1 (Mescheder 2018), or as R3GAN (Huang 2024)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor
from torch.optim import Adam

from components.conditions import drop
from components.decoders import DeltaHead, MLPDecoder, ResidualDecoder
from components.discriminators import MLPDiscriminator, ResidualDiscriminator
from hybrids import GAN, Critic, Player, experiment, warmup_cosine
from hybrids.batch import Batch, unpack
from hybrids.data import Data
from hybrids.experiment import Stage, setting


@dataclass
class Settings(experiment.Settings):
    steps: int = 3000
    latent: int = setting(64, "Dimensions of z.", at_least=1)
    flat: bool = setting(False, "MLPs for images too, of eight times width units; points always have them.")
    width: int = setting(16, "Channels at the highest resolution; an MLP has eight times as many units.", at_least=8)
    conditional: bool = setting(False, "Learn p(x|label), and p(x) beside it.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)
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


def build(settings: Settings, data: Data) -> list[Stage]:
    if settings.conditional and not data.classes:
        raise ValueError(f"--conditional needs labels; --data {data.name} has none")
    classes = data.classes if settings.conditional else None
    head, norm = DeltaHead(bounded=data.is_image), settings.spectral_norm
    if data.is_image and not settings.flat:
        generator = ResidualDecoder(settings.latent, data.shape, head, settings.width, num_classes=classes)
        discriminator = ResidualDiscriminator(data.shape, settings.width, spectral_norm=norm, num_classes=classes)
    else:
        width = 8 * settings.width
        generator = MLPDecoder(settings.latent, data.shape, head, width, num_classes=classes)
        discriminator = MLPDiscriminator(data.shape, width, spectral_norm=norm, num_classes=classes)
    critic = Critic(discriminator, settings.loss, settings.r1, settings.r2, settings.lazy, settings.gp)
    gan = GAN(generator, critic, settings.latent)

    def seen(batch: Batch) -> tuple[Tensor, Tensor | None]:
        x, cond = unpack(batch)
        return x, drop(cond, settings.label_dropout, classes)

    common = {
        # No momentum: each player answers the other's last move.
        "optimizer": partial(Adam, lr=settings.lr, betas=(0.0, 0.99)),
        "lr": warmup_cosine(0, final=settings.final_lr),
    }
    players = [
        Player(lambda b, step: gan.judge(*seen(b), step=step), moves=[critic], name="critic", **common),
        Player(lambda b: gan.loss(*seen(b)), moves=[generator], name="generator", **common),
    ]
    return [Stage("gan", gan, players, conditional=settings.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
