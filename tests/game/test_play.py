"""Player and train: what a turn moves, what it leaves alone, and what it says."""

import math
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from small import GAMES, TINY, Recorder, cut, examples, game, linear, tiny
from torch import nn

from hybrids import Player, Terms, train, warmup_cosine
from hybrids.data import Data, load_data
from hybrids.experiment import load_recipe

SGD = partial(torch.optim.SGD, lr=0.1)


def accelerator(k: int = 1) -> Accelerator:
    return Accelerator(cpu=True, gradient_accumulation_steps=k)


def play(players, batches, steps, k=1, start=0):
    """All logs of a game."""
    return list(train(players, batches, accelerator(k), steps, start))


def x(n=4, features=2, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) / 4


def recipe_players(name: str) -> tuple[list[Player], Data]:
    """The players of a tiny recipe, and its data."""
    data = load_data("digits", 8)
    return tiny(load_recipe(name), data), data


def test_the_tiny_recipes_are_all():
    from pathlib import Path

    recipes = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.py")}
    assert set(TINY) == recipes, "a new recipe wants its tiny settings in tests/game/small.py"


# Micro-batches.


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("k", [2, 3])
def test_micro_batches_equal_the_batch_for_every_player(name, k):
    """k micro-batches move every player as the k-fold batch does, in each of three steps."""
    whole, parts = game(name), game(name)
    batches = [examples(12, seed) for seed in range(3)]
    play(whole, batches, 3)
    play(parts, [part for batch in batches for part in cut(batch, 12 // k)], 3, k)
    for a, b in zip(whole, parts):
        assert len(a.optimizer.seen) == len(b.optimizer.seen) == 3
        for one, other in zip(a.optimizer.seen, b.optimizer.seen):
            assert one.norm() > 1e-3
            assert (one - other).norm() < 1e-5 * one.norm(), a.name


def test_micro_batches_count_as_one_step():
    """`step`, `every` and the yields count steps of the game, not micro-batches."""
    steps = []

    def loss(x, step):
        steps.append(step)
        return Terms(a=layer(x)[:, 0].square())

    player, layer = linear(loss=loss, every=2)
    done = [n for n, _ in train(player, [x()], accelerator(3), 4)]
    assert done == [1, 2, 3, 4] and steps == [0, 0, 0, 2, 2, 2]


# Who moves.


def watched(player: Player, look) -> Player:
    """The player, with `look()` called whenever its loss is."""
    inner = player.loss

    def loss(x, step):
        look()
        return inner(x, step=step) if takes_step else inner(x)

    takes_step, player.takes_step = player.takes_step, True
    object.__setattr__(player, "loss", loss)
    return player


@pytest.mark.parametrize("name", TINY)
def test_the_firewall_of_each_recipe(name):
    """In its turn a player alone requires gradients, and no turn leaves a gradient anywhere (trap 4)."""
    players, data = recipe_players(name)
    everything = {p for player in players for p in player.parameters_moved()}
    seen: list[tuple[str, set[str]]] = []

    def look(player):
        assert all(p.grad is None for p in everything)
        thawed = {other.name for other in players if any(p.requires_grad for p in other.parameters_moved())}
        seen.append((player.name, thawed))

    for player in players:
        watched(player, partial(look, player))
    for _ in train(players, [data.decode(data.x[:8])], accelerator(), 2):
        assert all(p.grad is None and p.requires_grad for p in everything)
    assert seen == 2 * [(player.name, {player.name}) for player in players]


@pytest.mark.parametrize("name", TINY)
def test_a_loss_of_a_recipe_reaches_only_what_it_may(name):
    """Without any freezing: a player's loss gives a gradient to all that it moves, and, but for a generator's, which
    needs the critic's, to nobody else's (trap 5)."""
    players, data = recipe_players(name)
    for player in players:
        player(data.decode(data.x[:8]), 0)[0].backward()
        assert all(p.grad is not None for p in player.parameters_moved())
        for other in players:
            if other is not player and player.name != "generator":
                assert all(p.grad is None for p in other.parameters_moved())
        for other in players:
            other.zero_grad()


def test_everybody_else_is_frozen_and_given_back():
    """In a turn the others are frozen; afterwards each has its own requires_grad, False where it was False."""
    a, layer_a = linear("a")
    b, layer_b = linear("b")
    torch.manual_seed(3)
    shy = nn.Linear(2, 2)
    shy.bias.requires_grad_(False)
    seen = {}

    def watch(name, inner):
        def loss(x):
            seen[name] = [layer_a.weight.requires_grad, layer_b.weight.requires_grad, shy.weight.requires_grad,
                          shy.bias.requires_grad]  # fmt: skip
            return inner(x)

        return loss

    players = [
        Player(watch("a", a.loss), [layer_a], optimizer=SGD, name="a"),
        Player(watch("b", b.loss), [layer_b], optimizer=SGD, name="b"),
        Player(watch("c", lambda x: Terms(c=shy(x).square().sum(1))), [shy], optimizer=SGD, name="c"),
    ]
    for _, _logs in train(players, [x()], accelerator(), 2):
        assert [p.requires_grad for p in (*layer_a.parameters(), *layer_b.parameters())] == [True] * 4
        assert shy.weight.requires_grad and not shy.bias.requires_grad
    assert seen == {
        "a": [True, False, False, False],
        "b": [False, True, False, False],
        "c": [False, False, True, False],
    }


def test_a_failed_turn_gives_everything_back():
    """An error in a loss leaves requires_grad, modes and the players as they were."""
    teacher = nn.Linear(2, 1)
    b, layer = linear("b")

    def broken(x):
        assert not layer.weight.requires_grad and not teacher.weight.requires_grad and not teacher.training
        raise RuntimeError("broken")

    own = nn.Linear(2, 1)
    a = Player(broken, [own], [teacher], optimizer=SGD, name="a")
    with pytest.raises(RuntimeError, match="broken"):
        play([a, b], [x()], 1)
    assert all(p.requires_grad for m in (layer, teacher, own) for p in m.parameters()) and teacher.training


def test_a_loop_left_early_gives_everything_back():
    """`break` in the middle of a game thaws what it froze."""
    teacher = nn.Linear(2, 1)
    layer = nn.Linear(2, 1)
    player = Player(lambda x: Terms(a=(layer(x) - teacher(x))[:, 0].square()), [layer], [teacher], optimizer=SGD)
    for n, _ in train(player, [x()], accelerator(), 5):
        assert not teacher.weight.requires_grad
        if n == 2:
            break
    assert teacher.weight.requires_grad and teacher.training


def test_uses_are_in_eval_and_never_moved():
    """A teacher is in eval mode, without gradients and unmoved in its player's turns; afterwards as it was."""
    torch.manual_seed(2)
    teacher = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    layer = nn.Linear(2, 2)
    modes = []

    def loss(x):
        modes.append((teacher.training, teacher[2].training, any(p.requires_grad for p in teacher.parameters())))
        return Terms(a=(layer(x) - teacher(x)).square().sum(1))

    play(Player(loss, [layer], [teacher], optimizer=SGD), [x()], 3)
    assert modes == [(False, False, False)] * 3
    assert teacher.training and teacher[2].training and all(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_every_is_how_often_it_moves():
    """A player with every=3 moves in steps 0, 3, 6; its logs appear in those steps only."""
    a, layer_a = linear("a", every=3)
    b, _ = linear("b", optimizer=Recorder)
    moved = []
    before = layer_a.weight.clone()
    for n, logs in train([a, b], [x()], accelerator(), 7):
        moved.append(not torch.equal(before, layer_a.weight))
        assert ("loss/a" in logs) == moved[-1] and "loss/b" in logs and n == len(moved)
        before = layer_a.weight.clone()
    assert moved == [True, False, False, True, False, False, True] and len(b.optimizer.seen) == 7


def test_an_encoder_moved_by_two_players():
    """An adversarial autoencoder: both players that list the encoder move it."""
    players = game("aae", SGD)
    encoder = players[2].moves[0]
    history = [encoder.last.weight.clone()]

    def note(optimizer, args, kwargs):
        history.append(encoder.last.weight.clone())

    for player in players:
        player.optimizer.register_step_post_hook(note)
    play(players, [examples(8)], 1)
    start, after_autoencoder, after_critic, after_encoder = history
    assert not torch.equal(start, after_autoencoder) and not torch.equal(after_critic, after_encoder)
    assert torch.equal(after_autoencoder, after_critic)


# Clipping, learning rates, logs.


def test_clip_bounds_the_update():
    """With clip the step's gradient has that norm; the logged norm is the one before clipping."""
    free, _ = linear(optimizer=Recorder)
    ((_, logs),) = play(free, [x()], 1)
    norm = free.optimizer.seen[0].norm()
    torch.testing.assert_close(logs["grad_norm/player"], norm)
    clipped, _ = linear(optimizer=Recorder, clip=norm.item() / 4)
    ((_, logs),) = play(clipped, [x()], 1)
    torch.testing.assert_close(logs["grad_norm/player"], norm)
    torch.testing.assert_close(clipped.optimizer.seen[0], free.optimizer.seen[0] / 4, rtol=1e-4, atol=0)
    loose, _ = linear(optimizer=Recorder, clip=norm.item() * 4)
    play(loose, [x()], 1)
    torch.testing.assert_close(loose.optimizer.seen[0], free.optimizer.seen[0])
    (_, logs), *_ = play(linear()[0], [x()], 1)
    torch.testing.assert_close(logs["grad_norm/player"], norm)


def test_clip_is_of_the_whole_step():
    """Micro-batches are clipped once, together."""
    k1, _ = linear(optimizer=Recorder, clip=0.01)
    k2, _ = linear(optimizer=Recorder, clip=0.01)
    play(k1, [x(8)], 1)
    play(k2, list(x(8).split(4)), 1, k=2)
    torch.testing.assert_close(k2.optimizer.seen[0], k1.optimizer.seen[0])


def test_the_learning_rate_follows_its_schedule():
    """lr is a factor on the optimizer's own rate, keyed to the step."""
    schedule = warmup_cosine(1 / 3, final=0.1)
    player, _ = linear(lr=schedule)
    rates = [logs["lr/player"].item() for _, logs in train(player, [x()], accelerator(), 6)]
    assert rates == pytest.approx([0.1 * schedule(step, 6) for step in range(6)])
    assert rates[:2] == pytest.approx([0.05, 0.1]) and rates[-1] == pytest.approx(0.01)
    plain, _ = linear()
    assert [logs["lr/player"].item() for _, logs in train(plain, [x()], accelerator(), 2)] == pytest.approx([0.1, 0.1])


def test_warmup_cosine_values():
    """From 1/w up to 1 in the first share of the steps, then half a cosine down to `final`, and no further."""
    factor = warmup_cosine(4 / 13)
    assert [factor(step, 13) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4, 13) == 1.0 and factor(8, 13) == pytest.approx(0.5) and factor(12, 13) == pytest.approx(0.0)
    assert factor(100, 13) == pytest.approx(0.0)
    assert warmup_cosine(0)(0, 1) == 1.0 and warmup_cosine(0, final=0.5)(1, 2) == pytest.approx(0.5)
    # A twentieth of 140 steps is 7, whatever 0.05 * 140 is in floating point.
    assert all(warmup_cosine()(steps // 20 - 1, steps) == 1.0 for steps in range(20, 500, 20))
    for warmup, final in ((-0.1, 0.0), (1.0, 0.0), (0.1, -1.0)):
        with pytest.raises(ValueError, match=f"a share of the steps, .* got {warmup} and {final}"):
            warmup_cosine(warmup, final)


def test_per_divides_the_loss_and_not_the_terms():
    """`per` is a factor 1/d on the gradient; logged terms stay as the loss names them."""
    whole, _ = linear(optimizer=Recorder)
    divided, _ = linear(optimizer=Recorder, per=4)
    ((_, logs),) = play(whole, [x()], 1)
    ((_, fewer),) = play(divided, [x()], 1)
    torch.testing.assert_close(4 * divided.optimizer.seen[0], whole.optimizer.seen[0])
    torch.testing.assert_close(4 * fewer["loss/player"], logs["loss/player"])
    terms = [key for key in logs if key.startswith("loss/player/")]
    assert terms and all(torch.equal(fewer[key], logs[key]) for key in terms)


def test_the_factor_is_of_the_first_rate_however_often_it_is_trained():
    """Training on does not compound the factors."""
    player, _ = linear(lr=lambda step, steps: 0.5)
    for _ in range(2):
        ((_, logs),) = play(player, [x()], 1)
        assert logs["lr/player"].item() == pytest.approx(0.05)


def test_names_and_values_of_logs():
    """Totals, terms, measurements, norms and rates under their names, averaged over micro-batches, on no graph."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 1)

    def loss(x):
        y = layer(x)[:, 0]
        return Terms({"a": (2.0, y.square()), "b.c": y.square().mean(), "logits/real": (0.0, y)})

    player = Player(loss, [layer], optimizer=partial(torch.optim.SGD, lr=0.0), name="one")
    batch = x(8)
    ((n, logs),) = play(player, list(batch.split(4)), 1, k=2)
    assert n == 1
    assert set(logs) == {"loss/one", "loss/one/a", "loss/one/b.c", "logits/real", "grad_norm/one", "lr/one"}
    y = layer(batch)[:, 0].detach()
    expected = {"loss/one": 3 * y.square().mean(), "loss/one/a": y.square().mean(), "logits/real": y.mean()}
    for key, value in expected.items():
        torch.testing.assert_close(logs[key], value)
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())


def test_start_goes_on_where_it_was():
    """`start` counts on: steps, the step argument and the schedule are those of an uninterrupted game."""
    steps = []

    def loss(x, step):
        steps.append(step)
        return Terms(a=layer(x)[:, 0].square())

    player, layer = linear(loss=loss, lr=lambda step, steps: 1.0 / (step + 1))
    logged = play(player, [x()], 5, start=3)
    assert [n for n, _ in logged] == [4, 5] and steps == [3, 4]
    assert [logs["lr/player"].item() for _, logs in logged] == pytest.approx([0.1 / 4, 0.1 / 5])
    assert play(player, [x()], 5, start=5) == []


def test_the_step_argument_is_told_apart_by_its_name():
    """A loss gets the step if, and only if, it has a parameter named so."""
    layer = nn.Linear(2, 1)
    given = []

    def with_default(x, step=None):
        given.append(step)
        return Terms(a=layer(x)[:, 0])

    def another(x, phase=17):
        given.append(phase)
        return Terms(a=layer(x)[:, 0])

    for loss in (with_default, another):
        play(Player(loss, [layer], optimizer=SGD), [x()], 1)
    assert given == [0, 17]


def test_batches_start_over_and_mappings_pass_whole():
    """A finite iterable is repeated; a mapping reaches the loss with all its keys."""
    seen = []

    def loss(batch):
        seen.append((batch["x"][0, 0].item(), sorted(batch)))
        return Terms(a=layer(batch["x"])[:, 0].square())

    player, layer = linear(loss=loss)
    batches = [{"x": x(seed=s), "cond": torch.arange(4)} for s in range(2)]
    play(player, batches, 5)
    values = [batch["x"][0, 0].item() for batch in batches]
    assert [value for value, _ in seen] == [values[i % 2] for i in range(5)] and seen[0][1] == ["cond", "x"]


def test_a_model_is_trained_twice_with_fresh_accelerators():
    """Nothing of the first loop stays on the players: the second moves them as a loop of its own would."""
    once, twice = game("gan"), game("gan")
    batches = [examples(8, seed) for seed in range(4)]
    play(once, batches, 4)
    for half in (batches[:2], batches[2:]):
        play(twice, half, 2)
    for a, b in zip(once, twice):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_bf16_leaves_no_trace_on_a_player():
    """Under autocast too: after the loop the player's forward is its own, and no list of the accelerator grows."""
    player, layer = linear()
    for _ in range(2):
        a = Accelerator(cpu=True, mixed_precision="bf16")
        list(train(player, [x()], a, 2))
        assert player.forward.__func__ is Player.forward and player.forward.__self__ is player
        assert "_is_accelerate_prepared" not in vars(player) and a._models == []
    assert layer(x()).dtype == torch.float32


def test_a_loss_that_is_a_module_is_not_registered():
    """The parameters of a module given as loss are not this player's unless it moves them."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x):
            return Terms(a=self.layer(x)[:, 0].square() + mine(x)[:, 0].square())

    mine, loss = nn.Linear(2, 1), Loss()
    player = Player(loss, [mine], optimizer=SGD)
    assert len(list(player.parameters())) == 2
    before = loss.layer.weight.clone()
    with pytest.warns(UserWarning, match=r"reaches 2 parameters that no player moves: layer.weight, layer.bias\. Let"):
        play(player, [x()], 2)
    assert torch.equal(before, loss.layer.weight)


def test_moving_an_average_down_and_no_nan():
    """The smallest game does what training is for."""
    player, _ = linear()
    losses = [logs["loss/player"].item() for _, logs in train(player, [x(64)], accelerator(), 200)]
    assert losses[-1] < losses[0] / 10 and all(math.isfinite(value) for value in losses)
