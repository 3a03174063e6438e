import math
import re
from functools import partial

import pytest
import torch
from answers import F64, generator
from diffusions import EPSILON4, X4, exact, gauss_legendre, given
from torch import nn

from components.bottlenecks import Quantized
from components.denoisers import Denoiser
from components.distributions import Delta, Normal, kl, kl_per_dimension
from components.schedules import LogSNRLinearSchedule
from hybrids.critic import Critic
from hybrids.models import GAN, Diffusion, Model, StandardNormal, rate, rates
from hybrids.terms import Terms


def posterior(batch=6, latent=(4,)):
    mean = torch.randn(batch, *latent, dtype=F64, requires_grad=True)
    log_std = (0.3 * torch.randn(batch, *latent, dtype=F64)).requires_grad_()
    return Normal(mean, log_std.exp()), (mean, log_std)


class Scored(nn.Module):
    """A standard normal that is not a StandardNormal: a prior without closed form."""

    def nll(self, x, cond=None):
        self.cond = cond
        return Terms(nll=-Normal(torch.zeros_like(x), 1.0).log_prob(x))

    def sample(self, n, cond=None, generator=None):
        return torch.randn(n, 4)


# StandardNormal


def test_the_standard_normal_is_a_model_whose_nll_is_exact():
    prior, x = StandardNormal((2, 3)), torch.randn(5, 2, 3, dtype=F64)
    expected = 0.5 * (x.square() + math.log(2 * math.pi)).sum((1, 2))
    for terms in (prior.nll(x), prior.loss(x), prior.bound(x)):
        torch.testing.assert_close(terms.per_example, expected, rtol=1e-12, atol=0)
    assert isinstance(prior, Model) and not prior.state_dict() and not list(prior.parameters())


def test_its_weight_is_its_density():
    prior, z = StandardNormal((2, 3)), torch.randn(5, 2, 3)
    for log_p in (prior.log_weight(z), prior.log_prob(z)):
        torch.testing.assert_close(log_p, -prior.nll(z).per_example)


def test_the_standard_normal_s_samples():
    prior = StandardNormal(3)
    one, again = (prior.sample(5, generator=generator()) for _ in range(2))
    assert one.shape == (5, 3) and torch.equal(one, again)
    x = prior.sample(20_000)
    assert x.mean().abs() < 4 / math.sqrt(60_000) and (x.var() - 1).abs() < 4 * math.sqrt(2 / 60_000)


def test_models_that_score_are_models_and_a_gan_is_not():
    assert isinstance(Diffusion(Denoiser(nn.Identity(), LogSNRLinearSchedule()), 2), Model)
    assert not isinstance(GAN(nn.Identity(), Critic(nn.Identity()), 2), Model)


# The closed form


def test_the_rate_against_the_standard_normal_is_the_kl():
    q, _ = posterior(latent=(2, 3, 3))
    terms = rate(q, q.rsample(), StandardNormal((2, 3, 3)))
    assert list(terms) == ["rate"] and terms["rate"][0] == 1.0
    expected = kl(q, Normal(torch.zeros(1, 2, 3, 3, dtype=F64), 1.0))
    torch.testing.assert_close(terms.per_example, expected, rtol=1e-12, atol=0)


def test_the_number_of_one_dimension():
    q = Normal(torch.tensor([[0.7]], dtype=F64), 0.4)
    assert rate(q, q.rsample(), StandardNormal(1)).total.item() == pytest.approx(0.741291, rel=1e-6)


def test_the_rate_runs_in_full_precision_under_autocast():
    q = Normal(torch.randn(6, 4), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rate(q, q.mean, StandardNormal(4))
    assert inside.total.dtype == torch.float32
    torch.testing.assert_close(inside.total, rate(q, q.mean, StandardNormal(4)).total, rtol=0, atol=0)


# Free bits


@pytest.mark.parametrize("free_bits", [0.05, 0.5, 2.0])
def test_free_bits_are_the_larger_of_the_two_in_each_dimension(free_bits):
    q, _ = posterior()
    found = rate(q, q.rsample(), StandardNormal(4), free_bits).total
    each = kl_per_dimension(q, Normal(torch.zeros(1, 4, dtype=F64), 1.0)).mean(0)
    assert found.item() == pytest.approx(each.clamp(min=free_bits).sum().item(), rel=1e-12)


def test_free_bits_stop_the_gradient_of_the_dimensions_below_and_of_no_other():
    q, parameters = posterior()
    each = kl_per_dimension(q, Normal(torch.zeros(1, 4, dtype=F64), 1.0)).mean(0).detach()
    free_bits = each.sort().values[1:3].mean().item()  # two below, two above
    free = torch.autograd.grad(rate(q, q.mean, StandardNormal(4), free_bits).total, parameters, retain_graph=True)
    full = torch.autograd.grad(rate(q, q.mean, StandardNormal(4)).total, parameters)
    for with_free, without in zip(free, full):
        assert not with_free[:, each < free_bits].any()
        torch.testing.assert_close(with_free[:, each > free_bits], without[:, each > free_bits], rtol=1e-12, atol=0)


def test_trap_31_free_bits_look_at_the_batch_of_all_ranks(monkeypatch):
    q, (mean, _) = posterior()
    monkeypatch.setattr(rates, "mean_over_ranks", lambda x: torch.zeros_like(x))  # the other ranks' are far below
    terms = rate(q, q.mean, StandardNormal(4), 0.1)
    assert terms.total.item() == pytest.approx(0.4) and not torch.autograd.grad(terms.total, mean)[0].any()


# Any other prior


def test_another_prior_is_scored_and_the_entropy_taken_off():
    q, _ = posterior()
    z, prior = q.rsample(), Scored()
    terms = rate(q, z, prior, cond=torch.arange(6))
    assert list(terms) == ["prior.nll", "posterior_entropy"] and terms["posterior_entropy"][0] == -1.0
    torch.testing.assert_close(terms.per_example, prior.nll(z).per_example - q.entropy(), rtol=1e-12, atol=0)
    rate(q, z, prior, cond=torch.arange(6))
    assert prior.cond.tolist() == list(range(6))


def test_its_mean_over_z_is_the_closed_form():
    mean, std = torch.randn(1, 4, dtype=F64), 0.5 + torch.rand(1, 4, dtype=F64)
    q = Normal(mean.expand(20_000, 4), std.expand(20_000, 4))
    each = rate(q, q.rsample(), Scored()).per_example
    expected = rate(q, q.mean, StandardNormal(4)).total
    assert (each.mean() - expected).abs() < 4 * each.std() / math.sqrt(20_000)


def test_its_gradient_reaches_q_through_z():
    q, parameters = posterior()
    gradients = torch.autograd.grad(rate(q, q.rsample(), Scored()).total, parameters)
    assert all(gradient.any() for gradient in gradients)


def test_a_point_posterior_pays_for_its_place_alone():
    z = torch.randn(6, 4)
    terms = rate(Delta(z), z, Scored())
    torch.testing.assert_close(terms.per_example, Scored().nll(z).per_example)


@pytest.mark.parametrize("mean, std", [(0.7, 0.4), (0.0, 1.0), (-1.5, 0.1)])
def test_the_rate_under_an_exact_diffusion_prior_is_the_kl_in_closed_form(mean, std):
    """Value and gradients, exactly: four points for (z, ε), Gauss-Legendre in t. The finite range leaves 1e-5."""
    u, share = gauss_legendre(200)
    prior = exact(s=1.0)
    # The prior's own nll, at given times.
    times = given(prior, EPSILON4.repeat(200, 1), u.repeat_interleave(4))
    prior.nll = partial(prior.nll, times=times)
    m, s = torch.tensor(mean, dtype=F64, requires_grad=True), torch.tensor(std, dtype=F64, requires_grad=True)
    q = Normal(m.expand(800, 1), s.expand(800, 1))
    terms = rate(q, q.mean + q.std * X4.repeat(200, 1), prior)
    assert list(terms) == ["prior.prior", "prior.reconstruction", "prior.diffusion", "posterior_entropy"]
    total = (share * terms.per_example.view(200, 4).mean(1)).sum()
    assert total.item() == pytest.approx(0.5 * (mean**2 + std**2 - 1 - math.log(std**2)), abs=2e-5)
    on_mean, on_std = torch.autograd.grad(total, (m, s))
    assert on_mean.item() == pytest.approx(mean, abs=2e-5) and on_std.item() == pytest.approx(std - 1 / std, abs=2e-5)


# Refusals


@pytest.mark.parametrize("shape", [1, 8, (4, 1)])
def test_a_prior_of_another_shape_is_refused(shape):
    """StandardNormal(1) would be broadcast over all dimensions, without a word."""
    q, _ = posterior()
    for prior in (StandardNormal(shape), exact(shape=shape)):
        message = f"prior must be over z of shape (4,); {type(prior).__name__} is over {prior.shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            rate(q, q.mean, prior)


@pytest.mark.parametrize("q, prior, message", [
    (Normal(torch.zeros(6, 4), 1.0), Scored(),
     "free_bits needs a KL in closed form: StandardNormal as prior; got Scored"),
    (Quantized(torch.zeros(6, 4), torch.zeros(6, dtype=torch.long), {}, torch.ones(())), StandardNormal(4),
     "free_bits needs a KL in closed form; got codes of a bottleneck and 0.1"),
])  # fmt: skip
def test_free_bits_without_a_closed_form_are_refused(q, prior, message):
    with pytest.raises(ValueError, match=message):
        rate(q, torch.zeros(6, 4), prior, 0.1)
