import math

import pytest
import torch
from torch import nn

import components.distributions.continuous
from components.decoders import MLPDecoder
from components.denoisers import Denoiser
from components.distributions import Implicit, Normal
from components.encoders import MLPEncoder
from components.heads import CategoricalHead, LogisticHead, NormalHead
from components.losses import non_saturating
from components.schedules import LogSNRLinearSchedule, over
from hybrids.critic import Critic
from hybrids.data import digits
from hybrids.models import GAN, VAE, Diffusion, Model, StandardNormal

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Gaussian(nn.Module):
    """x → N(A x + b, diag std²): a linear encoder, and a linear decoder."""

    def __init__(self, weight, bias, std):
        super().__init__()
        self.linear = nn.Linear(*reversed(weight.shape)).double()
        self.linear.weight.data, self.linear.bias.data = weight.clone(), bias.clone()
        self.log_std = nn.Parameter(std.log())

    def forward(self, x, cond=None):
        return Normal(self.linear(x), self.log_std.exp().expand(len(x), self.linear.out_features))


def points(d):
    """2d points with mean zero and covariance I: the mean of a quadratic over them is that over N(0, I)."""
    return math.sqrt(d) * torch.cat([torch.eye(d, dtype=F64), -torch.eye(d, dtype=F64)])


def exact(vae, x, latent, monkeypatch, loss="nll"):
    """The loss of each x with its mean over ε taken exactly; needs log p(x|z) quadratic in z."""
    epsilon = points(latent)
    monkeypatch.setattr(
        components.distributions.continuous,
        "randn_like",
        lambda like, generator=None: epsilon.repeat(len(like) // len(epsilon), 1),
    )
    return getattr(vae, loss)(x.repeat_interleave(len(epsilon), 0)).per_example.view(len(x), -1).mean(1)


def marginal(weight, bias, variance):
    return torch.distributions.MultivariateNormal(bias, weight @ weight.T + variance * torch.eye(len(bias), dtype=F64))


# Row 3


def test_row_3_the_elbo_and_the_kl_to_the_posterior_make_the_log_likelihood(monkeypatch):
    """For any q, on x|z ~ N(Wz + b, σ²): p(z|x) = N(M⁻¹Wᵀ(x - b), σ²M⁻¹), M = WᵀW + σ²I."""
    weight, bias, variance = torch.randn(5, 3, dtype=F64), torch.randn(5, dtype=F64), 0.3
    encoder = Gaussian(0.4 * torch.randn(3, 5, dtype=F64), torch.randn(3, dtype=F64), 0.3 + torch.rand(3, dtype=F64))
    decoder = Gaussian(weight, bias, torch.full((5,), math.sqrt(variance), dtype=F64))
    vae = VAE(encoder, decoder, StandardNormal(3))
    x = torch.randn(7, 5, dtype=F64)
    inverse = torch.linalg.inv(weight.T @ weight + variance * torch.eye(3, dtype=F64))
    posterior = torch.distributions.MultivariateNormal((x - bias) @ weight @ inverse, variance * inverse)
    q = encoder(x)
    approximate = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.std.square()))
    gap = torch.distributions.kl_divergence(approximate, posterior)
    found = -exact(vae, x, 3, monkeypatch) + gap
    torch.testing.assert_close(found, marginal(weight, bias, variance).log_prob(x), rtol=1e-10, atol=1e-10)
    assert (gap > 0.1).all()


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


@pytest.mark.parametrize("q, variance, expected", [(10, 0.0227514, 17.45195), (20, 0.0112742, 27.27730)])
def test_row_4_the_linear_vae_at_its_optimum_has_the_log_likelihood(monkeypatch, pixels, q, variance, expected):
    vae, weight, mean, found = optimum(pixels, q)
    assert found == pytest.approx(variance, rel=5e-6)
    with torch.no_grad():
        elbo = -exact(vae, pixels, q, monkeypatch)
    torch.testing.assert_close(elbo, marginal(weight, mean, found).log_prob(pixels), rtol=1e-8, atol=1e-8)
    assert elbo.mean().item() == pytest.approx(expected, rel=1e-6)


def summary(x):
    """128 points with the digits' mean and covariance: to a loss that is quadratic in x they are the digits."""
    mean, values, vectors = principal(x)
    return mean + points(64) @ (vectors * values.sqrt()).T


@pytest.mark.parametrize("variance, beta, active", [(0.02, 1.0, 30), (0.05, 1.0, 18), (0.02, 4.0, 14), (0.05, 4.0, 7)])
def test_active_units_of_the_linear_vae(monkeypatch, pixels, variance, beta, active):
    """#λ > βσ²: there every gradient of the β-weighted loss is zero."""
    vae, weight, _, _ = optimum(pixels, variance=variance, beta=beta)
    assert weight.shape[1] == active
    exact(vae, summary(pixels), active, monkeypatch, "loss").mean().backward()
    for name, p in vae.named_parameters():
        if name != "decoder.log_std":  # σ is given here, not learned
            assert p.grad.abs().max() < 1e-8, name


def test_row_4_a_linear_vae_trained_by_gradient_gets_there(pixels):
    """Within 0.01 nats a dimension of the closed form, from a random start and with random z."""
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
        elbo = -torch.stack([vae.nll(pixels.float()).total for _ in range(10)]).mean().item()
    assert 17.45195 - 0.64 < elbo < 17.45195 + 0.05


# Row 6, and what the settings do


def small(**settings):
    encoder, decoder = MLPEncoder(6, 3, width=16, depth=2), MLPDecoder(3, 6, NormalHead(0.5), width=16, depth=2)
    for module in (encoder, decoder):
        for p in module.parameters():
            nn.init.normal_(p, std=0.2)
    return VAE(encoder, decoder, settings.pop("prior", StandardNormal(3)), **settings)


def same_noise(*calls):
    """The results of calls that each draw the same random numbers."""
    results = []
    for call in calls:
        torch.manual_seed(1)
        results.append(call())
    return results


def test_row_6_with_beta_1_and_no_free_bits_the_loss_is_the_negative_elbo():
    vae, x = small(beta=1.0, free_bits=0.0), torch.randn(8, 6)
    loss, nll, bound = same_noise(lambda: vae.loss(x), lambda: vae.nll(x), lambda: vae.bound(x))
    assert torch.equal(loss.per_example, nll.per_example) and torch.equal(loss.per_example, bound.per_example)
    assert list(loss) == ["distortion", "rate"]


def test_beta_weighs_the_rate_in_the_loss_and_nowhere_else():
    vae, x = small(beta=4.0), torch.randn(8, 6)
    loss, nll = same_noise(lambda: vae.loss(x), lambda: vae.nll(x))
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
    one, again = (vae.sample(5, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (5, 6) and torch.equal(one, again) and not one.requires_grad
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one, vae.decoder(z).mean.detach())


def test_an_implicit_decoder_is_drawn_from():
    class Drawn(nn.Module):
        def forward(self, z, cond=None):
            return Implicit(lambda generator: z.repeat(1, 2), "Drawn")

    vae = VAE(MLPEncoder(6, 3, width=8, depth=1), Drawn(), StandardNormal(3))
    assert vae.sample(4).shape == (4, 6) and vae.reconstruct(torch.randn(2, 6)).shape == (2, 6)
    with pytest.raises(TypeError, match="Drawn is an implicit distribution"):
        vae.nll(torch.randn(2, 6))


@pytest.mark.parametrize("head, levels", [(NormalHead(0.5), None), (CategoricalHead(17), 17), (LogisticHead(17), 17)])
def test_levels_are_those_of_the_likelihood(head, levels):
    assert VAE(nn.Identity(), MLPDecoder(3, 6, head, width=8, depth=1), StandardNormal(3)).levels == levels


# A diffusion prior: latent diffusion


class Best(nn.Module):
    """ε̂ = σ x_t, exact for x ~ N(0, I)."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = [schedule]

    def forward(self, x_t, t, cond=None):
        return over(self.schedule[0].alpha_sigma(t)[1], x_t) * x_t


def best(timesteps=None, latent=3):
    schedule = LogSNRLinearSchedule()
    return Diffusion(Denoiser(Best(schedule), schedule), latent, timesteps=timesteps)


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


# Refusals


def test_an_implicit_prior_is_refused():
    gan = GAN(nn.Identity(), Critic(nn.Identity(), non_saturating), 3)
    with pytest.raises(ValueError, match="prior must offer nll and sample; GAN is implicit: it cannot score z"):
        small(prior=gan)


@pytest.mark.parametrize("settings", [{"beta": -1.0}, {"free_bits": -0.1}])
def test_negative_settings_are_refused(settings):
    with pytest.raises(ValueError, match="beta and free_bits must not be negative; got"):
        small(**settings)


def test_free_bits_with_a_diffusion_prior_are_refused():
    with pytest.raises(ValueError, match="free_bits needs a KL in closed form: StandardNormal as prior; got Diffusion"):
        small(prior=best(), free_bits=0.1).loss(torch.randn(8, 6))
