import pytest
import torch

from hybrids.data import digits, load_data, stacked_digits


@pytest.fixture(scope="module")
def eight():
    return digits(8)


@pytest.fixture(scope="module")
def stacked():
    return stacked_digits(2000)


def names(data):
    """Image bytes → labels that it has, of the training and of the held-out digits."""
    both = []
    for images, labels in ((data.x, data.labels), (data.held_out, data.held_out_labels)):
        found = {}
        for image, label in zip(images, labels.tolist()):
            found.setdefault(image.numpy().tobytes(), set()).add(label)
        both.append(found)
    return both


def test_the_split_is_the_stated_one(eight):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x, held, y, held_y = train_test_split(bunch.images, bunch.target, test_size=297, random_state=0)
    assert (eight.x[:, 0].numpy() == x).all() and (eight.held_out[:, 0].numpy() == held).all()
    assert eight.labels.tolist() == y.tolist() and eight.held_out_labels.tolist() == held_y.tolist()
    assert len(eight) == 1500 and len(eight.held_out) == 297


def test_digits_of_8_have_17_levels(eight):
    assert eight.grey_levels == 17 and eight.shape == (1, 8, 8) and eight.classes == 10 and eight.dimensions == 64
    assert eight.x.dtype == torch.uint8 and eight.x.unique().tolist() == list(range(17))
    x = eight.decode(eight.x)
    assert x.dtype == torch.float32 and x.unique().tolist() == pytest.approx([v / 8 - 1 for v in range(17)])


@pytest.mark.parametrize("resolution", [16, 32])
def test_larger_digits_have_256_levels(resolution):
    data = load_data("digits", resolution)
    assert data.grey_levels == 256 and data.shape == (1, resolution, resolution) and data.x.shape == (1500, *data.shape)
    x = data.decode(data.x)
    assert x.min() >= -1 and x.max() <= 1 and len(x.unique()) > 200
    steps = (x + 1) * 127.5
    assert (steps - steps.round()).abs().max() < 1e-3


def test_larger_digits_are_the_same_digits(eight):
    large = digits(16)
    small = torch.nn.functional.avg_pool2d(large.decode(large.x), 2)
    nearest = torch.cdist(small.flatten(1), eight.decode(eight.x).flatten(1)).argmin(1)
    assert (nearest == torch.arange(1500)).double().mean() > 0.98 and torch.equal(large.labels, eight.labels)


def test_the_default_is_their_own_size_and_levels(eight):
    data = load_data("digits")
    assert data.shape == (1, 8, 8) and data.grey_levels == 17 and torch.equal(data.x, eight.x)
    assert torch.equal(digits().x, eight.x)


def test_channels_repeat():
    data = digits(8, 3)
    assert data.shape == (3, 8, 8) and torch.equal(data.x[:, 0], data.x[:, 2])


def test_stacked_digits_are_labelled_by_their_channels(eight, stacked):
    train, held = names(eight)
    for images, labels, known in (
        (stacked.x, stacked.labels, train),
        (stacked.held_out, stacked.held_out_labels, held),
    ):
        for image, label in zip(images[:1000], labels[:1000].tolist()):
            for channel, digit in enumerate((label // 100, label // 10 % 10, label % 10)):
                assert digit in known[image[channel : channel + 1].numpy().tobytes()]


def test_stacked_digits_never_mix_training_and_held_out(eight, stacked):
    train, held = names(eight)
    only = set(held) - set(train)
    assert not any(channel.numpy().tobytes() in only for image in stacked.x for channel in image)


def test_stacked_digits_are_drawn_evenly_and_always_the_same(stacked):
    again = stacked_digits(2000)
    assert torch.equal(stacked.x, again.x) and torch.equal(stacked.labels, again.labels)
    assert stacked.shape == (3, 8, 8) and stacked.classes == 1000 and stacked.grey_levels == 17
    counts = torch.bincount(
        torch.stack([stacked.labels // 100, stacked.labels // 10 % 10, stacked.labels % 10]).flatten()
    )
    assert counts.numel() == 10 and counts.min() > 0.08 * 6000 and counts.max() < 0.12 * 6000


def test_most_of_1000_modes_appear_in_the_full_set():
    data = load_data("stacked-digits")
    assert len(data) == 60_000 and len(data.held_out) == 10_000 and len(data.labels.unique()) == 1000
