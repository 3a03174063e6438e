import math

import pytest
import torch
from answers import assert_gradients, randomized
from torch import nn

from components.conditions import sinusoidal
from components.layers import (
    Attention,
    DenseBlock,
    FourierFeatures,
    HiddenFeatures,
    ResidualBlock,
    ResidualLevel,
    SelfAttention,
    TransformerBlock,
    Upsample,
    check_event,
    check_image_shape,
    check_images,
    check_patch,
    group_norm,
    heads_of,
    positions,
    pyramid,
    soft_clamp,
)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4)])
def test_fourier_features_are_the_formula(shape):
    x = torch.rand(shape) * 2 - 1
    features = FourierFeatures(range(-1, 2))
    angles = [math.pi * 2.0**k * x for k in (-1, 0, 1)]
    parts = [x, *(a.sin() for a in angles), *(a.cos() for a in angles)]
    assert features.factor == 7
    torch.testing.assert_close(features(x), torch.cat(parts, dim=1))
    assert FourierFeatures().factor == 1 and FourierFeatures()(x) is x


def test_fourier_features_keep_half_precision_but_compute_in_float():
    x = torch.tensor([[0.7421875]], dtype=torch.bfloat16)  # exact in bf16; times pi 2^7 it is not
    out = FourierFeatures([7])(x)
    assert out.dtype == torch.bfloat16
    assert out[0, 1].item() == pytest.approx(math.sin(math.pi * 128 * 0.7421875), abs=1e-2)


@pytest.mark.parametrize("channels", [1, 3, 6, 8, 20, 32, 48, 130, 512])
def test_group_norm_divides(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0 and norm.num_groups <= 32
    assert channels < 8 or channels // norm.num_groups >= 4
    assert norm(torch.randn(2, channels, 4, 4)).shape == (2, channels, 4, 4)


def test_soft_clamp_stays_inside_and_is_the_identity_in_the_middle():
    x = torch.tensor([-1e4, -10.0, 0.0, 10.0, 1e4])
    y = soft_clamp(x, -30.0, 30.0)
    torch.testing.assert_close(y, torch.tensor([-30.0, -10.0, 0.0, 10.0, 30.0]))
    assert soft_clamp(x.bfloat16(), -30.0, 30.0).dtype == torch.float32
    edge = torch.tensor(31.0, requires_grad=True)  # a hard clamp's gradient would be zero here
    soft_clamp(edge, -30.0, 30.0).backward()
    assert edge.grad > 0.1


@pytest.mark.parametrize("shape, options, multipliers, ends", [
    ((1, 8, 8), {}, (1, 2), (4, 4)), ((1, 16, 16), {}, (1, 2, 4), (4, 4)), ((3, 64, 64), {}, (1, 2, 4, 4, 4), (4, 4)),
    ((1, 28, 28), {}, (1, 2, 4), (7, 7)), ((1, 8, 16), {}, (1, 2), (4, 8)), ((1, 3, 3), {}, (1,), (3, 3)),
    ((1, 9, 9), {}, (1, 2), (5, 5)), ((1, 15, 31), {}, (1, 2, 4), (4, 8)),
    ((1, 33, 17), {}, (1, 2, 4), (9, 5)), ((2, 65), {}, (1, 2, 4, 4, 4), (5,)),
    ((3, 32, 32), {"to": (8, 8)}, (1, 2, 4), (8, 8)), ((1, 8, 8), {"to": (8, 8)}, (1,), (8, 8)),
    ((3, 33, 17), {"to": (9, 5)}, (1, 2, 4), (9, 5)), ((1, 9, 2), {"to": (3, 1)}, (1, 2, 4), (3, 1)),
    ((1, 8, 8), {"multipliers": (1, 1, 1, 1)}, (1, 1, 1, 1), (1, 1)),
    ((1, 10, 13), {"multipliers": (1, 2, 4)}, (1, 2, 4), (3, 4)),
])  # fmt: skip
def test_pyramid_halves_the_sides_rounding_up(shape, options, multipliers, ends):
    widths, sides = pyramid(shape, **options)
    assert widths == multipliers and len(sides) == len(widths)
    assert sides[0] == shape[1:] and sides[-1] == ends
    assert all(b == tuple((side + 1) // 2 for side in a) for a, b in zip(sides, sides[1:]))


def test_residual_parts_start_as_the_identity():
    x, e = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    assert torch.equal(ResidualBlock(8, 8)(x), x)
    assert torch.equal(ResidualBlock(8, 8, 6)(x, e), x)
    assert torch.equal(ResidualLevel(8, 8, 2)(x), x)
    assert torch.equal(SelfAttention(8)(x), x)
    assert torch.equal(DenseBlock(8, 6)(torch.ones(2, 8), e), torch.ones(2, 8))


@pytest.mark.parametrize("block, shape", [
    (ResidualBlock(8, 12, 6), (2, 8, 4, 4)), (ResidualLevel(8, 12, 2, 6), (2, 8, 4, 4)), (DenseBlock(8, 6), (2, 8)),
])  # fmt: skip
def test_blocks_use_every_parameter_and_the_embedding(block, shape):
    x, e = torch.randn(shape), torch.randn(2, 6, requires_grad=True)
    out = randomized(block)(x, e)
    assert out.shape == (2, 12 if len(shape) == 4 else 8, *shape[2:])
    out.square().sum().backward()
    assert e.grad.abs().sum() > 0
    assert_gradients(block)


def test_residual_block_drops_out_in_training_only():
    block, x = randomized(ResidualBlock(8, 8, dropout=0.5)), torch.randn(2, 8, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize("channels, heads", [(8, 1), (64, 1), (96, 2), (128, 2)])
def test_self_attention_is_the_formula(channels, heads):
    attention, x = randomized(SelfAttention(channels)), torch.randn(2, channels, 2, 3)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)
    out = []
    for i in range(heads):
        part = slice(i * channels // heads, (i + 1) * channels // heads)
        weight = (q[:, part].mT @ k[:, part] / math.sqrt(channels // heads)).softmax(dim=-1)
        out.append((weight @ v[:, part].mT).mT)
    expected = x + attention.projection(torch.cat(out, dim=1).view_as(x))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_upsample_doubles():
    up = Upsample(4)
    nn.init.dirac_(up.conv.weight), nn.init.zeros_(up.conv.bias)
    x = torch.randn(2, 4, 2, 3)
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_attention_is_its_formula():
    attention, x, context = Attention(8, 2, context=5), torch.randn(3, 4, 8), torch.randn(3, 6, 5)
    mask = torch.rand(3, 6) < 0.5
    mask[:, 0] = True
    k, v = attention.key_value(context).chunk(2, dim=2)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = attention.query(x)[:, :, part] @ k[:, :, part].transpose(1, 2) / 2
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(2) @ v[:, :, part])
    expected = attention.projection(torch.cat(heads, dim=2))
    torch.testing.assert_close(attention(x, context, mask), expected, atol=1e-5, rtol=1e-5)


def test_plain_block():
    block, x = TransformerBlock(16, 4), torch.randn(3, 5, 16)
    block(x).square().sum().backward()
    assert block(x).shape == x.shape
    assert_gradients(block)


def test_positions():
    one = positions(8, 5)
    torch.testing.assert_close(one, sinusoidal(torch.arange(5.0), 8, scale=1.0))
    two = positions(8, 2, 3)
    assert two.shape == (6, 8) and len(two.unique(dim=0)) == 6
    # places differ by a rotation of each pair: products depend on the difference only
    products = positions(16, 12) @ positions(16, 12).T
    torch.testing.assert_close(products[:-3, :-3], products[3:, 3:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels, heads", [(1, 1), (64, 1), (65, 5), (96, 2), (128, 2), (130, 5)])
def test_heads_are_the_fewest_of_at_most_64_channels(channels, heads):
    assert heads_of(channels) == heads and channels % heads == 0 and channels // heads <= 64


def test_checks_accept_what_fits():
    check_event("x", torch.zeros(2, 3), (3,))
    check_image_shape((2, 8, 8), "MLP")
    check_images(torch.zeros(2, 3, 8, 8), 3)
    check_patch((2, 9, 4), 4)


IMAGE = r"shape must be \(C, H, W\); got {}: for points use MLP"


@pytest.mark.parametrize("make, message", [
    (lambda: pyramid((1, 10, 3), (1, 2, 4)),
     r"at least 4, the down-sampling factor of 3 multipliers; got \(1, 10, 3\): use larger images .*--resolution"),
    (lambda: pyramid((1, 8, 8), ()), "multipliers must have at least one entry"),
    (lambda: pyramid((1, 8, 8), None, (3, 3)), r"got \(3, 3\) for shape \(1, 8, 8\)"),
    (lambda: pyramid((1, 8, 16), None, (4, 4)), r"got \(4, 4\) for shape \(1, 8, 16\)"),
    (lambda: pyramid((1, 4, 4), None, (8, 8)), r"got \(8, 8\) for shape \(1, 4, 4\)"),
    (lambda: pyramid((1, 8, 8), (1, 2, 4), (4, 4)), r"multipliers must have 2 entries .* got \(1, 2, 4\)"),
    (lambda: check_event("x", torch.zeros(2, 4), (3,)), r"x must be \(B, 3\); got shape \(2, 4\)"),
    (lambda: check_image_shape((2,), "MLP"), IMAGE.format(r"\(2,\)")),
    (lambda: check_image_shape((2, 8), "MLP"), IMAGE.format(r"\(2, 8\)")),
    (lambda: check_image_shape((1, 2, 8, 8), "MLP"), IMAGE.format(r"\(1, 2, 8, 8\)")),
    (lambda: check_image_shape((), "MLP"), IMAGE.format(r"\(\)")),
    (lambda: check_images(torch.zeros(2, 1, 8, 8), 3), r"x must be \(B, 3, H, W\); got shape \(2, 1, 8, 8\)"),
    (lambda: check_images(torch.zeros(3, 8, 8), 3), r"x must be \(B, 3, H, W\); got shape \(3, 8, 8\)"),
    (lambda: check_images(torch.zeros(2, 8, 8, 3), 3), r"x must be \(B, 3, H, W\); got shape \(2, 8, 8, 3\)"),
    (lambda: check_patch((1, 8, 3), 4), r"at least 1 and at most the sides of shape \(1, 8, 3\); got 4"),
    (lambda: check_patch((1, 8), 0), r"patch must be at least 1 and at most the sides of shape \(1, 8\); got 0"),
    (lambda: Attention(16, 3), "heads must divide width 16; got 3"),
    (lambda: positions(18, 2, 2), "width must be divisible by 4; got 18"),
    (lambda: HiddenFeatures(("a", "b"), ("a", "c")),
     r"hidden must be a sequence of names out of \('a', 'b'\); got \('a', 'c'\)"),
    (lambda: HiddenFeatures(("block_0",), "block_0"), r"names out of \('block_0',\); got 'block_0'"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
