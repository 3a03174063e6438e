"""Players small enough to check gradient by gradient; what is random in their losses lies in the batch."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from components.backbones import MLP
from components.decoders import DeltaHead, MLPDecoder, NormalHead
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator
from components.encoders import MLPEncoder
from components.losses import relativistic
from components.schedules import LogSNRLinearSchedule
from hybrids import VAE, Critic, Player, StandardNormal, Terms
from hybrids.data import Data
from hybrids.experiment import parse

SGD = partial(torch.optim.SGD, lr=0.1)
FEATURES, LATENT, WIDTH = 4, 2, 8

TINY = {
    "hierarchical_vae": ["--width", "8", "--latent", "2"],
    "variational_diffusion": ["--width", "8", "--sample-steps", "4", "--resolution", "8"],
    "vae": ["--width", "8", "--latent", "4"],
    "gan": ["--width", "8", "--latent", "4", "--resolution", "8"],
    "ddpm": ["--width", "8", "--resolution", "8", "--timesteps", "8", "--sample-steps", "4", "--dropout", "0.1"],
    "adversarial_diffusion": ["--width", "8", "--latent", "4", "--resolution", "8"],
    "latent_adversarial_diffusion": ["--width", "8", "--resolution", "8", "--noise", "4"],
    "latent_diffusion": [
        "--width",
        "8",
        "--resolution",
        "8",
        "--sample-steps",
        "2",
        "--critic",
        "0.5",
        "--critic-start",
        "1",
    ],
}
"""Arguments that make each recipe's networks tiny; `test_the_tiny_recipes_are_all` holds that none is missing."""

TWO_STAGES = {"latent_adversarial_diffusion", "latent_diffusion"}
"""Recipes whose runs have --steps in each of two stages."""


def last_step(name: str, steps: int) -> int:
    """The last step of a tiny run of a recipe with so many --steps."""
    return steps * (2 if name in TWO_STAGES else 1)


def tiny(recipe: ModuleType, data: Data, **options) -> list[Player]:
    """The players of a tiny recipe's first stage, the same at every call; options are settings of it."""
    name = Path(recipe.__file__).stem
    settings = replace(parse(recipe.Settings, TINY[name], name), **options)
    torch.manual_seed(0)
    return recipe.build(settings, data)[0].players


class Recorder(torch.optim.SGD):
    """Plain SGD that remembers the gradients of its steps, which are what training equivalences are about."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, lr=lr)
        self.seen: list[Tensor] = []

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        # What nothing flows back to (a shared encoder that stands still) has no gradient at all.
        self.seen.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                                    for p in parameters]))  # fmt: skip
        return super().step(closure)


def examples(n: int, seed: int = 0) -> dict[str, Tensor]:
    """n examples, each with the noise that belongs to it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator)

    return {
        "x": 0.5 * normal(FEATURES),
        "z": normal(LATENT),
        "epsilon": normal(FEATURES),
        "t": torch.rand(n, generator=generator),
    }


def cut(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """The batch in pieces of one size."""
    n = len(batch["x"])
    return [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, n, size)]


def vae_game(optimizer) -> list[Player]:
    """A VAE on the negative ELBO."""
    vae = VAE(
        MLPEncoder(FEATURES, LATENT, WIDTH, 1),
        MLPDecoder(LATENT, FEATURES, NormalHead("learned"), WIDTH, 1),
        StandardNormal(LATENT),
    )

    def loss(batch):
        q = vae.encoder(batch["x"])
        z = q.mean + q.std * batch["z"]
        return vae.nelbo(batch["x"], q, z, vae.decoder(z))

    return [Player(loss, [vae], optimizer=optimizer, name="vae")]


def gan_game(optimizer) -> list[Player]:
    """A relativistic GAN with R1 and R2: double backward inside the forward of a player."""
    generator = MLPDecoder(LATENT, FEATURES, DeltaHead(bounded=False), WIDTH, 1)
    critic = Critic(MLPDiscriminator(FEATURES, WIDTH, 2), relativistic, r1=1.0, r2=0.5)

    def judge(batch, step):
        with torch.no_grad():
            fake = generator(batch["z"]).mean
        return critic.tell(batch["x"], fake, step=step)

    return [
        Player(judge, [critic], optimizer=optimizer, name="critic"),
        Player(lambda batch: critic.fool(generator(batch["z"]).mean, batch["x"]), [generator], optimizer=optimizer,
               name="generator"),
    ]  # fmt: skip


def ddpm_game(optimizer) -> list[Player]:
    """A denoiser on L_simple."""
    denoiser = Denoiser(MLP(FEATURES, WIDTH, 1), LogSNRLinearSchedule())
    # At first it answers zero, where most gradients are zero too.
    nn.init.normal_(denoiser.backbone.last.weight, std=0.3)

    def loss(batch):
        alpha, sigma = (c.float()[:, None] for c in denoiser.schedule.alpha_sigma(batch["t"]))
        x_t = alpha * batch["x"] + sigma * batch["epsilon"]
        error = batch["epsilon"] - denoiser(x_t, batch["t"]).epsilon
        return Terms(simple=error.square().sum(1))

    return [Player(loss, [denoiser], optimizer=optimizer, name="denoiser")]


def aae_game(optimizer) -> list[Player]:
    """An adversarial autoencoder (Makhzani 2015, 1511.05644): two players move one encoder."""
    encoder = MLPEncoder(FEATURES, LATENT, WIDTH, 1)
    decoder = MLPDecoder(LATENT, FEATURES, NormalHead(0.5), WIDTH, 1)
    critic = Critic(MLPDiscriminator(LATENT, WIDTH, 2))

    def code(batch):
        q = encoder(batch["x"])
        return q.mean + q.std * batch["z"]

    def judge(batch):
        with torch.no_grad():
            fake = code(batch)
        return critic.tell(batch["epsilon"][:, :LATENT], fake)

    return [
        Player(lambda batch: Terms(distortion=-decoder(code(batch)).log_prob(batch["x"])), [encoder, decoder],
               optimizer=optimizer, name="autoencoder"),
        Player(judge, [critic], optimizer=optimizer, name="critic"),
        Player(lambda batch: critic.fool(code(batch)), [encoder], optimizer=optimizer, name="encoder"),
    ]  # fmt: skip


GAMES = {"vae": vae_game, "gan": gan_game, "ddpm": ddpm_game, "aae": aae_game}


def game(name: str, optimizer=Recorder) -> list[Player]:
    """The players of one of GAMES, the same at every call."""
    torch.manual_seed(7)
    return GAMES[name](optimizer)


def linear(name: str = "player", features: int = 2, loss=None, optimizer=SGD, **options):
    """A player that fits x to zero with one linear layer, and that layer."""
    torch.manual_seed(1)
    layer = nn.Linear(features, 1)
    return Player(loss or (lambda x: Terms(error=layer(x)[:, 0].square())), [layer], optimizer=optimizer, name=name,
                  **options), layer  # fmt: skip
