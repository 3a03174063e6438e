import pytest
import torch

from components.distributions import Delta
from components.schedules import VariancePreservingSchedule

F64 = torch.float64
SCHEDULES = pytest.mark.parametrize("schedule", [
    VariancePreservingSchedule(), VariancePreservingSchedule(start=0.0), VariancePreservingSchedule(2.0, 2.0, 0.1),
], ids=["default", "from-zero", "constant"])  # fmt: skip


def betas(schedule, steps):
    """β_k = 1 - ᾱ_{k/T}/ᾱ_{(k-1)/T}."""
    t = torch.arange(steps + 1, dtype=F64) / steps
    alpha, _ = schedule.alpha_sigma(t)
    return 1 - (alpha[1:] / alpha[:-1]).square()


def test_four_steps_are_those_of_denoising_diffusion_gans():
    """theory.md, section 3: 1e-5; the same by the schedule's own steps."""
    schedule, expected = VariancePreservingSchedule(), torch.tensor([0.47826, 0.84921, 0.95642, 0.98740], dtype=F64)
    torch.testing.assert_close(betas(schedule, 4), expected, rtol=0, atol=1e-5)
    steps = torch.stack([schedule.step((k - 1) / 4, k / 4)[1] for k in range(1, 5)])
    torch.testing.assert_close(steps, expected, rtol=0, atol=1e-5)
    # Longer steps are products of shorter ones.
    torch.testing.assert_close(1 - (1 - betas(schedule, 4)).view(2, 2).prod(1), betas(schedule, 2))


@SCHEDULES
def test_row_16_alpha_is_the_integral_of_beta(schedule):
    """-log ᾱ_t against the trapezoid rule, which is exact for a straight line: 1e-12."""
    t = torch.linspace(0, 1, 101, dtype=F64)
    u = 1 - schedule.length + schedule.length * t
    beta = schedule.first + schedule.rise * schedule.length * t
    expected = torch.cumulative_trapezoid(beta, u)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(-2 * alpha[1:].log(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t), rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.log_snr(t)[1:], 2 * (alpha / sigma).log()[1:], rtol=1e-10, atol=1e-10)


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


@SCHEDULES
def test_row_14_the_marginal_composes(schedule):
    s, t = torch.rand(2, 200, dtype=F64, generator=torch.Generator().manual_seed(0)).sort(0).values
    ratio, variance = schedule.step(s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
    torch.testing.assert_close(ratio * alpha_s, alpha_t, rtol=0, atol=1e-12)
    composed = (ratio * sigma_s).square() + variance
    torch.testing.assert_close(composed, sigma_t.square(), rtol=0, atol=1e-12)


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
