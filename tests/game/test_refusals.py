"""What train and Player refuse, and whether the message helps."""

import warnings
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from small import linear
from torch import nn

from components.conditions import ClassEmbedding
from hybrids import Player, Terms, train, unpack
from hybrids.batch import check_batch, to_device
from hybrids.data import Data

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
        ((player, [], accelerator, 3, 0, -1), "skip_nonfinite must be at least 0, a number of steps; got -1"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 1e-3}, r"lr must be a function \(step, steps\) .*; got 0.001: the rate itself goes in optimizer="),
        ({"optimizer": SGD(nn.Linear(2, 1).parameters())}, "optimizer must be a function of parameters, .* a SGD"),
        ({"moves": nn.Linear(2, 1)}, r"moves must be a list of modules, such as \[model\]; got a Linear"),
        ({"moves": nn.Linear(2, 1).parameters()}, "moves must hold modules, .*; got a Parameter"),
        ({"uses": nn.Linear(2, 1)}, r"uses must be a list of modules, such as \[model\]; got a Linear"),
    ],
)
def test_a_player_s_mistakes_are_named_when_it_is_built(options, message):
    with pytest.raises(TypeError, match=f"player 'judge': {message}"):
        Player(lambda x: x, **{"moves": [nn.Linear(2, 1)], "name": "judge", **options})


def test_what_iterates_over_modules_may_be_moved():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    for moves in (layers, nn.ModuleList(layers), (layer for layer in layers)):
        assert len(Player(lambda x: x, moves).parameters_moved()) == 4


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


# What nobody moves.


def bottleneck():
    """A model of two modules with a loss of both."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(2, 1), nn.Linear(1, 2)

        def loss(self, x):
            return Terms(error=(self.decoder(self.encoder(x)) - x).square().sum(1))

    return Both()


def test_what_a_loss_reaches_and_no_player_moves_is_named_once():
    model = bottleneck()
    before = [p.clone() for p in model.decoder.parameters()]
    with pytest.warns(UserWarning) as caught:
        play(Player(model.loss, [model.encoder], optimizer=SGD, name="vae"), [torch.randn(4, 2)], steps=3, k=2)
    assert [str(warning.message) for warning in caught] == [
        "player 'vae': its loss reaches 2 parameters that no player moves: decoder.weight, decoder.bias. Let one move "
        "them, list their module in uses, or set requires_grad to False"
    ]
    assert all(torch.equal(p, q) for p, q in zip(before, model.decoder.parameters()))
    with pytest.warns(UserWarning, match=r"no player moves: of shape \(2, 1\), of shape \(2,\). Let one"):
        play(Player(lambda x: model.loss(x), [model.encoder], optimizer=SGD), [torch.randn(4, 2)])


def test_what_another_player_moves_or_nobody_shall_is_not_named(recwarn):
    model = bottleneck()
    play(
        [
            Player(model.loss, [model.encoder], optimizer=SGD, name="a"),
            Player(model.loss, [model.decoder], optimizer=SGD, name="b", every=2),
        ],
        [torch.randn(4, 2)],
        steps=3,
    )
    play(Player(model.loss, [model.encoder], uses=[model.decoder], optimizer=SGD), [torch.randn(4, 2)])
    model.decoder.requires_grad_(False)
    play(Player(model.loss, [model.encoder], optimizer=SGD), [torch.randn(4, 2)])
    assert not [warning for warning in recwarn if "no player moves" in str(warning.message)]


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
        ({"image": torch.zeros(2, 2), "text": ["a", "b"]}, r"a mapping must have x; got \['image', 'text'\]"),
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


def test_vectors_far_from_unit_scale_are_warned_of_in_the_first_step():
    player, _ = linear()
    with pytest.warns(UserWarning, match="a dimension of the batch has root mean square 5e"):
        play(player, [torch.full((4, 2), 5000.0)])


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
    for batch, got in (
        ([torch.zeros(4, 2)] * 3, "list of 3"),
        ("x", "str"),
        ((torch.zeros(4, 2), ["a"]), "tuple of 2"),
    ):
        with pytest.raises(TypeError, match=rf"a mapping with x and cond, or a pair \(x, cond\); got {got}"):
            play(player, [batch])


def test_batches_of_a_tensor_data_set_are_x_and_cond():
    from torch.utils.data import DataLoader, TensorDataset

    x, labels, seen = torch.randn(8, 2), torch.arange(8) % 4, []
    layer = nn.Linear(2, 1)

    def loss(batch):
        seen.append(unpack(batch))
        return Terms(a=layer(seen[-1][0])[:, 0])

    player = Player(loss, [layer], optimizer=SGD)
    play(player, DataLoader(TensorDataset(x), 4))
    play(player, DataLoader(TensorDataset(x, labels), 4))
    assert [cond is None for _, cond in seen] == [True, True, False, False]
    assert torch.equal(torch.cat([x for x, _ in seen[2:]]), x) and torch.equal(seen[3][1], labels[4:])


def test_columns_of_no_tensors_reach_the_loss_and_x_must_be_one():
    layer, seen = nn.Linear(2, 1), []

    def loss(batch):
        seen.append(batch)
        return Terms(a=layer(batch["x"])[:, 0])

    player = Player(loss, [layer], optimizer=SGD)
    words = torch.zeros(4, 3, 8), torch.ones(4, 3, dtype=torch.bool)
    batch = {"x": torch.zeros(4, 2), "cond": words, "text": ["a", "b", "c", "d"]}
    play(player, [batch], steps=1)
    assert seen[0]["text"] == batch["text"] and all(torch.equal(a, b) for a, b in zip(seen[0]["cond"], words))
    with pytest.raises(TypeError, match=r"x must be a tensor \(B, \*event\); got a list"):
        play(player, [{"x": [1.0, 2.0]}])


def test_the_columns_of_a_tuple_go_to_the_device():
    moved = to_device({"x": torch.zeros(2), "cond": (torch.zeros(2, 3), torch.ones(2))}, torch.device("meta"))
    assert moved["x"].is_meta and all(part.is_meta for part in moved["cond"])


def test_what_holds_examples_is_no_iterable_of_batches():
    """Refused at the call, with what would be."""
    player, _ = linear()
    for given, message in (
        (Data.from_tensor(torch.zeros(8, 2)), r"such as data.batches\(64\); got a Data"),
        (torch.zeros(8, 2), r"such as Data.from_tensor\(x\).batches\(64\); got a Tensor"),
        (None, r"such as data.batches\(64\); got a NoneType"),
    ):
        with pytest.raises(TypeError, match=f"batches must be an iterable of batches, {message}"):
            train(player, given, Accelerator(cpu=True), 2)


def test_batches_with_labels_given_to_a_loss_of_x_are_explained():
    layer = nn.Linear(2, 1)
    player = Player(lambda x: Terms(a=layer(x)[:, 0]), [layer], optimizer=SGD, name="vae")
    batch = {"x": torch.zeros(4, 2), "cond": torch.zeros(4)}
    with pytest.raises(TypeError) as caught:
        play(player, [batch])
    assert caught.value.__notes__ == [
        "player 'vae': its batches are mappings of x, cond; a loss of x, or of x and cond, takes them as lambda batch: "
        "loss(*hybrids.unpack(batch))"
    ]
    unpacked = Player(lambda b: Terms(a=layer(unpack(b)[0])[:, 0]), [layer], optimizer=SGD)
    play(unpacked, [batch])


def test_images_between_0_and_1_are_warned_of():
    """What torchvision's ToTensor gives; but one image may be bright, and points and latents have any range."""
    x = torch.rand(4, 3, 2, 2)
    for check in (check_batch, lambda x: check_batch({"x": x}), Data.from_tensor):
        with pytest.warns(UserWarning, match=r"in \[-1, 1\]; those of the batch are all in \[0, 1\]: scale with 2"):
            check(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (2 * x - 1, x - x.min() - 1e-6, x[:1], torch.ones_like(x), x[:, 0], torch.rand(4, 2, 3, 3)):
            check_batch(fine)


@pytest.mark.parametrize(
    "labels, got", [([1, 2, 3, 4], "3 of the batch has 4"), ([0, -1, 2, 3], "1 of the batch has -1")]
)
@pytest.mark.parametrize("bad_step", [0, 2])
def test_labels_out_of_range_are_refused_before_a_network_sees_them(labels, got, bad_step):
    """In any step, whoever made the batch; without the check the label 4 is the null class, in silence."""
    embedding = ClassEmbedding(4, 3)
    steps = []

    def loss(batch):
        steps.append(batch["cond"].tolist())
        return Terms(size=embedding(batch["cond"], batch["x"]).square().sum(1))

    batches = [{"x": torch.zeros(4, 2), "cond": torch.tensor([0, 1, 2, 3])} for _ in range(4)]
    batches[bad_step]["cond"] = torch.tensor(labels)
    message = f"labels must be in 0..3, since the networks have num_classes=4; sample {got}"
    with pytest.raises(ValueError, match=message):
        play(Player(loss, moves=[embedding], optimizer=SGD), batches, steps=4)
    assert steps == [[0, 1, 2, 3]] * bad_step
