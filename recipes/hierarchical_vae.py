"""Hierarchical VAE with a top-down ladder: NVAE, Vahdat & Kautz 2020, 2007.03898; VDVAE, Child 2020, 2011.10650.

z_1, …, z_L from the lowest resolution to the highest;  q(z_l|z_<l, x);  p(z_l|z_<l);  p(x|z) = decoder(z)
minimize  (E_q[-log p(x|z)] + β Σ_l KL(q(z_l|z_<l, x) ‖ p(z_l|z_<l))) / d          d: dimensions of x
"""

from __future__ import annotations

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


def players(vae: HierarchicalVAE, s: Settings, data: Data) -> list[Player]:
    adamw = partial(AdamW, lr=s.lr)
    return [Player(vae.loss, [vae], optimizer=adamw, lr=warmup_cosine(), clip=s.clip, per=data.dimensions, name="vae")]


def networks(s: Settings, data: Data) -> HierarchicalVAE:
    p_x = head(s.likelihood, data)
    if data.is_image:
        ladder = convolutional_ladder(data.shape, s.levels, s.latent, s.width, s.blocks)
        decoder = ResidualDecoder(ladder.state, data.shape, p_x, s.width)
    else:
        ladder = dense_ladder(data.dimensions, s.levels, s.latent, 4 * s.width)
        decoder = MLPDecoder(4 * s.width, data.dimensions, p_x, 4 * s.width)
    return HierarchicalVAE(ladder.levels, decoder, ladder.encoder, s.beta, s.free_bits)


def head(likelihood: str, data: Data) -> nn.Module:
    if likelihood == "normal" or (likelihood == "none" and data.grey_levels is None):
        return NormalHead("learned")
    if data.grey_levels is None:
        raise ValueError(f"--likelihood {likelihood} is of grey levels; --data {data.name} is continuous: use normal")
    heads = {"categorical": CategoricalHead, "mixture": LogisticMixtureHead}
    return heads.get(likelihood, LogisticHead)(data.grey_levels)


@dataclass
class Settings(experiment.Settings):
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
    beta: float = setting(1.0, "Weight of the rates; 1 is the ELBO.", above=0)
    free_bits: float = setting(0.0, "Nats a level that are not charged.", at_least=0)
    lr: float = setting(2e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)
    clip: float = setting(1.0, "Largest norm of the gradient of the loss in nats/dim.", above=0)


def build(s: Settings, data: Data) -> list[Stage]:
    vae = networks(s, data)
    return [Stage("hierarchical_vae", vae, players(vae, s, data))]


if __name__ == "__main__":
    experiment.main(Settings, build)
