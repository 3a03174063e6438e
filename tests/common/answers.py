"""What tests share: a schedule of each kind, networks with a known x̂, and models that draw what is known."""

import pytest
import torch
from torch import nn

from components.denoisers import edm_prediction
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

F64 = torch.float64
NAMES = ("epsilon", "sample", "v_prediction", "flow", "edm")
"""The names of all predictions."""

# Gaussian data of three correlated dimensions.
M = torch.tensor([0.5, -1.0, 0.25], dtype=F64)
A = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.1]], dtype=F64)
COVARIANCE = A @ A.T


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


def ends_in_noise(schedule):
    """Whether α = 0 at t = 1, where epsilon is refused."""
    return bool(schedule.alpha_sigma(1.0)[0] == 0)


def prediction_for(name, sigma_data):
    """The prediction of this name, edm's for data of this standard deviation."""
    return edm_prediction(sigma_data) if name == "edm" else name


# Networks


class Function(nn.Module):
    """A backbone that is a function (x_t, t) → output, and keeps what it was called with."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x_t, t, cond=None):
        self.shown, self.t, self.cond = x_t, t, cond
        return self.function(x_t, t)


class Constant(nn.Module):
    """The same output whatever x_t; with a cond, that many times it."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x_t, t, cond=None):
        value = self.value if cond is None else self.value * cond
        return value.expand(len(x_t), *[-1] * (value.ndim - 1)) if value.ndim else value.expand_as(x_t)


class Smooth(nn.Module):
    """A network that means nothing: the same smooth function of x_t and t for every framework.

    With learned=True it also answers with v in (-1, 1), of a learned variance.
    """

    def __init__(self, learned=False):
        super().__init__()
        self.learned, self.calls = learned, 0

    def forward(self, x_t, t, cond=None):
        self.calls += 1
        output = torch.tanh(1.3 * x_t + over(torch.as_tensor(t, dtype=torch.float64), x_t)) + 0.2 * x_t
        return torch.cat([output, torch.tanh(output)], 1) if self.learned else output


class Labelled(Smooth):
    """`Smooth` that takes labels 0 and 1; the null label 2 is no condition."""

    num_classes = 2

    def forward(self, x_t, t, cond=None):
        cond = torch.full((len(x_t),), 2) if cond is None else cond
        return super().forward(x_t + 0.3 * over(cond, x_t), t)


class Mild(nn.Module):
    """x̂ is a contraction of x_t, as for data with a spread: DDIM's steps have an inverse."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x_t, t, cond=None):
        self.times.append(float(t))
        return 0.5 * torch.tanh(x_t) * (1 - over(torch.as_tensor(t, dtype=F64), x_t))


class Meaning(nn.Module):
    """A backbone whose x̂ is mean(x_t/scale, t), in any prediction, by name or a Prediction, from what each is shown.

    scale is √(α² + σ²) where the schedule explodes, else 1: so mean may be one of components.denoisers.exact.
    """

    def __init__(self, prediction, mean, schedule, sigma_data=0.5, interpolation=None):
        super().__init__()
        # in a list: the schedule is the denoiser's
        self.prediction, self.mean, self.schedule, self.sigma_data = prediction, mean, [schedule], sigma_data
        self.interpolation = interpolation

    def forward(self, shown, t, cond=None):
        self.shown, schedule = shown, self.schedule[0]
        alpha, sigma = (over(c, shown) for c in schedule.alpha_sigma(t))
        scale = (alpha**2 + sigma**2).sqrt() if schedule.exploding else torch.ones_like(alpha)
        x_t = unscaled(self.prediction, shown, alpha, sigma, schedule.exploding, self.sigma_data)
        x = self.mean(x_t / scale, t)
        output = network_output(self.prediction, x, x_t, alpha, sigma, self.sigma_data)
        return output if self.interpolation is None else torch.cat([output, self.interpolation.expand_as(x)], 1)


def network_output(prediction, x, x_t, alpha, sigma, sigma_data=0.5):
    """The output of a network whose x̂ is x: by the formula of the prediction's paper, or of a Prediction a x + b ε."""
    epsilon, s = (x_t - alpha * x) / sigma, (sigma**2 + (alpha * sigma_data) ** 2) ** 0.5
    if not isinstance(prediction, str):
        a, b = prediction.pair(alpha, sigma)
        return a * x + b * epsilon
    return {
        "epsilon": epsilon,
        "sample": x,
        "v_prediction": alpha * epsilon - sigma * x,
        "flow": epsilon - x,
        # (x - c_skip x_t/α)/c_out, without a division by α
        "edm": (x - alpha * sigma_data**2 / s**2 * x_t) * s / (sigma * sigma_data),
    }[prediction]


def unscaled(prediction, shown, alpha, sigma, exploding, sigma_data=0.5):
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


def randomized(module, std=0.1):
    """The module with every parameter drawn, so that no layer is zero any more."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def assert_gradients(module, but=()):
    """Every parameter that learns has a finite gradient, and one that is not zero unless its name ends as in `but`."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 1e-12 or name.endswith(tuple(but)), name


def words(features=6):
    """Tokens (4, 3, features) and their mask, True at one token at least of each example."""
    mask = torch.tensor([[True, True, True], [True, False, False], [False, True, False], [True, True, False]])
    return torch.randn(4, 3, features), mask


def twins(make, shape=(2, 3, 4)):
    """The same network for events of a shape and for flattened ones, with weights that are anything."""
    events, vectors = make(shape), randomized(make(torch.Size(shape).numel()), 0.3)
    events.load_state_dict(vectors.state_dict())
    return events, vectors
