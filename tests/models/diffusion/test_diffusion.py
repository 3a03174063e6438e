"""A diffusion's loss, of every prediction, weighting and time sampler, its noised batch and its samples."""

import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from answers import COVARIANCE, F64, NAMES, M, Smooth, generator
from diffusions import EPSILON4, SIGMA_DATA, X4, S, exact, given, over_levels, wrong
from torch import nn

import components.losses as losses
from components.denoisers import Denoiser, GaussianMean
from components.distributions import Normal
from components.losses import LogNormalTimes, LossAwareTimes, TimeSampler, UniformLogSNRTimes, UniformTimes
from components.samplers import DDIM, METHODS, Ancestral, Method, Sampler, time_grid
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
    over,
)
from hybrids.models import Diffusion, Model
from hybrids.terms import Terms

EACH = pytest.mark.parametrize("prediction", NAMES)
D = SIGMA_DATA


class Zero(nn.Module):
    def forward(self, x_t, t, cond=None):
        return torch.zeros_like(x_t)


def test_it_is_a_model():
    assert isinstance(wrong(), Model)


# The simple loss


@EACH
@pytest.mark.parametrize("timesteps, t", [(None, 0.45), (10, 0.5)])
def test_the_simple_loss_compares_what_the_network_predicts(prediction, timesteps, t):
    """At t = u, or at the end of the level that u = 0.45 falls into."""
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    model = wrong(CosineSchedule(9.0, -9.0), prediction, timesteps=timesteps)
    given(model, epsilon, torch.full((5,), 0.45, dtype=F64))
    alpha, sigma = model.denoiser.schedule.alpha_sigma(t)
    x_t, noise = alpha * x + sigma * epsilon, sigma / alpha
    skip, out = D**2 / (noise**2 + D**2), noise * D / (noise**2 + D**2).sqrt()
    target = {
        "epsilon": epsilon, "sample": x, "v_prediction": alpha * epsilon - sigma * x, "flow": epsilon - x,
        "edm": (x - skip * x_t / alpha) / out,
    }[prediction]  # fmt: skip
    shown = x_t / (sigma**2 + (alpha * D) ** 2).sqrt() if prediction == "edm" else x_t
    output = Smooth()(shown, torch.tensor(t, dtype=F64))
    torch.testing.assert_close(model.loss(x)["simple"][1], (target - output).square().sum(1), rtol=1e-9, atol=0)


def test_flow_matching_is_the_simple_loss_of_a_flow():
    """‖(ε - x) - u(x_t, t)‖² at x_t = (1 - t) x + t ε."""
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    t, model = torch.rand(5, dtype=F64), wrong(FlowSchedule(), "flow")
    given(model, epsilon, t)
    at = t[:, None]
    expected = (epsilon - x - Smooth()((1 - at) * x + at * epsilon, t)).square().sum(1)
    torch.testing.assert_close(model.loss(x)["simple"][1], expected, rtol=1e-10, atol=0)


def test_the_epsilon_loss_s_floor_on_a_standard_normal_is_the_mean_level():
    model = exact(BetaSchedule(), s=1.0, timesteps=1000)
    floor = over_levels(model, 1000, 1.0, "loss").item()
    assert floor == pytest.approx(BetaSchedule().alphas_cumprod.mean().item(), rel=1e-9)
    assert floor == pytest.approx(0.27551, abs=5e-6)


def test_the_zero_network_s_epsilon_loss_is_one():
    model = Diffusion(Denoiser(Zero(), BetaSchedule()), 1, timesteps=1000)
    assert over_levels(model, 1000, 1.0, "loss").item() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("weighting, names", [
    ("simple", ["simple"]), ("likelihood", ["prior", "reconstruction", "diffusion"]),
])  # fmt: skip
def test_the_weighting_chooses_the_loss(weighting, names):
    model, x = wrong(weighting=weighting), torch.randn(4, 3)
    assert list(model.loss(x)) == names
    for terms in (model.loss(x), model.nll(x), model.bound(x)):
        assert terms.per_example.shape == (4,) and terms.total.isfinite()


def test_losses_sum_over_the_event_and_are_float32_of_bf16_images():
    model = wrong(shape=(3, 4, 4))
    x = torch.randn(4, 3, 4, 4).clamp(-1, 1)
    for terms in (model.loss(x.bfloat16()), model.nll(x.bfloat16())):
        assert terms.per_example.shape == (4,) and terms.per_example.dtype == torch.float32
    assert model.loss(x).total > 10  # 48 dimensions of about one each


# The signal that is left at t = 1

# N(3, 1) has a second moment of 10, and these four points its mean and variance.
POINTS = 3 + X4.float()


@pytest.mark.parametrize("schedule, x, left", [
    (BetaSchedule("linear", 100), POINTS, 5.7124),
    (BetaSchedule("linear", 200), POINTS, 1.52316),
    (BetaSchedule("linear", 50), X4, 1.51858),
    (BetaSchedule("scaled_linear", 100), X4, 0.9402),
    (BetaSchedule("sigmoid", 100), X4, 0.5697),
    (LogSNRLinearSchedule(10.0, 2.0), X4, math.exp(2)),
    (EDMSchedule(sigma_max=0.5), X4, 4.0),
    (VarianceExplodingSchedule(sigma_max=0.5), X4, 4.0),
    (VariancePreservingSchedule(beta_max=1.0), X4, 1.3641),
    (BetaSchedule(), 1000 * POINTS, 403.599),
    (LogSNRLinearSchedule(), 5 * X4, 25 * math.exp(-5)),
    (BetaSchedule(), POINTS, None),
    (BetaSchedule("scaled_linear"), X4, None),
    (BetaSchedule("squaredcos_cap_v2", 100), POINTS, None),
    (BetaSchedule("linear", 100, 1e-3, 0.2), POINTS, None),
    (BetaSchedule("linear", 100, rescale_betas_zero_snr=True), POINTS, None),
    (CosineSchedule(), POINTS, None),
    (FlowSchedule(), POINTS, None),
    (EDMSchedule(), POINTS, None),
    (VarianceExplodingSchedule(), POINTS, None),
    (VariancePreservingSchedule(), POINTS, None),
    (LogSNRLinearSchedule(), 1.5 * X4, None),
    (LogSNRLinearSchedule(10.0, -6.0), X4, None),
])  # fmt: skip
@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
def test_training_warns_once_of_a_schedule_that_leaves_signal_at_t_1(schedule, x, left, weighting):
    timesteps = getattr(schedule, "num_train_timesteps", 1000)
    model = wrong(schedule, shape=1, timesteps=timesteps, weighting=weighting)
    if left is not None:
        assert model.signal_left(x).item() == pytest.approx(left, rel=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.eval().loss(x), model.nll(x), model.sample(2, sampler=Sampler(steps=2))
        assert not caught, "of training, not of evaluation"
        for _ in range(2):
            model.train().loss(x)
    assert len(caught) == (left is not None)
    if caught:
        message = str(caught[0].message)
        assert all(word in message for word in (type(schedule).__name__, "1000/T", "log_snr_min", f"is {left:.2g} "))


def test_with_signal_left_an_exact_denoiser_misses_the_mean():
    """Of N(3, 1), from N(0, 1): m σ_1²/(α_1² s² + σ_1²) = 1.909 by infinitely many ancestral steps, 1.89 by 100."""
    means = []
    for schedule in (BetaSchedule("linear", 100), BetaSchedule("linear", 100, 1e-3, 0.2)):
        denoiser = Denoiser(GaussianMean(schedule, 3 * torch.ones(1), torch.eye(1)), schedule, "sample")
        means.append(Diffusion(denoiser, 1, timesteps=100).sample(20_000, generator=generator()).mean().item())
    alpha, sigma = (c.item() for c in BetaSchedule("linear", 100).alpha_sigma(1.0))
    assert means[0] == pytest.approx(3 * sigma**2 / (alpha**2 + sigma**2), abs=0.05)
    assert means == pytest.approx([1.89, 3.0], abs=4 / math.sqrt(20_000) + 0.01)


# EDM's numbers


@pytest.mark.parametrize("schedule", [EDMSchedule(), LogSNRLinearSchedule()])
def test_edm_s_loss_is_its_weighting_times_the_error_in_x(schedule):
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u = torch.rand(50, dtype=F64) * 0.9 + 0.05
    alpha, sigma = schedule.alpha_sigma(u)
    noise = sigma / alpha
    for name, weighting in (("simple", "simple"), ("weighted", losses.edm(D))):
        model = wrong(schedule, "edm", weighting=weighting)
        given(model, epsilon, u)
        x_hat = model.denoiser(over(alpha, x) * x + over(sigma, x) * epsilon, u).mean
        expected = (noise**2 + D**2) / (noise * D) ** 2 * (x - x_hat).square().sum(1)
        torch.testing.assert_close(model.loss(x)[name][1], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("times", [UniformTimes(), LogNormalTimes()])
def test_edm_s_loss_of_the_zero_network_is_one_at_every_sigma_on_data_of_std_sigma_data(times):
    """By the default prediction of a schedule whose variance explodes."""
    model = Diffusion(Denoiser(Zero(), EDMSchedule(), sigma_data=D), 1)
    t, _ = times(50, EDMSchedule(), generator=generator())
    given(model, EPSILON4.repeat(50, 1), t.repeat_interleave(4))
    each = model.loss(D * X4.repeat(50, 1))["simple"][1].view(50, 4).mean(1)
    torch.testing.assert_close(each, torch.ones_like(each), rtol=1e-8, atol=0)


# Weightings


@EACH
@pytest.mark.parametrize("weight", [losses.simple, losses.min_snr(), losses.p2(), losses.edm(D)])
def test_a_weighting_multiplies_the_loss_of_epsilon_whatever_is_predicted(prediction, weight):
    x, epsilon = torch.randn(2, 50, 3, dtype=F64)
    u, model = torch.rand(50, dtype=F64), wrong(prediction=prediction, weighting=weight)
    given(model, epsilon, u)
    schedule = model.denoiser.schedule
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(u))
    error = (epsilon - model.denoiser(alpha * x + sigma * epsilon, u).epsilon).square().sum(1)
    terms = model.loss(x)
    assert list(terms) == ["weighted"]
    torch.testing.assert_close(terms["weighted"][1], weight(schedule.log_snr(u)) * error, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("weight, limit", [(losses.min_snr(), 0.0), (losses.p2(), 0.0), (losses.edm(D), D**-2)])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "flow", "edm"])
def test_a_weighting_is_finite_at_pure_noise(prediction, weight, limit):
    """There SNR = 0 and EDM's weight is infinite; their product is 1/σ_d² on the error in x."""
    x, epsilon = torch.randn(2, 5, 3)
    schedule = BetaSchedule(rescale_betas_zero_snr=True)
    model = wrong(schedule, prediction, timesteps=1000, weighting=weight)
    given(model, epsilon, torch.full((5,), 0.999999, dtype=F64))
    in_x = (x - model.denoiser(epsilon, 1.0).mean).square().sum(1)
    torch.testing.assert_close(model.loss(x)["weighted"][1], limit * in_x, rtol=1e-4, atol=1e-6)


# Time samplers


@pytest.mark.parametrize("times", [UniformLogSNRTimes(9.0, -4.0), LogNormalTimes(), LossAwareTimes(bins=4)])
def test_a_loss_is_at_the_times_drawn_and_weighted(times):
    if isinstance(times, LossAwareTimes):
        times.learn(torch.tensor([0.1, 0.3, 0.6, 0.9]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x, model, drawn = torch.randn(50, 3, dtype=F64), wrong(prediction="flow", times=times), generator()
    t, share = times(50, model.denoiser.schedule, generator=drawn)
    x_t, epsilon = model.denoiser.schedule.corrupt(x, t, drawn)
    expected = share * (epsilon - x - model.denoiser(x_t, t).output).square().sum(1)
    torch.testing.assert_close(model.loss(x, generator=generator())["simple"][1], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("timesteps", [None, 1000, 4])
def test_a_loss_aware_sampler_learns_in_training_only_whatever_the_number_of_levels(timesteps):
    """Four levels are fewer than its bins: it learns of the times as drawn, not of the levels."""
    model, x = wrong(times=LossAwareTimes(bins=20), timesteps=timesteps), torch.randn(200, 3, dtype=F64)
    model.eval().loss(x)
    assert not model.times.counts.any()
    model.train().loss(x)
    assert (model.times.counts == 10).all() and (model.times.probabilities != 1 / 20).any()
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


def test_ranks_share_the_times_in_training_only():
    shared = []

    class Times(TimeSampler):
        def forward(self, n, schedule, device=None, across_ranks=False, generator=None):
            shared.append(across_ranks)
            return torch.rand(n, dtype=F64), torch.ones(n, dtype=F64)

    model, x = wrong(times=Times()), torch.randn(4, 3)
    model.train().loss(x)
    model.eval().loss(x)
    assert shared == [True, False]


# The noised batch, and an objective of one's own


@pytest.mark.parametrize("timesteps", [None, 8])
def test_a_noised_batch_is_what_its_fields_say(timesteps):
    model, x = wrong(timesteps=timesteps, times=LossAwareTimes(bins=4)), torch.randn(6, 3, dtype=F64)
    batch = model.noised(x, generator=generator())
    alpha, sigma = (over(c, x) for c in model.denoiser.schedule.alpha_sigma(batch.t))
    torch.testing.assert_close(batch.x_t, alpha * x + sigma * batch.epsilon, rtol=0, atol=0)
    expected = batch.u if timesteps is None else (batch.u * 8).floor().add(1) / 8
    assert torch.equal(batch.x, x) and torch.equal(batch.t, expected) and torch.equal(batch.weight, torch.ones(6))
    torch.testing.assert_close(batch.estimate.mean, model.denoiser(batch.x_t, batch.t).mean, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [
    {}, {"weighting": losses.min_snr()}, {"timesteps": 8}, {"timesteps": 8, "variance": "learned_range"},
    {"schedule": EDMSchedule(), "prediction": "edm", "times": LogNormalTimes()},
])  # fmt: skip
def test_the_loss_is_the_objective_of_a_noised_batch(settings):
    model, x = wrong(**settings), torch.randn(6, 3)
    one, other = model.loss(x, generator=generator()), model.objective(model.noised(x, generator=generator()))
    assert list(one) == list(other) and torch.equal(one.per_example, other.per_example)


def test_an_objective_of_one_s_own_takes_the_noised_batch():
    """The loss, and a penalty on x̂ from the same evaluation of the network, whose gradient is in it."""
    scale = nn.Parameter(torch.ones(()))

    class Scaled(Smooth):
        def forward(self, x_t, t, cond=None):
            return scale * super().forward(x_t, t)

    network = Scaled()
    model, x = Diffusion(Denoiser(network, LogSNRLinearSchedule(), "v_prediction"), 3), torch.randn(6, 3)
    batch = model.noised(x, generator=generator())
    terms = model.objective(batch) + Terms(contrast=(0.1, batch.estimate.mean.square().sum(1)))
    assert network.calls == 1
    plain = model.loss(x, generator=generator())
    alone = 0.1 * batch.estimate.mean.square().sum(1).mean()
    torch.testing.assert_close(terms.total, plain.total + alone)
    gradients = [torch.autograd.grad(value, scale, retain_graph=True)[0] for value in (terms.total, plain.total, alone)]
    torch.testing.assert_close(gradients[0], gradients[1] + gradients[2])
    assert gradients[2].abs() > 1e-3


# The variance that is learned, beside the simple loss


class ExactWithVariance(nn.Module):
    """E[ε|x_t] of x ~ N(0, S²) times a scale, and v, the same for all, both learned."""

    def __init__(self, schedule, v):
        super().__init__()
        self.schedule = schedule
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.v = nn.Parameter(torch.full((T,), v, dtype=F64))

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (c.view(-1, 1) for c in self.schedule.alpha_sigma(t.expand(len(x_t))))
        epsilon = sigma * x_t / (alpha**2 * S**2 + sigma**2)
        v = self.v[(t.expand(len(x_t)) * T).round().long() - 1]
        return torch.cat([self.scale * epsilon, v.view(-1, 1).expand_as(x_t)], 1)


T = 8
SCHEDULES = pytest.mark.parametrize(
    "schedule",
    [BetaSchedule("squaredcos_cap_v2", T), LogSNRLinearSchedule(4.0, -4.0)],
    ids=["starts clean", "starts noisy"],
)


def with_variance(schedule, v=0.3):
    denoiser = Denoiser(ExactWithVariance(schedule, v), schedule, "epsilon", "learned_range")
    return Diffusion(denoiser, 3, timesteps=T)


def best_v(schedule, i):
    """v at which p(x_s|x_t) has the variance of q(x_s|x_t), which is Gaussian for Gaussian data."""
    s, t = (i - 1) / T, i / T
    alpha, sigma = schedule.alpha_sigma(t)
    left = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    c = schedule.posterior_coefficients(s, t)
    low, high = c.std.square().log(), c.large.square().log()
    return float(2 * ((c.std.square() + c.on_x.square() * left).log() - low) / (high - low) - 1)


@SCHEDULES
def test_the_variance_that_is_learned_is_that_of_the_exact_reverse_step(schedule):
    """At `best_v` the mean gradient of the term is zero at every level, and nowhere else; it is convex in log σ²."""
    diffusion = with_variance(schedule)
    network = diffusion.denoiser.backbone
    first = 1 + int(diffusion.starts_clean)
    for offset in (0.0, 0.5):
        with torch.no_grad():
            v = [best_v(schedule, i) + offset if i >= first else 0.0 for i in range(1, T + 1)]
            network.v.copy_(torch.tensor(v))
        draws = []
        for _ in range(60):
            network.v.grad = None
            diffusion.loss(S * torch.randn(2000, 3, dtype=F64))["variance"][1].mean().backward()
            draws.append(network.v.grad)
        mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(len(draws))
        if offset == 0:
            assert (mean.abs() <= 4 * error)[first - 1 :].all()
        else:
            assert (mean > 4 * error)[first - 1 :].all()
    assert (mean[: first - 1] == 0).all()


@SCHEDULES
def test_its_gradient_is_in_the_variance_alone_and_its_weight_is_t_thousandths(schedule):
    diffusion = with_variance(schedule)
    network, x = diffusion.denoiser.backbone, S * torch.randn(500, 3, dtype=F64)
    terms = diffusion.loss(x)
    assert set(terms) == {"simple", "variance"} and terms["variance"][0] == 0.001 * T
    of_scale, of_v = torch.autograd.grad(terms["variance"][1].mean(), [network.scale, network.v])
    assert of_scale == 0 and bool((of_v[int(diffusion.starts_clean) :] != 0).all())
    of_scale, of_v = torch.autograd.grad(diffusion.loss(x)["simple"][1].mean(), [network.scale, network.v])
    assert of_scale != 0 and bool((of_v == 0).all())


@SCHEDULES
def test_the_term_is_the_level_of_the_bound(schedule):
    """Its mean over random levels is the mean of `rates` over the same levels."""
    diffusion, x = with_variance(schedule), S * torch.randn(40_000, 3, dtype=F64)
    term = diffusion.loss(x)["variance"][1].detach()
    expected = torch.stack([diffusion.rates(x[:5000]).mean(1).sum() / T for _ in range(4)])
    error = math.hypot(term.std() / math.sqrt(len(term)), expected.std() / 2)
    assert abs(term.mean() - expected.mean()) <= 4 * error


# A self-conditioned backbone


class Spy(nn.Module):
    """A linear network of x_t and of an earlier estimate, that writes down what it is shown."""

    self_condition, num_classes = True, 2

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.calls = []

    def forward(self, x_t, t, cond=None, estimate=None):
        self.calls.append((x_t.detach(), estimate, torch.is_grad_enabled()))
        shown = torch.zeros_like(x_t) if estimate is None else estimate
        return self.first(x_t) + self.second(shown) + (0 if cond is None else cond[:, None])


def self_conditioned(prediction="sample", schedule=None, clip=(-1.0, 1.0), variance="small", **options):
    denoiser = Denoiser(Spy(), schedule or LogSNRLinearSchedule(5.0, -5.0), prediction, variance, clip)
    return Diffusion(denoiser, 3, **options)


def with_first_pass(model, x):
    """The terms of a loss that had a first pass, and what its two calls were shown."""
    for _ in range(100):
        model.denoiser.backbone.calls.clear()
        terms = model.loss(x)
        if len(model.denoiser.backbone.calls) == 2:
            return terms, model.denoiser.backbone.calls
    raise AssertionError("no loss of a hundred had a first pass")


@pytest.mark.parametrize("options", [{}, {"timesteps": 10}, {"weighting": losses.min_snr()}])
def test_half_of_the_losses_show_the_estimate_of_a_first_pass(options):
    """To four standard errors of 400 losses; the first pass has no gradient and no estimate, the second one both."""
    model, x, count = self_conditioned(**options), torch.randn(5, 3, dtype=F64), 0
    for _ in range(400):
        model.denoiser.backbone.calls.clear()
        model.loss(x)
        *first, (x_t, estimate, graph) = model.denoiser.backbone.calls
        assert graph and len(first) == (estimate is not None)
        for x_0, nothing, graph in first:
            assert nothing is None and not graph and torch.equal(x_0, x_t)
            assert not estimate.requires_grad
            torch.testing.assert_close(estimate, model.denoiser.backbone.first(x_t).add(
                model.denoiser.backbone.second.bias).clamp(-1, 1), rtol=1e-12, atol=1e-12)  # fmt: skip
        count += len(first)
    assert abs(count / 400 - 0.5) < 4 * 0.5 / math.sqrt(400)


def test_no_gradient_flows_through_the_first_pass():
    """∇ is that of ‖x - net(x_t, c)‖² with c held fixed; through c it would be another one."""
    model, x = self_conditioned(clip=None), torch.randn(5, 3, dtype=F64)
    terms, (_, (x_t, estimate, _)) = with_first_pass(model, x)
    net = model.denoiser.backbone
    measured = torch.autograd.grad(terms.total, list(net.parameters()))

    def gradient(shown):
        return torch.autograd.grad((x - net(x_t, 0.0, None, shown)).square().sum(1).mean(), list(net.parameters()))

    through = gradient(net(x_t, 0.0))
    torch.testing.assert_close(measured, gradient(estimate), rtol=1e-10, atol=1e-10)
    assert (measured[0] - through[0]).abs().max() > 1e-3


def test_every_parameter_is_in_the_graph_with_and_without_a_first_pass():
    """As DistributedDataParallel needs, whose ranks throw coins of their own."""
    model, x, calls = self_conditioned(), torch.randn(5, 3, dtype=F64), set()
    for _ in range(50):
        model.zero_grad(set_to_none=True)
        model.denoiser.backbone.calls.clear()
        model.loss(x).total.backward()
        assert all(p.grad is not None for p in model.denoiser.backbone.parameters())
        calls.add(len(model.denoiser.backbone.calls))
    assert calls == {1, 2}


@pytest.mark.parametrize("options", [
    {}, {"prediction": "epsilon"}, {"timesteps": 4}, {"timesteps": 4, "variance": "large"},
    {"timesteps": 4, "schedule": BetaSchedule()},
])  # fmt: skip
def test_bounds_show_no_estimate(options):
    model, x = self_conditioned(**options), torch.randn(5, 3, dtype=F64)
    for _ in range(10):
        model.nll(x)
    model.bound(x, strata=4)
    calls = model.denoiser.backbone.calls
    assert len(calls) >= 14 and all(estimate is None for _, estimate, _ in calls)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("method", ["ancestral", "ddim"])
def test_samples_are_drawn_with_the_estimate_of_the_step_before(method, guidance_scale):
    """And so is the mean at the end."""
    model = self_conditioned().float()
    model.sample(4, torch.tensor([0, 1, 0, 1]), sampler=Sampler(method, steps=4, guidance_scale=guidance_scale))
    (_, first, _), *rest = model.denoiser.backbone.calls
    assert first is None
    assert [shown.shape for _, shown, _ in rest] == 3 * [(4 if guidance_scale == 1 else 8, 3)]


def test_a_backbone_without_it_costs_no_coin():
    """A loss draws one u and ε."""
    model = self_conditioned()
    model.denoiser.backbone.self_condition = model.denoiser.self_condition = False
    drawn, by_hand = generator(), generator()
    model.loss(torch.randn(5, 3, dtype=F64), generator=drawn)
    torch.rand((), dtype=F64, generator=by_hand), torch.randn(5, 3, dtype=F64, generator=by_hand)
    assert torch.equal(drawn.get_state(), by_hand.get_state())


# Samples


@pytest.mark.parametrize("schedule", [LogSNRLinearSchedule(), BetaSchedule(), CosineSchedule()])
def test_samples_have_the_shape_and_repeat_with_a_generator(schedule):
    denoiser = Denoiser(Smooth(), schedule, "v_prediction")
    model = Diffusion(denoiser, (3, 4, 4), sampler=Sampler(steps=5))
    one, again = (model.sample(2, generator=generator()) for _ in range(2))
    assert one.shape == (2, 3, 4, 4) and one.isfinite().all() and torch.equal(one, again)
    assert not torch.equal(one, model.sample(2)) and not one.requires_grad


@dataclass(frozen=True)
class Half(Method):
    """One step to 0.5, whatever the grid, which it keeps together with what it starts from."""

    kept: list

    def plan(self, schedule, grid):
        self.kept.append(grid.t)
        return [None]

    def step(self, denoise, x, coefficients, memory, noise):
        self.kept.append(x)
        return torch.full_like(x, 0.5), None


def test_a_sample_is_the_sampler_s_end_and_where_noise_is_left_the_denoiser_s_mean_of_it():
    """Of a schedule with noise at t = 0 the last of the steps is x̂ of the network, within its clip."""
    end = torch.full((2, 3), 0.5)
    for clip in (None, (-0.1, 0.1)):
        noisy, clean = wrong(clip=clip), wrong(BetaSchedule(), clip=clip)
        method = Half([])
        x = noisy.sample(2, sampler=Sampler(method, steps=4))
        assert torch.equal(x, noisy.denoiser.clipped(end, 0.0).mean) and not torch.equal(x, end)
        assert clip is None or x.abs().max() <= 0.1
        assert torch.equal(clean.sample(2, sampler=Sampler(method, steps=4)), end)
        assert torch.equal(method.kept[0], time_grid(3)) and torch.equal(method.kept[2], time_grid(4))


def test_the_last_mean_of_the_exact_denoiser_takes_the_noise_of_t_0_away():
    """E[x|x_0] has the variance s⁴ α²/(α² s² + σ²), less than x's own by what is left to know; x_0/α has more."""
    schedule = LogSNRLinearSchedule(1.0, -9.0)
    alpha, sigma = (float(c) for c in schedule.alpha_sigma(0.0))
    x = exact(schedule, shape=2, sampler=Sampler("heun", steps=200)).sample(20_000)
    expected = S**4 * alpha**2 / (alpha**2 * S**2 + sigma**2)
    assert x.var().item() == pytest.approx(expected, rel=0.02 + 4 * math.sqrt(2 / 40_000)) and expected < 0.8 * S**2


class Times(nn.Module):
    """A network that keeps the times it is asked of."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, t, cond=None):
        self.asked.append(float(t))
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("steps, timesteps, expected", [(None, None, 250), (None, 30, 30), (7, 30, 7), (1, 30, 1)])
def test_the_steps_of_sampling(steps, timesteps, expected):
    """In continuous time the last evaluation is at t = 0; a chain's network is not trained on that time."""
    network = Times()
    denoiser = Denoiser(network, LogSNRLinearSchedule(), "v_prediction")
    model = Diffusion(denoiser, 2, timesteps=timesteps, sampler=Sampler(steps=steps))
    model.sample(2)
    assert len(network.asked) == expected and network.asked[0] == 1
    last = 0 if timesteps is None else 1 / model.sample_steps
    assert network.asked[-1] == pytest.approx(last, abs=1e-12)


class Learned(nn.Module):
    """A reconstruction of one's own: x_0 and a number."""

    uses_estimate = False

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(3.0))

    def forward(self, x_t, level, estimate=None):
        return Normal(x_t + self.number, 1.0)


def test_samples_end_at_the_mean_of_a_reconstruction_of_one_s_own():
    method, reconstruction = Half([]), Learned()
    x = wrong(reconstruction=reconstruction, sampler=Sampler(method, steps=4)).sample(2)
    assert torch.equal(x, torch.full((2, 3), 3.5))


@pytest.mark.parametrize("name", METHODS)
def test_a_sampler_may_be_named(name):
    """The model's own by its name, with T steps; or in `sample`, with the other options of the model's own."""
    expected = wrong(BetaSchedule(), sampler=Sampler(METHODS[name](), steps=3)).sample(4, generator=generator())
    named = wrong(BetaSchedule(), sampler=name, timesteps=3).sample(4, generator=generator())
    assert torch.equal(named, expected)
    own = wrong(BetaSchedule(), sampler=Sampler(steps=3))
    assert torch.equal(own.sample(4, generator=generator(), sampler=name), expected)
    assert torch.equal(own.sample(4, generator=generator(), sampler=METHODS[name]()), expected)


@pytest.mark.parametrize("method", ["ancestral", "ddim"])
def test_samples_of_the_exact_denoiser_have_the_data_s_variance(method):
    """200 steps leave 2% of bias at most; one standard error of a variance of 40 000 draws is 0.7%."""
    x = exact(prediction="v_prediction", shape=2, sampler=Sampler(method, steps=200)).sample(20_000)
    assert x.mean().abs() < 4 * S / math.sqrt(40_000)
    assert x.var().item() == pytest.approx(S**2, rel=0.02 + 4 * math.sqrt(2 / 40_000))


SAMPLED = {
    "exploding": VarianceExplodingSchedule(0.01, 50.0), "EDM": EDMSchedule(), "flow": FlowSchedule(),
    "flow, shifted": ShiftedSchedule(FlowSchedule(), 2.0), "cosine": CosineSchedule(9.0, -9.0),
    "table to pure noise": BetaSchedule(rescale_betas_zero_snr=True),
}  # fmt: skip
ON_EACH = pytest.mark.parametrize("schedule", list(SAMPLED.values()), ids=list(SAMPLED))


@ON_EACH
def test_the_flow_carries_noise_to_the_gaussian_and_errs_half_as_much_with_half_the_step(schedule):
    """ddim is affine here, so points with the moments of the noise show the moments of the samples, exactly."""
    d = len(M)
    points = d**0.5 * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])
    denoiser = Denoiser(GaussianMean(schedule, M, COVARIANCE), schedule, "sample")

    def error(steps):
        alpha, _ = schedule.alpha_sigma(1.0)
        x = Sampler(DDIM())(denoiser, alpha * M + schedule.terminal_std * points, times=time_grid(steps))
        centred = x - x.mean(0)
        return ((x.mean(0) - M).abs().max() + (centred.T @ centred / (2 * d) - COVARIANCE).abs().max()).item()

    coarse, fine = error(200), error(400)
    assert fine < 0.02 and fine < 0.7 * coarse + 2e-3  # what the start, not the steps, costs is below 2e-3


@ON_EACH
@pytest.mark.parametrize("method", [Ancestral(), DDIM()], ids=["ancestral", "ddim"])
def test_samples_have_the_gaussian_s_moments(schedule, method):
    """10 000 of them: 4 standard errors, and 0.02 for 250 steps."""
    denoiser = Denoiser(GaussianMean(schedule, M, COVARIANCE), schedule, "sample")
    x = Diffusion(denoiser, len(M), sampler=Sampler(method)).sample(10_000).double()
    assert ((x.mean(0) - M).abs() < 4 * (COVARIANCE.diag() / 10_000).sqrt() + 0.02).all()
    spread = (COVARIANCE.square() + COVARIANCE.diag()[:, None] * COVARIANCE.diag()).div(10_000).sqrt()
    assert ((torch.cov(x.T) - COVARIANCE).abs() < 4 * spread + 0.02).all()


@pytest.mark.parametrize("schedule, expected", [
    (EDMSchedule(), 80.0), (VarianceExplodingSchedule(0.1, 5.0), 5.0), (FlowSchedule(), 1.0),
])  # fmt: skip
def test_sampling_starts_from_the_last_noise(schedule, expected):
    method = Half([])
    wrong(schedule, "sample").sample(5000, sampler=Sampler(method))
    assert method.kept[1].std().item() == pytest.approx(expected, rel=0.05)


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


def labelled(**sampler):
    schedule = CosineSchedule(9.0, -9.0)
    return Diffusion(Denoiser(Labelled(schedule), schedule, "sample"), 1, sampler=Sampler(**sampler))


@pytest.mark.parametrize("scale, mean", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (3.0, 3.0)])
def test_row_32_guided_samples_are_of_the_extrapolated_gaussian(scale, mean):
    cond = torch.arange(2).repeat(2000)
    sampler = Sampler("ddim", steps=100, guidance_scale=scale)
    x = labelled().sample(4000, cond, sampler=sampler)[:, 0]
    for c, sign in ((0, -1), (1, 1)):
        assert x[cond == c].mean().item() == pytest.approx(sign * mean, abs=4 * S / math.sqrt(2000) + 0.03)
        assert x[cond == c].std().item() == pytest.approx(S, rel=4 / math.sqrt(4000) + 0.03)


def test_the_model_s_own_guidance_changes_nothing_without_a_condition():
    one, other = (labelled(steps=5, guidance_scale=scale).sample(4, generator=generator()) for scale in (1.0, 4.0))
    assert torch.equal(one, other)


# Refusals


@pytest.mark.parametrize("ask, message", [
    (lambda: wrong(BetaSchedule(), weighting="likelihood"),
     "BetaSchedule is noiseless at t = 0: in continuous time"),
    (lambda: wrong(CosineSchedule(), reconstruction=nn.Identity()),
     "CosineSchedule is noiseless at t = 0: in continuous time"),
    (lambda: wrong(weighting="elbo"), "weighting must be one of simple, likelihood.*; got 'elbo'"),
    (lambda: self_conditioned(weighting="likelihood"),
     "weighting must not be 'likelihood' for a backbone with self_condition=True"),
    (lambda: wrong(weighting="likelihood").objective(wrong().noised(torch.zeros(2, 3))),
     "objective is of weighting simple or a function of λ; that of 'likelihood' is nll"),
    (lambda: wrong(sampler="ddpm"), "method must be one of ancestral, ddim, .*, or a Method; got 'ddpm'"),
    (lambda: wrong().sample(2, sampler="ddpm"), "method must be one of ancestral, ddim, .*; got 'ddpm'"),
    (lambda: wrong(timesteps=8, sampler=Sampler(steps=9)), "steps must be at most timesteps, 8; got 9"),
    (lambda: wrong(timesteps=8).sample(2, sampler=Sampler(steps=9)), "steps must be at most timesteps, 8; got 9"),
    (lambda: labelled(steps=5).sample(4, sampler=Sampler(guidance_scale=4.0)),
     "guidance_scale needs cond: there is nothing to guide by; got 4.0 without"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_as_many_steps_as_levels_are_taken():
    assert wrong(timesteps=8).sample(2, sampler=Sampler(steps=8)).shape == (2, 3)
