"""The variational autoencoder: rows 3, 4 and 6."""

import math

import pytest
import torch
from answers import F64, generator
from diffusions import moved
from known import points
from torch import nn

from components.decoders import MLPDecoder, NormalHead
from components.distributions import Normal, kl
from components.encoders import MLPEncoder
from hybrids.data import digits
from hybrids.models import VAE, StandardNormal, rate


class Gaussian(nn.Module):
    """x → N(A x + b, diag std²): a linear encoder, and a linear decoder."""

    def __init__(self, weight, bias, std):
        super().__init__()
        self.linear = nn.Linear(*reversed(weight.shape)).double()
        self.linear.weight.data, self.linear.bias.data = weight.clone(), bias.clone()
        self.log_std = nn.Parameter(std.log())

    def forward(self, x, cond=None):
        return Normal(self.linear(x), self.log_std.exp().expand(len(x), self.linear.out_features))


class AtNodes(nn.Module):
    """An encoder's q(z|x), whose draws are at given nodes ε, over and over, instead of random ones."""

    def __init__(self, encoder, epsilon):
        super().__init__()
        self.encoder, self.epsilon = encoder, epsilon

    def forward(self, x, cond=None):
        q = self.encoder(x, cond)
        q.rsample = lambda generator=None: moved(q, self.epsilon.repeat(len(x) // len(self.epsilon), 1))
        return q


def exact(vae, x, latent, loss="nll"):
    """The loss of each x with its mean over ε taken exactly; needs log p(x|z) quadratic in z."""
    epsilon = points(latent)
    given = VAE(AtNodes(vae.encoder, epsilon), vae.decoder, vae.prior, vae.beta)
    return getattr(given, loss)(x.repeat_interleave(len(epsilon), 0)).per_example.view(len(x), -1).mean(1)


def marginal(weight, bias, variance):
    return torch.distributions.MultivariateNormal(bias, weight @ weight.T + variance * torch.eye(len(bias), dtype=F64))


def test_the_elbo_and_the_kl_to_the_posterior_make_the_log_likelihood(row):
    """ELBO + KL(q ‖ p(z|x)) = log p(x), whatever q is. Kingma & Welling 2013, 1312.6114, eq. 1.

    On x|z ~ N(Wz + b, σ²): p(z|x) = N(M⁻¹Wᵀ(x - b), σ²M⁻¹), M = WᵀW + σ²I.
    """
    weight, bias, variance = torch.randn(5, 3, dtype=F64), torch.randn(5, dtype=F64), 0.3
    encoder = Gaussian(0.4 * torch.randn(3, 5, dtype=F64), torch.randn(3, dtype=F64), 0.3 + torch.rand(3, dtype=F64))
    decoder = Gaussian(weight, bias, torch.full((5,), math.sqrt(variance), dtype=F64))
    x = torch.randn(7, 5, dtype=F64)
    elbo = -exact(VAE(encoder, decoder, StandardNormal(3)), x, 3)
    inverse = torch.linalg.inv(weight.T @ weight + variance * torch.eye(3, dtype=F64))
    posterior = torch.distributions.MultivariateNormal((x - bias) @ weight @ inverse, variance * inverse)
    q = encoder(x)
    approximate = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.std.square()))
    gap = torch.distributions.kl_divergence(approximate, posterior)
    row(3, elbo + gap, marginal(weight, bias, variance).log_prob(x), 1e-10, words="ELBO + KL, of 7 x")
    row(3, gap, at_least=0.1, words="the KL, which is not zero")


# Row 4: probabilistic PCA on the digits


@pytest.fixture(scope="module")
def pixels():
    data = digits(8)
    return torch.cat([data.x, data.held_out]).flatten(1).double() / 16


def principal(x):
    """Mean, eigenvalues from the largest, eigenvectors."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return mean, values.flip(0).clamp(min=0), vectors.flip(1)


def optimum(x, q=None, variance=None, beta=1.0):
    """The best linear VAE with q latents; or with σ² given, and as many as that takes: ‖w_j‖² = λ_j - βσ²."""
    mean, values, vectors = principal(x)
    variance = values[q:].sum().item() / (len(values) - q) if variance is None else variance
    q = int((values > beta * variance).sum()) if q is None else q
    weight = vectors[:, :q] * (values[:q] - beta * variance).sqrt()
    m = values[:q]  # WᵀW + βσ²I is diagonal at the PCA rotation, so a diagonal posterior is exact
    encoder = Gaussian((weight / m).T, -(mean @ weight) / m, (beta * variance / m).sqrt())
    decoder = Gaussian(weight, mean, torch.full((len(mean),), math.sqrt(variance), dtype=F64))
    return VAE(encoder, decoder, StandardNormal(q), beta=beta), weight, mean, variance


def summary(x):
    """128 points with the digits' mean and covariance: to a loss that is quadratic in x they are the digits."""
    mean, values, vectors = principal(x)
    return mean + points(64) @ (vectors * values.sqrt()).T


def test_the_linear_vae_at_its_optimum_has_the_log_likelihood(row, pixels):
    """The linear VAE is probabilistic PCA: at the optimum its ELBO is log p(x). Tipping & Bishop 1999; Lucas 2019."""
    for q, variance, expected in ((10, 0.0227514, 17.45195), (20, 0.0112742, 27.27730)):
        vae, weight, mean, found = optimum(pixels, q)
        with torch.no_grad():
            elbo = -exact(vae, pixels, q)
        row(
            4,
            elbo - marginal(weight, mean, found).log_prob(pixels),
            0.0,
            1e-8,
            words=f"{q} latents: ELBO less log p(x)",
        )
        row(4, elbo.mean(), expected, relative=1e-6, words=f"{q} latents: mean over the digits, nats")
        row(4, found, variance, relative=5e-6, words=f"{q} latents: σ²")


def test_active_units_of_the_linear_vae(row, pixels):
    """Of fixed σ² it keeps as many latents as Σ has eigenvalues above βσ². Lucas 2019, 1911.02469; Rolinek 2019."""
    for variance, beta, active in ((0.02, 1.0, 30), (0.05, 1.0, 18), (0.02, 4.0, 14), (0.05, 4.0, 7)):
        vae, weight, _, _ = optimum(pixels, variance=variance, beta=beta)
        row(4, weight.shape[1], active, 0.0, words=f"active latents at σ² = {variance}, β = {beta:g}")
        exact(vae, summary(pixels), active, "loss").mean().backward()
        # σ is given here, not learned
        slopes = [p.grad.abs().max() for name, p in vae.named_parameters() if name != "decoder.log_std"]
        row(4, max(slopes), 0.0, 1e-8, words="the loss's largest gradient there")


def test_a_linear_vae_trained_by_gradient_gets_there(row, pixels):
    """Trained from a random start, with random z, the linear VAE gets to the log-likelihood. Lucas 2019, 1911.02469."""
    latent, steps = 10, 500
    x, mean, third = summary(pixels).float(), pixels.mean(0), torch.tensor([0.3], dtype=F64)
    vae = VAE(
        Gaussian(0.1 * torch.randn(latent, 64, dtype=F64), torch.zeros(latent, dtype=F64), third.expand(latent)),
        Gaussian(0.1 * torch.randn(64, latent, dtype=F64), mean, third),
        StandardNormal(latent),
    ).float()
    optimizer = torch.optim.Adam(vae.parameters(), betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.08 * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = vae.loss(x).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        elbo = -torch.stack([vae.nll(pixels.float()).total for _ in range(10)]).mean()
    row(4, elbo / 64, 17.45195 / 64, 0.01, words="10 latents, trained: nats a dimension")


def test_with_beta_1_and_no_free_bits_the_loss_is_the_negative_elbo(row):
    """β = 1 is the VAE, and so are no free bits. Higgins 2017; Kingma 2016, 1606.04934, section C.8."""
    vae, x = (
        VAE(MLPEncoder(6, 3, 16, 2), MLPDecoder(3, 6, NormalHead(0.5), 16, 2), StandardNormal(3)),
        torch.randn(8, 6),
    )
    for p in vae.parameters():
        nn.init.normal_(p, std=0.2)
    q, _, p = vae(x, generator=generator())
    expected = -p.log_prob(x) + kl(q, Normal(torch.zeros(1, 3), 1.0))
    for settings in ({"beta": 1.0}, {"beta": 1.0, "free_bits": 0.0}):
        same = VAE(vae.encoder, vae.decoder, vae.prior, **settings)
        found = [ask(x, generator=generator()).per_example for ask in (same.loss, same.nll, same.bound)]
        row(6, torch.stack(found) - expected, 0.0, 0.0, words=f"loss less -ELBO, {' and '.join(settings)} given")
    other = VAE(vae.encoder, vae.decoder, vae.prior, beta=4.0)
    row(6, other.loss(x)["rate"][0], 4.0, 0.0, words="weight of the rate at β = 4")
    q = vae.encoder(x)
    one, two = (rate(q, q.mean, StandardNormal(3), **more).total for more in ({}, {"free_bits": 0.0}))
    row(6, one - two, 0.0, 0.0, words="rate with no free bits less rate")
