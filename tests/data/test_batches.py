import re
from dataclasses import replace
from itertools import islice

import pytest
import torch

from hybrids.data import Batches, Data, digits


def numbered(n=10):
    """Points that tell their own number."""
    return Data("numbers", (1,), x=torch.arange(float(n))[:, None], labels=torch.arange(n))


def drawn(batches, count):
    return [batch[:, 0].int().tolist() for batch in islice(iter(batches), count)]


# Order


def test_each_epoch_is_a_permutation_and_nothing_is_dropped():
    """7 batches of 10 in epochs of 35 or of 14: batches straddle epochs, each of which has every example once."""
    for n, size in ((10, 4), (10, 10), (7, 3), (10, 1)):
        stream = sum(drawn(numbered(n).batches(size), 3 * n), [])
        for epoch in range(3):
            assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_the_order_is_a_function_of_seed_and_epoch():
    batches = numbered().batches(5, seed=3)
    stream = sum(drawn(batches, 6), [])
    fresh = numbered().batches(5, seed=3)
    assert stream == sum((fresh.order(epoch).tolist() for epoch in range(3)), [])
    orders = {tuple(numbered().batches(5, seed=s).order(epoch).tolist()) for s in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    drawn(numbered().batches(4), 5)
    torch.manual_seed(5)
    one = drawn(numbered().batches(4), 5)
    torch.manual_seed(6)
    assert drawn(numbered().batches(4), 5) == one
    torch.set_rng_state(before)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_partition_the_same_stream(world):
    """World × B samples a step, the r-th B of them on rank r: one process with world × B sees just the same."""
    whole = drawn(numbered(20).batches(2 * world, seed=1), 12)
    parts = [drawn(numbered(20).batches(2, seed=1, rank=rank, world_size=world), 12) for rank in range(world)]
    assert [sum(step, []) for step in zip(*parts)] == whole


# Position


@pytest.mark.parametrize("before", [3, 5, 10, 13])
def test_a_resumed_stream_goes_on_where_it_was(before):
    """In the middle of an epoch of 20 (3, 13), and at its end (5, 10)."""
    straight = numbered(20).batches(4, seed=2)
    stopped = numbered(20).batches(4, seed=2)
    expected = drawn(straight, before + 8)[before:]
    drawn(stopped, before)
    resumed = numbered(20).batches(4, seed=2)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == {"consumed": 4 * before, "seed": 2}
    assert drawn(resumed, 8) == expected


@pytest.mark.parametrize("old, new", [(2, 1), (1, 2), (3, 2)])
def test_a_stream_survives_a_change_of_world_size(old, new):
    straight = sum(drawn(numbered(24).batches(6, seed=2), 8), [])
    first = [numbered(24).batches(6 // old, 2, rank, old) for rank in range(old)]
    seen = [sum(step, []) for step in zip(*(drawn(part, 3) for part in first))]
    second = [numbered(24).batches(6 // new, 2, rank, new) for rank in range(new)]
    for part in second:
        part.load_state_dict(first[0].state_dict())
    rest = [sum(step, []) for step in zip(*(drawn(part, 5) for part in second))]
    assert sum(seen + rest, []) == straight


def test_the_position_is_the_same_on_every_rank():
    parts = [numbered(20).batches(2, rank=rank, world_size=3) for rank in range(3)]
    for part in parts:
        drawn(part, 4)
    assert [part.state_dict()["consumed"] for part in parts] == [24] * 3


def test_two_iterators_share_the_position():
    batches = numbered(20).batches(4)
    first = drawn(batches, 2)
    assert first + drawn(batches, 3) == drawn(numbered(20).batches(4), 5)


def test_the_position_of_another_seed_is_refused():
    batches = numbered().batches(4, seed=2)
    with pytest.raises(ValueError, match="the data order was of seed 1; got --seed 2"):
        batches.load_state_dict({"consumed": 8, "seed": 1})


# Contents


def test_images_come_decoded_with_their_labels():
    data = digits(8)
    batch = next(iter(data.batches(6, labels=True)))
    index = data.batches(6).order(0)[:6]
    assert torch.equal(batch["x"], data.decode(data.x[index])) and torch.equal(batch["cond"], data.labels[index])
    assert batch["x"].dtype == torch.float32 and batch["cond"].dtype == torch.int64


def test_labels_stay_with_their_examples():
    for batch in islice(iter(numbered().batches(4, labels=True)), 8):
        assert batch["x"][:, 0].tolist() == batch["cond"].tolist()


# Refusals


@pytest.mark.parametrize("settings, message", [
    ({"batch_size": 11}, "--batch-size 11 on 1 process needs 11 examples a step; numbers has 10: lower --batch-size"),
    ({"batch_size": 4, "world_size": 3}, "--batch-size 4 on 3 processes needs 12 examples a step; numbers has 10"),
    ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ({"batch_size": 2, "rank": 2, "world_size": 2}, "0 <= rank < world_size must hold; got rank 2 and world_size 2"),
])  # fmt: skip
def test_faults_10_and_11_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Batches(numbered(), **settings)


def test_data_without_examples_or_labels_is_refused():
    with pytest.raises(ValueError, match="the data set 'digits' has no examples here, only its shape"):
        Data.from_card(digits(8).card()).batches(4)
    with pytest.raises(ValueError, match="the data set 'points' has no labels"):
        Data("points", (1,), x=torch.zeros(5, 1)).batches(2, labels=True)


def test_a_card_keeps_all_but_the_examples():
    data = digits(8)
    again = Data.from_card(data.card())
    assert (again.name, again.shape, again.classes, again.grey_levels) == ("digits", (1, 8, 8), 10, 17)
    assert len(again) == 0


# Data of one's own


@pytest.mark.parametrize("grey_levels", [256, 17, 2])
def test_a_tensor_on_the_grid_comes_back_exactly(grey_levels):
    v = torch.randint(0, grey_levels, (6, 3, 4, 4))
    x = v * (2 / (grey_levels - 1)) - 1.0
    data = Data.from_tensor(x, grey_levels=grey_levels)
    assert torch.equal(data.x.long(), v) and data.grey_levels == grey_levels and data.shape == (3, 4, 4)
    torch.testing.assert_close(data.decode(data.x), x)


def test_points_and_latents_are_kept_as_they_are():
    points, latents = 2 * torch.randn(6, 2), 9 * torch.randn(6, 8, 2, 2)
    assert torch.equal(Data.from_tensor(points).x, points) and Data.from_tensor(points).grey_levels is None
    assert torch.equal(Data.from_tensor(latents, grey_levels=None).x, latents)


def spoiled(sample, value, shape=(6, 1, 4, 4)):
    x = torch.zeros(shape)
    x[sample].view(-1)[3] = value
    return x


@pytest.mark.parametrize("x, message", [
    (torch.zeros(6, 1, 4, 4, dtype=torch.uint8), "x must be floating point, images in [-1, 1]; got torch.uint8"),
    (spoiled(2, 255.0), "images must be in [-1, 1]; sample 2 of the batch spans 0 to 255"),
    (spoiled(4, float("nan")), "x must be finite; sample 4 of the batch has NaN or infinite values"),
    (spoiled(5, float("-inf"), (6, 8)), "x must be finite; sample 5 of the batch has NaN or infinite values"),
    (spoiled(3, 7.0, (6, 4, 4, 4)), "images must be in [-1, 1]; sample 3 is not; or grey_levels=None"),
])  # fmt: skip
def test_faults_15_and_16_bad_tensors_are_refused_by_sample(x, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Data.from_tensor(x)


def test_more_levels_than_a_byte_holds_are_refused():
    with pytest.raises(ValueError, match="grey_levels must be at most 256, or None; got 65536"):
        Data.from_tensor(torch.zeros(2, 1, 4, 4), grey_levels=65536)


def test_an_array_is_taken_like_a_tensor():
    x = torch.randint(0, 17, (6, 1, 4, 4)) / 8.0 - 1
    data = Data.from_tensor(x.double().numpy(), grey_levels=17)
    assert torch.equal(data.x, Data.from_tensor(x, grey_levels=17).x)
    assert Data.from_tensor(torch.randn(5, 2).double().numpy()).x.dtype == torch.float32
    with pytest.raises(ValueError, match="x must be floating point"):
        Data.from_tensor(torch.zeros(6, 1, 4, 4).byte().numpy())


@pytest.mark.parametrize("labels", [3, 11])
def test_labels_are_as_many_as_examples(labels):
    with pytest.raises(ValueError, match=f"labels must be as many as the examples, 10; got {labels}"):
        Data("points", (1,), x=torch.zeros(10, 1), labels=torch.zeros(labels, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"factors must be as many as the examples, 10; got {labels}"):
        replace(numbered(), factors=torch.zeros(labels, 2))
