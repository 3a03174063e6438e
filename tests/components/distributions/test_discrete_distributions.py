"""Bernoulli, Categorical, and the logistic and the Gaussian that are discretized to K grey levels."""

import math

import pytest
import torch
from answers import F64
from instances import discretized

from components.distributions import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    DiscretizedNormal,
    grid,
    kl,
)

DISCRETIZED = pytest.mark.parametrize("kind", ["logistic", "normal"])
GREY_LEVELS = pytest.mark.parametrize("grey_levels", [256, 17])
INF = math.inf


# Discretized


@DISCRETIZED
@GREY_LEVELS
def test_masses_are_differences_of_the_distribution_function(kind, grey_levels):
    mean, scale = torch.tensor([[0.2]], dtype=F64), torch.tensor([[0.3]], dtype=F64)
    p = discretized(kind, mean, scale, grey_levels)
    y, half = grid(grey_levels, mean)[1:-1], 1 / (grey_levels - 1)
    cdf = torch.sigmoid if kind == "logistic" else torch.special.ndtr
    expected = cdf((y + half - mean[0]) / scale[0]) - cdf((y - half - mean[0]) / scale[0])
    masses = torch.stack([p.log_prob(value.view(1, 1)).exp()[0] for value in y])
    torch.testing.assert_close(masses, expected, rtol=1e-9, atol=0)


@DISCRETIZED
@GREY_LEVELS
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
def test_log_prob_and_gradients_are_finite_far_in_the_tails(kind, grey_levels, dtype, scale):
    y = grid(grey_levels, torch.zeros(1, dtype=dtype))[:, None].repeat(4, 1)
    mean = torch.tensor([-50.0, -1.5, 1.5, 50.0], dtype=dtype).repeat_interleave(grey_levels)[:, None].requires_grad_()
    scales = torch.full_like(mean, scale).requires_grad_()
    log_prob = discretized(kind, mean, scales, grey_levels).log_prob(y)
    log_prob.sum().backward()
    for values in (log_prob, mean.grad, scales.grad):
        assert values.isfinite().all()


@DISCRETIZED
@pytest.mark.parametrize("scale", [1e-3, 0.01, 0.1])
@pytest.mark.parametrize("place", [-50.0, -1.5, 0.03, 1.5])
def test_gradients_in_float32_are_those_of_float64(kind, scale, place):
    def gradients(dtype):
        y = grid(256, torch.zeros(1, dtype=dtype))[:, None]
        mean, scales = torch.full_like(y, place).requires_grad_(), torch.full_like(y, scale).requires_grad_()
        return torch.autograd.grad(discretized(kind, mean, scales, 256).log_prob(y).sum(), (mean, scales))

    for half, full in zip(gradients(torch.float32), gradients(F64)):
        torch.testing.assert_close(half.double(), full, rtol=1e-4, atol=1e-4 * full.abs().max().item())


@DISCRETIZED
def test_a_tail_pulls_the_mean_towards_the_data(kind):
    mean = torch.tensor([[30.0], [-30.0]], requires_grad=True)
    discretized(kind, mean, torch.full_like(mean, 0.1), 17).log_prob(torch.zeros(2, 1)).sum().backward()
    assert mean.grad[0] < -1 and mean.grad[1] > 1


@GREY_LEVELS
@pytest.mark.parametrize("scale", [1e-3, 0.05, 0.5, 4.0])
def test_the_logistic_s_mean_is_within_half_a_bin_of_the_exact_one(grey_levels, scale):
    location, log_scale = torch.linspace(-1.4, 1.4, 29, dtype=F64)[:, None], torch.tensor(scale, dtype=F64).log()
    values = grid(grey_levels, location)
    p = DiscretizedLogistic(location.repeat_interleave(grey_levels, 0), log_scale, grey_levels)
    mass = p.log_prob(values.repeat(len(location))[:, None]).exp().view(len(location), grey_levels)
    mean = DiscretizedLogistic(location, log_scale, grey_levels).mean[:, 0]
    assert ((mass * values).sum(1) - mean).abs().max() <= 1 / (grey_levels - 1)


@DISCRETIZED
def test_a_draw_inside_the_range_moves_one_to_one_with_the_mean(kind):
    mean = torch.zeros(100, 1, dtype=F64, requires_grad=True)
    discretized(kind, mean, torch.full_like(mean, 0.05), 17).rsample().sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))


# Bernoulli and Categorical


def test_bernoulli_is_the_sigmoid_of_its_logits():
    p = Bernoulli(torch.randn(50, 1, dtype=F64) * 10)
    one = torch.ones(50, 1, dtype=F64)
    assert (p.log_prob(one).exp() + p.log_prob(-one).exp() - 1).abs().max() < 1e-12
    torch.testing.assert_close(p.log_prob(one).exp()[:, None], torch.sigmoid(p.logits), rtol=1e-12, atol=0)


def test_bernoulli_of_grey_values_is_the_cross_entropy():
    logits, y = torch.randn(3, 4, dtype=F64), torch.rand(3, 4, dtype=F64) * 2 - 1
    h, p = (y + 1) / 2, torch.sigmoid(logits)
    expected = (h * p.log() + (1 - h) * (1 - p).log()).sum(1)
    torch.testing.assert_close(Bernoulli(logits).log_prob(y), expected, rtol=1e-12, atol=0)


def test_bernoulli_is_finite_at_extreme_logits():
    logits = torch.tensor([[-1e4], [1e4]], requires_grad=True)
    p = Bernoulli(logits)
    (p.log_prob(torch.ones(2, 1)) + p.entropy()).sum().backward()
    assert p.log_prob(torch.ones(2, 1)).tolist() == [-1e4, 0.0] and logits.grad.isfinite().all()


def test_categorical_puts_level_v_at_its_grey_value():
    logits = torch.randn(1, 17, 1, dtype=F64)
    p = Categorical(logits)
    log_mass = torch.stack([p.log_prob(value.view(1, 1))[0] for value in grid(17, logits)])
    torch.testing.assert_close(log_mass, logits.log_softmax(1)[0, :, 0], rtol=1e-12, atol=0)


def test_categorical_mean_and_entropy_of_the_uniform_one():
    p = Categorical(torch.zeros(2, 17, 3, dtype=F64))
    assert p.mean.abs().max() < 1e-15
    torch.testing.assert_close(p.entropy(), torch.full((2,), 3 * math.log(17), dtype=F64), rtol=1e-12, atol=0)


def test_a_straight_through_draw_has_the_gradient_of_the_mean():
    for build, raw in ((Bernoulli, torch.randn(3, 2, dtype=F64)), (Categorical, torch.randn(3, 5, 2, dtype=F64))):
        raw.requires_grad_()
        weight = torch.randn(3, 2, dtype=F64)
        (from_draw,) = torch.autograd.grad((build(raw).rsample() * weight).sum(), raw)
        (from_mean,) = torch.autograd.grad((build(raw).mean * weight).sum(), raw)
        torch.testing.assert_close(from_draw, from_mean, rtol=1e-12, atol=0)
        assert from_draw.abs().min() > 0


# Levels of mass 0


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("impossible", [-INF, -2e3], ids=["infinite", "underflowing"])
def test_a_uniform_over_3_of_5_levels_has_entropy_log_3(impossible, dtype):
    logits = torch.tensor([impossible, 0.0, impossible, 0.0, 0.0], dtype=dtype).view(1, 5, 1).requires_grad_()
    p = Categorical(logits)
    assert p.entropy().item() == pytest.approx(math.log(3), rel=1e-6)
    assert p.mean.item() == pytest.approx((-0.5 + 0.5 + 1) / 3, rel=1e-6)
    assert p.log_prob(grid(5, logits)[:, None]).exp().tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3, 1 / 3])
    for value in (p.entropy(), p.mean, p.log_prob(torch.ones(1, 1))):
        assert torch.autograd.grad(value.sum(), logits, retain_graph=True)[0].isfinite().all()


def test_impossible_levels_leave_the_gradient_of_the_entropy_to_the_others():
    raw = torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    gaps = torch.full((2, 5, 4), -INF, dtype=F64)
    gaps[:, [0, 1, 3]] = raw.detach()
    gaps.requires_grad_()
    torch.testing.assert_close(Categorical(gaps).entropy(), Categorical(raw).entropy(), rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad(Categorical(raw).entropy().sum(), raw)
    (gradient,) = torch.autograd.grad(Categorical(gaps).entropy().sum(), gaps)
    torch.testing.assert_close(gradient[:, [0, 1, 3]], expected, rtol=1e-12, atol=1e-15)
    assert not gradient[:, [2, 4]].any()


def test_impossible_levels_are_never_drawn():
    draws = Categorical(torch.tensor([-INF, 0.0, -INF, 0.0, 0.0]).view(1, 5, 1).expand(5000, -1, -1)).rsample()
    values, counts = draws.mul(2).round().unique(return_counts=True)
    assert values.tolist() == [-1, 1, 2] and counts.min() > 1500


def test_logits_without_a_distribution_are_nan_in_every_result():
    """Documented rather than refused, since a check would wait for the device; never a finite number."""
    some = Categorical(torch.zeros(1, 5, 1))
    for logits in ([-INF] * 5, [0.0, math.nan, 0.0, 0.0, 0.0], [0.0, INF, 0.0, 0.0, 0.0]):
        p = Categorical(torch.tensor(logits).view(1, 5, 1))
        for value in (p.mean, p.rsample(), p.entropy(), p.log_prob(torch.ones(1, 1)), kl(p, some), kl(some, p)):
            assert value.isnan().all()


def test_a_certain_pixel_has_entropy_0_and_log_prob_0_or_minus_infinity():
    p = Bernoulli(torch.tensor([[INF], [-INF]], requires_grad=True))
    one = torch.ones(2, 1)
    assert p.entropy().tolist() == [0, 0] and p.mean.flatten().tolist() == [1, -1]
    assert p.log_prob(one).tolist() == [0, -INF] and p.log_prob(-one).tolist() == [-INF, 0]
    assert p.rsample().flatten().tolist() == [1, -1]
    mixed = torch.tensor([[INF, 0.0, -INF]], requires_grad=True)
    value = Bernoulli(mixed).log_prob(torch.tensor([[1.0, 1.0, -1.0]])) + Bernoulli(mixed).entropy()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(value.sum(), mixed)[0].tolist() == [[0.0, 0.5, 0.0]]


def two_logistics(mean, log_scale, grey_levels):
    logits = torch.zeros(1, 2, 1, dtype=mean.dtype)
    return DiscretizedLogisticMixture(logits, mean.expand(1, 2, 1), log_scale.expand(1, 2, 1), grey_levels)


@pytest.mark.parametrize("build", [
    DiscretizedLogistic, lambda mean, log_scale, k: DiscretizedNormal(mean, log_scale.exp(), k), two_logistics,
], ids=["logistic", "normal", "mixture"])  # fmt: skip
@pytest.mark.parametrize("mean, log_scale, entropy", [
    (0.1, -20.0, 0.0), (0.1, -60.0, 0.0), (1e30, -3.0, 0.0), (-1e38, -7.0, 0.0),
    (0.1, 200.0, math.log(2)),  # half of the mass in either open edge bin
    (0.125, -40.0, math.log(2)),  # on the border of two bins
])  # fmt: skip
def test_masses_that_underflow_add_nothing_to_the_entropy(build, mean, log_scale, entropy):
    mean, log_scale = torch.full((1, 1), mean, requires_grad=True), torch.full((1, 1), log_scale)
    p = build(mean, log_scale, 9)
    assert p.entropy().item() == pytest.approx(entropy, abs=1e-5)
    assert not p.log_prob(grid(9, mean)[:, None]).isnan().any()


@DISCRETIZED
@pytest.mark.parametrize("mean, scale", [(0.1, 1e-9), (1e30, 0.05), (-1e30, 0.05), (0.1, 1e30)])
def test_gradients_of_the_entropy_are_finite_where_masses_underflow(kind, mean, scale):
    mean, scale = (torch.full((1, 1), value, requires_grad=True) for value in (mean, scale))
    gradients = torch.autograd.grad(discretized(kind, mean, scale, 9).entropy().sum(), (mean, scale))
    assert all(gradient.isfinite().all() for gradient in gradients)


# Refusals


@pytest.mark.parametrize("build, message", [
    (lambda: DiscretizedLogistic(torch.zeros(1, 1), torch.zeros(1, 1), 1), "grey_levels must be at least 2; got 1"),
    (lambda: DiscretizedNormal(torch.zeros(1, 1), 1.0, 1), "grey_levels must be at least 2; got 1"),
    (lambda: Categorical(torch.zeros(3, 5)), r"logits must be \(B, K, \*event\) with K >= 2; got shape \(3, 5\)"),
    (lambda: Categorical(torch.zeros(3, 1, 5)), r"logits must be \(B, K, \*event\) with K >= 2; got shape \(3, 1, 5\)"),
])  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
