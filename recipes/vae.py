"""Variational autoencoder (VAE): Kingma & Welling 2013, 1312.6114; β of Higgins 2017, free bits of Kingma 2016.

q(z|x) = encoder(x);  z = μ(x) + σ(x) ε, ε ~ N(0, I);  p(x|z) = decoder(z);  p(z) = N(0, I)
minimize  (E_q[-log p(x|z)] + β KL(q(z|x) ‖ p(z))) / d          d: dimensions of x
β may rise linearly from 0 over the first steps (Sønderby 2016, 1602.02282)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

from components.decoders import BernoulliHead, CategoricalHead, LogisticHead, MLPDecoder, NormalHead, ResidualDecoder
from components.encoders import MLPEncoder, ResidualEncoder
from hybrids import VAE, Batch, Player, StandardNormal, Terms, experiment, unpack, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(vae: VAE, s: Settings, data: Data) -> list[Player]:
    share = s.beta_warmup if s.beta_warmup is not None else 0.0 if data.is_image else 0.3
    rising = share * s.steps

    def loss(batch: Batch, step: int) -> Terms:
        x, cond = unpack(batch, s.label_dropout, data.classes)
        q, z, p = vae(x, cond)
        # Charged in full from the start, z is given up where p(x|z) says little yet.
        beta = s.beta * (1.0 if step >= rising else step / rising)
        return vae.nelbo(x, q, z, p, beta, s.free_bits)

    adamw = partial(AdamW, lr=s.lr)
    return [Player(loss, [vae], optimizer=adamw, lr=warmup_cosine(), clip=s.clip, per=data.dimensions, name="vae")]


def networks(s: Settings, data: Data) -> VAE:
    classes, p_x = s.classes(data), head(s.likelihood, data)
    if data.is_image and not s.flat:
        encoder = ResidualEncoder(data.shape, s.latent, s.width, num_classes=classes)
        decoder = ResidualDecoder(s.latent, data.shape, p_x, s.width, num_classes=classes)
    else:
        encoder = MLPEncoder(data.shape, s.latent, 8 * s.width, num_classes=classes)
        decoder = MLPDecoder(s.latent, data.shape, p_x, 8 * s.width, num_classes=classes)
    return VAE(encoder, decoder, StandardNormal(s.latent), s.beta, s.free_bits)


def head(likelihood: str, data: Data) -> nn.Module:
    if likelihood == "normal" or (likelihood == "none" and data.grey_levels is None):
        return NormalHead("learned")
    if data.grey_levels is None:
        raise ValueError(f"--likelihood {likelihood} is of grey levels; --data {data.name} is continuous: use normal")
    if likelihood == "bernoulli":
        return BernoulliHead()
    return CategoricalHead(data.grey_levels) if likelihood == "categorical" else LogisticHead(data.grey_levels)


@dataclass
class Settings(experiment.Conditional):
    structural: ClassVar[tuple[str, ...]] = ("likelihood",)

    steps: int = 1000  # on digits it overfits from there on: 3.6 bits/dim after 256 epochs
    latent: int = setting(16, "Dimensions of z.", at_least=1)
    flat: bool = setting(False, "MLPs for images too, of eight times width units; points always have them.")
    width: int = setting(32, "Channels at the highest resolution; an MLP has eight times as many units.", at_least=8)
    likelihood: Literal["logistic", "categorical", "bernoulli", "normal", "none"] = setting(
        "none", "p(x|z); none: logistic over the grey levels of images, normal with a learned σ(z) for points."
    )
    beta: float = setting(1.0, "Weight of the rate; 1 is the ELBO.", at_least=0)
    beta_warmup: float | None = setting(
        None, "Share of the steps over which β rises from 0; none: 0.3 for points, 0 for images.", at_least=0, at_most=1
    )
    free_bits: float = setting(0.0, "Nats a latent dimension that are not charged.", at_least=0)
    lr: float = setting(2e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)
    clip: float = setting(1.0, "Largest norm of the gradient of the loss in nats/dim.", above=0)


def build(s: Settings, data: Data) -> list[Stage]:
    vae = networks(s, data)
    return [Stage("vae", vae, players(vae, s, data), conditional=s.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
