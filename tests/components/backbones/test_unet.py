import pytest
import torch
from answers import assert_gradients, randomized, words
from torch import nn

from components.backbones import UNet
from components.layers import SelfAttention


def build(kind, **options):
    shape = (2, 8, 8) if kind == "images" else (2, 8)
    return UNet(shape, width=8, **options), torch.randn(4, *shape), torch.rand(4)


T = torch.zeros(4)
KINDS = pytest.mark.parametrize("kind", ["images", "sequences"])


@pytest.mark.parametrize("shape, options", [
    ((1, 8, 8), {}), ((1, 16, 16), {"multipliers": (1, 2, 2)}), ((1, 8, 16), {}),
    ((3, 32, 32), {"multipliers": (1, 2, 3, 4), "blocks": 1}),
    ((4, 4, 4), {"multipliers": (1,)}), ((1, 28, 28), {"multipliers": (2, 1, 1)}),
    ((1, 8, 8), {"attention": ()}), ((1, 8, 8), {"attention": (8, 4)}), ((1, 8, 8), {"blocks": 3}),
    ((1, 8, 8), {"fourier": (6, 7)}),
    ((3, 64), {"multipliers": (1, 2, 3, 4), "blocks": 1}), ((1, 28), {"multipliers": (2, 1, 1)}),
    ((4, 7), {"multipliers": (1,)}), ((1, 8), {"attention": ()}), ((2, 8), {"attention": (8, 4), "fourier": (6, 7)}),
])  # fmt: skip
def test_shapes(shape, options):
    network = randomized(UNet(shape, width=4, **options))
    out = network(torch.randn(2, *shape), torch.rand(2))
    assert out.shape == (2, *shape) and out.isfinite().all()


def test_attention_is_at_the_heights_given():
    def count(**options):
        network = UNet((1, 8, 8), width=8, multipliers=(1, 2), blocks=2, **options)
        return sum(isinstance(module, SelfAttention) for module in network.modules())

    # two blocks each way at one resolution, and the middle with the lowest
    assert [count(), count(attention=()), count(attention=(8,)), count(attention=(8, 4))] == [5, 0, 4, 9]


def test_skips_carry_detail_past_the_lowest_resolution():
    network = UNet((1, 8, 8), width=8, multipliers=(1, 1, 1, 1), attention=())
    randomized(network)
    with torch.no_grad():
        for module in network.ups[1:]:
            nn.init.zeros_(module.conv.weight), nn.init.zeros_(module.conv.bias)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x, torch.tensor(0.5)).sum(), x)
    assert slope.any()


@KINDS
def test_dropout(kind):
    network, x, t = build(kind, dropout=0.5)
    randomized(network)
    assert not torch.equal(network(x, t), network(x, t))
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@KINDS
@pytest.mark.parametrize("attention", [(4,), (8, 4), (8,)])
def test_context(kind, attention):
    network, x, t = build(kind, context=6, attention=attention)
    tokens, mask = words()
    assert torch.equal(network(x, t, (tokens, mask)), torch.zeros_like(x))
    null, out = randomized(network)(x, t), network(x, t, (tokens, mask))
    assert not torch.allclose(out, null, atol=1e-3)
    # cond=None is the same as all masked, and what is masked does not count
    torch.testing.assert_close(network(x, t, (tokens, torch.zeros_like(mask))), null, atol=1e-4, rtol=1e-4)
    noise = torch.where(mask[:, :, None], tokens, 100 * torch.randn_like(tokens))
    torch.testing.assert_close(network(x, t, (noise, mask)), out, atol=1e-4, rtol=1e-4)


def test_every_height_with_attention_has_the_context():
    for attention, count in (((8,), 4), ((4,), 5), ((8, 4), 9)):
        network, x, t = build("images", context=6, attention=attention)
        assert sum(step.cross is not None for step in [*network.down, *network.middle, *network.up]) == count
        randomized(network)(x, t, words()).square().sum().backward()
        # the null token is in the graph, but hidden where there are others
        assert_gradients(network, ["context.null"])
        network.zero_grad()
        network(x, t).square().sum().backward()
        assert network.context.null.grad.any()
        assert all(p.grad is not None for p in network.parameters())


def test_context_under_autocast():
    network, x, t = build("images", context=6, self_condition=True)
    exact = randomized(network)(x, t, words(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x, t, words(), x).isfinite().all()
    assert exact.isfinite().all()


@KINDS
def test_self_condition(kind):
    network, x, t = build(kind, self_condition=True, fourier=(0,), num_classes=3)
    assert torch.equal(network(x, t), torch.zeros_like(x))
    out = randomized(network)(x, t)
    assert torch.equal(out, network(x, t, None, torch.zeros_like(x)))
    estimate = torch.randn_like(x, requires_grad=True)
    other = network(x, t, None, estimate)
    assert not torch.allclose(out, other)
    (slope,) = torch.autograd.grad(other.square().sum(), estimate)
    assert slope.flatten(1).any(1).all()


@pytest.mark.parametrize("options, cond", [
    ({}, None),
    ({"num_classes": 3, "fourier": (0, 1)}, torch.tensor([0, 1, 2, 3])),
    ({"context": 6, "attention": (8, 4)}, words()),
    ({"self_condition": True, "attention": (8,)}, None),
])  # fmt: skip
def test_the_unet_of_sequences_is_that_of_images_on_images_of_equal_columns(options, cond):
    """With kernels that are zero beside their middle column; norms, pools and attention average over equal values."""
    sequences, images = UNet((2, 8), width=8, **options).double(), UNet((2, 8, 8), width=8, **options).double()
    weights = randomized(sequences).state_dict()
    for name, weight in images.state_dict().items():
        weight.copy_(weights[name] if weight.ndim < 4 else nn.functional.pad(
            weights[name].unsqueeze(3), [weight.shape[3] // 2] * 2))  # fmt: skip
    x, t, cond = torch.randn(4, 2, 8).double(), torch.rand(4), cond
    if isinstance(cond, tuple):
        cond = (cond[0].double(), cond[1])
    estimate = torch.randn_like(x) if sequences.self_condition else None
    expected = sequences(x, t, cond, estimate)
    x, estimate = (None if value is None else value.unsqueeze(3).expand(4, 2, 8, 8) for value in (x, estimate))
    torch.testing.assert_close(images(x, t, cond, estimate), expected.unsqueeze(3).expand_as(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options, cond", [
    ({"num_classes": 3, "self_condition": True}, None), ({"context": 6, "attention": (8, 4)}, words())
])  # fmt: skip
def test_channels_last(options, cond):
    """The same numbers to 1e-5 of their size, and the layout stays from step to step."""
    network, x, t = build("images", **options)
    expected = randomized(network)(x, t, cond)
    network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    out, features = network(x, t, cond, hidden=network.layers)
    torch.testing.assert_close(out, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in features.values())


@pytest.mark.parametrize("make, message", [
    (lambda: UNet((1, 6, 3), multipliers=(1, 2, 2)),
     r"at least 4, the down-sampling factor of 3 multipliers; got \(1, 6, 3\)"),
    (lambda: UNet((1, 3), multipliers=(1, 2, 2)),
     r"at least 4, the down-sampling factor of 3 multipliers; got \(1, 3\)"),
    (lambda: UNet((8,)), r"shape must be \(C, H, W\) or \(C, L\); got \(8,\)"),
    (lambda: UNet((1, 2, 8, 8)), r"shape must be \(C, H, W\) or \(C, L\); got \(1, 2, 8, 8\)"),
    (lambda: UNet((1, 8), attention=(16,)), r"attention must name lengths out of \[8, 4\]; got \(16,\)"),
    (lambda: UNet((1, 8, 8), attention=(16,)), r"attention must name heights out of \[8, 4\]; got \(16,\)"),
    (lambda: UNet((1, 8, 8), context=6, num_classes=3),
     r"context needs num_classes=None and attention .* got num_classes=3"),
    (lambda: UNet((1, 8, 8), context=6, attention=()), r"attention=\(\)"),
    (lambda: UNet((1, 8), 8)(torch.zeros(4, 1, 8, 8), T), r"x_t must be \(B, 1, 8\); got shape \(4, 1, 8, 8\)"),
    (lambda: UNet((1, 8), 8)(torch.zeros(4, 1, 8), T, None, torch.zeros(4, 1, 8)),
     "estimate must be None for a network built without self_condition=True"),
    (lambda: UNet((2, 8, 8), 8, self_condition=True)(torch.zeros(4, 2, 8, 8), T, None, torch.zeros(4, 1, 8, 8)),
     r"estimate must be \(B, 2, 8, 8\); got shape \(4, 1, 8, 8\)"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
