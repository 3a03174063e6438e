"""Likelihood heads: the layout of their channels, types, limits, gradients."""

import math

import pytest
import torch

from components.decoders import (
    BernoulliHead,
    CategoricalHead,
    DeltaHead,
    Head,
    LogisticHead,
    LogisticMixtureHead,
    NormalHead,
)

HEADS = [
    DeltaHead(), DeltaHead(bounded=False), NormalHead(), NormalHead(0.1), NormalHead("shared"), NormalHead("learned"),
    LogisticHead(17), CategoricalHead(17), BernoulliHead(), LogisticMixtureHead(17),
]  # fmt: skip
NAMES = ["delta", "unbounded", "normal", "fixed", "shared", "learned", "logistic", "categorical", "bernoulli",
         "mixture"]  # fmt: skip


@pytest.mark.parametrize("event", [(3, 4, 4), (5,)], ids=["image", "vector"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS, ids=NAMES)
def test_shapes_and_float32(head, dtype, event):
    raw = torch.randn(2, head.factor * event[0], *event[1:]).to(dtype)
    p = head(raw)
    for value in (p.mean, p.rsample()):
        assert value.shape == (2, *event) and value.dtype == torch.float32
    y = torch.randint(0, 17, (2, *event)) / 8 - 1.0
    log_prob = p.log_prob(y)
    assert log_prob.shape == (2,) and log_prob.dtype == torch.float32
    assert not log_prob.isnan().any()


@pytest.mark.parametrize("head", [HEADS[i] for i in range(2, 10)], ids=NAMES[2:])
def test_likelihood_reaches_raw_and_parameters(head):
    head.zero_grad()
    raw = torch.randn(2, head.factor * 3, 4, 4, requires_grad=True)
    head(raw).log_prob(torch.randint(0, 2, (2, 3, 4, 4)) * 2.0 - 1).sum().backward()
    assert raw.grad.isfinite().all() and (raw.grad != 0).all()
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any()


def test_delta_is_bounded_by_tanh():
    raw = torch.tensor([[-20.0, 0.5, 20.0]])
    assert torch.equal(DeltaHead()(raw).mean, raw.tanh())
    assert torch.equal(DeltaHead(bounded=False)(raw).mean, raw)


def test_normal_fixed_and_shared_are_the_density():
    raw, y = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    shared = NormalHead("shared")
    assert [p.shape for p in shared.parameters()] == [()]
    assert shared(raw).std.mean().item() == pytest.approx(1.0, abs=0.06)
    with torch.no_grad():
        shared.log_sigma.fill_(math.log(0.3))
    assert [len(list(NormalHead(s).parameters())) for s in (0.3, "learned")] == [0, 0]
    for head, tolerance in ((NormalHead(0.3), 1e-5), (shared, 0.05)):
        expected = torch.distributions.Normal(raw, 0.3).log_prob(y).flatten(1).sum(1)
        torch.testing.assert_close(head(raw).log_prob(y), expected, atol=1e-4, rtol=tolerance)
        assert torch.equal(head(raw).mean, raw)


def test_normal_learned_reads_means_then_log_sigmas():
    mean, log_sigma = torch.randn(2, 3, 2, 2), torch.rand(2, 3, 2, 2) * 2 - 3
    p = NormalHead("learned", limits=(-20.0, 20.0))(torch.cat([mean, log_sigma], dim=1))
    assert torch.equal(p.mean, mean)
    torch.testing.assert_close(p.std, log_sigma.exp(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sigma", ["learned", "shared"])
def test_normal_log_sigma_stays_within_limits(sigma):
    head = NormalHead(sigma, limits=(-2.0, 1.0))
    for extreme, limit in ((-1e4, -2.0), (1e4, 1.0)):
        if sigma == "shared":
            head.log_sigma.data.fill_(extreme)
        std = head(torch.full((2, 2), extreme)).std
        torch.testing.assert_close(std.log(), torch.full_like(std, limit))


@pytest.mark.parametrize("grey_levels", [2, 5])
def test_discrete_heads_sum_to_one(grey_levels):
    values = torch.linspace(-1, 1, grey_levels)
    for head in (LogisticHead(grey_levels), CategoricalHead(grey_levels), LogisticMixtureHead(grey_levels, 3)):
        p = head(torch.randn(4, head.factor, 1, 1))
        mass = torch.stack([p.log_prob(v.expand(4, 1, 1, 1)).exp() for v in values])
        torch.testing.assert_close(mass.sum(0), torch.ones(4), atol=1e-5, rtol=1e-5)


def test_logistic_reads_means_then_log_scales():
    mean = torch.tensor([-0.5, 0.0, 0.5]).view(1, 3, 1, 1)
    p = LogisticHead(5)(torch.cat([mean, torch.full_like(mean, -50.0)], dim=1))
    torch.testing.assert_close(p.log_scale, torch.full_like(mean, -7.0))
    assert torch.equal(p.rsample(), mean)
    torch.testing.assert_close(p.mean, mean, atol=1e-3, rtol=0)


def test_mixture_channel_layout():
    grey_levels, components, channels = 5, 2, 3
    raw = torch.zeros(1, 3, components, channels, 1, 1)
    raw[0, 0, 1] = 50.0  # the second component
    raw[0, 1, 1] = torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1)
    raw[0, 2] = -50.0
    p = LogisticMixtureHead(grey_levels, components)(raw.view(1, -1, 1, 1))
    torch.testing.assert_close(p.mean.flatten(), torch.tensor([-0.5, 0.0, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(p.components.log_scale, torch.full((1, 2, 3, 1, 1), -7.0))


def test_mixture_of_one_is_the_logistic():
    raw, y = torch.randn(2, 6, 4, 4), torch.randint(0, 17, (2, 3, 4, 4)) / 8 - 1.0
    mixture = LogisticMixtureHead(17, 1)(torch.cat([torch.randn(2, 3, 4, 4), raw], dim=1))
    torch.testing.assert_close(mixture.log_prob(y), LogisticHead(17)(raw).log_prob(y))


def test_categorical_channel_layout():
    grey_levels, channels = 5, 3
    raw = torch.zeros(1, grey_levels * channels, 1, 1)
    for c, k in enumerate((0, 3, 4)):
        raw[0, k * channels + c] = 50.0
    torch.testing.assert_close(CategoricalHead(grey_levels)(raw).mean.flatten(), torch.tensor([-1.0, 0.5, 1.0]))


def test_bernoulli_mean():
    raw = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(BernoulliHead()(raw).mean, 2 * raw.sigmoid() - 1)


@pytest.mark.parametrize("build, message", [
    (lambda: NormalHead(0.0), "sigma must be a positive number, 'shared' or 'learned'; got 0.0"),
    (lambda: NormalHead(math.inf), "got inf"),
    (lambda: NormalHead("learnt"), "got 'learnt'"),
    (lambda: NormalHead("learned", limits=(1.0, 1.0)), r"limits must be .* got \(1.0, 1.0\)"),
    (lambda: LogisticHead(1), "grey_levels must be at least 2; got 1"),
    (lambda: LogisticMixtureHead(1), "grey_levels must be at least 2; got 1"),
    (lambda: LogisticMixtureHead(17, 0), "components must be at least 1; got 0"),
    (lambda: CategoricalHead(1), "grey_levels must be at least 2; got 1"),
    (lambda: Head()(torch.zeros(1)), r"Head is abstract: define forward\(raw\), which returns a Distribution"),
])  # fmt: skip
def test_refusals(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()
