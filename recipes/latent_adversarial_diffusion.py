"""All three at once: a VAE whose latents are made in four steps by a denoising diffusion GAN: sharp, covering, quick.

The VAE (Kingma & Welling 2013, 1312.6114) is trained first, with a small rate; then a diffusion of its latents whose
denoiser is a generator and meets a critic (Xiao 2021, 2112.07804; in latent space as Rombach 2022, 2112.10752).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Adam, AdamW

from components.backbones import MLP, Stochastic, UNet
from components.decoders import MLPDecoder, NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, NoiseOfPair, ResidualDiscriminator
from components.encoders import MLPEncoder, ResidualEncoder
from components.schedules import CosineSchedule
from hybrids import AdversarialDiffusion, Autoencoder, Critic, LatentModel, Player, Terms, experiment, warmup_cosine
from hybrids.batch import Batch
from hybrids.data import Data
from hybrids.experiment import Stage, setting


@dataclass
class Settings(experiment.Settings):
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
    conditional: bool = setting(False, "Learn p(x|label), and p(x) beside it.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)
    lr: float = setting(1e-3, "Learning rate of the VAE, after a warm-up, then decayed by a cosine.", above=0)
    game_lr: float = setting(4e-4, "Learning rate of the generator, decayed by a cosine to a fiftieth.", above=0)
    critic_lr: float = setting(1.6e-3, "Learning rate of the critic, decayed alike.", above=0)


def autoencoder(s: Settings, data: Data) -> Autoencoder:
    head = NormalHead(s.sigma if data.is_image else "learned")
    if s.flat or not data.is_image:
        encoder = MLPEncoder(data.shape, s.latent, 10 * s.width)
        return Autoencoder(encoder, MLPDecoder(s.latent, data.shape, head, 10 * s.width), beta=s.beta)
    side = max(4, data.shape[-1] // 4)
    encoder = ResidualEncoder(data.shape, (s.latent, side, side), s.width)
    return Autoencoder(encoder, ResidualDecoder(encoder.latent, data.shape, head, s.width), beta=s.beta)


def latent_gan(s: Settings, shape: tuple[int, ...], classes: int | None) -> AdversarialDiffusion:
    of_pairs = {"num_classes": classes, "timed": s.timesteps > 1}
    if len(shape) == 1:
        backbone = MLP(*shape, 10 * s.width, num_classes=classes)
        discriminator = MLPDiscriminator(*shape, 20 * s.width, depth=4, given_features=shape[0], **of_pairs)
    else:
        backbone = UNet(shape, 2 * s.width, num_classes=classes)
        discriminator = ResidualDiscriminator(shape, 2 * s.width, given_channels=shape[0], **of_pairs)
    denoiser = Denoiser(Stochastic(backbone, s.noise), CosineSchedule(), "sample")
    critic = Critic(NoiseOfPair(discriminator, denoiser.schedule, s.timesteps), s.loss, s.r1, s.r2)
    return AdversarialDiffusion(denoiser, critic, shape, s.timesteps, s.noise)


def build(settings: Settings, data: Data) -> list[Stage]:
    s = settings
    if s.conditional and not data.classes:
        raise ValueError(f"--conditional needs labels; --data {data.name} has none")
    classes = data.classes if s.conditional else None
    vae = autoencoder(s, data)
    gan = latent_gan(s, vae.latent, classes)
    model = LatentModel(vae, gan, num_classes=classes, label_dropout=s.label_dropout)
    steps = s.first_steps or s.steps

    def judge(batch: Batch, step: int) -> Terms:
        return gan.judge(*model.latent_batch(batch), step=step)

    def opponent(loss: Callable[..., Terms], module: nn.Module, lr: float, name: str) -> Player:
        # No momentum: each player answers the other's last move.
        optimizer = partial(Adam, lr=lr, betas=(0.0, 0.99))
        return Player(loss, [module], optimizer=optimizer, lr=warmup_cosine(0, final=0.02), name=name)

    code = Player(
        lambda x: (1 / data.dimensions) * vae.loss(x),
        moves=vae.moved,
        optimizer=partial(AdamW, lr=s.lr),
        clip=1.0,
        lr=warmup_cosine(),
        name="vae",
    )
    game = [
        opponent(judge, gan.critic, s.critic_lr, "critic"),
        opponent(model.latent_loss, gan.denoiser, s.game_lr, "generator"),
    ]
    cached = {"batches": lambda: model.cache(data), "still": (vae,), "conditional": s.conditional}
    return [Stage("vae", vae, [code], steps=steps), Stage("latents", model, game, **cached)]


if __name__ == "__main__":
    experiment.main(Settings, build)
