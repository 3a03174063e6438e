import pytest
import torch
from answers import generator
from torch import nn

from components.distributions import Delta
from components.losses import hinge, non_saturating, relativistic
from hybrids.critic import Critic
from hybrids.models import GAN, Model

PAIRS = pytest.mark.parametrize("pair", [non_saturating, hinge, relativistic], ids=lambda pair: pair.name)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, z, cond=None):
        x = self.linear(z)
        return Delta(x if cond is None else x + cond[:, None])


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, cond=None):
        self.cond = cond
        return self.net(x)[:, 0]


def gan(pair=non_saturating, **settings):
    return GAN(Generator(), Critic(Discriminator(), pair, **settings), 3)


@PAIRS
def test_the_generator_s_loss_is_what_the_critic_says_of_its_draws(pair):
    model, x = gan(pair), torch.randn(6, 5)
    loss, fake = model.loss(x, generator=generator()), model.draw(6, generator=generator())
    assert list(loss) == ["adversarial"]
    torch.testing.assert_close(loss.per_example, model.critic.fool(fake, real=x).per_example)


@PAIRS
def test_the_critic_s_objective_is_to_tell_them_from_real(pair):
    model, x = gan(pair, r1=1.0, r2=1.0), torch.randn(6, 5)
    objective, fake = model.judge(x, generator=generator()), model.draw(6, generator=generator())
    expected = model.critic.tell(x, fake)
    assert list(objective) == ["adversarial", "r1", "r2", "logits/real", "logits/fake"]
    torch.testing.assert_close(objective.total, expected.total)


@PAIRS
def test_each_loss_reaches_its_own_player(pair):
    """The critic's turn leaves the generator's gradients None; the generator's turn fills them."""
    model, x = gan(pair, r1=1.0, r2=1.0), torch.randn(6, 5, requires_grad=True)
    model.judge(x).total.backward()
    assert all(p.grad is None for p in model.generator.parameters()) and x.grad is None
    assert all(p.grad is not None for p in model.critic.parameters())
    model.loss(x).total.backward()
    assert all(p.grad.any() for p in model.generator.parameters()) and x.grad is None


def test_the_critic_s_turn_builds_no_graph_through_the_generator():
    model, x, seen = gan(), torch.randn(6, 5), []
    model.generator.linear.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    model.judge(x)
    model.loss(x)
    assert seen == [False, True]


@pytest.mark.parametrize("pair, of_critic, of_generator", [
    (non_saturating, 1.386294, 0.693147), (relativistic, 0.693147, 0.693147), (hinge, 2.0, 0.0),
], ids=lambda value: getattr(value, "name", None))  # fmt: skip
def test_at_equilibrium_a_critic_that_cannot_tell_costs_known_numbers(pair, of_critic, of_generator):
    model, x = gan(pair), torch.randn(6, 5)
    nn.init.zeros_(model.critic.discriminator.net[-1].weight)
    nn.init.zeros_(model.critic.discriminator.net[-1].bias)
    assert model.judge(x).total.item() == pytest.approx(of_critic, abs=1e-6)
    assert model.loss(x).total.item() == pytest.approx(of_generator, abs=1e-6)


def test_lazy_penalties_follow_the_step():
    model, x = gan(r1=1.0, lazy=4), torch.randn(6, 5)
    assert ["r1" in model.judge(x, step=step) for step in range(5)] == [True, False, False, False, True]


def test_a_condition_reaches_both():
    model, x, cond = gan(), torch.randn(6, 5), torch.arange(6.0)
    plain, moved = (model.draw(6, given, generator()) for given in (None, cond))
    torch.testing.assert_close(moved - plain, cond[:, None].expand(6, 5))
    for ask in (model.loss, model.judge):
        ask(x, cond)
        assert model.critic.discriminator.cond is cond
        ask(x)
        assert model.critic.discriminator.cond is None


def test_samples_have_no_graph_and_repeat_with_a_generator():
    model = gan()
    one, again = (model.sample(4, generator=generator()) for _ in range(2))
    assert one.shape == (4, 5) and torch.equal(one, again) and not one.requires_grad
    assert model.draw(4).requires_grad


def test_it_cannot_score_data():
    assert not isinstance(gan(), Model) and not hasattr(gan(), "nll") and not hasattr(gan(), "bound")


@pytest.mark.parametrize("ask, message", [
    (lambda: GAN(Generator(), Discriminator(), 3),
     r"critic must offer tell and fool, as Critic\(discriminator\) does; got a Disc"),
    (lambda: GAN(nn.Bilinear(3, 3, 5), Critic(Discriminator()), 3).sample(2, cond=torch.zeros(2, 3)),
     "generator must return one of components.distributions, .*; Bilinear returned"),
])  # fmt: skip
def test_parts_of_another_kind_are_refused(ask, message):
    with pytest.raises(TypeError, match=message):
        ask()
