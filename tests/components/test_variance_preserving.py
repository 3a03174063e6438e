import pytest
import torch

from components.distributions import Delta
from components.schedules import VariancePreservingSchedule

F64 = torch.float64
SCHEDULES = pytest.mark.parametrize("schedule", [
    VariancePreservingSchedule(), VariancePreservingSchedule(start=0.0), VariancePreservingSchedule(2.0, 2.0, 0.1),
], ids=["default", "from-zero", "constant"])  # fmt: skip


def test_beta_runs_from_beta_min_to_beta_max():
    schedule = VariancePreservingSchedule(0.1, 20.0, 1e-3)
    assert schedule.first == pytest.approx(0.1 + 1e-3 * 19.9)
    assert schedule.first + schedule.rise * schedule.length == pytest.approx(20.0)


@SCHEDULES
def test_slope_and_time_belong_to_log_snr(schedule):
    t = torch.linspace(0.01, 1, 60, dtype=F64, requires_grad=True)
    log_snr = schedule.log_snr(t)
    (slope,) = torch.autograd.grad(log_snr.sum(), t)
    torch.testing.assert_close(schedule.slope(t), slope, rtol=1e-8, atol=1e-8)
    assert (slope < 0).all()
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=1e-10, atol=1e-12)


def test_it_starts_clean_and_the_last_step_is_the_data_itself():
    schedule, x = VariancePreservingSchedule(), torch.randn(4, 3)
    assert schedule.noiseless(0.0) and not schedule.noiseless(1e-6) and schedule.log_snr(0.0) == torch.inf
    assert schedule.time(torch.tensor(torch.inf)) == 0
    assert isinstance(schedule.posterior(torch.randn(4, 3), x, 0.0, 0.25), Delta)
    batch = schedule.posterior(torch.randn(4, 3), x, torch.tensor([0, 0.25, 0, 0.5]), torch.tensor([0.5, 0.5, 1, 1]))
    assert torch.equal(batch.mean[[0, 2]], x[[0, 2]]) and not batch.std[[0, 2]].any() and batch.std[[1, 3]].all()
    assert schedule.alpha_sigma(1.0)[0].square().item() == pytest.approx(4.319e-5, rel=1e-3)


@pytest.mark.parametrize("arguments, message", [
    ((0.0, 20.0), "0 < beta_min <= beta_max must hold; got 0.0 and 20.0"),
    ((2.0, 1.0), "0 < beta_min <= beta_max must hold; got 2.0 and 1.0"),
    ((0.1, 20.0, 1.0), r"start must be in \[0, 1\); got 1.0"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VariancePreservingSchedule(*arguments)
