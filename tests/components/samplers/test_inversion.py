"""DDIM backwards, against its own steps and against diffusers."""

import math
import re

import pytest
import torch
from answers import F64, ON_EACH, Mild, Smooth

from components.denoisers import Denoiser, GaussianMean
from components.samplers import Sampler, invert, time_grid
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule


@ON_EACH
def test_it_undoes_ddim_s_own_steps(schedule):
    """With enough iterations to the last digits, at ten steps, never asking the network about a time without noise."""
    denoiser, noise = Denoiser(Mild(), schedule, "sample"), schedule.terminal_std * torch.randn(4, 3, dtype=F64)
    x = Sampler("ddim")(denoiser, noise, times=time_grid(10), mean_at_end=False)
    inverted = invert(denoiser, x, time_grid(10), iterations=200, mean_at_end=False)
    torch.testing.assert_close(inverted, noise, rtol=1e-6, atol=1e-6 * schedule.terminal_std)
    assert min(denoiser.backbone.times) > 0


@pytest.mark.parametrize("log_snr_max", [3.0, 5.0, 13.3])
@pytest.mark.parametrize("timesteps", [None, 1000])
def test_a_last_step_that_takes_the_mean_is_undone_too(log_snr_max, timesteps):
    """There and back again from x, which is x̂ of the least noise."""
    schedule, x = LogSNRLinearSchedule(log_snr_max, -5.0), 0.5 * torch.randn(4, 1, dtype=F64)
    denoiser = Denoiser(GaussianMean(schedule, torch.zeros(1), 0.25 * torch.eye(1)), schedule, "sample")
    sampler = Sampler("ddim", 10)
    times = sampler.times(schedule, timesteps=timesteps)
    noise = invert(denoiser, x, times, iterations=100)
    torch.testing.assert_close(sampler(denoiser, noise, times=times), x, rtol=1e-6, atol=1e-6)


def test_the_error_of_one_iteration_falls_as_the_steps():
    schedule, noise = LogSNRLinearSchedule(5.0, -5.0), torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(Mild(), schedule, "sample")

    def error(steps):
        x = Sampler("ddim")(denoiser, noise, times=time_grid(steps), mean_at_end=False)
        return (invert(denoiser, x, time_grid(steps), mean_at_end=False) - noise).abs().max().item()

    slope = math.log2(error(64) / error(512)) / 3
    assert slope == pytest.approx(1, abs=0.15) and error(512) < 0.05


def test_one_iteration_is_that_of_diffusers():
    """For ε; of other predictions diffusers reads the output at the level that it comes from."""
    diffusers, table = pytest.importorskip("diffusers"), BetaSchedule()
    theirs = diffusers.DDIMInverseScheduler(clip_sample=False, timestep_spacing="trailing")
    theirs.alphas_cumprod = table.alphas_cumprod
    theirs.set_timesteps(20)
    x = clean = torch.randn(4, 3, dtype=F64)
    backbone = Smooth()
    for k in theirs.timesteps:
        x = theirs.step(backbone(x, (k + 1) / 1000), k, x).prev_sample
    assert (invert(Denoiser(backbone, table, "epsilon"), clean, time_grid(20)) - x).abs().max() < 1e-5


def test_one_evaluation_a_step_and_iteration():
    denoiser = Denoiser(Smooth(), CosineSchedule(), "v_prediction")
    invert(denoiser, torch.randn(2, 3), time_grid(4), iterations=3)
    assert denoiser.backbone.calls == 12


@pytest.mark.parametrize("times, iterations, message", [
    (time_grid(2), 0, "iterations must be at least 1; got 0"),
    (time_grid(1), 1, "times must have a step between pure noise and none to be inverted"),
    (time_grid(4).flip(0), 1, "times must be (steps + 1,), strictly falling; got"),
])  # fmt: skip
def test_refusals(times, iterations, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        invert(Denoiser(Mild(), CosineSchedule(), "sample"), torch.zeros(2, 3), times, iterations=iterations)
