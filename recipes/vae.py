"""A variational autoencoder: Kingma & Welling 2013, 1312.6114; with β (Higgins 2017) and free bits (Kingma 2016)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

from components.conditions import drop
from components.decoders import BernoulliHead, CategoricalHead, LogisticHead, MLPDecoder, NormalHead, ResidualDecoder
from components.encoders import MLPEncoder, ResidualEncoder
from hybrids import VAE, Player, StandardNormal, Terms, experiment, warmup_cosine
from hybrids.batch import Batch, unpack
from hybrids.data import Data
from hybrids.experiment import Stage, setting


@dataclass
class Settings(experiment.Settings):
    digits_resolution: ClassVar[int] = 8  # where digits have grey levels of their own, so bits/dim mean something
    structural: ClassVar[tuple[str, ...]] = ("likelihood",)

    steps: int = 1000  # on digits it overfits from there on: 3.6 bits/dim after 256 epochs
    latent: int = setting(16, "Dimensions of z.", at_least=1)
    flat: bool = setting(False, "MLPs for images too, of eight times width units; points always have them.")
    width: int = setting(32, "Channels at the highest resolution; an MLP has eight times as many units.", at_least=8)
    likelihood: Literal["logistic", "categorical", "bernoulli", "normal", "none"] = setting(
        "none", "p(x|z); none: logistic over the grey levels of images, normal with a learned σ(z) for points."
    )
    conditional: bool = setting(False, "Learn p(x|label), and p(x) beside it.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)
    beta: float = setting(1.0, "Weight of the rate; 1 is the ELBO.", at_least=0)
    beta_warmup: float | None = setting(
        None, "Share of the steps over which β rises from 0; none: 0.3 for points, 0 for images.", at_least=0, at_most=1
    )
    free_bits: float = setting(0.0, "Nats a latent dimension that are not charged.", at_least=0)
    lr: float = setting(2e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)
    clip: float = setting(1.0, "Largest norm of the gradient of the loss in nats/dim.", above=0)


def head(likelihood: str, data: Data) -> nn.Module:
    if likelihood == "normal" or (likelihood == "none" and data.grey_levels is None):
        return NormalHead("learned")
    if data.grey_levels is None:
        raise ValueError(f"--likelihood {likelihood} is of grey levels; --data {data.name} is continuous: use normal")
    if likelihood == "bernoulli":
        return BernoulliHead()
    return CategoricalHead(data.grey_levels) if likelihood == "categorical" else LogisticHead(data.grey_levels)


def build(settings: Settings, data: Data) -> list[Stage]:
    if settings.conditional and not data.classes:
        raise ValueError(f"--conditional needs labels; --data {data.name} has none")
    classes = data.classes if settings.conditional else None
    p_x = head(settings.likelihood, data)
    if data.is_image and not settings.flat:
        encoder = ResidualEncoder(data.shape, settings.latent, settings.width, num_classes=classes)
        decoder = ResidualDecoder(settings.latent, data.shape, p_x, settings.width, num_classes=classes)
    else:
        encoder = MLPEncoder(data.shape, settings.latent, 8 * settings.width, num_classes=classes)
        decoder = MLPDecoder(settings.latent, data.shape, p_x, 8 * settings.width, num_classes=classes)
    vae = VAE(encoder, decoder, StandardNormal(settings.latent), settings.beta, settings.free_bits)
    warmup = settings.beta_warmup if settings.beta_warmup is not None else 0.0 if data.is_image else 0.3
    rising = warmup * settings.steps

    def loss(batch: Batch, step: int) -> Terms:
        x, cond = unpack(batch)
        # Sønderby 2016, 1602.02282: charged in full from the start, z is given up where p(x|z) says little yet.
        share = 1.0 if step >= rising else step / rising
        return (1 / data.dimensions) * vae.nelbo(
            x, *vae(x, drop(cond, settings.label_dropout, classes)), settings.beta * share, settings.free_bits
        )

    player = Player(
        loss,
        moves=[vae],
        optimizer=partial(AdamW, lr=settings.lr),
        clip=settings.clip,
        lr=warmup_cosine(),
        name="vae",
    )
    return [Stage("vae", vae, [player], conditional=settings.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
