"""The generative adversarial network: rows 8 to 13."""

import math

import torch
import torch.nn.functional as F
from answers import F64
from torch import nn

from components.distributions import Normal
from components.losses import minimax, non_saturating, wasserstein
from hybrids.critic import Critic

# N(0, 1) on a grid: the trapezoid rule errs by less than rounding on what is smooth and falls to nothing.
Z = torch.linspace(-12, 12, 4001, dtype=F64)[:, None]
SHARE = torch.exp(-0.5 * Z[:, 0] ** 2) / torch.exp(-0.5 * Z[:, 0] ** 2).sum()


class Function(nn.Module):
    """A discriminator that is a function of x (B, D), with nothing to learn."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Linear(nn.Module):
    """D(x) = w·x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x @ self.w


def standard(shift):
    return Normal(torch.full((1, 1), float(shift), dtype=F64), 1.0)


def log_ratio(shift):
    """log p/q of N(0, 1) and N(shift, 1): D* = p/(p + q) as a logit."""
    return lambda x: standard(0).log_prob(x) - standard(shift).log_prob(x)


def value(logit, shift):
    """E_p log D + E_q log(1 - D) of the critic's own objective, p = N(0, 1) real and q = N(shift, 1) fake."""
    return -(SHARE * Critic(Function(logit)).tell(Z, Z + shift)["adversarial"][1]).sum()


def divergence(shift):
    """JSD(p ‖ q) = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2."""
    total = 0.0
    for x in (Z, Z + shift):
        p, q = standard(0).log_prob(x), standard(shift).log_prob(x)
        own = p if x is Z else q
        total = total + 0.5 * (SHARE * (own - torch.logaddexp(p, q) + math.log(2))).sum()
    return total


def test_no_discriminator_does_better_than_the_ratio(row):
    """D* = p/(p + q) minimizes the discriminator's loss. Goodfellow 2014, 1406.2661, proposition 1."""
    best = log_ratio(2.0)
    others = [
        lambda x, change=change, size=size: best(x) + size * change(x[:, 0])
        for change in (torch.ones_like, torch.clone, torch.sin, torch.square)
        for size in (0.01, -0.01, 0.3)
    ]
    losses = torch.stack([value(best, 2.0) - value(other, 2.0) for other in others])
    row(8, losses.min(), at_least=1e-7, words="least loss added, of 12 other D")


def test_a_trained_discriminator_finds_the_ratio(row):
    """An MLP trained on N(0, 1) against N(2, 1) becomes p/(p + q). Goodfellow 2014, 1406.2661, proposition 1."""
    critic = Critic(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0)))
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-2)
    for step in range(300):
        loss = critic.tell(torch.randn(512, 1), 2 + torch.randn(512, 1)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * (1 - step / 300)
    x = torch.linspace(-6, 8, 2001, dtype=F64)[:, None]
    x = x[(standard(0).log_prob(x).exp() + standard(2).log_prob(x).exp()) > 1e-2]
    error = torch.sigmoid(critic(x.float())) - torch.sigmoid(log_ratio(2.0)(x))
    row(8, error.abs().mean(), at_most=0.02, words="mean |D - D*| where p + q > 0.01, trained")


def test_at_the_best_discriminator_the_value_is_the_jensen_shannon_divergence(row):
    """The value of the game at D* is 2 JSD(p, q) - log 4. Goodfellow 2014, 1406.2661, theorem 1."""
    for shift, jsd, expected in ((2.0, 0.336831, -0.712633), (1.0, 0.111421, -1.163451)):
        found = value(log_ratio(shift), shift)
        row(9, found, 2 * divergence(shift) - math.log(4), 1e-9, words=f"N(0, 1), N({shift:g}, 1)")
        row(9, found, expected, 1e-6, words="its number")
        row(9, divergence(shift), jsd, 1e-6, words="its JSD")
    row(9, value(log_ratio(0.0), 0.0), -1.386294, 1e-6, words="p = q: -log 4")
    apart = Function(lambda x: 1e4 * x.sum(1).sign())
    row(9, Critic(apart).tell(1 + Z.abs(), -1 - Z.abs())["adversarial"][1], 0.0, 1e-6, words="disjoint supports")


def test_both_generator_losses_have_one_fixed_point(row):
    """Non-saturating and minimax gradients of G agree in direction, not in scale. Goodfellow 2014, section 3."""
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    fake = torch.randn(1, 3, dtype=F64, requires_grad=True)
    logit = network(fake)
    critics = [Critic(network, pair) for pair in (non_saturating, minimax)]
    ours, theirs = (torch.autograd.grad(critic.fool(fake).total, fake)[0] for critic in critics)
    row(10, F.cosine_similarity(ours, theirs), 1.0, 1e-10, words="cosine at one sample")
    row(10, ours.norm() / theirs.norm(), (-logit).exp(), 1e-9, words="ratio of lengths, (1 - D)/D")
    flat = [Critic(Function(lambda x: 0 * x.sum(1)), pair).fool(fake).total for pair in (non_saturating, minimax)]
    still = [torch.autograd.grad(loss, fake)[0].abs().max() for loss in flat]
    row(10, max(still), 0.0, 0.0, words="both, where D is flat")


def test_penalties_of_a_linear_critic(row):
    """R1 and R2 of D(x) = w·x are γ/2 ‖w‖². Mescheder 2018, 1801.04406, eq. 9; Huang 2024, 2501.05441."""
    critic = Critic(Linear(torch.randn(5, dtype=F64)), r1=3.0, r2=5.0)
    terms = critic.tell(*torch.randn(2, 6, 5, dtype=F64))
    for name, gamma in (("r1", 3.0), ("r2", 5.0)):
        weight, values = terms[name]
        expected = gamma / 2 * critic.discriminator.w.square().sum()
        row(11, weight * values.mean(), expected, 1e-10, words=f"{name.upper()} with γ = {gamma:g}")


def test_lazy_penalties_have_the_same_mean_gradient(row):
    """A penalty every k steps, times k, has the mean gradient of one at each step. Karras 2019, 1912.04958."""
    real, fake = torch.randn(2, 6, 5, dtype=F64)
    for lazy in (2, 16):
        gradients = []
        for every in (1, lazy):
            critic = Critic(Linear(torch.ones(5, dtype=F64)), r1=3.0, r2=5.0, gp=7.0, lazy=every)
            total = sum(critic.tell(real, fake, step=step).total for step in range(lazy)) / lazy
            gradients.append(torch.autograd.grad(total, critic.discriminator.w)[0])
        row(11, gradients[1], gradients[0], 1e-10, words=f"gradient in w, every {lazy} steps against each")


def test_the_gradient_penalty_of_a_critic_of_unit_slope_is_zero(row):
    """λ (‖∇D‖ - 1)² is 0 for D(x) = w·x with ‖w‖ = 1. Gulrajani 2017, 1704.00028, eq. 3."""
    w = F.normalize(torch.randn(5, dtype=F64), dim=0)
    for slope in (1.0, 3.0, 0.0):
        critic = Critic(Linear(slope * w), wasserstein, gp=10.0)
        weight, values = critic.tell(*torch.randn(2, 6, 5, dtype=F64))["gp"]
        row(12, weight * values, 10 * (slope - 1) ** 2, 1e-10, words=f"‖w‖ = {slope:g}, λ = 10")


def test_the_best_critic_s_value_is_the_shift(row):
    """Among 1-Lipschitz critics the best has the value |shift|, which is W₁. Arjovsky 2017, 1701.07875, eq. 2."""
    shift = torch.tensor([3.0, -4.0], dtype=F64)
    angles = torch.linspace(0, 2 * math.pi, 101, dtype=F64)
    slopes = [shift / 5, *torch.stack([angles.cos(), angles.sin()], 1)]
    for words, fake in (("Diracs", torch.zeros(1, 2)), ("clouds", torch.randn(50, 2))):
        fake = fake.double()
        values = [-Critic(Linear(w), wasserstein).tell(fake + shift, fake).total for w in slopes]
        row(13, values[0], 5.0, 1e-9, words=f"two {words}, D along the shift of 5")
        row(13, max(values), at_most=5.0, tolerance=1e-9, words=f"two {words}, 101 other directions")


def test_a_critic_trained_with_a_penalty_finds_the_shift(row):
    """max of θw - λ (|w| - 1)² is at w = 1 + θ/2λ, so the value falls to the shift. Gulrajani 2017, 1704.00028."""
    real, fake = torch.full((1, 1), 2.0, dtype=F64), torch.zeros(1, 1, dtype=F64)
    for strength in (10.0, 10_000.0):
        critic = Critic(Linear(torch.full((1,), 1.5, dtype=F64)), wasserstein, gp=strength)
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.4 / strength)
        for _ in range(60):
            optimizer.zero_grad()
            critic.tell(real, fake).total.backward()
            optimizer.step()
        found = (critic(real) - critic(fake)).squeeze()
        row(13, found, 2 * (1 + 1 / strength), 1e-9, words=f"trained, λ = {strength:g}")
    row(13, found, 2.0, 1e-3, words="against the shift of 2")
