import pytest
import torch
from torch import nn

from components.decoders import CategoricalHead, DeltaHead, LogisticHead, MLPDecoder, NormalHead, ResidualDecoder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


def build(kind, head, num_classes=None):
    if kind == "mlp":
        return MLPDecoder(3, 5, head, width=16, depth=2, num_classes=num_classes), torch.randn(4, 3)
    latent = 3 if kind == "vector" else (3, 4, 4)
    z = torch.randn(4, 3) if kind == "vector" else torch.randn(4, 3, 4, 4)
    return ResidualDecoder(latent, (2, 8, 8), head, width=8, num_classes=num_classes), z


KINDS = pytest.mark.parametrize("kind", ["mlp", "vector", "map"])


@pytest.mark.parametrize("latent, shape, options", [
    (7, (1, 8, 8), {}), (7, (1, 16, 16), {}), (7, (3, 32, 32), {}), (7, (3, 64, 64), {}), (7, (1, 28, 28), {}),
    (7, (1, 8, 16), {}), (7, (1, 6, 6), {"multipliers": (1, 3)}), (7, (1, 8, 8), {"blocks": 2}),
    ((4, 8, 8), (3, 32, 32), {}), ((2, 8, 8), (1, 8, 8), {}), ((2, 4, 8), (1, 8, 16), {"multipliers": (2, 1)}),
])  # fmt: skip
def test_shapes(latent, shape, options):
    z = torch.randn(2, *((latent,) if isinstance(latent, int) else latent))
    for head in (DeltaHead(), LogisticHead(5), CategoricalHead(5)):
        assert ResidualDecoder(latent, shape, head, width=4, **options)(z).mean.shape == (2, *shape)


def test_blocks_count():
    decoder = ResidualDecoder(3, (1, 16, 16), DeltaHead(), width=8, blocks=3)
    assert [len(level.blocks) for level in decoder.levels] == [3, 3, 3]


@KINDS
def test_every_parameter_has_a_gradient(kind):
    decoder, z = build(kind, NormalHead("shared"), num_classes=3)
    p = randomized(decoder)(z)
    p.log_prob(torch.randn_like(p.mean)).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@KINDS
def test_autocast_returns_float32(kind):
    decoder, z = build(kind, NormalHead("learned"), num_classes=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = decoder(z)
    assert p.mean.dtype == p.std.dtype == p.log_prob(p.mean).dtype == torch.float32


@KINDS
def test_a_fresh_generator_varies_with_z(kind):
    decoder, z = build(kind, DeltaHead())
    x = decoder(z).mean
    assert x.abs().max() < 1 and x.std(dim=0).mean() > 0.03


@KINDS
def test_last_is_the_last_layer(kind):
    decoder, z = build(kind, DeltaHead(bounded=False))
    seen = []
    decoder.last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(decoder(z).mean, seen[0])
    assert isinstance(decoder.last.weight, nn.Parameter)


@KINDS
def test_labels(kind):
    decoder, z = build(kind, DeltaHead(), num_classes=3)
    randomized(decoder)
    null = decoder(z).mean
    assert torch.equal(null, decoder(z, torch.full((4,), 3)).mean)
    assert not torch.allclose(null, decoder(z, torch.zeros(4, dtype=torch.long)).mean)
    with pytest.raises(ValueError, match="of dtype torch.float32"):
        decoder(z, torch.zeros(4))
    with pytest.raises(ValueError, match="cond must be None for a network built with num_classes=None"):
        build(kind, DeltaHead())[0](z, torch.zeros(4, dtype=torch.long))


def test_refusals():
    with pytest.raises(ValueError, match=r"shape must be \(C, H, W\); got \(2,\): for points use MLPDecoder"):
        ResidualDecoder(4, (2,), DeltaHead())
    with pytest.raises(ValueError, match=r"sides divisible by the down-sampling factor 4 .*\(1, 6, 6\)"):
        ResidualDecoder(2, (1, 6, 6), DeltaHead(), multipliers=(1, 2, 4))
    with pytest.raises(ValueError, match=r"latent must have .* got \(3, 3\) for shape \(1, 8, 8\)"):
        ResidualDecoder((2, 3, 3), (1, 8, 8), DeltaHead())
    with pytest.raises(ValueError, match=r"z must be \(B, 2\); got shape \(4, 3\)"):
        ResidualDecoder(2, (1, 8, 8), DeltaHead(), width=4)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"z must be \(B, 2, 4, 4\); got shape \(4, 2\)"):
        ResidualDecoder((2, 4, 4), (1, 8, 8), DeltaHead(), width=4)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"z must be \(B, 2\); got shape \(4, 3\)"):
        MLPDecoder(2, 5, DeltaHead())(torch.zeros(4, 3))
