"""What the theory's tests share: every schedule, data whose answers are known, and points that make a mean exact."""

import math

import torch
from answers import said, seen
from torch import nn

from components.denoisers import Denoiser, Estimate, GaussianMean
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
    over,
)

F64 = torch.float64
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow", "edm")
SIGMA_DATA = 0.7


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
    """(prediction, schedule) of all that go together: a flow ends in pure noise, where ε and F say nothing of x."""
    kinds = (LogSNRLinearSchedule(8.0, -6.0), CosineSchedule(9.0, -9.0), EDMSchedule(), FlowSchedule())
    return [
        (prediction, schedule)
        for prediction in PREDICTIONS
        for schedule in kinds
        if not (isinstance(schedule, FlowSchedule) and prediction in ("epsilon", "edm"))
    ]


# Data

M = torch.tensor([0.5, -1.0, 0.25], dtype=F64)
A = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.1]], dtype=F64)
COVARIANCE = A @ A.T


def points(d):
    """2d points with mean zero and covariance I: the mean of a quadratic over them is that over N(0, I)."""
    return math.sqrt(d) * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])


def gaussian_points():
    """x ~ N(M, COVARIANCE) and ε ~ N(0, I), (12, 3) each, as `points` of both."""
    both = points(6)
    return M + both[:, :3] @ A.T, both[:, 3:]


# A mean over t: Gauss-Legendre is exact to the last digits where the integrand is smooth.


def gauss_legendre(n):
    """Nodes in [0, 1] and their shares, (n,) each."""
    import numpy

    u, share = (torch.tensor(values) / 2 for values in numpy.polynomial.legendre.leggauss(n))
    return u + 0.5, share


# Networks


class Saying(nn.Module):
    """A backbone that means what another says of x, in any parameterization and from what each is shown."""

    def __init__(self, prediction, mean, schedule):
        super().__init__()
        self.prediction, self.mean, self.schedule = prediction, mean, [schedule]  # in a list: it is the denoiser's

    def forward(self, shown, t, cond=None):
        alpha, sigma = (over(c, shown) for c in self.schedule[0].alpha_sigma(t))
        scale = (alpha**2 + sigma**2).sqrt() if self.schedule[0].exploding else torch.ones_like(alpha)
        x_t = seen(self.prediction, shown, alpha, sigma, self.schedule[0].exploding, SIGMA_DATA)
        return said(self.prediction, self.mean(x_t / scale, t), x_t, alpha, sigma, SIGMA_DATA)


def denoiser(prediction, mean, schedule, **settings):
    """The denoiser whose x̂ is mean(x_t, t)."""
    return Denoiser(Saying(prediction, mean, schedule), schedule, prediction, sigma_data=SIGMA_DATA, **settings)


def gaussian(prediction, schedule, **settings):
    """The exact denoiser of N(M, COVARIANCE)."""
    return denoiser(prediction, GaussianMean(schedule, M, COVARIANCE), schedule, **settings)


class Smooth(nn.Module):
    """A network that is wrong, smoothly; v, in (-1, 1), of a learned variance where that is asked for."""

    def __init__(self, learned=False):
        super().__init__()
        self.learned = learned

    def forward(self, x_t, t, cond=None):
        found = torch.tanh(1.3 * x_t + over(torch.as_tensor(t, dtype=F64), x_t)) + 0.2 * x_t
        return torch.cat([found, torch.sin(3 * x_t)], 1) if self.learned else found


def wrong(prediction, schedule, variance="small"):
    """A denoiser that is wrong, smoothly."""
    return Denoiser(Smooth(variance == "learned_range"), schedule, prediction, variance, sigma_data=SIGMA_DATA)


def estimate(prediction, x_t, alpha, sigma, output):
    return Estimate(x_t, alpha, sigma, prediction, output, SIGMA_DATA)
