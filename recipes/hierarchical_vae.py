"""A hierarchical VAE with a top-down ladder of latents: NVAE (Vahdat & Kautz 2020, 2007.03898), VDVAE (Child 2020)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

from components.decoders import (
    CategoricalHead,
    LogisticHead,
    LogisticMixtureHead,
    MLPDecoder,
    NormalHead,
    ResidualDecoder,
)
from components.ladders import convolutional_ladder, dense_ladder
from hybrids import HierarchicalVAE, Player, experiment, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


@dataclass
class Settings(experiment.Settings):
    digits_resolution: ClassVar[int] = 8  # where digits have grey levels of their own, so bits/dim mean something
    structural: ClassVar[tuple[str, ...]] = ("likelihood",)

    steps: int = 1000
    batch_size: int = 128
    levels: int = setting(2, "Latents, each at twice the resolution of the one above.", at_least=1)
    latent: int = setting(4, "Channels of each latent; for points, its dimensions.", at_least=1)
    width: int = setting(32, "Channels at the highest resolution; four times as many units for points.", at_least=8)
    blocks: int = setting(1, "Residual blocks a resolution, each way.", at_least=1)
    likelihood: Literal["logistic", "mixture", "categorical", "normal", "none"] = setting(
        "none", "p(x|z); none: logistic over the grey levels of images, normal with a learned σ(z) for points."
    )
    beta: float = setting(1.0, "Weight of the rates; 1 is the ELBO.", at_least=0)
    free_bits: float = setting(0.0, "Nats a level that are not charged.", at_least=0)
    lr: float = setting(2e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)
    clip: float = setting(1.0, "Largest norm of the gradient of the loss in nats/dim.", above=0)


def head(likelihood: str, data: Data) -> nn.Module:
    if likelihood == "normal" or (likelihood == "none" and data.grey_levels is None):
        return NormalHead("learned")
    if data.grey_levels is None:
        raise ValueError(f"--likelihood {likelihood} is of grey levels; --data {data.name} is continuous: use normal")
    heads = {"categorical": CategoricalHead, "mixture": LogisticMixtureHead}
    return heads.get(likelihood, LogisticHead)(data.grey_levels)


def build(settings: Settings, data: Data) -> list[Stage]:
    p_x = head(settings.likelihood, data)
    if data.is_image:
        ladder = convolutional_ladder(data.shape, settings.levels, settings.latent, settings.width, settings.blocks)
        decoder = ResidualDecoder(ladder.state, data.shape, p_x, settings.width)
    else:
        width = 4 * settings.width
        ladder = dense_ladder(data.dimensions, settings.levels, settings.latent, width)
        decoder = MLPDecoder(width, data.dimensions, p_x, width)
    model = HierarchicalVAE(ladder.levels, decoder, ladder.encoder, settings.beta, settings.free_bits)
    player = Player(
        lambda x: (1 / data.dimensions) * model.loss(x),
        moves=[model],
        optimizer=partial(AdamW, lr=settings.lr),
        clip=settings.clip,
        lr=warmup_cosine(),
        name="vae",
    )
    return [Stage("hierarchical_vae", model, [player])]


if __name__ == "__main__":
    experiment.main(Settings, build)
