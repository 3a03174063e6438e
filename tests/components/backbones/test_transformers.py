import pytest
import torch
from answers import randomized, words

from components.backbones import DiT, SequenceTransformer


def build(kind, **options):
    network, shape = {"image": (DiT, (2, 8, 4)), "sequence": (SequenceTransformer, (2, 10))}[kind]
    network = network(shape, patch=2, width=16, depth=2, heads=4, **options)
    return network, torch.randn(4, *shape), torch.rand(4)


KINDS = pytest.mark.parametrize("kind", ["image", "sequence"])


@pytest.mark.parametrize("shape, patch", [((1, 8, 8), 2), ((3, 8, 8), 1), ((4, 4, 4), 4), ((1, 28, 28), 7)])
def test_image_shapes(shape, patch):
    x = torch.randn(2, *shape)
    assert randomized(DiT(shape, patch, 16, 1, 2))(x, torch.rand(2)).shape == x.shape
    assert DiT(shape, patch, 16, 1, 2, out_channels=6)(x, torch.rand(2)).shape == (2, 6, *shape[1:])


@pytest.mark.parametrize("shape, patch", [((1, 8), 2), ((3, 7), 1), ((4, 12), 4)])
def test_sequence_shapes(shape, patch):
    x = torch.randn(2, *shape)
    assert randomized(SequenceTransformer(shape, patch, 16, 1, 2))(x, torch.rand(2)).shape == x.shape
    assert SequenceTransformer(shape, patch, 16, 1, 2, out_channels=6)(x, torch.rand(2)).shape == (2, 6, shape[1])


@KINDS
def test_blocks_start_as_the_identity(kind):
    network, x, t = build(kind, context=6)
    h, embedding = torch.randn(4, 5, 16), torch.randn(4, 16)
    for block in network.transformer.blocks:
        assert torch.equal(block(h, embedding, *words()), h)


@KINDS
def test_without_positions_patches_are_a_set(kind):
    """Permuting patches permutes the output, once the positions are taken away; with it, not."""
    network, x, t = build(kind)
    randomized(network)
    swap = (lambda x: x.roll(2, dims=2)) if kind == "image" else (lambda x: x.roll(4, dims=2))
    assert not torch.allclose(network(swap(x), t), swap(network(x, t)), atol=1e-4)
    network.transformer.position_embedding.zero_()
    torch.testing.assert_close(network(swap(x), t), swap(network(x, t)), atol=1e-5, rtol=1e-4)


def test_a_token_is_a_patch():
    """With attention switched off, an output patch depends on its own input patch only."""
    for network, x, t in (build("image"), build("sequence")):
        randomized(network)
        with torch.no_grad():
            for block in network.transformer.blocks:
                block.attention.projection.weight.zero_()
        x.requires_grad_()
        out = network(x, t)
        place = (0, 1, 3, 2) if x.ndim == 4 else (0, 1, 5)
        (slope,) = torch.autograd.grad(out[place], x)
        depends = slope[0].abs().sum(0) > 0
        expected = torch.zeros_like(depends)
        expected[(slice(2, 4), slice(2, 4)) if x.ndim == 4 else slice(4, 6)] = True
        assert torch.equal(depends, expected)


@pytest.mark.parametrize("build, message", [
    (lambda: DiT((2,)), r"shape must be \(C, H, W\); got \(2,\): for points use MLP"),
    (lambda: DiT((1, 8, 3), 4), r"at most the sides of shape \(1, 8, 3\); got 4"),
    (lambda: DiT((1, 8, 8), 0), "got 0"),
    (lambda: DiT((1, 8, 8), 2, width=18), "width must be divisible by 4; got 18"),
    (lambda: DiT((1, 8, 8), 2, width=16, heads=3), "heads must divide width 16; got 3"),
    (lambda: DiT((1, 8, 8), 2, depth=0), "depth must be at least 1; got 0"),
    (lambda: DiT((1, 8, 8), num_classes=3, context=4), "as cond is labels or tokens; got num_classes=3 and context=4"),
    (lambda: SequenceTransformer((1, 9), 10), r"at most the sides of shape \(1, 9\); got 10"),
    (lambda: SequenceTransformer((1, 9), width=5), "width must be divisible by 2; got 5"),
])  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
