"""The probability flow: its drift, its solve, and the densities that come of it."""

import math
import re

import pytest
import torch
from answers import COVARIANCE, F64, NAMES, A, Labelled, M, Smooth, ends_in_noise, generator
from torch import nn

from components.denoisers import Denoiser, GaussianMean, MixtureMean
from components.distributions import Normal
from components.samplers import ProbabilityFlow, drift
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
)
from hybrids.data import gaussians_8

SCHEDULES = {
    "log-SNR linear": LogSNRLinearSchedule(12.0, -9.0), "cosine": CosineSchedule(), "table": BetaSchedule(),
    "continuous": VariancePreservingSchedule(), "flow": FlowSchedule(),
    "shifted flow": ShiftedSchedule(FlowSchedule(), 2.0), "exploding": VarianceExplodingSchedule(),
    "EDM": EDMSchedule(), "learned": LearnedSchedule(), "pure noise": BetaSchedule(rescale_betas_zero_snr=True),
}  # fmt: skip
EACH = pytest.mark.parametrize("schedule", list(SCHEDULES.values()), ids=list(SCHEDULES))
EVEN = {"method": "rk4", "steps": 40, "divergence": "rademacher"}


def gaussian(schedule, m=M, covariance=COVARIANCE):
    return Denoiser(GaussianMean(schedule, m, covariance), schedule, "sample")


def first_of(schedule):
    return 1e-5 if schedule.noiseless(0.0) else 0.0


# The drift


@pytest.mark.parametrize("prediction", NAMES)
@EACH
def test_the_drift_is_song_s_in_the_variable_lambda(schedule, prediction):
    """dx/dt = f x - ½ g² score, f = d log α/dt, g² = dσ²/dt - 2 f σ²; and dx/dλ is that over dλ/dt."""
    if prediction == "epsilon" and ends_in_noise(schedule):
        return
    denoiser = Denoiser(Smooth(), schedule, prediction)
    x_t = torch.randn(4, 3, dtype=F64)
    for at in (0.2503, 0.7001):
        t = torch.tensor(at, dtype=F64, requires_grad=True)
        alpha, sigma = schedule.alpha_sigma(t)
        (f,) = torch.autograd.grad(alpha.log(), t, retain_graph=True) if alpha.requires_grad else (torch.zeros(()),)
        (rise,) = torch.autograd.grad(sigma.square(), t)
        g2 = rise - 2 * f * sigma.detach().square()
        expected = f * x_t - 0.5 * g2 * denoiser(x_t, at).score
        in_t = drift(denoiser, x_t, schedule.log_snr(at).detach()) * schedule.slope(at)
        torch.testing.assert_close(in_t, expected, rtol=1e-7, atol=1e-7)


def test_no_clip_reaches_it():
    schedule = LogSNRLinearSchedule()
    x_t, log_snr = torch.randn(4, 3, dtype=F64), torch.tensor(1.0, dtype=F64)
    free, clipped = (Denoiser(Smooth(), schedule, "sample", clip=clip) for clip in (None, (-0.1, 0.1)))
    assert torch.equal(drift(free, x_t, log_snr), drift(clipped, x_t, log_snr))


# The solve


@EACH
def test_it_carries_a_gaussian_s_points_as_the_closed_form_does_both_ways(schedule):
    """Of N(0, s²): x_t ∝ √(α² s² + σ²), and the change of volume is the log of that ratio, d times."""
    s, ends = 0.5, (7.0, -4.9)
    # One probe of Rademacher noise is exact for a diagonal Jacobian.
    flow = ProbabilityFlow(gaussian(schedule, 0 * M, s**2 * torch.eye(3, dtype=F64)), 0.5, **EVEN)
    x = torch.randn(5, 3, dtype=F64)
    alphas, sigmas = schedule.coefficients(torch.tensor(ends, dtype=F64))
    spread = (alphas.square() * s**2 + sigmas.square()).sqrt()
    ratio = (spread[1] / spread[0]).item()
    x_1, change = flow.transport(x, *ends)
    torch.testing.assert_close(x_1, ratio * x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(change, torch.full((5,), 3 * math.log(ratio), dtype=F64), rtol=1e-5, atol=1e-5)
    back, other = flow.transport(x_1, *reversed(ends))
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other, -change, rtol=1e-5, atol=1e-5)


def exact(schedule, first=0.0, **settings):
    """The flow of N(M, Σ) that ends in its own marginal, and the density N(M, Σ + (σ/α)² I) that it must have."""
    flow = ProbabilityFlow(gaussian(schedule), first, **settings)
    noise, end = (schedule.coefficients(torch.tensor(at, dtype=F64)) for at in flow.ends)
    eye = torch.eye(3, dtype=F64)
    flow.prior = torch.distributions.MultivariateNormal(end[0] * M, end[0] ** 2 * COVARIANCE + end[1] ** 2 * eye)
    return flow, torch.distributions.MultivariateNormal(M, COVARIANCE + (noise[1] / noise[0]) ** 2 * eye)


@EACH
def test_the_density_is_that_of_the_data_with_the_first_noise(schedule):
    """At the default tolerance; Σ has a direction of deviation 0.06."""
    flow, density = exact(schedule, first_of(schedule))
    x = density.sample((6,))
    torch.testing.assert_close(flow.log_prob(x), density.log_prob(x), rtol=0, atol=5e-3)


def test_where_a_schedule_starts_clean_1e_5_costs_1e_4_a_dimension():
    """As the docstring says: on eight Gaussians of σ = 0.07, against the density without any noise."""
    density = gaussians_8()
    x = density.sample(200, generator(0))
    schedule = VariancePreservingSchedule()
    denoiser = Denoiser(MixtureMean(schedule, density.means, density.std), schedule, "sample")
    cost = [
        (ProbabilityFlow(denoiser, first).log_prob(x) - density.log_prob(x)).abs().mean().item() / 2
        for first in (1e-3, 1e-5)
    ]
    assert 5e-3 < cost[0] < 2e-2 and cost[1] < 2e-4


@pytest.mark.parametrize("method, stages, order", [("euler", 1, 1), ("midpoint", 2, 2), ("heun2", 2, 2), ("rk4", 4, 4)])
def test_fixed_steps_take_as_many_evaluations_as_said_and_have_their_order(method, stages, order):
    x, errors = M + torch.randn(20, 3, dtype=F64) @ A.T, []
    for steps in (40, 80):
        flow, density = exact(LogSNRLinearSchedule(6.0, -6.0), method=method, steps=steps)
        errors.append((flow.log_prob(x) - density.log_prob(x)).abs().mean().item())
        assert flow.evaluations == stages * steps
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_a_tolerance_is_kept_and_paid_for():
    x, costs, errors = M + torch.randn(20, 3, dtype=F64) @ A.T, [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        flow, density = exact(LogSNRLinearSchedule(12.0, -9.0), rtol=tolerance, atol=tolerance)
        errors.append((flow.log_prob(x) - density.log_prob(x)).abs().max().item())
        costs.append(flow.evaluations)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-4 and costs[0] < costs[1] < costs[2]


# The divergence


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_noise_is_drawn_once_a_solve(kind):
    """However many evaluations there are, the generator is left where one draw of all probes leaves it."""
    flow = ProbabilityFlow(gaussian(LogSNRLinearSchedule()), divergence=kind, probes=2)
    drawn, once = generator(), generator()
    flow.log_prob(torch.randn(5, 3, dtype=F64), generator=drawn)
    torch.randn(2, 5, 3, dtype=F64, generator=once)
    assert torch.equal(drawn.get_state(), once.get_state()) and flow.evaluations > 50


def test_rademacher_noise_is_exact_for_a_diagonal_jacobian():
    schedule, x = LogSNRLinearSchedule(), torch.randn(5, 3, dtype=F64)
    denoiser = gaussian(schedule, M, torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=F64)))
    exact, estimated = (ProbabilityFlow(denoiser, divergence=kind).log_prob(x) for kind in ("exact", "rademacher"))
    torch.testing.assert_close(estimated, exact, rtol=1e-9, atol=1e-9)


def test_hutchinson_s_log_density_is_unbiased_and_quieter_with_more_probes():
    schedule = LogSNRLinearSchedule(6.0, -6.0)
    denoiser, x = gaussian(schedule), (M + torch.randn(1, 3, dtype=F64) @ A.T).expand(4000, 3)
    fixed = {"method": "rk4", "steps": 30}
    exact = ProbabilityFlow(denoiser, **fixed).log_prob(x[:1]).item()
    spreads = []
    for probes in (1, 4):
        estimate = ProbabilityFlow(denoiser, divergence="gaussian", probes=probes, **fixed).log_prob(x)
        assert estimate.mean().item() == pytest.approx(exact, abs=4 * estimate.std().item() / math.sqrt(4000))
        spreads.append(estimate.std().item())
    assert spreads[0] / spreads[1] == pytest.approx(2, rel=0.1)


# What surrounds it


def test_the_network_sees_the_type_of_x_and_its_condition_and_the_rest_is_float64():
    calls = []

    class Spy(Labelled):
        def forward(self, x_t, t, cond=None):
            calls.append((x_t.dtype, cond is not None))
            return super().forward(x_t, t, cond)

    denoiser, x = Denoiser(Spy(), LogSNRLinearSchedule(), "v_prediction"), torch.randn(4, 3)
    flow = ProbabilityFlow(denoiser, method="rk4", steps=5)
    density = flow.log_prob(x, torch.ones(4))
    assert set(calls) == {(torch.float32, True)} and density.dtype == F64
    assert not torch.allclose(density, flow.log_prob(x))


def test_it_repeats_with_a_generator_and_leaves_no_gradient():
    denoiser = Denoiser(nn.Conv2d(2, 2, 3, padding=1), LogSNRLinearSchedule(), "v_prediction")
    denoiser.backbone.forward = lambda x, t, cond=None: nn.functional.conv2d(x, denoiser.backbone.weight, padding=1)
    flow, x = ProbabilityFlow(denoiser, divergence="gaussian", method="rk4", steps=4), torch.randn(3, 2, 4, 4)
    one, other = (flow.log_prob(x, generator=generator()) for _ in range(2))
    assert torch.equal(one, other) and not one.requires_grad and denoiser.backbone.weight.grad is None
    assert not torch.equal(one, flow.log_prob(x))


def test_the_prior_of_an_exploding_schedule_is_as_wide_as_its_noise():
    schedule = EDMSchedule()
    flow = ProbabilityFlow(gaussian(schedule))
    x_1 = 80 * torch.randn(4, 3, dtype=F64)
    flow.transport = lambda x, *rest: (x, torch.zeros(len(x), dtype=F64))
    torch.testing.assert_close(flow.log_density(x_1), Normal(torch.zeros(4, 3, dtype=F64), 80.0).log_prob(x_1))


def refused(**settings):
    return lambda: ProbabilityFlow(gaussian(LogSNRLinearSchedule()), **settings)


def beyond(start, end):
    flow = ProbabilityFlow(gaussian(LogSNRLinearSchedule(6.0, -4.0)))
    return lambda: flow.transport(torch.randn(2, 3, dtype=F64), start, end)


@pytest.mark.parametrize("call, message", [
    (refused(method="rk45"), "method must be one of dopri5, euler, midpoint, heun2, rk4; got 'rk45'"),
    (refused(divergence="trace"), "divergence must be one of exact, rademacher, gaussian; got 'trace'"),
    (refused(steps=10), "steps must be at least 1 for a fixed method, None for dopri5; got 10 for dopri5"),
    (refused(method="rk4"), "steps must be at least 1 for a fixed method, None for dopri5; got None for rk4"),
    (refused(method="rk4", steps=0), "steps must be at least 1 for a fixed method, None for dopri5; got 0 for rk4"),
    (refused(rtol=0.0), "rtol and atol above 0, probes and limit at least 1; got 0.0"),
    (refused(probes=0), "rtol and atol above 0, probes and limit at least 1"),
    (lambda: ProbabilityFlow(gaussian(CosineSchedule())),
     "first must be a time with noise; CosineSchedule is noiseless at t = 0"),
    (beyond(7.0, 0.0), "start must be a log-SNR of LogSNRLinearSchedule, -4 to 6; got 7"),
    (beyond(0.0, -5.0), "end must be a log-SNR of LogSNRLinearSchedule, -4 to 6; got -5"),
    (lambda: ProbabilityFlow(gaussian(LogSNRLinearSchedule()), rtol=1e-9, atol=1e-9, limit=50).log_prob(
        torch.randn(2, 3, dtype=F64)),
     "limit must be enough for the tolerance; rtol 1e-09, atol 1e-09 took more than 50 evaluations"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
