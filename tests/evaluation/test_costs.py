import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from small import TINY, gan_game, vae_game
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from components.backbones import MLP
from components.decoders import MLPDecoder, NormalHead
from components.denoisers import Denoiser
from components.encoders import MLPEncoder
from components.losses import non_saturating
from components.samplers import Sampler
from components.schedules import LogSNRLinearSchedule
from hybrids import VAE, Critic, Diffusion, HierarchicalVAE, Player, Terms
from hybrids.data import Data, load_data
from hybrids.evaluation.costs import (
    batch_of,
    evaluations,
    evaluations_by_part,
    flops_per_sample,
    flops_per_step,
    memory_per_step,
    parameters,
    samples_per_second,
)
from hybrids.experiment import Stage, load_recipe, parse

DIGITS = Data("digits", (1, 8, 8), classes=10, grey_levels=17)
SGD = partial(torch.optim.SGD, lr=0.1)


def stages(name, *words, data=DIGITS):
    """The stages of a tiny recipe."""
    module = load_recipe(name)
    torch.manual_seed(0)
    return module.build(parse(module.Settings, [*TINY[name], *words], name), data)


def few(n=8):
    data = load_data("digits", 8)
    return replace(data, x=data.x[:n], labels=data.labels[:n])


class Drawer(nn.Module):
    """A model whose samples are what a network makes of noise."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, []

    def sample(self, n, generator=None, steps=1):
        assert not self.training and not torch.is_grad_enabled()
        self.calls.append(n)
        return [self.network(torch.randn(n, 3, generator=generator)) for _ in range(steps)]


def test_parameters_are_counted_once():
    layer = nn.Linear(3, 5)
    layer.bias.requires_grad_(False)
    assert parameters(nn.ModuleList([layer, layer, nn.Linear(2, 1)])) == 20 + 3


def test_flops_of_a_linear_layer():
    """2 B in out, whatever the batch; steps times that."""
    model = Drawer(nn.Linear(3, 5))
    assert flops_per_sample(model, 4) == flops_per_sample(model, 1) == 30
    assert flops_per_sample(model, 2, steps=7) == 210


def test_flops_of_a_convolution():
    """2 × pixels × channels in × channels out × kernel."""

    class Pictures(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Conv2d(2, 5, 3, padding=1)

        def sample(self, n, generator=None):
            return self.network(torch.randn(n, 2, 8, 6, generator=generator))

    assert flops_per_sample(Pictures(), 3) == 2 * 48 * 2 * 5 * 9


def fitting(network, every=1, name="player"):
    return Player(lambda x: Terms(error=network(x)[:, 0].square()), [network], optimizer=SGD, every=every, name=name)


def test_flops_of_a_turn():
    """A layer's weight gradient costs what its forward does, and so does the gradient of its input, where needed."""
    first, last = nn.Linear(3, 5), nn.Linear(5, 1)
    stage = Stage("a", nn.Sequential(first, last), [fitting(nn.Sequential(first, last))])
    assert flops_per_step(stage, torch.randn(4, 3)) == 2 * 4 * (2 * 3 * 5 + 3 * 5 * 1)


def test_the_game_is_all_of_its_players():
    """The others are frozen: nothing flows to their weights. Who moves every third step costs a third."""
    a, b = nn.Linear(3, 5), nn.Linear(5, 1)
    both = nn.Sequential(a, b)

    def loss(x):
        return Terms(error=both(x)[:, 0].square())

    players = [Player(loss, [a], optimizer=SGD, name="a"), Player(loss, [b], optimizer=SGD, every=3, name="b")]
    turns = 2 * 4 * ((15 + 5) + 5 + 15), 2 * 4 * ((15 + 5) + 5)
    for step in (0, 1):
        found = flops_per_step(Stage("s", both, players), torch.randn(4, 3), step)
        assert found == pytest.approx(turns[0] + turns[1] / 3, rel=1e-12)


def test_flops_of_a_penalty_and_its_lazy_steps():
    """Of a linear D, with u = 2 B d: two forwards and two weight gradients, 4u. One step in `lazy` has R1 as well: ∇D,
    its gradient in the weight, and the gradient in real x of the loss itself, since x now asks for one, 3u.
    """
    x = torch.randn(4, 6)
    u = 2 * 4 * 6

    def cost(r1, lazy):
        discriminator = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
        critic = Critic(discriminator, non_saturating, r1=r1, lazy=lazy)
        fake = torch.randn(4, 6)
        player = Player(lambda x, step: critic.tell(x, fake, step=step), [critic], optimizer=SGD, name="critic")
        # The bias has no gradient of its own in R1.
        return flops_per_step(Stage("s", critic, [player]), x, step=1)

    assert cost(0.0, 1) == 4 * u
    assert cost(1.0, 1) == 7 * u
    assert cost(1.0, 4) == 4 * u + 3 * u / 4


def test_a_step_of_a_later_critic():
    """An autoencoder's critic is heard from step 1 on: its forward and backward come to the autoencoder's turn."""
    (first, _) = stages("latent_diffusion")
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with FlopCounterMode(display=False) as forward:
        first.model.critic(x)
    assert flops_per_step(first, x, step=5) - flops_per_step(first, x, step=0) > 1.5 * forward.get_total_flops() > 0


def snapshot(stage):
    root = stage.root()
    tensors = {name: t.clone() for name, t in [*root.named_parameters(), *root.named_buffers()]}
    modes = [m.training for m in root.modules()]
    wanted = [p.requires_grad for p in root.parameters()]
    plain = [getattr(m, "r1", None) for m in root.modules()]
    return tensors, (modes, wanted, plain, [p.grad for p in root.parameters()], torch.get_rng_state().tolist(),
                     [len(player.optimizer.state) for player in stage.players])  # fmt: skip


def same(before, after):
    return before[0].keys() == after[0].keys() and before[1] == after[1] and all(
        torch.equal(before[0][name], after[0][name]) for name in before[0]
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(TINY))
def test_everything_stays_as_it_was(name):
    """Of each recipe and stage: parameters, buffers, modes, settings, gradients, optimizers, random numbers."""
    for stage in stages(name, data=few()):
        stage.model.eval()
        before = snapshot(stage)
        batch = batch_of(stage, few(), 4)
        assert same(before, snapshot(stage))
        # Past the start of a critic, and where penalties have begun to fade.
        assert flops_per_step(stage, batch, step=3) > flops_per_sample(stage.model, 2)
        assert evaluations(stage.model, 2) >= 1
        assert same(before, snapshot(stage))


def test_buffers_that_training_moves_are_put_back():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    stage = Stage("s", network, [fitting(network)])
    network[0].weight.grad = torch.ones(4, 3)
    before = snapshot(stage)
    flops_per_step(stage, torch.randn(5, 3))
    after = snapshot(stage)
    assert network[0].weight.grad is before[1][3][0] and after[0]["model.1.num_batches_tracked"] == 0
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


def test_a_loss_of_nothing_that_moves_is_refused():
    layer = nn.Linear(3, 1)
    player = Player(lambda x: Terms(error=x[:, 0]), [layer], optimizer=SGD, name="idle")
    with pytest.raises(ValueError, match="'idle'.*must depend"):
        flops_per_step(Stage("s", layer, [player]), torch.randn(2, 3))


@pytest.mark.parametrize("game", [vae_game, gan_game])
def test_games_of_several_inputs(game):
    """A batch may be a mapping, and a turn twice as large costs twice as much."""
    from small import examples

    players = game(SGD)
    stage = Stage("s", nn.ModuleList(player.moves for player in players), players)
    once, twice = (flops_per_step(stage, examples(n)) for n in (4, 8))
    assert twice == 2 * once > 0


PARTS = {
    "vae": {"decoder": 1},
    "gan": {"generator": 1},
    "hierarchical_vae": {"decoder": 1},
    "ddpm": {"backbone": 4},
    "variational_diffusion": {"backbone": 5},
    "adversarial_diffusion": {"backbone": 4},
    "latent_diffusion": {"backbone": 2, "decoder": 1},
    "latent_adversarial_diffusion": {"backbone": 4, "decoder": 1},
}


@pytest.mark.parametrize("name", sorted(TINY))
def test_evaluations(name):
    """T of a chain of T steps, one more where noise is left at t = 0, 1 of a decoder or a generator; of any n."""
    model = stages(name)[-1].model
    assert evaluations_by_part(model, 3) == PARTS[name]
    assert evaluations(model, 2) == sum(PARTS[name].values())


def test_evaluations_of_other_steps_and_solvers():
    model = stages("ddpm")[0].model
    assert evaluations(model, 2, sampler=Sampler(steps=8)) == 8
    # Heun asks twice in every step but the last, to no noise.
    assert evaluations(model, 2, sampler=Sampler("heun", steps=8)) == 15


def test_guidance_is_two_evaluations_a_step():
    (stage,) = stages("ddpm", "--conditional", "true", "--guidance-scale", "2")
    labels = torch.tensor([1, 2, 3])
    assert evaluations(stage.model, 3, cond=labels) == 2 * evaluations(stage.model, 3) == 8


def test_a_chain_as_a_ladder_has_the_evaluations_of_the_chain():
    diffusion = stages("ddpm")[0].model
    assert evaluations(HierarchicalVAE.from_diffusion(diffusion), 2) == 8
    assert evaluations(diffusion, 2, sampler=Sampler(steps=8)) == 8


def test_a_prior_has_evaluations_of_its_own():
    """A VAE whose prior is a VAE whose latents are a diffusion's."""

    def vae(prior, features, latent):
        return VAE(MLPEncoder(features, latent, 8, 1), MLPDecoder(latent, features, NormalHead(0.5), 8, 1), prior)

    diffusion = Diffusion(Denoiser(MLP(2, 8, 1), LogSNRLinearSchedule()), 2, sampler=Sampler(steps=4))
    model = vae(vae(diffusion, 3, 2), 4, 3)
    assert evaluations_by_part(model, 3) == {"backbone": 4, "inner_decoder": 1, "decoder": 1}


def test_an_unknown_model_is_refused():
    with pytest.raises(TypeError, match="Drawer offers no networks"):
        evaluations(Drawer(nn.Linear(3, 5)), 2)
    with pytest.raises(ValueError, match="n must be at least 1"):
        flops_per_sample(Drawer(nn.Linear(3, 5)), 0)


def test_the_rate_is_of_the_second_call():
    """At least as long as the model sleeps; the first call, which is slow, does not count."""
    model = Drawer(nn.Linear(3, 5))
    slow = iter([0.5, 0.02])
    draw = model.sample
    model.sample = lambda n, **given: (time.sleep(next(slow)), draw(n, **given))
    found = samples_per_second(model, 10)
    assert model.calls == [10, 10] and 10 / 0.45 < found <= 10 / 0.02
    with pytest.raises(ValueError, match="that of the model, cpu; got cuda"):
        samples_per_second(model, 2, "cuda")


class Squares(nn.Module):
    """x → x² twice: autograd saves the input of each square, and nothing else of it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def sample(self, n, generator=None):
        return torch.zeros(n, 5)


def test_the_memory_of_a_step():
    """Known sizes: 5 float32 parameters, as many in the gradient, two moments and a count in Adam; saved are the 8 × 5
    factors of (x w)² twice, in forward, and afterwards everything is as it was."""
    model = Squares()
    loss = lambda x: Terms(square=((x * model.weight).square().square()).sum(1))  # noqa: E731
    player = Player(loss, [model], optimizer=torch.optim.Adam)
    memory = memory_per_step(Stage("squares", model, [player]), torch.ones(8, 5))
    assert (memory["parameters"], memory["gradients"], memory["optimizer"]) == (20, 20, 44)
    # x itself, x w and (x w)²: each once.
    assert memory["activations"] == 3 * 8 * 5 * 4
    assert not player.optimizer.state and (model.weight == 1).all() and model.weight.grad is None


def test_memory_is_released_between_turns():
    """Two players in turn hold the activations of one of them, and the gradients of the larger."""
    model = Squares()
    loss = lambda x: Terms(square=((x * model.weight).square().square()).sum(1))  # noqa: E731
    other = nn.Linear(5, 1)
    second = Player(lambda x: Terms(error=other(x)[:, 0]), [other], optimizer=torch.optim.SGD, name="other")
    stage = Stage("both", model, [Player(loss, [model], optimizer=torch.optim.SGD, name="squares"), second])
    memory = memory_per_step(stage, torch.ones(8, 5))
    assert memory == {"parameters": 44, "gradients": 24, "optimizer": 0, "activations": 480}


def test_a_batch_is_refused_where_there_are_no_examples():
    with pytest.raises(ValueError, match="has no examples here"):
        batch_of(stages("vae")[0], DIGITS, 4)


def test_the_batch_of_a_second_stage_is_of_latents():
    _, second = stages("latent_diffusion", "--condition", "label", data=few())
    batch = batch_of(second, few(), 4)
    assert set(batch) == {"x", "cond"} and batch["x"].shape[2:] == second.model.latent
    assert (second.model.scale == 1).all()
