"""What the theory's tests share: every schedule, data whose answers are known, and points that make a mean exact."""

import math

import torch
from answers import COVARIANCE, F64, NAMES, A, M, Meaning, Smooth, prediction_for
from diffusions import SIGMA_DATA
from torch import nn

from components.denoisers import PREDICTIONS, Denoiser, GaussianMean, edm_prediction
from components.schedules import (
    BETA_SCHEDULES,
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)


def bent():
    """A learned schedule whose weights are anything."""
    schedule = LearnedSchedule()
    for p in (schedule.log_weight, schedule.log_steepness, schedule.bias):
        nn.init.normal_(p)
    return schedule.requires_grad_(False)


def schedules():
    """One of each kind, by name."""
    tables = {name: BetaSchedule(name) for name in BETA_SCHEDULES}
    exploding = VarianceExplodingSchedule(0.02, 1.0)
    return {
        "cosine": CosineSchedule(),
        "cosine, truncated": CosineSchedule(13.3, -5.0),
        **{f"cosine from {high} to pure noise": CosineSchedule(high) for high in (13.3, 7.7, 3.1)},
        "log-SNR linear": LogSNRLinearSchedule(),
        "learned": LearnedSchedule().requires_grad_(False),
        "learned, any weights": bent(),
        **tables,
        "linear, T = 7": BetaSchedule("linear", 7),
        **{f"{name} to pure noise": BetaSchedule(name, rescale_betas_zero_snr=True) for name in tables},
        "linear to pure noise, T = 7": BetaSchedule("linear", 7, rescale_betas_zero_snr=True),
        "variance preserving": VariancePreservingSchedule(),
        "variance preserving, constant": VariancePreservingSchedule(2.0, 2.0, 0.1),
        "exploding": VarianceExplodingSchedule(),
        "exploding to 1": exploding,
        "EDM": EDMSchedule(),
        "EDM, ρ = 3": EDMSchedule(0.01, 20.0, 3.0),
        "flow": FlowSchedule(),
        "cosine, shifted": ShiftedSchedule(CosineSchedule(), 4.0),
        "log-SNR linear, shifted back": ShiftedSchedule(LogSNRLinearSchedule(), 0.5),
        "learned, shifted": ShiftedSchedule(bent(), 2.0),
        "table, shifted": ShiftedSchedule(BetaSchedule(), 2.0),
        "exploding, shifted twice": ShiftedSchedule(ShiftedSchedule(exploding, 2.0), 1.5),
        "flow, shifted": ShiftedSchedule(FlowSchedule(), 3.0),
    }


def pairs():
    """(prediction, schedule) of all that go together: a flow ends in pure noise, where ε says nothing of x."""
    kinds = (LogSNRLinearSchedule(8.0, -6.0), CosineSchedule(9.0, -9.0), EDMSchedule(), FlowSchedule())
    return [
        (prediction, schedule)
        for prediction in NAMES
        for schedule in kinds
        if not (isinstance(schedule, FlowSchedule) and prediction == "epsilon")
    ]


# Data


def points(d):
    """2d points with mean zero and covariance I: the mean of a quadratic over them is that over N(0, I)."""
    return math.sqrt(d) * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])


def gaussian_points():
    """x ~ N(M, COVARIANCE) and ε ~ N(0, I), (12, 3) each, as `points` of both."""
    both = points(6)
    return M + both[:, :3] @ A.T, both[:, 3:]


# Networks


def denoiser(prediction, mean, schedule, **settings):
    """The denoiser whose x̂ is mean(x_t, t)."""
    network = Meaning(prediction, mean, schedule, SIGMA_DATA)
    return Denoiser(network, schedule, prediction_for(prediction, SIGMA_DATA), **settings)


def gaussian(prediction, schedule, **settings):
    """The exact denoiser of N(M, COVARIANCE)."""
    return denoiser(prediction, GaussianMean(schedule, M, COVARIANCE), schedule, **settings)


def wrong(prediction, schedule, variance="small"):
    """A denoiser that is wrong, smoothly."""
    return Denoiser(Smooth(variance == "learned_range"), schedule, prediction_for(prediction, SIGMA_DATA), variance)


def estimate(prediction, x_t, level, output):
    """What a network's output says of x."""
    of = edm_prediction(SIGMA_DATA) if prediction == "edm" else PREDICTIONS[prediction]
    return of.estimate(x_t, output, level)
