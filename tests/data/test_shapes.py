import math

import pytest
import torch

from hybrids.data import Augment, Data, load_data, shapes
from hybrids.data.shapes import BACKGROUND, FACTORS, KINDS, draw


@pytest.fixture(scope="module")
def few():
    return shapes(32, 300, 50)


def one(kind, hue=0.0, size=0.3, x=0.5, y=0.5, rotation=0.0):
    return torch.tensor([[float(KINDS.index(kind)), hue, size, x, y, rotation]])


def cover(factors, resolution=32):
    """How much of each pixel the shape covers: (N, R, R), read off the value of HSV, which is 1 in the shape."""
    image = draw(factors, resolution).amax(1).float() / 255
    return (image - BACKGROUND) / (1 - BACKGROUND)


AREAS = {
    "circle": math.pi,
    "ring": math.pi * 0.75,
    "triangle": 3 * math.sqrt(3) / 4,
    "square": 2.0,
    "star": 5 * 0.45 * math.sin(math.pi / 5),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size, rotation", [(0.15, 0.0), (0.35, 0.4)])
def test_shapes_cover_the_area_that_they_have(kind, size, rotation):
    found = cover(one(kind, size=size, rotation=rotation)).sum().item() / 32**2
    assert found == pytest.approx(AREAS[kind] * size**2, rel=0.05)
    assert cover(one(kind, size=size, rotation=rotation), 256).mean() == pytest.approx(AREAS[kind] * size**2, rel=0.01)


@pytest.mark.parametrize("kind", ["circle", "ring", "square"])
def test_shapes_lie_where_their_factors_say(kind):
    c = cover(one(kind, size=0.2, x=0.3, y=0.6), 64)[0]
    line = (torch.arange(64) + 0.5) / 64
    assert (c.sum(0) @ line / c.sum()).item() == pytest.approx(0.3, abs=2e-3)
    assert (c.sum(1) @ line / c.sum()).item() == pytest.approx(0.6, abs=2e-3)


def test_edges_are_antialiased_by_the_area_covered():
    """Against the mean over 8 × 8 points of each pixel."""
    factors = torch.cat([one(kind, rotation=0.3) for kind in KINDS])
    fine = torch.nn.functional.avg_pool2d(cover(factors, 256), 8)
    assert (cover(factors) - fine).abs().max() < 0.3 and (cover(factors) - fine).abs().mean() < 0.01
    levels = cover(factors)
    assert ((levels > 0.05) & (levels < 0.95)).float().mean() > 0.03


@pytest.mark.parametrize("hue, rgb", [(0, (1, 0.2, 0.2)), (1 / 3, (0.2, 1, 0.2)), (2 / 3, (0.2, 0.2, 1)),
                                      (0.5, (0.2, 1, 1)), (1 / 12, (1, 0.6, 0.2))])  # fmt: skip
def test_colours_are_their_hues(hue, rgb):
    assert draw(one("circle", hue))[0, :, 16, 16].tolist() == pytest.approx([255 * c for c in rgb], abs=1)


@pytest.mark.parametrize("kind, tips", [("triangle", 3), ("square", 4), ("star", 5)])
def test_rotation_turns_by_radians_until_the_shape_is_itself(kind, tips):
    turn = 2 * math.pi / tips
    images = [cover(one(kind, rotation=r)) for r in (0.0, turn, turn / 2)]
    torch.testing.assert_close(images[0], images[1], atol=0.02, rtol=0)
    assert (images[0] - images[2]).abs().max() > 0.5
    quarter = cover(one(kind, rotation=math.pi / 2))[0]
    torch.testing.assert_close(quarter, images[0][0].rot90(-1), atol=0.02, rtol=0)


def test_factors_are_kept_and_make_the_images(few):
    assert few.factors.shape == (300, 6) and few.held_out_factors.shape == (50, 6) and few.factor_names == FACTORS
    assert torch.equal(draw(few.factors), few.x) and torch.equal(draw(few.held_out_factors), few.held_out)
    assert torch.equal(few.labels, few.factors[:, 0].long()) and few.class_names == KINDS
    assert torch.equal(few.held_out_labels, few.held_out_factors[:, 0].long())


def test_factors_are_spread_and_shapes_whole(few):
    factors = few.factors
    assert torch.bincount(few.labels).min() > 30
    kind, hue, size, x, y, rotation = factors.unbind(1)
    assert hue.min() >= 0 and hue.max() < 1 and hue.std() > 0.25 and size.min() >= 0.15 and size.max() <= 0.35
    for place in (x, y):
        assert (place - size).min() >= 0 and (place + size).max() <= 1
    assert rotation[kind < 2].eq(0).all() and rotation[kind == 2].max() <= 2 * math.pi / 3
    border = torch.cat([few.x[:, :, 0].flatten(), few.x[:, :, -1].flatten()])
    assert border.float().mean() < 35


def test_shapes_are_always_the_same_and_differ_by_seed(few):
    assert torch.equal(shapes(32, 300, 50).x, few.x) and not torch.equal(shapes(32, 300, 50, seed=1).x, few.x)
    # No image is both trained on and held out.
    train = {image.numpy().tobytes() for image in few.x}
    assert not any(image.numpy().tobytes() in train for image in few.held_out)


@pytest.mark.slow
def test_the_default_set_is_of_10_000_and_1000():
    data = load_data("shapes")
    assert (len(data), len(data.held_out)) == (10_000, 1000)
    assert (data.shape, data.classes, data.grey_levels) == ((3, 32, 32), 5, 256)
    assert data.x.dtype == torch.uint8
    again = Data.from_card(data.card())
    assert (again.shape, again.classes, again.grey_levels) == (data.shape, 5, 256)


def test_the_resolution_is_respected_and_keeps_the_factors(few):
    large = shapes(64, 300, 50)
    assert large.shape == (3, 64, 64) and torch.equal(large.factors, few.factors)
    small = torch.nn.functional.avg_pool2d(large.x.float(), 2)
    assert (small - few.x).abs().mean() < 2


@pytest.mark.parametrize("settings, message", [
    ({"channels": 1}, "--data shapes is in colour, of 3 channels; got --channels 1"),
    ({"resolution": 4}, "--data shapes needs --resolution 8 or more; got 4"),
])  # fmt: skip
def test_shapes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_data("shapes", **settings)


# Flips and crops


def test_flips_mirror_half_of_a_batch_of_whole_images():
    x = torch.randn(400, 3, 4, 6)
    torch.manual_seed(0)
    out = Augment(horizontal_flip=True)(x)
    flipped = (out == x.flip(-1)).flatten(1).all(1)
    kept = (out == x).flatten(1).all(1)
    assert (flipped ^ kept).all() and 150 < flipped.sum() < 250


def test_crops_are_all_the_windows_of_the_padded_image():
    x = torch.randn(1, 2, 5, 4)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")[0]
    windows = {padded[:, i : i + 5, j : j + 4].numpy().tobytes() for i in range(5) for j in range(5)}
    torch.manual_seed(0)
    out = Augment(crop_padding=2)(x.expand(600, -1, -1, -1))
    assert out.shape == (600, 2, 5, 4) and {image.numpy().tobytes() for image in out} == windows


def test_augmented_batches_follow_the_run_s_random_numbers_and_keep_their_labels(few):
    from dataclasses import replace

    plain = iter(few.batches(16, labels=True))
    batches = replace(few, augment=Augment(True, 3)).batches(16, labels=True)
    torch.manual_seed(1)
    first, state = next(iter(batches)), torch.get_rng_state()
    second = next(iter(batches))
    torch.set_rng_state(state)
    batches.load_state_dict({"consumed": 16, "seed": 0})
    again = next(iter(batches))
    assert torch.equal(second["x"], again["x"])
    for batch in (first, second):
        expected = next(plain)
        assert torch.equal(batch["cond"], expected["cond"]) and not torch.equal(batch["x"], expected["x"])
        assert batch["x"].min() >= -1 and batch["x"].max() <= 1


def test_flips_and_crops_are_settings_of_the_data():
    data = load_data("digits", 8, horizontal_flip=True, crop_padding=1)
    assert data.augment == Augment(True, 1) and load_data("digits", 8).augment is None
    with pytest.raises(ValueError, match=r"--crop-padding must be in \[0, 8\), the images' shorter side; got 8"):
        load_data("digits", 8, crop_padding=8)


def test_oblong_images_are_cropped_up_to_their_shorter_side(tmp_path):
    import numpy

    numpy.save(tmp_path / "x.npy", numpy.random.default_rng(0).integers(0, 256, (20, 1, 6, 12), "uint8"))
    data = load_data(str(tmp_path / "x.npy"), crop_padding=5)
    assert next(iter(data.batches(4))).shape == (4, 1, 6, 12)
    with pytest.raises(ValueError, match=r"--crop-padding must be in \[0, 6\), the images' shorter side; got 6"):
        load_data(str(tmp_path / "x.npy"), crop_padding=6)
