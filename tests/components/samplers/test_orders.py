"""Orders of convergence: on a mixture, whose flow is not linear, and where paths are known."""

import math
from functools import lru_cache

import pytest
import torch
from answers import F64, generator

from components.denoisers import Denoiser, GaussianMean, MixtureMean
from components.samplers import DPMSolverPP, Sampler, time_grid
from components.schedules import CosineSchedule, FlowSchedule, LogSNRLinearSchedule, VarianceExplodingSchedule

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=F64)
SCHEDULES = {
    "log-SNR linear": LogSNRLinearSchedule(5.0, -5.0),
    "cosine, truncated": CosineSchedule(5.0, -5.0),
    "exploding": VarianceExplodingSchedule(math.exp(-2.5), math.exp(2.5)),
    "flow": FlowSchedule(),
    "cosine": CosineSchedule(),
}
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm_solver_pp": 2}


def mixture(schedule):
    return Denoiser(MixtureMean(schedule, MEANS, 0.4), schedule, "sample")


def between(steps, schedule):
    """λ from -5 to 5."""
    start, end = (float(schedule.time(log_snr)) for log_snr in (-5.0, 5.0))
    return time_grid(steps, min(start, 1.0), max(end, 0.0), "log_snr", schedule)


def reached(method, schedule, x, steps):
    """Where a sampler takes x from λ = -5 to λ = 5, noise and all."""
    return Sampler(method)(mixture(schedule), x, times=between(steps, schedule), mean_at_end=False)


@lru_cache
def limit(name):
    """Where the flow takes eight points from λ = -5 to λ = 5: (x, x_s), by Heun and Richardson."""
    schedule = SCHEDULES[name]
    alpha, sigma = schedule.alpha_sigma(between(1, schedule)[0])
    data, noise = torch.randn(2, 8, 2, dtype=F64, generator=generator())
    x = alpha * data + sigma * noise
    coarse, fine = (reached("heun", schedule, x, n) for n in (200, 400))
    return x, (4 * fine - coarse) / 3


@pytest.mark.parametrize("method, order", ORDERS.items())
@pytest.mark.parametrize("name", SCHEDULES)
def test_orders_of_convergence_on_a_mixture(name, method, order):
    schedule, (x, expected) = SCHEDULES[name], limit(name)
    errors = [(reached(method, schedule, x, n) - expected).square().mean().sqrt().item() for n in (32, 128)]
    slope = math.log2(errors[0] / errors[1]) / 2
    assert slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule(), CosineSchedule(math.inf, -5.0)])
def test_orders_hold_up_to_a_clean_end(schedule):
    """From t = 1 to t = 0 on N(0, s²), even in t: the last step, of first order, ends where no noise is left."""
    denoiser = Denoiser(GaussianMean(schedule, torch.zeros(1), 0.25 * torch.eye(1)), schedule, "sample")
    alpha, sigma = schedule.alpha_sigma(1.0)
    expected = 0.5 / (0.25 * alpha**2 + sigma**2).sqrt()
    for method, order in (("ddim", 1), ("euler", 1), ("heun", 2)):
        errors = [
            (Sampler(method, steps)(denoiser, torch.ones(1, 1, dtype=F64)) - expected).abs().item()
            for steps in (64, 256)
        ]
        assert math.log(errors[0] / errors[1], 4) > order - 0.15, (method, errors)


def test_one_step_is_exact_on_a_straight_path():
    """Data in one point: x̂ is it, whatever x_t, and every method without noise is exact at any steps."""
    point = torch.tensor([[0.3, -0.7]], dtype=F64)
    for schedule in SCHEDULES.values():
        denoiser = Denoiser(MixtureMean(schedule, point, 0.0), schedule, "sample")
        times = time_grid(1, 0.9, 0.2), time_grid(5, 0.9, 0.2)
        alpha, sigma = schedule.alpha_sigma(times[0][0])
        epsilon = torch.randn(4, 2, dtype=F64)
        x = alpha * point + sigma * epsilon
        alpha, sigma = schedule.alpha_sigma(times[0][-1])
        for method in (*ORDERS, DPMSolverPP(lower_order_final=False)):
            for grid in times:
                end = Sampler(method)(denoiser, x, times=grid)
                torch.testing.assert_close(end, alpha * point + sigma * epsilon, rtol=1e-9, atol=1e-9)
