import math
import re

import pytest
import torch
from torch import nn

from components.conditions import ClassEmbedding, TimeEmbedding, sinusoidal
from components.layers import (
    DenseBlock,
    FourierFeatures,
    ResidualBlock,
    ResidualLevel,
    SelfAttention,
    Upsample,
    check_event,
    check_image_shape,
    check_images,
    group_norm,
    pyramid,
    soft_clamp,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


def test_sinusoidal_is_the_formula():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    out = sinusoidal(t, 6)
    for i, time in enumerate(t.tolist()):
        for k in range(3):
            angle = 1000 * time * 10000 ** (-k / 3)
            assert out[i, k].item() == pytest.approx(math.cos(angle), abs=1e-9)
            assert out[i, 3 + k].item() == pytest.approx(math.sin(angle), abs=1e-9)


def test_time_embedding_takes_scalars_batches_and_doubles():
    embed, x = TimeEmbedding(16), torch.randn(3, 2)
    batch = embed(torch.full((3,), 0.3), x)
    assert batch.shape == (3, 16) and batch.dtype == torch.float32
    for t in (torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)):
        torch.testing.assert_close(embed(t, x), batch, atol=1e-4, rtol=1e-4)
    assert embed.bfloat16()(torch.tensor(0.3), x).dtype == torch.bfloat16


def test_time_embedding_tells_neighbouring_times_apart_in_bf16():
    embed, t = TimeEmbedding(16).bfloat16(), torch.arange(900, 1000, dtype=torch.float64) / 1000
    assert len(embed(t, torch.zeros(100, 1)).float().unique(dim=0)) > 90


@pytest.mark.parametrize("t, message", [
    (torch.zeros(2), r"t must be \(B,\) or \(\) in \[0, 1\] with B = 3; got shape \(2,\)"),
    (torch.zeros(3, 1), r"got shape \(3, 1\)"),
    (torch.zeros(3, dtype=torch.long), r"t must be floating point in \[0, 1\]; got torch.int64"),
])  # fmt: skip
def test_time_embedding_refuses(t, message):
    with pytest.raises(ValueError, match=message):
        TimeEmbedding(16)(t, torch.randn(3, 2))


def test_class_embedding_null_is_the_last_row():
    embed, x = ClassEmbedding(4, 8), torch.randn(3, 2)
    null = embed(None, x)
    assert torch.equal(null, embed(torch.full((3,), 4), x)) and torch.equal(null[0], embed.table.weight[4])
    assert not torch.equal(null[0], embed(torch.tensor([0, 1, 2]), x)[0])
    null.sum().backward()
    assert embed.table.weight.grad is not None


@pytest.mark.parametrize("cond, message", [
    (torch.zeros(2, dtype=torch.long), r"labels \(B,\) of dtype int64 with B = 3; got shape \(2,\)"),
    (torch.zeros(3, 1, dtype=torch.long), r"got shape \(3, 1\)"),
    (torch.zeros(3), "of dtype torch.float32"),
    (([1], [2]), "got tuple"),
])  # fmt: skip
def test_class_embedding_refuses(cond, message):
    with pytest.raises(ValueError, match=message):
        ClassEmbedding(4, 8)(cond, torch.randn(3, 2))


def test_class_embedding_without_classes():
    embed, x = ClassEmbedding(None, 8), torch.randn(3, 2)
    assert embed(None, x) is None and not list(embed.parameters())
    with pytest.raises(ValueError, match="cond must be None for a network built with num_classes=None"):
        embed(torch.zeros(3, dtype=torch.long), x)


@pytest.mark.parametrize(
    "cond, name", [(torch.zeros(3, dtype=torch.long), "labels"), ((torch.zeros(3, 2, 4), None), "a tuple")]
)
def test_class_embedding_without_classes_says_what_it_was_given(cond, name):
    with pytest.raises(ValueError, match=f"for a network built with num_classes=None; got {name}"):
        ClassEmbedding(None, 8)(cond, torch.randn(3, 2))


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


def test_pyramid_defaults():
    assert pyramid((1, 8, 8)) == ((1, 2), (4, 4))
    assert pyramid((1, 16, 16)) == ((1, 2, 4), (4, 4))
    assert pyramid((3, 64, 64)) == ((1, 2, 4, 4, 4), (4, 4))
    assert pyramid((1, 28, 28)) == ((1, 2, 4), (7, 7))
    assert pyramid((1, 8, 16)) == ((1, 2), (4, 8))
    assert pyramid((1, 3, 3)) == ((1,), (3, 3))
    assert pyramid((3, 32, 32), to=(8, 8)) == ((1, 2, 4), (8, 8))
    assert pyramid((1, 8, 8), to=(8, 8)) == ((1,), (8, 8))
    assert pyramid((1, 8, 8), (1, 1, 1, 1)) == ((1, 1, 1, 1), (1, 1))


@pytest.mark.parametrize("arguments, message", [
    (((1, 10, 10), (1, 2, 4)), r"divisible by the down-sampling factor 4 of 3 multipliers; got \(1, 10, 10\)"),
    (((1, 8, 8), ()), "multipliers must have at least one entry"),
    (((1, 8, 8), None, (3, 3)), r"got \(3, 3\) for shape \(1, 8, 8\)"),
    (((1, 8, 16), None, (4, 4)), r"got \(4, 4\) for shape \(1, 8, 16\)"),
    (((1, 4, 4), None, (8, 8)), r"got \(8, 8\) for shape \(1, 4, 4\)"),
    (((1, 8, 8), (1, 2, 4), (4, 4)), r"multipliers must have 2 entries .* got \(1, 2, 4\)"),
])  # fmt: skip
def test_pyramid_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        pyramid(*arguments)


def test_check_event():
    check_event("x", torch.zeros(2, 3), (3,))
    with pytest.raises(ValueError, match=r"x must be \(B, 3\); got shape \(2, 4\)"):
        check_event("x", torch.zeros(2, 4), (3,))


@pytest.mark.parametrize("shape", [(2,), (2, 8), (1, 2, 8, 8), ()])
def test_check_image_shape(shape):
    check_image_shape((2, 8, 8), "MLP")
    with pytest.raises(
        ValueError, match=rf"shape must be \(C, H, W\); got {re.escape(str(shape))}: for points use MLP"
    ):
        check_image_shape(shape, "MLP")


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 8, 8, 3)])
def test_check_images(shape):
    check_images(torch.zeros(2, 3, 8, 8), 3)
    with pytest.raises(ValueError, match=rf"x must be \(B, 3, H, W\); got shape {re.escape(str(shape))}"):
        check_images(torch.zeros(shape), 3)


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
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


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
