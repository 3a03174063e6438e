"""Nothing is updated by what is not finite, and no batch out of range is trained on."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from small import linear
from torch import nn

from components.conditions import ClassEmbedding
from hybrids import Player, Terms, finite, train, unpack
from hybrids.batch import classes_of
from hybrids.finite import LAG, NotFinite

ADAMW = partial(torch.optim.AdamW, lr=0.1)


def x(n=4, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) / 4


BATCHES = [x(seed=seed) for seed in range(30)]


def player_with(spoil, name="player", **options):
    """A player whose term `wild` is spoilt by `spoil(values, step)`."""

    def loss(x, step):
        values = layer(x)[:, 0].square()
        return Terms(fine=values, wild=spoil(values, step))

    player, layer = linear(name, loss=loss, **{"optimizer": ADAMW, **options})
    return player


def state(player):
    """All that an update changes."""
    parts = [p.detach().clone() for p in player.parameters_moved()]
    for entry in player.optimizer.state.values():
        parts += [value.clone() for value in entry.values()]
    return parts


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b))


def when(steps, spoilt):
    return lambda values, step: spoilt(values) if step in steps else values


SPOILT = {
    "NaN": (lambda values: values * math.nan, r"the loss is nan, term 'wild' is nan"),
    "one infinite example": (
        lambda values: values + torch.tensor([0, 0, 0, math.inf]),
        r"the loss is inf, term 'wild' is inf",
    ),
    "infinite, without a gradient": (
        lambda values: torch.full_like(values, -math.inf),
        r"the loss is -inf, term 'wild' is -inf",
    ),
    "the root's slope at 0": (lambda values: (0 * values).sqrt(), "its loss and terms are finite"),
}


@pytest.mark.parametrize(("spoilt", "reason"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_it_is_decided_before_the_update(spoilt, reason, clip):
    """Faults 26 and 27: the player, the term and the step are named, and nothing has moved."""
    player = player_with(when({2}, spoilt), name="judge", clip=clip)
    before = None
    message = rf"step 3: the gradient of player 'judge' is not finite: {reason}\. The update was not made"
    with pytest.raises(NotFinite, match=message):
        for _ in train(player, BATCHES, Accelerator(cpu=True), 5):
            before = state(player)
    assert before is not None and equal(state(player), before)


def test_a_skipped_step_leaves_no_trace():
    """Training with two steps skipped ends as if their batches had not been there; the count is logged."""
    spoilt = player_with(when({1, 3}, lambda values: values * math.nan))
    logs = [logs for _, logs in train(spoilt, BATCHES, Accelerator(cpu=True), 6, skip_nonfinite=2)]
    clean = player_with(lambda values, step: values)
    list(train(clean, [BATCHES[i] for i in (0, 2, 4, 5)], Accelerator(cpu=True), 4))
    assert equal(state(spoilt), state(clean))
    assert [log.get("skipped/player") for log in logs] == [None, 1, None, 2, None, None]
    assert set(logs[1]) == {"skipped/player"}, "values that are not finite would spoil the means of a log"


def test_only_so_many_steps_are_skipped_and_players_count_together():
    """Fault 29: a step that two players skip counts once, the third is one too many."""
    one, other = (player_with(when({1, 3, 4}, lambda values: values * math.nan), name) for name in ("one", "other"))
    done = []
    with pytest.raises(NotFinite, match=r"step 5: .* player 'one' .*; more than the 2 steps that may be skipped"):
        for n, logs in train([one, other], BATCHES, Accelerator(cpu=True), 9, skip_nonfinite=2):
            done.append((n, logs.get("skipped/other")))
    assert done == [(1, None), (2, 1), (3, None), (4, 2)]


def test_micro_batches_are_looked_at_together():
    """One micro-batch of three that is not finite: the step is not made."""
    calls = []

    def spoil(values, step):
        calls.append(step)
        return values * (math.nan if len(calls) == 5 else 1)

    with pytest.raises(NotFinite, match="step 2: .*term 'wild' is nan"):
        list(train(player_with(spoil), BATCHES, Accelerator(cpu=True, gradient_accumulation_steps=3), 9))


# Batches.


class Labelled(nn.Module):
    """Ten classes; its logit has a row of the table for each."""

    def __init__(self):
        super().__init__()
        self.label, self.layer = ClassEmbedding(10, 2), nn.Linear(2, 1)

    def forward(self, x, cond):
        return self.layer(x.flatten(1)[:, :2] + self.label(cond, x))[:, 0]


def labelled(**options):
    net = Labelled()
    return Player(lambda batch: Terms(a=net(*unpack(batch)).square()), [net], optimizer=ADAMW, **options)


def batch(x=None, cond=(0, 9)):
    return {"x": torch.zeros(2, 1, 4, 4) if x is None else x, "cond": torch.tensor(cond)}


OUTSIDE = {
    "NaN": (batch(torch.zeros(2, 2).index_fill(0, torch.tensor([1]), math.nan)), "sample 1 of the batch has NaN"),
    "0..255": (batch(255 * torch.rand(2, 1, 4, 4)), r"images must be in \[-1, 1\]; sample"),
    "label K": (batch(cond=(3, 10)), r"labels must be in 0\.\.9, .*num_classes=10; sample 1 of the batch has 10"),
    "label -1": (batch(cond=(-1, 3)), r"labels must be in 0\.\.9, .* sample 0 of the batch has -1"),
    "nothing": (batch(torch.zeros(0, 2), ()), "a batch must hold an example at least"),
}


@pytest.mark.parametrize(("bad", "message"), OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("at", [0, 3])
def test_each_batch_is_looked_at_and_not_only_the_first(bad, message, at):
    player = labelled()
    good = batch(torch.zeros(2, 2) if bad["x"].ndim == 2 else None)
    done = []
    with pytest.raises(ValueError, match=message):
        for n, _ in train(player, [good] * at + [bad], Accelerator(cpu=True), 9):
            done.append(n)
    assert len(done) == at


def test_labels_are_those_of_networks_that_take_them():
    """timm's networks say num_classes of outputs: 1 for a critic; a network without classes takes any column `cond`."""
    timm = nn.Linear(2, 1)
    timm.num_classes = 1
    assert classes_of([timm, nn.Linear(1, 1)]) is None
    assert classes_of(Labelled().modules()) == 10 == classes_of([timm, *Labelled().modules()])
    player = Player(lambda batch: Terms(a=timm(batch["x"])[:, 0]), [timm], optimizer=ADAMW)
    list(train(player, [batch(torch.zeros(2, 2), (-5, 1000))], Accelerator(cpu=True), 2))


# What the device decides. The host's part of it runs on a CPU, too; fused AdamW has a kernel there.


@pytest.fixture
def like_cuda(monkeypatch):
    """Decisions are taken as on CUDA; a copy to pinned memory, which needs CUDA, is a copy."""

    class OnCuda(finite.Watch):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.on_cuda = True

    def of(player, norm, *rest):
        return finite._Decision(player, norm.clone(), SimpleNamespace(query=lambda: True), *rest)

    monkeypatch.setattr("hybrids.game.Watch", OnCuda)
    monkeypatch.setattr(finite._Decision, "of", of)


@pytest.mark.parametrize("steps", [30, 6])
def test_the_device_skips_the_update_and_the_host_reads_it_later(steps, like_cuda):
    """found_inf leaves parameters, moments and step as they were; the host stops at the same step on every process."""
    player = player_with(when({3}, lambda values: values * math.nan), name="judge")
    states = {}
    with pytest.raises(
        NotFinite, match=r"step 4: the gradient of player 'judge' .*: the loss is nan, term 'wild' is nan"
    ):
        for n, _ in train(player, BATCHES, Accelerator(cpu=True), steps):
            states[n] = state(player)
    assert equal(states[3], states[4]) and not equal(states[4], states[5])
    assert max(states) == min(3 + LAG, steps), "step 4's decision is read in turn 4 + LAG, or at the end"
    assert "found_inf" not in player.optimizer.__dict__


@pytest.mark.parametrize("optimizer", [ADAMW, partial(torch.optim.SGD, lr=0.1)])
@pytest.mark.filterwarnings("ignore:player 'player'. its SGD waits")
def test_a_batch_out_of_range_is_not_trained_on_by_the_device_either(optimizer, like_cuda):
    net = Labelled()
    player = Player(lambda batch: Terms(a=net(*unpack(batch)).square()), [net], optimizer=optimizer)
    good, bad = batch(), batch(255 * torch.ones(2, 1, 4, 4), (4, 5))
    before = None
    message = (
        r"step 3: x of a batch spans 255 to 255 and its labels 4 to 5; expected images in \[-1, 1\] and labels below"
    )
    with pytest.raises(ValueError, match=message):
        for n, _ in train(player, [good, good, bad, *[good] * 20], Accelerator(cpu=True), 20):
            before = state(player) if n == 2 else before
            if n == 3:
                assert equal(state(player), before)


def test_an_optimizer_that_cannot_skip_by_itself_waits_and_says_so_once(like_cuda):
    for optimizer in (partial(torch.optim.SGD, lr=0.1), partial(torch.optim.AdamW, foreach=False)):
        player = player_with(when({2}, lambda values: values * math.nan), optimizer=optimizer)
        before = None
        with pytest.warns(UserWarning) as caught, pytest.raises(NotFinite, match="step 3"):
            for _ in train(player, BATCHES, Accelerator(cpu=True), 9):
                before = copy.deepcopy(state(player))
        assert equal(state(player), before)
        assert len(caught) == 1
        assert "player 'player': its" in str(caught[0].message) and "waits for the device" in str(caught[0].message)


def test_a_state_from_before_becomes_that_of_the_fused_kernel(like_cuda):
    """After a resume Adam's steps lie on the CPU, in float64 with another default type."""
    player = player_with(lambda values, step: values)
    list(train(player, BATCHES, Accelerator(cpu=True), 1))
    for group in player.optimizer.param_groups:
        group["fused"] = None
    for entry in player.optimizer.state.values():
        entry["step"] = entry["step"].double()
    list(train(player, BATCHES, Accelerator(cpu=True), 2, 1))
    assert all(entry["step"].dtype == torch.float32 and entry["step"] == 2 for entry in player.optimizer.state.values())
