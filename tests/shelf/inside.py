"""Small models that parts are put inside, and their players."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from components.augmentations import horizontal_flip, random_crop
from components.backbones import MLP, UNet
from components.bottlenecks import FSQ, VQ
from components.conditions import drop
from components.decoders import DeltaHead, MLPDecoder, NormalHead, ResidualDecoder, ResidualGenerator
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, ResidualDiscriminator
from components.distributions import Implicit, per_example, randn_like
from components.encoders import MLPEncoder, ResidualEncoder
from components.losses import Perceptual
from components.samplers import Sampler
from components.schedules import LogSNRLinearSchedule
from hybrids import GAN, VAE, Critic, Diffusion, Player, StandardNormal, Terms

FEATURES, IMAGE, PHOTOGRAPH, SEQUENCE = 4, (1, 8, 8), (3, 32, 32), (2, 8)
LATENT, WIDTH, CLASSES, LEVELS, EXAMPLES = 3, 8, 3, 4, 8

# Adam moves whatever has a gradient, however small; without weight decay, nothing else.
ADAM = partial(torch.optim.Adam, lr=1e-2)
Game = tuple[list[Player], dict[str, Tensor]]


def batch(shape: tuple[int, ...] = (FEATURES,), *more: str) -> dict[str, Tensor]:
    """Eight examples on a grid of LEVELS values in [-1, 1], the same at every call, with what else is asked for."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        values = torch.randint(LEVELS, (EXAMPLES, *shape), generator=generator)
        return 2 * values / (LEVELS - 1) - 1

    mask = torch.rand(EXAMPLES, 5, generator=generator) < 0.5
    mask[::4] = False  # some see the null token only
    found = {
        "x": drawn(*shape),
        "cond": torch.arange(EXAMPLES) % CLASSES,
        "given": drawn(*shape),
        "t": torch.rand(EXAMPLES, generator=generator),
        "tokens": drawn(5, FEATURES),
        "mask": mask,
    }
    return {key: found[key] for key in ("x", *more)}


def condition(batch: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor] | None:
    """Labels, or tokens with their mask, or None."""
    return (batch["tokens"], batch["mask"]) if "tokens" in batch else batch.get("cond")


def one(model: nn.Module, loss: Callable[..., Terms] | None = None, uses: tuple[nn.Module, ...] = ()) -> list[Player]:
    """A single player that moves the whole model, on its own loss if no other is given."""
    return [Player(loss or (lambda b: model.loss(b["x"], condition(b))), [model], uses, ADAM, name="model")]


# Encoders, decoders and heads, in a VAE


def vae(encoder: nn.Module | None = None, decoder: nn.Module | None = None, **options) -> VAE:
    """A VAE of vectors, or of what is given."""
    return VAE(
        encoder or MLPEncoder(FEATURES, LATENT, WIDTH, 1),
        decoder or MLPDecoder(LATENT, FEATURES, NormalHead("learned"), WIDTH, 1),
        StandardNormal(LATENT),
        **options,
    )


def pictures(encoder: nn.Module | None = None, head: nn.Module | None = None, shape=IMAGE, **options) -> VAE:
    """A VAE of images with a residual decoder."""
    decoder = ResidualDecoder(LATENT, shape, head or NormalHead("shared"), WIDTH, (1, 1), **options)
    return vae(encoder or ResidualEncoder(shape, LATENT, WIDTH, (1, 1)), decoder)


def labelled(encoder: nn.Module) -> VAE:
    """A VAE of images and labels."""
    return pictures(encoder, num_classes=CLASSES)


def latent_map() -> VAE:
    """A VAE whose latent is a map."""
    shape = (LATENT, 4, 4)
    encoder = ResidualEncoder(IMAGE, shape, WIDTH, (1, 1))
    return VAE(encoder, ResidualDecoder(shape, IMAGE, NormalHead(0.5), WIDTH, (1, 1)), StandardNormal(shape))


def perceptual(distance: Perceptual, shape: tuple[int, int, int]) -> list[Player]:
    """A VAE with a distance of features in its loss."""
    model = pictures(shape=shape)

    def loss(b: dict[str, Tensor]) -> Terms:
        q, z, p = model(b["x"])
        return model.nelbo(b["x"], q, z, p) + Terms(perceptual=(0.5, distance(p.mean, b["x"])))

    return one(model, loss, (distance,))


def augmented() -> list[Player]:
    """A VAE of images that are flipped and cropped on their device."""
    model = pictures()
    return one(model, lambda b: model.loss(random_crop(horizontal_flip(b["x"]), 1, fill=-1.0)))


class Autoencoder(nn.Module):
    """x to a map, rounded to codes, to x."""

    def __init__(self, bottleneck: VQ | FSQ) -> None:
        super().__init__()
        shape = (bottleneck.features, 4, 4)
        self.encoder, self.bottleneck = ResidualEncoder(IMAGE, shape, WIDTH, (1, 1)), bottleneck
        self.decoder = ResidualDecoder(shape, IMAGE, NormalHead(0.5), WIDTH, (1, 1))

    def loss(self, x: Tensor, cond: Tensor | None = None) -> Terms:
        """Terms distortion, what the bottleneck charges, and its perplexity."""
        found = self.bottleneck(self.encoder(x).mean)
        return Terms(distortion=-self.decoder(found.z).log_prob(x), perplexity=(0.0, found.perplexity), **found.losses)

    @torch.no_grad()
    def sample(self, n: int, cond: Tensor | None = None) -> Tensor:
        """(n, *IMAGE), of codes that are drawn evenly."""
        return self.decoder(self.bottleneck.lookup(torch.randint(self.bottleneck.codes, (n, 4, 4)))).mean


# Generators, discriminators and losses, in a GAN


def gan(generator: nn.Module | None = None, discriminator: nn.Module | None = None, **options) -> list[Player]:
    """A GAN of vectors, or of what is given."""
    generator = generator or MLPDecoder(LATENT, FEATURES, DeltaHead(bounded=False), WIDTH, 1)
    critic = Critic(discriminator or MLPDiscriminator(FEATURES, WIDTH, 2), **options)
    model = GAN(generator, critic, LATENT)

    def judge(b: dict[str, Tensor], step: int) -> Terms:
        return model.judge(b["x"], b.get("cond"), step)

    return [
        Player(judge, [critic], optimizer=ADAM, name="critic"),
        Player(lambda b: model.loss(b["x"], b.get("cond")), [generator], optimizer=ADAM, name="generator"),
    ]


class Noisy(nn.Module):
    """A generator that adds noise of its own: what it returns can be drawn, and has no density."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(2 * LATENT, FEATURES)

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Implicit:
        """p(x|z): z (B, LATENT)."""
        return Implicit(lambda generator: self.network(torch.cat([z, randn_like(z, generator)], dim=1)), "Noisy")


def painter(**options) -> ResidualGenerator:
    """A small generator of images."""
    return ResidualGenerator(LATENT, IMAGE, width=WIDTH, multipliers=(1, 1), blocks=1, **options)


def residual_critic(shape=IMAGE, **options) -> ResidualDiscriminator:
    """A small discriminator of images."""
    return ResidualDiscriminator(shape, WIDTH, (1, 1), **options)


def denoising_gan(generator: nn.Module, discriminator: nn.Module) -> list[Player]:
    """A critic of pairs: D(x, given, t), and with labels cond. Xiao 2021, 2112.07804."""
    critic = Critic(discriminator, r1=0.1)

    def others(b: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: b[key] for key in ("t", "given", "cond") if key in b}

    def fake(b: dict[str, Tensor]) -> Tensor:
        return generator(torch.randn(len(b["x"]), LATENT)).rsample()

    return [
        Player(lambda b: critic.tell(b["x"], fake(b).detach(), **others(b)), [critic], optimizer=ADAM, name="critic"),
        Player(lambda b: critic.fool(fake(b), **others(b)), [generator], optimizer=ADAM, name="generator"),
    ]


# Schedules, backbones, denoisers, weightings, times and samplers, in a Diffusion


def diffusion(
    backbone: nn.Module | None = None, schedule: nn.Module | None = None, shape=FEATURES, denoiser=None, **options
) -> Diffusion:
    """A diffusion of vectors, or of what is given."""
    options = {"sampler": Sampler(steps=2), **options}
    backbone = backbone or MLP(FEATURES, WIDTH, 1)
    return Diffusion(Denoiser(backbone, schedule or LogSNRLinearSchedule(), **(denoiser or {})), shape, **options)


def unet(shape=IMAGE, **options) -> UNet:
    """A small U-Net."""
    return UNet(shape, 4, (1, 2), blocks=1, **options)


def dropped(backbone: nn.Module, num_classes: int | None, shape) -> list[Player]:
    """A diffusion that is trained on dropped conditions and guides its sampler."""
    guided = Sampler(steps=2, guidance_scale=2.0, guidance_interval=(0.1, 0.9), guidance_rescale=0.5)
    model = diffusion(backbone, shape=shape, sampler=guided)
    return one(model, lambda b: model.loss(b["x"], drop(condition(b), 0.5, num_classes)))


def distilled(exact: Callable[[LogSNRLinearSchedule], nn.Module]) -> list[Player]:
    """A student of an exact denoiser."""
    schedule = LogSNRLinearSchedule()
    teacher = Denoiser(exact(schedule), schedule, "sample")
    student = Denoiser(MLP(FEATURES, WIDTH, 1), schedule, "v_prediction")

    def loss(b: dict[str, Tensor]) -> Terms:
        x_t = schedule.marginal(b["x"], b["t"]).rsample()
        return Terms(score=per_example((student(x_t, b["t"]).mean - teacher(x_t, b["t"]).mean).square()))

    return one(student, loss, (teacher,))
