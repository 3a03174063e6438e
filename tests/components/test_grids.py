"""Bayes' rule on the grey levels of independent pixels, and what a network adds to it."""

import math

import numpy
import pytest
import torch
from torch import nn

import components.distributions.continuous
import hybrids.models.diffusion_bound
from components.backbones import MLP
from components.denoisers import Denoiser, GridBayes, GridBayesLast, GridLast, log_marginals
from components.distributions import Categorical, grid
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule, VarianceExplodingSchedule
from hybrids.data import digits
from hybrids.models import Diffusion

F64 = torch.float64
K = 17
P = torch.tensor([0.5] + [1 / 32] * 16, dtype=F64)  # 3 bits


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Constant(nn.Module):
    """The same K C numbers for every x_t."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x_t, t, cond=None):
        values = self.values if cond is None else self.values * cond
        return values.view(1, -1, *[1] * (x_t.ndim - 2)).expand(len(x_t), -1, *x_t.shape[2:])


def zero(levels=K, channels=1):
    return Constant(torch.zeros(levels * channels, dtype=F64))


def bayes(schedule=None, marginal=P, network=None):
    """One dimension with marginal P."""
    log_marginal = marginal.log()[:, None]
    return GridBayes(network or zero(len(marginal)), schedule or LogSNRLinearSchedule(8.0, -5.0), (1,), len(marginal),
                     log_marginal)  # fmt: skip


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_without_a_network_it_is_bayes_rule(t):
    """p(v|x_t) = p_v q(x_t|v)/Σ, and x̂ its mean."""
    schedule, x_t = LogSNRLinearSchedule(8.0, -5.0), torch.randn(9, 1, dtype=F64)
    values = grid(K, x_t)
    evidence = torch.stack([schedule.marginal(v.view(1, 1), t).log_prob(x_t) for v in values], 1) + P.log()
    found = bayes(schedule)
    torch.testing.assert_close(found.posterior(x_t, t).log_mass[..., 0], evidence.log_softmax(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found(x_t, t), evidence.softmax(1) @ values[:, None], rtol=1e-9, atol=1e-9)
    each = torch.full((9,), t, dtype=F64)
    torch.testing.assert_close(found(x_t, each), found(x_t, t), rtol=1e-12, atol=1e-12)


def test_a_network_adds_its_logits():
    """Channel v C + c is level v of channel c; here each channel is drawn to a level of its own."""
    logits = torch.zeros(4, 2, dtype=F64)
    logits[1, 0] = logits[3, 1] = 1e3
    model = GridBayes(Constant(logits.flatten()), LogSNRLinearSchedule(2.0, -5.0), (2, 3, 3), 4)
    x = model(torch.randn(5, 2, 3, 3, dtype=F64), 0.5)
    torch.testing.assert_close(x[:, 0], torch.full((5, 3, 3), -1 / 3, dtype=F64))
    torch.testing.assert_close(x[:, 1], torch.ones(5, 3, 3, dtype=F64))
    without = model(torch.randn(5, 2, 3, 3, dtype=F64), 0.5, 0.0)  # cond reaches the network
    assert (without - x).abs().max() > 0.1


def test_the_last_decoder_is_the_same_posterior_and_without_knowledge_the_plain_one():
    schedule, x_0 = LogSNRLinearSchedule(3.0, -5.0), torch.randn(9, 1, dtype=F64)
    model = bayes(schedule)
    last = GridBayesLast(model)
    assert isinstance(last(x_0), Categorical) and last.levels == K
    torch.testing.assert_close(last(x_0).log_mass, model.posterior(x_0, 0.0).log_mass, rtol=0, atol=0)
    even = GridBayesLast(GridBayes(zero(), schedule, (1,), K))
    torch.testing.assert_close(even(x_0).log_mass, GridLast(schedule, K)(x_0).log_mass, rtol=1e-10, atol=1e-10)


EPSILON = torch.linspace(-8, 8, 161, dtype=F64)
WEIGHT = torch.exp(-0.5 * EPSILON**2) / torch.exp(-0.5 * EPSILON**2).sum()


def bits(monkeypatch, model, marginal, nodes=80):
    """The exact mean of a continuous bound over x ~ marginal, ε and t, by quadrature; in bits."""
    u, share = (torch.tensor(values) / 2 for values in numpy.polynomial.legendre.leggauss(nodes))
    x = grid(len(marginal), EPSILON).repeat_interleave(len(EPSILON))[:, None]
    epsilon = EPSILON.repeat(len(marginal))[:, None]
    weight = (marginal[:, None] * WEIGHT).flatten()
    for module in (components.distributions.continuous, hybrids.models.diffusion_bound):
        monkeypatch.setattr(module, "randn_like", lambda *_, **__: epsilon)
    total = 0.0
    for time, each in zip(u + 0.5, share):
        at = time.expand(len(x))
        monkeypatch.setattr(hybrids.models.diffusion_bound, "low_discrepancy", lambda *_, at=at, **__: at)
        total += each.item() * (weight * model.nll(x).per_example).sum().item()
    return total / math.log(2)


@pytest.mark.parametrize("ends, left", [((8.0, -5.0), 2e-3), ((10.0, -6.0), 5e-4), ((3.0, -1.0), 0.06)])
def test_the_bound_on_independent_pixels_is_their_entropy_and_the_mismatch_of_the_prior(monkeypatch, ends, left):
    """H(x) + KL(q(x_1) ‖ N(0, 1)), whatever the ends of λ: the denoiser and the last decoder are both exact."""
    schedule = LogSNRLinearSchedule(*ends)
    model = bayes(schedule)
    diffusion = Diffusion(Denoiser(model, schedule, "sample"), (1,), last=GridBayesLast(model), levels=K)
    y = torch.linspace(-14, 14, 20_001, dtype=F64)[:, None]
    densities = torch.stack([schedule.marginal(v.view(1, 1), 1.0).log_prob(y) for v in grid(K, y)]) + P.log()[:, None]
    log_q, log_p = densities.logsumexp(0), -0.5 * (y[:, 0].square() + math.log(2 * math.pi))
    mismatch = torch.trapezoid(log_q.exp() * (log_q - log_p), y[:, 0]).item() / math.log(2)
    found = bits(monkeypatch, diffusion, P)
    assert found == pytest.approx(3 + mismatch, abs=2e-6)
    assert 0 < mismatch < left


def test_any_network_but_zero_costs_more(monkeypatch):
    schedule = LogSNRLinearSchedule(8.0, -5.0)
    model = bayes(schedule, network=Constant(torch.linspace(-0.3, 0.3, K, dtype=F64)))
    diffusion = Diffusion(Denoiser(model, schedule, "sample"), (1,), last=GridBayesLast(model), levels=K)
    assert bits(monkeypatch, diffusion, P) > 3.005


def test_digits_start_from_the_entropy_of_independent_pixels():
    """A zero network's bound on held-out digits is what their training histograms give them: within 4 s.e."""
    data = digits(8)
    x, held_out = data.decode(data.x), data.decode(data.held_out)
    log_p = log_marginals(x, K)
    schedule = LogSNRLinearSchedule(9.0, -6.0)
    model = GridBayes(zero(), schedule, (1, 8, 8), K, log_p)
    diffusion = Diffusion(Denoiser(model, schedule, "sample"), (1, 8, 8), last=GridBayesLast(model), levels=K)
    expected = -Categorical(log_p.expand(len(held_out), -1, -1, -1, -1)).log_prob(held_out)
    with torch.no_grad():
        gap = torch.cat([diffusion.nll(held_out).per_example - expected for _ in range(5)])
    assert gap.mean().abs() < 4 * gap.std() / math.sqrt(len(gap))
    assert expected.mean().item() / 64 / math.log(2) == pytest.approx(2.45, abs=0.03)


def test_marginals_are_shares():
    x = torch.tensor([[-1.0, 1.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, 1.0]])
    found = log_marginals(x, 3, pseudocount=0.5).exp()
    torch.testing.assert_close(found, torch.tensor([[3.5, 0.5], [0.5, 1.5], [1.5, 3.5]]) / 5.5)
    assert (log_marginals(x, 3, pseudocount=1e-9).exp()[1, 0]) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_at_both_ends_and_differentiable(dtype):
    schedule = LogSNRLinearSchedule(13.3, -10.0)
    model = GridBayes(MLP(2, 8, 1, out_features=2 * K), schedule, (2,), K).to(dtype)
    for t in (0.0, 1.0):
        x = model(3 * torch.randn(6, 2, dtype=dtype), torch.full((6,), t))
        x.sum().backward()
        assert x.isfinite().all() and x.dtype == dtype and x.abs().max() <= 1
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_marginals_are_saved():
    one, other = bayes(), GridBayes(zero(), LogSNRLinearSchedule(8.0, -5.0), (1,), K).double()
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.log_marginal, P.log()[:, None])


# Refusals


@pytest.mark.parametrize("x, off", [(0.5 + 1 / 64, "0.125"), (1.125, "1")])
def test_x_off_the_grid_is_refused(x, off):
    batch = torch.zeros(3, 2)
    batch[1, 0] = x
    with pytest.raises(
        ValueError, match=rf"x must be on the grid 2v/\(K-1\) - 1 of K = 17 .*example 1 is off by {off}"
    ):
        log_marginals(batch, K)


@pytest.mark.parametrize("schedule", [BetaSchedule(), CosineSchedule()], ids=["beta", "cosine"])
def test_a_schedule_without_noise_at_0_is_refused(schedule):
    with pytest.raises(ValueError, match=f"GridBayes needs noise at t = 0; {type(schedule).__name__} has σ = 0 there"):
        bayes(schedule)


@pytest.mark.parametrize("make, message", [
    (lambda: bayes(VarianceExplodingSchedule()), "GridBayes needs x_t as it is; VarianceExplodingSchedule explodes"),
    (lambda: GridBayes(zero(), LogSNRLinearSchedule(), (1,), 1), "levels must be at least 2; got 1"),
    (lambda: GridBayes(zero(), LogSNRLinearSchedule(), (2,), K, P.log()[:, None]),
     r"log_marginal must be \(17, 2\); got shape \(17, 1\)"),
    (lambda: GridBayes(zero(3), LogSNRLinearSchedule(), (1,), K)(torch.zeros(1, 1, dtype=F64), 0.5),
     "needs a backbone with 17 output channels, 17 levels for each of 1; got 3"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_denoiser_that_takes_it_for_another_prediction_is_refused():
    """What it returns is x̂; taken for ε̂ every loss would be finite, and wrong."""
    model = bayes()
    assert Denoiser(model, model.schedule, "sample").backbone is model
    with pytest.raises(ValueError, match="prediction 'sample'; got prediction 'epsilon'"):
        Denoiser(model, model.schedule)
