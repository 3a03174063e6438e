"""What tests share: a schedule of each kind, networks that mean a known x̂, and models that draw what is known."""

import pytest
import torch
from torch import nn

from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
    over,
)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def schedules():
    """One of each kind, by name."""
    return {
        "log-SNR linear": LogSNRLinearSchedule(8.0, -6.0),
        "cosine": CosineSchedule(),
        "cosine, truncated": CosineSchedule(9.0, -9.0),
        "table": BetaSchedule(),
        "table to pure noise": BetaSchedule(rescale_betas_zero_snr=True),
        "variance preserving": VariancePreservingSchedule(),
        "exploding": VarianceExplodingSchedule(),
        "EDM": EDMSchedule(),
        "flow": FlowSchedule(),
        "flow, shifted": ShiftedSchedule(FlowSchedule(), 3.0),
        "exploding, shifted": ShiftedSchedule(VarianceExplodingSchedule(), 2.0),
        "learned": LearnedSchedule(8.0, -6.0),
    }


ON_EACH = pytest.mark.parametrize("schedule", schedules().values(), ids=schedules().keys())


class Smooth(nn.Module):
    """A network that means nothing: the same smooth function of x_t and t for every framework."""

    def forward(self, x_t, t, cond=None):
        return torch.tanh(1.3 * x_t + over(torch.as_tensor(t, dtype=torch.float64), x_t)) + 0.2 * x_t


def said(prediction, x, x_t, alpha, sigma, sigma_data=0.5):
    """What a network of this parameterization says when it means x."""
    epsilon, noise = (x_t - alpha * x) / sigma, sigma / alpha
    skip = sigma_data**2 / (noise**2 + sigma_data**2)
    out = noise * sigma_data / (noise**2 + sigma_data**2).sqrt()
    return {
        "epsilon": epsilon,
        "sample": x,
        "v_prediction": alpha * epsilon - sigma * x,
        "flow": epsilon - x,
        "edm": (x - skip * x_t / alpha) / out,
    }[prediction]


def seen(prediction, shown, alpha, sigma, exploding, sigma_data=0.5):
    """x_t of what a denoiser shows its network."""
    if prediction == "edm":
        return shown * ((alpha * sigma_data) ** 2 + sigma**2).sqrt()
    return shown * (alpha**2 + sigma**2).sqrt() if exploding else shown


class Draws(nn.Module):
    """A sampler that is a function of n and a generator."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def sample(self, n, cond=None, generator=None):
        return self.draw(n, generator)
