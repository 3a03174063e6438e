"""Bayes' rule on the grey levels of independent pixels, and what a network adds to it."""

import math
import re

import pytest
import torch
from answers import F64
from diffusions import gauss_legendre, given_noise
from torch import nn

from components.backbones import MLP
from components.denoisers import Denoiser, GreyLevels, PosteriorReconstruction, log_marginals
from components.distributions import Categorical, grid
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule, VarianceExplodingSchedule
from hybrids.data import digits
from hybrids.models import Diffusion

K = 17
P = torch.tensor([0.5] + [1 / 32] * 16, dtype=F64)  # 3 bits


class Logits(nn.Module):
    """The same K C numbers for every x_t; with a cond, that many times them."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x_t, t, cond=None):
        values = self.values if cond is None else self.values * cond
        return values.view(1, -1, *[1] * (x_t.ndim - 2)).expand(len(x_t), -1, *x_t.shape[2:])


def zero(grey_levels=K, channels=1):
    return Logits(torch.zeros(grey_levels * channels, dtype=F64))


def bayes(schedule=None, network=None):
    """The denoiser of one dimension with marginal P."""
    return Denoiser(
        network or zero(), schedule or LogSNRLinearSchedule(8.0, -5.0), GreyLevels((1,), K, P.log()[:, None])
    )


# The posterior


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_without_a_network_it_is_bayes_rule(t):
    """p(v|x_t) = p_v q(x_t|v)/Σ, and x̂ its mean."""
    schedule, x_t = LogSNRLinearSchedule(8.0, -5.0), torch.randn(9, 1, dtype=F64)
    values = grid(K, x_t)
    evidence = torch.stack([schedule.marginal(v.view(1, 1), t).log_prob(x_t) for v in values], 1) + P.log()
    estimate = bayes(schedule)(x_t, t)
    torch.testing.assert_close(estimate.posterior.log_mass[..., 0], evidence.log_softmax(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.mean, evidence.softmax(1) @ values[:, None], rtol=1e-9, atol=1e-9)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha * estimate.mean + sigma * estimate.epsilon, x_t)
    each = bayes(schedule)(x_t, torch.full((9,), t, dtype=F64))
    torch.testing.assert_close(each.mean, estimate.mean, rtol=1e-12, atol=1e-12)


def test_a_network_adds_its_logits():
    """Channel v C + c is level v of channel c; here each channel is drawn to a level of its own."""
    logits = torch.zeros(4, 2, dtype=F64)
    logits[1, 0] = logits[3, 1] = 1e3
    model = Denoiser(Logits(logits.flatten()), LogSNRLinearSchedule(2.0, -5.0), GreyLevels((2, 3, 3), 4))
    x = model(torch.randn(5, 2, 3, 3, dtype=F64), 0.5).mean
    torch.testing.assert_close(x[:, 0], torch.full((5, 3, 3), -1 / 3, dtype=F64))
    torch.testing.assert_close(x[:, 1], torch.ones(5, 3, 3, dtype=F64))
    without = model(torch.randn(5, 2, 3, 3, dtype=F64), 0.5, 0.0).mean  # cond reaches the network
    assert (without - x).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_at_both_ends_and_differentiable(dtype):
    backbone, schedule = MLP(2, 8, 1, out_features=2 * K), LogSNRLinearSchedule(13.3, -10.0)
    model = Denoiser(backbone, schedule, GreyLevels((2,), K)).to(dtype)
    for t in (0.0, 1.0):
        x = model(3 * torch.randn(6, 2, dtype=dtype), torch.full((6,), t)).mean
        x.sum().backward()
        assert x.isfinite().all() and x.dtype == dtype and x.abs().max() <= 1
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_marginals_are_saved():
    one, other = bayes(), Denoiser(zero(), LogSNRLinearSchedule(8.0, -5.0), GreyLevels((1,), K)).double()
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.prediction.log_marginal, P.log()[:, None])


def test_a_learned_variance_and_hidden_features_go_with_it():
    backbone = MLP(2, 8, 1, out_features=2 * K + 2)
    model = Denoiser(backbone, LogSNRLinearSchedule(8.0, -5.0), GreyLevels((2,), K), "learned_range")
    estimate = model(torch.randn(6, 2), 0.5, hidden=("block_0",))
    assert estimate.interpolation.shape == (6, 2) and estimate.hidden["block_0"].shape == (6, 8)
    assert model.reverse(torch.randn(6, 2), 0.4, 0.5).mean.abs().max() < 10


# Its bound


EPSILON = torch.linspace(-8, 8, 161, dtype=F64)


def bits(model, nodes=80):
    """The exact mean of a continuous bound over x ~ P, ε and t, by quadrature; in bits."""
    bound = Diffusion(model, (1,)).elbo
    assert isinstance(bound.reconstruction, PosteriorReconstruction) and bound.grey_levels == K
    weight = torch.exp(-0.5 * EPSILON**2)
    weight = (P[:, None] * weight / weight.sum()).flatten()
    x = grid(K, weight).repeat_interleave(len(EPSILON))[:, None]
    given_noise(model, EPSILON.repeat(K)[:, None])
    per_example = bound.ends(model, x).per_example
    for t, share in zip(*gauss_legendre(nodes)):
        per_example = per_example + share * bound.at(model, x, t.expand(len(x)))
    return (weight * per_example).sum().item() / math.log(2)


@pytest.mark.parametrize("ends, left", [((8.0, -5.0), 2e-3), ((10.0, -6.0), 5e-4), ((3.0, -1.0), 0.06)])
def test_the_bound_on_independent_pixels_is_their_entropy_and_the_mismatch_of_the_prior(ends, left):
    """H(x) + KL(q(x_1) ‖ N(0, 1)), whatever the ends of λ: the denoiser and the reconstruction are both exact."""
    schedule = LogSNRLinearSchedule(*ends)
    y = torch.linspace(-14, 14, 20_001, dtype=F64)[:, None]
    densities = torch.stack([schedule.marginal(v.view(1, 1), 1.0).log_prob(y) for v in grid(K, y)]) + P.log()[:, None]
    log_q, log_p = densities.logsumexp(0), -0.5 * (y[:, 0].square() + math.log(2 * math.pi))
    mismatch = torch.trapezoid(log_q.exp() * (log_q - log_p), y[:, 0]).item() / math.log(2)
    assert bits(bayes(schedule)) == pytest.approx(3 + mismatch, abs=2e-6)
    assert 0 < mismatch < left


def test_any_network_but_zero_costs_more():
    assert bits(bayes(network=Logits(torch.linspace(-0.3, 0.3, K, dtype=F64)))) > 3.005


def test_digits_start_from_the_entropy_of_independent_pixels():
    """A zero network's bound on held-out digits is what their training histograms give them: within 4 s.e."""
    data = digits(8)
    x, held_out = data.decode(data.x), data.decode(data.held_out)
    log_p = log_marginals(x, K)
    model = Denoiser(zero(), LogSNRLinearSchedule(9.0, -6.0), GreyLevels((1, 8, 8), K, log_p))
    diffusion = Diffusion(model, (1, 8, 8))
    expected = -Categorical(log_p.expand(len(held_out), -1, -1, -1, -1)).log_prob(held_out)
    with torch.no_grad():
        gap = torch.cat([diffusion.nll(held_out).per_example - expected for _ in range(5)])
    assert gap.mean().abs() < 4 * gap.std() / math.sqrt(len(gap))
    assert expected.mean().item() / 64 / math.log(2) == pytest.approx(2.45, abs=0.03)


# Marginals


def test_marginals_are_shares():
    x = torch.tensor([[-1.0, 1.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    shares = log_marginals(x, 3, pseudocount=0.5).exp()
    torch.testing.assert_close(shares, torch.tensor([[3.5, 0.5], [0.5, 1.5], [1.5, 3.5]]) / 5.5)
    assert log_marginals(x, 3, pseudocount=1e-9).exp()[1, 0] < 1e-8


# Refusals


def off_the_grid(value):
    batch = torch.zeros(3, 2)
    batch[1, 0] = value
    return batch


def with_grey_levels(schedule):
    return Denoiser(zero(), schedule, GreyLevels((1,), K))


@pytest.mark.parametrize("call, message", [
    *[(lambda schedule=schedule: with_grey_levels(schedule),
       f"GreyLevels needs noise at t = 0; {type(schedule).__name__} has σ = 0 there")
      for schedule in (BetaSchedule(), CosineSchedule())],
    (lambda: with_grey_levels(VarianceExplodingSchedule()),
     "GreyLevels needs x_t as it is; VarianceExplodingSchedule explodes"),
    (lambda: GreyLevels((1,), 1), "grey_levels must be at least 2; got 1"),
    (lambda: GreyLevels((2,), K, P.log()[:, None]), "log_marginal must be (17, 2); got shape (17, 1)"),
    (lambda: Denoiser(zero(3), LogSNRLinearSchedule(), GreyLevels((1,), K))(torch.zeros(1, 1), 0.5),
     "must return shape (1, 17) for x_t of shape (1, 1) with prediction 'grey_levels'; got shape (1, 3)"),
    *[(lambda value=value: log_marginals(off_the_grid(value), K),
       "x must be on the grid 2v/(K-1) - 1 of K = 17 levels in [-1, 1]; example 1, which spans 0 to "
       f"{value}, is off by {off} of a level") for value, off in ((0.5 + 1 / 64, "0.125"), (1.125, "1"))],
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
