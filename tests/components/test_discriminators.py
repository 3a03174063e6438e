import pytest
import torch
from torch import nn

from components.discriminators import MLPDiscriminator, PatchDiscriminator, ResidualDiscriminator


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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


def gradients(network):
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("shape, options", [
    ((1, 8, 8), {}), ((1, 16, 16), {}), ((3, 32, 32), {}), ((3, 64, 64), {}), ((1, 28, 28), {}), ((1, 8, 16), {}),
    ((1, 6, 6), {"multipliers": (1, 3)}), ((1, 8, 8), {"multipliers": (1,)}),
])  # fmt: skip
def test_residual_shapes(shape, options):
    logits = ResidualDiscriminator(shape, width=4, **options)(torch.randn(2, *shape))
    assert logits.shape == (2,)


@pytest.mark.parametrize("side, layers, out", [(8, 2, 2), (8, 1, 4), (8, 3, 1), (16, 2, 4), (32, 3, 4)])
def test_patch_shapes(side, layers, out):
    network = PatchDiscriminator(3, width=8, layers=layers)
    assert network(torch.randn(2, 3, side, side)).shape == (2, 1, out, out)


@SPECTRAL
@KINDS
def test_every_parameter_has_a_gradient(kind, full, spectral_norm):
    network, inputs = build(kind, full, spectral_norm)
    network(*inputs).square().sum().backward()
    gradients(network)


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
    gradients(network)


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
    network, x = PatchDiscriminator(1, width=8, layers=1), torch.randn(1, 1, 32, 32, requires_grad=True)
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


@pytest.mark.parametrize("kind", ["residual", "mlp"])
def test_refusals(kind):
    network, (x, t, cond, given) = build(kind, full=True)
    plain, _ = build(kind)
    for arguments, message in [
        ((x, None, cond, given), "t must be given to a discriminator built with timed=True; got None"),
        ((x, t, cond), "given must be given to a discriminator built with given_"),
        ((x, t, cond[:, None], given), r"cond must be labels \(B,\)"),
        ((x, t, cond, given[:, :1]), "given must be"),
        ((x[:, :1], t, cond, given), "x must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(*arguments)
    for options, message in [
        ({"t": t}, "t must be None for a discriminator built without timed=True"),
        ({"given": given}, "given must be None for a discriminator built without given_"),
        ({"cond": cond}, "cond must be None for a network built with num_classes=None"),
    ]:
        with pytest.raises(ValueError, match=message):
            plain(x, **options)


def test_patch_and_construction_refusals():
    network, (x,) = build("patch")
    for name in ("t", "cond", "given"):
        with pytest.raises(ValueError, match=f"{name} must be None for a PatchDiscriminator"):
            network(x, **{name: torch.zeros(4)})
    with pytest.raises(ValueError, match=r"with H and W divisible by 4; got shape \(4, 2, 6, 8\)"):
        network(torch.zeros(4, 2, 6, 8))
    with pytest.raises(ValueError, match="layers must be at least 1; got 0"):
        PatchDiscriminator(1, layers=0)
    with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
        MLPDiscriminator(1, depth=0)
    with pytest.raises(ValueError, match=r"shape must be \(C, H, W\); got \(2,\): for points use MLPDiscriminator"):
        ResidualDiscriminator((2,))
    with pytest.raises(ValueError, match=r"down-sampling factor 4 .*\(1, 6, 6\)"):
        ResidualDiscriminator((1, 6, 6), multipliers=(1, 2, 4))
