import pytest
import torch
from answers import assert_gradients, randomized
from torch import nn

from components.decoders import CategoricalHead, DeltaHead, LogisticHead, MLPDecoder, NormalHead, ResidualDecoder


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
    assert_gradients(decoder)


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
    outputs = []
    decoder.last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    assert torch.equal(decoder(z).mean, outputs[0])
    assert isinstance(decoder.last.weight, nn.Parameter)


@KINDS
def test_labels(kind):
    decoder, z = build(kind, DeltaHead(), num_classes=3)
    randomized(decoder)
    null = decoder(z).mean
    assert torch.equal(null, decoder(z, torch.full((4,), 3)).mean)
    assert not torch.allclose(null, decoder(z, torch.zeros(4, dtype=torch.long)).mean)


SHAPE, B = (2, 3, 4), 5


@pytest.mark.parametrize("head", [NormalHead(0.3), NormalHead("learned"), LogisticHead(17), CategoricalHead(17)])
def test_a_decoder_s_pixels_have_the_nats_that_the_head_gives_each(head):
    decoder = MLPDecoder(5, SHAPE, head, 16, 1)
    x, z = (torch.randint(17, (B, *SHAPE)) * 2 / 16) - 1, torch.randn(B, 5)
    raw = decoder.last(torch.nn.functional.silu(decoder.norm(decoder.blocks[0](decoder.first(z), None))))
    direct = head(raw.unflatten(1, (head.factor * SHAPE[0], *SHAPE[1:])))
    assert decoder(z).mean.shape == x.shape
    torch.testing.assert_close(decoder(z).log_prob(x), direct.log_prob(x))


def refused(kind, classes, cond):
    decoder, z = build(kind, DeltaHead(), classes)
    return decoder(z, cond)


@pytest.mark.parametrize("make, message", [
    (lambda: ResidualDecoder(4, (2,), DeltaHead()),
     r"shape must be \(C, H, W\); got \(2,\): for points use MLPDecoder"),
    (lambda: ResidualDecoder(2, (1, 6, 3), DeltaHead(), multipliers=(1, 2, 4)),
     r"at least 4, the down-sampling factor of 3 .*\(1, 6, 3\)"),
    (lambda: ResidualDecoder((2, 3, 3), (1, 8, 8), DeltaHead()),
     r"latent must have .* got \(3, 3\) for shape \(1, 8, 8\)"),
    (lambda: ResidualDecoder(2, (1, 8, 8), DeltaHead(), width=4)(torch.zeros(4, 3)),
     r"z must be \(B, 2\); got shape \(4, 3\)"),
    (lambda: ResidualDecoder((2, 4, 4), (1, 8, 8), DeltaHead(), width=4)(torch.zeros(4, 2)),
     r"z must be \(B, 2, 4, 4\); got shape \(4, 2\)"),
    (lambda: MLPDecoder(2, 5, DeltaHead())(torch.zeros(4, 3)), r"z must be \(B, 2\); got shape \(4, 3\)"),
    *((lambda kind=kind: refused(kind, 3, torch.zeros(4)), "of dtype torch.float32")
      for kind in ("mlp", "vector", "map")),
    *((lambda kind=kind: refused(kind, None, torch.zeros(4, dtype=torch.long)),
       "cond must be None for a network built with num_classes=None") for kind in ("mlp", "vector", "map")),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
