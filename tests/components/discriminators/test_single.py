import pytest
import torch
import torch.nn.functional as F
from answers import assert_gradients, twins
from torch import nn

from components.discriminators import (
    MinibatchStd,
    MLPDiscriminator,
    MultiScaleDiscriminator,
    PatchDiscriminator,
    ResidualDiscriminator,
)
from components.losses import hinge, non_saturating, relativistic, squared_gradient


def build(kind, full=False, spectral_norm=False):
    """A small discriminator and its inputs; full: with time, a pair and labels."""
    if kind == "patch":
        return PatchDiscriminator(2, width=8, spectral_norm=spectral_norm), (torch.randn(4, 2, 8, 8),)
    if kind == "mlp":
        x, given = torch.randn(4, 5), torch.randn(4, 3)
        options = {"timed": True, "given_features": 3, "num_classes": 3} if full else {}
        network = MLPDiscriminator(5, width=16, spectral_norm=spectral_norm, **options)
    else:
        x, given = torch.randn(4, 2, 8, 8), torch.randn(4, 3, 8, 8)
        options = {"timed": True, "given_channels": 3, "num_classes": 3} if full else {}
        network = ResidualDiscriminator((2, 8, 8), width=8, spectral_norm=spectral_norm, **options)
    return network, (x, torch.rand(4), torch.tensor([0, 1, 2, 3]), given) if full else (x,)


KINDS = pytest.mark.parametrize("kind, full", [
    ("residual", False), ("residual", True), ("mlp", False), ("mlp", True), ("patch", False),
])  # fmt: skip
SPECTRAL = pytest.mark.parametrize("spectral_norm", [False, True], ids=["plain", "spectral"])


@pytest.mark.parametrize("shape, options", [
    ((1, 8, 8), {}), ((1, 16, 16), {}), ((3, 32, 32), {}), ((3, 64, 64), {}), ((1, 28, 28), {}), ((1, 8, 16), {}),
    ((1, 6, 6), {"multipliers": (1, 3)}), ((1, 8, 8), {"multipliers": (1,)}),
])  # fmt: skip
def test_residual_shapes(shape, options):
    logits = ResidualDiscriminator(shape, width=4, **options)(torch.randn(2, *shape))
    assert logits.shape == (2,)


@pytest.mark.parametrize("side, depth, out", [(8, 2, 2), (8, 1, 4), (8, 3, 1), (16, 2, 4), (32, 3, 4)])
def test_patch_shapes(side, depth, out):
    network = PatchDiscriminator(3, width=8, depth=depth)
    assert network(torch.randn(2, 3, side, side)).shape == (2, 1, out, out)


@SPECTRAL
@KINDS
def test_every_parameter_has_a_gradient(kind, full, spectral_norm):
    network, inputs = build(kind, full, spectral_norm)
    network(*inputs).square().sum().backward()
    assert_gradients(network)


@SPECTRAL
@KINDS
def test_r1_reaches_the_parameters(kind, full, spectral_norm):
    network, (x, *rest) = build(kind, full, spectral_norm)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(network(x, *rest).sum(), x, create_graph=True)
    slope.square().sum().backward()
    weights = {name: p for name, p in network.named_parameters() if name.startswith("last") and "bias" not in name}
    assert weights and slope.any()
    for name, weight in weights.items():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


@KINDS
def test_two_forwards_before_one_backward(kind, full):
    network, inputs = build(kind, full, spectral_norm=True)
    real, fake = network(*inputs), network(-inputs[0], *inputs[1:])
    (real.square() + fake).sum().backward()
    assert_gradients(network)


@KINDS
def test_spectral_norm_bounds_every_layer_that_x_passes(kind, full):
    network, inputs = build(kind, full, spectral_norm=True)
    for _ in range(50):
        network(*inputs)
    network.eval()
    layers = {
        name: module.weight for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and "time" not in name and "adapt" not in name
    }  # fmt: skip
    assert len(layers) >= 4
    for name, weight in layers.items():
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.02), name
    plain, _ = build(kind, full)
    assert max(torch.linalg.matrix_norm(p.flatten(1), 2) for p in plain.parameters() if p.ndim > 1) > 1.3


def test_spectral_mlp_is_lipschitz():
    network = MLPDiscriminator(4, width=32, spectral_norm=True)
    x, y = torch.randn(500, 4) * 3, torch.randn(500, 4) * 3
    for _ in range(50):
        network(x)
    slopes = (network(x) - network(y)).abs() / (x - y).norm(dim=1)
    assert slopes.max() <= 1.01


def test_patch_logits_depend_on_their_patch_only():
    network, x = PatchDiscriminator(1, width=8, depth=1), torch.randn(1, 1, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x)[0, 0, 8, 8], x)
    rows = slope[0, 0].abs().sum(1).nonzero().flatten()
    assert (rows.max() - rows.min() + 1).item() == 7 * 2 - 2


def test_signal_keeps_its_size_without_normalization():
    logits = torch.cat([ResidualDiscriminator((1, 16, 16), width=16)(torch.randn(64, 1, 16, 16)) for _ in range(4)])
    assert 0.05 < logits.std() < 5


@KINDS
def test_autocast_returns_float32(kind, full):
    network, inputs = build(kind, full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(*inputs)
    assert logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("kind", ["residual", "mlp"])
def test_inputs_matter(kind):
    network, (x, t, cond, given) = build(kind, full=True)
    logits = network(x, t, cond, given)
    assert torch.equal(network(x, t, None, given), network(x, t, torch.full((4,), 3), given))
    assert not torch.allclose(logits[:3], network(x, t, None, given)[:3])
    assert not torch.allclose(logits, network(x, 1 - t, cond, given))
    assert not torch.allclose(logits, network(x, t, cond, -given))
    torch.testing.assert_close(network(x, torch.tensor(0.5, dtype=torch.float64), cond, given),
                               network(x, torch.full((4,), 0.5), cond, given))  # fmt: skip


def test_an_mlp_of_images_is_that_of_flattened_ones():
    images, vectors = twins(lambda shape: MLPDiscriminator(shape, 8, 1, timed=True, given_features=shape))
    (x, given), t = torch.randn(2, 5, 2, 3, 4), torch.rand(5)
    expected = vectors(x.flatten(1), t, given=given.flatten(1))
    assert expected.shape == (5,)
    torch.testing.assert_close(images(x, t=t, given=given), expected, rtol=0, atol=0)


def build_other(kind, **options):
    """The discriminators that take several examples or scales, with their images."""
    if kind == "multi":
        return MultiScaleDiscriminator(2, width=8, **options), torch.randn(4, 2, 16, 16)
    return ResidualDiscriminator((2, 8, 8), width=8, minibatch_std=True, **options), torch.randn(4, 2, 8, 8)


OTHERS = pytest.mark.parametrize("kind", ["multi", "std"])
SIZES = {"multi": (32,), "std": ()}


@OTHERS
def test_shapes_and_autocast(kind):
    network, x = build_other(kind)
    assert network(x).shape == (4, *SIZES[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    torch.testing.assert_close(logits, network(x), atol=0.2, rtol=0.2)


@OTHERS
def test_every_parameter_of_the_others_has_a_gradient(kind):
    network, x = build_other(kind, **({} if kind == "multi" else {"num_classes": 3}))
    network(x).square().sum().backward()
    assert_gradients(network)


@pytest.mark.parametrize("pair", [hinge, non_saturating, relativistic], ids=lambda pair: pair.name)
@OTHERS
def test_losses_accept_the_logits(kind, pair):
    network, x = build_other(kind)
    real, fake = network(x), network(-x)
    assert pair.discriminator(real, fake).shape == pair.generator(fake, real).shape == (4,)


@OTHERS
def test_trap_18_r1_reaches_the_parameters(kind):
    """Trap 18: fused kernels refuse double backward. Guard: plain convolutions; the penalty moves every head."""
    network, x = build_other(kind)
    x.requires_grad_()
    penalty = squared_gradient(network(x), x)
    assert penalty.shape == (4,) and (penalty > 0).all()
    penalty.sum().backward()
    for name, parameter in network.named_parameters():
        # a bias after the last nonlinearity has no slope in x
        if parameter.requires_grad and "bias" not in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@OTHERS
def test_the_penalty_is_the_finite_difference(kind):
    network, x = build_other(kind)
    network, x = network.double().eval(), x.double()
    direction = torch.randn_like(x)
    (slope,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x)
    step = 1e-6 * direction
    difference = (network(x + step).sum() - network(x - step).sum()) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), difference, atol=1e-5, rtol=1e-4)


@OTHERS
def test_two_forwards_of_the_others_before_one_backward(kind):
    network, x = build_other(kind, spectral_norm=True)
    real, fake = network(x), network(-x)
    (real.square().sum() + fake.sum()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_scales_take_the_image_halved_and_weigh_alike():
    network, x = build_other("multi", scales=3)
    x = F.interpolate(x, scale_factor=2)
    logits = network(x)
    assert logits.shape == (4, 3 * 64)
    for i, (part, patch) in enumerate(zip(logits.split(64, dim=1), network.scales)):
        own = patch(F.avg_pool2d(x, 2**i))
        assert own.shape == (4, 1, 8 >> i, 8 >> i)
        assert torch.equal(part, F.interpolate(own, size=(8, 8), mode="nearest").flatten(1))
        torch.testing.assert_close(part.mean(1), own.flatten(1).mean(1))


def test_every_scale_reads_every_pixel_of_odd_sides():
    network, x = build_other("multi", scales=3)[0], torch.randn(2, 2, 19, 33, requires_grad=True)
    for logits in network(x).split(4 * 8, dim=1):
        (slope,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
        assert (slope.abs().amax(1) > 0).all()


@pytest.mark.parametrize("batch, group", [(8, 4), (6, 3), (5, 1), (4, 4), (2, 2), (1, 1), (9, 3)])
def test_minibatch_std_is_the_spread_of_each_group(batch, group):
    x = torch.randn(batch, 3, 2, 2)
    out = MinibatchStd(4)(x)
    assert torch.equal(out[:, :3], x) and out.shape == (batch, 4, 2, 2)
    for i in range(0, batch, group):
        expected = (x[i : i + group].var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[i : i + group, 3], expected.expand(group, 2, 2))


def test_minibatch_std_of_copies_is_zero_and_scales_with_the_spread():
    layer, x = MinibatchStd(), torch.randn(1, 3).expand(8, 3)
    # sqrt(0 + 1e-8), as rounded.
    assert (layer(x)[:, 3] <= 1.001e-4).all()
    x = torch.randn(8, 3)
    torch.testing.assert_close(layer(10 * x)[:, 3], 10 * layer(x)[:, 3])
    torch.testing.assert_close(layer(x + 5)[:, 3], layer(x)[:, 3])


def test_trap_31_minibatch_std_of_a_shard_is_that_of_the_whole():
    """Trap 31: batch statistics differ between ranks. Guard: groups are consecutive, so equal shards keep them."""
    network, x = build_other("std")
    x = torch.randn(16, 2, 8, 8)
    torch.testing.assert_close(network(x), torch.cat([network(x[:8]), network(x[8:])]), atol=1e-5, rtol=1e-5)


def test_minibatch_std_makes_a_logit_depend_on_its_group_only():
    network, x = build_other("std")
    x = torch.randn(8, 2, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x)[0], x)
    assert [bool(row.any()) for row in slope] == [True] * 4 + [False] * 4
    plain = ResidualDiscriminator((2, 8, 8), width=8)
    (slope,) = torch.autograd.grad(plain(x)[0], x)
    assert [bool(row.any()) for row in slope] == [True] + [False] * 7


def test_minibatch_std_is_twice_differentiable():
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(MinibatchStd(), x)


NONE = "must be None for a"


def call(kind, full=False, **changed):
    """The logits of a small discriminator, some of whose inputs are changed."""
    network, inputs = build_other(kind) if kind == "multi" else build(kind, full)
    names = ("x", "t", "cond", "given")
    inputs = dict(zip(names, [inputs] if kind == "multi" else inputs)) | changed
    return network(**inputs)


@pytest.mark.parametrize("make, message", [
    *((lambda kind=kind, changed=changed: call(kind, True, **changed), message) for kind in ("residual", "mlp")
      for changed, message in [
        ({"t": None}, "t must be given to a discriminator built with timed=True; got None"),
        ({"given": None}, "given must be given to a discriminator built with given_"),
        ({"cond": torch.zeros(4, 1, dtype=torch.long)}, r"cond must be labels \(B,\)"),
        ({"given": torch.zeros(4, 1, 8, 8)}, "given must be"),
        ({"x": torch.zeros(4, 1, 8, 8)}, "x must be"),
    ]),
    *((lambda kind=kind, changed=changed: call(kind, **changed), message) for kind in ("residual", "mlp")
      for changed, message in [
        ({"t": torch.rand(4)}, "t must be None for a discriminator built without timed=True"),
        ({"given": torch.zeros(4, 3)}, "given must be None for a discriminator built without given_"),
        ({"cond": torch.zeros(4, dtype=torch.long)}, "cond must be None for a network built with num_classes=None"),
    ]),
    *((lambda kind=kind, name=name: call(kind, **{name: torch.zeros(4)}), f"{name} {NONE} {network}; got a tensor")
      for kind, network in (("patch", "PatchDiscriminator"), ("multi", "MultiScaleDiscriminator"))
      for name in ("t", "cond", "given")),
    (lambda: call("patch", x=torch.zeros(4, 2, 3, 8)), r"H and W at least 4 .*; got shape \(4, 2, 3, 8\)"),
    (lambda: call("multi", x=torch.zeros(4, 2, 7, 16)),
     r"x must be \(B, 2, H, W\) with H and W at least 8 \(in a recipe --resolution\); got shape \(4, 2, 7, 16\)"),
    (lambda: MLPDiscriminator(3, 8, given_features=(2, 3, 4))(torch.zeros(5, 3), given=torch.zeros(5, 24)),
     r"given must be \(B, 2, 3, 4\); got shape \(5, 24\)"),
    (lambda: PatchDiscriminator(1, depth=0), "depth must be at least 1; got 0"),
    (lambda: MLPDiscriminator(1, depth=0), "depth must be at least 1; got 0"),
    (lambda: MultiScaleDiscriminator(2, scales=0), "scales must be at least 1; got 0"),
    (lambda: ResidualDiscriminator((2,)), r"shape must be \(C, H, W\); got \(2,\): for points use MLPDiscriminator"),
    (lambda: ResidualDiscriminator((1, 6, 3), multipliers=(1, 2, 4)), r"at least 4, .*\(1, 6, 3\)"),
    (lambda: MinibatchStd(0), "group must be at least 1; got 0"),
    (lambda: MinibatchStd()(torch.zeros(3)), r"x must be \(B, C, ...\) with B >= 1; got shape \(3,\)"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
