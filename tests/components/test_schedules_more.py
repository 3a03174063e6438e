"""Exploding variance, EDM's σ, straight-line flow, shifts, and tables rescaled to zero terminal SNR."""

import math

import pytest
import torch

from components.schedules import (
    BETA_SCHEDULES,
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


EXPLODING = {
    "exploding": VarianceExplodingSchedule,
    "exploding to 1": lambda: VarianceExplodingSchedule(0.02, 1.0),
    "EDM": EDMSchedule,
    "EDM, ρ = 3": lambda: EDMSchedule(0.01, 20.0, 3.0),
    "exploding, shifted": lambda: ShiftedSchedule(VarianceExplodingSchedule(), 2.0),
    "exploding to 1, shifted twice": lambda: ShiftedSchedule(ShiftedSchedule(MAKE["exploding to 1"](), 2.0), 1.5),
}
FLOWS = {"flow": FlowSchedule, "flow, shifted": lambda: ShiftedSchedule(FlowSchedule(), 3.0)}
PRESERVING = {
    "cosine, shifted": lambda: ShiftedSchedule(CosineSchedule(), 4.0),
    "log-SNR linear, shifted back": lambda: ShiftedSchedule(LogSNRLinearSchedule(), 0.5),
    "learned, shifted": lambda: ShiftedSchedule(LearnedSchedule(), 2.0),
    "table, shifted": lambda: ShiftedSchedule(BetaSchedule(), 2.0),
    **{f"{name} to pure noise": lambda name=name: BetaSchedule(name, rescale_betas_zero_snr=True)
       for name in BETA_SCHEDULES},
    "linear to pure noise, T = 7": lambda: BetaSchedule("linear", 7, rescale_betas_zero_snr=True),
}  # fmt: skip
MAKE = {**EXPLODING, **FLOWS, **PRESERVING}
EVERY = pytest.mark.parametrize("schedule", [make() for make in MAKE.values()], ids=list(MAKE))
TABLES = pytest.mark.parametrize("name", list(BETA_SCHEDULES))


# What every schedule keeps


@EVERY
def test_slope_is_the_derivative_of_log_snr(schedule):
    t = (torch.rand(500, dtype=F64) * 0.98 + 0.01).requires_grad_()
    (expected,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.slope(t), expected, rtol=1e-9, atol=0)
    assert (schedule.slope(t) < 0).all()


@EVERY
def test_time_inverts_log_snr(schedule):
    t = torch.rand(500, dtype=F64) * 0.98 + 0.01
    assert (schedule.time(schedule.log_snr(t)) - t).abs().max() < 1e-12
    middle = schedule.log_snr(0.5).item()
    assert schedule.time(middle).item() == pytest.approx(0.5, abs=1e-12)


@EVERY
def test_coefficients_are_float64_and_a_float_means_a_batch_of_one(schedule):
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5], dtype=torch.bfloat16)):
        values = (*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.slope(t), *schedule.step(0.25, t))
        assert all(value.dtype == F64 for value in values)
    batch = schedule.alpha_sigma(torch.tensor([0.3, 0.7], dtype=F64))
    for i, t in enumerate((0.3, 0.7)):
        for value, expected in zip(schedule.alpha_sigma(t), batch):
            assert value.item() == pytest.approx(expected[i].item(), rel=1e-14)


@EVERY
def test_trap_27_the_first_of_1000_levels_are_distinct_and_noisy(schedule):
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    with torch.autocast("cpu", torch.bfloat16):
        q = schedule.marginal(torch.ones(1000, 1), t)
    assert q.std.dtype == torch.float32 and (q.std > 0).all() and len(q.std[:100].unique()) == 100


# Ends


PURE = [name for name in MAKE if "pure" in name or name in FLOWS or name == "cosine, shifted"]


@pytest.mark.parametrize("name", PURE)
def test_both_ends_of_what_runs_from_clean_to_pure_noise_are_exact(name):
    schedule = MAKE[name]()
    assert schedule.alpha_sigma(1.0) == (0, 1) and schedule.log_snr(1.0) == -math.inf
    assert schedule.alpha_sigma(0.0) == (1, 0) and schedule.log_snr(0.0) == math.inf and schedule.noiseless(0.0)
    assert schedule.time(math.inf) == 0 and schedule.time(-math.inf) == 1


@pytest.mark.parametrize("name, low, high", [
    ("exploding", 0.01, 50.0), ("EDM", 0.002, 80.0), ("EDM, ρ = 3", 0.01, 20.0), ("exploding to 1", 0.02, 1.0),
    ("exploding, shifted", 0.02, 100.0), ("exploding to 1, shifted twice", 0.06, 3.0),
])  # fmt: skip
def test_the_ends_of_exploding_variance_are_those_asked_for(name, low, high):
    schedule = MAKE[name]()
    assert schedule.alpha_sigma(0.0)[1].item() == pytest.approx(low, rel=1e-12)
    assert schedule.alpha_sigma(1.0)[1].item() == pytest.approx(high, rel=1e-12)
    assert schedule.terminal_std == pytest.approx(high, rel=1e-12) and not schedule.noiseless(0.0)


@pytest.mark.parametrize("name", [*FLOWS, *PRESERVING])
def test_others_start_from_unit_noise(name):
    assert MAKE[name]().terminal_std == 1


@pytest.mark.parametrize("name", PURE)
def test_the_posterior_from_pure_noise_is_the_marginal(name):
    x, x_t = torch.randn(2, 3, 4, dtype=F64)
    schedule = MAKE[name]()
    q, marginal = schedule.posterior(x_t, x, 0.3, 1.0), schedule.marginal(x, 0.3)
    torch.testing.assert_close(q.mean, marginal.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.std, marginal.std, rtol=1e-12, atol=0)


# Their formulas


def test_exploding_variance_is_geometric():
    t = torch.linspace(0, 1, 11, dtype=F64)
    sigma = VarianceExplodingSchedule(0.01, 50.0).alpha_sigma(t)[1]
    torch.testing.assert_close(sigma, 0.01 * 5000**t, rtol=1e-12, atol=0)


def test_edm_s_sigmas():
    t = torch.linspace(0, 1, 11, dtype=F64)
    expected = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    torch.testing.assert_close(EDMSchedule().alpha_sigma(t)[1], expected, rtol=1e-11, atol=0)


def test_a_flow_is_a_straight_line():
    t = torch.linspace(0, 1, 11, dtype=F64)
    alpha, sigma = FlowSchedule().alpha_sigma(t)
    assert torch.equal(alpha, 1 - t) and torch.equal(sigma, t)


@pytest.mark.parametrize("name", ["log-SNR linear", "flow", "exploding"])
def test_a_shift_multiplies_sigma_over_alpha(name):
    base = {"log-SNR linear": LogSNRLinearSchedule, **MAKE}[name]()
    t = torch.rand(50, dtype=F64)
    (a, s), (alpha, sigma) = base.alpha_sigma(t), ShiftedSchedule(base, 3.0).alpha_sigma(t)
    torch.testing.assert_close(sigma / alpha, 3 * s / a, rtol=1e-11, atol=0)


def test_shifts_compose_and_a_shift_of_one_is_none():
    t = torch.rand(50, dtype=F64)
    base = CosineSchedule()
    twice, once = ShiftedSchedule(ShiftedSchedule(base, 2.0), 3.0), ShiftedSchedule(base, 6.0)
    torch.testing.assert_close(twice.log_snr(t), once.log_snr(t), rtol=1e-12, atol=1e-12)
    assert torch.equal(ShiftedSchedule(base, 1.0).log_snr(t), base.log_snr(t))


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


# Against diffusers


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    assert module.DDPMScheduler  # it imports when asked: seconds
    return module


@TABLES
@pytest.mark.parametrize("steps", [1000, 100])
def test_rescaled_tables_are_those_of_diffusers(diffusers, name, steps):
    theirs = diffusers.DDPMScheduler(steps, beta_schedule=name, rescale_betas_zero_snr=True).alphas_cumprod.double()
    schedule = BetaSchedule(name, steps, rescale_betas_zero_snr=True)
    assert (schedule.alphas_cumprod - theirs).abs().max() < 1e-6
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, steps + 1, dtype=F64) / steps)
    assert (alpha.square() - theirs).abs().max() < 1e-6 and (1 - sigma.square() - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_flows_are_those_of_diffusers(diffusers, shift):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=shift).sigmas.double()
    t = torch.arange(1000, 0, -1, dtype=F64) / 1000
    assert (ShiftedSchedule(FlowSchedule(), shift).alpha_sigma(t)[1] - theirs).abs().max() < 1e-6


def test_edm_s_sigmas_are_those_of_diffusers(diffusers):
    theirs = diffusers.EDMEulerScheduler()
    theirs.set_timesteps(18)
    sigma = EDMSchedule(0.002, 80.0).alpha_sigma(torch.linspace(1, 0, 18, dtype=F64))[1]
    torch.testing.assert_close(theirs.sigmas[:18].double(), sigma, rtol=1e-5, atol=0)


# Refusals


@pytest.mark.parametrize("make, message", [
    (lambda: VarianceExplodingSchedule(0.0, 1.0), "0 < sigma_min < sigma_max must hold; got 0.0 and 1.0"),
    (lambda: VarianceExplodingSchedule(2.0, 1.0), "0 < sigma_min < sigma_max must hold; got 2.0 and 1.0"),
    (lambda: EDMSchedule(sigma_max=math.inf), "0 < sigma_min < sigma_max must hold; got 0.002 and inf"),
    (lambda: EDMSchedule(rho=0.0), "rho must be above 0; got 0.0"),
    (lambda: EDMSchedule(rho=math.nan), "rho must be above 0; got nan"),
    (lambda: ShiftedSchedule(FlowSchedule(), 0.0), "shift must be above 0; got 0.0"),
    (lambda: ShiftedSchedule(FlowSchedule(), math.inf), "shift must be above 0; got inf"),
    (lambda: BetaSchedule("linear", 1, rescale_betas_zero_snr=True), "num_train_timesteps of at least 2; got 1"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
