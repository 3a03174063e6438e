"""Mixtures of discretized logistics: their masses, draws and gradients."""

import math

import pytest
import torch
from answers import F64
from instances import mixture

from components.distributions import DiscretizedLogistic, DiscretizedLogisticMixture, Distribution, grid


def masses(p, grey_levels):
    """exp log P of each level in each dimension: (K, B, *event)."""
    values = grid(grey_levels, p.mean)
    return torch.stack([p._log_mass(v.expand_as(p.mean)).exp() for v in values]), values


@pytest.mark.parametrize("grey_levels", [2, 9, 256])
def test_sums_to_one(grey_levels):
    total = masses(mixture(grey_levels=grey_levels), grey_levels)[0].sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_is_the_sum_of_its_components():
    p, y = mixture(), torch.randint(0, 9, (3, 2, 2)) / 4 - 1.0
    weights = p.log_weights.exp()
    expected = 0
    for m in range(4):
        part = DiscretizedLogistic(p.components.location[:, m], p.components.log_scale[:, m], 9)
        expected = expected + weights[:, m] * part._log_mass(y.double()).exp()
    torch.testing.assert_close(p.log_prob(y), expected.log().flatten(1).sum(1))
    torch.testing.assert_close(weights.sum(1), torch.ones(3, 2, 2, dtype=F64))


def test_equal_components_are_one():
    mean, log_scale = torch.randn(2, 3, 1, 5).expand(-1, -1, 4, -1)
    logits, y = torch.randn(3, 4, 5), torch.randint(0, 9, (3, 5)) / 4 - 1.0
    p, one = DiscretizedLogisticMixture(logits, mean, log_scale, 9), DiscretizedLogistic(mean[:, 0], log_scale[:, 0], 9)
    torch.testing.assert_close(p.log_prob(y), one.log_prob(y))
    torch.testing.assert_close(p.mean, one.mean)
    torch.testing.assert_close(p.entropy(), one.entropy())


def test_entropy_and_mean_are_those_of_the_masses():
    p = mixture(grey_levels=65)
    mass, values = masses(p, 65)
    torch.testing.assert_close(p.entropy(), torch.special.entr(mass).sum(0).flatten(1).sum(1))
    exact = (mass * values.view(-1, 1, 1, 1)).sum(0)
    torch.testing.assert_close(p.mean, exact, atol=1 / 64, rtol=0)


def test_samples_have_the_masses():
    p = mixture(batch=1, event=(2,), grey_levels=5)
    parameters = (p.log_weights, p.components.location, p.components.log_scale)
    many = DiscretizedLogisticMixture(*(x.expand(20000, -1, -1) for x in parameters), grey_levels=5)
    samples = many.rsample(torch.Generator().manual_seed(1))
    mass, values = masses(p, 5)
    shares = (samples[None] - values.view(-1, 1, 1)).abs().lt(1e-9).double().mean(1)
    error = (mass[:, 0] * (1 - mass[:, 0]) / 20000).sqrt()
    assert ((shares - mass[:, 0]).abs() <= 4 * error + 1e-12).all()
    assert shares.sum(0).tolist() == pytest.approx([1, 1])


def test_samples_repeat_and_carry_the_gradient_of_the_mean():
    logits, means, log_scales = (torch.randn(3, 4, 5, requires_grad=True) for _ in range(3))
    p = DiscretizedLogisticMixture(logits, means, log_scales, 9)
    assert torch.equal(*(p.rsample(torch.Generator().manual_seed(1)) for _ in range(2)))
    direction = torch.randn(3, 5)
    inputs = [logits, means, log_scales]
    for gradient, expected in zip(torch.autograd.grad((direction * p.rsample()).sum(), inputs, retain_graph=True),
                             torch.autograd.grad((direction * p.mean).sum(), inputs)):  # fmt: skip
        assert gradient.any()
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_types_and_gradients_far_out(dtype):
    inputs = [torch.full((2, 3, 4), value, dtype=dtype, requires_grad=True) for value in (0.0, 50.0, -7.0)]
    p = DiscretizedLogisticMixture(*inputs, grey_levels=256)
    assert isinstance(p, Distribution)
    log_prob = p.log_prob(-torch.ones(2, 4))
    assert log_prob.shape == p.entropy().shape == (2,) and p.mean.shape == p.rsample().shape == (2, 4)
    assert log_prob.dtype == p.mean.dtype == torch.float32 and log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_two_narrow_peaks():
    """What one logistic cannot: half the mass at each end, and none between."""
    means = torch.tensor([-1.0, 1.0]).view(1, 2, 1)
    p = DiscretizedLogisticMixture(torch.zeros(1, 2, 1), means, torch.full((1, 2, 1), -6.0), 9)
    assert p.entropy().item() == pytest.approx(math.log(2), abs=1e-4)
    assert p.log_prob(torch.ones(1, 1)).item() == pytest.approx(-math.log(2), abs=1e-4)
    assert p.log_prob(torch.zeros(1, 1)).item() < -50


@pytest.mark.parametrize("shapes, grey_levels, message", [
    (((2, 3), (2, 3), (2, 3)), 9, r"the same shape \(B, M, \*event\); got \(2, 3\)"),
    (((2, 3, 4), (2, 3, 4), (2, 1, 4)), 9, r"got \(2, 3, 4\), \(2, 3, 4\) and \(2, 1, 4\)"),
    (((2, 3, 4),) * 3, 1, "grey_levels must be at least 2; got 1"),
])  # fmt: skip
def test_refusals(shapes, grey_levels, message):
    with pytest.raises(ValueError, match=message):
        DiscretizedLogisticMixture(*map(torch.zeros, shapes), grey_levels)
