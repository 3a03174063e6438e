import math

import pytest
import torch
import torch.nn.functional as F
from answers import assert_gradients
from torch import nn

from components.decoders import DeltaHead, ModulatedConv, NormalHead, ResidualGenerator, StyleGenerator
from components.distributions import Delta


def build(kind, shape=(2, 8, 8), **options):
    network = {"residual": ResidualGenerator, "style": StyleGenerator}[kind]
    return network(6, shape, width=8, **options), torch.randn(4, 6)


def randomized(module):
    """Zero layers get values, so that everything behind them counts."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return module


KINDS = pytest.mark.parametrize("kind", ["residual", "style"])


@pytest.mark.parametrize("shape, options", [
    ((1, 8, 8), {}), ((3, 32, 32), {}), ((1, 28, 28), {}), ((1, 8, 16), {}), ((2, 4, 4), {}),
    ((1, 6, 6), {"multipliers": (1, 3)}),
])  # fmt: skip
@KINDS
def test_shapes(kind, shape, options):
    network, z = build(kind, shape, **options)
    p = network(z)
    assert isinstance(p, Delta) and p.mean.shape == (4, *shape) and p.mean.isfinite().all()


@pytest.mark.parametrize("options", [{"groups": 4}, {"groups": 1}, {"blocks": 1}, {"resampling": "nearest"}])
def test_residual_options(options):
    network, z = build("residual", **options)
    assert randomized(network)(z).mean.shape == (4, 2, 8, 8)


@KINDS
def test_head_and_last(kind):
    network, z = build(kind, head=NormalHead("learned"))
    p = network(z)
    assert p.mean.shape == p.std.shape == (4, 2, 8, 8)
    assert isinstance(build(kind)[0].head, DeltaHead) and not build(kind)[0].head.bounded
    # the last layer is what the raw output comes from, and its weight is where an adaptive weight looks
    (slope,) = torch.autograd.grad(p.mean.square().sum(), network.last.weight)
    assert slope.any()
    with torch.no_grad():
        for parameter in network.last.parameters():
            parameter.zero_()
    again = network(z).mean
    assert not again.any() if kind == "residual" else not torch.equal(again, p.mean)


@pytest.mark.parametrize("groups", [None, 4])
@KINDS
def test_every_parameter_has_a_gradient(kind, groups):
    options = {"groups": groups} if kind == "residual" else {}
    network, z = build(kind, num_classes=3, **options)
    network(z).mean.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.zero_grad()
    randomized(network)(z).mean.square().sum().backward()
    assert_gradients(network)


@KINDS
def test_autocast(kind):
    network, z = build(kind, num_classes=3)
    exact = randomized(network)(z).mean
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(z).mean
    assert out.dtype == torch.float32 and out.isfinite().all()
    assert (out - exact).norm() / exact.norm() < 0.1


@KINDS
def test_labels(kind):
    network, z = build(kind, num_classes=3)
    null = network(z).mean
    assert torch.equal(null, network(z, torch.full((4,), 3)).mean)
    assert not torch.allclose(null, network(z, torch.zeros(4, dtype=torch.long)).mean)


@KINDS
def test_z_alone_decides_and_examples_do_not_mix(kind):
    network, z = build(kind)
    randomized(network)
    assert torch.equal(network(z).mean, network(z).mean)
    torch.testing.assert_close(network(z).mean[:2], network(z[:2]).mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [None, 8])
def test_residual_blocks_start_as_the_identity_and_the_output_linear_in_z(groups):
    network = ResidualGenerator(6, (2, 16, 16), width=16, groups=groups)
    u, v = torch.randn(2, 3, 6)
    with torch.no_grad():
        network.first.bias.normal_()
    origin = network(torch.zeros(3, 6)).mean
    f = [network(z).mean - origin for z in (u, v, 2 * u - 3 * v)]
    torch.testing.assert_close(f[2], 2 * f[0] - 3 * f[1], atol=1e-4, rtol=1e-4)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(network.levels[0](x), x)


@pytest.mark.parametrize("groups, exponent", [(None, -1 / 2), (8, -1 / 4)])
def test_fix_up_scales_by_the_number_of_branches(groups, exponent):
    def spread(blocks):
        network = ResidualGenerator(6, (2, 8, 8), width=64, blocks=blocks, groups=groups, multipliers=(1, 1))
        return network.levels[0][0].convs[0].weight.std().item()

    assert spread(8) / spread(1) == pytest.approx(8**exponent, rel=0.05)
    fan = 64 * 9 if groups is None else 64
    assert spread(1) == pytest.approx(math.sqrt(2 / 1.04 / fan) * 2**exponent, rel=0.05)


@KINDS
def test_images_have_a_moderate_size_at_first(kind):
    network = build(kind, (3, 32, 32))[0]
    assert 0.3 < network(torch.randn(64, 6)).mean.std() < 6


def test_there_is_no_normalization():
    for kind in ("residual", "style"):
        names = {type(module).__name__ for module in build(kind)[0].modules()}
        assert not any("Norm" in name for name in names)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_conv_is_a_convolution_with_its_own_weights_for_each_example(kernel, demodulate):
    conv, x, style = ModulatedConv(3, 5, kernel, demodulate), torch.randn(4, 3, 6, 6), torch.randn(4, 3)
    nn.init.normal_(conv.bias)
    weight = style[:, None, :, None, None] * conv.weight
    if demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    expected = torch.stack([F.conv2d(x[i], weight[i], conv.bias, padding=kernel // 2) for i in range(4)])
    torch.testing.assert_close(conv(x, style), expected, atol=1e-5, rtol=1e-5)


def test_demodulation_keeps_unit_variance_whatever_the_style():
    conv = ModulatedConv(8, 64)
    for scale in (0.01, 1.0, 100.0):
        out = conv(torch.randn(64, 8, 8, 8), scale * (1 + torch.rand(64, 8)))
        assert out[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1.0, abs=0.03)
    x, style = torch.randn(4, 8, 8, 8), torch.rand(4, 8) + 1
    torch.testing.assert_close(conv(x, style), conv(x, 7 * style), atol=1e-4, rtol=1e-4)


def test_style_ignores_the_length_of_z():
    network, z = build("style")
    torch.testing.assert_close(network(z).mean, network(5 * z).mean, atol=1e-4, rtol=1e-4)
    assert torch.equal(network.synthesis(network.style(z)).mean, network(z).mean)
    assert network.style(z).shape == (4, 6)


@pytest.mark.parametrize("make, message", [
    (lambda: ResidualGenerator(6, (1, 6, 3), multipliers=(1, 2, 4)), r"at least 4, .*\(1, 6, 3\)"),
    (lambda: ResidualGenerator(6, (1, 8, 8), width=8, groups=3), r"divide twice the channels \[16, 8\]; got 3"),
    (lambda: ResidualGenerator(6, (1, 8, 8), width=8, groups=0), "got 0"),
    (lambda: ResidualGenerator(6, (1, 8, 8), resampling="cubic"), "resampling must be 'bilinear' or 'nearest'"),
    (lambda: ResidualGenerator(6, (1, 8, 8))(torch.zeros(4, 5)), r"z must be \(B, 6\); got shape \(4, 5\)"),
    (lambda: ResidualGenerator(6, (2,)), r"shape must be \(C, H, W\); got \(2,\): for points use MLPDecoder"),
    (lambda: StyleGenerator(6, (2,)), r"shape must be \(C, H, W\); got \(2,\): for points use MLPDecoder"),
    (lambda: StyleGenerator(6, (1, 8, 8), depth=0), "depth must be at least 1; got 0"),
    (lambda: StyleGenerator(6, (1, 8, 8))(torch.zeros(4, 5)), r"z must be \(B, 6\); got shape \(4, 5\)"),
    (lambda: StyleGenerator(6, (1, 8, 8)).synthesis(torch.zeros(4, 5)), r"w must be \(B, 6\); got shape \(4, 5\)"),
    (lambda: ModulatedConv(2, 2, 2), "kernel must be odd; got 2"),
    (lambda: ModulatedConv(2, 2)(torch.zeros(4, 2, 3, 3), torch.zeros(4, 3)), r"style must be \(4, 2\); got shape"),
    *((lambda kind=kind: build(kind)[0](torch.zeros(4, 6), torch.zeros(4, dtype=torch.long)),
       "cond must be None for a network built with num_classes=None") for kind in ("residual", "style")),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
