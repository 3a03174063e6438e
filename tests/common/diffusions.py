"""Diffusions whose answers are known, and given noise and times in the place of what they draw."""

from copy import copy

import numpy
import torch
from answers import F64, Meaning, Smooth, prediction_for
from torch import nn

from components.denoisers import Denoiser
from components.losses import TimeSampler
from components.precision import wide
from components.schedules import LogSNRLinearSchedule, NoiseLevel, over
from hybrids.models import Diffusion

S = 0.5
"""Of the data N(0, S²), where nothing else is said."""
SIGMA_DATA = 0.7

# A loss that is quadratic in (x, ε) has its exact mean over four points with the right moments.
X4 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
EPSILON4 = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)


class Shrunk(nn.Module):
    """E[x|x_t] of x ~ N(0, s² I) of any shape; where the schedule explodes, of x_t/√(α² + σ²)."""

    def __init__(self, schedule, s=S):
        super().__init__()
        self.schedule, self.s = [schedule], s  # in a list: it is the denoiser's

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (over(c, x_t) for c in self.schedule[0].alpha_sigma(t))
        scale = (alpha**2 + sigma**2).sqrt() if self.schedule[0].exploding else 1.0
        return alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * scale * x_t


def exact(schedule=None, prediction="epsilon", s=S, shape=1, **settings):
    """The diffusion whose denoiser is the best of N(0, s² I)."""
    schedule = schedule or LogSNRLinearSchedule()
    network = Meaning(prediction, Shrunk(schedule, s), schedule, SIGMA_DATA)
    return Diffusion(Denoiser(network, schedule, prediction_for(prediction, SIGMA_DATA)), shape, **settings)


def wrong(schedule=None, prediction="v_prediction", shape=3, variance="small", clip=None, **settings):
    """A diffusion whose denoiser is wrong, smoothly."""
    network, schedule = Smooth(variance == "learned_range"), schedule or LogSNRLinearSchedule()
    return Diffusion(
        Denoiser(network, schedule, prediction_for(prediction, SIGMA_DATA), variance, clip), shape, **settings
    )


class GivenTimes(TimeSampler):
    """The times u (B,), whatever is asked for, each of weight 1."""

    def __init__(self, u):
        super().__init__()
        self.u = u

    def forward(self, n, schedule, device=None, across_ranks=False, generator=None):
        return self.u, torch.ones_like(self.u)


def given_noise(denoiser, *epsilons):
    """Let `corrupt` of a denoiser's schedule take these ε (B, *event), one a call and the last ever after."""
    # A copy with the same parameters: other tests may share the schedule.
    schedule, left = copy(denoiser.schedule), list(epsilons)

    def corrupt(x, t, generator=None):
        x = wide(x)
        epsilon = (left.pop(0) if len(left) > 1 else left[0]).to(x)
        alpha, sigma = t[1:] if isinstance(t, NoiseLevel) else schedule.alpha_sigma(t)
        return over(alpha, x) * x + over(sigma, x) * epsilon, epsilon

    schedule.corrupt = corrupt
    denoiser.schedule = schedule


def moved(q, epsilon):
    """A Gaussian's draw at given noise: mean + std ε."""
    return q.mean + q.std * epsilon


def given(diffusion, epsilon, u=None):
    """Let a diffusion take ε (B, *event) instead of drawing it, and its loss the times u (B,).

    Returns the times, for `nll`; None without u.
    """
    given_noise(diffusion.denoiser, epsilon)
    if u is None:
        return None
    diffusion.times = GivenTimes(u)
    return diffusion.times


def gauss_legendre(n):
    """Nodes in [0, 1] and their shares, (n,) each: exact to the last digits where the integrand is smooth."""
    u, share = (torch.tensor(values) / 2 for values in numpy.polynomial.legendre.leggauss(n))
    return u + 0.5, share


def over_levels(diffusion, n, s=S, loss="nll"):
    """The exact mean of a discrete loss over x ~ N(0, s²), ε and the n levels."""
    times = given(diffusion, EPSILON4.repeat(n, 1), ((torch.arange(n, dtype=F64) + 0.5) / n).repeat_interleave(4))
    x = s * X4.repeat(n, 1)
    return (diffusion.nll(x, times=times) if loss == "nll" else diffusion.loss(x)).total
