"""The sampler as a value, the loop that all methods share, and any method on any denoiser."""

import math
import re
from dataclasses import FrozenInstanceError, dataclass, fields
from itertools import pairwise
from typing import get_args

import pytest
import torch
from answers import (
    F64,
    NAMES,
    ON_EACH,
    Function,
    Labelled,
    Meaning,
    Mild,
    Smooth,
    ends_in_noise,
    generator,
    schedules,
)
from torch import Tensor, nn

from components.denoisers import Denoiser, DenoiserWrapper, GaussianMean, Guided, Prediction, Thresholded
from components.samplers import (
    DDIM,
    METHODS,
    Ancestral,
    DPMSolverPP,
    Euler,
    Grid,
    Heun,
    Method,
    Sampler,
    SDEDPMSolverPP,
    Spacing,
    invert,
    time_grid,
    walk,
)
from components.schedules import (
    CosineSchedule,
    EDMSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
)

CUSTOM = Prediction("custom", lambda alpha, sigma: (-0.5, 2.0))
VARIANTS = {
    **{name: method() for name, method in METHODS.items()},
    "ancestral, large": Ancestral("large"),
    "ddim, η = 1": DDIM(eta=1.0),
    "euler, churn": Euler(s_churn=2.0),
    "heun, churn": Heun(s_churn=2.0),
    "dpm_solver_pp, full order": DPMSolverPP(lower_order_final=False),
}
EVERY = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
NAMED = pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=METHODS)
COND = torch.tensor([0, 1, 1, 0])
LINE = LogSNRLinearSchedule(8.0, -6.0)


def smooth(schedule=None, learned=False, *settings, **options):
    """The same smooth network on a schedule."""
    return Denoiser(Smooth(learned), schedule or LogSNRLinearSchedule(8.0, -6.0), "v_prediction", *settings, **options)


def noise(schedule=None, dtype=F64):
    return (1.0 if schedule is None else schedule.terminal_std) * torch.randn(4, 3, dtype=dtype)


# A value


def test_a_sampler_is_a_value():
    one, other = Sampler("ddim", steps=5), Sampler(DDIM(), steps=5)
    assert one == other and hash(one) == hash(other) and one.method == DDIM() != DDIM(eta=0.5)
    assert one.but(steps=6) == Sampler(DDIM(), steps=6) and one.steps == 5
    with pytest.raises(FrozenInstanceError):
        one.steps = 3


def test_methods_by_name_are_themselves():
    assert [Sampler(name).method for name in METHODS] == [
        Ancestral(), DDIM(), Euler(), Heun(), DPMSolverPP(), SDEDPMSolverPP(),
    ]  # fmt: skip
    assert Sampler().method == Ancestral()


def test_every_option_has_a_sentence_for_help():
    for kind in (Sampler, *METHODS.values()):
        assert all(field.metadata["help"] for field in fields(kind)), kind


def test_its_times_are_those_of_time_grid():
    schedule = CosineSchedule()
    assert torch.equal(Sampler(steps=7).times(schedule), time_grid(7))
    assert torch.equal(Sampler().times(schedule, 9), time_grid(9))
    assert torch.equal(Sampler().times(schedule), time_grid(100))
    options = {"spacing": "karras", "sigma_min": 0.1, "sigma_max": 20.0, "rho": 5.0}
    expected = time_grid(6, schedule=schedule, timesteps=50, **options)
    assert torch.equal(Sampler("euler", 6, **options).times(schedule, 9, timesteps=50), expected)
    denoiser, x = smooth(schedule), noise()
    sampler = Sampler("euler", 6, **options)
    assert torch.equal(sampler(denoiser, x), sampler(denoiser, x, times=sampler.times(schedule)))


def test_it_guides_where_there_is_a_condition_and_thresholds():
    denoiser = smooth()
    assert Sampler().guided(denoiser, COND) is denoiser is Sampler(guidance_scale=2.0).guided(denoiser)
    guided = Sampler(guidance_scale=2.0, guidance_interval=(0.1, 0.9), guidance_rescale=0.5).guided(denoiser, COND)
    assert isinstance(guided, Guided) and guided.denoiser is denoiser
    assert (guided.guidance_scale, guided.interval, guided.rescale) == (2.0, (0.1, 0.9), 0.5)
    both = Sampler(guidance_scale=2.0, thresholding=0.9).guided(denoiser, COND)
    assert isinstance(both, Thresholded) and isinstance(both.denoiser, Guided) and both.quantile == 0.9


@pytest.mark.parametrize("make, message", [
    (lambda: Sampler("heum"), "method must be one of ancestral, ddim, euler, heun, dpm_solver_pp, sde_dpm_solver_pp, "
     "or a Method; got 'heum'"),
    (lambda: Sampler(DDIM), "or a Method; got <class"),
    (lambda: Sampler(steps=0), "steps must be at least 1; got 0"),
    (lambda: Sampler("heun", 1002, "leading").times(LINE), "steps must be at most 1001, the last the mean, with "
     "spacing 'leading'; got 1002"),
    (lambda: Sampler("heun", 1001, "leading").times(LINE, timesteps=1000), "with spacing 'leading'; got 1001"),
    (lambda: Sampler(guidance_interval=(0.0, 0.5)), "guidance_interval and guidance_rescale change nothing without"),
    (lambda: Sampler(guidance_rescale=0.5), "got interval (0.0, 1.0) and rescale 0.5"),
    *[(lambda times=times: Sampler()(smooth(), torch.zeros(2, 3), times=torch.tensor(times)),
       "times must be (steps + 1,), strictly falling; got")
      for times in ([math.nan, 0.0], [1.0, math.nan, 0.0], [0.0, 1.0], [1.0, 0.5, 0.5], [1.0], [1.0, 0.2, 0.4],
                    [[1.0, 0.5]])],
    *[(lambda times=times: Sampler()(smooth(), torch.zeros(2, 3), times=torch.tensor(times)),
       "times must be in [0, 1]; got") for times in ([1.2, 0.5], [math.inf, 0.5], [0.5, -0.1])],
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# The loop


@dataclass(frozen=True)
class Straight(Method):
    """A method of one's own: x_s = α_s x̂ + σ_s ε̂."""

    def plan(self, schedule, grid):
        return list(zip(grid.levels(), grid.levels()[1:]))

    def step(self, denoise, x, coefficients, memory, noise):
        t, s = coefficients
        estimate = denoise(x, t)
        return s.alpha * estimate.mean + s.sigma * estimate.epsilon, None


@dataclass(frozen=True)
class Counted(Method):
    """Remembers how many steps there were, and returns the noise of the last."""

    def plan(self, schedule, grid):
        return range(len(grid.t) - 1)

    def step(self, denoise, x, coefficients, memory, noise):
        assert memory == (None if coefficients == 0 else coefficients)
        return coefficients + 0 * noise(), coefficients + 1


def test_a_method_of_one_s_own_is_a_plan_and_a_step():
    for schedule in schedules().values():
        denoiser, x = smooth(schedule), noise(schedule)
        found, ddim = (Sampler(method, steps=7)(denoiser, x) for method in (Straight(), DDIM()))
        torch.testing.assert_close(found, ddim, rtol=1e-12, atol=1e-12)


def test_the_loop_hands_memory_and_coefficients_on():
    assert (Sampler(Counted(), steps=5)(smooth(CosineSchedule()), noise()) == 4).all()


class Counting(ShiftedSchedule):
    """Another schedule, which counts how often it is evaluated."""

    def __init__(self, schedule):
        super().__init__(schedule, 1.0)
        self.calls = 0

    def alpha_sigma(self, t):
        self.calls += 1
        return super().alpha_sigma(t)

    def log_snr(self, t):
        self.calls += 1
        return super().log_snr(t)

    def time(self, log_snr):
        self.calls += 1
        return super().time(log_snr)


@EVERY
@ON_EACH
def test_the_schedule_is_evaluated_as_often_for_40_steps_as_for_3(schedule, method):
    counts = []
    for steps in (3, 40):
        counting = Counting(schedule)
        denoiser = Thresholded(Guided(Denoiser(Labelled(), counting, "v_prediction", clip=(-1, 1)), 2.0))
        Sampler(method)(denoiser, noise(schedule), COND, generator(), time_grid(steps))
        counts.append(counting.calls)
    assert counts[0] == counts[1] <= 17


def leaves(value):
    """The numbers in an entry of a plan."""
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, tuple) else [value]


@EVERY
@ON_EACH
def test_plans_are_python_floats(schedule, method):
    """But for the times, which the network is given; α and σ at the step are floats, too."""
    plan = method.plan(schedule, Grid.of(schedule, time_grid(5), torch.device("cpu")))
    assert len(plan) == 5
    for entry in plan:
        values = leaves(entry)
        times = [value for value in values if isinstance(value, Tensor)]
        assert 1 <= len(times) <= 2 and all(time.ndim == 0 and time.dtype == F64 for time in times)
        assert all(value is None or isinstance(value, (float, Tensor)) for value in values), entry

    class Watched(DenoiserWrapper):
        def clipped(self, x_t, t, *arguments, **given):
            assert isinstance(t.alpha, float) and isinstance(t.sigma, float)
            return super().clipped(x_t, t, *arguments, **given)

    Sampler(method, steps=3)(Watched(smooth(schedule)), noise(schedule))


@EVERY
def test_samples_repeat_with_a_generator_and_leave_torch_s_own_alone(method):
    denoiser, x = smooth(CosineSchedule()), noise()
    state = torch.get_rng_state()
    same, again, other = (Sampler(method, steps=6)(denoiser, x, None, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(same, again) and torch.equal(state, torch.get_rng_state())
    deterministic = method in (DDIM(), Euler(), Heun(), DPMSolverPP(), DPMSolverPP(lower_order_final=False))
    assert torch.equal(same, other) == deterministic


@EVERY
def test_a_last_step_to_no_noise_draws_none(method):
    """One step from pure noise to none is x̂. (There is no churn at t = 1.)"""
    x, drawn, denoiser = noise(), generator(), smooth(CosineSchedule())
    end = Sampler(method, steps=1)(denoiser, x, None, drawn)
    torch.testing.assert_close(end, denoiser(x, 1.0).mean, rtol=1e-12, atol=1e-12)
    assert torch.equal(drawn.get_state(), generator().get_state())


@EVERY
def test_samples_have_no_graph(method):
    denoiser = Denoiser(nn.Linear(3, 3), CosineSchedule(), "v_prediction")
    denoiser.backbone.forward = lambda x_t, t, cond=None: nn.functional.linear(x_t, denoiser.backbone.weight)
    assert not Sampler(method, steps=2)(denoiser, torch.randn(2, 3)).requires_grad


# The last step, where there is noise at t = 0


NOISY = {"EDM": EDMSchedule(), "exploding": VarianceExplodingSchedule(), "log-SNR": LogSNRLinearSchedule(4.0, -6.0)}
AT_NOISE = pytest.mark.parametrize("schedule", NOISY.values(), ids=NOISY)


@EVERY
@AT_NOISE
def test_a_point_mass_is_sampled_exactly(schedule, method):
    """E[x|x_t] is the point, whatever x_t; the noise of t = 0 has a std of 0.002, 0.01 and 0.13 here."""
    point = torch.tensor([3.0, -1.0, 0.5], dtype=F64)
    denoiser = Denoiser(GaussianMean(schedule, point, torch.zeros(3, 3)), schedule, "sample")
    for steps in (1, 2, 6):
        drawn = Sampler(method, steps=steps)(denoiser, noise(schedule), None, generator())
        torch.testing.assert_close(drawn, point.expand(4, 3), rtol=1e-6, atol=1e-6)


@AT_NOISE
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_a_gaussian_s_std_is_the_product_of_the_steps_and_the_mean(schedule, spacing):
    """Of N(0, s²) each of DDIM's steps multiplies x by (α_s α_t s² + σ_s σ_t)/(α_t² s² + σ_t²), and the mean at the end
    by α s²/(α² s² + σ²)."""
    s2 = 0.25
    denoiser = Denoiser(GaussianMean(schedule, torch.zeros(1), s2 * torch.eye(1)), schedule, "sample")
    sampler = Sampler("ddim", steps=7, spacing=spacing)
    *times, end = sampler.times(schedule)
    alpha, sigma = schedule.alpha_sigma(torch.stack(times))
    assert len(alpha) == 7 and times[-1] == end == 0
    variance = alpha**2 * s2 + sigma**2
    steps = (alpha[1:] * alpha[:-1] * s2 + sigma[1:] * sigma[:-1]) / variance[:-1]
    expected = schedule.terminal_std * steps.prod() * alpha[-1] * s2 / variance[-1]
    end = sampler(denoiser, torch.full((1, 1), schedule.terminal_std, dtype=F64))
    assert end.item() == pytest.approx(expected.item(), rel=1e-6)


def test_edm_s_18_steps_are_17_of_heun_and_the_mean():
    """Karras 2022, algorithm 2 on its σ_0 … σ_17, 0: 35 evaluations, and 1.05525 times the std of N(0, ½²)."""
    sigmas, x = [*EDMSchedule().alpha_sigma(torch.linspace(1, 0, 18, dtype=F64))[1].tolist(), 0.0], 80.0
    for sigma, after in pairwise(sigmas):
        slope = x * sigma / (0.25 + sigma**2)
        reached = x + (after - sigma) * slope
        if after:
            reached = x + (after - sigma) * (slope + reached * after / (0.25 + after**2)) / 2
        x = reached
    denoiser = Denoiser(GaussianMean(EDMSchedule(), torch.zeros(1), 0.25 * torch.eye(1)), EDMSchedule(), "sample")
    for spacing in ("trailing", "karras"):
        end = Sampler("heun", steps=18, spacing=spacing)(denoiser, torch.full((1, 1), 80.0, dtype=F64)).item()
        assert end == pytest.approx(x, rel=1e-8) and end / 0.5 == pytest.approx(1.05525, abs=5e-6)


def test_above_t_0_and_where_it_is_asked_for_x_stays_noisy():
    """Down to t = 0 the last step takes the mean, like one to no noise."""
    denoiser, x = smooth(LINE), noise()
    for times, asked in ((time_grid(5), False), (time_grid(4, 1.0, 0.2), None)):
        plain = walk(DDIM(), denoiser, x, times)
        assert torch.equal(Sampler("ddim")(denoiser, x, times=times, mean_at_end=asked), plain)
    mean = denoiser(plain, 0.2).mean.detach()
    torch.testing.assert_close(Sampler("ddim")(denoiser, x, times=time_grid(5)), mean)


@AT_NOISE
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_a_chain_s_network_is_asked_of_its_levels_only(schedule, spacing):
    for steps in (1, 2, 3, 10):
        times = Sampler(steps=steps, spacing=spacing).times(schedule, timesteps=10)
        assert len(times) == steps + 1 and times[-1] == 0 and times[-2] >= 0.1 - 1e-9
    assert times[-2].item() == pytest.approx(0.1)
    given = Sampler(steps=9, spacing="karras", sigma_min=0.15).times(schedule, timesteps=10)
    assert schedule.log_snr(given[-2]).div(-2).exp().item() == pytest.approx(0.15)


@EVERY
@pytest.mark.parametrize("timesteps", [None, 1000])
def test_a_grid_goes_with_the_call_whole_and_in_pairs(method, timesteps):
    """As docs/guide.md has it: a point mass is reached exactly where noise is left at t = 0, in any number of steps."""
    schedule, point = LogSNRLinearSchedule(4.0, -6.0), torch.full((1,), 3.0, dtype=F64)
    denoiser, x = Denoiser(GaussianMean(schedule, point, torch.zeros(1, 1)), schedule, "sample"), noise()[:, :1]
    for steps in (1, 2, 7):
        sampler = Sampler(method, steps)
        times = sampler.times(schedule, timesteps=timesteps)
        assert times.shape == (steps + 1,) and times[-1] == 0
        torch.testing.assert_close(sampler(denoiser, x, None, generator(), times), point.expand(4, 1))
        end = x
        for pair in pairwise(times):
            end = sampler(denoiser, end, None, generator(), torch.stack(pair))
        torch.testing.assert_close(end, point.expand(4, 1))


# Any method on any denoiser


@NAMED
@ON_EACH
def test_samples_do_not_depend_on_what_is_predicted(schedule, method):
    """One x̂, in every prediction and in one of one's own."""
    x, drawn = noise(schedule), {}
    for prediction in (*NAMES, CUSTOM):
        if prediction != "epsilon" or not ends_in_noise(schedule):
            backbone = Meaning(prediction, lambda x, t: torch.sin(x), schedule)
            denoiser = Denoiser(backbone, schedule, prediction)
            drawn[prediction] = Sampler(method)(denoiser, x, None, generator(), time_grid(12))
    for prediction, one in drawn.items():
        torch.testing.assert_close(one, drawn["sample"], rtol=1e-7, atol=1e-7, msg=lambda m, p=prediction: f"{p}: {m}")
        assert one.isfinite().all() and one.abs().max() < 3


@NAMED
@ON_EACH
def test_evaluations_are_as_documented(schedule, method):
    """One a step; Heun's two, one in the last step, which is to no noise or the mean."""
    for steps in (1, 5):
        denoiser = smooth(schedule)
        Sampler(method, steps=steps)(denoiser, torch.randn(2, 3))
        second = steps - 1 if isinstance(method, Heun) else 0
        assert denoiser.backbone.calls == steps + second and method.evaluations == 1 + isinstance(method, Heun)


@NAMED
@ON_EACH
def test_single_precision_stays_single_and_near_double(schedule, method):
    denoiser = Denoiser(Meaning("v_prediction", lambda x, t: torch.sin(x), schedule), schedule, "v_prediction")
    x = noise(schedule, torch.float32)
    single = Sampler(method, steps=8)(denoiser, x, None, generator())
    assert single.dtype == torch.float32 and single.isfinite().all()
    if method in (DDIM(), Euler(), Heun(), DPMSolverPP()):  # noise of another type is another noise
        double = Sampler(method, steps=8)(denoiser, x.double())
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


@EVERY
def test_condition_and_clip_reach_the_denoiser(method):
    class Conditioned(nn.Module):
        def forward(self, x_t, t, cond=None):
            return x_t * 0 + cond[:, None] * 5.0

    denoiser = Denoiser(Conditioned(), CosineSchedule(), "sample", clip=(-1.0, 1.0))
    x = Sampler(method, steps=4)(denoiser, torch.randn(2, 3, dtype=F64), torch.tensor([-1, 1]))
    torch.testing.assert_close(x, torch.tensor([[-1.0], [1.0]], dtype=F64).expand(2, 3), rtol=1e-12, atol=0)


class Recalling(nn.Module):
    """Its x̂ depends on the estimate that it is given, and it keeps them."""

    self_condition, num_classes = True, 2

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, x_t, t, cond=None, estimate=None):
        self.given.append(estimate)
        shift = 0.0 if cond is None else cond[:, None].to(x_t)
        return 0.5 * torch.tanh(x_t) + shift + (0.9 * estimate if estimate is not None else 0.0)


class Recorded(DenoiserWrapper):
    """A denoiser that keeps its clipped estimates."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.estimates = []

    def clipped(self, *arguments, **given):
        self.estimates.append(super().clipped(*arguments, **given))
        return self.estimates[-1]


@pytest.mark.parametrize("guided", [False, True])
@EVERY
def test_a_self_conditioned_denoiser_is_given_its_clipped_x_of_the_evaluation_before(method, guided):
    """Guidance gives the guided x̂ to both its halves. A denoiser without self_condition is given none: all others."""
    plain = Denoiser(Recalling(), LogSNRLinearSchedule(), "sample", clip=(-1.0, 1.0))
    denoiser = Recorded(Guided(plain, 3.0) if guided else plain)
    x = Sampler(method, steps=5)(denoiser, noise(), COND if guided else None, generator())
    first, *given = plain.backbone.given
    assert first is None and len(given) == (8 if isinstance(method, Heun) else 4) and x.isfinite().all()
    for earlier, estimate in zip(denoiser.estimates, given, strict=False):
        assert torch.equal(estimate, torch.cat([earlier.mean] * 2) if guided else earlier.mean)
        assert earlier.mean.abs().max() <= 1
    assert not torch.equal(given[0], given[1])


@NAMED
def test_a_learned_variance_goes_with_every_method(method):
    """Only ancestral uses it: others answer as for the same network without one."""
    x = noise()
    learned, plain = smooth(None, True, "learned_range"), smooth()
    same = torch.equal(*(Sampler(method, steps=6)(denoiser, x, None, generator()) for denoiser in (learned, plain)))
    assert same == (method != Ancestral())


class Reference(nn.Module):
    """Guided x̂, from its formulas: ε̂ extrapolated within the interval, x̂ rescaled to the conditional spread."""

    def __init__(self, model, scale, interval, rescale):
        super().__init__()
        self.model, self.scale, self.interval, self.rescale = model, scale, interval, rescale

    def forward(self, x_t, t, cond):
        conditional, null = self.model(x_t, t, cond), self.model(x_t, t)
        scale = self.scale if self.interval[0] <= t <= self.interval[1] else 1.0
        epsilon = null.epsilon + scale * (conditional.epsilon - null.epsilon)
        alpha, sigma = self.model.schedule.alpha_sigma(t)
        x = (x_t - sigma * epsilon) / alpha
        return x * (self.rescale * conditional.mean.std(1, keepdim=True) / x.std(1, keepdim=True) + 1 - self.rescale)


@EVERY
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.65)])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_with_interval_and_rescale_goes_with_every_method(method, interval, rescale):
    schedule, x = LogSNRLinearSchedule(8.0, -6.0), noise()
    model = Denoiser(Labelled(), schedule, "v_prediction")
    by_hand = Denoiser(Reference(model, 3.0, interval, rescale), schedule, "sample")
    sampler = Sampler(method, 8, guidance_scale=3.0, guidance_interval=interval, guidance_rescale=rescale)
    guided, plain = sampler(model, x, COND, generator()), Sampler(method, 8)
    torch.testing.assert_close(guided, plain(by_hand, x, COND, generator()), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(guided, plain(model, x, COND, generator()), rtol=1e-3)


@NAMED
def test_thresholding_goes_with_every_method_guidance_and_a_learned_variance(method):
    """At a large scale x̂ leaves [-1, 1]; thresholded, samples end within it."""
    denoiser, x = Denoiser(Labelled(learned=True), CosineSchedule(), "sample", "learned_range"), noise()
    sampler = Sampler(method, 8, guidance_scale=9.0)
    free, bounded = (s(denoiser, x, COND, generator()) for s in (sampler, sampler.but(thresholding=0.995)))
    assert free.abs().max() > 1.05 and bounded.abs().max() <= 1 + 1e-9
    by_hand = Sampler(method, 8)(Thresholded(Guided(denoiser, 9.0)), x, COND, generator())
    assert torch.equal(bounded, by_hand)


def test_any_network_is_a_backbone():
    """Any event: images here."""
    denoiser = Denoiser(Function(lambda x_t, t: x_t.cos()), CosineSchedule(), "v_prediction")
    for method in METHODS:
        assert Sampler(method, steps=3)(denoiser, torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_samples_are_those_of_the_cpu():
    """Grids stay on the CPU; a schedule that holds tensors is moved with the denoiser."""
    for schedule in schedules().values():
        denoiser, start = Denoiser(Mild(), schedule, "sample"), torch.randn(4, 3, dtype=F64)
        for name, method in VARIANTS.items():
            drawn = []
            for device in ("cpu", "cuda"):
                there, x = denoiser.to(device), schedule.terminal_std * start.to(device)
                sampler = Sampler(method, steps=6, spacing="karras", thresholding=0.995)
                end = sampler(there, x, None, torch.Generator(device).manual_seed(0))
                back = invert(there, end, sampler.times(there.schedule))
                assert end.device.type == back.device.type == device and back.isfinite().all(), name
                drawn.append(end.cpu())
            # elsewhere a GPU's generator draws other noise
            if method in (DDIM(), Euler(), Heun(), DPMSolverPP()):
                torch.testing.assert_close(*drawn, rtol=1e-9, atol=1e-9)
