import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from components.discriminators import (
    FeatureDiscriminator,
    MinibatchStd,
    MultiScaleDiscriminator,
    NoiseOfPair,
    ResidualDiscriminator,
)
from components.losses import hinge, non_saturating, relativistic, squared_gradient
from components.schedules import CosineSchedule, FlowSchedule, VariancePreservingSchedule


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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


def build(kind, **options):
    """A small discriminator with its image."""
    if kind == "multi":
        return MultiScaleDiscriminator(2, width=8, **options), torch.randn(4, 2, 16, 16)
    if kind == "feature":
        return FeatureDiscriminator(Features(), (2, 16, 16), width=8, **options), torch.randn(4, 2, 16, 16)
    return ResidualDiscriminator((2, 8, 8), width=8, minibatch_std=True, **options), torch.randn(4, 2, 8, 8)


KINDS = pytest.mark.parametrize("kind", ["multi", "feature", "std"])
SIZES = {"multi": (32,), "feature": (48,), "std": ()}


@KINDS
def test_shapes_and_autocast(kind):
    network, x = build(kind)
    assert network(x).shape == (4, *SIZES[kind])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    torch.testing.assert_close(logits, network(x), atol=0.2, rtol=0.2)


@KINDS
def test_every_parameter_has_a_gradient(kind):
    network, x = build(kind, **({} if kind == "multi" else {"num_classes": 3}))
    network(x).square().sum().backward()
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert learning and not any("features" in name or name.startswith(("mixes", "convs")) for name in learning)
    for name, parameter in learning.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("pair", [hinge, non_saturating, relativistic], ids=lambda pair: pair.name)
@KINDS
def test_losses_accept_the_logits(kind, pair):
    network, x = build(kind)
    real, fake = network(x), network(-x)
    assert pair.discriminator(real, fake).shape == pair.generator(fake, real).shape == (4,)


@KINDS
def test_trap_18_r1_reaches_the_parameters(kind):
    """Trap 18: fused kernels refuse double backward. Guard: plain convolutions; the penalty moves every head."""
    network, x = build(kind)
    x.requires_grad_()
    penalty = squared_gradient(network(x), x)
    assert penalty.shape == (4,) and (penalty > 0).all()
    penalty.sum().backward()
    for name, parameter in network.named_parameters():
        # a bias after the last nonlinearity has no slope in x
        if parameter.requires_grad and "bias" not in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@KINDS
def test_the_penalty_is_the_finite_difference(kind):
    network, x = build(kind)
    network, x = network.double().eval(), x.double()
    direction = torch.randn_like(x)
    (slope,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x)
    step = 1e-6 * direction
    found = (network(x + step).sum() - network(x - step).sum()) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), found, atol=1e-5, rtol=1e-4)


def test_scales_see_the_image_halved_and_weigh_alike():
    network, x = build("multi", scales=3)
    x = F.interpolate(x, scale_factor=2)
    logits = network(x)
    assert logits.shape == (4, 3 * 64)
    for i, (part, patch) in enumerate(zip(logits.split(64, dim=1), network.scales)):
        own = patch(F.avg_pool2d(x, 2**i))
        assert own.shape == (4, 1, 8 >> i, 8 >> i)
        assert torch.equal(part, F.interpolate(own, size=(8, 8), mode="nearest").flatten(1))
        torch.testing.assert_close(part.mean(1), own.flatten(1).mean(1))


@KINDS
def test_two_forwards_before_one_backward(kind):
    options = {"spectral_norm": True} if kind != "feature" else {}
    network, x = build(kind, **options)
    real, fake = network(x), network(-x)
    (real.square().sum() + fake.sum()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_features_stay_frozen_and_the_image_gets_its_gradient():
    network, x = build("feature")
    network.train()
    assert network.training and network.heads.training and not network.features.training
    assert not any(module.training for module in network.features.modules())
    # the heads' power iteration runs in training mode, so only what is below them repeats
    assert all(torch.equal(a, b) for a, b in zip(network.features(x), network.features(x)))
    network(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    assert all(p.grad is None for p in network.features.parameters())


def test_fine_heads_see_coarse_maps_and_not_the_other_way():
    network, x = build("feature")
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
    network, x = build("feature", num_classes=3)
    network.eval()
    null = network(x)
    assert torch.equal(null, network(x, cond=torch.full((4,), 3)))
    assert not torch.allclose(null, network(x, cond=torch.zeros(4, dtype=torch.long)))


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
    network, x = build("std")
    x = torch.randn(16, 2, 8, 8)
    torch.testing.assert_close(network(x), torch.cat([network(x[:8]), network(x[8:])]), atol=1e-5, rtol=1e-5)


def test_minibatch_std_makes_a_logit_depend_on_its_group_only():
    network, x = build("std")
    x = torch.randn(8, 2, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x)[0], x)
    assert [bool(row.any()) for row in slope] == [True] * 4 + [False] * 4
    plain = ResidualDiscriminator((2, 8, 8), width=8)
    (slope,) = torch.autograd.grad(plain(x)[0], x)
    assert [bool(row.any()) for row in slope] == [True] + [False] * 7


def test_minibatch_std_is_twice_differentiable():
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(MinibatchStd(), x)


def test_refusals():
    multi, x = build("multi")
    feature, _ = build("feature")
    for network, names in ((multi, ("t", "cond", "given")), (feature, ("t", "given"))):
        for name in names:
            with pytest.raises(ValueError, match=f"{name} must be None for a {type(network).__name__}; got a tensor"):
                network(x, **{name: torch.zeros(4)})
    with pytest.raises(ValueError, match="cond must be None for a network built with num_classes=None"):
        feature(x, cond=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x must be \(B, 2, 16, 16\); got shape \(4, 2, 8, 8\)"):
        feature(x[:, :, :8, :8])
    with pytest.raises(
        ValueError, match=r"x must be \(B, 2, H, W\) with H and W divisible by 8; got shape \(4, 2, 12,"
    ):
        multi(x[:, :, :12])
    with pytest.raises(ValueError, match="scales must be at least 1; got 0"):
        MultiScaleDiscriminator(2, scales=0)
    with pytest.raises(ValueError, match="features must map x to a list of maps"):
        FeatureDiscriminator(nn.Conv2d(2, 2, 1), (2, 8, 8))
    with pytest.raises(ValueError, match="group must be at least 1; got 0"):
        MinibatchStd(0)
    with pytest.raises(ValueError, match=r"x must be \(B, C, ...\) with B >= 1; got shape \(3,\)"):
        MinibatchStd()(torch.zeros(3))


class OfPairs(nn.Module):
    """Records what it was shown."""

    def forward(self, x, given, **optional):
        self.given, self.optional = given, optional
        return (x * given).flatten(1).sum(1)


@pytest.mark.parametrize("schedule", [VariancePreservingSchedule(), CosineSchedule(), FlowSchedule()])
def test_the_noise_of_a_real_pair_is_the_noise_that_made_it_whatever_x_is(schedule):
    x, epsilon = 3 + 5 * torch.rand(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    s, t = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    x_s = schedule.marginal(x, s.double()).rsample()
    transition = schedule.transition(x_s, s.double(), t)
    network = OfPairs()
    logits = NoiseOfPair(network, schedule, 4)(x_s, t=t, given=transition.mean + transition.std * epsilon)
    torch.testing.assert_close(network.given, epsilon, rtol=0, atol=1e-10)
    assert network.optional.keys() == {"t"}
    torch.testing.assert_close(logits, (x_s * epsilon).sum(1), rtol=0, atol=1e-9)


def test_with_one_step_there_is_no_time_and_the_noise_is_that_of_t_1():
    schedule, network = VariancePreservingSchedule(), OfPairs()
    x, x_1 = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(1.0)
    NoiseOfPair(network, schedule, 1)(x, given=x_1)
    torch.testing.assert_close(network.given, (x_1 - alpha * x) / sigma, rtol=0, atol=1e-10)
    assert network.optional == {}


def test_the_noise_of_a_pair_shows_which_generators_answer_with_the_mean():
    """x = ±1 with x̂ = E[x|x_t] = tanh(α x_t/σ²): the last step's ε is independent of x, but not of x̂."""
    schedule, n = VariancePreservingSchedule(), 100_000
    x, t = torch.randint(2, (n, 1)).double() * 2 - 1, torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    x_t = alpha * x + sigma * torch.randn_like(x)
    mean = torch.tanh(alpha * x_t / sigma.square())
    pair = NoiseOfPair(OfPairs(), schedule, 2)
    real, fake = ((pair.noise(x_s, x_t, t) * x_s).mean().abs().item() for x_s in (x, mean))
    error = 4 / math.sqrt(n)
    assert real < error < fake / 10


def test_noise_of_pair_refuses_what_it_needs_and_lacks():
    schedule = VariancePreservingSchedule()
    with pytest.raises(ValueError, match="timesteps must be at least 1; got 0"):
        NoiseOfPair(OfPairs(), schedule, 0)
    with pytest.raises(ValueError, match="given must be x_t"):
        NoiseOfPair(OfPairs(), schedule, 1)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="t must be given where timesteps = 4 > 1"):
        NoiseOfPair(OfPairs(), schedule, 4)(torch.zeros(2, 3), given=torch.zeros(2, 3))
