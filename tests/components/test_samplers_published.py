"""Euler, Heun, DPM-Solver++, inversion and thresholds against diffusers and Karras' algorithm 2."""

import math
import re
from functools import partial
from itertools import pairwise

import pytest
import torch
from answers import ON_EACH, Smooth, generator, schedules
from torch import nn

from components.denoisers import Denoiser, Thresholded
from components.samplers import ancestral, ddim, dpm_solver_pp, euler, heun, invert, sde_dpm_solver_pp, time_grid
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    over,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Mild(nn.Module):
    """x̂ is a contraction of what it sees, as of data with a spread."""

    def forward(self, x_t, t, cond=None):
        return 0.5 * torch.tanh(x_t) * (1 - over(torch.as_tensor(t, dtype=F64), x_t))


# Against diffusers


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    assert module.EulerDiscreteScheduler and module.DPMSolverMultistepScheduler  # it imports when asked: seconds
    return module


TABLE = BetaSchedule()
# Of one step theirs divides 0 by 0 with Karras' spacing, and starts from the cleanest level with linspace; that of its
# DPM-Solver++ is another than of the rest: steps + 1 points without the last.
STEPS = [("trailing", 1), *((spacing, n) for spacing in ("trailing", "linspace", "karras") for n in (2, 4, 10, 40))]
GRIDS = pytest.mark.parametrize("spacing, steps", STEPS)


def exact(scheduler, steps):
    """A scheduler of diffusers with our float64 table for its own of float32, at `steps` steps."""
    scheduler.alphas_cumprod = TABLE.alphas_cumprod
    scheduler.set_timesteps(steps)
    return scheduler


def grid_of(spacing, steps):
    """Our spacing of its name, up to the table's own noisiest level."""
    return time_grid(steps, spacing=spacing, schedule=TABLE, sigma_max=(-TABLE.log_snr(1.0) / 2).exp().item())


def spaced(spacing):
    """Of their scheduler."""
    return {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}


def of_sigma(sigma):
    """Our t at diffusers' σ/α."""
    return TABLE.time(-2 * sigma.double().log())


def their_exploding_chain(scheduler, backbone, x):
    """diffusers' Euler and Heun, which walk x/α and scale it for the network."""
    x = x / TABLE.alpha_sigma(of_sigma(scheduler.sigmas[0]))[0]
    for i, k in enumerate(scheduler.timesteps):
        t = of_sigma(scheduler.sigmas[i])
        seen = scheduler.scale_model_input(x, k).double()
        x = scheduler.step(backbone(seen, t), k, x).prev_sample
    return x


# They round σ and x to float32, whose seven digits a step to pure noise loses two of: σ_1/α_1 is 157.
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@GRIDS
@pytest.mark.parametrize("name, sampler", [("EulerDiscreteScheduler", euler), ("HeunDiscreteScheduler", heun)])
def test_euler_and_heun_are_those_of_diffusers(diffusers, name, sampler, spacing, steps, prediction):
    theirs = exact(getattr(diffusers, name)(prediction_type=prediction, **spaced(spacing)), steps)
    backbone, x = Smooth(), torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(backbone, TABLE, prediction)
    settings = {"variables": "karras"} if sampler is heun else {}
    ours = sampler(denoiser, x, grid_of(spacing, steps), **settings)
    found = their_exploding_chain(theirs, backbone, x)
    assert (ours - found).abs().max() < 1e-5 * max(1, found.abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing, steps", [g for g in STEPS if g[0] != "linspace"])
@pytest.mark.parametrize("kind, sampler", [("dpmsolver++", dpm_solver_pp), ("sde-dpmsolver++", sde_dpm_solver_pp)])
def test_dpm_solvers_are_those_of_diffusers(diffusers, kind, sampler, spacing, steps, prediction):
    theirs = diffusers.DPMSolverMultistepScheduler(prediction_type=prediction, algorithm_type=kind, **spaced(spacing))
    compare_dpm(exact(theirs, steps), sampler, prediction, grid_of(spacing, steps))


@pytest.mark.parametrize("steps", [5, 14, 15, 20])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("kind, sampler", [("dpmsolver++", dpm_solver_pp), ("sde-dpmsolver++", sde_dpm_solver_pp)])
def test_a_last_step_to_noise_is_of_lower_order_where_theirs_is(diffusers, kind, sampler, lower, steps):
    theirs = diffusers.DPMSolverMultistepScheduler(
        prediction_type="v_prediction",
        algorithm_type=kind,
        use_karras_sigmas=True,
        final_sigmas_type="sigma_min",
        lower_order_final=lower,
    )
    theirs = exact(theirs, steps)
    # their last σ is σ_min twice, which is no step; one that is not so
    theirs.sigmas[-1] = 0.4 * theirs.sigmas[-2]
    end = of_sigma(theirs.sigmas[-1]).item()
    times = torch.cat([grid_of("karras", steps)[:-1], torch.tensor([end], dtype=F64)])
    compare_dpm(theirs, partial(sampler, lower_order_final=lower), "v_prediction", times)


def compare_dpm(theirs, sampler, prediction, times):
    backbone, x = Smooth(), torch.randn(4, 3, dtype=F64)
    ours = sampler(Denoiser(backbone, TABLE, prediction), x, times, None, generator())
    drawn = generator()
    for i, k in enumerate(theirs.timesteps):
        output = backbone(x, of_sigma(theirs.sigmas[i]))
        noise = torch.randn(x.shape, generator=drawn, dtype=F64)
        x = theirs.step(output, k, x, variance_noise=noise).prev_sample
    assert (ours - x).abs().max() < 1e-5 * max(1, x.abs().max())


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("name, sampler", [
    ("FlowMatchEulerDiscreteScheduler", euler), ("FlowMatchHeunDiscreteScheduler", heun)
])  # fmt: skip
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_on_the_straight_line_flow_they_are_euler_and_heun_in_t(diffusers, name, sampler, steps, shift):
    theirs = getattr(diffusers, name)(shift=shift)
    theirs.sigma_min, theirs.sigma_max = 1e-3, 1.0  # theirs are shifted already, and would be once more
    theirs.set_timesteps(steps)
    backbone = Smooth()
    schedule = FlowSchedule() if shift == 1 else ShiftedSchedule(FlowSchedule(), shift)
    x = noise = torch.randn(4, 3, dtype=F64)
    for k in theirs.timesteps:
        t = k.double() / 1000
        t = t / (shift - (shift - 1) * t)
        x = theirs.step(backbone(x, t), k, x).prev_sample
    ours = sampler(Denoiser(backbone, schedule, "flow"), noise, time_grid(steps, spacing="linspace"))
    assert (ours - x).abs().max() < 1e-5


def test_leading_ddim_is_that_of_diffusers(diffusers):
    theirs = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="leading")
    theirs = exact(theirs, 20)
    x = noise = torch.randn(4, 3, dtype=F64)
    for k in theirs.timesteps:
        x = theirs.step(Smooth()(x, (k + 1) / 1000), k, x).prev_sample
    ours = ddim(Denoiser(Smooth(), TABLE, "v_prediction"), noise, time_grid(20, spacing="leading"))
    assert (ours - x).abs().max() < 1e-5


# Against Karras' algorithm 2


def algorithm_2(denoise, x, sigmas, churn=0.0, low=0.0, high=math.inf, s_noise=1.0, top=math.inf, drawn=None):
    """Karras 2022, 2206.00364, algorithm 2, but that σ̂ is at most `top`."""
    for sigma, after in pairwise(sigmas):
        gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = min(sigma + gamma * sigma, top)
        if raised > sigma:
            noise = s_noise * torch.randn(x.shape, generator=drawn, dtype=F64)
            x = x + math.sqrt(raised**2 - sigma**2) * noise
        d = (x - denoise(x, raised)) / raised
        reached = x + (after - raised) * d
        if after != 0:
            d = d / 2 + (reached - denoise(reached, after)) / after / 2
            reached = x + (after - raised) * d
        x = reached
    return x


CHURN = {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.007}


@pytest.mark.parametrize("churn", [{}, CHURN], ids=["deterministic", "churn"])
@pytest.mark.parametrize("name", ["EDM", "exploding", "table", "log-SNR linear", "variance preserving", "learned"])
def test_heun_is_karras_algorithm_2_in_x_over_alpha(name, churn):
    """Where the schedule explodes these are the very variables of the paper."""
    schedule = schedules()[name]
    denoiser = Denoiser(Smooth(), schedule, "edm")
    times = time_grid(9)

    def denoise(x, sigma):
        t = schedule.time(-2 * torch.tensor(sigma, dtype=F64).log())
        return denoiser(schedule.alpha_sigma(t)[0] * x, t).mean

    with torch.no_grad():
        sigmas = [(sigma / alpha).item() for alpha, sigma in map(schedule.alpha_sigma, times)]
        alpha, sigma = schedule.alpha_sigma(1.0)
        x = 3 * torch.randn(4, 3, dtype=F64)
        given = (churn["s_churn"], churn["s_tmin"], churn["s_tmax"], churn["s_noise"]) if churn else ()
        found = algorithm_2(denoise, sigma * x / alpha, sigmas, *given, top=sigmas[0], drawn=generator())
        ours = heun(denoiser, sigma * x, times, None, generator(), **churn, variables="karras")
        found = schedule.alpha_sigma(times[-1])[0] * found
    torch.testing.assert_close(ours, found, rtol=1e-9, atol=1e-9)
    assert not churn or not torch.allclose(ours, heun(denoiser, sigma * x, times, variables="karras"), rtol=1e-3)


def test_euler_with_churn_is_heun_s_first_half():
    schedule, x = EDMSchedule(), 80 * torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(Smooth(), schedule, "edm")
    for t, s in pairwise(time_grid(6)):
        pair, churn = torch.stack([t, s]), {"s_churn": 0.3, "s_noise": 1.1}
        ours = euler(denoiser, x, pair, None, generator(), **churn)
        sigma, after = (schedule.alpha_sigma(u)[1] for u in pair)
        raised = sigma * (1.3 if t < 1 else 1.0)
        raised = min(raised, schedule.alpha_sigma(1.0)[1])
        noise = (
            1.1 * torch.randn(x.shape, generator=generator(), dtype=F64) * (raised**2 - sigma**2).clamp(min=0).sqrt()
        )
        x_hat = denoiser(x + noise, schedule.time(-2 * raised.log())).mean
        torch.testing.assert_close(ours, x_hat + after / raised * (x + noise - x_hat), rtol=1e-9, atol=1e-9)


@ON_EACH
def test_heun_is_in_karras_variables_where_the_schedule_explodes_and_in_the_flow_s_elsewhere(schedule):
    denoiser, x = Denoiser(Smooth(), schedule, "v_prediction"), torch.randn(4, 3, dtype=F64)
    same, other = ("karras", "flow") if schedule.exploding else ("flow", "karras")
    times = time_grid(6, 0.9, 0.0)
    found = heun(denoiser, x, times)
    assert torch.equal(found, heun(denoiser, x, times, variables=same))
    assert not torch.allclose(found, heun(denoiser, x, times, variables=other), rtol=1e-3)


def test_heun_does_not_make_much_of_errors_where_sigma_over_alpha_is_in_the_thousands():
    """σ/α ends at 2e4 in this table. In Karras' variables 1e-3 of ε̂ there becomes more than the data's size."""
    schedule, noise = BetaSchedule("squaredcos_cap_v2"), torch.randn(16, 3, dtype=F64)

    class Wrong(Mild):
        def forward(self, x_t, t, cond=None):
            x = super().forward(x_t, t, cond)
            alpha, sigma = (over(c, x_t) for c in schedule.alpha_sigma(t))
            return (x_t - alpha * x) / sigma + 1e-3 * torch.sin(40 * x_t)

    wrong, right = Denoiser(Wrong(), schedule, clip=(-1, 1)), Denoiser(Mild(), schedule, "sample", clip=(-1, 1))
    off = {
        kind: (heun(wrong, noise, time_grid(8), variables=kind) - heun(right, noise, time_grid(8))).abs().max()
        for kind in ("flow", "karras")
    }
    assert off["flow"] < 0.1 < 0.5 < off["karras"], off


def test_variables_that_cannot_be_are_refused():
    denoiser = Denoiser(Smooth(), CosineSchedule(), "v_prediction")
    with pytest.raises(ValueError, match="variables must be one of karras, flow; got 'angle'"):
        heun(denoiser, torch.zeros(2, 3), time_grid(2), variables="angle")
    with pytest.raises(
        ValueError, match=re.escape("variables must be 'flow' from pure noise (α = 0), where σ/α is inf")
    ):
        heun(denoiser, torch.zeros(2, 3), time_grid(2), variables="karras")


@ON_EACH
def test_euler_without_churn_is_ddim_without_eta(schedule):
    denoiser = Denoiser(Smooth(), schedule, "v_prediction")
    x = torch.randn(4, 3, dtype=F64)
    for times in (time_grid(7), time_grid(7, 0.9, 0.05)):
        torch.testing.assert_close(euler(denoiser, x, times), ddim(denoiser, x, times), rtol=1e-12, atol=1e-12)


def test_an_sde_solver_of_one_or_two_steps_is_ancestral():
    """The first step, and one to no noise, have nothing to draw on: q(x_s|x_t, x̂) with the small variance."""
    denoiser = Denoiser(Smooth(), CosineSchedule(), "v_prediction")
    x = torch.randn(4, 3, dtype=F64)
    for times in (time_grid(1), time_grid(2), time_grid(1, 0.8, 0.3)):
        found = sde_dpm_solver_pp(denoiser, x, times, None, generator())
        torch.testing.assert_close(found, ancestral(denoiser, x, times, None, generator()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings, message", [
    ({"s_churn": -1.0}, "s_churn must be at least 0 and finite; got -1.0"),
    ({"s_churn": math.nan}, "s_churn must be at least 0 and finite; got nan"),
    ({"s_tmin": 2.0, "s_tmax": 1.0}, "0 <= s_tmin <= s_tmax must hold; got 2.0 and 1.0"),
    ({"s_tmin": math.nan}, "0 <= s_tmin <= s_tmax must hold; got nan and inf"),
    ({"s_noise": 0.0}, "s_noise must be above 0 and finite; got 0.0"),
])  # fmt: skip
@pytest.mark.parametrize("sampler", [euler, heun])
def test_churn_that_cannot_be_is_refused(sampler, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler(Denoiser(Smooth(), LogSNRLinearSchedule()), torch.zeros(2, 3), time_grid(2), **settings)


# Inversion and thresholds


class Constant(nn.Module):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, x_t, t, cond=None):
        return self.x.expand_as(x_t)


def test_plain_inversion_is_that_of_diffusers(diffusers):
    """For ε; of other predictions diffusers reads the output at the level that it comes from."""
    theirs = exact(diffusers.DDIMInverseScheduler(clip_sample=False, timestep_spacing="trailing"), 20)
    x = clean = torch.randn(4, 3, dtype=F64)
    backbone = Smooth()
    for k in theirs.timesteps:
        x = theirs.step(backbone(x, (k + 1) / 1000), k, x).prev_sample
    assert (invert(Denoiser(backbone, TABLE, "epsilon"), clean, time_grid(20)) - x).abs().max() < 1e-5


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholds_are_those_of_diffusers(diffusers, quantile):
    x = 1.7 * torch.randn(6, 3, 8, 8, dtype=F64)
    x[0] *= 0.1  # within [-1, 1] it is left alone
    theirs = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e9)
    found = Thresholded(Denoiser(Constant(x), CosineSchedule(), "sample"), quantile).clipped(torch.randn_like(x), 0.4)
    torch.testing.assert_close(found.mean, theirs._threshold_sample(x))
    assert torch.equal(found.mean[0], x[0]) and found.mean.abs().max() <= 1
