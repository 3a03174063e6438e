import math

import pytest
import torch
from answers import F64, generator
from diffusions import exact
from torch import nn

from components.backbones import MLP
from components.decoders import CategoricalHead, DeltaHead, LogisticHead, MLPDecoder, NormalHead
from components.denoisers import Denoiser
from components.distributions import Implicit
from components.encoders import MLPEncoder
from components.losses import non_saturating
from components.schedules import LogSNRLinearSchedule
from hybrids.critic import Critic
from hybrids.models import GAN, VAE, Diffusion, Model, StandardNormal

# What the settings do


def small(**settings):
    encoder, decoder = MLPEncoder(6, 3, width=16, depth=2), MLPDecoder(3, 6, NormalHead(0.5), width=16, depth=2)
    for module in (encoder, decoder):
        for p in module.parameters():
            nn.init.normal_(p, std=0.2)
    return VAE(encoder, decoder, settings.pop("prior", StandardNormal(3)), **settings)


def test_beta_weighs_the_rate_in_the_loss_and_nowhere_else():
    vae, x = small(beta=4.0), torch.randn(8, 6)
    loss, nll = vae.loss(x, generator=generator()), vae.nll(x, generator=generator())
    assert loss["rate"][0] == 4.0 and nll["rate"][0] == 1.0 and loss["distortion"][0] == 1.0
    assert loss.total.item() == pytest.approx(
        nll["distortion"][1].mean().item() + 4 * nll["rate"][1].mean().item(), rel=1e-6
    )


def test_free_bits_are_in_the_loss_and_nowhere_else():
    vae, x = small(free_bits=5.0), torch.randn(8, 6)
    assert vae.loss(x)["rate"][1].tolist() == [15.0] * 8
    assert vae.nll(x)["rate"][1].mean() < 15


def test_beta_0_is_an_autoencoder():
    terms = small(beta=0.0).loss(torch.randn(8, 6))
    assert terms["rate"][0] == 0 and not terms["rate"][1].requires_grad and terms.total.requires_grad


def test_forward_returns_posterior_draw_and_likelihood():
    vae, x = small(), torch.randn(8, 6)
    q, z, p = vae(x)
    assert q.mean.shape == z.shape == (8, 3) and p.mean.shape == (8, 6)
    torch.testing.assert_close(vae.nelbo(x, q, z, p)["distortion"][1], -p.log_prob(x))


def test_it_is_a_model_and_a_prior():
    inner = small()
    outer = VAE(MLPEncoder(4, 6, width=8, depth=1), MLPDecoder(6, 4, NormalHead(0.5), width=8, depth=1), inner)
    assert isinstance(inner, Model) and isinstance(outer, Model)
    terms = outer.nll(torch.randn(8, 4))
    assert list(terms) == ["distortion", "prior.distortion", "prior.rate", "posterior_entropy"]
    assert outer.sample(3).shape == (3, 4)


def test_samples_and_reconstructions_are_means():
    vae, x = small(), torch.randn(8, 6)
    torch.testing.assert_close(vae.reconstruct(x), vae.decoder(vae.encoder(x).mean).mean)
    one, again = (vae.sample(5, generator=generator()) for _ in range(2))
    assert one.shape == (5, 6) and torch.equal(one, again) and not one.requires_grad
    z = torch.randn(5, 3, generator=generator())
    torch.testing.assert_close(one, vae.decoder(z).mean.detach())


def test_an_implicit_decoder_is_drawn_from():
    class Drawn(nn.Module):
        def forward(self, z, cond=None):
            return Implicit(lambda generator: z.repeat(1, 2), "Drawn")

    vae = VAE(MLPEncoder(6, 3, width=8, depth=1), Drawn(), StandardNormal(3))
    assert vae.sample(4).shape == (4, 6) and vae.reconstruct(torch.randn(2, 6)).shape == (2, 6)
    with pytest.raises(TypeError, match="Drawn is an implicit distribution"):
        vae.nll(torch.randn(2, 6))


@pytest.mark.parametrize(
    "head, grey_levels", [(NormalHead(0.5), None), (CategoricalHead(17), 17), (LogisticHead(17), 17)]
)
def test_grey_levels_are_those_of_the_likelihood(head, grey_levels):
    assert VAE(nn.Identity(), MLPDecoder(3, 6, head, width=8, depth=1), StandardNormal(3)).grey_levels == grey_levels


# A diffusion prior: latent diffusion


def best(timesteps=None, latent=3):
    """The exact diffusion of N(0, I)."""
    return exact(s=1.0, shape=latent, timesteps=timesteps)


def test_an_exact_diffusion_prior_costs_what_the_standard_normal_does():
    """In expectation over z, ε and t: within 4 s.e., and with every level summed the error is smaller."""
    vae, x = small().double(), torch.randn(1, 6, dtype=F64).expand(6000, 6)
    with torch.no_grad():
        closed = vae.nll(x).per_example
        vae.prior = best()
        drawn, summed = vae.nll(x).per_example, vae.bound(x[:1000]).per_example
    assert (closed.mean() - drawn.mean()).abs() < 4 * math.sqrt((closed.var() + drawn.var()).item() / 6000)
    assert (closed.mean() - summed.mean()).abs() < 4 * math.sqrt(
        closed.var().item() / 6000 + summed.var().item() / 1000
    )
    assert summed.var() < drawn.var() / 4


def test_its_terms_are_scoped_and_the_gradient_reaches_the_encoder():
    vae, x = small(prior=best(), beta=0.5), torch.randn(8, 6)
    terms = vae.loss(x)
    assert {name: weight for name, (weight, _) in terms.items()} == {
        "distortion": 1.0,
        "prior.prior": 0.5,
        "prior.reconstruction": 0.5,
        "prior.diffusion": 0.5,
        "posterior_entropy": -0.5,
    }
    gradients = torch.autograd.grad(terms["prior.diffusion"][1].mean(), list(vae.encoder.parameters()))
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("timesteps", [None, 20])
def test_bound_sums_every_level_of_the_prior(timesteps):
    vae, x = small(prior=best(timesteps)), torch.randn(8, 6)
    assert list(vae.bound(x)) == list(vae.nll(x)) and vae.sample(2).shape == (2, 6)


# A conditional prior


def by_label():
    """A VAE whose prior alone takes labels."""
    encoder, decoder = MLPEncoder(6, 3, 8, 1, num_classes=4), MLPDecoder(3, 6, NormalHead(0.5), 8, 1, num_classes=4)
    schedule = LogSNRLinearSchedule()
    prior = Diffusion(Denoiser(MLP(3, 16, 1, num_classes=4), schedule), 3, timesteps=4)
    for p in prior.parameters():
        nn.init.normal_(p, std=0.5)
    return VAE(encoder, decoder, prior)


def test_a_conditional_prior_is_given_the_condition():
    """In every score and in samples: each is the prior's own, given the label."""
    vae, x, cond = by_label(), torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    labels_given = []
    embedding = vae.prior.denoiser.backbone.embedding
    table = embedding.register_forward_pre_hook(lambda _, inputs: labels_given.append(inputs[1]))
    for ask in (vae.loss, vae.nll, vae.bound, vae.log_weight):
        ask(x, cond)
        assert labels_given and all(torch.equal(label, cond) for label in labels_given)
        labels_given.clear()
    vae.sample(5, cond)
    assert labels_given and all(torch.equal(label, cond) for label in labels_given)
    labels_given.clear()
    vae.loss(x)
    assert labels_given == [None]
    table.remove()
    z = torch.randn(5, 3)
    q = vae.encoder(x, cond)
    nelbo = vae.nelbo(x, q, z, vae.decoder(z, cond), cond=cond, generator=generator())
    by_hand = vae.prior.nll(z, cond, generator=generator())
    assert torch.equal(nelbo["prior.diffusion"][1], by_hand["diffusion"][1])


def test_the_standard_normal_leaves_the_condition_alone():
    vae = by_label()
    vae.prior = StandardNormal(3)
    assert vae.loss(torch.randn(5, 6), torch.zeros(5, dtype=torch.int64)).total.isfinite()


# Refusals


def unlabelled_prior():
    """A VAE whose encoder and decoder take labels, and whose prior takes none."""
    vae = by_label()
    vae.prior = Diffusion(Denoiser(MLP(3, 16, 1), LogSNRLinearSchedule()), 3)
    return vae


@pytest.mark.parametrize("ask, message", [
    (lambda: small(prior=GAN(nn.Identity(), Critic(nn.Identity(), non_saturating), 3)),
     "prior must offer nll and sample; GAN is implicit: it has no nll"),
    (lambda: small(beta=-1.0), "beta and free_bits must not be negative; got"),
    (lambda: small(free_bits=-0.1), "beta and free_bits must not be negative; got"),
    (lambda: small(prior=best(), free_bits=0.1).loss(torch.randn(8, 6)),
     "free_bits needs a KL in closed form: StandardNormal as prior; got Diffusion"),
    (lambda: unlabelled_prior().loss(torch.randn(5, 6), torch.zeros(5, dtype=torch.int64)),
     "cond must be None for a network built with num_classes=None; got labels"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


@pytest.mark.parametrize("ask", ["loss", "nll", "bound", "log_weight"])
def test_a_prior_of_another_shape_is_refused(ask):
    vae, x = small(), torch.randn(4, 6)
    for prior in (StandardNormal(1), best(timesteps=4, latent=1)):
        vae.prior = prior
        with pytest.raises(ValueError, match=r"prior must be over z of shape \(3,\); .* is over \(1,\)"):
            getattr(vae, ask)(x)


class Unfit(nn.Module):
    """Answers with a tensor."""

    def forward(self, x, cond=None):
        return x[:, :3]


@pytest.mark.parametrize("ask", ["loss", "nll", "bound", "log_weight", "reconstruct"])
def test_an_encoder_that_returns_a_tensor_is_named(ask):
    vae, x = small(), torch.randn(4, 6)
    vae.encoder, encoder = Unfit(), vae.encoder
    message = " must return one of components.distributions, such as Normal.*; Unfit returned"
    with pytest.raises(TypeError, match="encoder" + message + r" a tensor of shape \(4, 3\)"):
        getattr(vae, ask)(x)
    vae.encoder, vae.decoder = encoder, Unfit()
    with pytest.raises(TypeError, match="decoder" + message):
        getattr(vae, ask)(x)


@pytest.mark.parametrize("ask", ["loss", "nll", "bound", "log_weight"])
def test_a_decoder_that_returns_a_point_has_no_likelihood(ask):
    vae = small()
    vae.decoder.head = DeltaHead()
    with pytest.raises(TypeError, match="decoder must return a likelihood; got Delta, a point, which has none"):
        getattr(vae, ask)(torch.randn(4, 6))
    assert vae.sample(4).shape == vae.reconstruct(torch.randn(4, 6)).shape == (4, 6)
