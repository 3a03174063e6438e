"""What the methods are of each other, and their options."""

import math
import re
from itertools import pairwise

import pytest
import torch
from answers import F64, ON_EACH, Meaning, Mild, Smooth, generator

from components.denoisers import Denoiser, GaussianMean, Guided
from components.samplers import (
    DDIM,
    Ancestral,
    DPMSolverPP,
    Euler,
    Heun,
    Sampler,
    SDEDPMSolverPP,
    time_grid,
)
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule, over

LINE = LogSNRLinearSchedule(8.0, -6.0)
CHURNING = pytest.mark.parametrize("method", [Euler, Heun])


def smooth(schedule, *settings, learned=False):
    return Denoiser(Smooth(learned), schedule, "v_prediction", *settings)


def standard_normal(schedule, prediction="sample", **settings):
    """The exact denoiser of N(0, I) in one dimension."""
    mean = GaussianMean(schedule, torch.zeros(1), torch.eye(1))
    return Denoiser(Meaning(prediction, mean, schedule), schedule, prediction, **settings)


# Ancestral and DDIM


@ON_EACH
def test_ddim_with_eta_1_is_ancestral_given_the_same_noise(schedule):
    denoiser, x = smooth(schedule), schedule.terminal_std * torch.randn(4, 3, dtype=F64)
    one, other = (Sampler(method, steps=20)(denoiser, x, None, generator()) for method in (Ancestral(), DDIM(eta=1.0)))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [LogSNRLinearSchedule(5.0, -5.0), CosineSchedule(13.3)])
def test_the_variance_that_ancestral_loses_on_a_standard_normal_halves_with_the_step(schedule):
    def lost(steps):
        variance = torch.ones(1, 1, dtype=F64)
        for t, s in pairwise(time_grid(steps)):
            p = standard_normal(schedule).reverse(torch.ones(1, 1, dtype=F64), s, t)
            variance = p.mean.square() * variance + p.std.square()
        return 1 - variance.item()

    errors = [lost(steps) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2) and errors[1] / errors[2] == pytest.approx(2, abs=0.2)


def test_ancestral_ends_on_the_mean_where_there_is_no_noise():
    x, times = torch.randn(4, 1, dtype=F64), torch.tensor([0.001, 0.0], dtype=F64)
    for variance in ("small", "large"):
        denoiser = standard_normal(BetaSchedule(), "epsilon", variance=variance)
        last = Sampler()(denoiser, x, times=times)
        torch.testing.assert_close(last, denoiser(x, 0.001).mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("own", ["small", "large", "learned_range"])
def test_ancestral_with_another_variance_is_the_denoiser_with_it(own, variance):
    x, sampler = torch.randn(4, 3, dtype=F64), Sampler(Ancestral(variance), steps=6)
    denoiser = smooth(LINE, own, learned=own == "learned_range")
    drawn = sampler(denoiser, x, None, generator())
    assert torch.equal(drawn, Sampler(steps=6)(smooth(LINE, variance), x, None, generator()))
    assert torch.equal(drawn, sampler(Guided(denoiser, 1.0), x, None, generator())) and denoiser.variance == own


# Euler and Heun


@ON_EACH
def test_euler_without_churn_is_ddim_without_eta(schedule):
    denoiser, x = smooth(schedule), torch.randn(4, 3, dtype=F64)
    for times in (time_grid(7), time_grid(7, 0.9, 0.05)):
        one, other = (Sampler(method)(denoiser, x, times=times) for method in (Euler(), DDIM()))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@CHURNING
@ON_EACH
def test_churn_never_leaves_the_times_of_the_schedule(schedule, method):
    denoiser = Denoiser(Mild(), schedule, "sample")
    x = schedule.terminal_std * torch.randn(4, 3, dtype=F64)
    assert Sampler(method(s_churn=100.0))(denoiser, x, times=time_grid(5, 0.98, 0.0)).isfinite().all()
    times = denoiser.backbone.times
    assert 0.98 < max(times) <= 1 and min(times) > 0 - (not schedule.noiseless(0.0))


@ON_EACH
def test_heun_is_in_karras_variables_where_the_schedule_explodes_and_in_the_flow_s_elsewhere(schedule):
    denoiser, x, times = smooth(schedule), torch.randn(4, 3, dtype=F64), time_grid(6, 0.9, 0.0)
    same, other = ("karras", "flow") if schedule.exploding else ("flow", "karras")
    drawn, again, different = (
        Sampler(Heun(variables=variables))(denoiser, x, times=times) for variables in (None, same, other)
    )
    assert torch.equal(drawn, again) and not torch.allclose(drawn, different, rtol=1e-3)


def test_heun_does_not_amplify_errors_where_sigma_over_alpha_is_in_the_thousands():
    """σ/α ends at 2e4 in this table. In Karras' variables 1e-3 of ε̂ there becomes more than the data's size."""
    schedule, noise = BetaSchedule("squaredcos_cap_v2"), torch.randn(16, 3, dtype=F64)

    class Wrong(Mild):
        def forward(self, x_t, t, cond=None):
            x = super().forward(x_t, t, cond)
            alpha, sigma = (over(c, x_t) for c in schedule.alpha_sigma(t))
            return (x_t - alpha * x) / sigma + 1e-3 * torch.sin(40 * x_t)

    wrong, right = (
        Denoiser(Wrong(), schedule, "epsilon", clip=(-1, 1)),
        Denoiser(Mild(), schedule, "sample", clip=(-1, 1)),
    )
    expected = Sampler("heun", steps=8)(right, noise)
    off = {
        variables: (Sampler(Heun(variables=variables), steps=8)(wrong, noise) - expected).abs().max()
        for variables in ("flow", "karras")
    }
    assert off["flow"] < 0.1 < 0.5 < off["karras"], off


# DPM-Solver++


def test_the_sde_solver_of_one_or_two_steps_is_ancestral():
    """The first step, and one to no noise, have nothing to extrapolate from: q(x_s|x_t, x̂) with the small variance."""
    denoiser, x = smooth(CosineSchedule()), torch.randn(4, 3, dtype=F64)
    for times in (time_grid(1), time_grid(2), time_grid(1, 0.8, 0.3)):
        one, other = (Sampler(m)(denoiser, x, None, generator(), times) for m in (SDEDPMSolverPP(), Ancestral()))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_last_of_fewer_than_15_steps_is_of_first_order_unless_asked_otherwise():
    """Where the mean is the last step, it is that one."""
    denoiser, x = smooth(LINE), torch.randn(4, 3, dtype=F64)
    for method in (DPMSolverPP, SDEDPMSolverPP):
        for steps, mean, equal in ((14, False, False), (15, False, True), (14, True, True)):
            one, other = (
                Sampler(method(lower_order_final=lower))(denoiser, x, None, generator(), time_grid(steps), mean)
                for lower in (True, False)
            )
            assert torch.equal(one, other) == equal


# Refusals


def drawn_with(variance, own):
    """A sample with a variance that the backbone has not learned."""
    return Sampler(Ancestral(variance), steps=2)(smooth(LINE, own), torch.zeros(2, 3))


CHURN = [
    ({"s_churn": -1.0}, "s_churn must be at least 0 and finite; got -1.0"),
    ({"s_churn": math.nan}, "s_churn must be at least 0 and finite; got nan"),
    ({"s_tmin": 2.0, "s_tmax": 1.0}, "0 <= s_tmin <= s_tmax must hold; got 2.0 and 1.0"),
    ({"s_tmin": math.nan}, "0 <= s_tmin <= s_tmax must hold; got nan and inf"),
    ({"s_noise": 0.0}, "s_noise must be above 0 and finite; got 0.0"),
]


@pytest.mark.parametrize("make, message", [
    (lambda: Ancestral("huge"), "variance must be one of small, large, learned_range; got 'huge'"),
    (lambda: drawn_with("learned_range", "small"),
     "variance 'learned_range' needs a denoiser that has learned one; got a Denoiser with variance 'small'"),
    (lambda: drawn_with(None, "learned_range"),
     "variance 'learned_range' needs a backbone with 6 output channels for 3 of x; got 3"),
    *[(lambda eta=eta: DDIM(eta), f"eta must be in [0, 1]; got {eta}") for eta in (-0.1, 1.5, math.nan, math.inf)],
    *[(lambda method=method, options=options: method(**options), message)
      for method in (Euler, Heun) for options, message in CHURN],
    (lambda: Heun(variables="angle"), "variables must be one of karras, flow; got 'angle'"),
    (lambda: Sampler(Heun(variables="karras"), steps=2)(smooth(CosineSchedule()), torch.zeros(2, 3)),
     "variables must be 'flow' from pure noise (α = 0), where σ/α is infinite; got 'karras'"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
