import math

import pytest
import torch

from components.losses import times as timesteps
from components.losses import LogNormalTimes, LossAwareTimes, TimeSampler, UniformLogSNRTimes, UniformTimes
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
)

F64 = torch.float64
COSINE = CosineSchedule()
EVERY = pytest.mark.parametrize("make", [UniformTimes, UniformLogSNRTimes, LogNormalTimes, LossAwareTimes])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def one_in_each_stratum(u):
    """Whether each n-th of [0, 1) has one of the n values u: then each is uniform, as the offset is."""
    return ((u * len(u)).floor().sort().values == torch.arange(len(u))).all()


def heard(sampler, losses):
    """The sampler, once it has heard one loss for each bin."""
    n = sampler.bins
    sampler.learn((torch.arange(n, dtype=F64) + 0.5) / n, torch.as_tensor(losses, dtype=F64))
    return sampler


# What every sampler keeps


@EVERY
@pytest.mark.parametrize("schedule", [COSINE, LogSNRLinearSchedule(), BetaSchedule(), FlowSchedule(), EDMSchedule()])
def test_times_are_in_0_to_1_and_have_weights(make, schedule):
    sampler = make()
    for n in (1, 7):
        t, weight = sampler(n, schedule)
        assert t.shape == weight.shape == (n,) and t.dtype == weight.dtype == F64
        assert ((t >= 0) & (t <= 1)).all() and (weight > 0).all() and not t.requires_grad
    assert not torch.equal(sampler(7, schedule)[0], sampler(7, schedule)[0])


@EVERY
def test_trap_33_ranks_share_one_set_of_strata(make, monkeypatch):
    offset = torch.rand((), dtype=F64)
    monkeypatch.setattr(timesteps, "shared", lambda u: offset)
    whole = make()(15, COSINE, across_ranks=True)[0].sort().values
    parts = []
    for rank in range(3):
        monkeypatch.setattr(timesteps, "place", lambda rank=rank: (rank, 3))
        parts.append(make()(5, COSINE, across_ranks=True)[0])
    torch.testing.assert_close(torch.cat(parts).sort().values, whole, rtol=1e-9, atol=1e-12)


def test_a_sampler_that_gives_no_times_says_so():
    with pytest.raises(TypeError, match="TimeSampler is abstract: a time sampler gives forward"):
        TimeSampler()(4, COSINE)


@pytest.mark.parametrize("make", [UniformTimes, UniformLogSNRTimes, LogNormalTimes])
def test_most_samplers_have_no_state_and_do_not_care_for_losses(make):
    sampler = make()
    sampler.learn(torch.rand(4), torch.rand(4))
    assert not sampler.state_dict()


# Uniform


def test_uniform_times_are_stratified_with_weight_1():
    t, weight = UniformTimes()(64, COSINE)
    assert one_in_each_stratum(t) and (weight == 1).all()


@pytest.mark.parametrize("schedule", [COSINE, FlowSchedule(), BetaSchedule(), EDMSchedule(), LearnedSchedule()])
def test_log_snr_is_uniform_whatever_the_schedule(schedule):
    t, weight = UniformLogSNRTimes(7.0, -4.0)(64, schedule)
    assert one_in_each_stratum((7 - schedule.log_snr(t).detach()) / 11) and (weight == 1).all()


def test_log_snr_beyond_the_schedule_is_moved_to_its_end():
    t, _ = UniformLogSNRTimes(10.0, -10.0)(100, LogSNRLinearSchedule(5.0, -5.0))
    assert (t == 0).sum() == 25 and (t == 1).sum() == 25


# Log-normal


@pytest.mark.parametrize("schedule", [COSINE, FlowSchedule(), EDMSchedule(1e-5, 1e4)])
@pytest.mark.parametrize("settings", [{}, {"P_mean": 0.3, "P_std": 0.8}])
def test_log_sigma_is_normal(schedule, settings):
    """Φ((log σ/α - P_mean)/P_std) is uniform, and stratified: the distance of Kolmogorov is below 1/n."""
    t, weight = LogNormalTimes(**settings)(128, schedule)
    mean, std = settings.get("P_mean", -1.2), settings.get("P_std", 1.2)
    u = torch.special.ndtr((-schedule.log_snr(t) / 2 - mean) / std)
    assert one_in_each_stratum(u) and (weight == 1).all()


def test_a_sigma_beyond_the_schedule_is_moved_to_its_end():
    t, _ = LogNormalTimes(0.0, 1.0)(1000, EDMSchedule(math.exp(-1), math.exp(2)))
    below, above = (torch.special.ndtr(torch.tensor(z, dtype=F64)).item() for z in (-1.0, -2.0))
    assert (t == 0).sum().item() == pytest.approx(1000 * below, abs=1)
    assert (t == 1).sum().item() == pytest.approx(1000 * above, abs=1)


# Loss-aware


def test_it_is_uniform_until_every_bin_has_been_heard_of():
    sampler = LossAwareTimes(bins=10)
    for bin_ in range(9):
        sampler.learn(torch.tensor([(bin_ + 0.5) / 10]), torch.tensor([float(bin_ + 1)]))
        assert torch.equal(sampler.probabilities, torch.full((10,), 0.1, dtype=F64))
        t, weight = sampler(50, COSINE)
        assert one_in_each_stratum(t) and torch.allclose(weight, torch.ones(50, dtype=F64))
    sampler.learn(torch.tensor([0.95]), torch.tensor([10.0]))
    assert sampler.probabilities[9] > 5 * sampler.probabilities[0]


def test_after_learning_probabilities_are_proportional_to_the_root_of_the_mean_square():
    """Of each bin's several losses, with 1% left uniform."""
    sampler = LossAwareTimes(bins=8)
    t = torch.rand(400, dtype=F64)
    losses = torch.rand(400, dtype=F64) * (1 + 5 * t)
    sampler.learn(t, losses)
    root = torch.stack([losses[(t * 8).floor() == i].square().mean().sqrt() for i in range(8)])
    torch.testing.assert_close(sampler.probabilities, 0.99 * root / root.sum() + 0.01 / 8, rtol=1e-10, atol=0)
    assert sampler.probabilities.sum().item() == pytest.approx(1, abs=1e-12)


def test_later_losses_are_averaged_in_with_decay():
    sampler = heard(heard(LossAwareTimes(bins=4, decay=0.75), [1, 1, 1, 1]), [3, 1, 1, 1])
    assert sampler.squares.tolist() == pytest.approx([0.75 + 0.25 * 9, 1, 1, 1])
    sampler.learn(torch.tensor([0.3]), torch.tensor([2.0]))  # only the second bin hears
    assert sampler.squares.tolist() == pytest.approx([3, 0.75 + 0.25 * 4, 1, 1])


def test_times_are_drawn_as_often_as_probabilities_say():
    sampler = heard(LossAwareTimes(bins=5), [1, 2, 4, 8, 1])
    t, _ = sampler(1000, COSINE)
    count = torch.bincount((t * 5).floor().long(), minlength=5)
    assert (count - 1000 * sampler.probabilities).abs().max() <= 1
    for i in range(5):  # and evenly within each bin
        inside = (t[(t * 5).floor() == i] * 5 - i).sort().values
        torch.testing.assert_close(inside.diff(), torch.full_like(inside[1:], inside.diff()[0]), rtol=1e-6, atol=0)


def test_weights_keep_the_mean_that_of_uniform_times():
    """E[w L(t)] = ∫ L, of which 10⁵ strata leave an error of 1e-3 in the bins that are hardly ever drawn."""
    sampler = heard(LossAwareTimes(bins=20), torch.linspace(0.1, 7, 20).square())
    t, weight = sampler(100_000, COSINE)
    for loss, integral in (
        (torch.ones_like(t), 1), (t, 1 / 2), (t.square(), 1 / 3), ((5 * t).exp(), (math.exp(5) - 1) / 5),
    ):  # fmt: skip
        assert (weight * loss).mean().item() == pytest.approx(integral, rel=1e-3)


def test_the_weighted_loss_hardly_varies_between_bins():
    """Σ_b p_b (L_b/(n p_b))² is (mean L)² at p ∝ L, the least there is; what stays uniform costs 3%."""
    losses = torch.linspace(0.1, 7, 20, dtype=F64).square()
    p = heard(LossAwareTimes(bins=20), losses).probabilities
    aware, uniform = (
        ((losses / 20).square() / q).sum() / losses.mean().square() for q in (p, torch.full_like(p, 1 / 20))
    )
    assert 1 <= aware < 1.03 and uniform > 1.6


def test_a_checkpoint_holds_what_it_learned():
    sampler = heard(LossAwareTimes(bins=6), [1, 2, 3, 4, 5, 6])
    other = LossAwareTimes(bins=6)
    other.load_state_dict(sampler.state_dict())
    assert sorted(sampler.state_dict()) == ["seen", "squares"]
    assert torch.equal(other.probabilities, sampler.probabilities)
    torch.manual_seed(1)
    t, weight = sampler(9, COSINE)
    torch.manual_seed(1)
    again, same = other(9, COSINE)
    assert torch.equal(t, again) and torch.equal(weight, same)


def test_what_it_learns_is_of_all_ranks(monkeypatch):
    """Two shards of a batch, of different sizes in a bin, are as one batch."""
    t, losses = torch.rand(40, dtype=F64), torch.rand(40, dtype=F64)
    one = LossAwareTimes(bins=4)
    one.learn(t, losses)
    sums = []
    monkeypatch.setattr(timesteps, "sum_over_ranks", lambda both: sums.append(both.clone()) or both)
    for shard in (slice(13), slice(13, None)):
        LossAwareTimes(bins=4).learn(t[shard], losses[shard])
    monkeypatch.setattr(timesteps, "sum_over_ranks", lambda both: sums[0] + sums[1])
    two = LossAwareTimes(bins=4)
    two.learn(t[:13], losses[:13])
    torch.testing.assert_close(two.squares, one.squares, rtol=1e-12, atol=0)
    assert torch.equal(two.seen, one.seen)


def test_learning_takes_no_gradient_and_losses_may_be_zero():
    sampler = heard(LossAwareTimes(bins=3), torch.zeros(3))
    assert sampler.probabilities.tolist() == pytest.approx([1 / 3] * 3) and sampler(4, COSINE)[0].isfinite().all()
    sampler.learn(torch.tensor([0.0, 0.5, 1.0]), torch.ones(3, requires_grad=True))
    assert not sampler.squares.requires_grad and sampler.seen.tolist() == [2, 2, 2]  # t = 1 is of the last bin


# Refusals


@pytest.mark.parametrize("make, message", [
    (lambda: UniformLogSNRTimes(-1.0, 1.0), "log_snr_max > log_snr_min, both finite, must hold; got -1.0 and 1.0"),
    (lambda: UniformLogSNRTimes(math.inf), "both finite, must hold; got inf and -6.0"),
    (lambda: LogNormalTimes(P_std=0.0), "P_std must be above 0; got 0.0"),
    (lambda: LossAwareTimes(bins=0), "bins >= 1, 0 <= decay < 1, 0 < uniform <= 1; got 0, 0.9 and 0.01"),
    (lambda: LossAwareTimes(decay=1.0), "got 100, 1.0 and 0.01"),
    (lambda: LossAwareTimes(uniform=0.0), "got 100, 0.9 and 0.0"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
