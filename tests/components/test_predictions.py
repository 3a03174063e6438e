"""A flow's velocity, EDM's F, and a learned variance; on schedules whose variance explodes, too."""

import math

import pytest
import torch
from answers import said, seen
from torch import nn

from components.denoisers import Denoiser, Estimate
from components.distributions import Delta, Normal, kl
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    VarianceExplodingSchedule,
    over,
)

F64 = torch.float64
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow", "edm")
EACH = pytest.mark.parametrize("prediction", PREDICTIONS)
SCHEDULES = {
    "log-SNR linear": LogSNRLinearSchedule(8.0, -6.0),
    "cosine": CosineSchedule(9.0, -9.0),
    "exploding": VarianceExplodingSchedule(),
    "EDM": EDMSchedule(),
    "flow": FlowSchedule(),
}
ON_EACH = pytest.mark.parametrize("schedule", list(SCHEDULES.values()), ids=list(SCHEDULES))
# A flow ends in pure noise, where ε and F say nothing of x: those are refused.
D = 0.7  # σ_d


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Best(nn.Module):
    """A backbone that means best_x(x_t, α, σ), and remembers what it was shown."""

    def __init__(self, prediction, best_x, schedule, extra=None):
        super().__init__()
        self.prediction, self.best_x, self.schedule, self.extra = prediction, best_x, schedule, extra

    def forward(self, shown, t, cond=None):
        self.shown = shown
        alpha, sigma = (over(c, shown) for c in self.schedule.alpha_sigma(t))
        x_t = seen(self.prediction, shown, alpha, sigma, self.schedule.exploding, D)
        output = said(self.prediction, self.best_x(x_t, alpha, sigma), x_t, alpha, sigma, D)
        return output if self.extra is None else torch.cat([output, self.extra.expand_as(output)], dim=1)


M = torch.tensor([0.5, -1.0, 0.25], dtype=F64)
A = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.1]], dtype=F64)
SIGMA = A @ A.T
I3 = torch.eye(3, dtype=F64)


def covariance(alpha, sigma):
    return alpha[..., None] ** 2 * SIGMA + sigma[..., None] ** 2 * I3


def gaussian(x_t, alpha, sigma):
    """The best x̂ for x ~ N(M, SIGMA)."""
    gain = alpha[..., None] * SIGMA @ torch.linalg.inv(covariance(alpha, sigma))
    return M + (gain @ (x_t - alpha * M)[..., None])[..., 0]


def build(prediction="sample", best_x=gaussian, schedule=None, extra=None, **settings):
    schedule = schedule or LogSNRLinearSchedule(8.0, -6.0)
    return Denoiser(Best(prediction, best_x, schedule, extra), schedule, prediction, sigma_data=D, **settings)


def times(n):
    return torch.rand(n, dtype=F64) * 0.9 + 0.05


# Estimates


@EACH
@ON_EACH
def test_the_target_is_what_the_output_should_have_been(prediction, schedule):
    x, epsilon = torch.randn(2, 5, 3, dtype=F64)
    alpha, sigma = schedule.alpha_sigma(times(5))
    a, s = over(alpha, x), over(sigma, x)
    x_t = a * x + s * epsilon
    target = Estimate(x_t, alpha, sigma, prediction, torch.zeros_like(x), D).target(x, epsilon)
    found = Estimate(x_t, alpha, sigma, prediction, target, D)
    torch.testing.assert_close(found.mean, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target, said(prediction, x, x_t, a, s, D), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction, weight", [
    ("epsilon", lambda a, s: (a / s) ** 2), ("sample", lambda a, s: 1 + 0 * a),
    ("v_prediction", lambda a, s: (a**2 + s**2) ** 2 / s**2), ("flow", lambda a, s: ((a + s) / s) ** 2),
    ("edm", lambda a, s: ((s / a) ** 2 + D**2) / (s / a * D) ** 2),
])  # fmt: skip
@ON_EACH
def test_errors_in_what_is_predicted_are_errors_in_x_reweighted(prediction, weight, schedule):
    x, epsilon, output = torch.randn(3, 5, 4, dtype=F64)
    alpha, sigma = schedule.alpha_sigma(times(5))
    found = Estimate(over(alpha, x) * x + over(sigma, x) * epsilon, alpha, sigma, prediction, output, D)
    error = (found.target(x, epsilon) - output).square().sum(1)
    in_x = (x - found.mean).square().sum(1)
    torch.testing.assert_close(error, weight(alpha, sigma) * in_x, rtol=1e-8, atol=1e-12)


def test_a_clamped_estimate_keeps_its_learned_variance():
    x_t, output = torch.randn(2, 5, 4, dtype=F64) * 3
    alpha, sigma = CosineSchedule().alpha_sigma(0.4)
    found = Estimate(x_t, alpha, sigma, "flow", output, D, torch.ones_like(output)).clamp(-1, 1)
    assert found.mean.abs().max() == 1 and torch.equal(found.interpolation, torch.ones_like(output))
    torch.testing.assert_close(alpha * found.mean + sigma * found.epsilon, x_t, rtol=1e-12, atol=1e-12)


# EDM's numbers


@pytest.mark.parametrize("schedule", [EDMSchedule(), LogSNRLinearSchedule()])
def test_on_data_of_std_sigma_data_edm_s_best_network_is_zero_and_its_loss_is_one(schedule):
    """D* = c_skip x, and ‖target - 0‖² has mean 1 at every σ: over four points with the moments of x and of ε."""
    x = D * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    epsilon = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    zero = Denoiser(Function(lambda x_t, t: 0 * x_t), schedule, "edm", sigma_data=D)
    for t in (0.0, 0.1, 0.5, 0.9, 1.0):
        alpha, sigma = schedule.alpha_sigma(t)
        found = zero(alpha * x + sigma * epsilon, t)
        best = alpha * D**2 / (alpha**2 * D**2 + sigma**2) * (alpha * x + sigma * epsilon)
        torch.testing.assert_close(found.mean, best, rtol=1e-10, atol=1e-12)
        assert found.target(x, epsilon).square().mean().item() == pytest.approx(1, rel=1e-9)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x_t, t, cond=None):
        self.shown = x_t
        return self.function(x_t, t)


@ON_EACH
def test_a_backbone_sees_unit_variance(schedule):
    """EDM's of data of std σ_d, the others' where variance explodes of data of std 1; x_t itself where it does not."""
    t, x_t = times(4), torch.randn(4, 3, dtype=F64)
    alpha, sigma = (over(c, x_t) for c in schedule.alpha_sigma(t))
    if not isinstance(schedule, FlowSchedule):
        model = build("edm", schedule=schedule)
        model(x_t, t)
        torch.testing.assert_close(model.backbone.shown * ((alpha * D) ** 2 + sigma**2).sqrt(), x_t)
    model = build("sample", schedule=schedule)
    model(x_t, t)
    scale = (alpha**2 + sigma**2).sqrt() if schedule.exploding else torch.ones_like(alpha)
    torch.testing.assert_close(model.backbone.shown * scale, x_t, rtol=1e-12, atol=0)


def test_the_scale_of_the_input_follows_the_family_not_the_last_sigma():
    model = build("sample", schedule=VarianceExplodingSchedule(0.01, 1.0))
    model(torch.ones(1, 3, dtype=F64), 1.0)
    torch.testing.assert_close(model.backbone.shown, torch.full((1, 3), 0.5**0.5, dtype=F64))


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    assert module.DDPMScheduler  # it imports when asked: seconds
    return module


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_edm_s_factors_are_those_of_diffusers(diffusers, sigma):
    theirs = diffusers.EDMEulerScheduler(sigma_data=D)
    schedule = EDMSchedule()
    t = schedule.time(-2 * math.log(sigma))
    x_t = sigma * torch.randn(4, 3, dtype=F64)
    model = Denoiser(Function(lambda x_t, t: x_t.cos()), schedule, "edm", sigma_data=D)
    found = model(x_t, t)
    shown = theirs.precondition_inputs(x_t, torch.tensor(sigma, dtype=F64))
    torch.testing.assert_close(model.backbone.shown, shown, rtol=1e-9, atol=1e-12)
    expected = theirs.precondition_outputs(x_t, found.output, torch.tensor(sigma, dtype=F64))
    torch.testing.assert_close(found.mean, expected, rtol=1e-9, atol=1e-12)


# The reverse step


@EACH
@pytest.mark.parametrize("v, end", [(-1.0, "small"), (1.0, "large")])
def test_the_ends_of_a_learned_variance_are_the_small_and_the_large(prediction, v, end):
    x_t = torch.randn(4, 3, dtype=F64)
    s, t = (torch.rand(2, 4, dtype=F64) * 0.9 + 0.05).sort(0).values
    learned = build(prediction, extra=torch.tensor(v, dtype=F64), variance="learned_range").reverse(x_t, s, t)
    fixed = build(prediction, variance=end).reverse(x_t, s, t)
    torch.testing.assert_close(learned.std, fixed.std.expand_as(learned.std), rtol=1e-12, atol=0)
    torch.testing.assert_close(learned.mean, fixed.mean, rtol=0, atol=0)


def test_a_learned_variance_lies_between_on_a_logarithmic_scale():
    x_t = torch.randn(4, 2, 3, 3, dtype=F64)
    v = torch.rand(4, 2, 3, 3, dtype=F64) * 2 - 1
    network = Function(lambda x_t, t: torch.cat([x_t, v], dim=1))
    learned = Denoiser(network, BetaSchedule(), "epsilon", "learned_range").reverse(x_t, 0.4, 0.5)
    small, large = (
        Denoiser(Function(lambda x_t, t: x_t), BetaSchedule(), "epsilon", variance).reverse(x_t, 0.4, 0.5).std
        for variance in ("small", "large")
    )
    assert (small < learned.std).all() and (learned.std < large).all()
    expected = large ** ((v + 1) / 2) * small ** ((1 - v) / 2)
    torch.testing.assert_close(learned.std, expected, rtol=1e-10, atol=0)


def test_a_learned_variance_is_that_of_diffusers(diffusers):
    theirs = diffusers.DDPMScheduler(variance_type="learned_range")
    theirs.alphas_cumprod = BetaSchedule().alphas_cumprod
    v = torch.rand(4, 3, dtype=F64) * 2 - 1
    for k in (1, 10, 500, 999):
        model = Denoiser(Function(lambda x_t, t: torch.cat([x_t, v], dim=1)), BetaSchedule(), variance="learned_range")
        std = model.reverse(torch.randn(4, 3, dtype=F64), k / 1000, (k + 1) / 1000).std
        expected = theirs._get_variance(k, predicted_variance=v)
        torch.testing.assert_close(2 * std.log(), expected, rtol=1e-5, atol=0)


def test_a_learned_variance_has_a_gradient_and_is_zero_at_the_end():
    v = torch.zeros(4, 3, requires_grad=True)
    model = Denoiser(Function(lambda x_t, t: torch.cat([x_t, v], dim=1)), BetaSchedule(), variance="learned_range")
    q = Normal(torch.zeros(4, 3), torch.tensor(0.1))
    kl(q, model.reverse(torch.randn(4, 3), 0.4, 0.5)).sum().backward()
    assert v.grad.abs().min() > 0
    assert isinstance(model.reverse(torch.randn(4, 3), 0.0, 0.001), Delta)


# Refusals


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_learned_variance_needs_twice_the_channels(channels):
    network = Function(lambda x_t, t: x_t.new_zeros(len(x_t), channels, 4, 4))
    model = Denoiser(network, BetaSchedule(), variance="learned_range")
    message = f"variance 'learned_range' needs a backbone with 2 output channels for 1 of x; got {channels}"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 1, 4, 4), 0.5)


@pytest.mark.parametrize("prediction", ["epsilon", "edm"])
@pytest.mark.parametrize("schedule", [FlowSchedule(), BetaSchedule(rescale_betas_zero_snr=True), CosineSchedule()])
def test_what_says_nothing_of_x_at_pure_noise_is_refused(prediction, schedule):
    message = f"prediction '{prediction}' does not go with {type(schedule).__name__} ending at α = 0"
    with pytest.raises(ValueError, match=message):
        Denoiser(nn.Identity(), schedule, prediction)
    for other in ("sample", "v_prediction", "flow"):
        estimate = Denoiser(Function(lambda x_t, t: x_t.cos()), schedule, other)(torch.randn(2, 3, dtype=F64), 1.0)
        assert estimate.mean.isfinite().all() and estimate.epsilon.isfinite().all()


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_a_sigma_data_that_cannot_be_is_refused(sigma_data):
    with pytest.raises(ValueError, match=f"sigma_data must be above 0; got {sigma_data}"):
        Denoiser(nn.Identity(), EDMSchedule(), "edm", sigma_data=sigma_data)
