"""What every backbone is: (x_t, t, cond) to a tensor, at first zero, of each example by itself."""

import pytest
import torch
from answers import assert_gradients, randomized, words

from components.backbones import MLP, DiT, SequenceTransformer, UNet
from components.conditions import drop

NETWORKS = {
    "mlp": lambda **options: MLP(5, 16, 2, **options),
    "unet": lambda **options: UNet((2, 8, 8), 8, **options),
    "unet of sequences": lambda **options: UNet((2, 8), 8, **options),
    "dit": lambda **options: DiT((2, 8, 4), 2, 16, 2, 4, **options),
    "sequence": lambda **options: SequenceTransformer((2, 10), 2, 16, 2, 4, **options),
}
EVENTS = {"mlp": (5,), "unet": (2, 8, 8), "unet of sequences": (2, 8), "dit": (2, 8, 4), "sequence": (2, 10)}
LABELS = torch.tensor([0, 1, 2, 3])
CONDITIONS = {"none": ({}, None), "labels": ({"num_classes": 3}, LABELS), "null label": ({"num_classes": 3}, None)}
FOURIER = {"labels and fourier": ({"num_classes": 3, "fourier": (0, 1)}, LABELS)}
TOKENS = {"tokens": ({"context": 6}, words()), "null token": ({"context": 6}, None)}

EACH = pytest.mark.parametrize("kind", NETWORKS)
WITH_TOKENS = pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "mlp"])
CASES = pytest.mark.parametrize("kind, options, cond", [
    pytest.param(kind, options, cond, id=f"{kind}, {name}")
    for kind in NETWORKS
    for name, (options, cond) in {
        **CONDITIONS, **(FOURIER if "unet" in kind or kind == "mlp" else {}), **(TOKENS if kind != "mlp" else {})
    }.items()
])  # fmt: skip


def build(kind, **options):
    return NETWORKS[kind](**options), torch.randn(4, *EVENTS[kind]), torch.rand(4)


@EACH
def test_outputs_may_be_more(kind):
    out = {"out_features": 10} if kind == "mlp" else {"out_channels": 6}
    network, x, t = build(kind, **out)
    assert network(x, t).shape == (4, *out.values(), *x.shape[2:])


@CASES
def test_zero_at_initialisation_with_finite_gradients(kind, options, cond):
    network, x, t = build(kind, **options)
    out = network(x, t, cond)
    assert torch.equal(out, torch.zeros_like(x))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@CASES
def test_every_parameter_has_a_gradient(kind, options, cond):
    network, x, t = build(kind, **options)
    randomized(network)(x, t, cond).square().sum().backward()
    # The null token alone is a single key, which needs no query; beside tokens it is hidden.
    single = ("query.weight", "query.bias", "norm_cross.weight", "norm_cross.bias", "cross.norm.weight",
              "cross.norm.bias")  # fmt: skip
    but = {True: ("context.null",), False: single if "context" in options else ()}[isinstance(cond, tuple)]
    assert_gradients(network, but)
    if "context" in options and cond is None:
        null = network.context if "unet" in kind else network.transformer.context
        assert null.null.grad.any()
        assert all(p.grad.any() for name, p in network.named_parameters() if "attention.query" in name and
                   "cross" not in name)  # fmt: skip


@CASES
def test_autocast(kind, options, cond):
    network, x, t = build(kind, **options)
    exact = randomized(network)(x, t, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, t.double(), cond)
    assert out.isfinite().all() and (out.float() - exact).norm() / exact.norm() < 0.1


@EACH
def test_time(kind):
    network, x, _ = build(kind)
    batch = randomized(network)(x, torch.full((4,), 0.3))
    for t in (torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)):
        assert torch.equal(network(x, t), batch)
    assert not torch.allclose(network(x, torch.tensor(0.6)), batch)


@EACH
def test_labels(kind):
    network, x, t = build(kind, num_classes=3)
    null = randomized(network)(x, t)
    assert torch.equal(null, network(x, t, torch.full((4,), 3)))
    assert not torch.allclose(null, network(x, t, torch.zeros(4, dtype=torch.long)))


@EACH
def test_examples_do_not_mix(kind):
    network, x, t = build(kind)
    randomized(network)
    torch.testing.assert_close(network(x, t)[:2], network(x[:2], t[:2]), atol=1e-4, rtol=1e-4)


@WITH_TOKENS
def test_the_null_condition(kind):
    """cond=None, a mask of False only, and what `drop` makes of tokens are one."""
    network, x, t = build(kind, context=6)
    null, (tokens, mask) = randomized(network)(x, t), words()
    for cond in ((tokens, torch.zeros_like(mask)), drop((tokens, mask), 1.0)):
        torch.testing.assert_close(network(x, t, cond), null, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(network(x, t, (tokens, mask)), null, atol=1e-3)


@WITH_TOKENS
def test_masked_tokens_do_not_count_and_order_does_not_matter(kind):
    network, x, t = build(kind, context=6)
    tokens, mask = words()
    out = randomized(network)(x, t, (tokens, mask))
    noise = torch.where(mask[:, :, None], tokens, 100 * torch.randn_like(tokens))
    torch.testing.assert_close(network(x, t, (noise, mask)), out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network(x, t, (tokens.flip(1), mask.flip(1))), out, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(network(x, t, (torch.where(mask[:, :, None], tokens + 1, tokens), mask)), out)


@WITH_TOKENS
def test_tokens_without_a_mask_are_all_visible(kind):
    network, x, t = build(kind, context=6)
    tokens, mask = words()
    whole = randomized(network)(x, t, (tokens, torch.ones_like(mask)))
    assert torch.equal(network(x, t, (tokens, None)), whole) and not torch.equal(network(x, t, (tokens, mask)), whole)


TOKENS_OF_4, MASK = words()
REFUSED = {
    "t": ({}, {"t": torch.zeros(3)}, r"t must be \(B,\) or \(\) in \[0, 1\] with B = 4; got shape \(3,\)"),
    "x_t": ({}, {"x_t": torch.zeros(4, 7, 8)}, r"x_t must be \(B, .*\); got shape \(4, 7, 8\)"),
    "labels of another batch": ({"num_classes": 3}, {"cond": LABELS[:3]},
                                r"cond must be labels \(B,\) of dtype int64 with B = 4; got shape \(3,\)"),
    "labels unbidden": ({}, {"cond": LABELS}, "cond must be None for a network built with num_classes=None"),
    "tokens unbidden": ({}, {"cond": words()}, "cond must be None for a network built with num_classes=None"),
    "tokens for labels": ({"num_classes": 3}, {"cond": words()},
                          r"cond must be labels \(B,\) of dtype int64; got tuple"),
}  # fmt: skip
REFUSED_TOKENS = {
    "labels for tokens": (LABELS, r"cond must be \(tokens, mask\) for a network built with context; got Tensor"),
    "another batch": ((TOKENS_OF_4[:3], MASK[:3]), r"tokens must be \(4, L, 6\); got shape \(3, 3, 6\)"),
    "other features": ((TOKENS_OF_4[:, :, :5], MASK), r"tokens must be \(4, L, 6\); got shape \(4, 3, 5\)"),
    "another length": ((TOKENS_OF_4, MASK[:, :2]),
                       r"mask must be \(B, L\) = \(4, 3\) of dtype bool; got shape \(4, 2\) of dtype torch.bool"),
    "an integer mask": ((TOKENS_OF_4, MASK.long()), "of dtype torch.int64"),
    "a mask of floats": ((TOKENS_OF_4, MASK.float()), "of dtype torch.float32"),
}  # fmt: skip


@pytest.mark.parametrize("options, inputs, message", REFUSED.values(), ids=REFUSED)
@EACH
def test_refusals(kind, options, inputs, message):
    network, x, t = build(kind, **options)
    with pytest.raises(ValueError, match=message):
        network(**{"x_t": x, "t": t, **inputs})


@pytest.mark.parametrize("cond, message", REFUSED_TOKENS.values(), ids=REFUSED_TOKENS)
@WITH_TOKENS
def test_refusals_of_tokens(kind, cond, message):
    network, x, t = build(kind, context=6)
    with pytest.raises(ValueError, match=message):
        network(x, t, cond)
