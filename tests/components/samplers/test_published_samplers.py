"""Samplers against diffusers, to 1e-5, and against Karras' algorithm 2."""

import math
from itertools import pairwise

import pytest
import torch
from answers import F64, Smooth, generator, schedules

from components.denoisers import Denoiser
from components.samplers import DDIM, Ancestral, DPMSolverPP, Euler, Heun, Sampler, SDEDPMSolverPP, time_grid
from components.schedules import BetaSchedule, EDMSchedule, FlowSchedule, ShiftedSchedule


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    assert module.EulerDiscreteScheduler and module.DPMSolverMultistepScheduler  # it imports when asked: seconds
    return module


# DDPM and DDIM, step by step

# Its tables are float32: 1 - ᾱ has few digits at the first levels, up to 7e-5 of x. There its formulas are checked on
# our float64 table, and from a tenth of the chain on its own table, too.
WHOSE = pytest.mark.parametrize("table", ["own", "exact"])
ALL = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])


def compare(scheduler, method, denoiser, table, steps, indices, **options):
    """The largest difference between one step of ours and one of diffusers', from the same x, output and noise."""
    levels = denoiser.schedule.num_train_timesteps
    if table == "exact":
        scheduler.alphas_cumprod = denoiser.schedule.alphas_cumprod
    x, times = torch.randn(4, 3, dtype=F64), time_grid(steps)
    differences = []
    for k in indices:
        if table == "own" and k < levels / 10:
            continue
        i = (levels - 1 - k) * steps // levels
        pair = times[i : i + 2]
        ours = Sampler(method)(denoiser, x, generator=generator(k), times=pair)
        output = denoiser.backbone(x, pair[0])
        theirs = scheduler.step(output, k, x, generator=generator(k), **options).prev_sample
        differences.append((ours - theirs).abs().max().item())
    return max(differences)


@ALL
@WHOSE
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [1000, 100])
def test_ddpm_steps_are_those_of_diffusers(diffusers, prediction, table, variance, steps):
    theirs = diffusers.DDPMScheduler(
        steps, prediction_type=prediction, variance_type=f"fixed_{variance}", clip_sample=False
    )
    denoiser = Denoiser(Smooth(), BetaSchedule("linear", steps), prediction, variance)
    indices = (*range(10), *range(10, steps, steps // 13), steps - 1)
    assert compare(theirs, Ancestral(), denoiser, table, steps, indices) < 1e-5


@ALL
@WHOSE
@pytest.mark.parametrize("steps", [1000, 20])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_with_trailing_spacing_are_those_of_diffusers(diffusers, prediction, table, steps, eta):
    theirs = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    denoiser = Denoiser(Smooth(), BetaSchedule(), prediction)
    indices = theirs.timesteps.tolist() if steps < 1000 else (*range(10), *range(10, 1000, 77), 999)
    assert compare(theirs, DDIM(eta), denoiser, table, steps, indices, eta=eta) < 1e-5


@pytest.mark.parametrize("spacing, steps, table", [
    ("trailing", 50, "own"), ("leading", 20, "exact"), ("leading", 7, "exact"), ("leading", 30, "exact"),
])  # fmt: skip
def test_whole_ddim_chains_are_those_of_diffusers(diffusers, spacing, steps, table):
    """With leading, of numbers of steps that do not divide 1000, too."""
    theirs = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing=spacing)
    if table == "exact":
        theirs.alphas_cumprod = TABLE.alphas_cumprod
    theirs.set_timesteps(steps)
    denoiser, x = Denoiser(Smooth(), TABLE, "v_prediction"), torch.randn(4, 3, dtype=F64)
    ours = Sampler("ddim", steps, spacing)(denoiser, x)
    for k in theirs.timesteps:
        x = theirs.step(denoiser.backbone(x, (k + 1) / 1000), k, x).prev_sample
    assert (ours - x).abs().max() < 1e-5


# Whole chains of the solvers

TABLE = BetaSchedule()
# Of one step theirs divides 0 by 0 with Karras' spacing, and starts from the cleanest level with linspace; that of its
# DPM-Solver++ is another than of the rest: steps + 1 points without the last.
STEPS = [("trailing", 1), *((spacing, n) for spacing in ("trailing", "linspace", "karras") for n in (2, 4, 10, 40))]
GRIDS = pytest.mark.parametrize("spacing, steps", STEPS)
KINDS = pytest.mark.parametrize("kind, method", [("dpmsolver++", DPMSolverPP), ("sde-dpmsolver++", SDEDPMSolverPP)])


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
        shown = scheduler.scale_model_input(x, k).double()
        x = scheduler.step(backbone(shown, t), k, x).prev_sample
    return x


# They round σ and x to float32, whose seven digits a step to pure noise loses two of: σ_1/α_1 is 157.
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@GRIDS
@pytest.mark.parametrize("name, method", [
    ("EulerDiscreteScheduler", Euler()), ("HeunDiscreteScheduler", Heun(variables="karras")),
])  # fmt: skip
def test_euler_and_heun_are_those_of_diffusers(diffusers, name, method, spacing, steps, prediction):
    theirs = exact(getattr(diffusers, name)(prediction_type=prediction, **spaced(spacing)), steps)
    backbone, x = Smooth(), torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(backbone, TABLE, prediction)
    ours = Sampler(method)(denoiser, x, times=grid_of(spacing, steps))
    end = their_exploding_chain(theirs, backbone, x)
    assert (ours - end).abs().max() < 1e-5 * max(1, end.abs().max())


@ALL
@pytest.mark.parametrize("spacing, steps", [g for g in STEPS if g[0] != "linspace"])
@KINDS
def test_dpm_solvers_are_those_of_diffusers(diffusers, kind, method, spacing, steps, prediction):
    theirs = diffusers.DPMSolverMultistepScheduler(prediction_type=prediction, algorithm_type=kind, **spaced(spacing))
    compare_dpm(exact(theirs, steps), method(), prediction, grid_of(spacing, steps))


@pytest.mark.parametrize("steps", [5, 14, 15, 20])
@pytest.mark.parametrize("lower", [True, False])
@KINDS
def test_a_last_step_to_noise_is_of_lower_order_where_theirs_is(diffusers, kind, method, lower, steps):
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
    compare_dpm(theirs, method(lower_order_final=lower), "v_prediction", times)


def compare_dpm(theirs, method, prediction, times):
    backbone, x = Smooth(), torch.randn(4, 3, dtype=F64)
    ours = Sampler(method)(Denoiser(backbone, TABLE, prediction), x, None, generator(), times)
    drawn = generator()
    for i, k in enumerate(theirs.timesteps):
        output = backbone(x, of_sigma(theirs.sigmas[i]))
        noise = torch.randn(x.shape, generator=drawn, dtype=F64)
        x = theirs.step(output, k, x, variance_noise=noise).prev_sample
    assert (ours - x).abs().max() < 1e-5 * max(1, x.abs().max())


@pytest.mark.parametrize("steps", [2, 6, 10, 15, 16])
@KINDS
def test_dpm_solvers_on_edm_s_noise_are_those_of_diffusers(diffusers, kind, method, steps):
    """Their last step is from σ_min to none, ours the mean."""
    theirs = diffusers.EDMDPMSolverMultistepScheduler(algorithm_type=kind)
    theirs.set_timesteps(steps)
    schedule, backbone = EDMSchedule(), Smooth()
    x = end = 80 * torch.randn(4, 3, dtype=F64)
    drawn = generator()
    for sigma, k in zip(theirs.sigmas, theirs.timesteps):
        t = schedule.time(-2 * sigma.double().log()).clamp(0, 1)
        end = theirs.step(backbone(theirs.scale_model_input(end, k), t), k, end, drawn).prev_sample
    ours = Sampler(method(), steps)(Denoiser(backbone, schedule, "edm"), x, None, generator())
    assert (ours - end).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 10, 30])
@pytest.mark.parametrize("name, method", [
    ("FlowMatchEulerDiscreteScheduler", "euler"), ("FlowMatchHeunDiscreteScheduler", "heun")
])  # fmt: skip
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_on_the_straight_line_flow_they_are_euler_and_heun_in_t(diffusers, name, method, steps, shift):
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
    ours = Sampler(method, steps, "linspace")(Denoiser(backbone, schedule, "flow"), noise)
    assert (ours - x).abs().max() < 1e-5


# Karras' algorithm 2


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
        end = algorithm_2(denoise, sigma * x / alpha, sigmas, *given, top=sigmas[0], drawn=generator())
        ours = Sampler(Heun(**churn, variables="karras"))(denoiser, sigma * x, None, generator(), times, False)
        end = schedule.alpha_sigma(times[-1])[0] * end
    torch.testing.assert_close(ours, end, rtol=1e-9, atol=1e-9)
    plain = Sampler(Heun(variables="karras"))(denoiser, sigma * x, times=times, mean_at_end=False)
    assert not churn or not torch.allclose(ours, plain, rtol=1e-3)


def test_churn_is_shared_among_the_steps_and_the_mean():
    """The mean is one of the paper's N; below s_tmin it has no churn of its own."""
    schedule, sampler = EDMSchedule(), Sampler(Heun(**CHURN), steps=40)
    denoiser, x = Denoiser(Smooth(), schedule, "edm"), 80 * torch.randn(4, 3, dtype=F64)
    sigmas = [*schedule.alpha_sigma(sampler.times(schedule)[:-1])[1].tolist(), 0.0]

    def denoise(x, sigma):
        return denoiser(x, schedule.time(-2 * torch.tensor(sigma, dtype=F64).log())).mean

    end = algorithm_2(denoise, x, sigmas, *CHURN.values(), top=80.0, drawn=generator())
    torch.testing.assert_close(sampler(denoiser, x, None, generator()), end, rtol=1e-9, atol=1e-9)


def test_euler_with_churn_is_heun_s_first_half():
    schedule, x = EDMSchedule(), 80 * torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(Smooth(), schedule, "edm")
    for t, s in pairwise(time_grid(6)):
        pair, method = torch.stack([t, s]), Euler(s_churn=0.3, s_noise=1.1)
        ours = Sampler(method)(denoiser, x, None, generator(), pair, mean_at_end=False)
        sigma, after = (schedule.alpha_sigma(u)[1] for u in pair)
        raised = sigma * (1.3 if t < 1 else 1.0)
        raised = min(raised, schedule.alpha_sigma(1.0)[1])
        noise = (
            1.1 * torch.randn(x.shape, generator=generator(), dtype=F64) * (raised**2 - sigma**2).clamp(min=0).sqrt()
        )
        x_hat = denoiser(x + noise, schedule.time(-2 * raised.log())).mean
        torch.testing.assert_close(ours, x_hat + after / raised * (x + noise - x_hat), rtol=1e-9, atol=1e-9)
