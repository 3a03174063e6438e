"""A VAE with a diffusion prior and an adversarially sharpened reconstruction."""

import torch
from accelerate import Accelerator

from components.backbones import UNet
from components.decoders import NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import PatchDiscriminator
from components.encoders import ResidualEncoder
from components.schedules import LearnedSchedule
from hybrids import VAE, Critic, Diffusion, Player, train
from hybrids.data import load_data

data = load_data("digits", resolution=16)
encoder = ResidualEncoder(data.shape, latent=(4, 4, 4))
decoder = ResidualDecoder((4, 4, 4), data.shape, NormalHead("shared"))
prior = Diffusion(Denoiser(UNet((4, 4, 4)), LearnedSchedule()), shape=(4, 4, 4))  # nest
vae = VAE(encoder, decoder, prior)
critic = Critic(PatchDiscriminator(channels=1))
d = data.dimensions


def compress(x):
    q, z, p = vae(x)
    return vae.nelbo(x, q, z, p) + 0.1 * d * critic.fool(p.mean)  # add


def judge(x):
    with torch.no_grad():
        _, _, p = vae(x)
    return critic.tell(real=x, fake=p.mean)  # oppose


players = [Player(compress, moves=[vae], name="vae"), Player(judge, moves=[critic], name="critic")]
accelerator = Accelerator()
loader = data.batches(64, rank=accelerator.process_index, world_size=accelerator.num_processes)
for step, logs in train(players, loader, accelerator, steps=1000):
    if step % 100 == 0:
        accelerator.print(step, {name: float(f"{value:.3g}") for name, value in logs.items()})
