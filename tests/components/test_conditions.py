"""Dropping conditions, as classifier-free guidance is trained with."""

import math

import pytest
import torch
from answers import generator

from components.conditions import drop


def test_labels_are_dropped_one_by_one_at_the_rate_asked_for():
    labels = torch.arange(10).repeat(20_000)
    dropped = drop(labels, 0.15, num_classes=10)
    null = dropped == 10
    assert (dropped[~null] == labels[~null]).all() and dropped.dtype == labels.dtype and labels.max() == 9
    assert abs(null.double().mean() - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 200_000)
    both = (null[::2] & null[1::2]).double().mean()  # independently of the neighbour
    assert abs(both - 0.15**2) < 4 * math.sqrt(0.15**2 / 100_000)


def test_tokens_are_dropped_by_their_mask_all_of_an_example_or_none():
    tokens, mask = torch.randn(20_000, 3, 2), torch.rand(20_000, 3) < 0.8
    mask[:, 0] = True
    same, dropped = drop((tokens, mask), 0.2)
    assert same is tokens and dropped.dtype == torch.bool
    gone = ~dropped.any(1)
    assert torch.equal(dropped[~gone], mask[~gone])
    assert abs(gone.double().mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 20_000)


def test_tokens_without_a_mask_are_dropped_as_under_a_mask_of_true_only():
    tokens, mask = torch.randn(1000, 3, 2), torch.ones(1000, 3, dtype=torch.bool)
    same, dropped = drop((tokens, None), 0.4, generator=generator())
    assert same is tokens and torch.equal(dropped, drop((tokens, mask), 0.4, generator=generator())[1])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_or_all_are_dropped_for_certain(p):
    assert (drop(torch.zeros(1000, dtype=torch.long), p, 7) == (7 if p else 0)).all()
    assert (drop((torch.zeros(1000, 2, 1), torch.ones(1000, 2, dtype=torch.bool)), p)[1] == (p == 0)).all()


@pytest.mark.parametrize("cond, settings, message", [
    (torch.zeros(3, dtype=torch.long), {"p": 0.1}, "labels need num_classes, the null label; got None"),
    (torch.zeros(3, dtype=torch.long), {"p": 1.1, "num_classes": 2}, r"p must be in \[0, 1\]; got 1.1"),
    (torch.zeros(3, dtype=torch.long), {"p": math.nan, "num_classes": 2}, r"p must be in \[0, 1\]; got nan"),
    ((torch.zeros(3, 4, 2), torch.ones(3, 5, dtype=torch.bool)), {"p": 0.1}, r"mask must be \(B, L\) = \(3, 4\); got"),
])  # fmt: skip
def test_refusals(cond, settings, message):
    with pytest.raises(ValueError, match=message):
        drop(cond, **settings)


def test_no_condition_is_left_alone():
    assert drop(None, 0.5) is None
