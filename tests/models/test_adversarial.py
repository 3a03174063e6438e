import math

import pytest
import torch
from answers import F64, generator
from torch import nn

from components.backbones import MLP, Stochastic, UNet
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, PatchDiscriminator, ResidualDiscriminator
from components.encoders import MLPEncoder
from components.losses import hinge, non_saturating, relativistic
from components.schedules import BetaSchedule, LogSNRLinearSchedule, VariancePreservingSchedule, over
from hybrids import VAE, AdversarialDiffusion, Critic
from hybrids.models import Model

D, Z = 5, 3
PAIRS = pytest.mark.parametrize("pair", [non_saturating, hinge, relativistic], ids=lambda pair: pair.name)
STEPS = pytest.mark.parametrize("steps", [1, 2, 4, 8])


class Generator(nn.Module):
    """x̂, smooth in x_t, t and z."""

    def __init__(self, latent=Z, **options):
        super().__init__()
        self.first, self.last = nn.Linear(D + 1 + (latent or 0), 7, **options), nn.Linear(7, D, **options)
        self.seen = []

    def forward(self, x_t, t, cond=None, z=None):
        self.seen.append(z)
        t = torch.as_tensor(t).to(x_t).expand(len(x_t))
        inputs = [x_t, t[:, None]] if z is None else [x_t, t[:, None], z]
        x = self.last(torch.tanh(self.first(torch.cat(inputs, 1))))
        return x if cond is None else x + cond[:, None]


class Discriminator(nn.Module):
    """A logit of the pair and t; it remembers what it was given."""

    def __init__(self, **options):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * D + 1, 8, **options), nn.Tanh(), nn.Linear(8, 1, **options))
        self.seen = []

    def forward(self, x, given, t=None, cond=None):
        self.seen.append({"x": x, "given": given, "t": t, "cond": cond})
        when = x.new_ones(len(x), 1) if t is None else t[:, None].to(x)
        return self.net(torch.cat([x, given, when], 1))[:, 0]


def model(pair=non_saturating, steps=4, schedule=None, latent=Z, dtype=None, **settings):
    denoiser = Denoiser(Generator(latent, dtype=dtype), schedule or VariancePreservingSchedule(), "sample")
    critic = Critic(Discriminator(dtype=dtype), pair, **settings)
    found = AdversarialDiffusion(denoiser, critic, D, steps, latent)
    denoiser.backbone.seen.clear()
    critic.discriminator.seen.clear()
    return found


def at(model, s, t):
    """Let a model train at the given times only."""
    model._times = lambda x, generator: (torch.full((len(x),), s, dtype=F64), torch.full((len(x),), t, dtype=F64))


# Data of ±1


class PlusOrMinusOne(nn.Module):
    """For x = ±1 alike, P(x = 1|x_t) = sigmoid(2 α x_t/σ²): a draw from it, made of z, or without z the mean."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, cond=None, z=None):
        alpha, sigma = self.schedule.alpha_sigma(t)
        logit = over(2 * alpha / sigma.square(), x_t) * x_t
        if z is None:
            return torch.tanh(logit / 2)
        return torch.where(torch.special.ndtr(z) < torch.sigmoid(logit), 1.0, -1.0)


class Deaf(nn.Module):
    def forward(self, x, t=None, given=None):
        self.seen = x, given
        return x.flatten(1).sum(1)


def plus_or_minus_one(steps, latent):
    schedule = VariancePreservingSchedule()
    denoiser = Denoiser(PlusOrMinusOne(schedule), schedule, "sample")
    return AdversarialDiffusion(denoiser, Critic(Deaf()), 1, steps, latent)


@STEPS
def test_an_oracle_generator_draws_the_data_in_any_number_of_steps(steps):
    """E|x| = 1, both signs alike within four standard errors (of 1/√n)."""
    n = 40_000
    x = plus_or_minus_one(steps, 1).sample(n)
    assert x.abs().mean().item() == 1.0 and abs(x.mean().item()) < 4 / math.sqrt(n)


@pytest.mark.parametrize("steps, expected", [(1, 0.005), (2, 0.221), (4, 0.598), (8, 0.914)])
def test_a_generator_without_z_answers_the_mean(steps, expected):
    """Monte Carlo: one standard error is at most .0011."""
    assert plus_or_minus_one(steps, None).sample(200_000).abs().mean().item() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("s, t", [(0.0, 0.25), (0.25, 0.5), (0.75, 1.0)])
def test_the_oracle_s_pairs_are_as_the_real_ones(s, t):
    """E[x_s x_t], E[x_s²] and E[x_s⁴] of real and fake pairs, within four standard errors of their difference."""
    game, n = plus_or_minus_one(4, 1), 100_000
    at(game, s, t)
    x = torch.randint(2, (n, 1)).double() * 2 - 1
    moments = []
    for fake in (False, True):
        (game.loss if fake else game.judge)(x)
        # fool asks of the fake last; tell asks of the real first: take the latter from the pair itself.
        a, b = game.critic.discriminator.seen if fake else game._pair(x, None)[:2]
        moments.append(torch.cat([a * b, a.square(), a.square().square()], 1))
    one, other = moments
    error = ((one.var(0) + other.var(0)) / n).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 4 * error + 1e-12).all()


# What each player is given


def test_a_turn_asks_of_pairs_that_share_x_t():
    """x_s ~ q(x_s|x), x_t ~ q(x_t|x_s), x'_s ~ q(x_s|x_t, x̂), and D sees both beside the same x_t and t."""
    game, x, drawn = model(dtype=F64), torch.randn(6, D, dtype=F64), generator(3)
    schedule, i = game.denoiser.schedule, torch.randint(4, (6,), generator=drawn).double()
    one, two = (torch.randn(6, D, dtype=F64, generator=drawn) for _ in range(2))
    z, three = (torch.randn(6, d, dtype=F64, generator=drawn) for d in (Z, D))
    s, t = i / 4, (i + 1) / 4
    assert (s == 0).any() and (s > 0).any()
    x_s = over(schedule.alpha_sigma(s)[0], x) * x + over(schedule.alpha_sigma(s)[1], x) * one
    ratio, variance = schedule.step(s, t)
    x_t = over(ratio, x) * x_s + over(variance.sqrt(), x) * two
    estimate = game.denoiser.backbone(x_t, t, z=z)
    posterior = schedule.posterior(x_t, estimate, s, t)
    fake = posterior.mean + posterior.std * three
    torch.testing.assert_close(fake[s == 0], estimate[s == 0], rtol=1e-12, atol=1e-12)
    for ask, pair in ((game.judge, [x_s, fake]), (game.loss, [fake])):
        game.critic.discriminator.seen.clear()
        ask(x, generator=generator(3))
        calls = game.critic.discriminator.seen
        assert len(calls) == len(pair)
        for call, expected in zip(calls, pair):
            torch.testing.assert_close(call["x"], expected)
            torch.testing.assert_close(call["given"], x_t)
            assert torch.equal(call["t"], t) and call["cond"] is None


def test_each_turn_draws_its_own_times_noise_and_z():
    game, x = model(), torch.randn(64, D)
    for _ in range(2):
        game.loss(x)
    one, other = game.critic.discriminator.seen
    assert not torch.equal(one["t"], other["t"]) and not torch.equal(one["given"], other["given"])
    assert set(one["t"].tolist()) == {0.25, 0.5, 0.75, 1.0}
    z, again = game.denoiser.backbone.seen
    assert z.shape == (64, Z) and not torch.equal(z, again) and z.std().item() == pytest.approx(1, abs=0.2)


@PAIRS
@STEPS
def test_the_firewall(pair, steps):
    """A critic's turn reaches the critic alone, a generator's the generator (through the critic), and neither x."""
    game, x = model(pair, steps, r1=1.0), torch.randn(6, D, requires_grad=True)
    told = game.judge(x, step=0)
    assert list(told) == ["adversarial", "r1", "logits/real", "logits/fake"]
    told.total.backward()
    assert all(p.grad is None for p in game.denoiser.parameters()) and x.grad is None
    assert all(p.grad is not None for p in game.critic.parameters())
    fooled = game.loss(x)
    assert list(fooled) == ["adversarial"]
    for p in game.critic.parameters():
        p.grad = None
        p.requires_grad_(False)  # as `train` does
    fooled.total.backward()
    assert all(p.grad.any() for p in game.denoiser.parameters()) and x.grad is None
    assert all(p.grad is None for p in game.critic.parameters())


def test_the_critic_s_turn_builds_no_graph_through_the_generator():
    game, x, seen = model(), torch.randn(6, D), []
    game.denoiser.backbone.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    game.judge(x)
    game.loss(x)
    assert seen == [False, True]


class Linear(nn.Module):
    """a·x_s + b·x_t + c t."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(n, dtype=F64)) for n in (D, D, 1))

    def forward(self, x, t, given):
        return x @ self.a + given @ self.b + t * self.c


def test_r1_is_of_x_s_only_and_lazy():
    """Of a linear D it is γ/2 ‖a‖², whatever b and c are, and comes every so many steps, times as many."""
    denoiser = Denoiser(Generator(dtype=F64), VariancePreservingSchedule(), "sample")
    critic = Critic(Linear(), r1=0.5, lazy=3)
    game, x = AdversarialDiffusion(denoiser, critic, D, 4, Z), torch.randn(6, D, dtype=F64)
    weight, values = game.judge(x, step=0)["r1"]
    a, b, c = critic.discriminator.parameters()
    torch.testing.assert_close(weight * values, (3 * 0.25 * a.square().sum()).expand(6), rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(values.sum(), [a, b, c], allow_unused=True)
    torch.testing.assert_close(gradients[0], 12 * a)
    assert all(g is None or not g.any() for g in gradients[1:])
    assert ["r1" in game.judge(x, step=step) for step in range(4)] == [True, False, False, True]


@pytest.mark.parametrize("pair, of_critic, of_generator", [
    (non_saturating, 1.386294, 0.693147), (relativistic, 0.693147, 0.693147), (hinge, 2.0, 0.0),
], ids=lambda value: getattr(value, "name", None))  # fmt: skip
def test_at_equilibrium_a_critic_that_cannot_tell_costs_known_numbers(pair, of_critic, of_generator):
    game, x = model(pair), torch.randn(6, D)
    nn.init.zeros_(game.critic.discriminator.net[-1].weight)
    nn.init.zeros_(game.critic.discriminator.net[-1].bias)
    assert game.judge(x).total.item() == pytest.approx(of_critic, abs=1e-6)
    assert game.loss(x).total.item() == pytest.approx(of_generator, abs=1e-6)


def test_a_condition_reaches_both():
    game, x, cond = model(), torch.randn(6, D), torch.arange(6.0)
    for ask in (game.loss, game.judge):
        ask(x, cond)
        assert game.critic.discriminator.seen[-1]["cond"] is cond
        ask(x)
        assert game.critic.discriminator.seen[-1]["cond"] is None
    plain, moved = (game.sample(6, c, generator()) for c in (None, cond))
    assert torch.equal(plain[0], moved[0]) and ((moved - plain)[1:] != 0).all()


# Samples


def test_one_step_samples_are_the_generator_s_answer_to_noise():
    game = model(steps=1, dtype=None)
    drawn = generator()
    noise, z = torch.randn(4, D, generator=drawn), torch.randn(4, Z, generator=drawn)
    expected = game.denoiser.backbone(noise, 1.0, z=z)
    assert torch.equal(game.sample(4, generator=generator()), expected)


@STEPS
@pytest.mark.parametrize("latent", [None, Z])
def test_samples_ask_the_generator_once_a_step_and_repeat(steps, latent):
    game = model(steps=steps, latent=latent)
    one, again = (game.sample(4, generator=generator()) for _ in range(2))
    assert one.shape == (4, D) and torch.equal(one, again) and not one.requires_grad
    assert len(game.denoiser.backbone.seen) == 2 * steps
    assert all((z is None) == (latent is None) for z in game.denoiser.backbone.seen)


@pytest.mark.parametrize("shape", [6, (2, 8, 8)])
def test_vectors_and_images_with_networks_of_the_shelf(shape):
    """Latents of a VAE are either: both losses are finite, and reach every parameter once the last layer is not 0."""
    if isinstance(shape, int):
        backbone, discriminator = MLP(shape, 8, 1), MLPDiscriminator(shape, 8, timed=True, given_features=shape)
    else:
        backbone = UNet(shape, 4, (1, 2), blocks=1)
        discriminator = ResidualDiscriminator(shape, 4, timed=True, given_channels=2)
    nn.init.normal_(backbone.last.weight, std=0.1)
    denoiser = Denoiser(Stochastic(backbone, Z), VariancePreservingSchedule(), "sample")
    game = AdversarialDiffusion(denoiser, Critic(discriminator, r1=0.1), shape, latent=Z)
    x = torch.randn(4, *game.shape)
    (game.loss(x).total + game.judge(x).total).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in game.parameters())
    assert game.sample(3).shape == (3, *game.shape)


# What is refused


def fitting(timesteps=4, latent=Z, schedule=None, variance="small", timed=True, given=D, features=D, outputs=D):
    backbone = MLP(D, 8, 1, out_features=outputs)
    generator = backbone if latent is None else Stochastic(backbone, 3)
    denoiser = Denoiser(generator, schedule or VariancePreservingSchedule(), "sample", variance)
    critic = Critic(MLPDiscriminator(features, 8, 1, timed=timed, given_features=given))
    return AdversarialDiffusion(denoiser, critic, D, timesteps, latent)


def test_what_fits_is_taken():
    for options in ({}, {"latent": None}, {"timesteps": 1, "timed": False}, {"schedule": BetaSchedule()}):
        model = fitting(**options)
        assert model.sample(2).shape == (2, D) and model.loss(torch.randn(2, D)).total.isfinite()


def game_of(backbone, discriminator=None, shape=D, latent=Z):
    critic = Critic(MLPDiscriminator(D, 8, 1, timed=True, given_features=D) if discriminator is None else discriminator)
    return AdversarialDiffusion(
        Denoiser(backbone, VariancePreservingSchedule(), "sample"), critic, shape, latent=latent
    )


@pytest.mark.parametrize("ask, message", [
    (lambda: fitting(timesteps=0), "timesteps must be at least 1; got 0"),
    (lambda: fitting(latent=0), "latent must be at least 1, or None for a generator without z; got 0"),
    (lambda: fitting(schedule=LogSNRLinearSchedule()), "without noise at t = 0.*got a LogSNRLinearSchedule"),
    (lambda: fitting(variance="large"), "variance 'small', that of .*; got 'large'"),
    (lambda: fitting(timed=False),
     r"D\(x, given, t\), timesteps=4; its MLPDiscriminator does not fit: t must be None"),
    (lambda: fitting(timesteps=1), r"D\(x, given\), timesteps=1; its MLPDiscriminator does not fit: t must be given"),
    (lambda: fitting(given=0), "MLPDiscriminator does not fit: given must be None"),
    (lambda: fitting(features=4), r"MLPDiscriminator does not fit: x must be \(B, 4\); got shape \(2, 5\)"),
    (lambda: fitting(outputs=4), r"x of \(5,\) by G\(x_t, t, z\); its Stochastic does not fit: .* got shape \(2, 4\)"),
    (lambda: fitting(latent=4), r"Stochastic does not fit: z must be \(B, 3\); got shape \(2, 4\)"),
    (lambda: game_of(Stochastic(MLP(D, 8, 1), Z), latent=None), "z must be"),
    (lambda: game_of(MLP(D, 8, 1)), "unexpected keyword argument 'z'"),
    (lambda: game_of(UNet((1, 8, 8), 4, self_condition=True), shape=(1, 8, 8), latent=None),
     "denoiser must have self_condition=False"),
    (lambda: game_of(Stochastic(UNet((1, 8, 8), 4), Z), PatchDiscriminator(1, 4), (1, 8, 8)),
     "PatchDiscriminator does not fit: t must be None"),
    (lambda: VAE(MLPEncoder(4, D, 8), nn.Identity(), model()), "AdversarialDiffusion is implicit: it has no nll"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused_when_it_is_built(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_discriminator_is_no_critic():
    denoiser = Denoiser(Stochastic(MLP(D, 8, 1), Z), VariancePreservingSchedule(), "sample")
    with pytest.raises(TypeError, match=r"critic must offer tell and fool, .*; got a MLPDiscriminator"):
        AdversarialDiffusion(denoiser, MLPDiscriminator(D, 8, 1, timed=True, given_features=D), D, latent=Z)


def test_being_tried_out_leaves_modes_and_random_numbers_alone():
    backbone = UNet((1, 8, 8), 4, dropout=0.5)
    backbone.middle.eval()
    discriminator = ResidualDiscriminator((1, 8, 8), 4, timed=True, given_channels=1, spectral_norm=True)
    buffers = [b.clone() for b in discriminator.buffers()]
    denoiser = Denoiser(backbone, VariancePreservingSchedule(), "sample")
    before = torch.get_rng_state()
    game = AdversarialDiffusion(denoiser, Critic(discriminator), (1, 8, 8), latent=None)
    assert torch.equal(before, torch.get_rng_state())
    assert game.training and discriminator.training and backbone.training and not backbone.middle.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, discriminator.buffers()))


def test_it_is_implicit():
    game = model()
    assert not isinstance(game, Model) and not hasattr(game, "nll") and not hasattr(game, "bound")
