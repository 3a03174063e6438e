"""Likelihoods of a diffusion beyond its bound: by its paths, by its flow, and times that make the bound less noisy."""

import math

import pytest
import torch
from answers import F64, generator
from diffusions import S, exact
from torch import nn

from components.denoisers import Denoiser
from components.distributions import Normal
from components.samplers import ProbabilityFlow
from components.schedules import BetaSchedule, CosineSchedule, FlowSchedule, LearnedSchedule, LogSNRLinearSchedule, over
from hybrids import VAE, Diffusion, HierarchicalVAE
from hybrids.evaluation import importance_weighted

# log_weight: log p(x, x_t …) - log q(x_t …|x) of one draw, whose mean is minus the bound, and of whose exp p(x)


class Linear(nn.Module):
    """ε̂ of N(0, S²) times `factor`, so that at 1 it is the best answer; doubled for a learned variance."""

    def __init__(self, schedule, factor=1.0, between=None):
        super().__init__()
        self.schedule, self.factor, self.between = schedule, factor, between

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (over(c, x_t) for c in self.schedule.alpha_sigma(t))
        out = self.factor * sigma / (alpha**2 * S**2 + sigma**2) * x_t
        return out if self.between is None else torch.cat([out, torch.full_like(out, self.between)], dim=1)


def chain(schedule=None, variance="small", factor=1.0, timesteps=4, shape=2):
    schedule = schedule or LogSNRLinearSchedule(4.0, -4.0)
    between = 0.2 if variance == "learned_range" else None
    denoiser = Denoiser(Linear(schedule, factor, between), schedule, "epsilon", variance)
    return Diffusion(denoiser, shape, timesteps=timesteps)


def log_p(model, x):
    """The exact log p(x) of such a chain: every step is linear, so x is Gaussian. (B,)"""
    variance, one = torch.ones((), dtype=F64), torch.ones(1, x.shape[1], dtype=F64)
    for s, t in reversed(model.elbo.chain):
        p = model.denoiser.reverse(one, s, t)
        variance = p.mean[0, 0] ** 2 * variance + p.std.flatten()[0] ** 2
    p = model.elbo.decode(model.denoiser, one)
    variance = p.mean[0, 0] ** 2 * variance + p.std.flatten()[0] ** 2
    return Normal(torch.zeros_like(x), variance.sqrt()).log_prob(x)


CHAINS = {
    "small": chain(), "large": chain(variance="large"), "learned": chain(variance="learned_range"),
    "wrong": chain(factor=0.8), "clean start": chain(BetaSchedule("linear", 5, 0.05, 0.6), "large", timesteps=5),
}  # fmt: skip
ON_EACH = pytest.mark.parametrize("model", list(CHAINS.values()), ids=list(CHAINS))
X = torch.tensor([[0.3, -0.6]], dtype=F64)


@ON_EACH
def test_the_mean_of_a_chain_s_weight_is_minus_its_bound(model):
    x = X.expand(20_000, 2)
    weights, bound = model.log_weight(x), -model.bound(x).per_example
    error = math.sqrt((weights.var() + bound.var()).item() / len(x))
    assert weights.mean().item() == pytest.approx(bound.mean().item(), abs=4 * error)
    assert weights.dtype == F64 and 4 * error < 0.2


@ON_EACH
def test_the_mean_of_its_exponential_is_p_of_x(model):
    """To four standard errors, and none of them wide."""
    x = X.expand(100_000, 2)
    ratio = (model.log_weight(x) - log_p(model, X)).exp()
    error = ratio.std().item() / math.sqrt(len(x))
    assert ratio.mean().item() == pytest.approx(1, abs=4 * error) and 4 * error < 0.05


def test_many_samples_come_to_log_p():
    model = chain(factor=0.9)
    weights, _ = importance_weighted(model, X.expand(50, 2), 2000)
    bound = -model.bound(X.expand(4000, 2)).per_example.mean()
    exact = log_p(model, X).item()
    assert bound < exact - 3 and exact - 0.05 < weights.mean().item() < exact + 4 * weights.std().item() / 50**0.5


@ON_EACH
def test_a_chain_and_the_hierarchical_vae_that_it_is_weigh_alike(model):
    x = torch.randn(6, 2, dtype=F64)
    one, other = (each.log_weight(x, generator=generator()) for each in (model, HierarchicalVAE.from_diffusion(model)))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


class Encoder(nn.Module):
    def forward(self, x, cond=None):
        return Normal(0.5 * x, 0.6)


class Decoder(nn.Module):
    def forward(self, z, cond=None):
        return Normal(z, 0.4)


def test_a_vae_over_a_chain_has_p_of_x_too():
    """Nested: the prior's own paths are weighed along; z ~ N(0, v), x ~ N(0, v + .16)."""
    model, x = VAE(Encoder(), Decoder(), chain()), X.expand(200_000, 2)
    v = (-2 * log_p(chain(), torch.zeros(1, 2, dtype=F64)) / 2).exp() / (2 * math.pi)
    exact = Normal(torch.zeros_like(X), (v + 0.16).sqrt()).log_prob(X)
    w = model.log_weight(x)
    ratio = (w - exact).exp()
    error = ratio.std().item() / math.sqrt(len(x))
    assert ratio.mean().item() == pytest.approx(1, abs=4 * error) and 4 * error < 0.05
    bound = -model.bound(x).per_example
    spread = math.sqrt((w.var() + bound.var()).item() / len(x))
    assert w.mean().item() == pytest.approx(bound.mean().item(), abs=4 * spread)


# log_prob: by the probability flow


def gaussian(schedule=None, **settings):
    return exact(schedule or LogSNRLinearSchedule(13.3, -12.0), "sample", shape=2, **settings)


def test_the_flow_starts_where_the_network_was_trained():
    assert gaussian().flow().first == 0.0
    assert gaussian(BetaSchedule(), timesteps=1000).flow().first == 1e-3
    assert gaussian(FlowSchedule()).flow().first == 1e-5
    assert gaussian(FlowSchedule()).flow(first=1e-3).first == 1e-3


def test_log_prob_of_a_diffusion_is_the_density_with_its_first_noise():
    x, schedule = S * torch.randn(20, 2, dtype=F64), LogSNRLinearSchedule(5.0, -14.0)
    exact = Normal(torch.zeros_like(x), math.hypot(S, math.exp(-2.5))).log_prob(x)
    torch.testing.assert_close(gaussian(schedule).log_prob(x), exact, rtol=0, atol=2e-3)


def test_row_42_the_change_of_volume_is_that_of_a_bin():
    """log P = log p(y) + d log(2/(K-1)), at y within half a bin of x."""
    x, scored = torch.randint(17, (5, 2)).double() / 8 - 1, []
    model = gaussian(grey_levels=17)
    flow = model.flow()
    flow.log_prob = lambda y, cond, generator: scored.append(y) or torch.zeros(len(y), dtype=F64)
    log_p = model.log_prob(x, flow=flow)
    torch.testing.assert_close(log_p, torch.full((5,), 2 * math.log(2 / 16), dtype=F64), rtol=1e-12, atol=0)
    assert ((scored[0] - x).abs() <= 1 / 16).all() and (scored[0] != x).all()


# proposal: times that make the bound less noisy


class Cubic(nn.Module):
    """An answer that is wrong by more the noisier x_t is."""

    def forward(self, x_t, t, cond=None):
        return torch.tanh(x_t) * over(torch.as_tensor(t, dtype=x_t.dtype), x_t) ** 2


def test_proposed_times_leave_the_bound_and_quieten_it():
    """To four standard errors; and the variance of one draw of t falls tenfold on a cosine schedule."""
    schedule = CosineSchedule(12.0, -12.0)
    model = Diffusion(Denoiser(Cubic(), schedule, "v_prediction"), 2)
    x = S * torch.randn(1, 2, dtype=F64).expand(40_000, 2)
    times = model.proposal(x[:1000])
    t, share = times(40_000, schedule)
    assert share.mean().item() == pytest.approx(1, abs=5e-3)  # ∫ p w dt = 1, in strata
    one, other = (model.nll(x, times=proposal)["diffusion"][1].double() for proposal in (None, times))
    error = math.sqrt((one.var() + other.var()).item() / len(x))
    assert abs(one.mean() - other.mean()) < 4 * error
    assert other.var() < 0.5 * one.var()
    assert t.std() < 0.9 * math.sqrt(1 / 12) or abs(t.mean() - 0.5) > 0.02  # it is another density of t


def test_their_weights_make_a_mean_over_uniform_t_of_any_function():
    schedule = CosineSchedule(9.0, -9.0)
    times = Diffusion(Denoiser(Cubic(), schedule, "v_prediction"), 2).proposal(torch.randn(500, 2, dtype=F64), bins=20)
    t, share = times(100_000, schedule)
    for power in (0, 1, 5):
        assert (share * t**power).mean().item() == pytest.approx(1 / (power + 1), rel=2e-3)
    assert share.max() / share.min() > 2


def test_a_proposal_leaves_a_learned_schedule_and_the_model_alone():
    model = Diffusion(Denoiser(Cubic(), LearnedSchedule(), "v_prediction"), 2)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    times = model.proposal(torch.randn(100, 2))
    assert not times.squares.requires_grad and model.state_dict().keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


# Refusals


@pytest.mark.parametrize("ask, message", [
    (lambda x: chain(timesteps=None).log_weight(x),
     "log_weight is of a chain of levels; this diffusion has timesteps=None"),
    (lambda x: gaussian(grey_levels=17).log_prob(x, dequantization="triangular"),
     "dequantization must be 'uniform' or 'encoder'; got 'triangular'"),
    (lambda x: gaussian(grey_levels=17).log_prob(
        x, flow=ProbabilityFlow(gaussian().denoiser, 0.1), dequantization="encoder"),
     "flow must start at the diffusion's first level .* got first=0.1, not 0"),
    (lambda x: gaussian(grey_levels=17).log_prob(x + 0.1),
     r"x must be on the grid 2v/\(K-1\) - 1 of K = 17 levels in \[-1, 1\]; example 0"),
])  # fmt: skip
def test_what_has_no_likelihood_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(torch.zeros(2, 2))
