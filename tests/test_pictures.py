"""Pictures of samples of every kind: what they show, and how large they are."""

import warnings

import pytest
import torch

from hybrids.pictures import MOST_PIXELS, picture


def ink(drawn):
    """Share of pixels that are not white."""
    return (drawn.amin(0) < 0.99).double().mean().item()


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("mean, scale", [(0.0, 1.0), (5000.0, 1000.0), (-1e-3, 1e-5), (1.6e9, 2.0)])
def test_axes_follow_the_data(d, mean, scale):
    """The same picture of the same samples at any scale, but for the numbers on the axes."""
    unit = torch.randn(4000, d, generator=torch.Generator().manual_seed(0))
    drawn = picture(unit.double() * scale + mean, mean=(mean,) * d, scale=(scale,) * d)
    reference = picture(unit, mean=(0.0,) * d, scale=(1.0,) * d)
    inside = (slice(None), slice(20, 520), slice(95, 575))
    assert drawn.shape == (3, 600, 600) and ink(drawn[inside]) > 0.02
    assert (drawn[inside] != reference[inside]).any(0).double().mean() < 0.02


def test_only_points_of_more_than_two_dimensions_name_their_axes():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    below = slice(565, 600)
    plain = picture(x[:, :2], mean=(0.0,) * 2, scale=(1.0,) * 2)
    assert ink(plain[:, below]) == 0 and ink(picture(x)[:, below]) > 0.01


def test_samples_outside_the_axes_are_followed():
    far = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 1e3 + 1e4
    assert ink(picture(far)[:, 20:520, 95:575]) > 0.005
    far[:10] = float("nan")
    assert picture(far).isfinite().all()


@pytest.mark.parametrize("d", [1, 2])
def test_a_picture_of_no_finite_sample_is_empty(d):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = picture(torch.full((10, d), float("nan")))
    assert drawn.shape == (3, 600, 600) and ink(drawn[:, 30:500, 110:570]) == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_every_channel_is_shown(channels):
    """Grey, colours, or a tile for each channel, side by side, in which each is legible."""
    for bright in range(channels):
        x = torch.full((1, channels, 8, 8), -1.0)
        x[:, bright] = 1.0
        inside = picture(x)
        if channels == 3:
            assert inside[bright].eq(1).all() and inside.sum() == inside[bright].sum()
            continue
        width = 64 if channels == 1 else 72
        assert inside.shape == (3, 64, 64 if channels == 1 else 72 * channels - 8)
        tiles = [inside[:, :, i * width : i * width + 64] for i in range(channels)]
        assert [tile.mean().item() for tile in tiles] == [float(i == bright) for i in range(channels)]


@pytest.mark.parametrize("shape, size", [
    ((64, 1, 8, 8), (530, 530)),
    ((64, 1, 16, 64), (290, 266)),
    ((16, 1, 1000, 8), None),
    ((16, 3, 8, 1000), None),
    ((4, 1, 3000, 3000), None),
    ((3, 4, 64, 1500), None),
])  # fmt: skip
def test_grids_are_about_square_and_never_too_large(shape, size):
    drawn = picture(torch.zeros(shape))
    _, height, width = drawn.shape
    assert max(height, width) <= MOST_PIXELS
    assert size is None or (height, width) == size


def test_what_is_too_large_is_averaged():
    x = torch.ones(16, 1, 2000, 2000)
    x[..., ::2] = -1
    drawn = picture(x)
    assert max(drawn.shape) <= MOST_PIXELS and (drawn[0, 5:900, 5:900] - 0.5).abs().max() < 0.26


def test_many_columns_of_large_images_fit():
    assert max(picture(torch.zeros(32, 1, 700, 700), columns=16).shape) <= MOST_PIXELS
