"""Adversarial losses in pairs, and gradient penalties."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from answers import F64

from components.losses import (
    gradient_penalty,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    squared_gradient,
    wasserstein,
)

ALL = [non_saturating, minimax, least_squares, wasserstein, hinge, relativistic]
PAIRS = pytest.mark.parametrize("pair", ALL, ids=lambda pair: pair.name)

# A fine grid for integrals over the line, for two Gaussians N(0, 1) and N(shift, 1).
Y = torch.linspace(-12, 14, 20_001, dtype=F64)


def density(shift):
    return torch.exp(-0.5 * (Y - shift) ** 2) / math.sqrt(2 * math.pi)


# Pairs


@pytest.mark.parametrize("pair, of_discriminator, of_generator", [
    (non_saturating, 1.386294, 0.693147), (relativistic, 0.693147, 0.693147), (hinge, 2.0, 0.0),
    (minimax, 1.386294, -0.693147), (least_squares, 0.5, 0.5), (wasserstein, 0.0, 0.0),
], ids=lambda value: getattr(value, "name", None))  # fmt: skip
def test_losses_at_equilibrium(pair, of_discriminator, of_generator):
    zero = torch.zeros(3, dtype=F64)
    assert pair.discriminator(zero, zero).tolist() == pytest.approx([of_discriminator] * 3, abs=1e-6)
    assert pair.generator(zero, zero).tolist() == pytest.approx([of_generator] * 3, abs=1e-6)


@pytest.mark.parametrize("pair, real, fake", [
    (non_saturating, -0.3, -0.7), (hinge, -0.3, -0.7), (relativistic, -0.3, -0.7), (hinge, 2.0, -2.0),
    (non_saturating, 30.0, 40.0), (relativistic, 3.0, 2.0),
    (minimax, -0.3, -0.7), (minimax, 30.0, 40.0), (least_squares, 0.8, -1.5), (wasserstein, 0.8, -1.5),
])  # fmt: skip
def test_the_formulas(pair, real, fake):
    a, b = torch.tensor([real], dtype=F64), torch.tensor([fake], dtype=F64)
    softplus = lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0)  # noqa: E731
    expected = {
        "non_saturating": (softplus(-real) + softplus(fake), softplus(-fake)),
        "minimax": (softplus(-real) + softplus(fake), -softplus(fake)),
        "least_squares": (((real - 1) ** 2 + fake**2) / 2, (fake - 1) ** 2 / 2),
        "wasserstein": (fake - real, -fake),
        "hinge": (max(1 - real, 0) + max(1 + fake, 0), -fake),
        "relativistic": (softplus(-(real - fake)), softplus(-(fake - real))),
    }[pair.name]
    assert pair.discriminator(a, b).item() == pytest.approx(expected[0], rel=1e-8, abs=1e-12)
    assert pair.generator(b, a).item() == pytest.approx(expected[1], rel=1e-8, abs=1e-12)


@PAIRS
def test_the_critic_gains_from_higher_real_and_the_generator_from_higher_fake(pair):
    real, fake = (torch.full((3,), 0.5, requires_grad=True) for _ in range(2))
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


@pytest.mark.parametrize("pair", [pair for pair in ALL if pair is not relativistic], ids=lambda pair: pair.name)
@pytest.mark.parametrize("shape", [(3,), (1,), (4, 1, 2, 2)])
def test_a_generator_s_loss_ignores_real_unless_it_is_relativistic(pair, shape):
    fake = torch.randn(shape)
    assert torch.equal(pair.generator(fake, torch.randn(4)), pair.generator(fake))
    assert pair.generator(fake).shape == shape[:1]


# Other pairs


def test_the_minimax_game_is_one_value_that_both_sides_pull_at():
    """What the critic minimizes is minus what the generator does, but for what only the critic sees."""
    real, fake = torch.randn(2, 5, dtype=F64)
    value = -minimax.discriminator(real, fake)
    torch.testing.assert_close(value - minimax.generator(fake), F.logsigmoid(real), rtol=1e-9, atol=1e-12)


def test_the_best_least_squares_critic_gives_the_share_of_real():
    """D* = p/(p+q) (Mao 2016, eq. 5 with a = 0, b = 1), where its loss is ½ ∫ pq/(p + q)."""
    p, q = density(0.0), density(1.0)

    def loss(logits):
        zero = torch.zeros_like(logits)
        on_real = least_squares.of_discriminator(logits, zero)
        on_fake = least_squares.of_discriminator(zero + 1, logits)
        return torch.trapezoid(p * on_real + q * on_fake, Y).item()

    best = p / (p + q)
    assert loss(best) == pytest.approx(0.5 * torch.trapezoid(p * q / (p + q), Y).item(), rel=1e-9)
    for change in (torch.ones_like(Y), Y.sin()):
        assert loss(best) < min(loss(best + 0.01 * change), loss(best - 0.01 * change))


# Penalties


def test_a_quadratic_critic_s_squared_gradient():
    x = torch.randn(6, 2, 3, dtype=F64, requires_grad=True)
    squares = squared_gradient(0.5 * 1.7 * x.square().sum((1, 2)), x)
    torch.testing.assert_close(squares, 1.7**2 * x.detach().square().sum((1, 2)), rtol=1e-10, atol=0)


def test_a_gradient_penalty_looks_between_real_and_fake():
    """Where D = ½ ‖x‖² it is (‖x̃‖ - 1)²: x̃ is on the segment, at a uniform place for each example."""
    real, fake = torch.tensor([[3.0, 0.0]]).expand(1000, 2), torch.tensor([[5.0, 0.0]]).expand(1000, 2)
    norm = gradient_penalty(lambda x: 0.5 * x.square().sum(1), real, fake).sqrt() + 1
    place = ((norm - 3) / 2).sort().values
    assert place[0] >= 0 and place[-1] <= 1
    assert (place - torch.arange(1000) / 1000).abs().max() < 1.95 / math.sqrt(1000) + 1e-3  # Kolmogorov's
    one, same, other = (
        gradient_penalty(lambda x: x.square().sum(1), real, fake, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_gradient_penalty_reaches_the_critic_alone_and_is_finite_where_it_is_flat():
    w = torch.zeros(5, dtype=F64, requires_grad=True)
    real, fake = (torch.randn(4, 5, dtype=F64, requires_grad=True) for _ in range(2))
    gradient_penalty(lambda x: x @ w, real, fake).mean().backward()
    assert real.grad is None and fake.grad is None and w.grad.isfinite().all()
    w = torch.full((5,), 2.0, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(gradient_penalty(lambda x: x @ w, real, fake).mean(), w)
    torch.testing.assert_close(gradient, (2 * (w.norm() - 1) * w / w.norm()).detach(), rtol=1e-10, atol=0)


def test_a_gradient_penalty_of_patches_is_of_their_sum_and_widens():
    real, fake = torch.randn(2, 3, 1, 6, 6)
    weight, seed = torch.randn(1, 1, 3, 3), torch.Generator().manual_seed
    patches, summed = (
        gradient_penalty(lambda x: pool(F.conv2d(x, weight)), real, fake, seed(1))  # noqa: B023
        for pool in (lambda h: h, lambda h: h.sum((1, 2, 3)))
    )
    torch.testing.assert_close(patches, summed)
    penalty = gradient_penalty(lambda x: F.conv2d(x, weight), real.bfloat16(), fake.bfloat16())
    assert penalty.shape == (3,) and penalty.dtype == torch.float32


def test_patches_are_summed():
    x = torch.randn(3, 1, 4, 4, dtype=F64, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, dtype=F64)
    patches = F.conv2d(x, weight)
    torch.testing.assert_close(squared_gradient(patches, x), squared_gradient(patches.sum((1, 2, 3)), x))


def test_a_squared_gradient_is_differentiable_in_the_weights():
    w, x = torch.randn(5, dtype=F64, requires_grad=True), torch.randn(4, 5, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(squared_gradient(x @ w, x).mean(), w)
    torch.testing.assert_close(gradient, 2 * w.detach(), rtol=1e-10, atol=0)


# Refusals


SHAPES = [(3,), (1,), (4, 1, 2, 2)]


@pytest.mark.parametrize("call, message", [
    *((lambda pair=pair, shape=shape: pair.discriminator(torch.zeros(4), torch.zeros(shape)),
       f"real and fake must have the same shape; got (4,) and {shape}") for pair in ALL for shape in SHAPES),
    *((lambda shape=shape: relativistic.generator(torch.zeros(shape), torch.zeros(4)),
       f"real and fake must have the same shape; got (4,) and {shape}") for shape in SHAPES),
    (lambda: relativistic.generator(torch.zeros(3)),
     "the relativistic loss compares fake with real: pass real to the generator's loss, too"),
    (lambda: gradient_penalty(lambda x: x.sum(1), torch.zeros(4, 5), torch.zeros(3, 5)),
     "real and fake must have the same shape; got (4, 5) and (3, 5)"),
    (lambda: squared_gradient(torch.zeros(4), torch.zeros(4, 5)),
     "x must require a gradient; call x.requires_grad_() before computing logits from it"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
