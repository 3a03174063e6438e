"""Predictions, estimates, and denoisers made of them."""

import math
import re
import warnings

import pytest
import torch
from answers import (
    COVARIANCE,
    F64,
    NAMES,
    ON_EACH,
    Constant,
    Function,
    M,
    Meaning,
    Mild,
    ends_in_noise,
    network_output,
    prediction_for,
    schedules,
)
from torch import nn

from components.backbones import MLP, UNet
from components.denoisers import PREDICTIONS, Denoiser, Estimate, GaussianMean, Prediction, edm_prediction
from components.distributions import Delta, Normal, kl
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    NoiseLevel,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
    over,
)

D = 0.7  # σ_d
EACH = pytest.mark.parametrize("name", NAMES)
ALL = {**PREDICTIONS, "edm": edm_prediction(D), "custom": Prediction("custom", lambda alpha, sigma: (-0.5, 2.0))}
VARIANCES = ("small", "large")
INF = float("inf")


def times(n):
    return torch.rand(n, dtype=F64) * 0.9 + 0.05


def noised(schedule, t, shape=(5, 3)):
    """x, ε, x_t and the level."""
    x = torch.randn(shape, dtype=F64)
    level = schedule.level(t, x)
    x_t, epsilon = schedule.corrupt(x, level)
    return x, epsilon, x_t, level


def floats(level):
    """A level of one time with Python floats, as in a sampler's plan."""
    return NoiseLevel(level.t, level.alpha.item(), level.sigma.item())


def denoiser(name="sample", schedule=None, interpolation=None, **settings):
    """The exact denoiser of N(M, COVARIANCE)."""
    schedule = schedule or LogSNRLinearSchedule(8.0, -6.0)
    backbone = Meaning(name, GaussianMean(schedule, M, COVARIANCE), schedule, D, interpolation)
    return Denoiser(backbone, schedule, prediction_for(name, D), **settings)


# Predictions


@pytest.mark.parametrize("name", ALL)
@ON_EACH
def test_x_and_epsilon_are_those_of_which_the_output_was_made(schedule, name):
    """From output = a x + b ε, x̂ = x and ε̂ = ε, whether α and σ are (B,), () or Python floats."""
    prediction = ALL[name]
    for t in (times(5), times(1)[0], times(1)[0]):
        x, epsilon, x_t, level = noised(schedule, t)
        for at in (level, floats(level)) if t.ndim == 0 else (level,):
            output = prediction.target(x, epsilon, at)
            torch.testing.assert_close(prediction.x(x_t, output, at), x, rtol=0, atol=1e-10)
            torch.testing.assert_close(prediction.epsilon(x_t, output, at), epsilon, rtol=0, atol=1e-10)


@EACH
@ON_EACH
def test_the_target_is_the_formula_of_the_prediction_s_paper(schedule, name):
    x, epsilon, x_t, level = noised(schedule, times(5))
    expected = network_output(name, x, x_t, over(level.alpha, x), over(level.sigma, x), D)
    torch.testing.assert_close(ALL[name].target(x, epsilon, level), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("as_floats", [False, True], ids=["tensors", "floats"])
@pytest.mark.parametrize("name", ALL)
def test_the_limits_at_no_noise_and_at_pure_noise(name, as_floats):
    """At σ = 0 x̂ is determined by every prediction but ε̂ not by x; at α = 0 ε̂ is, but x̂ not by ε."""
    prediction, (x, epsilon) = ALL[name], torch.randn(2, 4, 3, dtype=F64)
    for (alpha, sigma), undetermined in (((1.0, 0.0), "sample"), ((0.0, 1.0), "epsilon")):
        level = NoiseLevel(torch.tensor(sigma), *(torch.tensor(c, dtype=F64) for c in (alpha, sigma)))
        level = floats(level) if as_floats else level
        x_t, output = alpha * x + sigma * epsilon, prediction.target(x, epsilon, level)
        found = {"x": prediction.x(x_t, output, level), "epsilon": prediction.epsilon(x_t, output, level)}
        if name == undetermined:
            other = found.pop("epsilon" if name == "sample" else "x")
            assert not other.isfinite().any()
        for view, expected in (("x", x), ("epsilon", epsilon)):
            if view in found:
                torch.testing.assert_close(found[view], expected, rtol=1e-12, atol=1e-12)


def test_a_batch_may_hold_both_ends():
    schedule, t = FlowSchedule(), torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    x, epsilon, x_t, level = noised(schedule, t, (3, 2))
    for name in ("v_prediction", "flow", "edm", "custom"):
        output = ALL[name].target(x, epsilon, level)
        torch.testing.assert_close(ALL[name].x(x_t, output, level), x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ALL[name].epsilon(x_t, output, level), epsilon, rtol=1e-12, atol=1e-12)


def test_where_neither_is_determined_neither_is_finite():
    """x + ε says nothing of either where α = σ: there x_t is its multiple."""
    both = Prediction("sum", lambda alpha, sigma: (1.0, 1.0))
    x_t, level = torch.randn(4, 3, dtype=F64), FlowSchedule().level(torch.tensor(0.5, dtype=F64), torch.zeros(4))
    for at in (level, floats(level)):
        assert not both.x(x_t, 2 * x_t, at).isfinite().any() and not both.epsilon(x_t, 2 * x_t, at).isfinite().any()


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_output_and_x_t(name):
    """At both ends too, where the prediction has a limit."""
    for t in (0.0, 0.4, 1.0):
        x, epsilon, x_t, level = noised(FlowSchedule(), t, (2, 3))
        if (t, name) in ((0.0, "sample"), (1.0, "epsilon")):
            continue
        output = torch.randn(2, 3, dtype=F64, requires_grad=True)
        for at in (level, floats(level)):
            estimate = Estimate(ALL[name], x_t.requires_grad_(), output, at)
            reached = torch.autograd.grad((estimate.mean + 3 * estimate.epsilon).sum(), [output, x_t])
            assert all(g.isfinite().all() for g in reached) and reached[0].abs().sum() > 0


@EACH
@ON_EACH
def test_errors_in_the_output_are_errors_in_x_reweighted(schedule, name):
    """And those of ε̂ are √SNR, those of v̂ √(SNR + 1) α² + σ² times as large, whatever is predicted."""
    x, epsilon, x_t, level = noised(schedule, times(5))
    a, s = level.alpha, level.sigma
    estimate = Estimate(ALL[name], x_t, torch.randn_like(x), level)
    weight = {
        "epsilon": (a / s) ** 2,
        "sample": 1 + 0 * a,
        "v_prediction": (a**2 + s**2) ** 2 / s**2,
        "flow": ((a + s) / s) ** 2,
        "edm": ((s / a) ** 2 + D**2) / (s / a * D) ** 2,
    }
    in_x = (x - estimate.mean).square().sum(1)
    v = over(a, x) * epsilon - over(s, x) * x
    for of, error in {
        name: estimate.target(x, epsilon) - estimate.output,
        "epsilon": epsilon - estimate.epsilon,
        "v_prediction": v - estimate.v,
        "flow": epsilon - x - estimate.flow,
    }.items():
        torch.testing.assert_close(error.square().sum(1), weight[of] * in_x, rtol=1e-7, atol=1e-12)


# Estimates


def test_an_estimate_is_a_point():
    level = NoiseLevel(torch.tensor(0.5), 0.6, 0.8)
    estimate = Estimate(PREDICTIONS["sample"], torch.zeros(2, 3), torch.ones(2, 3), level)
    assert isinstance(estimate, Delta) and torch.equal(estimate.rsample(), torch.ones(2, 3))


@EACH
def test_a_clamped_estimate_keeps_x_t_and_its_learned_variance(name):
    x_t, output = torch.randn(2, 5, 4, dtype=F64) * 3
    level, features = CosineSchedule().level(0.4, x_t), {"layer": torch.ones(5, 2)}
    estimate = Estimate(ALL[name], x_t, output, level, torch.ones_like(output), features).clamp(-1, 1)
    assert estimate.mean.abs().max() == 1 and torch.equal(estimate.interpolation, torch.ones_like(output))
    assert estimate.hidden is features
    torch.testing.assert_close(
        level.alpha * estimate.mean + level.sigma * estimate.epsilon, x_t, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(estimate.score, -estimate.epsilon / level.sigma)


def test_half_precision_outputs_are_widened():
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    level = NoiseLevel(torch.tensor(0.5), torch.tensor(0.6, dtype=F64), torch.tensor(0.8, dtype=F64))
    for name in NAMES:
        estimate = Estimate(ALL[name], half, half, level)
        views = (estimate.mean, estimate.epsilon, estimate.v, estimate.flow, estimate.score)
        assert all(value.dtype == torch.float32 for value in views)


# What a backbone is shown


@ON_EACH
def test_a_backbone_is_shown_unit_variance(schedule):
    """EDM's of data of std σ_d, others' of data of std 1 where variance explodes, and x_t itself where it does not."""
    t, x_t = times(4), torch.randn(4, 3, dtype=F64)
    alpha, sigma = (over(c, x_t) for c in schedule.alpha_sigma(t))
    for name in ("edm", "sample"):
        model = denoiser(name, schedule)
        model(x_t, t)
        scale = (alpha**2 + sigma**2).sqrt() if schedule.exploding else torch.ones_like(alpha)
        scale = ((alpha * D) ** 2 + sigma**2).sqrt() if name == "edm" else scale
        torch.testing.assert_close(model.backbone.shown * scale, x_t, rtol=1e-12, atol=0)


def test_the_scale_of_the_input_follows_the_family_not_the_last_sigma():
    model = denoiser(schedule=VarianceExplodingSchedule(0.01, 1.0))
    model(torch.ones(1, 3, dtype=F64), 1.0)
    torch.testing.assert_close(model.backbone.shown, torch.full((1, 3), 0.5**0.5, dtype=F64))


def test_a_prediction_may_have_its_own_input_scale():
    scaled = Prediction("half", lambda alpha, sigma: (1.0, 0.0), lambda alpha, sigma: 0.5)
    model = Denoiser(Function(lambda x_t, t: x_t), CosineSchedule(), scaled)
    assert torch.equal(model(torch.ones(2, 3), 0.5).mean, torch.full((2, 3), 0.5))


def test_a_backbone_is_given_time_and_condition_as_they_are():
    model, cond = Denoiser(Function(lambda x_t, t: x_t), CosineSchedule(), "sample"), torch.tensor([3, 4])
    for t in (0.1, torch.tensor(0.1, dtype=F64), torch.full((2,), 0.1, dtype=F64)):
        model(torch.zeros(2, 3, dtype=F64), t, cond)
        assert model.backbone.cond is cond and model.backbone.t.shape == torch.as_tensor(t).shape
        assert (model.backbone.t == 0.1).all()  # float32 would be 1.5e-9 off


@EACH
@ON_EACH
def test_a_time_and_its_level_give_one_estimate(schedule, name):
    if name == "epsilon" and ends_in_noise(schedule):
        return
    model, x_t, t = denoiser(name, schedule), torch.randn(4, 3, dtype=F64), times(4)
    assert torch.equal(model(x_t, t).mean, model(x_t, schedule.level(t, x_t)).mean)
    t = torch.tensor(0.37, dtype=F64)
    expected = model(x_t, t)
    torch.testing.assert_close(model(x_t, floats(schedule.level(t, x_t))).mean, expected.mean, rtol=1e-12, atol=1e-12)


def test_hidden_features_come_with_the_estimate():
    backbone = MLP(2, 8, 2)
    model, x_t = Denoiser(backbone, CosineSchedule(), "v_prediction"), torch.randn(4, 2)
    estimate = model(x_t, 0.4, hidden=("block_1",))
    _, features = backbone(x_t, torch.tensor(0.4), hidden=("block_1",))
    assert list(estimate.hidden) == ["block_1"] and torch.allclose(estimate.hidden["block_1"], features["block_1"])
    assert torch.equal(estimate.mean, model(x_t, 0.4).mean) and not model(x_t, 0.4).hidden
    clipped = Denoiser(backbone, CosineSchedule(), "v_prediction", clip=(-1.0, 1.0)).clipped(
        x_t, 0.4, None, ("block_0",)
    )
    assert clipped.hidden["block_0"].shape == (4, 8)


def test_self_conditioning_is_the_backbone_s():
    class Recalling(nn.Module):
        self_condition = True

    level = NoiseLevel(torch.tensor(0.5), 0.6, 0.8)
    estimate = Estimate(PREDICTIONS["sample"], torch.zeros(2, 3), torch.ones(2, 3), level)
    recalling, plain = (Denoiser(backbone, CosineSchedule(), "sample") for backbone in (Recalling(), nn.Identity()))
    assert recalling.self_conditioning(estimate)["estimate"] is estimate.mean and recalling.self_condition
    assert plain.self_conditioning(estimate) == {} and not plain.self_condition


# EDM's numbers


@ON_EACH
def test_on_data_of_std_sigma_data_edm_s_best_network_is_zero_and_its_loss_is_one(schedule):
    """D* = c_skip x, and ‖target - 0‖² has mean 1 at every σ: over four points with the moments of x and of ε."""
    x = D * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    epsilon = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    zero = Denoiser(Constant(torch.zeros((), dtype=F64)), schedule, "edm", sigma_data=D)
    for t in (0.0, 0.1, 0.5, 0.9, 1.0):
        alpha, sigma = schedule.alpha_sigma(t)
        estimate = zero(alpha * x + sigma * epsilon, t)
        best = alpha * D**2 / (alpha**2 * D**2 + sigma**2) * (alpha * x + sigma * epsilon)
        torch.testing.assert_close(estimate.mean, best, rtol=1e-10, atol=1e-12)
        assert estimate.target(x, epsilon).square().mean().item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_edm_s_factors_are_those_of_diffusers(sigma):
    theirs, schedule = pytest.importorskip("diffusers").EDMEulerScheduler(sigma_data=D), EDMSchedule()
    x_t, t = sigma * torch.randn(4, 3, dtype=F64), schedule.time(-2 * math.log(sigma))
    model = Denoiser(Function(lambda x_t, t: x_t.cos()), schedule, "edm", sigma_data=D)
    estimate, sigma = model(x_t, t), torch.tensor(sigma, dtype=F64)
    torch.testing.assert_close(model.backbone.shown, theirs.precondition_inputs(x_t, sigma), rtol=1e-9, atol=1e-12)
    expected = theirs.precondition_outputs(x_t, estimate.output, sigma)
    torch.testing.assert_close(estimate.mean, expected, rtol=1e-9, atol=1e-12)


# The reverse step


@EACH
def test_the_small_variance_is_the_posterior_s_and_the_large_the_transition_s(name):
    x_t, (s, t) = torch.randn(4, 3, dtype=F64), torch.rand(2, 4, dtype=F64).sort(0).values
    small, large = (denoiser(name, variance=variance).reverse(x_t, s, t) for variance in VARIANCES)
    schedule = denoiser().schedule
    torch.testing.assert_close(small.std[:, 0], schedule.posterior_coefficients(s, t).std, rtol=1e-12, atol=0)
    torch.testing.assert_close(large.std[:, 0].square(), schedule.step(s, t)[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(small.mean, large.mean, rtol=0, atol=0)
    assert (small.std < large.std).all()


def test_numbers_of_ddpm_s_two_variances():
    x_t, schedule = torch.randn(4, 3, dtype=F64), BetaSchedule()
    small, large = (
        denoiser("epsilon", schedule, variance=variance).reverse(x_t, 0.001, 0.002).std.square().item()
        for variance in VARIANCES
    )
    assert small == pytest.approx(5.453188e-5, rel=1e-6) and large == pytest.approx(schedule.betas[1].item(), rel=1e-10)


def test_the_last_reverse_step_is_the_estimate():
    x_t = torch.randn(4, 3, dtype=F64)
    small = denoiser("epsilon", BetaSchedule())
    assert isinstance(small.reverse(x_t, 0.0, 0.001), Delta)
    torch.testing.assert_close(small.reverse(x_t, 0.0, 0.001).mean, small(x_t, 0.001).mean, rtol=0, atol=0)
    large = denoiser("epsilon", BetaSchedule(), variance="large").reverse(x_t, 0.0, 0.001)
    assert isinstance(large, Normal) and large.std.item() == pytest.approx(0.01, rel=1e-9)


def test_clip_bounds_x_in_reverse_and_not_in_forward():
    x_t = 5 * torch.randn(20, 3, dtype=F64)
    free, clipped = denoiser("v_prediction"), denoiser("v_prediction", clip=(-1.0, 1.0))
    assert torch.equal(free(x_t, 0.5).mean, clipped(x_t, 0.5).mean) and free(x_t, 0.5).mean.abs().max() > 1
    assert clipped.clipped(x_t, 0.5).mean.abs().max() <= 1
    assert torch.equal(clipped.bounded(free(x_t, 0.5)).mean, clipped.clipped(x_t, 0.5).mean)
    expected = clipped.schedule.posterior(x_t, free(x_t, 0.5).mean.clamp(-1, 1), 0.4, 0.5)
    torch.testing.assert_close(clipped.reverse(x_t, 0.4, 0.5).mean, expected.mean, rtol=1e-12, atol=1e-12)


@EACH
@pytest.mark.parametrize("v, end", [(-1.0, "small"), (1.0, "large")])
def test_the_ends_of_a_learned_variance_are_the_small_and_the_large(name, v, end):
    x_t, (s, t) = torch.randn(4, 3, dtype=F64), times((2, 4)).sort(0).values
    learned = denoiser(name, interpolation=torch.tensor(v, dtype=F64), variance="learned_range").reverse(x_t, s, t)
    fixed = denoiser(name, variance=end).reverse(x_t, s, t)
    torch.testing.assert_close(learned.std, fixed.std.expand_as(learned.std), rtol=1e-12, atol=0)
    torch.testing.assert_close(learned.mean, fixed.mean, rtol=0, atol=0)


def learning(v):
    """A denoiser with the learned variance v."""
    return Denoiser(Function(lambda x_t, t: torch.cat([x_t, v], 1)), BetaSchedule(), variance="learned_range")


def test_a_learned_variance_lies_between_on_a_logarithmic_scale():
    x_t, v = torch.randn(4, 2, 3, 3, dtype=F64), torch.rand(4, 2, 3, 3, dtype=F64) * 2 - 1
    model = learning(v)
    learned, coefficients = model.reverse(x_t, 0.4, 0.5), model.schedule.posterior_coefficients(0.4, 0.5)
    # small and large go with any denoiser
    small, large = (model.posterior(model(x_t, 0.5), coefficients, variance).std for variance in VARIANCES)
    assert (small < learned.std).all() and (learned.std < large).all()
    torch.testing.assert_close(learned.std, large ** ((v + 1) / 2) * small ** ((1 - v) / 2), rtol=1e-10, atol=0)


def test_a_learned_variance_is_that_of_diffusers():
    theirs = pytest.importorskip("diffusers").DDPMScheduler(variance_type="learned_range")
    theirs.alphas_cumprod = BetaSchedule().alphas_cumprod
    v = torch.rand(4, 3, dtype=F64) * 2 - 1
    for k in (1, 10, 500, 999):
        std = learning(v).reverse(torch.randn(4, 3, dtype=F64), k / 1000, (k + 1) / 1000).std
        torch.testing.assert_close(2 * std.log(), theirs._get_variance(k, predicted_variance=v), rtol=1e-5, atol=0)


def test_a_learned_variance_has_a_gradient_and_is_zero_at_the_end():
    v = torch.zeros(4, 3, requires_grad=True)
    q = Normal(torch.zeros(4, 3), torch.tensor(0.1))
    kl(q, learning(v).reverse(torch.randn(4, 3), 0.4, 0.5)).sum().backward()
    assert v.grad.abs().min() > 0
    assert isinstance(learning(v).reverse(torch.randn(4, 3), 0.0, 0.001), Delta)


@EACH
@ON_EACH
def test_the_reverse_step_is_finite_wherever_it_is_allowed(schedule, name):
    """edm goes with schedules that end in pure noise: its formulas have no singularity there."""
    if name == "epsilon" and ends_in_noise(schedule):
        with pytest.raises(ValueError, match=f"does not go with {type(schedule).__name__} ending at α = 0"):
            denoiser(name, schedule)
        return
    x_t = schedule.terminal_std * torch.randn(2, 3, dtype=F64)
    estimate = Denoiser(Mild(), schedule, name)(x_t, 1.0)
    assert estimate.mean.isfinite().all() and estimate.epsilon.isfinite().all()
    for s, t in ((0.9, 1.0), (0.0, 0.1)):
        p = Denoiser(Mild(), schedule, name).reverse(x_t, s, t)
        assert p.mean.isfinite().all()


@pytest.mark.parametrize("name", ["sample", "v_prediction", "flow", "edm"])
def test_pure_noise_says_the_mean_in_every_prediction(name):
    model = denoiser(name, FlowSchedule())
    torch.testing.assert_close(model(torch.randn(4, 3, dtype=F64), 1.0).mean, M.expand(4, 3), rtol=1e-9, atol=1e-9)


def test_a_custom_prediction_works_in_a_denoiser():
    """output = 2 ε - x/2; its exact network gives the exact estimate, and it is named."""
    schedule = LogSNRLinearSchedule(8.0, -6.0)
    mean, x_t, t = GaussianMean(schedule, M, COVARIANCE), torch.randn(4, 3, dtype=F64), times(4)

    def output(x_t, t):
        x = mean(x_t, t)
        alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
        return 2 * (x_t - alpha * x) / sigma - 0.5 * x

    model = Denoiser(Function(output), schedule, ALL["custom"])
    torch.testing.assert_close(model(x_t, t).mean, mean(x_t, t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(x_t, t).score, denoiser("sample")(x_t, t).score, rtol=1e-8, atol=1e-8)
    assert model.prediction.name == "custom" and "custom" in repr(model)


def test_a_denoiser_compiles_in_one_graph_and_is_differentiated_by_torch_func():
    model, x_t = denoiser("v_prediction"), torch.randn(4, 3, dtype=F64)
    t = torch.linspace(0.1, 0.9, 4, dtype=F64)
    compiled = torch.compile(lambda x_t, t: model(x_t, t).mean, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_t, t), model(x_t, t).mean)
    each = torch.func.vmap(torch.func.jacrev(lambda x, t: model(x[None], t).mean[0]))(x_t, t)
    assert each.shape == (4, 3, 3) and each.isfinite().all()


# Refusals


def answering(shape, variance="small"):
    return Denoiser(Function(lambda x_t, t: torch.zeros(shape)), CosineSchedule(), "v_prediction", variance)


def wrong_shape(shape, of="Function"):
    expected = "must return shape (4, 3, 8, 8) for x_t of shape (4, 3, 8, 8) with prediction 'v_prediction'"
    return f"backbone {of} {expected}; got shape {shape}"


IMAGES = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize("make, message", [
    (lambda: Denoiser(nn.Identity(), BetaSchedule(), "x"),
     "prediction must be one of epsilon, sample, v_prediction, flow, edm, or a Prediction; got 'x'"),
    (lambda: Denoiser(nn.Identity(), BetaSchedule(), variance="fixed_small"),
     "variance must be one of small, large, learned_range; got 'fixed_small'"),
    (lambda: denoiser("epsilon", CosineSchedule()),
     "prediction 'epsilon' does not go with CosineSchedule ending at α = 0: x̂ is undefined there, as the output is "
     "of ε alone; "
     "use v_prediction or sample, or a finite log_snr_min"),
    *[(lambda prediction=prediction: Denoiser(nn.Identity(), EDMSchedule(), prediction, sigma_data=0.7),
       f"sigma_data must be None with prediction '{prediction}', whose output is not scaled by it; got 0.7: leave it "
       "out, or use prediction='edm'") for prediction in ("epsilon", "v_prediction")],
    *[(lambda value=value: Denoiser(nn.Identity(), EDMSchedule(), "edm", sigma_data=value),
       f"sigma_data must be above 0; got {value}") for value in (0.0, -1.0, math.nan)],
    *[(lambda shape=shape: denoiser()(torch.zeros(8, 3, dtype=F64), torch.zeros(shape)),
       f"t must be () or (B,) = (8,) in [0, 1]; got shape {shape}") for shape in ((8, 1), (3,), (1,))],
    *[(lambda shape=shape, call=call, at=at: getattr(answering(shape), call)(IMAGES, *at), wrong_shape(shape))
      for shape in ((4, 1, 8, 8), (4, 3, 8, 1), (1, 3, 8, 8), (3, 8, 8), (4, 6, 8, 8), ())
      for call, at in (("forward", (0.5,)), ("clipped", (0.5,)), ("reverse", (0.4, 0.5)))],
    (lambda: answering((4, 6, 8, 1), "learned_range")(IMAGES, 0.5), wrong_shape((4, 3, 8, 1))),
    (lambda: Denoiser(UNet((3, 8, 8), 16, out_channels=1), CosineSchedule(), "v_prediction")(IMAGES, 0.5),
     wrong_shape((4, 1, 8, 8), "UNet")),
    *[(lambda channels=channels: answering((4, channels, 8, 8), "learned_range")(IMAGES, 0.5),
       f"variance 'learned_range' needs a backbone with 6 output channels for 3 of x; got {channels}")
      for channels in (1, 3, 9)],
    (lambda: denoiser().posterior(denoiser()(torch.zeros(2, 3), 0.5), BetaSchedule().posterior_coefficients(0.4, 0.5),
                                  "learned_range"),
     "variance 'learned_range' needs a denoiser that has learned one; got a Denoiser with variance 'small'"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("variance", [*VARIANCES, "learned_range"])
def test_an_output_that_is_no_tensor_is_refused(variance):
    """Such as the UNet2DOutput of diffusers."""
    model = Denoiser(Function(lambda x_t, t: {"sample": x_t}), CosineSchedule(), "sample", variance)
    with pytest.raises(TypeError, match="backbone Function must return a tensor like x_t; got dict"):
        model(torch.zeros(2, 3), 0.5)


def test_epsilon_goes_with_a_schedule_that_ends_with_signal():
    assert denoiser("epsilon", CosineSchedule(13.3, -8.0))(torch.randn(2, 3, dtype=F64), 1.0).mean.isfinite().all()
    assert set(NAMES) == set(PREDICTIONS) and len(schedules()) == 12


def test_it_predicts_v_unless_asked_otherwise():
    """From almost pure noise a network of outputs near 1 then has x̂ near 1, where ε̂ would have it near 1/α = 2e4."""
    schedule, x_t = BetaSchedule("squaredcos_cap_v2"), torch.randn(200, 3)
    model = Denoiser(Function(lambda x_t, t: torch.randn_like(x_t)), schedule)
    assert model.prediction == PREDICTIONS["v_prediction"] and model(x_t, 1.0).mean.abs().max() < 6


@ON_EACH
def test_the_target_of_the_default_prediction_has_the_scale_of_x(schedule):
    """At every noise level, of data of standard deviation ½: 1 for edm, at most 1 for v."""
    model, (x, epsilon), t = Denoiser(nn.Identity(), schedule), torch.randn(2, 500, 3, dtype=F64), torch.rand(500)
    target = model.prediction.target(0.5 * x, epsilon, schedule.level(t, x))
    assert target.square().mean().sqrt() < 1.5 and model.prediction.name == (
        "edm" if schedule.exploding else "v_prediction"
    )


@pytest.mark.parametrize("schedule, settings, warns", [
    (BetaSchedule(), {}, True),
    (BetaSchedule("squaredcos_cap_v2"), {}, True),
    (VariancePreservingSchedule(), {}, True),
    (BetaSchedule(), {"clip": (-1.0, 1.0)}, False),
    (BetaSchedule(), {"prediction": "v_prediction"}, False),
    (LogSNRLinearSchedule(10.0, -6.0), {}, False),
    (LogSNRLinearSchedule(), {}, False),
    (BetaSchedule(num_train_timesteps=100), {}, False),
    (EDMSchedule(), {}, False),
])  # fmt: skip
def test_epsilon_without_clip_is_warned_of_where_almost_no_signal_is_left(schedule, settings, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Denoiser(nn.Identity(), schedule, **{"prediction": "epsilon", **settings})
    assert len(caught) == warns
    if warns:
        words = str(caught[0].message)
        assert all(word in words for word in ("'epsilon'", "clip=(-1, 1)", "v_prediction", type(schedule).__name__))
        assert caught[0].filename == __file__
