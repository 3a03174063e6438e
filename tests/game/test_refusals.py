"""What train and Player refuse, and whether the message helps."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from small import linear
from torch import nn

from hybrids import Player, Terms, train
from hybrids.game import check_batch

SGD = partial(torch.optim.SGD, lr=0.1)


def play(players, batches=None, steps=2, start=0, k=1):
    batches = [torch.zeros(4, 2)] if batches is None else batches
    return list(train(players, batches, Accelerator(cpu=True, gradient_accumulation_steps=k), steps, start))


# Before the first batch is drawn: already at the call.


def test_settings_are_refused_at_the_call():
    """`train` is a generator, but what cannot work is refused when it is called, not at its first step."""
    player, _ = linear("one")
    other, _ = linear("one")
    accelerator = Accelerator(cpu=True)
    for arguments, message in (
        (([], [], accelerator, 5), "players must hold at least one Player; got none"),
        (([player, other], [], accelerator, 5), r"different names; got \['one', 'one'\]"),
        ((player, [], accelerator, 0), "got start 0 and steps 0"),
        ((player, [], accelerator, -3), "got start 0 and steps -3"),
        ((player, [], accelerator, 3, 4), "got start 4 and steps 3"),
        ((player, [], accelerator, 3, -1), "got start -1 and steps 3"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*arguments)
    with pytest.raises(TypeError, match="players must be Player objects; got Linear"):
        train([nn.Linear(1, 1)], [], accelerator, 5)


def test_trap_06_fp16_is_refused():
    """Trap 6: one gradient scaler for all optimizers makes an update 1/scale of the truth. Guard: refuse fp16."""
    accelerator = Accelerator(cpu=True)
    accelerator.state._mixed_precision = "fp16"  # Accelerate itself refuses it only where there is no GPU
    assert accelerator.mixed_precision == "fp16"
    player, _ = linear()
    with pytest.raises(ValueError, match=r"fp16 is refused: its one gradient scaler .* use bf16, or no"):
        train(player, [], accelerator, 1)


def test_other_ways_to_distribute_are_refused():
    """FSDP and the like prepare one model only."""
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    player, _ = linear()
    with pytest.raises(ValueError, match=r"one process or under DDP; got .*FSDP"):
        train(player, [], accelerator, 1)


def test_shared_by_accident_is_refused_and_on_purpose_is_not():
    """Fault 24: a parameter in two players is meant only if both list the module that holds it."""
    encoder, head = nn.Linear(2, 2), nn.Linear(2, 1)
    whole = nn.Sequential(encoder, head)
    a = Player(lambda x: Terms(a=whole(x)[:, 0]), [whole], optimizer=SGD, name="a")
    b = Player(lambda x: Terms(b=encoder(x)[:, 0]), [encoder], optimizer=SGD, name="b")
    with pytest.raises(ValueError, match=r"players 'a' and 'b' both move weight \(shape \(2, 2\)\); if that is meant"):
        play([a, b])
    meant = Player(lambda x: Terms(a=whole(x)[:, 0]), [encoder, head], optimizer=SGD, name="a")
    play([meant, b])


def test_a_frozen_network_may_be_listed_by_two():
    """What requires no gradient is moved by nobody, so two players may hold it."""
    frozen = nn.Linear(2, 2).requires_grad_(False)
    one, two = nn.Sequential(frozen, nn.Linear(2, 1)), nn.Sequential(frozen, nn.Linear(2, 1))
    players = [
        Player(lambda x, m=m: Terms(a=m(x)[:, 0]), [m], optimizer=SGD, name=name)
        for name, m in (("one", one), ("two", two))
    ]
    before = [{name: p.clone() for name, p in m.named_parameters()} for m in (one, two)]
    play(players, [torch.randn(4, 2)])
    for old, m in zip(before, (one, two)):
        moved = {name for name, p in m.named_parameters() if not torch.equal(p, old[name])}
        assert moved == {"1.weight", "1.bias"}


def test_using_what_another_moves_is_refused():
    """`uses` is frozen for the whole game: a player that moves it could not."""
    critic, layer_c = linear("critic")
    layer = nn.Linear(2, 2)
    generator = Player(
        lambda x: Terms(a=-layer_c(layer(x))[:, 0]), [layer], uses=[layer_c], optimizer=SGD, name="generator"
    )
    with pytest.raises(ValueError, match="player 'generator' uses 0.weight .*, which player 'critic' moves"):
        train([critic, generator], [], Accelerator(cpu=True), 1)


# Of one player.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"clip": 0.0}, "clip must be above 0, or None; got 0.0"),
        ({"clip": float("nan")}, "clip must be above 0, or None; got nan"),
        ({"name": "a/b"}, r"letters, digits, _ and -; got 'a/b'"),
        ({"name": ""}, r"letters, digits, _ and -; got ''"),
    ],
)
def test_a_player_s_options_are_refused(options, message):
    layer = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=message):
        Player(lambda x: Terms(a=layer(x)[:, 0]), [layer], **options)


def test_a_player_that_cannot_play_is_refused():
    layer = nn.Linear(2, 1)
    with pytest.raises(TypeError, match="player 'player': loss must be a function of a batch; got int"):
        Player(3, [layer])
    with pytest.raises(ValueError, match="moves holds no parameter that requires a gradient"):
        Player(lambda x: x, [nn.ReLU()])
    with pytest.raises(ValueError, match="moves holds no parameter that requires a gradient"):
        Player(lambda x: x, [nn.Linear(1, 1).requires_grad_(False)])
    with pytest.raises(ValueError, match=r"0\.weight is in both moves and uses"):
        Player(lambda x: x, [nn.Sequential(layer)], [layer])


def test_a_loss_that_is_not_terms_is_refused():
    player, _ = linear(loss=lambda x: x.mean())
    with pytest.raises(TypeError, match="player 'player': its loss must return Terms; got Tensor"):
        play(player)


def test_a_loss_that_does_not_depend_on_what_it_moves_is_refused():
    player, _ = linear("lazy", loss=lambda x: Terms(a=x[:, 0]))
    with pytest.raises(ValueError, match="player 'lazy': its loss does not depend on what it moves"):
        play(player)


def test_trap_26_unused_parameters_are_named():
    """Trap 26: DDP says `Expected to have finished reduction`. Guard (fault 24): the first turn names the unused."""
    used, idle = nn.Linear(2, 1), nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    player = Player(lambda x: Terms(a=used(x)[:, 0]), [used, idle], optimizer=SGD, name="half")
    with pytest.raises(ValueError) as caught:
        play(player)
    assert str(caught.value) == (
        "player 'half': its loss does not use 8 of the parameters it moves: 1.0.weight, 1.0.bias, 1.1.weight, "
        "1.1.bias, 1.2.weight, …. Move less, or say allow_unused=True"
    )
    allowed = Player(lambda x: Terms(a=used(x)[:, 0]), [used, idle], optimizer=SGD, allow_unused=True)
    before = [p.clone() for p in idle.parameters()]
    play(allowed)
    assert all(torch.equal(p, q) for p, q in zip(before, idle.parameters()))


# Batches.


def test_batches_that_run_dry_are_refused():
    """An iterator that cannot be started over is named as such, after its last batch has been used."""
    player, _ = linear()
    seen = []
    with pytest.raises(ValueError, match="gave nothing when started over; expected an iterable, not an iterator"):
        for n, _ in train(player, iter([torch.zeros(4, 2)] * 3), Accelerator(cpu=True), 5):
            seen.append(n)
    assert seen == [1, 2, 3]
    with pytest.raises(ValueError, match="gave nothing when started over"):
        play(player, [])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"must be floating point.*; got torch.uint8: scale with"),
        (torch.zeros(2, 2, dtype=torch.int64), r"must be floating point.*; got torch.int64"),
        (torch.zeros(4, 1, 2, 2).index_fill(0, torch.tensor([2]), 255.0), r"sample 2 of the batch spans 255 to 255"),
        (torch.zeros(4, 3, 2, 2).index_fill(0, torch.tensor([1]), -1.5), r"\[-1, 1\]; sample 1 .* -1.5 to -1.5"),
        (torch.zeros(4, 3).index_fill(0, torch.tensor([3]), float("nan")), r"sample 3 of the batch has NaN"),
        (torch.zeros(4, 1, 2, 2).index_fill(0, torch.tensor([1]), float("inf")), r"sample 1 of the batch has NaN or"),
        ({"cond": torch.zeros(2)}, r"a mapping must have x; got \['cond'\]"),
    ],
)
def test_a_batch_is_refused_with_its_sample(batch, message):
    """Faults 15 and 16: integers, a wrong scale, NaN; by `check_batch`, and by `train` in its first step."""
    with pytest.raises(ValueError, match=message):
        check_batch(batch)
    with pytest.raises(ValueError, match=message):
        check_batch({"x": batch}) if isinstance(batch, torch.Tensor) else check_batch(batch)
    layer = nn.Linear(2, 1)
    player = Player(lambda x: Terms(a=layer(x)[:, 0]), [layer], optimizer=SGD)
    with pytest.raises(ValueError, match=message):
        play(player, [batch])


def test_the_second_micro_batch_is_looked_at_too():
    player, _ = linear()
    with pytest.raises(ValueError, match="sample 0 of the batch has NaN"):
        play(player, [torch.zeros(4, 2), torch.full((4, 2), float("nan"))], k=2)


def test_batches_within_range_pass():
    """The edges are allowed, latents may have any range, and points are not images."""
    for batch in (torch.ones(2, 3, 4, 4), -torch.ones(2, 1, 4, 4), 9 * torch.ones(2, 4, 2, 2), 9 * torch.ones(2, 2)):
        check_batch(batch)


def test_a_batch_of_another_kind_is_refused():
    player, _ = linear()
    with pytest.raises(TypeError, match=r"a tensor, or a mapping with x and cond; got list"):
        play(player, [[torch.zeros(4, 2)]])
