import math

import pytest
import torch
from torch import nn

from components.distributions import Delta, Normal
from components.schedules import (
    BETA_SCHEDULES,
    BetaSchedule,
    CosineSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    Schedule,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def learned(spread=1.0, **settings):
    """A learned schedule whose weights are anything."""
    schedule = LearnedSchedule(**settings)
    for p in (schedule.log_weight, schedule.log_steepness, schedule.bias):
        nn.init.normal_(p, std=spread)
    return schedule


MAKE = {
    "cosine": CosineSchedule,
    "cosine, truncated": lambda: CosineSchedule(13.3, -5.0),
    "cosine to pure noise": lambda: CosineSchedule(13.3),
    "log-SNR linear": LogSNRLinearSchedule,
    "learned": LearnedSchedule,
    "learned, random": learned,
    **{name: lambda name=name: BetaSchedule(name) for name in BETA_SCHEDULES},
    "linear, T = 7": lambda: BetaSchedule("linear", 7),
}
EVERY = pytest.mark.parametrize("schedule", [make() for make in MAKE.values()], ids=list(MAKE))
TABLES = pytest.mark.parametrize("name", list(BETA_SCHEDULES))


def triples(n=200):
    """r < s < t, each (n,), away from each other and from the ends."""
    return (torch.rand(3, n, dtype=F64) * 0.98 + 0.01).sort(0).values


# What every schedule keeps


@EVERY
def test_the_transition_composes(schedule):
    r, s, t = triples()
    (long, wide), (first, narrow), (second, rest) = schedule.step(r, t), schedule.step(r, s), schedule.step(s, t)
    torch.testing.assert_close(first * second, long, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second.square() * narrow + rest, wide, rtol=1e-12, atol=1e-12)


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


@EVERY
def test_a_float_a_scalar_and_a_batch_mean_the_same_time(schedule):
    batch = schedule.alpha_sigma(torch.tensor([0.3, 0.7], dtype=F64))
    for i, t in enumerate((0.3, 0.7)):
        for alpha, expected in zip(schedule.alpha_sigma(t), batch):
            assert alpha.item() == pytest.approx(expected[i].item(), rel=1e-14)
        assert torch.equal(
            torch.stack(schedule.alpha_sigma(t)), torch.stack(schedule.alpha_sigma(torch.tensor(t, dtype=F64)))
        )


@EVERY
def test_coefficients_are_float64_whatever_the_time(schedule):
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5], dtype=torch.bfloat16)):
        values = (*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.slope(t), *schedule.step(0.25, t))
        assert all(value.dtype == F64 for value in values)


@EVERY
def test_images_get_one_coefficient_an_example(schedule):
    t = torch.tensor([0.2, 0.6], dtype=F64)
    x = torch.randn(2, 3, 4, 4, dtype=F64)
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
    assert q.std.dtype == torch.float32 and (q.std[:10] > 0).all() and len(q.std[:100].unique()) == 100


def test_trap_27_bf16_data_are_noised_in_float32():
    t = torch.arange(1, 1001) / 1000
    q = BetaSchedule().marginal(torch.ones(1000, 1, dtype=torch.bfloat16), t)
    assert q.std.dtype == torch.float32 and (q.std > 0).all() and len(q.std.unique()) > 990


# Ends


@pytest.mark.parametrize("kind", ["cosine", *BETA_SCHEDULES])
def test_a_schedule_that_starts_clean_is_noiseless_at_zero_only(kind):
    schedule = MAKE[kind]()
    assert schedule.alpha_sigma(0.0) == (1, 0) and schedule.log_snr(0.0) == math.inf
    assert schedule.noiseless(0.0) and not schedule.noiseless(1e-3) and not schedule.noiseless(torch.zeros(2))


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_a_learned_schedule_keeps_its_ends_whatever_its_weights(spread, width):
    for high, low in ((13.3, -5.0), (6.5, -8.25)):
        schedule = learned(spread, log_snr_max=high, log_snr_min=low, width=width)
        first, last = torch.tensor([high, low]).double()  # its endpoints are parameters, and float32
        assert schedule.log_snr(0.0) == first and schedule.log_snr(1.0) == last
        assert (schedule.log_snr(torch.tensor([0.0, 0.5, 1.0]))[::2] == torch.stack([first, last])).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_a_learned_schedule_falls_strictly_whatever_its_weights(spread):
    schedule = learned(spread)
    t = torch.linspace(0, 1, 2001, dtype=F64)
    assert (schedule.log_snr(t).diff() < 0).all() and (schedule.slope(t) < 0).all()


@pytest.mark.parametrize("learn_endpoints", [False, True])
def test_a_learned_schedule_s_gradients(learn_endpoints):
    schedule = LearnedSchedule(learn_endpoints=learn_endpoints)
    (schedule.log_snr(torch.rand(8)) * torch.randn(8)).sum().backward()
    for name, p in schedule.named_parameters():
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == (name != "endpoints" or learn_endpoints), name


# The posterior


@pytest.mark.parametrize("kind", ["cosine", *BETA_SCHEDULES])
def test_the_posterior_at_a_noiseless_s_is_the_data(kind):
    x, x_t = torch.randn(2, 3, 4)
    q = MAKE[kind]().posterior(x_t, x, 0.0, 0.5)
    assert isinstance(q, Delta) and torch.equal(q.mean, x)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_batch_of_s_may_hold_a_noiseless_one(kind):
    x, x_t = torch.randn(2, 2, 4, dtype=F64)
    q = MAKE[kind]().posterior(x_t, x, torch.tensor([0.0, 0.25]), torch.tensor([0.5, 0.5]))
    assert isinstance(q, Normal) and q.std[0] == 0 and q.std[1] > 0
    torch.testing.assert_close(q.mean[0], x[0], rtol=1e-12, atol=1e-12)


def test_the_posterior_from_pure_noise_is_the_marginal():
    x, x_t = torch.randn(2, 3, 4, dtype=F64)
    schedule = CosineSchedule()
    q, marginal = schedule.posterior(x_t, x, 0.3, 1.0), schedule.marginal(x, 0.3)
    torch.testing.assert_close(q.mean, marginal.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.std, marginal.std, rtol=1e-12, atol=0)


@TABLES
def test_the_posterior_s_precision_is_the_sum_of_two(name):
    schedule = BetaSchedule(name, 50)
    t = torch.arange(2, 51, dtype=F64) / 50
    _, _, std = schedule.posterior_coefficients(t - 1 / 50, t)
    beta, level = schedule.betas, schedule.alphas_cumprod
    expected = (1 - beta[1:]) / beta[1:] + 1 / (1 - level[:-1])
    torch.testing.assert_close(std.square().reciprocal(), expected, rtol=1e-9, atol=0)


# DDPM's tables


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    assert module.DDPMScheduler  # it imports when asked: seconds
    return module


@TABLES
@pytest.mark.parametrize("steps", [1000, 100])
def test_the_tables_are_those_of_diffusers(diffusers, name, steps):
    theirs = diffusers.DDPMScheduler(steps, beta_schedule=name).alphas_cumprod.double()
    schedule = BetaSchedule(name, steps)
    assert (schedule.alphas_cumprod - theirs).abs().max() < 1e-6
    # diffusers' timestep k is t = (k+1)/T
    alpha, _ = schedule.alpha_sigma(torch.arange(1, steps + 1, dtype=F64) / steps)
    assert (alpha.square() - theirs).abs().max() < 1e-6


@TABLES
def test_the_nodes_are_products_of_the_table(name):
    schedule = BetaSchedule(name, 1000)
    alpha, sigma = schedule.alpha_sigma(torch.arange(1, 1001, dtype=F64) / 1000)
    product = (1 - schedule.betas).cumprod(0)
    torch.testing.assert_close(alpha.square(), product, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma.square(), 1 - product, rtol=1e-10, atol=0)
    ratio, variance = schedule.step(0.5, 0.501)
    assert variance.item() == pytest.approx(schedule.betas[500].item(), rel=1e-10)


def test_the_first_posterior_is_the_data_alone():
    assert [value.item() for value in BetaSchedule().posterior_coefficients(0.0, 0.001)] == pytest.approx([0, 1, 0])


@TABLES
def test_a_table_s_time_is_exact_at_the_nodes(name):
    schedule = BetaSchedule(name, 100)
    nodes = torch.arange(1, 101, dtype=F64) / 100
    assert (schedule.time(schedule.log_snr(nodes)) - nodes).abs().max() < 1e-12


def test_a_table_is_no_state_and_follows_the_module():
    schedule = BetaSchedule()
    assert not schedule.state_dict() and schedule.to(torch.float64).alphas_cumprod.dtype == F64


# Refusals


@pytest.mark.parametrize("make, message", [
    (lambda: BetaSchedule("quadratic"), "beta_schedule must be one of linear, scaled_linear, .*; got 'quadratic'"),
    (lambda: BetaSchedule(num_train_timesteps=0), "num_train_timesteps must be at least 1; got 0"),
    (lambda: BetaSchedule(beta_start=0.02, beta_end=0.01), "beta_start <= beta_end < 1 must hold; got 0.02 and 0.01"),
    (lambda: BetaSchedule(beta_start=0.0), "0 < beta_start <= beta_end < 1 must hold; got 0.0 and 0.02"),
    (lambda: CosineSchedule(-5.0, 5.0), "log_snr_max must be above log_snr_min; got -5.0 and 5.0"),
    (lambda: LogSNRLinearSchedule(1.0, 1.0), "log_snr_max must be above log_snr_min; got 1.0 and 1.0"),
    (lambda: LogSNRLinearSchedule(math.inf), "must be finite here; got inf and -5.0"),
    (lambda: LearnedSchedule(log_snr_min=-math.inf), "must be finite here; got 13.3 and -inf"),
    (lambda: CosineSchedule(math.nan), "log_snr_max must be above log_snr_min; got nan and -inf"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", ["log_snr", "slope", "time"])
def test_the_abstract_schedule_names_what_is_missing(method):
    with pytest.raises(TypeError, match=f"Schedule is abstract in {method}"):
        getattr(Schedule(), method)(0.5)
