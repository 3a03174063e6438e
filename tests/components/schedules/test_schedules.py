"""What every schedule has in common, its ends, and the formulas of those in closed form."""

import math
import re

import pytest
import torch
from answers import F64, generator
from torch import nn

from components.distributions import Delta, Normal
from components.schedules import (
    BETA_SCHEDULES,
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    PosteriorCoefficients,
    Schedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)


def learned():
    """A learned schedule with random weights."""
    schedule = LearnedSchedule()
    for p in (schedule.log_weight, schedule.log_steepness, schedule.bias):
        nn.init.normal_(p)
    return schedule


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
    "cosine": CosineSchedule,
    "cosine, truncated": lambda: CosineSchedule(13.3, -5.0),
    "cosine to pure noise": lambda: CosineSchedule(13.3),
    "cosine, shifted": lambda: ShiftedSchedule(CosineSchedule(), 4.0),
    "log-SNR linear": LogSNRLinearSchedule,
    "log-SNR linear, shifted back": lambda: ShiftedSchedule(LogSNRLinearSchedule(), 0.5),
    "learned": LearnedSchedule,
    "learned, random": learned,
    "learned, shifted": lambda: ShiftedSchedule(LearnedSchedule(), 2.0),
    **{name: lambda name=name: BetaSchedule(name) for name in BETA_SCHEDULES},
    "linear, T = 7": lambda: BetaSchedule("linear", 7),
    "table, shifted": lambda: ShiftedSchedule(BetaSchedule(), 2.0),
    **{f"{name} to pure noise": lambda name=name: BetaSchedule(name, rescale_betas_zero_snr=True)
       for name in BETA_SCHEDULES},
    "linear to pure noise, T = 7": lambda: BetaSchedule("linear", 7, rescale_betas_zero_snr=True),
    "variance preserving": VariancePreservingSchedule,
    "variance preserving, from zero": lambda: VariancePreservingSchedule(start=0.0),
    "variance preserving, constant": lambda: VariancePreservingSchedule(2.0, 2.0, 0.1),
}  # fmt: skip
MAKE = {**EXPLODING, **FLOWS, **PRESERVING}
EVERY = pytest.mark.parametrize("schedule", [make() for make in MAKE.values()], ids=list(MAKE))
CLEAN = [
    name
    for name in MAKE
    if name in ("cosine", "cosine, shifted", "linear, T = 7", "table, shifted", *FLOWS, *BETA_SCHEDULES)
    or name.startswith("variance preserving")
    or (name.endswith(("to pure noise", "to pure noise, T = 7")) and name != "cosine to pure noise")
]
"""Those without noise at t = 0."""
PURE = ["cosine", "cosine, shifted", *FLOWS, *(name for name in MAKE if "to pure noise" in name)]
"""Those of pure noise at t = 1."""


def at_random(n=500):
    """Times away from the ends."""
    return torch.rand(n, dtype=F64) * 0.98 + 0.01


# Every schedule


@EVERY
def test_the_transition_composes(schedule):
    r, s, t = at_random((3, 200)).sort(0).values
    (long, wide), (first, narrow), (second, rest) = schedule.step(r, t), schedule.step(r, s), schedule.step(s, t)
    torch.testing.assert_close(first * second, long, rtol=1e-12, atol=1e-12)
    # relative to σ_t²: where variance explodes it is in the thousands
    error = (second.square() * narrow + rest - wide).abs() / schedule.alpha_sigma(t)[1].square().clamp(min=1)
    assert error.max() < 1e-12


@EVERY
def test_slope_is_the_derivative_of_log_snr(schedule):
    t = at_random().requires_grad_()
    (expected,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    torch.testing.assert_close(schedule.slope(t), expected, rtol=1e-9, atol=0)
    assert (schedule.slope(t) < 0).all()


@EVERY
def test_time_inverts_log_snr(schedule):
    t = at_random()
    assert (schedule.time(schedule.log_snr(t)) - t).abs().max() < 1e-12
    assert schedule.time(schedule.log_snr(0.5).item()).item() == pytest.approx(0.5, abs=1e-12)


@EVERY
def test_a_float_a_scalar_and_a_batch_mean_the_same_time(schedule):
    batch = schedule.alpha_sigma(torch.tensor([0.3, 0.7], dtype=F64))
    for i, t in enumerate((0.3, 0.7)):
        for value, expected in zip(schedule.alpha_sigma(t), batch):
            assert value.item() == pytest.approx(expected[i].item(), rel=1e-14)
        scalar = schedule.alpha_sigma(torch.tensor(t, dtype=F64))
        assert torch.equal(torch.stack(schedule.alpha_sigma(t)), torch.stack(scalar))


@EVERY
def test_coefficients_are_float64_whatever_the_time(schedule):
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5], dtype=torch.bfloat16)):
        values = (*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.slope(t), *schedule.step(0.25, t))
        assert all(value.dtype == F64 for value in (*values, *schedule.posterior_coefficients(0.25, t)))


@EVERY
def test_images_get_one_coefficient_an_example(schedule):
    t, x = torch.tensor([0.2, 0.6], dtype=F64), torch.randn(2, 3, 4, 4, dtype=F64)
    q = schedule.marginal(x, t)
    for i in range(2):
        one = schedule.marginal(x[i : i + 1], t[i])
        torch.testing.assert_close(q.mean[i], one.mean[0], rtol=1e-14, atol=0)
        assert q.std[i].item() == pytest.approx(one.std.item(), rel=1e-14)


@EVERY
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
def test_trap_27_the_first_of_1000_levels_are_distinct_and_noisy(schedule, autocast):
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, sigma = schedule.alpha_sigma(t)
        q = schedule.marginal(torch.ones(1000, 1), t)
    assert (sigma[:10] > 0).all() and len(sigma.unique()) == 1000
    assert q.std.dtype == torch.float32 and (q.std > 0).all() and len(q.std[:100].unique()) == 100


def test_trap_27_bf16_data_are_noised_in_float32():
    t = torch.arange(1, 1001) / 1000
    q = BetaSchedule().marginal(torch.ones(1000, 1, dtype=torch.bfloat16), t)
    assert q.std.dtype == torch.float32 and (q.std > 0).all() and len(q.std.unique()) > 990


# Corruption


@EVERY
def test_corrupt_is_alpha_x_plus_sigma_epsilon_to_the_bit(schedule):
    x, t = torch.randn(5, 3, 4, dtype=F64), at_random(5)
    level = schedule.level(t, x)
    x_t, epsilon = schedule.corrupt(x, t, generator())
    alpha, sigma = (c.view(5, 1, 1) for c in schedule.alpha_sigma(t))
    assert torch.equal(x_t, alpha * x + sigma * epsilon) and torch.equal(level.t, t)
    for time in (t, level):  # a level is a time whose coefficients are not computed again
        again = schedule.corrupt(x, time, generator())
        assert torch.equal(again[0], x_t) and torch.equal(again[1], epsilon)
    assert not torch.equal(schedule.corrupt(x, t, generator(2))[1], epsilon)


@pytest.mark.parametrize("name", ["cosine", "EDM", "flow, shifted"])
def test_corrupt_draws_from_the_marginal(name):
    """Mean α x and variance σ² of 100,000 draws, within four standard errors."""
    schedule, n = MAKE[name](), 100_000
    x_t, epsilon = schedule.corrupt(torch.full((n, 1), 0.7, dtype=F64), 0.4)
    q = schedule.marginal(torch.tensor([[0.7]], dtype=F64), 0.4)
    assert (x_t.mean() - q.mean).abs() < 4 * q.std / math.sqrt(n)
    assert (x_t.var() / q.std.square() - 1).abs() < 4 * math.sqrt(2 / n) and abs(epsilon.mean()) < 4 / math.sqrt(n)


def test_corrupt_leaves_the_global_generator_alone_when_it_is_given_one():
    x, schedule, state = torch.randn(4, 3), CosineSchedule(), torch.get_rng_state()
    schedule.corrupt(x, 0.5, generator())
    assert torch.equal(state, torch.get_rng_state())
    schedule.corrupt(x, 0.5)
    assert not torch.equal(state, torch.get_rng_state())


def test_corrupt_widens_half_precision():
    x_t, epsilon = CosineSchedule().corrupt(torch.ones(2, 3, dtype=torch.bfloat16), 0.5)
    assert x_t.dtype == epsilon.dtype == torch.float32


def test_a_level_is_a_time_with_its_coefficients():
    schedule, x = CosineSchedule(), torch.zeros(3, 2)
    for t in (0.3, torch.tensor(0.3, dtype=F64), torch.full((3,), 0.3, dtype=F64)):
        level = schedule.level(t, x)
        assert level.t.shape == torch.as_tensor(t).shape and level.t.dtype == F64
        assert torch.equal(torch.stack(level[1:]), torch.stack(schedule.alpha_sigma(t)))


# The ends


@pytest.mark.parametrize("name", CLEAN)
def test_a_schedule_that_starts_clean_is_noiseless_at_zero_only(name):
    schedule = MAKE[name]()
    assert schedule.alpha_sigma(0.0) == (1, 0) and schedule.log_snr(0.0) == math.inf and schedule.time(math.inf) == 0
    assert schedule.noiseless(0.0) and not schedule.noiseless(1e-6) and not schedule.noiseless(torch.zeros(2))


@pytest.mark.parametrize("name", [name for name in MAKE if name not in CLEAN])
def test_other_schedules_start_with_noise(name):
    assert not MAKE[name]().noiseless(0.0)


@pytest.mark.parametrize("name", PURE)
def test_pure_noise_is_exact(name):
    schedule = MAKE[name]()
    assert schedule.alpha_sigma(1.0) == (0, 1) and schedule.log_snr(1.0) == -math.inf and schedule.time(-math.inf) == 1


@pytest.mark.parametrize("name, low, high", [
    ("exploding", 0.01, 50.0), ("EDM", 0.002, 80.0), ("EDM, ρ = 3", 0.01, 20.0), ("exploding to 1", 0.02, 1.0),
    ("exploding, shifted", 0.02, 100.0), ("exploding to 1, shifted twice", 0.06, 3.0),
])  # fmt: skip
def test_exploding_variance_has_the_ends_it_is_given(name, low, high):
    schedule = MAKE[name]()
    assert schedule.alpha_sigma(0.0)[1].item() == pytest.approx(low, rel=1e-12)
    assert schedule.alpha_sigma(1.0)[1].item() == pytest.approx(high, rel=1e-12)
    assert schedule.terminal_std == pytest.approx(high, rel=1e-12) and schedule.exploding


@pytest.mark.parametrize("name", [*FLOWS, *PRESERVING])
def test_other_schedules_end_in_unit_noise(name):
    assert MAKE[name]().terminal_std == 1 and not MAKE[name]().exploding


# The posterior


@pytest.mark.parametrize("name", CLEAN)
def test_the_posterior_at_a_noiseless_s_is_the_data(name):
    """Delta(x) for one such s; a batch of them may hold noiseless ones."""
    schedule, (x, x_t) = MAKE[name](), torch.randn(2, 4, 3, dtype=F64)
    q = schedule.posterior(x_t, x, 0.0, 0.5)
    assert isinstance(q, Delta) and torch.equal(q.mean, x) and schedule.posterior_coefficients(0.0, 0.5).noiseless
    s, t = torch.tensor([0, 0.25, 0, 0.5]), torch.tensor([0.5, 0.5, 0.75, 0.75])
    batch = schedule.posterior(x_t, x, s, t)
    assert isinstance(batch, Normal) and not schedule.posterior_coefficients(s, t).noiseless
    torch.testing.assert_close(batch.mean[[0, 2]], x[[0, 2]], rtol=1e-12, atol=1e-12)
    assert not batch.std[[0, 2]].any() and batch.std[[1, 3]].all()


@pytest.mark.parametrize("name", PURE)
def test_the_posterior_from_pure_noise_is_the_marginal(name):
    x, x_t = torch.randn(2, 3, 4, dtype=F64)
    schedule = MAKE[name]()
    q, marginal = schedule.posterior(x_t, x, 0.3, 1.0), schedule.marginal(x, 0.3)
    torch.testing.assert_close(q.mean, marginal.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.std, marginal.std, rtol=1e-12, atol=0)


@EVERY
def test_the_posterior_coefficients_are_those_of_the_posterior_and_the_transition(schedule):
    (x, x_t), (s, t) = torch.randn(2, 6, 2, dtype=F64), at_random((2, 6)).sort(0).values
    c, q = schedule.posterior_coefficients(s, t), schedule.posterior(x_t, x, s, t)
    torch.testing.assert_close(c.on_x_t[:, None] * x_t + c.on_x[:, None] * x, q.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(c.std[:, None], q.std, rtol=1e-14, atol=0)
    torch.testing.assert_close(c.large[:, None], schedule.transition(x, s, t).std, rtol=1e-14, atol=0)
    assert (c.std < c.large).all()


def test_coefficients_of_python_floats_know_whether_they_are_noiseless():
    assert PosteriorCoefficients(0.0, 1.0, 0.0, 0.1).noiseless
    assert not PosteriorCoefficients(1.0, 0.0, 0.0, 0.0).noiseless  # s = t
    assert not PosteriorCoefficients(0.5, 0.5, 0.2, 0.3).noiseless


# Formulas


def test_exploding_variance_is_geometric():
    t = torch.linspace(0, 1, 11, dtype=F64)
    sigma = VarianceExplodingSchedule(0.01, 50.0).alpha_sigma(t)[1]
    torch.testing.assert_close(sigma, 0.01 * 5000**t, rtol=1e-12, atol=0)


def test_edm_s_sigmas_are_eq_5():
    t = torch.linspace(0, 1, 11, dtype=F64)
    expected = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    torch.testing.assert_close(EDMSchedule().alpha_sigma(t)[1], expected, rtol=1e-11, atol=0)


def test_a_flow_is_a_straight_line():
    t = torch.linspace(0, 1, 11, dtype=F64)
    alpha, sigma = FlowSchedule().alpha_sigma(t)
    assert torch.equal(alpha, 1 - t) and torch.equal(sigma, t)


def test_beta_runs_from_beta_min_to_beta_max():
    schedule = VariancePreservingSchedule(0.1, 20.0, 1e-3)
    assert schedule.first == pytest.approx(0.1 + 1e-3 * 19.9)
    assert schedule.first + schedule.rise * schedule.length == pytest.approx(20.0)
    assert schedule.alpha_sigma(1.0)[0].square().item() == pytest.approx(4.319e-5, rel=1e-3)


@pytest.mark.parametrize("name", ["log-SNR linear", "flow", "exploding"])
def test_a_shift_multiplies_sigma_over_alpha(name):
    base, t = MAKE[name](), torch.rand(50, dtype=F64)
    (a, s), (alpha, sigma) = base.alpha_sigma(t), ShiftedSchedule(base, 3.0).alpha_sigma(t)
    torch.testing.assert_close(sigma / alpha, 3 * s / a, rtol=1e-11, atol=0)


def test_shifts_compose_and_a_shift_of_one_is_none():
    t, base = torch.rand(50, dtype=F64), CosineSchedule()
    twice, once = ShiftedSchedule(ShiftedSchedule(base, 2.0), 3.0), ShiftedSchedule(base, 6.0)
    torch.testing.assert_close(twice.log_snr(t), once.log_snr(t), rtol=1e-12, atol=1e-12)
    assert torch.equal(ShiftedSchedule(base, 1.0).log_snr(t), base.log_snr(t))


# Against diffusers


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_flows_are_those_of_diffusers(shift):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=shift).sigmas.double()
    t = torch.arange(1000, 0, -1, dtype=F64) / 1000
    assert (ShiftedSchedule(FlowSchedule(), shift).alpha_sigma(t)[1] - theirs).abs().max() < 1e-6


def test_edm_s_sigmas_are_those_of_diffusers():
    theirs = pytest.importorskip("diffusers").EDMEulerScheduler()
    theirs.set_timesteps(18)
    sigma = EDMSchedule(0.002, 80.0).alpha_sigma(torch.linspace(1, 0, 18, dtype=F64))[1]
    torch.testing.assert_close(theirs.sigmas[:18].double(), sigma, rtol=1e-5, atol=0)


# Refusals


@pytest.mark.parametrize("make, message", [
    (lambda: CosineSchedule(-5.0, 5.0), "log_snr_max must be above log_snr_min; got -5.0 and 5.0"),
    (lambda: CosineSchedule(math.nan), "log_snr_max must be above log_snr_min; got nan and -inf"),
    (lambda: LogSNRLinearSchedule(1.0, 1.0), "log_snr_max must be above log_snr_min; got 1.0 and 1.0"),
    (lambda: LogSNRLinearSchedule(math.inf), "must be finite here; got inf and -5.0"),
    (lambda: VarianceExplodingSchedule(0.0, 1.0), "0 < sigma_min < sigma_max must hold; got 0.0 and 1.0"),
    (lambda: VarianceExplodingSchedule(2.0, 1.0), "0 < sigma_min < sigma_max must hold; got 2.0 and 1.0"),
    (lambda: EDMSchedule(sigma_max=math.inf), "0 < sigma_min < sigma_max must hold; got 0.002 and inf"),
    (lambda: EDMSchedule(rho=0.0), "rho must be above 0; got 0.0"),
    (lambda: EDMSchedule(rho=math.nan), "rho must be above 0; got nan"),
    (lambda: ShiftedSchedule(FlowSchedule(), 0.0), "shift must be above 0; got 0.0"),
    (lambda: ShiftedSchedule(FlowSchedule(), math.inf), "shift must be above 0; got inf"),
    (lambda: VariancePreservingSchedule(0.0), "0 < beta_min <= beta_max must hold; got 0.0 and 20.0"),
    (lambda: VariancePreservingSchedule(2.0, 1.0), "0 < beta_min <= beta_max must hold; got 2.0 and 1.0"),
    (lambda: VariancePreservingSchedule(start=1.0), "start must be in [0, 1); got 1.0"),
    *[(lambda shape=shape: CosineSchedule().level(torch.zeros(shape), torch.zeros(8, 3)),
       f"t must be () or (B,) = (8,) in [0, 1]; got shape {shape}") for shape in ((8, 1), (3,), (1,))],
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("method", ["log_snr", "slope", "time"])
def test_the_abstract_schedule_names_what_is_missing(method):
    with pytest.raises(TypeError, match=f"Schedule is abstract in {method}"):
        getattr(Schedule(), method)(0.5)
