"""Rows 5, 29 and 30: importance-weighted bounds, exact likelihoods by the probability flow, and its divergence."""

import math

import pytest
import torch
from answers import F64
from torch import nn

from components.backbones import UNet
from components.denoisers import Denoiser, GaussianMean, MixtureMean
from components.distributions import Normal
from components.samplers import ProbabilityFlow, drift, exact_divergence, hutchinson
from components.schedules import FlowSchedule, LogSNRLinearSchedule, VariancePreservingSchedule
from hybrids import VAE, StandardNormal
from hybrids.data import Mixture, gaussians_8, gaussians_25
from hybrids.evaluation import importance_weighted


class Encoder(nn.Module):
    """q(z|x) = N(mean, std²), whatever x."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, cond=None):
        return Normal(torch.full_like(x, self.mean), self.std)


class Decoder(nn.Module):
    """p(x|z) = N(z, 1)."""

    def forward(self, z, cond=None):
        return Normal(z, 1.0)


def vae(mean, std):
    """p(z) = N(0, 1) and x = 1.5, so log p(x) = log N(1.5; 0, 2) = -1.828012 and p(z|x) = N(.75, ½)."""
    return VAE(Encoder(mean, std), Decoder(), StandardNormal(1).double())


def bound(model, k, n):
    """The mean of n importance-weighted bounds of K = k samples at x = 1.5, and its standard error."""
    found, _ = importance_weighted(model, torch.full((n, 1), 1.5, dtype=F64), k, rows=100_000)
    return found.mean().item(), found.std().item() / math.sqrt(n)


LOG_P = -0.5 * math.log(4 * math.pi) - 1.5**2 / 4


@pytest.mark.parametrize("k, expected", [(1, -1.89680), (2, -1.85353), (5, -1.83650), (10, -1.83242), (50, -1.82868)])
def test_row_5_the_importance_weighted_bound_is_the_known_number(row, k, expected):
    """The importance-weighted bound of K = 1, 2, 5, 10, 50 samples of N(.75, .9²) for N(.75, ½) is the known number.

    Burda 2015, 1509.00519, eq. 8; the numbers have five digits."""
    n = 500_000 // k + 20_000
    found, error = bound(vae(0.75, 0.9), k, n)
    row(5, found, expected, tolerance=4 * error + 5e-6, words=f"K = {k}")


def test_row_5_the_importance_weighted_bound_never_falls_in_k_and_stays_below_log_p(row):
    """The importance-weighted bound does not fall in K = 1, 8, 64, 512, and is below log p. Burda 2015, theorem 1."""
    found = [bound(vae(0.75, 0.9), k, 2000) for k in (1, 8, 64, 512)]
    for (low, low_error), (high, high_error), k in zip(found, found[1:], (8, 64, 512)):
        row(5, high, at_least=low, tolerance=4 * math.hypot(low_error, high_error), words=f"K = {k} over {k // 8}")
    row(5, found[-1][0], at_most=LOG_P, tolerance=4 * found[-1][1], words="K = 512, below log p(x)")
    assert found[1][0] > found[0][0] + 4 * found[0][1]  # else the rest would say nothing


def test_row_5_with_the_exact_posterior_each_weight_is_p_of_x(row):
    """With q(z|x) = p(z|x) every weight is p(x): no variance at any K. Burda 2015, 1509.00519, section 3."""
    found, effective = importance_weighted(vae(0.75, math.sqrt(0.5)), torch.full((100, 1), 1.5, dtype=F64), 5)
    row(5, found, -1.828012, tolerance=5e-7, words="against the number of log p")
    row(5, found, LOG_P, tolerance=1e-12)
    row(5, effective, 5.0, tolerance=1e-10, words="effective samples of 5")


# Row 29


M2 = torch.tensor([0.8, -1.15], dtype=F64)  # of length 1.4
C2 = torch.tensor([[0.36, 0.2], [0.2, 0.25]], dtype=F64)


def gaussian_flow(schedule, m, covariance, first=0.0, exact_end=True, **settings):
    flow = ProbabilityFlow(Denoiser(GaussianMean(schedule, m, covariance), schedule, "sample"), first, **settings)
    noise, end = (schedule.coefficients(torch.tensor(at, dtype=F64)) for at in flow.ends)
    eye = torch.eye(len(m), dtype=F64)
    if exact_end:
        spread = end[0] ** 2 * covariance + end[1] ** 2 * eye
        flow.prior = torch.distributions.MultivariateNormal(end[0] * m, spread)
    smoothed = covariance + (noise[1] / noise[0]) ** 2 * eye
    return flow, torch.distributions.MultivariateNormal(m, smoothed)


def test_row_29_the_flow_s_likelihood_of_a_gaussian_is_exact(row):
    """The likelihood by the probability-flow ODE is log p on Gaussians. Song 2020, 2011.13456, eq. 39."""
    x = torch.distributions.MultivariateNormal(M2, C2).sample((50,))
    tight = {"rtol": 1e-8, "atol": 1e-8}
    for schedule, first in ((VariancePreservingSchedule(), 1e-5), (FlowSchedule(), 1e-5)):
        flow, density = gaussian_flow(schedule, M2, C2, first, **tight)
        error = (flow.log_prob(x) - density.log_prob(x)).abs().mean()
        row(29, error, at_most=2e-7, words=f"{type(schedule).__name__}, exact end, {flow.evaluations} evaluations")
    schedule = VariancePreservingSchedule()
    cost = []
    for m in (0 * M2, M2):
        flow, density = gaussian_flow(schedule, m, C2, 1e-5, exact_end=False, **tight)
        at = x - M2 + m
        cost.append((flow.log_prob(at) - density.log_prob(at)).abs().max())
    row(29, cost[0], at_most=2e-4, words="N(0, I) for the end, m = 0: its cost, of one x")
    row(29, cost[1], at_least=1e-2, words="N(0, I) for the end, |m| = 1.4: data must be centred")
    flow, density = gaussian_flow(LogSNRLinearSchedule(20.0, -18.0), M2, C2, exact_end=False)
    error = (flow.log_prob(x) - torch.distributions.MultivariateNormal(M2, C2).log_prob(x)).abs().mean() / 2
    row(29, error, at_most=1e-3, words=f"default tolerance, {flow.evaluations} evaluations, nats/dim")


def mixture_64():
    generator = torch.Generator().manual_seed(1)
    return Mixture(0.7 * torch.randn(5, 64, generator=generator, dtype=F64), 0.5)


@pytest.mark.parametrize(
    "density, schedule, first",
    [
        (gaussians_8(), LogSNRLinearSchedule(18.0, -10.0), 0.0), (gaussians_25(), VariancePreservingSchedule(), 1e-5),
        (gaussians_25(), FlowSchedule(), 1e-5),
        pytest.param(mixture_64(), LogSNRLinearSchedule(13.3, -10.0), 0.0, marks=pytest.mark.slow),
        pytest.param(mixture_64(), FlowSchedule(), 1e-5, marks=pytest.mark.slow),
    ],
    ids=["8 Gaussians", "25, continuous", "25, flow", "64 dimensions", "64 dimensions, flow"],
)  # fmt: skip
def test_row_29_the_flow_s_likelihood_of_a_mixture_is_exact(row, density, schedule, first):
    """The likelihood by the probability-flow ODE is log p on mixtures of 2 and of 64 dimensions.

    Song 2020, 2011.13456, eq. 39; in nats a dimension, at the default tolerance of 1e-5."""
    x = density.sample(64, torch.Generator().manual_seed(2))
    flow = ProbabilityFlow(Denoiser(MixtureMean(schedule, density.means, density.std), schedule, "sample"), first)
    error = (flow.log_prob(x) - density.log_prob(x)).abs().mean() / x.shape[1]
    of = f"{len(density.means)} in {x.shape[1]} dimensions, {type(schedule).__name__}"
    row(29, error, at_most=1e-2, words=f"{of}, {flow.evaluations} evaluations")


def test_row_29_it_is_the_density_at_the_first_noise(row):
    """The likelihood by the ODE is log p of the data with the noise of its first time: 1e-4 on eight Gaussians."""
    density = gaussians_8()
    schedule, first = VariancePreservingSchedule(), 1e-3
    denoiser = Denoiser(MixtureMean(schedule, density.means, density.std), schedule, "sample")
    alpha, sigma = schedule.alpha_sigma(first)
    noisy = Mixture(density.means, math.hypot(density.std, (sigma / alpha).item()))
    x = density.sample(100, torch.Generator().manual_seed(2))
    found = ProbabilityFlow(denoiser, first, rtol=1e-7, atol=1e-7).log_prob(x)
    row(29, (found - noisy.log_prob(x)).abs().mean(), at_most=1e-4, words="against p_eps, eps = 1e-3")
    cost = (found - density.log_prob(x)).abs().mean()
    row(29, cost, at_least=5e-3, words="what that eps costs against p_0")


# Row 30


class Curved(nn.Module):
    """A nonlinear network on images that mixes all pixels of an example."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(16, 16).double()

    def forward(self, x_t, t, cond=None):
        return torch.tanh(self.mix(x_t.flatten(1))).view_as(x_t) + 0.3 * x_t


def field(backbone, at=1.0):
    denoiser = Denoiser(backbone, LogSNRLinearSchedule(), "v_prediction")
    return lambda x: drift(denoiser, x, torch.tensor(at, dtype=F64))


def jacobians(f, x):
    """∂f/∂x of each example: (B, d, d)."""
    one = lambda each: f(each[None])[0]  # noqa: E731
    return torch.stack([torch.autograd.functional.jacobian(one, each).view(each.numel(), -1) for each in x])


def test_row_30_the_exact_divergence_is_the_jacobian_s_trace_on_images(row):
    """The exact divergence on image shapes is the trace of the Jacobian. Public code raises IndexError there."""
    unet = UNet((2, 8, 8), 8, [1, 2], fourier=()).double()
    for p in unet.parameters():
        nn.init.normal_(p, std=0.2)  # its last layer starts at zero
    for name, backbone, shape in (("a network", Curved(), (1, 4, 4)), ("a U-Net", unet, (2, 8, 8))):
        f, x = field(backbone), torch.randn(2, *shape, dtype=F64)
        value, found = exact_divergence(f, x)
        expected = jacobians(f, x).diagonal(dim1=1, dim2=2).sum(1)
        assert expected.abs().min() > 1e-2 and torch.equal(value, f(x).detach())
        row(30, found, expected, tolerance=1e-10, words=f"{name} on {shape}")


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_row_30_hutchinson_s_estimate_is_unbiased_with_the_known_variance(row, kind):
    """Hutchinson's estimate of the divergence is unbiased, its variance known. Grathwohl 2018, 1810.01367, eq. 7.

    Var = 2‖S‖² for Gaussian noise and 2(‖S‖² - Σ s_ii²) for Rademacher, S the symmetric part of the Jacobian."""
    f, x = field(Curved()), torch.randn(1, 1, 4, 4, dtype=F64)
    n = 20_000
    jacobian = jacobians(f, x)[0]
    symmetric = (jacobian + jacobian.T) / 2
    flow = ProbabilityFlow(Denoiser(Curved(), LogSNRLinearSchedule(), "v_prediction"), divergence=kind)
    many = x.expand(n, *x.shape[1:])
    found = hutchinson(f, many, flow._noise(many, None))[1]
    row(30, found.mean(), jacobian.trace(), standard_error=found.std().item() / math.sqrt(n), words=f"mean, {kind}")
    off = 0.0 if kind == "gaussian" else symmetric.diagonal().square().sum()
    row(30, found.var(), 2 * (symmetric.square().sum() - off), relative=0.05, words=f"variance, {kind}")
