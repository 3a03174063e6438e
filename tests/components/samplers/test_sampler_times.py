"""Grids of times that samplers go down."""

import math
import re
from typing import get_args

import pytest
import torch
from answers import F64, ON_EACH

from components.samplers import Spacing, time_grid
from components.samplers.times import check_times
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    VariancePreservingSchedule,
)

SPACINGS = get_args(Spacing)


def noise(schedule, times):
    alpha, sigma = schedule.alpha_sigma(times)
    return (sigma / alpha).detach()


@ON_EACH
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_falls_from_start_to_end_in_so_many_steps(spacing, schedule):
    for steps in (1, 2, 3, 4, 17, 250):
        for start, end in ((1.0, 0.0), (0.9, 0.2)):
            times = time_grid(steps, start, end, spacing, schedule)
            check_times(times)
            assert times.shape == (steps + 1,) and times.dtype == F64 and not times.requires_grad
            assert times[-1] == end and (times[0] == start) == (spacing != "leading")


def test_the_trailing_grid_is_even():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0] and time_grid(4).dtype == F64
    assert time_grid(2, 0.8, 0.2).tolist() == pytest.approx([0.8, 0.5, 0.2])


@pytest.mark.parametrize("spacing, steps", [
    *[(spacing, steps) for spacing in ("leading", "linspace", "trailing") for steps in (1, 4, 10, 50, 1000)],
    *[("leading", steps) for steps in (3, 7, 30, 64, 300, 501, 999)],  # which do not divide 1000
])  # fmt: skip
def test_named_spacings_are_those_of_diffusers(spacing, steps):
    """Its index k is t = (k+1)/T, with steps_offset 0."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=0)
    theirs.set_timesteps(steps)
    expected = (theirs.timesteps.double() + 1) / 1000
    if spacing == "linspace":
        if steps == 1:
            return  # theirs is the cleanest level then
        # it rounds to the table's nodes
        torch.testing.assert_close(time_grid(steps, spacing=spacing)[:-1], expected, rtol=0, atol=0.5001 / 1000)
    else:
        torch.testing.assert_close(time_grid(steps, spacing=spacing)[:-1], expected, rtol=0, atol=1e-12)


def test_the_spacings_of_a_shorter_chain():
    assert time_grid(4, spacing="leading", timesteps=8).tolist() == [0.875, 0.625, 0.375, 0.125, 0.0]
    assert time_grid(8, spacing="leading", timesteps=8).tolist() == time_grid(8).tolist()
    assert time_grid(4, spacing="linspace", timesteps=10).tolist() == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.0])
    assert time_grid(3, spacing="leading", timesteps=8).tolist() == [0.625, 0.375, 0.125, 0.0]
    assert time_grid(2, 0.75, 0.25, "leading", timesteps=8).tolist() == [0.625, 0.375, 0.25]


@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_the_karras_grid_is_eq_5(steps):
    """On its own schedule it is even in t; elsewhere it is even in (σ/α)^(1/ρ), whatever the schedule."""
    times = time_grid(steps, spacing="karras", schedule=EDMSchedule())
    torch.testing.assert_close(times, time_grid(steps), rtol=1e-12, atol=1e-12)
    schedule, rho = LogSNRLinearSchedule(8.0, -6.0), 5.0
    found = noise(schedule, time_grid(steps, spacing="karras", schedule=schedule, rho=rho))
    low, high = math.exp(-4) ** (1 / rho), math.exp(3) ** (1 / rho)
    i = torch.arange(steps + 1, dtype=F64)
    torch.testing.assert_close(found, (high + i / steps * (low - high)) ** rho)


@pytest.mark.parametrize("schedule", [VariancePreservingSchedule(0.1, 14.0), CosineSchedule(math.inf, -8.0)])
def test_a_clean_end_is_a_step_of_its_own_from_the_first_level(schedule):
    """As diffusers has it: σ from the noisiest level to that of 1/T, then 0."""
    for spacing, warp in (("karras", lambda s: s ** (1 / 7)), ("log_snr", torch.log)):
        times = time_grid(10, spacing=spacing, schedule=schedule)
        even = warp(noise(schedule, times[:-1]))
        torch.testing.assert_close(even.diff(), (even.diff().mean()).expand(9))
        assert times[0] == 1 and times[-1] == 0 and times[-2].item() == pytest.approx(1e-3, rel=1e-9)
        assert time_grid(10, spacing=spacing, schedule=schedule, timesteps=50)[-2].item() == pytest.approx(0.02)


def test_karras_sigmas_are_those_of_diffusers():
    """With sigma_max as a number, as diffusers prints it: float32 with four decimals is taken for the table's end."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    printed = float(f"{theirs.sigmas[0]:.4f}")
    theirs.alphas_cumprod = BetaSchedule().alphas_cumprod
    theirs.set_timesteps(12)
    own = noise(BetaSchedule(), 1.0).item()
    assert printed != own == pytest.approx(printed, rel=1e-5)
    exact, taken = (
        time_grid(12, spacing="karras", schedule=BetaSchedule(), sigma_max=sigma_max) for sigma_max in (own, printed)
    )
    torch.testing.assert_close(noise(BetaSchedule(), exact), theirs.sigmas.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(taken, exact, rtol=1e-5, atol=1e-8)
    assert taken[0] == 1 and taken[-1] == 0


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_the_sigmas_that_diffusers_prints_are_accepted_as_the_ends(beta_schedule, spacing):
    """`f"{sigma:.4f}"` of the noisiest level, computed in float32."""
    diffusers = pytest.importorskip("diffusers")
    table = BetaSchedule(beta_schedule)
    sigmas = diffusers.EulerDiscreteScheduler(beta_schedule=beta_schedule).sigmas[:-1]
    exact = time_grid(8, spacing=spacing, schedule=table, sigma_max=noise(table, 1.0).item())
    taken = time_grid(8, spacing=spacing, schedule=table, sigma_max=float(f"{sigmas[0]:.4f}"))
    torch.testing.assert_close(taken, exact, rtol=1e-4, atol=1e-6)
    # a little further than rounding is another end: below it a step of its own, above it refused
    low, high = (noise(table, 1.0).item() * factor for factor in (0.999, 1.001))
    below = time_grid(8, spacing=spacing, schedule=table, sigma_max=low)
    assert below[0] == 1 and noise(table, below)[1].item() == pytest.approx(low)
    with pytest.raises(ValueError, match="must lie within the schedule's"):
        time_grid(8, spacing=spacing, schedule=table, sigma_max=high)


def test_a_printed_sigma_min_is_accepted_as_the_end():
    own = noise(EDMSchedule(0.01234567, 80.0), 0.0).item()
    for sigma_min in (own * (1 + 9e-5), own * (1 - 9e-5)):
        times = time_grid(6, spacing="karras", schedule=EDMSchedule(0.01234567, 80.0), sigma_min=sigma_min)
        torch.testing.assert_close(times, time_grid(6), rtol=1e-4, atol=1e-4)
        assert times[-1] == 0


@pytest.mark.parametrize("schedule", [FlowSchedule(), CosineSchedule(), BetaSchedule("squaredcos_cap_v2")])
def test_nearly_pure_noise_is_a_step_of_its_own_to_80(schedule):
    for spacing in ("karras", "log_snr"):
        times = time_grid(10, spacing=spacing, schedule=schedule)
        sigma = noise(schedule, times)
        assert times[0] == 1 and times[-1] == 0 and sigma[1].item() == pytest.approx(80)
        sigma = noise(schedule, time_grid(10, spacing=spacing, schedule=schedule, sigma_max=20.0, sigma_min=0.1))
        assert sigma[1].item() == pytest.approx(20) and sigma[-2].item() == pytest.approx(0.1)
        # one step: nothing is left; two: the middle
        assert time_grid(1, spacing=spacing, schedule=schedule).tolist() == [1.0, 0.0]
        (_, middle, _) = noise(
            schedule, time_grid(2, spacing=spacing, schedule=schedule, sigma_max=10.0, sigma_min=0.1)
        )
        even = ((10 ** (1 / 7) + 0.1 ** (1 / 7)) / 2) ** 7 if spacing == "karras" else 1.0
        assert middle.item() == pytest.approx(even)


@ON_EACH
def test_the_log_snr_grid_is_even_in_it(schedule):
    log_snr = schedule.log_snr(time_grid(20, 0.8, 0.05, "log_snr", schedule)).detach()
    torch.testing.assert_close(log_snr.diff(), (log_snr[-1] - log_snr[0]).expand(20) / 20)
    far = time_grid(20, 0.8, 0.05, "karras", schedule, rho=1e6)
    torch.testing.assert_close(schedule.log_snr(far).detach(), log_snr, rtol=1e-4, atol=1e-4)


def test_given_ends_that_are_the_schedule_s_own_are_no_further_steps():
    for settings in ({"sigma_max": 80.0}, {"sigma_min": 0.002}, {"sigma_max": 80.0, "sigma_min": 0.002}):
        times = time_grid(7, spacing="karras", schedule=EDMSchedule(), **settings)
        torch.testing.assert_close(times, time_grid(7), rtol=1e-9, atol=1e-9)
    narrow = noise(EDMSchedule(), time_grid(7, spacing="karras", schedule=EDMSchedule(), sigma_max=10.0, sigma_min=0.1))
    torch.testing.assert_close(narrow[[0, 1, -2, -1]], torch.tensor([80, 10, 0.1, 0.002], dtype=F64))


@pytest.mark.parametrize("settings, message", [
    ({"steps": 0}, "steps must be at least 1; got 0"),
    ({"steps": -3}, "steps must be at least 1; got -3"),
    ({"start": 0.2, "end": 0.2}, "0 <= end < start <= 1 must hold; got start 0.2 and end 0.2"),
    ({"start": 1.5}, "must hold; got start 1.5"),
    ({"end": -0.1}, "must hold; got start 1.0 and end -0.1"),
    ({"start": math.nan}, "0 <= end < start <= 1 must hold; got start nan"),
    ({"end": math.nan}, "0 <= end < start <= 1 must hold"),
    ({"spacing": "quadratic"}, "spacing must be one of trailing, leading, linspace, karras, log_snr; got 'quadratic'"),
    ({"timesteps": 0}, "timesteps must be at least 1; got 0"),
    ({"spacing": "leading", "timesteps": 3}, "steps must be at most timesteps × (start - end) with spacing 'leading'"),
    ({"spacing": "linspace", "timesteps": 1}, "1/timesteps must be below start - end with spacing 'linspace'; got"),
    ({"spacing": "karras", "schedule": None}, "spacing 'karras' needs the schedule; got None"),
    ({"spacing": "log_snr", "schedule": None}, "spacing 'log_snr' needs the schedule; got None"),
    ({"spacing": "karras", "rho": 0.0}, "rho must be above 0 and finite; got 0.0"),
    ({"spacing": "karras", "rho": math.nan}, "rho must be above 0 and finite; got nan"),
    ({"spacing": "karras", "sigma_min": -1.0}, "0 < sigma_min < sigma_max must hold and be finite; got -1 and 80"),
    ({"spacing": "log_snr", "sigma_max": math.inf}, "< sigma_max must hold and be finite; got 0.002 and inf"),
    ({"spacing": "log_snr", "sigma_max": math.nan}, "< sigma_max must hold and be finite; got 0.002 and nan"),
    ({"spacing": "karras", "sigma_max": 1.0, "sigma_min": 2.0}, "0 < sigma_min < sigma_max must hold"),
    ({"spacing": "karras", "sigma_max": 100.0}, "sigma_min and sigma_max must lie within the schedule's σ/α, 0.002 at"),
    ({"spacing": "karras", "sigma_min": 1e-4}, "sigma_min and sigma_max must lie within the schedule's σ/α, 0.002 at"),
])  # fmt: skip
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        time_grid(**{"steps": 4, "schedule": EDMSchedule(), **settings})
