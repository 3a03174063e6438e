"""All three at once: a VAE whose latents are made in four steps by a denoising diffusion GAN: sharp, covering, quick.

stage 1   the VAE (Kingma & Welling 2013, 1312.6114):  minimize  (E_q[-log p(x|z)] + β KL(q(z|x) ‖ N(0, I))) / d
stage 2   a denoising diffusion GAN (Xiao 2021, 2112.07804) of its latents w = (z - shift) · scale:
          s = t - 1/T;  w_s ~ q(w_s|w);  w_t ~ q(w_t|w_s);  w'_s ~ q(w_s|w_t, G(w_t, noise, t))
critic:     minimize  E[-log D(w_s, w_t, t)] + E[-log(1 - D(w'_s, w_t, t))] + γ/2 E‖∇D(w_s, w_t, t)‖²
generator:  minimize  E[-log D(w'_s, w_t, t)]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch.optim import Adam, AdamW

from components.backbones import MLP, Stochastic, UNet
from components.decoders import MLPDecoder, NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, NoiseOfPair, ResidualDiscriminator
from components.encoders import MLPEncoder, ResidualEncoder, latent_shape
from components.schedules import CosineSchedule
from hybrids import AdversarialDiffusion, Autoencoder, Critic, LatentModel, Player, Terms, experiment, warmup_cosine
from hybrids.batch import Batch
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(model: LatentModel, s: Settings, data: Data) -> tuple[list[Player], list[Player]]:
    vae, gan = model.first, model.second

    def judge(batch: Batch, step: int) -> Terms:
        w, cond = model.latent_batch(batch)
        return gan.judge(w, cond, step)

    adamw = partial(AdamW, lr=s.lr)
    one = Player(vae.loss, vae.moved, optimizer=adamw, lr=warmup_cosine(), clip=1.0, per=data.dimensions, name="vae")
    # No momentum: each player answers the other's last move.
    adam, decay = partial(Adam, betas=(0.0, 0.99)), warmup_cosine(0, final=0.02)
    two = [
        Player(judge, [gan.critic], optimizer=partial(adam, lr=s.critic_lr), lr=decay, name="critic"),
        Player(model.latent_loss, [gan.denoiser], optimizer=partial(adam, lr=s.game_lr), lr=decay, name="generator"),
    ]
    return [one], two


def networks(s: Settings, data: Data) -> LatentModel:
    classes, vae = s.classes(data), autoencoder(s, data)
    shape, pairs = vae.latent, {"num_classes": classes, "timed": s.timesteps > 1}
    if len(shape) == 1:
        backbone = MLP(*shape, 10 * s.width, num_classes=classes)
        discriminator = MLPDiscriminator(*shape, 20 * s.width, depth=4, given_features=shape[0], **pairs)
    else:
        backbone = UNet(shape, 2 * s.width, num_classes=classes)
        discriminator = ResidualDiscriminator(shape, 2 * s.width, given_channels=shape[0], **pairs)
    denoiser = Denoiser(Stochastic(backbone, s.noise), CosineSchedule(), "sample")
    critic = Critic(NoiseOfPair(discriminator, denoiser.schedule, s.timesteps), s.loss, s.r1, s.r2)
    gan = AdversarialDiffusion(denoiser, critic, shape, s.timesteps, s.noise)
    return LatentModel(vae, gan, num_classes=classes, label_dropout=s.label_dropout)


def autoencoder(s: Settings, data: Data) -> Autoencoder:
    head = NormalHead(s.sigma if data.is_image else "learned")
    if s.flat or not data.is_image:
        encoder = MLPEncoder(data.shape, s.latent, 10 * s.width)
        return Autoencoder(encoder, MLPDecoder(s.latent, data.shape, head, 10 * s.width), beta=s.beta)
    encoder = ResidualEncoder(data.shape, latent_shape(s.latent, data.shape), s.width)
    return Autoencoder(encoder, ResidualDecoder(encoder.latent, data.shape, head, s.width), beta=s.beta)


@dataclass
class Settings(experiment.Conditional):
    structural: ClassVar[tuple[str, ...]] = ("timesteps",)

    steps: int = 4000
    batch_size: int = 128
    first_steps: int | None = setting(None, "Steps of the VAE; none: --steps.", at_least=1)
    flat: bool = setting(False, "Vectors as latents, and MLPs; always for points.")
    latent: int = setting(4, "Channels of the latents, or their dimensions with --flat.", at_least=1)
    width: int = setting(32, "Channels at the highest resolution; ten times as many units of an MLP.", at_least=8)
    beta: float = setting(0.05, "Weight of the VAE's rate.", at_least=0)
    sigma: float = setting(0.14, "σ of p(x|z) = N(x̂, σ²) of images; points learn theirs.", above=0)
    timesteps: int = setting(4, "T, the steps from noise to a latent: 1, 2, 4 or 8.", at_least=1)
    noise: int = setting(64, "Dimensions of the generator's own z.", at_least=1)
    loss: Literal["non_saturating", "relativistic"] = setting("non_saturating", "The pair of losses.")
    r1: float = setting(0.5, "γ of R1, on the critic's less noisy latent.", at_least=0)
    r2: float = setting(0.0, "γ of R2, the same on fakes; with relativistic, as much as γ of R1.", at_least=0)
    lr: float = setting(1e-3, "Learning rate of the VAE, after a warm-up, then decayed by a cosine.", above=0)
    game_lr: float = setting(4e-4, "Learning rate of the generator, decayed by a cosine to a fiftieth.", above=0)
    critic_lr: float = setting(1.6e-3, "Learning rate of the critic, decayed alike.", above=0)


def build(s: Settings, data: Data) -> list[Stage]:
    model = networks(s, data)
    one, two = players(model, s, data)
    latents = {"batches": lambda: model.cache(data), "still": (model.first,), "conditional": s.conditional}
    return [Stage("vae", model.first, one, steps=s.first_steps), Stage("latents", model, two, **latents)]


if __name__ == "__main__":
    experiment.main(Settings, build)
