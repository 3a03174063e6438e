"""The hierarchical VAE, of which a diffusion model is one."""

import math

import pytest
import torch
from answers import F64, Smooth, generator
from torch import nn

from components.backbones import MLP
from components.decoders import LogisticHead, MLPDecoder, NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.distributions import Normal, kl
from components.ladders import convolutional_ladder, dense_ladder
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    VarianceExplodingSchedule,
    over,
)
from hybrids.evaluation import importance_weighted
from hybrids.models import VAE, Diffusion, HierarchicalVAE, Model, StandardNormal

# A diffusion model is a hierarchical VAE


class Conditional(Smooth):
    """`Smooth`, moved by a condition."""

    def forward(self, x_t, t, cond=None):
        return super().forward(x_t if cond is None else x_t + over(0.1 * cond, x_t), t)


SCHEDULES = {
    "log-SNR": lambda: LogSNRLinearSchedule(6.0, -5.0),
    "learned": lambda: LearnedSchedule(6.0, -5.0),
    "cosine": lambda: CosineSchedule(6.0, -5.0),
    "exploding": lambda: VarianceExplodingSchedule(0.05, 20.0),
    "table": lambda: BetaSchedule(num_train_timesteps=10),
    "clean cosine": lambda: CosineSchedule(math.inf, -5.0),
    "short table": lambda: BetaSchedule("scaled_linear", 5, 0.1, 0.7),
}
EACH_SCHEDULE = pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "short table"])


def diffusion(schedule="log-SNR", variance="small", timesteps=10, prediction="sample", shape=3, **settings):
    denoiser = Denoiser(Conditional(variance == "learned_range"), SCHEDULES[schedule](), prediction, variance)
    return Diffusion(denoiser, shape, timesteps=timesteps, **settings)


@EACH_SCHEDULE
def test_a_diffusion_s_samples_are_the_ladder_s(schedule):
    """Where noise is left, the ladder's are x_0/α, the mean of its decoder, and the diffusion's end at x̂(x_{1/T})."""
    model = diffusion(schedule, prediction="v_prediction").double()
    ladder, drawn = HierarchicalVAE.from_diffusion(model), []
    for cond in (None, torch.arange(4, dtype=F64)):
        x, expected = (each.sample(4, cond, generator()) for each in (model, ladder))
        if not model.starts_clean:
            noise, (top, *rest) = generator(), list(ladder.ladder)[:-1]
            p = top.prior(None)
            x_t = Normal(p.mean.expand(4, 3), p.std).rsample(noise)
            for level in rest:
                x_t = level.prior(x_t, cond).rsample(noise)
            expected = model.denoiser(x_t, 1 / 10, cond).mean
        torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)
        drawn.append(x)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_the_ladder_shares_the_diffusion_s_modules_and_learns_by_them():
    schedule = LogSNRLinearSchedule()
    model = Diffusion(Denoiser(MLP(3, 8, 1), schedule), 3, timesteps=4, grey_levels=17)
    ladder = HierarchicalVAE.from_diffusion(model)
    assert len(ladder.ladder) == 5 and ladder.grey_levels == 17 and isinstance(ladder, Model)
    assert {id(p) for p in ladder.parameters()} == {id(p) for p in model.parameters()}
    tensors = [p.data_ptr() for p in ladder.state_dict().values()]
    assert len(tensors) == len(set(tensors)) == len(model.state_dict())
    ladder.loss(torch.zeros(2, 3)).total.backward()
    assert all(p.grad is not None for p in model.parameters())


# Levels of all kinds


class Linear(nn.Module):
    """z = weight·(what is above) + noise, with the exact posterior of a linear-Gaussian chain z_1 → z_2 → x."""

    def __init__(self, prior, posterior):
        super().__init__()
        self.p, self.q = prior, posterior

    def prior(self, above, cond=None):
        return self.p(above)

    def posterior(self, above, x, cond=None):
        return self.q(above, x)


def chain():
    """z_1 ~ N(0, 1), z_2|z_1 ~ N(.8 z_1, .5²), x|z_2 ~ N(z_2, .3²); posteriors by Gaussian conditioning."""
    a, s, r = 0.8, 0.5, 0.3

    def first(above, x):
        total = a**2 + s**2 + r**2
        return Normal(a / total * x, math.sqrt(1 - a**2 / total))

    def second(above, x):
        precision = 1 / s**2 + 1 / r**2
        return Normal((a * above / s**2 + x / r**2) / precision, precision**-0.5)

    top = Linear(lambda above: Normal(torch.zeros(1, 1, dtype=F64), 1.0), first)
    rungs = [top, Linear(lambda above: Normal(a * above, s), second)]
    return HierarchicalVAE(rungs, nn.Module()), math.sqrt(a**2 + s**2 + r**2), r


def test_with_exact_posteriors_every_draw_s_elbo_has_the_likelihood_as_its_mean():
    """-log p(x) = E[distortion] + Σ rates, in closed form once the draws are averaged: within 4 s.e."""
    model, std, r = chain()
    model.decoder = Decoder(r)
    x = torch.tensor([[1.3]], dtype=F64).expand(20_000, 1)
    found = model.nll(x).per_example
    expected = -Normal(torch.zeros(1, 1, dtype=F64), std).log_prob(x[:1])
    assert (found.mean() - expected).abs() < 4 * found.std() / math.sqrt(len(found))
    assert found.std() > 0.1
    # With the densities of what was drawn in the place of the KLs, every single draw is the likelihood (row 3).
    pairs, p = model(x[:5])
    terms = model.nelbo(x[:5], pairs, p)
    for i, (q, prior) in enumerate(pairs, 1):
        torch.testing.assert_close(terms[f"rate_{i}"][1], kl(q, prior), rtol=1e-12, atol=0)


class Decoder(nn.Module):
    def __init__(self, std):
        super().__init__()
        self.std = std

    def forward(self, z, cond=None):
        return Normal(z, self.std)


def test_samples_come_down_the_priors():
    model, std, r = chain()
    model.decoder = Decoder(r)
    x = model.sample(20_000, generator=generator(0))
    spread = math.sqrt(std**2 - r**2)  # its mean is shown
    assert x.shape == (20_000, 1) and abs(x.mean().item()) < 4 * spread / math.sqrt(20_000)
    assert x.std().item() == pytest.approx(spread, rel=4 / math.sqrt(40_000))


def test_above_may_be_a_tuple():
    """A level may hand down all that was drawn: the third sees both latents above it."""

    class Remembers(nn.Module):
        def prior(self, above, cond=None):
            return Normal(torch.zeros(1, 1) if above is None else sum(above), 1.0)

        def posterior(self, above, x, cond=None):
            return Normal(x + (0 if above is None else len(above)), 0.5)

        def below(self, above, z, cond=None):
            return (z,) if above is None else (*above, z)

    class Last(nn.Module):
        def forward(self, above, cond=None):
            return Normal(torch.cat(above, 1), 1.0)

    model = HierarchicalVAE([Remembers() for _ in range(3)], Last())
    x = torch.randn(5, 1)
    assert model.reconstruct(x).tolist() == torch.cat([x, x + 1, x + 2], 1).tolist()
    pairs, p = model(x)
    assert p.mean.shape == (5, 3) and model.sample(4).shape == (4, 3)
    torch.testing.assert_close(pairs[2][1].mean, p.mean[:, :1] + p.mean[:, 1:2])


def test_one_level_is_a_vae():
    """With the standard normal on top and the VAE's networks, the loss is the VAE's, to the bit."""
    encoder, decoder = nn.Sequential(nn.Linear(4, 4)), MLPDecoder(2, 4, NormalHead(0.5), 8, 1)

    def q(above, x):
        mean, log_std = encoder(x).chunk(2, 1)
        return Normal(mean, log_std.exp())

    class Encoder(nn.Module):
        def forward(self, x, cond=None):
            return q(None, x)

    vae = VAE(Encoder(), decoder, StandardNormal(2), beta=0.5)
    model = HierarchicalVAE([Linear(lambda above: StandardNormal(2).distribution, q)], decoder, beta=0.5)
    x = torch.randn(5, 4)
    expected, loss = (each.loss(x, generator=generator()) for each in (vae, model))
    assert torch.equal(loss.per_example, expected.per_example) and loss["rate_1"][0] == 0.5


# Learned ladders


def images(levels=3, **settings):
    ladder = convolutional_ladder((1, 8, 8), levels, 2, 8)
    decoder = ResidualDecoder(ladder.state, (1, 8, 8), LogisticHead(17), 8)
    return HierarchicalVAE(ladder.levels, decoder, ladder.encoder, **settings)


def points(levels=2, **settings):
    ladder = dense_ladder(2, levels, 2, 8)
    return HierarchicalVAE(ladder.levels, MLPDecoder(8, 2, NormalHead("learned"), 8, 1), ladder.encoder, **settings)


@pytest.mark.parametrize("make, shape", [(images, (1, 8, 8)), (points, (2,))])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_learned_ladders(make, shape, levels):
    model, x = make(levels), torch.rand(4, *shape) * 2 - 1
    terms = model.nll(x)
    assert isinstance(model, Model) and list(terms) == ["distortion", *(f"rate_{i}" for i in range(1, levels + 1))]
    assert all(values.shape == (4,) and values.isfinite().all() for _, values in terms.values())
    assert all((terms[f"rate_{i}"][1] > 0).all() for i in range(1, levels + 1))
    one, again = (model.sample(3, generator=generator()) for _ in range(2))
    assert one.shape == model.reconstruct(x[:3]).shape == (3, *shape) and torch.equal(one, again)
    assert not one.requires_grad
    assert model.grey_levels == (17 if make is images else None)


def test_a_ladder_s_weight_has_the_elbo_as_mean():
    """Of learned levels and a discrete likelihood, on labels too."""
    ladder = dense_ladder(3, levels=3, latent=2, width=16, num_classes=4)
    decoder = MLPDecoder(16, 3, LogisticHead(17), 16, num_classes=4)
    model = HierarchicalVAE(ladder.levels, decoder, ladder.encoder)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    x, cond = (torch.randint(17, (1, 3)) / 8 - 1).expand(20_000, 3), torch.ones(20_000, dtype=torch.long)
    with torch.no_grad():
        weights, bound = model.log_weight(x, cond), -model.nll(x, cond).per_example
    error = math.sqrt((weights.var() + bound.var()).item() / len(x))
    assert weights.mean().item() == pytest.approx(bound.mean().item(), abs=4 * error)
    assert weights.std() > 0.5 and importance_weighted(model, x[:50], 20, cond[:50])[0].mean() > bound.mean()


def test_beta_and_free_bits_are_in_the_loss_and_nowhere_else():
    model, x = images(beta=4.0, free_bits=1e3), torch.rand(4, 1, 8, 8) * 2 - 1
    loss, nll = model.loss(x), model.nll(x)
    assert [loss[f"rate_{i}"][0] for i in (1, 2, 3)] == [4.0] * 3 and loss["distortion"][0] == 1.0
    assert all(loss[f"rate_{i}"][1].tolist() == [1e3] * 4 for i in (1, 2, 3))
    assert all(nll[f"rate_{i}"][0] == 1.0 and (nll[f"rate_{i}"][1] < 1e3).all() for i in (1, 2, 3))


def test_free_bits_hold_for_each_level():
    """max(free_bits, E_batch KL_l): the level that is above keeps its KL and its gradient."""
    model, x = images(2), torch.rand(4, 1, 8, 8) * 2 - 1
    pairs, p = model(x)
    rates = [kl(*pair) for pair in pairs]
    low, high = sorted(rate.mean().item() for rate in rates)
    found = model.nelbo(x, pairs, p, free_bits=(low + high) / 2)
    for i, (rate, (q, _)) in enumerate(zip(rates, pairs), 1):
        charged = found[f"rate_{i}"][1]
        (gradient,) = torch.autograd.grad(charged.sum(), q.mean, retain_graph=True)
        if rate.mean() > low:
            assert torch.equal(charged, rate) and gradient.any()
        else:
            assert charged.tolist() == pytest.approx([(low + high) / 2] * 4) and not gradient.any()


# Refusals


@pytest.mark.parametrize("ask, message", [
    (lambda: images(beta=-1.0), "beta and free_bits must not be negative; got"),
    (lambda: images(free_bits=-0.1), "beta and free_bits must not be negative; got"),
    (lambda: HierarchicalVAE([], nn.Identity()), "ladder must hold levels that offer posterior and prior; got none"),
    (lambda: HierarchicalVAE([nn.Linear(2, 2)], nn.Identity()),
     "ladder must hold levels that offer posterior and prior; got Linear"),
    (lambda: HierarchicalVAE(dense_ladder(2, 2, 4, 8), nn.Identity()),
     r"the levels; got a Ladder: give HierarchicalVAE\(ladder.levels, decoder, ladder.encoder\)"),
    (lambda: HierarchicalVAE.from_diffusion(diffusion(timesteps=None)),
     "continuous time has no chain of levels; timesteps=None"),
])  # fmt: skip
def test_what_is_no_ladder_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
