"""KL divergences: closed forms, Monte Carlo, levels of mass 0, shapes."""

import math

import pytest
import torch
from answers import F64
from instances import normal, within

from components.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    DiscretizedLogistic,
    DiscretizedNormal,
    Implicit,
    Normal,
    grid,
    kl,
    kl_per_dimension,
)

INF = math.inf


# Closed forms


def test_kl_to_the_standard_normal_is_the_textbook_formula():
    q = normal()
    expected = 0.5 * (q.mean.square() + q.std.square() - 1 - q.std.square().log()).sum((1, 2))
    torch.testing.assert_close(kl(q, Normal(torch.zeros(1, 2, 2, dtype=F64), 1.0)), expected, rtol=1e-12, atol=0)
    one = kl(Normal(torch.tensor([[0.7]], dtype=F64), 0.4), Normal(torch.zeros(1, 1, dtype=F64), 1.0))
    assert one.item() == pytest.approx(0.741291, rel=1e-6)


def test_kl_per_dimension_sums_to_kl():
    q, p = normal(), normal()
    torch.testing.assert_close(kl_per_dimension(q, p).sum((1, 2)), kl(q, p), rtol=1e-14, atol=0)


def test_kl_of_equal_normals_is_zero():
    q = normal()
    assert kl(q, q).abs().max() < 1e-15


def test_bernoulli_kl_is_closed_and_right():
    q, p = Bernoulli(torch.randn(3, 4, dtype=F64)), Bernoulli(torch.randn(3, 4, dtype=F64))
    a, b = torch.sigmoid(q.logits), torch.sigmoid(p.logits)
    expected = (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).sum(1)
    torch.testing.assert_close(kl(q, p), expected, rtol=1e-10, atol=0)


def test_categorical_kl_is_closed_and_right():
    q, p = Categorical(torch.randn(3, 5, 2, dtype=F64)), Categorical(torch.randn(3, 5, 2, dtype=F64))
    expected = (q.log_mass.exp() * (q.log_mass - p.log_mass)).sum((1, 2))
    torch.testing.assert_close(kl(q, p), expected, rtol=1e-12, atol=0)


# Monte Carlo


def test_kl_by_monte_carlo_is_unbiased():
    q = DiscretizedNormal(torch.zeros(20_000, 1, dtype=F64), 0.4, 17)
    p = DiscretizedLogistic(torch.zeros(1, 1, dtype=F64), torch.tensor(0.3, dtype=F64).log(), 17)
    values = grid(17, p.location)[:, None]
    one = DiscretizedNormal(torch.zeros(17, 1, dtype=F64), 0.4, 17).log_prob(values)
    within(kl(q, p), (one.exp() * (one - p.log_prob(values))).sum())


def test_kl_averages_over_its_samples():
    q, p = (DiscretizedNormal(torch.zeros(2000, 1), std, 17) for std in (0.4, 0.5))
    one, many = (kl(q, p, samples).var() for samples in (1, 16))
    assert many < one / 8


# Levels of mass 0


def uniform(*levels, impossible=-INF, dtype=F64):
    """A Categorical that is uniform over these levels of five."""
    logits = torch.full((1, 5, 1), impossible, dtype=dtype)
    logits[:, list(levels)] = 0
    return Categorical(logits)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("q, p, expected", [
    ((0, 1), (0, 1, 3), math.log(3 / 2)), ((2,), (0, 1, 2, 3, 4), math.log(5)), ((1, 4), (1, 4), 0.0),
    ((0, 1, 3), (0, 1), INF), ((0,), (1,), INF),
])  # fmt: skip
def test_kl_of_uniforms_is_the_log_of_the_share_or_infinite(q, p, expected, dtype):
    assert kl(uniform(*q, dtype=dtype), uniform(*p, dtype=dtype)).item() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    if expected < INF:  # masses that underflow, of q alone or of both
        low = uniform(*q, impossible=-2e3, dtype=dtype)
        for other in (uniform(*p, dtype=dtype), uniform(*p, impossible=-2e3, dtype=dtype)):
            assert kl(low, other).item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_impossible_levels_leave_the_gradient_of_the_kl_to_the_others():
    raw = torch.randn(2, 2, 3, 4, dtype=F64, requires_grad=True)
    gaps = torch.full((2, 2, 5, 4), -INF, dtype=F64)
    gaps[:, :, [0, 1, 3]] = raw.detach()
    gaps.requires_grad_()
    expected, gapped = (kl(*map(Categorical, logits)) for logits in (raw, gaps))
    torch.testing.assert_close(gapped, expected, rtol=1e-12, atol=0)
    (expected,), (gradient,) = torch.autograd.grad(expected.sum(), raw), torch.autograd.grad(gapped.sum(), gaps)
    torch.testing.assert_close(gradient[:, :, [0, 1, 3]], expected, rtol=1e-12, atol=1e-15)
    assert not gradient[:, :, [2, 4]].any()


@pytest.mark.parametrize("q, p, expected", [
    (INF, INF, 0.0), (-INF, -INF, 0.0), (INF, 0.0, math.log(2)), (-INF, 0.0, math.log(2)),
    (INF, -INF, INF), (0.0, INF, INF), (0.0, -INF, INF), (1e4, INF, 0.0),
])  # fmt: skip
def test_kl_of_certain_pixels(q, p, expected):
    assert kl(*(Bernoulli(torch.tensor([[logit]])) for logit in (q, p))).item() == pytest.approx(expected, rel=1e-6)


def test_kl_by_monte_carlo_with_a_point_mass():
    """0 on the same point, infinite where p has no mass."""
    q, p = Delta(torch.zeros(2, 1)), Delta(torch.tensor([[0.0], [1.0]]))
    assert kl(q, p).tolist() == [0.0, INF]


# Shapes


PAIRS = {
    "normal": lambda *shape: Normal(torch.randn(shape, dtype=F64), 0.5),
    "bernoulli": lambda *shape: Bernoulli(torch.randn(shape, dtype=F64)),
    "categorical": lambda batch, *event: Categorical(torch.randn(batch, 5, *event, dtype=F64)),
    "discretized normal": lambda *shape: DiscretizedNormal(torch.randn(shape, dtype=F64), 0.5, 5),
}


@pytest.mark.parametrize("kind", list(PAIRS))
@pytest.mark.parametrize("q, p", [
    ((4, 2), (1, 1)), ((4, 2), (4, 1)), ((4, 1), (4, 2)), ((4, 2), (4, 3)), ((4, 2), (4, 2, 2)), ((4, 2), (3, 2)),
])  # fmt: skip
def test_kl_of_different_shapes_is_refused_and_not_broadcast(kind, q, p):
    with pytest.raises(ValueError, match=r"must have the (same|DiscretizedNormal's) shape.* have a batch of 1\); got"):
        kl(PAIRS[kind](*q), PAIRS[kind](*p))


@pytest.mark.parametrize("kind", ["normal", "bernoulli", "categorical"])
def test_kl_takes_a_batch_of_one_on_either_side(kind):
    raw = torch.randn(2, 4, 5, 2, dtype=F64)
    build = {"normal": lambda x: Normal(x[:, 0], 0.5), "bernoulli": lambda x: Bernoulli(x[:, 0])}.get(kind, Categorical)
    many, one, repeated = (build(x) for x in (raw[0], raw[1, :1], raw[1, :1].repeat(4, 1, 1)))
    torch.testing.assert_close(kl(many, one), kl(many, repeated), rtol=1e-12, atol=0)
    torch.testing.assert_close(kl(one, many), kl(repeated, many), rtol=1e-12, atol=0)


# Refusals


WIDE, NARROW = Normal(torch.zeros(4, 2), 1.0), Normal(torch.zeros(1, 1), 1.0)
SAME = DiscretizedNormal(torch.zeros(2, 1), 0.4, 17)
TINY = Implicit(lambda generator: torch.zeros(3, 2, 2), "TinyGAN")


@pytest.mark.parametrize("call, error, message", [
    (lambda: kl(WIDE, NARROW), ValueError, r"got Normal of shape \(4, 2\) and Normal of shape \(1, 1\)"),
    (lambda: kl_per_dimension(WIDE, NARROW), ValueError, r"got Normal of shape \(4, 2\) and Normal of shape \(1, 1\)"),
    (lambda: kl(SAME, SAME, 0), ValueError, "samples must be at least 1; got 0"),
    (lambda: kl(normal(), TINY), TypeError, "TinyGAN"),
])  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
