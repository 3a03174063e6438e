"""Variational diffusion: Kingma 2021, 2107.00630; the likelihood in continuous time, with a learned schedule."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

from components.backbones import MLP, UNet
from components.denoisers import Denoiser, GreyLevels, log_marginals
from components.samplers import Sampler
from components.schedules import LearnedSchedule, LogSNRLinearSchedule
from hybrids import Diffusion, Player, experiment, warmup_cosine
from hybrids.data import Data
from hybrids.experiment import Stage, setting


@dataclass
class Settings(experiment.Settings):
    digits_resolution: ClassVar[int] = 8  # where digits have grey levels of their own, so bits/dim mean something
    structural: ClassVar[tuple[str, ...]] = ("prediction", "schedule")

    steps: int = 1000
    batch_size: int = 128
    prediction: Literal["grid", "epsilon", "v_prediction", "none"] = setting(
        "none", "What the network predicts; grid: a correction to Bayes' rule on grey levels. none: grid for at most "
        "32 levels, else epsilon."
    )  # fmt: skip
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


def ends(data: Data) -> tuple[float, float]:
    """λ at t = 0 and at t = 1: at the first, a grey level, or σ of the 25 Gaussians, stands clear of the noise."""
    if not data.is_image:
        return 10.0, -6.0
    return (9.0, -6.0) if few(data) else (13.3, -5.0)


def few(data: Data) -> bool:
    return data.grey_levels is not None and data.grey_levels <= 32


def build(settings: Settings, data: Data) -> list[Stage]:
    grid = settings.prediction == "grid" or (settings.prediction == "none" and few(data))
    if grid and data.grey_levels is None:
        raise ValueError(f"--prediction grid is of grey levels; --data {data.name} is continuous: use epsilon")
    if settings.learn_endpoints and data.grey_levels is None:
        raise ValueError(f"--learn-endpoints: the likelihood of --data {data.name}, a density, would have λ_0 run away")
    if settings.schedule == "learned":
        schedule = LearnedSchedule(*ends(data), settings.learn_endpoints)
    else:
        schedule = LogSNRLinearSchedule(*ends(data))
    backbone: nn.Module
    # Octaves of the input tell its grey levels apart: VDM's 7 and 8 are for 256 of them.
    octaves = range(5) if not data.is_image else (2, 3) if few(data) else (7, 8)
    outputs = data.shape[0] * (data.grey_levels if grid else 1)
    if data.is_image and not settings.flat:
        multipliers = [1] + [2] * (data.shape[-1].bit_length() - 3)  # down to 4 × 4
        backbone = UNet(data.shape, settings.width, multipliers, settings.blocks, dropout=settings.dropout,
                        out_channels=outputs, fourier=octaves)  # fmt: skip
    else:
        units = (10 if data.is_image else 4) * settings.width
        backbone = MLP(data.shape, units, fourier=octaves, out_features=outputs)
    if grid:
        # A loaded run has no examples, and no need of them: the marginals are saved with it.
        some = None if data.x is None else data.decode(data.x[:: -(-len(data) // 10_000)])
        marginals = None if some is None else log_marginals(some, data.grey_levels)
        prediction = GreyLevels(data.shape, data.grey_levels, marginals)
    else:
        prediction = "epsilon" if settings.prediction == "none" else settings.prediction
    model = Diffusion(
        Denoiser(backbone, schedule, prediction),
        data.shape,
        grey_levels=data.grey_levels,
        weighting="likelihood",
        sampler=Sampler(steps=settings.sample_steps),
    )
    player = Player(
        lambda x: (1 / data.dimensions) * model.loss(x),
        moves=[model],
        optimizer=partial(AdamW, lr=settings.lr),
        clip=settings.clip,
        lr=warmup_cosine(),
        name="denoiser",
    )
    return [Stage("variational_diffusion", model, [player])]


if __name__ == "__main__":
    experiment.main(Settings, build)
