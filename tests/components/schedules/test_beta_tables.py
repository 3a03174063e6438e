"""DDPM's tables of β, plain and rescaled to zero terminal SNR."""

import re

import pytest
import torch
from answers import F64

from components.schedules import BETA_SCHEDULES, BetaSchedule

TABLES = pytest.mark.parametrize("name", list(BETA_SCHEDULES))
RESCALED = pytest.mark.parametrize("rescaled", [False, True], ids=["plain", "to pure noise"])


@TABLES
@RESCALED
@pytest.mark.parametrize("steps", [1000, 100])
def test_the_tables_are_those_of_diffusers(name, rescaled, steps):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(steps, beta_schedule=name, rescale_betas_zero_snr=rescaled).alphas_cumprod.double()
    schedule = BetaSchedule(name, steps, rescale_betas_zero_snr=rescaled)
    assert (schedule.alphas_cumprod - theirs).abs().max() < 1e-6
    # diffusers' timestep k is t = (k+1)/T
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, steps + 1, dtype=F64) / steps)
    assert (alpha.square() - theirs).abs().max() < 1e-6 and (1 - sigma.square() - theirs).abs().max() < 1e-6


@TABLES
def test_the_nodes_are_products_of_the_table(name):
    schedule = BetaSchedule(name, 1000)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, 1001, dtype=F64) / 1000)
    product = (1 - schedule.betas).cumprod(0)
    torch.testing.assert_close(alpha.square(), product, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma.square(), 1 - product, rtol=1e-10, atol=0)
    ratio, variance = schedule.step(0.5, 0.501)
    assert variance.item() == pytest.approx(schedule.betas[500].item(), rel=1e-10)
    assert ratio.square().item() == pytest.approx(1 - schedule.betas[500].item(), rel=1e-12)


@TABLES
def test_the_posterior_s_precision_is_the_sum_of_two(name):
    schedule, t = BetaSchedule(name, 50), torch.arange(2, 51, dtype=F64) / 50
    beta, level = schedule.betas, schedule.alphas_cumprod
    expected = (1 - beta[1:]) / beta[1:] + 1 / (1 - level[:-1])
    std = schedule.posterior_coefficients(t - 1 / 50, t).std
    torch.testing.assert_close(std.square().reciprocal(), expected, rtol=1e-9, atol=0)


def test_the_first_posterior_is_the_data_alone():
    on_x_t, on_x, std, large = (c.item() for c in BetaSchedule().posterior_coefficients(0.0, 0.001))
    assert [on_x_t, on_x, std, large**2] == pytest.approx([0, 1, 0, 1e-4])


@TABLES
def test_time_is_exact_at_the_nodes(name):
    schedule, nodes = BetaSchedule(name, 100), torch.arange(1, 101, dtype=F64) / 100
    assert (schedule.time(schedule.log_snr(nodes)) - nodes).abs().max() < 1e-12


@TABLES
def test_rescaled_tables_keep_their_first_level_and_are_straight_at_the_end(name):
    plain, rescaled = BetaSchedule(name, 100), BetaSchedule(name, 100, rescale_betas_zero_snr=True)
    assert rescaled.alphas_cumprod[0].item() == pytest.approx(plain.alphas_cumprod[0].item(), rel=1e-12)
    assert rescaled.alphas_cumprod[-1] == 0 and rescaled.betas[-1] == 1
    before, half, quarter = (rescaled.alpha_sigma(t)[0].item() for t in (0.99, 0.995, 0.9975))
    assert half == pytest.approx(before / 2, rel=1e-9) and quarter == pytest.approx(before / 4, rel=1e-9)
    # √ᾱ is shifted and scaled: differences keep their proportions
    roots = [table.alphas_cumprod.sqrt() for table in (plain, rescaled)]
    slopes = [root.diff() / root.diff().sum() for root in roots]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-12)


def test_a_table_is_no_state_and_follows_the_module():
    schedule = BetaSchedule()
    assert not schedule.state_dict() and schedule.to(torch.float64).alphas_cumprod.dtype == F64


@pytest.mark.parametrize("make, message", [
    (lambda: BetaSchedule("quadratic"), "beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, sig"),
    (lambda: BetaSchedule("quadratic"), "; got 'quadratic'"),
    (lambda: BetaSchedule(num_train_timesteps=0), "num_train_timesteps must be at least 1; got 0"),
    (lambda: BetaSchedule(beta_start=0.02, beta_end=0.01), "beta_start <= beta_end < 1 must hold; got 0.02 and 0.01"),
    (lambda: BetaSchedule(beta_start=0.0), "0 < beta_start <= beta_end < 1 must hold; got 0.0 and 0.02"),
    (lambda: BetaSchedule("linear", 1, rescale_betas_zero_snr=True), "num_train_timesteps of at least 2; got 1"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
