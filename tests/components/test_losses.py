import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from components.losses import hinge, non_saturating, relativistic, squared_gradient

F64 = torch.float64
PAIRS = pytest.mark.parametrize("pair", [non_saturating, hinge, relativistic], ids=lambda pair: pair.name)

# A fine grid for integrals over the line, for two Gaussians N(0, 1) and N(shift, 1).
Y = torch.linspace(-12, 14, 20_001, dtype=F64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def density(shift):
    return torch.exp(-0.5 * (Y - shift) ** 2) / math.sqrt(2 * math.pi)


def game(logits, p, q):
    """The discriminator's loss with real ~ p and fake ~ q, integrated over the line."""
    sure = torch.full_like(logits, 1e4)  # softplus(-1e4) = 0: the other side's part is left out
    on_real, on_fake = non_saturating.of_discriminator(logits, -sure), non_saturating.of_discriminator(sure, logits)
    return torch.trapezoid(p * on_real + q * on_fake, Y).item()


# The optimal discriminator


@pytest.mark.parametrize("shift, divergence, value", [(2.0, 0.336831, -0.712633), (1.0, 0.111421, -1.163451)])
def test_row_9_the_value_at_the_best_discriminator_is_2_jsd_minus_log_4(shift, divergence, value):
    p, q = density(0.0), density(shift)
    m = (p + q) / 2
    jsd = 0.5 * torch.trapezoid(torch.xlogy(p, p / m) + torch.xlogy(q, q / m), Y).item()
    found = -game(p.log() - q.log(), p, q)  # D* = p/(p+q) as a logit
    assert found == pytest.approx(2 * jsd - math.log(4), abs=1e-9)
    assert (jsd, found) == (pytest.approx(divergence, abs=1e-6), pytest.approx(value, abs=1e-6))


def test_row_9_that_logit_is_linear_for_two_shifted_gaussians():
    torch.testing.assert_close(density(0.0).log() - density(2.0).log(), 2 - 2 * Y, rtol=1e-9, atol=1e-9)


def test_row_9_for_equal_distributions_it_is_minus_log_4():
    assert -game(torch.zeros_like(Y), density(0.0), density(0.0)) == pytest.approx(-1.386294, abs=1e-6)


def test_row_9_for_disjoint_supports_it_is_zero():
    real = torch.full((5,), 1e4, dtype=F64)
    assert non_saturating.discriminator(real, -real).abs().max() < 1e-6


def test_row_8_no_other_discriminator_does_better():
    p, q = density(0.0), density(2.0)
    best = p.log() - q.log()
    for change in (torch.ones_like(Y), Y, Y.sin(), Y.square()):
        for size in (0.01, -0.01, 0.3):
            assert game(best + size * change, p, q) > game(best, p, q) + 1e-7


def test_row_8_a_trained_discriminator_finds_the_ratio():
    network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for step in range(300):
        real, fake = torch.randn(512, 1), 2 + torch.randn(512, 1)
        loss = non_saturating.discriminator(network(real)[:, 0], network(fake)[:, 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * (1 - step / 300)
    y = Y[(density(0.0) + density(2.0)) > 1e-2]
    error = torch.sigmoid(network(y[:, None].float())[:, 0].double()) - torch.sigmoid(2 - 2 * y)
    assert error.abs().mean() < 0.02


# Pairs


@pytest.mark.parametrize("pair, of_discriminator, of_generator", [
    (non_saturating, 1.386294, 0.693147), (relativistic, 0.693147, 0.693147), (hinge, 2.0, 0.0),
], ids=lambda value: getattr(value, "name", None))  # fmt: skip
def test_losses_at_equilibrium(pair, of_discriminator, of_generator):
    zero = torch.zeros(3, dtype=F64)
    assert pair.discriminator(zero, zero).tolist() == pytest.approx([of_discriminator] * 3, abs=1e-6)
    assert pair.generator(zero, zero).tolist() == pytest.approx([of_generator] * 3, abs=1e-6)


def test_row_10_both_generator_losses_pull_in_one_direction_at_one_sample():
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    fake = torch.randn(1, 3, dtype=F64, requires_grad=True)
    logit = network(fake)[:, 0]
    (ours,) = torch.autograd.grad(non_saturating.generator(logit).sum(), fake, retain_graph=True)
    (minimax,) = torch.autograd.grad(torch.log(1 - torch.sigmoid(logit)).sum(), fake, retain_graph=True)
    assert F.cosine_similarity(ours, minimax).item() == pytest.approx(1, abs=1e-10)
    # 1 - D against D: the minimax gradient vanishes where the critic is sure of a fake.
    assert (ours.norm() / minimax.norm()).item() == pytest.approx(math.exp(-logit.item()), rel=1e-9)


def test_row_10_both_generator_losses_stand_still_where_the_critic_is_flat():
    fake = torch.randn(4, 3, dtype=F64, requires_grad=True)
    flat = (fake * 0).sum(1)
    (gradient,) = torch.autograd.grad(non_saturating.generator(flat).sum(), fake)
    assert not gradient.any()


@pytest.mark.parametrize("pair, real, fake", [
    (non_saturating, -0.3, -0.7), (hinge, -0.3, -0.7), (relativistic, -0.3, -0.7), (hinge, 2.0, -2.0),
    (non_saturating, 30.0, 40.0), (relativistic, 3.0, 2.0),
])  # fmt: skip
def test_the_formulas(pair, real, fake):
    a, b = torch.tensor([real], dtype=F64), torch.tensor([fake], dtype=F64)
    softplus = lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0)  # noqa: E731
    expected = {
        "non_saturating": (softplus(-real) + softplus(fake), softplus(-fake)),
        "hinge": (max(1 - real, 0) + max(1 + fake, 0), -fake),
        "relativistic": (softplus(-(real - fake)), softplus(-(fake - real))),
    }[pair.name]
    assert pair.discriminator(a, b).item() == pytest.approx(expected[0], rel=1e-8, abs=1e-12)
    assert pair.generator(b, a).item() == pytest.approx(expected[1], rel=1e-8, abs=1e-12)


@PAIRS
def test_the_critic_gains_from_higher_real_and_the_generator_from_higher_fake(pair):
    real, fake = (torch.zeros(3, requires_grad=True) for _ in range(2))
    on_real, on_fake = torch.autograd.grad(pair.discriminator(real, fake).sum(), (real, fake))
    assert (on_real < 0).all() and (on_fake > 0).all()
    assert (torch.autograd.grad(pair.generator(fake, real).sum(), fake)[0] < 0).all()


@PAIRS
def test_patches_are_averaged(pair):
    real, fake = torch.randn(2, 4, 1, 3, 3, dtype=F64)
    each = torch.stack([pair.discriminator(real[:, 0, i, j], fake[:, 0, i, j]) for i in range(3) for j in range(3)])
    torch.testing.assert_close(pair.discriminator(real, fake), each.mean(0), rtol=1e-12, atol=1e-12)
    assert pair.generator(fake, real).shape == (4,)


@PAIRS
def test_half_precision_is_widened_and_double_is_kept(pair):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        logits = torch.ones(3, dtype=dtype)
        assert pair.discriminator(logits, logits).dtype == pair.generator(logits, logits).dtype == expected


@PAIRS
def test_losses_and_gradients_are_finite_at_extreme_logits(pair):
    real, fake = torch.tensor([1e4, -1e4], requires_grad=True), torch.tensor([-1e4, 1e4], requires_grad=True)
    (pair.discriminator(real, fake) + pair.generator(fake, real)).sum().backward()
    assert real.grad.isfinite().all() and fake.grad.isfinite().all()


def test_a_relativistic_generator_without_real_is_refused():
    with pytest.raises(
        ValueError, match="the relativistic loss compares fake with real: the generator's turn needs real"
    ):
        relativistic.generator(torch.zeros(3))
    assert non_saturating.generator(torch.zeros(3)).shape == hinge.generator(torch.zeros(3)).shape == (3,)


# Penalties


def test_row_11_a_linear_critic_s_squared_gradient_is_that_of_its_weights():
    w, x = torch.randn(5, dtype=F64), torch.randn(4, 5, dtype=F64, requires_grad=True)
    found = squared_gradient(x @ w, x)
    torch.testing.assert_close(found, w.square().sum().expand(4), rtol=1e-10, atol=0)


def test_a_quadratic_critic_s_squared_gradient():
    x = torch.randn(6, 2, 3, dtype=F64, requires_grad=True)
    found = squared_gradient(0.5 * 1.7 * x.square().sum((1, 2)), x)
    torch.testing.assert_close(found, 1.7**2 * x.detach().square().sum((1, 2)), rtol=1e-10, atol=0)


def test_row_12_the_gradient_penalty_of_a_linear_critic_of_unit_norm_is_zero():
    w = F.normalize(torch.randn(5, dtype=F64), dim=0)
    x = torch.randn(4, 5, dtype=F64, requires_grad=True)
    assert ((squared_gradient(x @ w, x).sqrt() - 1).square() < 1e-10).all()


def test_patches_are_summed():
    x = torch.randn(3, 1, 4, 4, dtype=F64, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, dtype=F64)
    patches = F.conv2d(x, weight)
    torch.testing.assert_close(squared_gradient(patches, x), squared_gradient(patches.sum((1, 2, 3)), x))


def test_a_squared_gradient_is_differentiable_in_the_weights():
    w, x = torch.randn(5, dtype=F64, requires_grad=True), torch.randn(4, 5, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(squared_gradient(x @ w, x).mean(), w)
    torch.testing.assert_close(gradient, 2 * w.detach(), rtol=1e-10, atol=0)


def test_a_squared_gradient_of_what_needs_none_is_refused():
    x = torch.randn(4, 5)
    with pytest.raises(ValueError, match="x must require a gradient, and logits must have been computed from it"):
        squared_gradient(x.sum(1), x)
