import pytest
import torch
import torch.nn.functional as F
from answers import assert_gradients
from torch import nn

from components.discriminators import FeatureDiscriminator
from components.losses import hinge, non_saturating, relativistic, squared_gradient


class Features(nn.Module):
    """Three maps, as a backbone's, with a layer whose behaviour depends on the mode."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((2, 4), (4, 6), (6, 8)))
        self.drop = nn.Dropout()

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = F.silu(conv(self.drop(x)))
            maps.append(x)
        return maps


def build(**options):
    return FeatureDiscriminator(Features(), (2, 16, 16), width=8, **options), torch.randn(4, 2, 16, 16)


def test_shapes_and_autocast():
    network, x = build()
    assert network(x).shape == (4, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    torch.testing.assert_close(logits, network(x), atol=0.2, rtol=0.2)


def test_every_parameter_has_a_gradient():
    network, x = build(num_classes=3)
    network(x).square().sum().backward()
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert learning and not any("features" in name or name.startswith(("mixes", "convs")) for name in learning)
    assert_gradients(network)


@pytest.mark.parametrize("pair", [hinge, non_saturating, relativistic], ids=lambda pair: pair.name)
def test_losses_accept_the_logits(pair):
    network, x = build()
    real, fake = network(x), network(-x)
    assert pair.discriminator(real, fake).shape == pair.generator(fake, real).shape == (4,)


def test_trap_18_r1_reaches_the_parameters():
    """Trap 18: fused kernels refuse double backward. Guard: plain convolutions; the penalty moves every head."""
    network, x = build()
    x.requires_grad_()
    penalty = squared_gradient(network(x), x)
    assert penalty.shape == (4,) and (penalty > 0).all()
    penalty.sum().backward()
    for name, parameter in network.named_parameters():
        # a bias after the last nonlinearity has no slope in x
        if parameter.requires_grad and "bias" not in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_the_penalty_is_the_finite_difference():
    network, x = build()
    network, x = network.double().eval(), x.double()
    direction = torch.randn_like(x)
    (slope,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x)
    step = 1e-6 * direction
    difference = (network(x + step).sum() - network(x - step).sum()) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), difference, atol=1e-5, rtol=1e-4)


def test_two_forwards_before_one_backward():
    network, x = build()
    real, fake = network(x), network(-x)
    (real.square().sum() + fake.sum()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_features_stay_frozen_and_the_image_gets_its_gradient():
    network, x = build()
    network.train()
    assert network.training and network.heads.training and not network.features.training
    assert not any(module.training for module in network.features.modules())
    # the heads' power iteration runs in training mode, so only what is below them repeats
    assert all(torch.equal(a, b) for a, b in zip(network.features(x), network.features(x)))
    network(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    assert all(p.grad is None for p in network.features.parameters())


def test_fine_heads_depend_on_coarse_maps_and_not_the_other_way():
    network, x = build()
    network.eval()
    maps = [h.detach().requires_grad_() for h in network.features(x)]
    network.features.forward = lambda x: maps
    logits = network(x).split(16, dim=1)
    for i, part in enumerate(logits):
        slopes = torch.autograd.grad(part.sum(), maps, retain_graph=True)
        assert [bool(slope.any()) for slope in slopes] == [j >= i for j in range(3)]


@pytest.mark.parametrize("sides, sizes", [((64, 64), (32, 16, 8)), ((8, 8), (4, 2, 1)), ((12, 20), None)])
def test_features_of_any_size(sides, sizes):
    network = FeatureDiscriminator(Features(), (2, *sides), width=8)
    assert network(torch.randn(3, 2, *sides)).shape == (3, 48)
    if sizes:
        assert [len(head.convs) - 1 for head in network.heads] == [max((s // 4).bit_length() - 1, 0) for s in sizes]


def test_labels():
    network, x = build(num_classes=3)
    network.eval()
    null = network(x)
    assert torch.equal(null, network(x, cond=torch.full((4,), 3)))
    assert not torch.allclose(null, network(x, cond=torch.zeros(4, dtype=torch.long)))


@pytest.mark.parametrize("make, message", [
    *((lambda name=name: build()[0](torch.zeros(4, 2, 16, 16), **{name: torch.zeros(4)}),
       f"{name} must be None for a FeatureDiscriminator; got a tensor") for name in ("t", "given")),
    (lambda: build()[0](torch.zeros(4, 2, 16, 16), cond=torch.zeros(4, dtype=torch.long)),
     "cond must be None for a network built with num_classes=None"),
    (lambda: build()[0](torch.zeros(4, 2, 8, 8)), r"x must be \(B, 2, 16, 16\); got shape \(4, 2, 8, 8\)"),
    (lambda: FeatureDiscriminator(nn.Conv2d(2, 2, 1), (2, 8, 8)), "features must map x to a list of maps"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
