"""Flows, EDM and exploding variance as settings of Diffusion; weightings, time samplers, guidance, a learned schedule.

Imitates test_diffusion.py: the mean of a quadratic loss is exact over four points with the moments of (x, ε).
"""

import math

import pytest
import torch
from answers import Smooth
from torch import nn

import components.distributions.continuous
import components.losses.times
import hybrids.models.diffusion_bound
from components.losses import weightings
from components.denoisers import Denoiser, GaussianMean
from components.losses import LogNormalTimes, LossAwareTimes, UniformLogSNRTimes
from components.samplers import ancestral, ddim, time_grid
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    over,
)
from hybrids.models import Diffusion

F64 = torch.float64
EACH = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "edm"])
S = 0.5
D = 0.7  # σ_d


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def fix(monkeypatch):
    """Put given values in the place of a diffusion's random noise, and of its random times if there are any."""

    def put(epsilon, u=None):
        noise = lambda x, generator=None: epsilon.to(x.dtype)  # noqa: E731
        monkeypatch.setattr(hybrids.models.diffusion_bound, "randn_like", noise)
        monkeypatch.setattr(components.distributions.continuous, "randn_like", noise)
        if u is not None:
            for module in (components.losses.times, hybrids.models.diffusion_bound):
                monkeypatch.setattr(module, "low_discrepancy", lambda *_, **__: u)

    return put


class Gaussian(nn.Module):
    """The best answer for x ~ N(0, S² I), in any parameterization and from what each is shown."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = [schedule], prediction  # in a list: it is the denoiser's

    def forward(self, shown, t, cond=None):
        alpha, sigma = (over(c, shown) for c in self.schedule[0].alpha_sigma(t))
        if self.prediction == "edm":
            x_t = shown * (sigma**2 + (alpha * D) ** 2).sqrt()
        else:
            x_t = shown * (alpha**2 + sigma**2).sqrt() if self.schedule[0].exploding else shown
        total = alpha**2 * S**2 + sigma**2
        x, epsilon = alpha * S**2 / total * x_t, sigma / total * x_t
        noise = sigma / alpha
        skip, out = D**2 / (noise**2 + D**2), noise * D / (noise**2 + D**2).sqrt()
        return {
            "epsilon": epsilon, "sample": x, "v_prediction": alpha * epsilon - sigma * x, "flow": epsilon - x,
            "edm": (x - skip * x_t / alpha) / out,
        }[self.prediction]  # fmt: skip


def exact(schedule=None, prediction="flow", shape=1, **settings):
    schedule = schedule or LogSNRLinearSchedule()
    denoiser = Denoiser(Gaussian(schedule, prediction), schedule, prediction, sigma_data=D)
    return Diffusion(denoiser, shape, **settings)


def wrong(schedule=None, prediction="flow", **settings):
    return Diffusion(Denoiser(Smooth(), schedule or LogSNRLinearSchedule(), prediction, sigma_data=D), 3, **settings)


X4 = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
EPSILON4 = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)


def test_the_prior_of_exploding_variance_is_its_last_noise(fix):
    """KL(N(x, σ²) ‖ N(0, σ²)) = x²/2σ²."""
    x = torch.randn(5, 3, dtype=F64)
    prior = wrong(EDMSchedule(0.002, 8.0), "sample").nll(x)["prior"][1]
    torch.testing.assert_close(prior, x.square().sum(1) / 128, rtol=1e-9, atol=0)


@pytest.mark.parametrize("v, end", [(-1.0, "small"), (1.0, "large")])
def test_the_bound_of_a_learned_variance_has_those_of_the_fixed_ones_at_its_ends(fix, v, end):
    class Both(Smooth):
        def forward(self, x_t, t, cond=None):
            output = super().forward(x_t, t)
            return torch.cat([output, torch.full_like(output, v)], dim=1)

    x, epsilon = torch.randint(0, 17, (5, 3)).double() / 8 - 1, torch.randn(5, 3, dtype=F64)
    fix(epsilon)
    schedule = LogSNRLinearSchedule()
    learned, fixed = (
        Diffusion(Denoiser(network, schedule, "epsilon", variance), 3, timesteps=20).bound(x)["diffusion"][1]
        for network, variance in ((Both(), "learned_range"), (Smooth(), end))
    )
    torch.testing.assert_close(learned, fixed, rtol=1e-8, atol=1e-10)


@EACH
def test_the_simple_loss_compares_what_the_network_predicts(fix, prediction):
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    fix(epsilon, torch.full((5,), 0.45, dtype=F64))
    model = wrong(CosineSchedule(9.0, -9.0), prediction)
    alpha, sigma = model.denoiser.schedule.alpha_sigma(0.45)
    x_t, noise = alpha * x + sigma * epsilon, sigma / alpha
    skip, out = D**2 / (noise**2 + D**2), noise * D / (noise**2 + D**2).sqrt()
    target = {
        "epsilon": epsilon, "sample": x, "v_prediction": alpha * epsilon - sigma * x, "flow": epsilon - x,
        "edm": (x - skip * x_t / alpha) / out,
    }[prediction]  # fmt: skip
    shown = x_t / (sigma**2 + (alpha * D) ** 2).sqrt() if prediction == "edm" else x_t
    output = Smooth()(shown, torch.tensor(0.45, dtype=F64))
    torch.testing.assert_close(model.loss(x)["simple"][1], (target - output).square().sum(1), rtol=1e-9, atol=0)


def test_flow_matching_is_the_simple_loss_of_a_flow(fix):
    """‖(ε - x) - u(x_t, t)‖² at x_t = (1 - t) x + t ε."""
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    t = torch.rand(5, dtype=F64)
    fix(epsilon, t)
    at = t[:, None]
    expected = (epsilon - x - Smooth()((1 - at) * x + at * epsilon, t)).square().sum(1)
    torch.testing.assert_close(wrong(FlowSchedule()).loss(x)["simple"][1], expected, rtol=1e-10, atol=0)


# EDM's numbers


@pytest.mark.parametrize("schedule", [EDMSchedule(), LogSNRLinearSchedule()])
def test_edm_s_loss_is_its_weighting_times_the_error_in_x(fix, schedule):
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u = torch.rand(50, dtype=F64) * 0.9 + 0.05
    fix(epsilon, u)
    model = wrong(schedule, "edm")
    alpha, sigma = schedule.alpha_sigma(u)
    noise = sigma / alpha
    x_hat = model.denoiser(over(alpha, x) * x + over(sigma, x) * epsilon, u).mean
    expected = (noise**2 + D**2) / (noise * D) ** 2 * (x - x_hat).square().sum(1)
    torch.testing.assert_close(model.loss(x)["simple"][1], expected, rtol=1e-8, atol=0)
    weighted = wrong(schedule, "edm", weighting=weightings.edm(D)).loss(x)["weighted"][1]
    torch.testing.assert_close(weighted, expected, rtol=1e-8, atol=0)


def test_edm_s_loss_of_the_zero_network_is_one_at_every_sigma_on_data_of_std_sigma_data(fix):
    class Zero(nn.Module):
        def forward(self, x_t, t, cond=None):
            return torch.zeros_like(x_t)

    u = torch.linspace(0.01, 0.99, 50, dtype=F64)
    fix(EPSILON4.repeat(50, 1), u.repeat_interleave(4))
    model = Diffusion(Denoiser(Zero(), EDMSchedule(), "edm", sigma_data=D), 1, times=LogNormalTimes())
    for times in (components.losses.times.UniformTimes(), LogNormalTimes()):
        model.times = times
        each = model.loss(D * X4.repeat(50, 1))["simple"][1].view(50, 4).mean(1)
        torch.testing.assert_close(each, torch.ones_like(each), rtol=1e-8, atol=0)


# Weightings


@EACH
@pytest.mark.parametrize("weight", [weightings.simple, weightings.min_snr(), weightings.p2(), weightings.edm(D)])
def test_a_weighting_multiplies_the_loss_of_epsilon_whatever_is_predicted(fix, prediction, weight):
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u = torch.rand(50, dtype=F64)
    fix(epsilon, u)
    model = wrong(prediction=prediction, weighting=weight)
    schedule = model.denoiser.schedule
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(u))
    error = (epsilon - model.denoiser(alpha * x + sigma * epsilon, u).epsilon).square().sum(1)
    terms = model.loss(x)
    assert list(terms) == ["weighted"]
    torch.testing.assert_close(terms["weighted"][1], weight(schedule.log_snr(u)) * error, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("weight", [weightings.min_snr(), weightings.p2(), weightings.edm(D)])
def test_a_weighting_is_finite_at_pure_noise(fix, weight):
    """There SNR = 0 and EDM's weight is infinite; their product is 1/σ_d² on the error in x."""
    x, epsilon = torch.randn(2, 5, 3)
    fix(epsilon, torch.full((5,), 0.999999, dtype=F64))
    model = wrong(BetaSchedule(rescale_betas_zero_snr=True), "v_prediction", timesteps=1000, weighting=weight)
    found = model.loss(x)["weighted"][1]
    in_x = (x - model.denoiser(epsilon, 1.0).mean).square().sum(1)
    expected = in_x / D**2 if weight.func is weightings._edm else torch.zeros(5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# Time samplers


@pytest.mark.parametrize("times", [UniformLogSNRTimes(9.0, -4.0), LogNormalTimes(), LossAwareTimes(bins=4)])
def test_a_loss_is_at_the_times_drawn_and_weighted(fix, times):
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    fix(epsilon, torch.rand(50, dtype=F64))
    if isinstance(times, LossAwareTimes):
        times.learn(torch.tensor([0.1, 0.3, 0.6, 0.9]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    model = wrong(times=times)
    t, share = times(50, model.denoiser.schedule)
    alpha, sigma = (over(c, x) for c in model.denoiser.schedule.alpha_sigma(t))
    output = model.denoiser(alpha * x + sigma * epsilon, t).output
    expected = share * (epsilon - x - output).square().sum(1)
    torch.testing.assert_close(model.loss(x)["simple"][1], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("timesteps", [None, 1000, 4])
def test_a_loss_aware_sampler_hears_in_training_only_whatever_the_number_of_levels(timesteps):
    """Four levels are fewer than its bins: it hears of the times as drawn, not of the levels."""
    model, x = wrong(times=LossAwareTimes(bins=20), timesteps=timesteps), torch.randn(200, 3, dtype=F64)
    model.eval().loss(x)
    assert not model.times.seen.any()
    model.train().loss(x)
    assert (model.times.seen == 10).all() and (model.times.probabilities != 1 / 20).any()
    assert "times.squares" in model.state_dict()


def test_a_loss_aware_sampler_leaves_the_mean_loss_as_it_is():
    """To four standard errors of it, with a loss that differs fiftyfold between times."""
    x = torch.randn(1, 3, dtype=F64).expand(20_000, 3)
    aware, uniform = wrong(EDMSchedule(), "sample", times=LossAwareTimes(bins=50)), wrong(EDMSchedule(), "sample")
    for _ in range(3):
        aware.train().loss(x)
    one, other = (model.eval().loss(x).per_example for model in (aware, uniform))
    assert (one.mean() - other.mean()).abs() < 4 * math.sqrt((one.var() + other.var()).item() / len(x))
    assert not torch.allclose(aware.times.probabilities, torch.full((50,), 0.02, dtype=F64), rtol=0.2)


# A schedule that minimizes the variance of the bound


class Net(nn.Module):
    """A small network with weights that are anything."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()

    def forward(self, x_t, t, cond=None):
        t = torch.as_tensor(t, dtype=F64).expand(len(x_t))
        return self.last(torch.tanh(self.first(torch.cat([x_t, t[:, None]], dim=1))))


@EACH
def test_the_gradient_that_reaches_the_interior_is_that_of_the_variance_and_all_others_the_bound_s(fix, prediction):
    """∇ mean(L²)/mean(L) there, by brute force at fixed noise; the endpoints' and the network's own are ∇ mean(L)."""
    x, epsilon, u = *torch.randn(2, 40, 3, dtype=F64), torch.rand(40, dtype=F64)
    fix(epsilon, u)
    schedule = LearnedSchedule(6.0, -4.0, learn_endpoints=True, width=5).double()
    for p in (schedule.log_weight, schedule.log_steepness, schedule.bias):
        nn.init.normal_(p)
    model = Diffusion(Denoiser(Net(), schedule, prediction, sigma_data=D), 3)
    model.nll(x)["diffusion"][1].mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(u))
    error = (epsilon - model.denoiser(alpha * x + sigma * epsilon, u).epsilon).square().sum(1)
    loss = -0.5 * schedule.slope(u) * error
    names, parameters = zip(*model.named_parameters())
    plain = torch.autograd.grad(loss.mean(), parameters, retain_graph=True)
    of_square = torch.autograd.grad(loss.square().mean() / loss.mean().detach(), parameters)
    for name, mean, square in zip(names, plain, of_square):
        interior = "schedule" in name and "endpoints" not in name
        torch.testing.assert_close(found[name], square if interior else mean, rtol=1e-8, atol=1e-10)
        assert (mean - square).abs().max() > 1e-6, name  # else this test would say nothing


def test_the_network_s_gradient_does_not_hear_of_the_context(fix):
    """And neither does the value: within `minimizing_variance` the bound is what it is without."""
    x, epsilon, u = *torch.randn(2, 8, 3, dtype=F64), torch.rand(8, dtype=F64)
    fix(epsilon, u)
    model = Diffusion(Denoiser(Net(), LearnedSchedule(), "epsilon"), 3)
    with_graph = model.nll(x).per_example.detach()
    with torch.no_grad():
        torch.testing.assert_close(model.nll(x).per_example, with_graph, rtol=0, atol=0)
    assert model.denoiser.schedule._factors is None


def test_descending_it_lowers_the_variance_and_leaves_the_bound():
    model = exact(LearnedSchedule(), "epsilon", shape=2)
    schedule = model.denoiser.schedule

    def measured():
        torch.manual_seed(1)
        with torch.no_grad():
            each = model.nll(S * torch.randn(20_000, 2, dtype=F64))["diffusion"][1]
        return each.mean().item(), each.var().item()

    mean, variance = measured()
    optimizer = torch.optim.Adam([p for p in schedule.parameters() if p.requires_grad], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        model.nll(S * torch.randn(256, 2, dtype=F64))["diffusion"][1].mean().backward()
        optimizer.step()
    after, lower = measured()
    assert lower < 0.85 * variance
    assert abs(after - mean) < 4 * math.sqrt((variance + lower) / 20_000)
    assert schedule.log_snr(0.0).item() == pytest.approx(13.3, rel=1e-6)


# Sampling


M = torch.tensor([0.5, -1.0], dtype=F64)
COVARIANCE = torch.tensor([[0.36, 0.2], [0.2, 0.25]], dtype=F64)
SCHEDULES = {
    "exploding": VarianceExplodingSchedule(0.01, 50.0), "EDM": EDMSchedule(), "flow": FlowSchedule(),
    "flow, shifted": ShiftedSchedule(FlowSchedule(), 2.0), "cosine": CosineSchedule(9.0, -9.0),
    "table to pure noise": BetaSchedule(rescale_betas_zero_snr=True),
}  # fmt: skip
ON_EACH = pytest.mark.parametrize("schedule", list(SCHEDULES.values()), ids=list(SCHEDULES))


@ON_EACH
def test_the_flow_carries_noise_to_the_gaussian_and_errs_half_as_much_with_half_the_step(schedule):
    """ddim is affine here, so points with the moments of the noise show the moments of the samples, exactly."""
    points = 2**0.5 * torch.cat([torch.eye(2, dtype=F64), -torch.eye(2, dtype=F64)])
    denoiser = Denoiser(GaussianMean(schedule, M, COVARIANCE), schedule, "sample")

    def error(steps):
        alpha, _ = schedule.alpha_sigma(1.0)
        x = ddim(denoiser, alpha * M + schedule.terminal_std * points, time_grid(steps))
        centred = x - x.mean(0)
        return ((x.mean(0) - M).abs().max() + (centred.T @ centred / 4 - COVARIANCE).abs().max()).item()

    coarse, fine = error(200), error(400)
    assert fine < 0.02 and fine < 0.7 * coarse + 2e-3  # what the start, not the steps, costs is below 2e-3


@ON_EACH
@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_samples_have_the_gaussian_s_moments(schedule, sampler):
    """10 000 of them: 4 standard errors, and 0.02 for 250 steps."""
    model = Diffusion(Denoiser(GaussianMean(schedule, M, COVARIANCE), schedule, "sample"), 2, sampler=sampler)
    x = model.sample(10_000).double()
    assert x.dtype == F64 and ((x.mean(0) - M).abs() < 4 * (COVARIANCE.diag() / 10_000).sqrt() + 0.02).all()
    spread = (COVARIANCE.square() + COVARIANCE.diag()[:, None] * COVARIANCE.diag()).div(10_000).sqrt()
    assert ((torch.cov(x.T) - COVARIANCE).abs() < 4 * spread + 0.02).all()


def test_sampling_starts_from_the_last_noise():
    seen = []

    def sampler(denoiser, x, times, cond=None, generator=None):
        seen.append(x.std().item())
        return x * 0

    for schedule, expected in ((EDMSchedule(), 80.0), (VarianceExplodingSchedule(0.1, 5.0), 5.0), (FlowSchedule(), 1)):
        wrong(schedule, "sample").sample(5000, sampler=sampler)
        assert seen[-1] == pytest.approx(expected, rel=0.05)


class Labelled(nn.Module):
    """Means the class: N(±1, S²), without one N(0, S²)."""

    num_classes = 2

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (over(c, x_t) for c in self.schedule.alpha_sigma(t))
        means = torch.tensor([-1.0, 1.0, 0.0], dtype=x_t.dtype)
        mean = torch.zeros(1, dtype=x_t.dtype) if cond is None else means[cond][:, None]
        return mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * mean)


@pytest.mark.parametrize("scale, mean", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (3.0, 3.0)])
def test_row_32_guided_samples_are_of_the_extrapolated_gaussian(scale, mean):
    schedule = CosineSchedule(9.0, -9.0)
    model = Diffusion(Denoiser(Labelled(schedule), schedule, "sample"), 1, sampler=ddim, sample_steps=100)
    cond = torch.arange(2).repeat(2000)
    x = model.sample(4000, cond, guidance_scale=scale)[:, 0]
    for c, sign in ((0, -1), (1, 1)):
        assert x[cond == c].mean().item() == pytest.approx(sign * mean, abs=4 * S / math.sqrt(2000) + 0.03)
        assert x[cond == c].std().item() == pytest.approx(S, rel=4 / math.sqrt(4000) + 0.03)


def test_guidance_without_a_condition_changes_nothing():
    schedule = CosineSchedule(9.0, -9.0)
    plain, guided = (
        Diffusion(Denoiser(Labelled(schedule), schedule, "sample"), 1, sample_steps=5, guidance_scale=scale)
        for scale in (1.0, 4.0)
    )
    one, other = (model.sample(4, generator=torch.Generator().manual_seed(1)) for model in (plain, guided))
    assert torch.equal(one, other)
    assert guided.sample(4, guidance_scale=1.0).shape == (4, 1)
    with pytest.raises(ValueError, match="guidance_scale needs cond: there is nothing to guide by; got 4.0 without"):
        plain.sample(4, guidance_scale=4.0)
