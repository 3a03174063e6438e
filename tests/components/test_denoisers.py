import re

import pytest
import torch
from torch import nn

from components.backbones import UNet
from components.denoisers import Denoiser, Estimate
from components.distributions import Delta, Normal
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule, over

F64 = torch.float64
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
VARIANCES = ("small", "large")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Function(nn.Module):
    """A backbone that is a function (x_t, t) → output, and remembers what it was given."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x_t, t, cond=None):
        self.t, self.cond = t, cond
        return self.function(x_t, t)


def predicting(prediction, best_x, schedule):
    """What a network of this parameterization must answer for its x̂ to be best_x(x_t, α, σ)."""

    def output(x_t, t):
        alpha, sigma = (over(c, x_t) for c in schedule.alpha_sigma(t))
        x = best_x(x_t, alpha, sigma)
        epsilon = (x_t - alpha * x) / sigma
        return {"sample": x, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x}[prediction]

    return Function(output)


M = torch.tensor([0.5, -1.0, 0.25], dtype=F64)
A = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.1]], dtype=F64)
SIGMA = A @ A.T
I3 = torch.eye(3, dtype=F64)


def gaussian(x_t, alpha, sigma):
    """The best x̂ for x ~ N(M, SIGMA): m + α Σ (α² Σ + σ² I)⁻¹ (x_t - α m)."""
    gain = alpha[..., None] * SIGMA @ torch.linalg.inv(alpha[..., None] ** 2 * SIGMA + sigma[..., None] ** 2 * I3)
    return M + (gain @ (x_t - alpha * M)[..., None])[..., 0]


def denoiser(prediction="sample", best_x=gaussian, schedule=None, **settings):
    schedule = schedule or LogSNRLinearSchedule(8.0, -6.0)
    return Denoiser(predicting(prediction, best_x, schedule), schedule, prediction, **settings)


# Estimates


@PREDICTIONS
def test_x_t_is_alpha_x_plus_sigma_epsilon(prediction):
    x_t, output = torch.randn(2, 5, 4, dtype=F64)
    alpha, sigma = CosineSchedule().alpha_sigma(torch.rand(5, dtype=F64))
    found = Estimate(x_t, alpha, sigma, prediction, output)
    torch.testing.assert_close(
        over(alpha, x_t) * found.mean + over(sigma, x_t) * found.epsilon, x_t, rtol=1e-10, atol=1e-10
    )


def test_errors_in_epsilon_and_v_are_errors_in_x_reweighted():
    x, epsilon, output = torch.randn(3, 5, 4, dtype=F64)
    schedule = LogSNRLinearSchedule()
    t = torch.rand(5, dtype=F64)
    alpha, sigma = schedule.alpha_sigma(t)
    a, s = over(alpha, x), over(sigma, x)
    found = Estimate(a * x + s * epsilon, alpha, sigma, "sample", output)
    error, snr = (x - found.mean).square().sum(1), schedule.log_snr(t).exp()
    torch.testing.assert_close((epsilon - found.epsilon).square().sum(1), snr * error, rtol=1e-9, atol=0)
    torch.testing.assert_close((a * epsilon - s * x - found.v).square().sum(1), (1 + snr) * error, rtol=1e-9, atol=0)


def test_an_estimate_is_a_point():
    found = Estimate(torch.zeros(2, 3), torch.tensor(0.6), torch.tensor(0.8), "sample", torch.ones(2, 3))
    assert isinstance(found, Delta) and torch.equal(found.rsample(), torch.ones(2, 3))


def test_a_clamped_estimate_keeps_x_t():
    x_t, output = torch.randn(2, 5, 4, dtype=F64) * 3
    alpha, sigma = CosineSchedule().alpha_sigma(0.4)
    found = Estimate(x_t, alpha, sigma, "v_prediction", output).clamp(-1, 1)
    assert found.mean.abs().max() == 1
    torch.testing.assert_close(alpha * found.mean + sigma * found.epsilon, x_t, rtol=1e-12, atol=1e-12)


def test_half_precision_outputs_are_widened():
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    found = Estimate(half, torch.tensor(0.6, dtype=F64), torch.tensor(0.8, dtype=F64), "epsilon", half)
    assert all(value.dtype == torch.float32 for value in (found.mean, found.epsilon, found.v, found.score))


# The reverse step


@PREDICTIONS
def test_the_small_variance_is_the_posterior_s_and_the_large_the_transition_s(prediction):
    x_t = torch.randn(4, 3, dtype=F64)
    s, t = torch.rand(2, 4, dtype=F64).sort(0).values
    small, large = (denoiser(prediction, variance=variance).reverse(x_t, s, t) for variance in VARIANCES)
    schedule = denoiser().schedule
    torch.testing.assert_close(small.std[:, 0], schedule.posterior_coefficients(s, t)[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(large.std[:, 0].square(), schedule.step(s, t)[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(small.mean, large.mean, rtol=0, atol=0)
    assert (small.std < large.std).all()


def test_numbers_of_ddpm_s_two_variances():
    x_t = torch.randn(4, 3, dtype=F64)
    schedule = BetaSchedule()
    variances = [
        denoiser("epsilon", schedule=schedule, variance=variance).reverse(x_t, 0.001, 0.002).std.square().item()
        for variance in VARIANCES
    ]
    assert variances[0] == pytest.approx(5.453188e-5, rel=1e-6)
    assert variances[1] == pytest.approx(schedule.betas[1].item(), rel=1e-10)


def test_the_last_reverse_step_is_the_estimate():
    x_t = torch.randn(4, 3, dtype=F64)
    small = denoiser("epsilon", schedule=BetaSchedule())
    assert isinstance(small.reverse(x_t, 0.0, 0.001), Delta)
    torch.testing.assert_close(small.reverse(x_t, 0.0, 0.001).mean, small(x_t, 0.001).mean, rtol=0, atol=0)
    large = denoiser("epsilon", schedule=BetaSchedule(), variance="large").reverse(x_t, 0.0, 0.001)
    assert isinstance(large, Normal) and large.std.item() == pytest.approx(0.01, rel=1e-9)


def test_clip_bounds_x_in_reverse_and_not_in_forward():
    x_t = 5 * torch.randn(20, 3, dtype=F64)
    free, clipped = denoiser("v_prediction"), denoiser("v_prediction", clip=(-1.0, 1.0))
    assert torch.equal(free(x_t, 0.5).mean, clipped(x_t, 0.5).mean) and free(x_t, 0.5).mean.abs().max() > 1
    assert clipped.clipped(x_t, 0.5).mean.abs().max() <= 1
    expected = clipped.schedule.posterior(x_t, free(x_t, 0.5).mean.clamp(-1, 1), 0.4, 0.5)
    torch.testing.assert_close(clipped.reverse(x_t, 0.4, 0.5).mean, expected.mean, rtol=1e-12, atol=1e-12)


def test_the_backbone_is_given_time_and_condition_as_they_are():
    model = denoiser()
    for t in (0.1, torch.tensor(0.1, dtype=F64), torch.full((2,), 0.1, dtype=F64)):
        cond = torch.tensor([3, 4])
        model(torch.zeros(2, 3, dtype=F64), t, cond)
        seen = model.backbone.t
        assert model.backbone.cond is cond and seen.shape == torch.as_tensor(t).shape
        assert (seen == 0.1).all()  # float32 would be 1.5e-9 off


# Refusals


def test_epsilon_with_zero_terminal_snr_is_refused():
    with pytest.raises(
        ValueError, match="prediction 'epsilon' does not go with CosineSchedule ending at α = 0.*use v_pred"
    ):
        denoiser("epsilon", schedule=CosineSchedule())
    for prediction in ("sample", "v_prediction"):
        model = denoiser(prediction, schedule=CosineSchedule())
        assert model.reverse(torch.randn(2, 3, dtype=F64), 0.9, 1.0).mean.isfinite().all()
    denoiser("epsilon", schedule=CosineSchedule(13.3, -8.0))


@pytest.mark.parametrize("settings, message", [
    ({"prediction": "x"}, "prediction must be one of epsilon, sample, v_prediction.*; got 'x'"),
    ({"variance": "fixed_small"}, "variance must be one of small, large.*; got 'fixed_small'"),
])  # fmt: skip
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(nn.Identity(), BetaSchedule(), **settings)


@pytest.mark.parametrize("shape", [(8, 1), (3,), (1,)])
def test_times_of_another_shape_are_refused(shape):
    message = f"t must be () or (B,) = (8,) in [0, 1]; got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        denoiser()(torch.zeros(8, 3, dtype=F64), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 8, 1), (1, 3, 8, 8), (3, 8, 8), (4, 6, 8, 8), ()])
def test_an_output_of_another_shape_is_refused_and_not_broadcast(shape):
    model = denoiser("v_prediction")
    model.backbone = Function(lambda x_t, t: torch.zeros(shape, dtype=F64))
    message = f"backbone Function must return the shape of x_t, (4, 3, 8, 8); got shape {shape}"
    for call in (model, model.clipped, lambda x_t, t: model.reverse(x_t, 0.4, t)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(torch.zeros(4, 3, 8, 8, dtype=F64), 0.5)


def test_a_network_built_for_fewer_channels_is_refused():
    model = Denoiser(UNet((3, 8, 8), 16, out_channels=1), CosineSchedule(), "v_prediction")
    message = "backbone UNet must return the shape of x_t, (2, 3, 8, 8); got shape (2, 1, 8, 8)"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.zeros(2, 3, 8, 8), 0.5)
    learned = Denoiser(Function(lambda x_t, t: x_t.new_zeros(2, 6, 8, 1)), CosineSchedule(), "sample", "learned_range")
    with pytest.raises(ValueError, match=r"must return the shape of x_t, \(2, 3, 8, 8\); got shape \(2, 3, 8, 1\)"):
        learned(torch.zeros(2, 3, 8, 8), 0.5)


@pytest.mark.parametrize("variance", [*VARIANCES, "learned_range"])
def test_an_output_that_is_no_tensor_is_refused(variance):
    """Such as the UNet2DOutput of diffusers."""
    model = Denoiser(Function(lambda x_t, t: {"sample": x_t}), CosineSchedule(), "sample", variance)
    with pytest.raises(TypeError, match="backbone Function must return a tensor like x_t; got dict"):
        model(torch.zeros(2, 3), 0.5)


def test_a_denoiser_compiles_in_one_graph_and_is_differentiated_by_torch_func():
    model, x_t = denoiser("v_prediction"), torch.randn(4, 3, dtype=F64)
    t = torch.linspace(0.1, 0.9, 4, dtype=F64)
    compiled = torch.compile(lambda x_t, t: model(x_t, t).mean, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_t, t), model(x_t, t).mean)
    each = torch.func.vmap(torch.func.jacrev(lambda x, t: model(x[None], t).mean[0]))(x_t, t)
    assert each.shape == (4, 3, 3) and each.isfinite().all()
