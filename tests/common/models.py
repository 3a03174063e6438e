"""A small one of every model, by name, with the x that it takes: for checks that hold of all."""

import torch

from components.backbones import MLP, Stochastic, UNet
from components.bottlenecks import VQ
from components.decoders import DeltaHead, LogisticHead, MLPDecoder, NormalHead, ResidualDecoder
from components.denoisers import Denoiser, GreyLevels
from components.discriminators import MLPDiscriminator, PatchDiscriminator
from components.encoders import MLPEncoder, ResidualEncoder
from components.ladders import dense_ladder
from components.losses import LossAwareTimes, hinge
from components.samplers import Sampler
from components.schedules import BetaSchedule, FlowSchedule, LearnedSchedule, VariancePreservingSchedule
from hybrids import (
    GAN,
    VAE,
    AdversarialDiffusion,
    Autoencoder,
    Critic,
    Diffusion,
    HierarchicalVAE,
    LatentModel,
    StandardNormal,
)

D, WIDTH, LEVELS = 4, 8, 5


def diffusion(schedule=None, d=D, prediction="v_prediction", outputs=1, **settings):
    denoiser = Denoiser(MLP(d, WIDTH, 1, out_features=outputs * d), schedule or LearnedSchedule(8.0, -5.0), prediction)
    return Diffusion(denoiser, d, **{"sampler": Sampler(steps=2), **settings})


def chain():
    return diffusion(BetaSchedule("squaredcos_cap_v2", 6), grey_levels=LEVELS, timesteps=6)


def vae(prior, latent=3):
    return VAE(MLPEncoder(D, latent, WIDTH, 1), MLPDecoder(latent, D, NormalHead("learned"), WIDTH, 1), prior)


def ladder():
    rungs = dense_ladder(D, 2, 2, WIDTH)
    return HierarchicalVAE(rungs.levels, MLPDecoder(WIDTH, D, LogisticHead(LEVELS), WIDTH, 1), rungs.encoder)


def autoencoder(bottleneck=None):
    encoder = ResidualEncoder((1, 8, 8), (2, 4, 4), WIDTH, (1, 1))
    decoder = ResidualDecoder((2, 4, 4), (1, 8, 8), NormalHead(0.5), WIDTH, (1, 1))
    return Autoencoder(encoder, decoder, bottleneck, critic=Critic(PatchDiscriminator(1, WIDTH, 1), hinge))


def latent_diffusion(bottleneck=None):
    flow = Denoiser(UNet((2, 4, 4), WIDTH, (1,), 1), FlowSchedule(), "flow")
    return LatentModel(autoencoder(bottleneck), Diffusion(flow, (2, 4, 4), sampler=Sampler("heun", steps=2)))


def adversarial_diffusion():
    denoiser = Denoiser(Stochastic(MLP(D, WIDTH, 1), 3), VariancePreservingSchedule(), "sample")
    discriminator = MLPDiscriminator(D, WIDTH, 1, timed=True, given_features=D)
    return AdversarialDiffusion(denoiser, Critic(discriminator, r1=0.1), D, 2, 3)


MODELS = {
    "standard normal": lambda: StandardNormal(D),
    "VAE": lambda: vae(StandardNormal(3)),
    "VAE, diffusion prior": lambda: vae(diffusion(d=3)),
    "hierarchical VAE": ladder,
    "diffusion, continuous": diffusion,
    "diffusion, times that learn": lambda: diffusion(times=LossAwareTimes(bins=4)),
    "diffusion, likelihood": lambda: diffusion(grey_levels=LEVELS, weighting="likelihood"),
    "diffusion, grey levels": lambda: diffusion(prediction=GreyLevels((D,), LEVELS), outputs=LEVELS),
    "diffusion, chain": chain,
    "diffusion, as a ladder": lambda: HierarchicalVAE.from_diffusion(chain()),
    "GAN": lambda: GAN(
        MLPDecoder(3, D, DeltaHead(bounded=False), WIDTH, 1), Critic(MLPDiscriminator(D, WIDTH, 1), hinge, r1=0.1), 3
    ),
    "adversarial diffusion": adversarial_diffusion,
    "autoencoder": autoencoder,
    "autoencoder, codes": lambda: autoencoder(VQ(8, 2)),
    "latent model": latent_diffusion,
    "latent model, codes": lambda: latent_diffusion(VQ(8, 2)),
    "latent model, as a VAE": lambda: LatentModel(
        Autoencoder(MLPEncoder(D, 3, WIDTH, 1), MLPDecoder(3, D, NormalHead(0.5), WIDTH, 1)), diffusion(d=3)
    ).vae(),
}


def examples(name, n=6):
    """x (n, *shape) that the model of that name takes, on a grid of LEVELS."""
    shape = (1, 8, 8) if name.startswith(("autoencoder", "latent model")) and "VAE" not in name else (D,)
    drawn = torch.Generator().manual_seed(9)
    return torch.randint(LEVELS, (n, *shape), generator=drawn) * (2 / (LEVELS - 1)) - 1
