"""Random times of a batch, stratified over it and over ranks."""

import math

import pytest
import torch
from answers import F64, generator

from components.losses import (
    LogNormalTimes,
    LossAwareTimes,
    TimeSampler,
    UniformLogSNRTimes,
    UniformTimes,
    low_discrepancy,
    times,
)
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
)

COSINE = CosineSchedule()
EVERY = pytest.mark.parametrize("make", [UniformTimes, UniformLogSNRTimes, LogNormalTimes, LossAwareTimes])


def one_in_each_stratum(u):
    """Whether each n-th of [0, 1) has one of the n values u: then each is uniform, as the offset is."""
    return ((u * len(u)).floor().sort().values == torch.arange(len(u))).all()


def learned(sampler, losses):
    """The sampler after one loss for each bin."""
    n = sampler.bins
    sampler.learn((torch.arange(n, dtype=F64) + 0.5) / n, torch.as_tensor(losses, dtype=F64))
    return sampler


# low_discrepancy


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_every_stratum_has_one_time(n):
    for _ in range(20):
        t = low_discrepancy(n)
        assert t.shape == (n,) and t.dtype == F64 and one_in_each_stratum(t) and t.min() >= 0 and t.max() < 1
    # evenly spaced, too
    torch.testing.assert_close(t.sort().values.diff(), torch.full((n - 1,), 1 / n, dtype=F64), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_each_time_is_uniform(place):
    """Kolmogorov's distance of 2000 draws from uniform: above 1.95/√n once in a thousand."""
    t = torch.stack([low_discrepancy(8)[place] for _ in range(2000)]).sort().values
    distance = (t - torch.arange(2000) / 2000).abs().max()
    assert distance < 1.95 / math.sqrt(2000) + 1 / 2000


def test_a_mean_over_a_batch_varies_less_than_with_independent_times():
    batches = torch.stack([low_discrepancy(32) for _ in range(500)])
    assert batches.square().mean(1).var() < 0.05 * torch.rand(500, 32).square().mean(1).var()


def test_apart_from_training_each_process_has_its_own_strata(monkeypatch):
    monkeypatch.setattr(times, "rank_and_world", lambda: (2, 3))
    monkeypatch.setattr(times, "shared", lambda u: pytest.fail("no other process is here"))
    assert one_in_each_stratum(low_discrepancy(5))


def test_one_process_alone_needs_no_group():
    assert low_discrepancy(5, across_ranks=True).shape == (5,)


# Every sampler


@EVERY
@pytest.mark.parametrize("schedule", [COSINE, LogSNRLinearSchedule(), BetaSchedule(), FlowSchedule(), EDMSchedule()])
def test_times_are_in_0_to_1_and_have_weights(make, schedule):
    sampler = make()
    for n in (1, 7):
        t, weight = sampler(n, schedule)
        assert t.shape == weight.shape == (n,) and t.dtype == weight.dtype == F64
        assert ((t >= 0) & (t <= 1)).all() and (weight > 0).all() and not t.requires_grad
    assert not torch.equal(sampler(7, schedule)[0], sampler(7, schedule)[0])


@pytest.mark.parametrize("draw", [
    lambda generator: low_discrepancy(7, generator=generator),
    *[lambda generator, make=make: make()(7, COSINE, generator=generator)[0]
      for make in (UniformTimes, UniformLogSNRTimes, LogNormalTimes, LossAwareTimes)],
])  # fmt: skip
def test_a_generator_repeats_and_leaves_torch_s_own_alone(draw):
    state = torch.get_rng_state()
    assert torch.equal(draw(generator()), draw(generator())) and not torch.equal(draw(generator()), draw(generator(2)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("draw", [
    lambda n: low_discrepancy(n, across_ranks=True),
    *[lambda n, make=make: make()(n, COSINE, across_ranks=True)[0]
      for make in (UniformTimes, UniformLogSNRTimes, LogNormalTimes, LossAwareTimes)],
])  # fmt: skip
def test_trap_33_ranks_share_one_set_of_strata(draw, monkeypatch):
    offset = torch.rand((), dtype=F64)
    monkeypatch.setattr(times, "shared", lambda u: offset)
    whole, parts = draw(15).sort().values, []
    for rank in range(3):
        monkeypatch.setattr(times, "rank_and_world", lambda rank=rank: (rank, 3))
        parts.append(draw(5))
    torch.testing.assert_close(torch.cat(parts).sort().values, whole, rtol=1e-9, atol=1e-12)


def test_a_sampler_that_gives_no_times_says_so():
    with pytest.raises(TypeError, match="TimeSampler is abstract: a time sampler must define forward"):
        TimeSampler()(4, COSINE)


@pytest.mark.parametrize("make", [UniformTimes, UniformLogSNRTimes, LogNormalTimes])
def test_most_samplers_have_no_state_and_ignore_losses(make):
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


def test_it_is_uniform_until_every_bin_has_a_loss():
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
    sampler = learned(learned(LossAwareTimes(bins=4, decay=0.75), [1, 1, 1, 1]), [3, 1, 1, 1])
    assert sampler.squares.tolist() == pytest.approx([0.75 + 0.25 * 9, 1, 1, 1])
    sampler.learn(torch.tensor([0.3]), torch.tensor([2.0]))  # the second bin only
    assert sampler.squares.tolist() == pytest.approx([3, 0.75 + 0.25 * 4, 1, 1])


def test_times_are_drawn_as_often_as_probabilities_say():
    sampler = learned(LossAwareTimes(bins=5), [1, 2, 4, 8, 1])
    t, _ = sampler(1000, COSINE)
    count = torch.bincount((t * 5).floor().long(), minlength=5)
    assert (count - 1000 * sampler.probabilities).abs().max() <= 1
    for i in range(5):  # and evenly within each bin
        inside = (t[(t * 5).floor() == i] * 5 - i).sort().values
        torch.testing.assert_close(inside.diff(), torch.full_like(inside[1:], inside.diff()[0]), rtol=1e-6, atol=0)


def test_weights_keep_the_mean_that_of_uniform_times():
    """E[w L(t)] = ∫ L, of which 10⁵ strata leave an error of 1e-3 in the bins that are hardly ever drawn."""
    sampler = learned(LossAwareTimes(bins=20), torch.linspace(0.1, 7, 20).square())
    t, weight = sampler(100_000, COSINE)
    for loss, integral in (
        (torch.ones_like(t), 1), (t, 1 / 2), (t.square(), 1 / 3), ((5 * t).exp(), (math.exp(5) - 1) / 5),
    ):  # fmt: skip
        assert (weight * loss).mean().item() == pytest.approx(integral, rel=1e-3)


def test_the_weighted_loss_hardly_varies_between_bins():
    """Σ_b p_b (L_b/(n p_b))² is (mean L)² at p ∝ L, the least there is; what stays uniform costs 3%."""
    losses = torch.linspace(0.1, 7, 20, dtype=F64).square()
    p = learned(LossAwareTimes(bins=20), losses).probabilities
    aware, uniform = (
        ((losses / 20).square() / q).sum() / losses.mean().square() for q in (p, torch.full_like(p, 1 / 20))
    )
    assert 1 <= aware < 1.03 and uniform > 1.6


def test_a_checkpoint_holds_what_it_learned():
    sampler = learned(LossAwareTimes(bins=6), [1, 2, 3, 4, 5, 6])
    other = LossAwareTimes(bins=6)
    other.load_state_dict(sampler.state_dict())
    assert sorted(sampler.state_dict()) == ["counts", "squares"]
    assert torch.equal(other.probabilities, sampler.probabilities)
    t, weight = sampler(9, COSINE, generator=generator())
    again, same = other(9, COSINE, generator=generator())
    assert torch.equal(t, again) and torch.equal(weight, same)


def test_what_it_learns_is_of_all_ranks(monkeypatch):
    """Two shards of a batch, of different sizes in a bin, are as one batch."""
    t, losses = torch.rand(40, dtype=F64), torch.rand(40, dtype=F64)
    one = LossAwareTimes(bins=4)
    one.learn(t, losses)
    sums = []
    monkeypatch.setattr(times, "sum_over_ranks", lambda both: sums.append(both.clone()) or both)
    for shard in (slice(13), slice(13, None)):
        LossAwareTimes(bins=4).learn(t[shard], losses[shard])
    monkeypatch.setattr(times, "sum_over_ranks", lambda both: sums[0] + sums[1])
    two = LossAwareTimes(bins=4)
    two.learn(t[:13], losses[:13])
    torch.testing.assert_close(two.squares, one.squares, rtol=1e-12, atol=0)
    assert torch.equal(two.counts, one.counts)


def test_learning_takes_no_gradient_and_losses_may_be_zero():
    sampler = learned(LossAwareTimes(bins=3), torch.zeros(3))
    assert sampler.probabilities.tolist() == pytest.approx([1 / 3] * 3) and sampler(4, COSINE)[0].isfinite().all()
    sampler.learn(torch.tensor([0.0, 0.5, 1.0]), torch.ones(3, requires_grad=True))
    assert not sampler.squares.requires_grad and sampler.counts.tolist() == [2, 2, 2]  # t = 1 is of the last bin


# Refusals


@pytest.mark.parametrize("make, message", [
    (lambda: UniformLogSNRTimes(-1.0, 1.0), "log_snr_max > log_snr_min, both finite, must hold; got -1.0 and 1.0"),
    (lambda: UniformLogSNRTimes(math.inf), "both finite, must hold; got inf and -6.0"),
    (lambda: LogNormalTimes(P_std=0.0), "P_std must be above 0; got 0.0"),
    (lambda: LossAwareTimes(bins=0), "bins must be at least 1, .* got 0, 0.9 and 0.01"),
    (lambda: LossAwareTimes(decay=1.0), "got 100, 1.0 and 0.01"),
    (lambda: LossAwareTimes(uniform=0.0), "got 100, 0.9 and 0.0"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
