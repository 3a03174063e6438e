"""Variational diffusion: Kingma 2021, 2107.00630: the likelihood in continuous time, with a learned schedule.

λ_t = log(α_t²/σ_t²), a monotone network of t;  x_t = α_t x + σ_t ε,  ε ~ N(0, I),  t ~ U(0, 1)
minimize  (KL(q(x_1|x) ‖ N(0, I)) - ½ λ'_t ‖ε - ε_θ(x_t, t)‖² - log p(x|x_0)) / d     equations 11 and 17
inside, λ minimizes the variance of the second term, on which its mean does not depend
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

from components.backbones import MLP, UNet, multipliers_to
from components.denoisers import Denoiser, GreyLevels, log_marginals
from components.samplers import Sampler
from components.schedules import LearnedSchedule, LogSNRLinearSchedule
from hybrids import Diffusion, Player, experiment, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(model: Diffusion, s: Settings, data: Data) -> list[Player]:
    adamw, d = partial(AdamW, lr=s.lr), data.dimensions
    return [Player(model.loss, [model], optimizer=adamw, lr=warmup_cosine(), clip=s.clip, per=d, name="denoiser")]


def networks(s: Settings, data: Data) -> Diffusion:
    grid = s.prediction == "grid" or (s.prediction == "none" and few_levels(data))
    if grid and data.grey_levels is None:
        raise ValueError(f"--prediction grid is of grey levels; --data {data.name} is continuous: use epsilon")
    if s.learn_endpoints and data.grey_levels is None:
        raise ValueError(f"--learn-endpoints: the likelihood of --data {data.name}, a density, would have λ_0 run away")
    if s.schedule == "learned":
        schedule = LearnedSchedule(*endpoints(data), s.learn_endpoints)
    else:
        schedule = LogSNRLinearSchedule(*endpoints(data))
    backbone: nn.Module
    # Octaves of the input tell its grey levels apart: VDM's 7 and 8 are for 256 of them.
    octaves = range(5) if not data.is_image else (2, 3) if few_levels(data) else (7, 8)
    outputs = data.shape[0] * (data.grey_levels if grid else 1)
    if data.is_image and not s.flat:
        backbone = UNet(
            data.shape,
            s.width,
            multipliers_to(4, data.shape),
            s.blocks,
            dropout=s.dropout,
            out_channels=outputs,
            fourier=octaves,
        )
    else:
        units = (10 if data.is_image else 4) * s.width
        backbone = MLP(data.shape, units, fourier=octaves, out_features=outputs)
    if grid:
        # A loaded run has no examples, and no need of them: the marginals are saved with it.
        some = None if data.x is None else data.decode(data.x[:: -(-len(data) // 10_000)])
        marginals = None if some is None else log_marginals(some, data.grey_levels)
        prediction = GreyLevels(data.shape, data.grey_levels, marginals)
    else:
        prediction = "epsilon" if s.prediction == "none" else s.prediction
    return Diffusion(
        Denoiser(backbone, schedule, prediction),
        data.shape,
        grey_levels=data.grey_levels,
        weighting="likelihood",
        sampler=Sampler(steps=s.sample_steps),
    )


def endpoints(data: Data) -> tuple[float, float]:
    """Return λ_0 and λ_1: at t = 0 a grey level, or σ of the 25 Gaussians, stands clear of the noise."""
    if not data.is_image:
        return 10.0, -6.0
    return (9.0, -6.0) if few_levels(data) else (13.3, -5.0)


def few_levels(data: Data) -> bool:
    return data.grey_levels is not None and data.grey_levels <= 32


@dataclass
class Settings(experiment.Settings):
    structural: ClassVar[tuple[str, ...]] = ("prediction", "schedule")

    steps: int = 1000
    batch_size: int = 128
    prediction: Literal["grid", "epsilon", "v_prediction", "none"] = setting(
        "none",
        "What the network predicts; grid: a correction to Bayes' rule on grey levels. none: grid for at most 32 "
        "levels, else epsilon.",
    )
    schedule: Literal["learned", "linear"] = setting("learned", "λ_t: a monotone network, or a straight line.")
    learn_endpoints: bool = setting(False, "Learn the ends of λ_t too; on continuous data they would run away.")
    sample_steps: int = setting(250, "Steps of the sampler.", at_least=1)
    flat: bool = setting(False, "An MLP for images too, of ten times width units.")
    width: int = setting(
        32,
        "Channels at the highest resolution; an MLP has four times as many units for points, ten for images.",
        at_least=8,
    )
    blocks: int = setting(1, "Residual blocks a resolution, of the U-Net.", at_least=1)
    dropout: float = setting(0.1, "Dropout in the U-Net.", at_least=0, below=1)
    lr: float = setting(2e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)
    clip: float = setting(1.0, "Largest norm of the gradient of the loss in nats/dim.", above=0)

    def check(self) -> list[str]:
        errors = super().check()
        if self.learn_endpoints and self.schedule != "learned":
            errors.append(f"--learn-endpoints with --schedule {self.schedule}: only a learned schedule learns its ends")
        return errors


def build(s: Settings, data: Data) -> list[Stage]:
    model = networks(s, data)
    return [Stage("variational_diffusion", model, players(model, s, data))]


if __name__ == "__main__":
    experiment.main(Settings, build)
