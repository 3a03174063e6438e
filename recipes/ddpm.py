"""Denoising diffusion (DDPM): Ho 2020, 2006.11239, algorithms 1 and 2; schedules, predictions, samplers are settings.

x ~ data;  t ~ U{1/T, 2/T, …, 1};  ε ~ N(0, I);  x_t = α_t x + σ_t ε
minimize  w(t) ‖ε - ε_θ(x_t, t)‖² / d          w = 1: L_simple, equation 14;  d: dimensions of x
sample    x_1 ~ N(0, I);  for t = 1, 1 - 1/T, …, 1/T, and s = t - 1/T:  x_s ~ p_θ(x_s|x_t)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch.optim import AdamW

from components.backbones import MLP, UNet, multipliers_to
from components.denoisers import Denoiser
from components.losses import LogNormalTimes, LossAwareTimes, UniformLogSNRTimes, min_snr, p2
from components.samplers import METHODS, Sampler
from components.schedules import BetaSchedule, LogSNRLinearSchedule, Schedule
from hybrids import Batch, Diffusion, Player, Terms, experiment, unpack, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


def players(model: Diffusion, s: Settings, data: Data) -> list[Player]:
    def loss(batch: Batch) -> Terms:
        x, cond = unpack(batch, s.label_dropout, data.classes)
        return model.loss(x, cond)

    adamw = partial(AdamW, lr=s.lr)
    return [
        Player(loss, [model], optimizer=adamw, lr=warmup_cosine(), clip=s.clip, per=data.dimensions, name="denoiser")
    ]


def networks(s: Settings, data: Data) -> Diffusion:
    classes = s.classes(data)
    outputs = data.shape[0] * (2 if s.variance == "learned_range" else 1)
    if data.is_image and not s.flat:
        backbone = UNet(
            data.shape,
            s.width,
            multipliers_to(4, data.shape),
            s.blocks,
            dropout=s.dropout,
            num_classes=classes,
            out_channels=outputs,
        )
    else:
        units = (10 if data.is_image else 4) * s.width
        octaves = None if data.is_image else range(5)  # without them points stall at the smallest noise
        backbone = MLP(data.shape, units, fourier=octaves, num_classes=classes, out_features=outputs)
    clip = (-1.0, 1.0) if data.is_image else None
    return Diffusion(
        Denoiser(backbone, schedule(s, data), s.prediction, s.variance, clip),
        data.shape,
        grey_levels=data.grey_levels,
        timesteps=s.timesteps,
        weighting=WEIGHTINGS[s.weighting],
        times=TIMES[s.times](),
        sampler=Sampler(s.sampler, s.sample_steps, guidance_scale=s.guidance_scale),
    )


def schedule(s: Settings, data: Data) -> Schedule:
    name = s.schedule
    if name == "none":
        name = "squaredcos_cap_v2" if data.is_image else "log_snr_linear"
    if name == "log_snr_linear":
        return LogSNRLinearSchedule(13.3, -5.0) if data.is_image else LogSNRLinearSchedule(10.0, -6.0)
    return BetaSchedule(name, s.timesteps)


WEIGHTINGS = {"simple": "simple", "likelihood": "likelihood", "min_snr": min_snr(), "p2": p2()}
TIMES = {
    "uniform": lambda: None,
    "log_snr": UniformLogSNRTimes,
    "log_normal": LogNormalTimes,
    "loss_aware": LossAwareTimes,
}


@dataclass
class Settings(experiment.Conditional):
    structural: ClassVar[tuple[str, ...]] = ("schedule", "timesteps", "prediction")

    steps: int = 3000
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "log_snr_linear", "none"] = setting(
        "none", "A table of β as in diffusers, or log_snr_linear. none: squaredcos_cap_v2, for points log_snr_linear."
    )
    timesteps: int = setting(1000, "T, the levels of the chain.", at_least=1)
    prediction: Literal["epsilon", "sample", "v_prediction"] = setting("epsilon", "What the network predicts.")
    weighting: Literal["simple", "min_snr", "p2", "likelihood"] = setting("simple", "Weight of a noise level.")
    times: Literal["uniform", "log_snr", "log_normal", "loss_aware"] = setting("uniform", "Which t it trains on.")
    variance: Literal["small", "large", "learned_range"] = setting("small", "Variance of p(x_s|x_t).")
    sampler: Literal[*METHODS] = setting("ancestral", "How samples are drawn.")
    sample_steps: int = setting(100, "Steps of the sampler, at most T.", at_least=1)
    guidance_scale: float = setting(1.0, "Of conditional samples; 1 is none, as in diffusers.", at_least=0)
    width: int = setting(32, "Channels at the highest resolution; four times as many units for points.", at_least=8)
    flat: bool = setting(False, "An MLP for images too, of ten times width units.")
    blocks: int = setting(1, "Residual blocks a resolution, of the U-Net.", at_least=1)
    dropout: float = setting(0.0, "Dropout in the U-Net.", at_least=0, below=1)
    lr: float = setting(1e-3, "Learning rate, reached after a warm-up, then decayed by a cosine.", above=0)
    clip: float = setting(1.0, "Largest norm of the gradient of the loss per dimension.", above=0)

    def check(self) -> list[str]:
        errors = super().check()
        if self.sample_steps > self.timesteps:
            errors.append(f"--sample-steps {self.sample_steps}: expected at most --timesteps {self.timesteps}")
        if self.guidance_scale != 1 and not self.conditional:
            errors.append(f"--guidance-scale {self.guidance_scale}: there is nothing to guide by without --conditional")
        if self.weighting == "likelihood" and self.times != "uniform":
            errors.append(f"--times {self.times}: those of --weighting likelihood are uniform")
        if self.guidance_scale != 1 and not self.label_dropout:
            errors.append(f"--guidance-scale {self.guidance_scale}: nothing to guide from with --label-dropout 0")
        return errors


def build(s: Settings, data: Data) -> list[Stage]:
    model = networks(s, data)
    return [Stage("ddpm", model, players(model, s, data), conditional=s.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
