"""The denoising diffusion GAN: rows 35 and 36."""

import math

import numpy
import torch
from answers import F64, generator
from diffusions import given, moved
from torch import nn

from components.denoisers import Denoiser, MixtureMean
from components.distributions import Delta, per_example
from components.losses import minimax, non_saturating, relativistic
from components.schedules import BetaSchedule, FlowSchedule, VariancePreservingSchedule, over
from hybrids import GAN, AdversarialDiffusion, Critic, Diffusion, Terms
from hybrids.data.points import Mixture

D, Z = 5, 3


class AtNoise(AdversarialDiffusion):
    """A game whose levels, and the noise of x_s, of x_t and of x'_s (B, D), are given instead of drawn."""

    def give(self, s, t, first, second, third):
        self.given = s, t, first, second, third
        return self

    def _pair(self, x, generator):
        s, t, first, second, _ = self.given
        x_s = moved(self.denoiser.schedule.marginal(x, s), first)
        return x_s, moved(self.denoiser.schedule.transition(x_s, s, t), second), s, t

    def _fake(self, x_t, s, t, cond, generator):
        return moved(self.denoiser.reverse(x_t, s, t, cond), self.given[-1])


# Row 35: both limits


class Generator(nn.Module):
    """x̂, smooth in x_t, t and z."""

    def __init__(self, latent=Z):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D + 1 + (latent or 0), 7), nn.Tanh(), nn.Linear(7, D)).double()

    def forward(self, x_t, t, cond=None, z=None):
        t = torch.as_tensor(t).to(x_t).expand(len(x_t))[:, None]
        return self.net(torch.cat([x_t, t] if z is None else [x_t, t, z], 1))


class Discriminator(nn.Module):
    """A logit of the pair."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * D, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()

    def forward(self, x, given, t=None):
        return self.net(torch.cat([x, given], 1))


class Joined(nn.Module):
    """Of an event (x, y), a generator that returns its noise beside x, or a discriminator that gets x and y apart."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, both, cond=None):
        if isinstance(self.network, Generator):
            noise, z = both.split([D, Z], dim=1)
            return Delta(torch.cat([self.network(noise, 1.0, z=z), noise], 1))
        return self.network(*both.split([D, D], dim=1))


def test_one_step_is_a_gan_on_x_and_pure_noise(row):
    """A denoising GAN of one step is a GAN whose data are (x, noise), loss and gradients. Xiao 2021, 2112.07804."""
    x, drawn = torch.randn(6, D, dtype=F64), generator()
    # What the one step draws: its level, x_s of no noise, x_t of nothing else, and z.
    torch.randint(1, (6,), generator=drawn)
    _, noise, z = (torch.randn(6, d, dtype=F64, generator=drawn) for d in (D, D, Z))
    both = torch.cat([noise, z], 1)
    for pair in (non_saturating, relativistic):
        denoiser = Denoiser(Generator(), FlowSchedule(), "sample")
        one = AdversarialDiffusion(denoiser, Critic(Discriminator(), pair), D, timesteps=1, latent=Z)
        gan = GAN(Joined(denoiser.backbone), Critic(Joined(one.critic.discriminator), pair), D + Z)
        gan.draw = lambda n, cond, generator, gan=gan: gan.generator(both).mean
        players = {
            "generator": (one.loss, gan.loss, denoiser.parameters()),
            "critic": (one.judge, gan.judge, one.critic.parameters()),
        }
        for player, (mine, other, network) in players.items():
            found, expected = mine(x, generator=generator()).total, other(torch.cat([x, noise], 1)).total
            weights = list(network)
            gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(v, weights)]) for v in (found, expected)]
            assert gradients[1].abs().max() > 1e-3
            name = f"{pair.name}, {player}".replace("_", "-")
            row(35, found, expected, 1e-12, words=f"{name}: loss")
            row(35, *gradients, 1e-6, words=f"{name}: gradient")


class SquaredError(Critic):
    """‖x_s - x'_s‖² in the place of a discriminator's opinion."""

    def fool(self, fake, real=None, **given):
        return Terms(squares=per_example((fake - real).square()))


def test_many_steps_without_z_and_with_a_squared_error_are_a_ddpm(row):
    """Of many steps, without z and with a squared error, it is DDPM's x_0 objective. Xiao 2021, 2112.07804, section 3.

    With the noise of the real x_s, ‖x_s - x'_s‖² is that at the same x_t, times the posterior's factor on x squared,
    which is 1 at the first of the thousand levels.
    """
    steps, n = 1000, 64
    denoiser = Denoiser(Generator(None), BetaSchedule("linear", steps), "sample")
    few = AtNoise(denoiser, SquaredError(Discriminator()), D, steps, latent=None)
    ddpm = Diffusion(denoiser, D, timesteps=steps)
    schedule, x, first, second = denoiser.schedule, *torch.randn(3, n, D, dtype=F64)
    i = torch.randint(steps, (n,), dtype=F64)
    i[:8] = 0
    s, t = i / steps, (i + 1) / steps
    x_s = moved(schedule.marginal(x, s), first)
    x_t = moved(schedule.transition(x_s, s, t), second)
    on_x_t, on_x, std, _ = schedule.posterior_coefficients(s, t)
    posterior = (x_s - over(on_x_t, x) * x_t - over(on_x, x) * x) / over(std.clamp(min=1e-12), x)
    alpha, sigma = schedule.alpha_sigma(t)
    epsilon = (x_t - over(alpha, x) * x) / over(sigma, x)
    found = few.give(s, t, first, second, posterior).loss(x).per_example
    given(ddpm, epsilon, (i + 0.5) / steps)
    expected = on_x.square() * ddpm.loss(x).per_example
    assert torch.equal(on_x[:8], torch.ones(8, dtype=F64)) and on_x[8:].max() < 0.7
    row(35, found / expected, 1.0, 1e-6, words="many steps: ratio of the losses, of 64 x")
    for words, chosen in (("at the first level", slice(0, 8)), ("at the others", slice(8, n))):
        losses = (found[chosen].sum(), expected[chosen].sum())
        gradients = [torch.autograd.grad(loss, list(denoiser.parameters()), retain_graph=True) for loss in losses]
        ours, theirs = (torch.cat([g.flatten() for g in gradient]) for gradient in gradients)
        row(35, (ours - theirs).norm() / theirs.norm(), 0.0, 1e-6, words=f"many steps: gradients, {words}")


# Row 36: the value of the game

MEANS, WIDTH = torch.tensor([[-1.0], [1.0]], dtype=F64), 0.2


class Step:
    """A mixture of two Gaussians on the line, one step of its diffusion, and a generator that answers E[x|x_t]."""

    def __init__(self, s, t):
        self.schedule = VariancePreservingSchedule()
        self.s, self.t = s, t
        self.denoiser = Denoiser(MixtureMean(self.schedule, MEANS, WIDTH), self.schedule, "sample")

    def log_q(self, x, t):
        """log q(x_t) of x (B, 1)."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return Mixture(alpha * MEANS, float((alpha.square() * WIDTH**2 + sigma.square()).sqrt())).log_prob(x)

    def logs(self, x_s, x_t):
        """log q(x_s|x_t) and log p(x_s|x_t), of (B, 1) each."""
        forward = self.schedule.transition(x_s, self.s, self.t).log_prob(x_t)
        true = self.log_q(x_s, self.s) + forward - self.log_q(x_t, self.t)
        return true, self.denoiser.reverse(x_t, self.s, self.t).log_prob(x_s)


class Optimal(nn.Module):
    """scale × log q/p + shift: the optimal logit for 1 and 0."""

    def __init__(self, step, scale=1.0, shift=0.0):
        super().__init__()
        self.step, self.scale, self.shift = step, scale, shift

    def forward(self, x, t, given):
        true, fake = self.step.logs(x, given)
        return self.scale * (true - fake) + self.shift


def hermite(n):
    """Nodes and shares of N(0, 1)."""
    nodes, shares = (torch.tensor(values) for values in numpy.polynomial.hermite_e.hermegauss(n))
    return nodes, shares / shares.sum()


def value(step, discriminator):
    """E log sigmoid D(x_s, x_t) + E log(1 - sigmoid D(x'_s, x_t)) of the model's own judge, by Gauss-Hermite."""
    game = AtNoise(step.denoiser, Critic(discriminator, minimax), 1, 4, None)
    (a, a_share), (b, b_share) = hermite(8), hermite(16)
    grid = [each.flatten()[:, None] for each in torch.meshgrid(torch.arange(2).to(a), a, b, b, b, indexing="ij")]
    half = torch.full((2,), 0.5, dtype=F64)
    shares = torch.stack(torch.meshgrid(half, a_share, b_share, b_share, b_share, indexing="ij")).prod(0).flatten()
    game.give(*(torch.full((len(shares),), time, dtype=F64) for time in (step.s, step.t)), *grid[2:])
    return -(shares * game.judge(MEANS[grid[0][:, 0].long()] + WIDTH * grid[1])["adversarial"][1]).sum()


@torch.no_grad()
def test_at_the_optimal_discriminator_the_value_is_the_divergence(row):
    """At its best D the minimax value is 2 E JSD(q(x_s|x_t), p(x_s|x_t)) - log 4. Goodfellow 2014; Xiao 2021, eq. 4."""
    for s, t in ((0.25, 0.5), (0.25, 1.0), (0.15, 0.5)):
        step = Step(s, t)
        x_t, x_s = torch.linspace(-5, 5, 401, dtype=F64), torch.linspace(-6, 6, 1601, dtype=F64)
        pairs = torch.cartesian_prod(x_t, x_s)
        true, fake = (logs.view(401, 1601) for logs in step.logs(pairs[:, 1:], pairs[:, :1]))
        middle = torch.logaddexp(true, fake) - math.log(2)
        jsd = 0.5 * torch.trapezoid(true.exp() * (true - middle) + fake.exp() * (fake - middle), x_s, dim=1)
        divergence = torch.trapezoid(step.log_q(x_t[:, None], t).exp() * jsd, x_t)
        found = value(step, Optimal(step))
        row(36, found, 2 * divergence - math.log(4), 1e-5, words=f"from t = {t} to s = {s}, a mixture on the line")
        worse = max(value(step, Optimal(step, **change)) for change in ({"scale": 0.7}, {"shift": 0.3}))
        row(36, found - worse, at_least=1e-3, words="what other D lose")
