import math
from itertools import pairwise

import pytest
import torch
from answers import Smooth, generator
from torch import nn

from components.denoisers import Denoiser, Guided
from components.samplers import SAMPLERS, ancestral, chains, ddim, heun, time_grid
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule, over

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Gaussian(nn.Module):
    """The best answer for x ~ N(0, s² I), in any parameterization."""

    def __init__(self, schedule, prediction, s=1.0):
        super().__init__()
        self.schedule, self.prediction, self.s = schedule, prediction, s

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (over(c, x_t) for c in self.schedule.alpha_sigma(t))
        x = alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2) * x_t
        epsilon = sigma / (alpha**2 * self.s**2 + sigma**2) * x_t
        return {"sample": x, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x}[self.prediction]


def gaussian(schedule, prediction="sample", s=1.0, **settings):
    return Denoiser(Gaussian(schedule, prediction, s), schedule, prediction, **settings)


ALL = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])


# Grids


def test_the_grid_is_trailing():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0] and time_grid(4).dtype == F64
    assert time_grid(2, 0.8, 0.2).tolist() == pytest.approx([0.8, 0.5, 0.2])


@pytest.mark.parametrize("settings, message", [
    ({"steps": 0}, "steps must be at least 1; got 0"),
    ({"steps": -3}, "steps must be at least 1; got -3"),
    ({"steps": 4, "start": 0.2, "end": 0.2}, "end < start <= 1 must hold; got start 0.2 and end 0.2"),
    ({"steps": 4, "start": 1.5}, "must hold; got start 1.5"),
    ({"steps": 4, "end": -0.1}, "must hold; got start 1.0 and end -0.1"),
])  # fmt: skip
def test_grids_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        time_grid(**settings)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
@pytest.mark.parametrize(
    "times", [[math.nan, 0.0], [1.0, math.nan, 0.0], [0.0, 1.0], [1.0, 0.5, 0.5], [1.0], [1.0, 0.2, 0.4], [[1.0, 0.5]]]
)
def test_times_that_do_not_fall_are_refused(sampler, times):
    with pytest.raises(ValueError, match=r"times must be \(steps \+ 1,\), strictly falling; got"):
        sampler(gaussian(LogSNRLinearSchedule()), torch.zeros(2, 3), torch.tensor(times))


@pytest.mark.parametrize("sampler", SAMPLERS.values())
@pytest.mark.parametrize("times", [[1.2, 0.5], [math.inf, 0.5], [0.5, -0.1]])
def test_times_out_of_range_are_refused(sampler, times):
    with pytest.raises(ValueError, match=r"times must be in \[0, 1\]; got"):
        sampler(gaussian(LogSNRLinearSchedule()), torch.zeros(2, 3), torch.tensor(times))


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan, math.inf])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\]; got {eta}"):
        ddim(gaussian(LogSNRLinearSchedule()), torch.zeros(2, 3), time_grid(2), eta=eta)


# Ancestral and DDIM


@pytest.mark.parametrize("schedule", [BetaSchedule(), CosineSchedule(), LogSNRLinearSchedule()])
def test_ddim_with_eta_1_is_a_whole_ancestral_chain_given_the_same_noise(schedule):
    denoiser = Denoiser(Smooth(), schedule, "v_prediction")
    x = torch.randn(4, 3, dtype=F64)
    one, other = (sample(denoiser, x, time_grid(20), None, generator()) for sample in (ancestral, eta_1))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def eta_1(*arguments):
    return ddim(*arguments, eta=1.0)


def test_ddim_without_eta_is_deterministic_and_ancestral_is_not():
    denoiser = Denoiser(Smooth(), CosineSchedule(), "v_prediction")
    x = torch.randn(4, 3, dtype=F64)
    assert torch.equal(ddim(denoiser, x, time_grid(5), generator=generator(1)), ddim(denoiser, x, time_grid(5)))
    for sampler in (ancestral, eta_1):
        same, again, other = (sampler(denoiser, x, time_grid(5), None, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.parametrize("schedule", [LogSNRLinearSchedule(5.0, -5.0), CosineSchedule(13.3)])
def test_the_variance_that_ancestral_loses_on_a_standard_normal_halves_with_the_step(schedule):
    def lost(steps):
        variance = torch.ones(1, 1, dtype=F64)
        for t, s in pairwise(time_grid(steps)):
            p = gaussian(schedule).reverse(torch.ones(1, 1, dtype=F64), s, t)
            variance = p.mean.square() * variance + p.std.square()
        return 1 - variance.item()

    errors = [lost(steps) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2) and errors[1] / errors[2] == pytest.approx(2, abs=0.2)


def test_ancestral_ends_on_the_mean_where_there_is_no_noise():
    x = torch.randn(4, 3, dtype=F64)
    for variance in ("small", "large"):
        denoiser = gaussian(BetaSchedule(), "epsilon", variance=variance)
        last = ancestral(denoiser, x, torch.tensor([0.001, 0.0], dtype=F64))
        torch.testing.assert_close(last, denoiser(x, 0.001).mean, rtol=1e-12, atol=0)


def test_condition_and_clip_reach_the_denoiser():
    class Conditioned(nn.Module):
        def forward(self, x_t, t, cond=None):
            return x_t * 0 + cond[:, None] * 5.0

    denoiser = Denoiser(Conditioned(), CosineSchedule(), "sample", clip=(-1.0, 1.0))
    for sampler in SAMPLERS.values():
        x = sampler(denoiser, torch.randn(2, 3, dtype=F64), time_grid(4), torch.tensor([-1, 1]))
        torch.testing.assert_close(x, torch.tensor([[-1.0], [1.0]], dtype=F64).expand(2, 3), rtol=1e-12, atol=0)


class Recalling(nn.Module):
    """Answers with what it was shown last, and writes down what that was."""

    self_condition, num_classes = True, 2

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x_t, t, cond=None, estimate=None):
        self.seen.append(estimate)
        shift = 0.0 if cond is None else cond[:, None].to(x_t)
        return 0.5 * torch.tanh(x_t) + shift + (0.9 * estimate if estimate is not None else 0.0)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), eta_1])
def test_a_self_conditioned_denoiser_is_shown_its_clipped_x_of_the_evaluation_before(sampler, guided, monkeypatch):
    """Guidance shows the guided x̂ to both its halves. A denoiser without self_condition is shown none: all others."""
    monkeypatch.setattr(chains, "randn_like", lambda x, generator: torch.zeros_like(x))
    plain = Denoiser(Recalling(), LogSNRLinearSchedule(), "sample", clip=(-1.0, 1.0))
    denoiser, cond = (Guided(plain, 3.0), torch.tensor([0, 1, 1, 0])) if guided else (plain, None)
    found, clipped = [], denoiser.clipped

    def written(*arguments, **given):
        found.append(clipped(*arguments, **given))
        return found[-1]

    monkeypatch.setattr(denoiser, "clipped", written)
    x = sampler(denoiser, torch.randn(4, 3, dtype=F64), time_grid(5), cond)
    first, *seen = plain.backbone.seen
    assert first is None and len(seen) == (9 if sampler is heun else 4) and x.isfinite().all()
    for earlier, shown in zip(found, seen, strict=False):
        assert torch.equal(shown, torch.cat([earlier.mean] * 2) if guided else earlier.mean)
        assert earlier.mean.abs().max() <= 1
    assert not torch.equal(seen[0], seen[1])


def test_samplers_leave_no_graph():
    denoiser = Denoiser(nn.Linear(3, 3), CosineSchedule(), "v_prediction")
    denoiser.backbone.forward = lambda x_t, t, cond=None: nn.functional.linear(x_t, denoiser.backbone.weight)
    for sampler in SAMPLERS.values():
        assert not sampler(denoiser, torch.randn(2, 3), time_grid(2)).requires_grad


# Against diffusers


@pytest.fixture(scope="module")
def diffusers():
    module = pytest.importorskip("diffusers")
    assert module.DDPMScheduler and module.DDIMScheduler  # it imports when asked: seconds
    return module


VARIANCES = {"small": "fixed_small", "large": "fixed_large"}

# Its tables are float32: 1 - ᾱ has few digits at the first levels, up to 7e-5 of x. There its formulas are checked on
# our float64 table, and from a tenth of the chain on its own table, too.
TABLE = pytest.mark.parametrize("table", ["own", "exact"])


def compare(scheduler, sampler, denoiser, table, steps, indices, **options):
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
        ours = sampler(denoiser, x, pair, generator=generator(k), **options)
        output = denoiser.backbone(x, pair[0])
        theirs = scheduler.step(output, k, x, generator=generator(k), **options).prev_sample
        differences.append((ours - theirs).abs().max().item())
    return max(differences)


@ALL
@TABLE
@pytest.mark.parametrize("variance", list(VARIANCES))
@pytest.mark.parametrize("steps", [1000, 100])
def test_ddpm_steps_are_those_of_diffusers(diffusers, prediction, table, variance, steps):
    theirs = diffusers.DDPMScheduler(
        steps, prediction_type=prediction, variance_type=VARIANCES[variance], clip_sample=False
    )
    denoiser = Denoiser(Smooth(), BetaSchedule("linear", steps), prediction, variance)
    indices = (*range(10), *range(10, steps, steps // 13), steps - 1)
    assert compare(theirs, ancestral, denoiser, table, steps, indices) < 1e-5


@ALL
@TABLE
@pytest.mark.parametrize("steps", [1000, 20])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_with_trailing_spacing_are_those_of_diffusers(diffusers, prediction, table, steps, eta):
    theirs = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    denoiser = Denoiser(Smooth(), BetaSchedule(), prediction)
    indices = theirs.timesteps.tolist() if steps < 1000 else (*range(10), *range(10, 1000, 77), 999)
    assert compare(theirs, ddim, denoiser, table, steps, indices, eta=eta) < 1e-5


def test_a_whole_ddim_chain_is_that_of_diffusers(diffusers):
    theirs = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(50)
    denoiser = Denoiser(Smooth(), BetaSchedule(), "v_prediction")
    x = noise = torch.randn(4, 3, dtype=F64)
    for k in theirs.timesteps:
        x = theirs.step(denoiser.backbone(x, (k + 1) / 1000), k, x).prev_sample
    assert (ddim(denoiser, noise, time_grid(50)) - x).abs().max() < 1e-5
