"""log p(x, z) - log q(z|x) of one draw: its mean is the ELBO, the mean of its exp is p(x)."""

import math

import pytest
import torch
from torch import nn

from components.decoders import LogisticHead, MLPDecoder
from components.denoisers import Denoiser
from components.distributions import Normal
from components.ladders import dense_ladder
from components.schedules import BetaSchedule, LogSNRLinearSchedule, over
from hybrids import GAN, VAE, AdversarialDiffusion, Critic, Diffusion, HierarchicalVAE, StandardNormal
from hybrids.evaluation import importance_weighted
from hybrids.models.scoring import log_ratio

F64 = torch.float64
S = 0.5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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
    variance = torch.ones((), dtype=F64)
    for s, t in reversed(model.chain):
        p = model.denoiser.reverse(torch.ones(1, x.shape[1], dtype=F64), s, t)
        variance = p.mean[0, 0] ** 2 * variance + p.std.flatten()[0] ** 2
    last = model.last(torch.ones(1, x.shape[1], dtype=F64))
    variance = last.mean[0, 0] ** 2 * variance + last.std.flatten()[0] ** 2
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
    found, bound = model.log_weight(x), -model.bound(x).per_example
    error = math.sqrt((found.var() + bound.var()).item() / len(x))
    assert found.mean().item() == pytest.approx(bound.mean().item(), abs=4 * error)
    assert found.dtype == F64 and 4 * error < 0.2


@ON_EACH
def test_the_mean_of_its_exponential_is_p_of_x(model):
    """To four standard errors, and none of them wide."""
    x = X.expand(100_000, 2)
    ratio = (model.log_weight(x) - log_p(model, X)).exp()
    error = ratio.std().item() / math.sqrt(len(x))
    assert ratio.mean().item() == pytest.approx(1, abs=4 * error) and 4 * error < 0.05


def test_many_samples_come_to_log_p():
    model = chain(factor=0.9)
    found, _ = importance_weighted(model, X.expand(50, 2), 2000)
    bound = -model.bound(X.expand(4000, 2)).per_example.mean()
    exact = log_p(model, X).item()
    assert bound < exact - 3 and exact - 0.05 < found.mean().item() < exact + 4 * found.std().item() / 50**0.5


@ON_EACH
def test_a_chain_and_the_hierarchical_vae_that_it_is_weigh_alike(model):
    x = torch.randn(6, 2, dtype=F64)
    torch.manual_seed(1)
    one = model.log_weight(x)
    torch.manual_seed(1)
    torch.testing.assert_close(HierarchicalVAE.from_diffusion(model).log_weight(x), one, rtol=1e-10, atol=1e-10)


def test_a_ladder_s_weight_has_the_elbo_as_mean():
    """Of learned levels and a discrete likelihood, on labels too."""
    ladder = dense_ladder(3, levels=3, latent=2, width=16, num_classes=4)
    last = MLPDecoder(16, 3, LogisticHead(17), 16, num_classes=4)
    model = HierarchicalVAE(ladder.levels, last, ladder.encoder)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    x, cond = (torch.randint(17, (1, 3)) / 8 - 1).expand(20_000, 3), torch.ones(20_000, dtype=torch.long)
    with torch.no_grad():
        found, bound = model.log_weight(x, cond), -model.nll(x, cond).per_example
    error = math.sqrt((found.var() + bound.var()).item() / len(x))
    assert found.mean().item() == pytest.approx(bound.mean().item(), abs=4 * error)
    assert found.std() > 0.5 and importance_weighted(model, x[:50], 20, cond[:50])[0].mean() > bound.mean()


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


def test_near_gaussians_keep_their_digits_in_float32():
    """log p - log q at a distance of 1e-4 σ: the two log-densities, of -1000 each, would leave nothing of it."""
    mean = torch.randn(4, 1000)
    q, p = Normal(mean, 0.05), Normal(mean + 5e-6, 0.05)
    y = q.rsample()
    shift = (q.mean.double() - p.mean.double()) / q.std.double()
    away = (y.double() - q.mean.double()) / q.std.double()
    exact = -(shift * away + 0.5 * shift**2).sum(1)
    torch.testing.assert_close(log_ratio(p, q, y), exact, rtol=1e-8, atol=1e-10)
    assert ((p.log_prob(y) - q.log_prob(y)).double() - exact).abs().max() > 1e-5


def test_what_has_no_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="log_weight is of a chain of levels; this diffusion has timesteps=None"):
        chain(timesteps=None).log_weight(X)

    class Prior(nn.Module):
        nll = sample = None

    with pytest.raises(ValueError, match="prior must offer log_weight .*; Prior does not"):
        VAE(Encoder(), Decoder(), Prior()).log_weight(X)
    with pytest.raises(TypeError, match="model must offer log_weight .*; Linear does not"):
        importance_weighted(nn.Linear(2, 2), X, 4)
    for settings in ({"samples": 0}, {"samples": 1, "rows": 0}):
        with pytest.raises(ValueError, match="samples and rows must be at least 1"):
            importance_weighted(chain(), X, **settings)


def test_an_implicit_model_has_no_log_prob_and_says_what_to_use():
    gan = GAN(nn.Linear(2, 2), Critic(nn.Linear(2, 1), lambda *logits: None), 2)
    bare = AdversarialDiffusion.__new__(AdversarialDiffusion)
    for model in (gan, bare):
        name = type(model).__name__
        with pytest.raises(
            TypeError, match=f"{name} is an implicit model: .* score its samples instead, with coverage"
        ):
            model.log_prob(X)


def test_the_plain_prior_s_weight_is_its_density():
    prior, z = StandardNormal((2, 3)), torch.randn(5, 2, 3)
    for found in (prior.log_weight(z), prior.log_prob(z)):
        torch.testing.assert_close(found, -prior.nll(z).per_example)
