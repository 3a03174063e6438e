"""Denoising diffusion: Ho 2020, 2006.11239, with L_simple; schedules, predictions and samplers are settings."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch.optim import AdamW

from components.backbones import MLP, UNet
from components.conditions import drop
from components.denoisers import Denoiser
from components.losses import LogNormalTimes, LossAwareTimes, UniformLogSNRTimes, UniformTimes, min_snr, p2
from components.samplers import METHODS, Sampler
from components.schedules import BetaSchedule, LogSNRLinearSchedule, Schedule
from hybrids import Diffusion, Player, Terms, experiment, warmup_cosine
from hybrids.batch import Batch, unpack
from hybrids.data import Data
from hybrids.experiment import Stage, setting

WEIGHTINGS = {"simple": "simple", "likelihood": "likelihood", "min_snr": min_snr(), "p2": p2()}
TIMES = {
    "uniform": UniformTimes,
    "log_snr": UniformLogSNRTimes,
    "log_normal": LogNormalTimes,
    "loss_aware": LossAwareTimes,
}


@dataclass
class Settings(experiment.Settings):
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
    width: int = setting(32, "Channels at the highest resolution; four times as many units for points.", at_least=8)
    conditional: bool = setting(False, "Learn p(x|label) too.")
    label_dropout: float = setting(0.1, "Share of examples that are learned without their label.", at_least=0, below=1)
    guidance_scale: float = setting(1.0, "Of conditional samples; 1 is none, as in diffusers.", at_least=0)
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


def schedule(settings: Settings, data: Data) -> Schedule:
    name = settings.schedule
    if name == "none":
        name = "squaredcos_cap_v2" if data.is_image else "log_snr_linear"
    if name == "log_snr_linear":
        return LogSNRLinearSchedule(13.3, -5.0) if data.is_image else LogSNRLinearSchedule(10.0, -6.0)
    return BetaSchedule(name, settings.timesteps)


def build(settings: Settings, data: Data) -> list[Stage]:
    noise = schedule(settings, data)
    if settings.conditional and not data.classes:
        raise ValueError(f"--conditional needs labels; --data {data.name} has none")
    classes = data.classes if settings.conditional else None
    outputs = data.shape[0] * (2 if settings.variance == "learned_range" else 1)
    if data.is_image and not settings.flat:
        multipliers = [1] + [2] * (data.shape[-1].bit_length() - 3)  # down to 4 × 4
        shared = {"dropout": settings.dropout, "num_classes": classes, "out_channels": outputs}
        backbone = UNet(data.shape, settings.width, multipliers, settings.blocks, **shared)
    else:
        units = (10 if data.is_image else 4) * settings.width
        octaves = None if data.is_image else range(5)  # without them points stall at the smallest noise
        backbone = MLP(data.shape, units, fourier=octaves, num_classes=classes, out_features=outputs)
    clip = (-1.0, 1.0) if data.is_image else None
    denoiser = Denoiser(backbone, noise, settings.prediction, settings.variance, clip)
    model = Diffusion(
        denoiser,
        data.shape,
        grey_levels=data.grey_levels,
        timesteps=settings.timesteps,
        weighting=WEIGHTINGS[settings.weighting],
        times=None if settings.times == "uniform" else TIMES[settings.times](),
        sampler=Sampler(settings.sampler, settings.sample_steps, guidance_scale=settings.guidance_scale),
    )

    def loss(batch: Batch) -> Terms:
        x, cond = unpack(batch)
        return (1 / data.dimensions) * model.loss(x, drop(cond, settings.label_dropout, classes))

    player = Player(
        loss,
        moves=[model],
        optimizer=partial(AdamW, lr=settings.lr),
        clip=settings.clip,
        lr=warmup_cosine(),
        name="denoiser",
    )
    return [Stage("ddpm", model, [player], conditional=settings.conditional)]


if __name__ == "__main__":
    experiment.main(Settings, build)
