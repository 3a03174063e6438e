"""Latent diffusion: Rombach 2022, 2112.10752: an autoencoder with KL, VQ or FSQ, then a diffusion of its latents.

stage 1   z ~ q(z|x) = encoder(x);  x̂ = decoder(z)
          minimize  (-log N(x; x̂, σ² I) + β KL(q(z|x) ‖ N(0, I)) + a LPIPS(x, x̂) - b λ D(x̂)) / d
          λ: the adaptive weight of VQ-GAN (Esser 2021, 2012.09841, equation 7)
stage 2   w = (z - shift) · scale;  w_t = (1 - t) w + t ε;  minimize  ‖(ε - w) - v_θ(w_t, t)‖² / k
sample    w_0 from w_1 = ε along v_θ;  x = decoder(w_0 / scale + shift)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

from components.backbones import MLP, UNet
from components.bottlenecks import FSQ, VQ
from components.decoders import MLPDecoder, NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import PatchDiscriminator
from components.encoders import MLPEncoder, ResidualEncoder, latent_shape
from components.losses import Perceptual, hinge
from components.samplers import Sampler
from components.schedules import CosineSchedule, FlowSchedule
from components.text import Captioned, CharacterEncoder, HuggingFaceText, digit_names
from hybrids import Autoencoder, Critic, Diffusion, LatentModel, Player, experiment, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(model: LatentModel, s: Settings, data: Data) -> tuple[list[Player], list[Player]]:
    first, text = model.first, model.condition
    player = partial(Player, optimizer=partial(AdamW, lr=s.lr), lr=warmup_cosine(), clip=1.0)
    one = [player(first.loss, first.moved, per=data.dimensions, name="autoencoder")]
    if first.critic is not None:
        one.append(player(first.judge, [first.critic], name="critic"))
    moves = [model.second] if text is None else [model.second, text]
    two = [player(model.latent_loss, moves, per=math.prod(first.latent), name="latents")]
    return one, two


def networks(s: Settings, data: Data) -> LatentModel:
    first = autoencoder(s, data)
    text = captions(s, data) if s.condition == "text" else None
    classes = data.classes if s.condition == "label" else None
    if len(first.latent) == 1:
        backbone = MLP(s.latent, 20 * s.width, num_classes=classes)
    else:
        backbone = UNet(first.latent, 2 * s.width, num_classes=classes, context=text and text.features)
    noise = (FlowSchedule(), "flow") if s.second == "flow" else (CosineSchedule(15.0, -15.0), "v_prediction")
    sampler = Sampler("ddim", s.sample_steps, guidance_scale=s.guidance_scale)
    second = Diffusion(Denoiser(backbone, *noise), first.latent, sampler=sampler)
    return LatentModel(first, second, text, classes, s.label_dropout)


def autoencoder(s: Settings, data: Data) -> Autoencoder:
    head = NormalHead(s.sigma if data.is_image else "learned")
    if s.flat or not data.is_image:
        encoder = MLPEncoder(data.shape, s.latent, 20 * s.width)
        decoder = MLPDecoder(s.latent, data.shape, head, 20 * s.width)
    else:
        encoder = ResidualEncoder(data.shape, latent_shape(s.latent, data.shape), s.width)
        decoder = ResidualDecoder(encoder.latent, data.shape, head, s.width)
    bottleneck = {"kl": lambda: None, "vq": lambda: VQ(s.codes, s.latent), "fsq": lambda: FSQ((5,) * s.latent)}
    return Autoencoder(
        encoder,
        decoder,
        bottleneck[s.bottleneck](),
        beta=s.beta if s.bottleneck == "kl" else None,
        perceptual=Perceptual.random(data.shape[0]) if s.perceptual else None,
        perceptual_weight=s.perceptual,
        critic=Critic(PatchDiscriminator(data.shape[0], s.width), hinge) if s.critic else None,
        critic_weight=s.critic,
        critic_start=s.critic_start,
        critic_warmup=s.critic_start,
    )


def captions(s: Settings, data: Data) -> nn.Module:
    encoder = HuggingFaceText(s.text_encoder) if s.text_encoder else CharacterEncoder()
    return Captioned(data.class_names or digit_names(data.classes), encoder)


@dataclass
class Settings(experiment.Settings):
    structural: ClassVar[tuple[str, ...]] = ("bottleneck", "second", "condition")

    steps: int = 1500
    first_steps: int | None = setting(None, "Steps of the autoencoder; none: --steps.", at_least=1)
    flat: bool = setting(False, "Vectors as latents, and MLPs; always for points.")
    latent: int = setting(4, "Channels of the latents, or their dimensions with --flat.", at_least=1)
    width: int = setting(16, "Channels at the highest resolution; twenty times as many units of an MLP.", at_least=8)
    bottleneck: Literal["kl", "vq", "fsq"] = setting("kl", "KL to N(0, I), or codes: learned, or 5 levels a channel.")
    codes: int = setting(256, "Codes of vq.", at_least=2)
    beta: float = setting(0.05, "Weight of the KL.", at_least=0)
    sigma: float = setting(0.14, "σ of p(x|z) = N(x̂, σ²) of images; points learn theirs.", above=0)
    perceptual: float = setting(0.0, "Weight of a perceptual distance, by random features: untrained.", at_least=0)
    critic: float = setting(0.0, "Weight of a patch critic, times its adaptive one; 0: no critic.", at_least=0)
    critic_start: int = setting(500, "Steps without the critic's term, and of its weight's rise after.", at_least=0)
    second: Literal["flow", "diffusion"] = setting("flow", "Rectified flow, or v on a cosine schedule.")
    condition: Literal["none", "label", "text"] = setting("none", "Learn p(x|label), by number or by name in words.")
    text_encoder: str | None = setting(None, "One of Hugging Face's, by name; none: characters, learned along.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)
    guidance_scale: float = setting(1.0, "Of conditional samples; 1 is none, as in diffusers.", at_least=0)
    sample_steps: int = setting(50, "Steps of the sampler.", at_least=1)
    lr: float = setting(1e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)

    def check(self) -> list[str]:
        errors = super().check()
        if self.guidance_scale != 1 and self.condition == "none":
            errors.append(f"--guidance-scale {self.guidance_scale}: there is nothing to guide by with --condition none")
        if self.guidance_scale != 1 and not self.label_dropout:
            errors.append(f"--guidance-scale {self.guidance_scale}: nothing to guide from with --label-dropout 0")
        if self.flat and (self.bottleneck != "kl" or self.condition == "text"):
            errors.append("--flat: --bottleneck vq and fsq, and --condition text, want maps as latents")
        return errors


def build(s: Settings, data: Data) -> list[Stage]:
    if not data.is_image and (s.bottleneck != "kl" or s.condition == "text" or s.perceptual or s.critic):
        raise ValueError(f"codes, --condition text, --perceptual and --critic want images; {data.name} is points")
    if s.condition != "none" and not data.classes:
        raise ValueError(f"--condition {s.condition} needs labels; --data {data.name} has none")
    model = networks(s, data)
    one, two = players(model, s, data)
    return [
        Stage("autoencoder", model.first, one, steps=s.first_steps),
        Stage(
            "latents",
            model,
            two,
            batches=lambda: model.cache(data),
            still=(model.first,),
            conditional=s.condition != "none",
        ),
    ]


if __name__ == "__main__":
    experiment.main(Settings, build)
