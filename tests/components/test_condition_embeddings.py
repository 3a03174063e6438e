import math

import pytest
import torch
from answers import words

from components.conditions import ClassEmbedding, Context, TimeAndLabel, TimeEmbedding, drop, sinusoidal


def test_sinusoidal_is_the_formula():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    out = sinusoidal(t, 6)
    for i, time in enumerate(t.tolist()):
        for k in range(3):
            angle = 1000 * time * 10000 ** (-k / 3)
            assert out[i, k].item() == pytest.approx(math.cos(angle), abs=1e-9)
            assert out[i, 3 + k].item() == pytest.approx(math.sin(angle), abs=1e-9)


def test_time_embedding_takes_scalars_batches_and_doubles():
    embed, x = TimeEmbedding(16), torch.randn(3, 2)
    batch = embed(torch.full((3,), 0.3), x)
    assert batch.shape == (3, 16) and batch.dtype == torch.float32
    for t in (torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)):
        torch.testing.assert_close(embed(t, x), batch, atol=1e-4, rtol=1e-4)
    assert embed.bfloat16()(torch.tensor(0.3), x).dtype == torch.bfloat16


def test_time_embedding_separates_neighbouring_times_in_bf16():
    embed, t = TimeEmbedding(16).bfloat16(), torch.arange(900, 1000, dtype=torch.float64) / 1000
    assert len(embed(t, torch.zeros(100, 1)).float().unique(dim=0)) > 90


def test_class_embedding_null_is_the_last_row():
    embed, x = ClassEmbedding(4, 8), torch.randn(3, 2)
    null = embed(None, x)
    assert torch.equal(null, embed(torch.full((3,), 4), x)) and torch.equal(null[0], embed.table.weight[4])
    assert not torch.equal(null[0], embed(torch.tensor([0, 1, 2]), x)[0])
    null.sum().backward()
    assert embed.table.weight.grad is not None


def test_class_embedding_without_classes():
    embed = ClassEmbedding(None, 8)
    assert embed(None, torch.randn(3, 2)) is None and not list(embed.parameters())


def test_the_null_token_is_hidden_where_there_are_others():
    context, (tokens, mask) = Context(6), words()
    mask = mask & torch.tensor([[True], [True], [False], [True]])
    longer, visible = context((tokens, mask), tokens)
    assert torch.equal(visible[:, 0], torch.tensor([False, False, True, False]))
    assert torch.equal(longer[:, 1:], tokens) and torch.equal(visible[:, 1:], mask)
    assert visible.any(1).all()


def test_a_style_adds_to_time_and_label():
    embed, x, t, style = TimeAndLabel(16, 8, 3), torch.randn(4, 2), torch.rand(4), torch.randn(4, 16)
    labels = torch.tensor([0, 1, 2, 3])
    inside = embed.time(t, x) + embed.label(labels, x)
    torch.testing.assert_close(embed(t, labels, x), torch.nn.functional.silu(inside))
    torch.testing.assert_close(embed((t, style), labels, x), torch.nn.functional.silu(inside + style))


@pytest.mark.parametrize(
    "cond", [torch.zeros(8, dtype=torch.long), (torch.randn(8, 3, 2), None)], ids=["labels", "tokens"]
)
def test_a_drop_with_a_generator_repeats_and_leaves_torch_s_own_alone(cond):
    def dropped(seed):
        after = drop(cond, 0.5, 5, torch.Generator().manual_seed(seed))
        return after[1] if isinstance(after, tuple) else after

    before = torch.get_rng_state()
    assert torch.equal(dropped(0), dropped(0)) and not torch.equal(dropped(0), dropped(1))
    assert torch.equal(torch.get_rng_state(), before)


X, LONG = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize("make, message", [
    (lambda: TimeEmbedding(16)(torch.zeros(2), X),
     r"t must be \(B,\) or \(\) in \[0, 1\] with B = 3; got shape \(2,\)"),
    (lambda: TimeEmbedding(16)(torch.zeros(3, 1), X), r"got shape \(3, 1\)"),
    (lambda: TimeEmbedding(16)(LONG, X), r"t must be floating point in \[0, 1\]; got torch.int64"),
    (lambda: ClassEmbedding(4, 8)(LONG[:2], X), r"labels \(B,\) of dtype int64 with B = 3; got shape \(2,\)"),
    (lambda: ClassEmbedding(4, 8)(LONG[:, None], X), r"got shape \(3, 1\)"),
    (lambda: ClassEmbedding(4, 8)(torch.zeros(3), X), "of dtype torch.float32"),
    (lambda: ClassEmbedding(4, 8)(([1], [2]), X), "got tuple"),
    (lambda: ClassEmbedding(None, 8)(LONG, X),
     "cond must be None for a network built with num_classes=None; got labels"),
    (lambda: ClassEmbedding(None, 8)((torch.zeros(3, 2, 4), None), X),
     "for a network built with num_classes=None; got a tuple"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
