import pytest
import torch
from torch import nn

from components.backbones import DiT, SequenceTransformer
from components.conditions import Context, drop, sinusoidal
from components.layers import Attention, TransformerBlock, positions


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomized(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


def build(kind, **options):
    network, shape = {"image": (DiT, (2, 8, 4)), "sequence": (SequenceTransformer, (2, 10))}[kind]
    network = network(shape, patch=2, width=16, depth=2, heads=4, **options)
    return network, torch.randn(4, *shape), torch.rand(4)


def words(features=6):
    mask = torch.tensor([[True, True, True], [True, False, False], [False, True, False], [True, True, False]])
    return torch.randn(4, 3, features), mask


KINDS = pytest.mark.parametrize("kind", ["image", "sequence"])
CONDITIONS = pytest.mark.parametrize("options, cond", [
    ({}, None), ({"num_classes": 3}, torch.tensor([0, 1, 2, 3])), ({"context": 6}, words()), ({"context": 6}, None),
], ids=["none", "labels", "tokens", "null"])  # fmt: skip


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


@CONDITIONS
@KINDS
def test_zero_at_initialisation_and_finite_gradients(kind, options, cond):
    network, x, t = build(kind, **options)
    out = network(x, t, cond)
    assert torch.equal(out, torch.zeros_like(x))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@CONDITIONS
@KINDS
def test_every_parameter_has_a_gradient(kind, options, cond):
    network, x, t = build(kind, **options)
    randomized(network)(x, t, cond).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # the null token alone is a single key, which needs no query; with tokens for all nobody sees it
        if "context" in options and cond is None and (".cross.query" in name or ".norm_cross" in name):
            continue
        assert parameter.grad.abs().max() > 1e-12 or isinstance(cond, tuple) and name.endswith("context.null"), name


@CONDITIONS
@KINDS
def test_autocast(kind, options, cond):
    network, x, t = build(kind, **options)
    exact = randomized(network)(x, t, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, t.double(), cond)
    assert out.isfinite().all() and (out.float() - exact).norm() / exact.norm() < 0.1


@KINDS
def test_blocks_start_as_the_identity(kind):
    network, x, t = build(kind, context=6)
    h, embedding = torch.randn(4, 5, 16), torch.randn(4, 16)
    for block in network.transformer.blocks:
        assert torch.equal(block(h, embedding, *words()), h)


@KINDS
def test_time(kind):
    network, x, _ = build(kind)
    batch = randomized(network)(x, torch.full((4,), 0.3))
    for t in (torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)):
        assert torch.equal(network(x, t), batch)
    assert not torch.allclose(network(x, torch.tensor(0.6)), batch)
    with pytest.raises(ValueError, match=r"t must be \(B,\) or \(\) in \[0, 1\] with B = 4; got shape \(3,\)"):
        network(x, torch.zeros(3))


@KINDS
def test_labels(kind):
    network, x, t = build(kind, num_classes=3)
    null = randomized(network)(x, t)
    assert torch.equal(null, network(x, t, torch.full((4,), 3)))
    assert not torch.allclose(null, network(x, t, torch.zeros(4, dtype=torch.long)))


@KINDS
def test_null_context(kind):
    """cond=None, a mask of False only, and what `drop` makes of tokens are one."""
    network, x, t = build(kind, context=6)
    null, (tokens, mask) = randomized(network)(x, t), words()
    torch.testing.assert_close(network(x, t, (tokens, torch.zeros_like(mask))), null)
    torch.testing.assert_close(network(x, t, drop((tokens, mask), 1.0)), null)
    assert not torch.allclose(network(x, t, (tokens, mask)), null)


@KINDS
def test_masked_tokens_do_not_count_and_order_does_not_matter(kind):
    network, x, t = build(kind, context=6)
    tokens, mask = words()
    out = randomized(network)(x, t, (tokens, mask))
    noise = torch.where(mask[:, :, None], tokens, 100 * torch.randn_like(tokens))
    torch.testing.assert_close(network(x, t, (noise, mask)), out)
    torch.testing.assert_close(network(x, t, (tokens.flip(1), mask.flip(1))), out, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network(x, t, (torch.where(mask[:, :, None], tokens + 1, tokens), mask)), out)


@KINDS
def test_tokens_without_a_mask_are_all_seen(kind):
    network, x, t = build(kind, context=6)
    tokens, mask = words()
    whole = randomized(network)(x, t, (tokens, torch.ones_like(mask)))
    assert torch.equal(network(x, t, (tokens, None)), whole) and not torch.equal(network(x, t, (tokens, mask)), whole)


def test_the_null_token_is_hidden_where_there_are_others():
    context, (tokens, mask) = Context(6), words()
    mask = mask & torch.tensor([[True], [True], [False], [True]])
    seen, visible = context((tokens, mask), tokens)
    assert torch.equal(visible[:, 0], torch.tensor([False, False, True, False]))
    assert torch.equal(seen[:, 1:], tokens) and torch.equal(visible[:, 1:], mask)
    assert visible.any(1).all()


@KINDS
def test_examples_do_not_mix(kind):
    network, x, t = build(kind)
    randomized(network)
    torch.testing.assert_close(network(x, t)[:2], network(x[:2], t[:2]), atol=1e-4, rtol=1e-4)


@KINDS
def test_without_places_patches_are_a_set(kind):
    """Permuting patches permutes the output, once the place is taken away; with it, not."""
    network, x, t = build(kind)
    randomized(network)
    swap = (lambda x: x.roll(2, dims=2)) if kind == "image" else (lambda x: x.roll(4, dims=2))
    assert not torch.allclose(network(swap(x), t), swap(network(x, t)), atol=1e-4)
    network.transformer.place.zero_()
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
        seen = slope[0].abs().sum(0) > 0
        expected = torch.zeros_like(seen)
        expected[(slice(2, 4), slice(2, 4)) if x.ndim == 4 else slice(4, 6)] = True
        assert torch.equal(seen, expected)


def test_attention_is_its_formula():
    attention, x, context = Attention(8, 2, context=5), torch.randn(3, 4, 8), torch.randn(3, 6, 5)
    mask = torch.rand(3, 6) < 0.5
    mask[:, 0] = True
    k, v = attention.key_value(context).chunk(2, dim=2)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = attention.query(x)[:, :, part] @ k[:, :, part].transpose(1, 2) / 2
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(2) @ v[:, :, part])
    expected = attention.projection(torch.cat(heads, dim=2))
    torch.testing.assert_close(attention(x, context, mask), expected, atol=1e-5, rtol=1e-5)


def test_plain_block():
    block, x = TransformerBlock(16, 4), torch.randn(3, 5, 16)
    block(x).square().sum().backward()
    assert block(x).shape == x.shape
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_positions():
    one = positions(8, 5)
    torch.testing.assert_close(one, sinusoidal(torch.arange(5.0), 8, scale=1.0))
    two = positions(8, 2, 3)
    assert two.shape == (6, 8) and len(two.unique(dim=0)) == 6
    # places differ by a rotation of each pair: products depend on the difference only
    products = positions(16, 12) @ positions(16, 12).T
    torch.testing.assert_close(products[:-3, :-3], products[3:, 3:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build, message", [
    (lambda: DiT((2,)), r"shape must be \(C, H, W\); got \(2,\): for points use MLP"),
    (lambda: DiT((1, 8, 6), 4), r"patch must divide the sides of shape \(1, 8, 6\); got 4"),
    (lambda: DiT((1, 8, 8), 0), "got 0"),
    (lambda: DiT((1, 8, 8), 2, width=18), "width must be divisible by 4; got 18"),
    (lambda: DiT((1, 8, 8), 2, width=16, heads=3), "heads must divide width 16; got 3"),
    (lambda: DiT((1, 8, 8), 2, depth=0), "depth must be at least 1; got 0"),
    (lambda: DiT((1, 8, 8), num_classes=3, context=4), "labels or tokens: got num_classes=3 and context=4"),
    (lambda: SequenceTransformer((1, 9), 2), r"patch must divide the length of shape \(1, 9\); got 2"),
    (lambda: SequenceTransformer((1, 9), width=5), "width must be divisible by 2; got 5"),
])  # fmt: skip
def test_construction_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@KINDS
def test_refusals(kind):
    network, x, t = build(kind, context=6)
    tokens, mask = words()
    for cond, message in [
        (
            torch.zeros(4, dtype=torch.long),
            r"cond must be \(tokens, mask\) for a network built with context; got Tensor",
        ),
        ((tokens[:3], mask[:3]), r"tokens must be \(4, L, 6\); got shape \(3, 3, 6\)"),
        ((tokens[:, :, :5], mask), r"got shape \(4, 3, 5\)"),
        (
            (tokens, mask[:, :2]),
            r"mask must be \(B, L\) = \(4, 3\) of dtype bool; got shape \(4, 2\) of dtype torch.bool",
        ),
        ((tokens, mask.float()), "of dtype torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(x, t, cond)
    with pytest.raises(ValueError, match=r"x_t must be \(B, 2, "):
        network(x[:, :1], t)
    for cond in (words(), torch.zeros(4, dtype=torch.long)):
        with pytest.raises(ValueError, match="cond must be None for a network built with num_classes=None"):
            build(kind)[0](x, t, cond)
    with pytest.raises(ValueError, match=r"cond must be labels \(B,\) of dtype int64; got tuple"):
        build(kind, num_classes=3)[0](x, t, words())
