"""Perceptual distance: its formula, its gradients, and untrained features."""

import pytest
import torch
from answers import F64
from torch import nn

from components.encoders import TimmFeatures
from components.losses import Perceptual, RandomFeatures


class Maps(nn.Module):
    """x itself, and its average over 2×2."""

    def forward(self, x):
        return [x, nn.functional.avg_pool2d(x, 2)]


def images(n=4, dtype=torch.float32):
    return torch.rand(2, n, 3, 16, 16, dtype=dtype) * 2 - 1


@pytest.fixture(scope="module")
def features():
    return {"random": RandomFeatures(3), "timm": TimmFeatures("resnet10t", stages=(0, 1), size=32)}


BOTH = pytest.mark.parametrize("kind", ["random", "timm"])


# The formula


@pytest.mark.parametrize("weights", [None, (1.0, 1.0), (0.5, 3.0), (0.0, 2.0)])
def test_it_is_the_distance_of_maps_of_unit_length(weights):
    x, y = images(dtype=F64)
    expected = torch.zeros(4, dtype=F64)
    for w, a, b in zip(weights or (1, 1), Maps()(x), Maps()(y)):
        for i in range(4):
            places = [a[i].flatten(1).T, b[i].flatten(1).T]  # (hw, c)
            one, other = (p / p.square().sum(1, keepdim=True).sqrt() for p in places)
            expected[i] += w * (one - other).square().sum(1).mean()
    torch.testing.assert_close(Perceptual(Maps(), weights)(x, y), expected, rtol=1e-9, atol=1e-12)


def test_its_least_and_its_greatest():
    """0 for equal images, and for those that differ by a factor; 4 a map for opposite ones."""
    x, _ = images(dtype=F64)
    distance = Perceptual(Maps())
    assert distance(x, x).abs().max() == 0 and distance(x, 3 * x).abs().max() < 1e-12
    torch.testing.assert_close(distance(x, -x), torch.full((4,), 8.0, dtype=F64), rtol=1e-9, atol=0)


@BOTH
def test_it_is_symmetric_per_example_and_a_distance_of_what_differs(kind, features):
    x, y = images()
    distance = Perceptual(features[kind])
    both = distance(x, y)
    assert both.shape == (4,) and (both > 0.01).all() and torch.equal(distance(y, x), both)
    torch.testing.assert_close(distance(x[2:3], y[2:3]), both[2:3], rtol=1e-4, atol=1e-6)
    nearer = distance(x, x + 0.01 * (y - x))
    assert (nearer < 0.1 * both).all()


# Gradients


@BOTH
def test_trap_28_the_gradient_reaches_both_images_and_no_parameter(kind, features):
    x, y = (image.requires_grad_() for image in images())
    distance = Perceptual(features[kind])
    distance(x, y).sum().backward()
    for image in (x, y):
        assert image.grad.isfinite().all() and (image.grad.flatten(1).abs().sum(1) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for p in distance.parameters())


def test_the_gradient_brings_images_together():
    x, y = images(2)
    distance, x = Perceptual.random(3), x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = distance(x, y).mean().item()
    for _ in range(30):
        optimizer.zero_grad()
        distance(x, y).mean().backward()
        optimizer.step()
    assert distance(x, y).mean().item() < 0.3 * first


def test_gradients_are_finite_where_all_features_are_zero():
    x = torch.zeros(2, 3, 8, 8, requires_grad=True)
    distance = Perceptual(nn.Sequential(nn.ReLU(), Maps()))
    distance(x, images(2)[1][..., :8, :8]).sum().backward()
    assert x.grad.isfinite().all()


# Random features


def test_random_features_say_that_they_are_and_are_fixed_by_their_seed():
    one, same, other = RandomFeatures(1), RandomFeatures(1), RandomFeatures(1, seed=1)
    x = torch.randn(2, 1, 8, 8)
    assert RandomFeatures.pretrained is False and "RandomFeatures" in repr(Perceptual.random(1))
    for a, b, c in zip(one(x), same(x), other(x)):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_maps_of_random_features():
    maps = RandomFeatures(2, (4, 8, 6))(torch.randn(3, 2, 16, 12))
    assert [tuple(h.shape) for h in maps] == [(3, 4, 16, 12), (3, 8, 8, 6), (3, 6, 4, 3)]
    assert all((h >= 0).all() and h.any() for h in maps)


def test_random_takes_the_settings_of_both():
    distance = Perceptual.random(2, weights=(1.0, 0.5), widths=(4, 8), seed=3)
    assert distance.features.widths == (4, 8) and distance.weights == (1.0, 0.5)
    assert torch.equal(distance.features.convolutions[0].weight, RandomFeatures(2, (4, 8), 3).convolutions[0].weight)


def test_it_stays_in_eval_mode():
    distance = Perceptual(nn.Sequential(nn.BatchNorm2d(3), Maps()))
    nn.Sequential(distance).train()
    assert not distance.training and not any(module.training for module in distance.modules())


def test_half_precision_is_compared_in_float32():
    x, y = images()
    assert Perceptual(Maps())(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert Perceptual.random(3)(x, y).dtype == torch.float32


# Refusals


@pytest.mark.parametrize("call, message", [
    (lambda: Perceptual(Maps(), (1.0, -1.0)), r"weights must be one for each map, and not negative; got \(1.0, -1.0\)"),
    (lambda: Perceptual(Maps(), ()), r"weights must be one for each map, and not negative; got \(\)"),
    (lambda: Perceptual(Maps(), (1.0,))(*images()), "weights must be one for each of 2 maps; got 1"),
    (lambda: Perceptual(Maps())(images()[0], images(3)[0]), r"x and y must have the same shape; got \(4, 3, 16, 16\)"),
    (lambda: Perceptual.random(3)(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)),
     r"x must be \(B, 3, H, W\); got shape \(2, 1, 8, 8\)"),
    (lambda: RandomFeatures(3, ()), "widths must hold at least one number of channels; got none"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
