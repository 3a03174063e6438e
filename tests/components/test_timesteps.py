import math

import pytest
import torch

from components.losses import times as timesteps
from components.losses import low_discrepancy


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_every_stratum_has_one_time(n):
    for _ in range(20):
        t = low_discrepancy(n)
        assert t.shape == (n,) and t.dtype == torch.float64
        assert ((t * n).floor().sort().values == torch.arange(n)).all()


def test_times_are_in_0_to_1_and_evenly_spaced():
    t = low_discrepancy(16).sort().values
    assert t[0] >= 0 and t[-1] < 1
    torch.testing.assert_close(t.diff(), torch.full((15,), 1 / 16, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_each_time_is_uniform(place):
    """Kolmogorov's distance of 2000 draws from uniform: above 1.95/√n once in a thousand."""
    t = torch.stack([low_discrepancy(8)[place] for _ in range(2000)]).sort().values
    distance = (t - torch.arange(2000) / 2000).abs().max()
    assert distance < 1.95 / math.sqrt(2000) + 1 / 2000


def test_a_mean_over_a_batch_varies_less_than_with_independent_times():
    batches = torch.stack([low_discrepancy(32) for _ in range(500)])
    assert batches.square().mean(1).var() < 0.05 * torch.rand(500, 32).square().mean(1).var()


def test_two_calls_differ_and_a_seed_repeats():
    torch.manual_seed(1)
    first, second = low_discrepancy(4), low_discrepancy(4)
    torch.manual_seed(1)
    assert not torch.equal(first, second) and torch.equal(low_discrepancy(4), first)


def test_trap_33_ranks_share_one_set_of_strata(monkeypatch):
    offset = torch.rand((), dtype=torch.float64)
    monkeypatch.setattr(timesteps, "shared", lambda u: offset)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(timesteps, "place", lambda rank=rank: (rank, 3))
        parts.append(low_discrepancy(5, across_ranks=True))
    assert ((torch.cat(parts) * 15).floor().sort().values == torch.arange(15)).all()


def test_apart_from_training_each_process_has_its_own(monkeypatch):
    monkeypatch.setattr(timesteps, "place", lambda: (2, 3))
    monkeypatch.setattr(timesteps, "shared", lambda u: pytest.fail("nobody else may be here"))
    assert ((low_discrepancy(5) * 5).floor().sort().values == torch.arange(5)).all()


def test_one_process_alone_needs_no_group():
    assert low_discrepancy(5, across_ranks=True).shape == (5,)
