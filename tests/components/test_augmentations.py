import copy
import math

import pytest
import torch
import torch.nn.functional as F
from answers import generator

from components.augmentations import DiffAugment, horizontal_flip, random_crop
from components.discriminators import PatchDiscriminator
from hybrids.critic import Critic

ALL = ("color", "translation", "cutout")
KINDS = pytest.mark.parametrize("kinds", [ALL, *((kind,) for kind in ALL)], ids=["all", *ALL])


@KINDS
def test_shapes_types_and_repeatability(kinds):
    augment, x = DiffAugment(kinds), torch.randn(5, 3, 8, 12)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = augment(x.to(dtype))
        assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()
    assert torch.equal(augment(x, generator()), augment(x, generator()))
    assert not torch.equal(augment(x), augment(x))
    assert not list(augment.parameters()) and not augment.state_dict()
    copy.deepcopy(augment)


@KINDS
def test_strength_zero_is_the_identity(kinds):
    x = torch.randn(64, 3, 8, 8)
    assert torch.equal(DiffAugment(kinds, strength=0.0)(x), x)


def test_no_kinds_is_the_identity():
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(DiffAugment(())(x), x)


@KINDS
def test_every_image_draws_its_own(kinds):
    x = torch.randn(1, 3, 16, 16).expand(32, -1, -1, -1)
    assert len(DiffAugment(kinds)(x).flatten(1).unique(dim=0)) > 16


@KINDS
def test_gradients(kinds):
    """Affine in x for a fixed draw, so the Jacobian's product is the difference quotient at any step."""
    augment, x = DiffAugment(kinds), torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    direction, cotangent = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    out = augment(x, generator())
    (slope,) = torch.autograd.grad((cotangent * out).sum(), x)
    assert slope.flatten(1).any(1).all()
    difference = augment(x + direction, generator()) - out
    torch.testing.assert_close((slope * direction).sum(), (cotangent * difference).sum())


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_color_is_three_affine_steps(strength):
    """The channels' differences at a pixel scale by one factor, the rest by another; the mean moves by brightness."""
    x = torch.randn(256, 3, 6, 6, dtype=torch.float64)
    out = DiffAugment(("color",), strength)(x)
    grey, grey_out = x.mean(1), out.mean(1)
    middle, middle_out = grey.mean((1, 2), keepdim=True), grey_out.mean((1, 2), keepdim=True)
    contrast = ((grey_out - middle_out) / (grey - middle)).flatten(1)
    both = ((out - grey_out[:, None]) / (x - grey[:, None])).flatten(1)
    torch.testing.assert_close(contrast, contrast[:, :1].expand_as(contrast))
    torch.testing.assert_close(both, both[:, :1].expand_as(both))
    brightness, contrast = (middle_out - middle).flatten(), contrast[:, 0]
    saturation = both[:, 0] / contrast
    for value, centre, reach in ((brightness, 0, 0.5), (contrast, 1, 0.5), (saturation, 1, 1.0)):
        low, high = value.min().item(), value.max().item()
        assert centre - strength * reach <= low < centre - 0.9 * strength * reach
        assert centre + 0.9 * strength * reach < high <= centre + strength * reach


def test_translation_moves_by_whole_pixels_up_to_an_eighth():
    x = torch.randn(1, 2, 16, 8).expand(300, -1, -1, -1)
    out = DiffAugment(("translation",))(x)
    padded = F.pad(x[0], (1, 1, 2, 2))
    windows = {(i, j): padded[:, i : i + 16, j : j + 8] for i in range(5) for j in range(3)}
    drawn = {place for image in out for place, window in windows.items() if torch.equal(image, window)}
    assert drawn == set(windows)
    assert all(any(torch.equal(image, window) for window in windows.values()) for image in out)


@pytest.mark.parametrize("sides", [(8, 8), (6, 10)])
def test_cutout_is_a_box_of_half_the_sides(sides):
    height, width = sides
    cut = DiffAugment(("cutout",))(torch.ones(2000, 1, *sides))[:, 0] == 0
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None, :])
    for lines, side in ((rows, height), (columns, width)):
        assert lines.sum(1).max() == round(side / 2)
        assert (lines.int().diff(dim=1) == 1).sum(1).max() == 1  # in one piece
        assert lines.any(0).all()
    places = math.prod(side + 1 - round(side / 2) % 2 for side in sides)
    assert len(cut.flatten(1).unique(dim=0)) == places
    # cut off by the border at most to half of it
    assert rows.sum(1).min() == (round(height / 2) + 1) // 2


def test_a_critic_augments_both_sides_and_the_penalty_goes_through():
    critic = Critic(PatchDiscriminator(3, width=8), r1=1.0, augment=DiffAugment())
    x, fake = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8, requires_grad=True)
    terms = critic.tell(x, fake)
    assert terms["r1"][1].shape == (4,) and (terms["r1"][1] > 0).all()
    terms.total.backward()
    assert fake.grad is None
    critic.fool(fake).total.backward()
    assert fake.grad.flatten(1).any(1).all()


def test_flip():
    x = torch.randn(400, 2, 3, 5)
    out = horizontal_flip(x, generator=generator())
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert torch.equal(out[~mirrored], x[~mirrored]) and 150 < mirrored.sum() < 250
    assert torch.equal(horizontal_flip(x, 1.0), x.flip(3)) and torch.equal(horizontal_flip(x, 0.0), x)
    assert torch.equal(out, horizontal_flip(x, generator=generator()))


@pytest.mark.parametrize("fill", [0.0, -1.0])
def test_crop_is_a_window_of_the_padded_image(fill):
    x = torch.randn(1, 2, 4, 6).expand(200, -1, -1, -1)
    out = random_crop(x, 1, fill, generator())
    padded = F.pad(x[0], (1, 1, 1, 1), value=fill)
    windows = [padded[:, i : i + 4, j : j + 6] for i in range(3) for j in range(3)]
    same = torch.tensor([[torch.equal(image, window) for window in windows] for image in out])
    assert same.any(1).all() and same.any(0).all()
    assert torch.equal(random_crop(x, 0), x)
    assert torch.equal(out, random_crop(x, 1, fill, generator()))


@pytest.mark.parametrize("make, message", [
    (lambda: DiffAugment(("colour",)), r"kinds must be some of color, translation, cutout; got \('colour',\)"),
    (lambda: DiffAugment(strength=1.5), r"strength must be in \[0, 1\]; got 1.5"),
    (lambda: DiffAugment()(torch.zeros(4, 3)), r"x must be \(B, C, H, W\); got shape \(4, 3\)"),
    (lambda: horizontal_flip(torch.zeros(4, 3)), "x must be"),
    (lambda: horizontal_flip(torch.zeros(4, 3, 2, 2), 2.0), r"p must be in \[0, 1\]; got 2.0"),
    (lambda: random_crop(torch.zeros(4, 3, 2, 2), -1), "padding must not be negative; got -1"),
    (lambda: random_crop(torch.zeros(4, 3), 1), "x must be"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
