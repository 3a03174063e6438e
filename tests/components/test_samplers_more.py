"""Any sampler on any denoiser: predictions, schedules, variances, guidance, thresholds, inversion, models."""

import math
from functools import partial

import pytest
import torch
from answers import ON_EACH, generator, said, schedules, seen
from torch import nn

from components.denoisers import Denoiser, Guided, Thresholded
from components.samplers import SAMPLERS, ancestral, ddim, euler, heun, invert, sde_dpm_solver_pp, time_grid
from components.schedules import CosineSchedule, EDMSchedule, LogSNRLinearSchedule, over
from hybrids import Diffusion

F64 = torch.float64
PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow", "edm")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


EVERY = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


class Smooth(nn.Module):
    """A network that means nothing: the same smooth function of x_t and t for every framework."""

    num_classes = 2

    def __init__(self, many=1):
        super().__init__()
        self.many, self.calls = many, 0

    def forward(self, x_t, t, cond=None):
        self.calls += 1
        shift = over(torch.as_tensor(t, dtype=F64), x_t) + (0.0 if cond is None else 0.3 * cond[:, None].to(x_t))
        found = torch.tanh(1.3 * x_t + shift) + 0.2 * x_t
        return torch.cat([found, torch.tanh(found)], 1) if self.many == 2 else found


# Any sampler on any denoiser


class Said(nn.Module):
    """One answer, said as any prediction: x̂ is a smooth function of x_t/√(α² + σ²)."""

    def __init__(self, schedule, prediction, sigma_data=0.5):
        super().__init__()
        self.schedule, self.prediction, self.sigma_data = schedule, prediction, sigma_data

    def forward(self, shown, t, cond=None):
        alpha, sigma = (over(c, shown) for c in self.schedule.alpha_sigma(t))
        x_t = seen(self.prediction, shown, alpha, sigma, self.schedule.exploding, self.sigma_data)
        x = torch.sin(x_t / (alpha**2 + sigma**2).sqrt())
        return said(self.prediction, x, x_t, alpha, sigma, self.sigma_data)


@EVERY
@ON_EACH
def test_samples_do_not_depend_on_what_is_predicted(schedule, sampler):
    x = schedule.terminal_std * torch.randn(4, 3, dtype=F64)
    ends_in_noise = bool(schedule.alpha_sigma(1.0)[0] == 0)
    found = {}
    for prediction in PREDICTIONS:
        if not (ends_in_noise and prediction in ("epsilon", "edm")):
            denoiser = Denoiser(Said(schedule, prediction), schedule, prediction)
            found[prediction] = sampler(denoiser, x, time_grid(12), None, generator())
    for name, one in found.items():
        torch.testing.assert_close(one, found["sample"], rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        assert one.isfinite().all() and one.abs().max() < 3


@EVERY
@ON_EACH
def test_evaluations_are_as_documented(schedule, sampler):
    """One a step; Heun's two, one in a last step to no noise."""
    for steps in (1, 5):
        backbone = Smooth()
        sampler(Denoiser(backbone, schedule, "v_prediction"), torch.randn(2, 3), time_grid(steps))
        double = 2 * steps - schedule.noiseless(0.0)
        assert backbone.calls == (double if sampler is heun else steps)


@EVERY
@ON_EACH
def test_single_precision_stays_single_and_near_double(schedule, sampler):
    denoiser = Denoiser(Said(schedule, "v_prediction"), schedule, "v_prediction")
    x = schedule.terminal_std * torch.randn(4, 3)
    single = sampler(denoiser, x, time_grid(8), None, generator())
    assert single.dtype == torch.float32 and single.isfinite().all()
    if sampler not in (ancestral, sde_dpm_solver_pp):  # noise of another type is another noise
        torch.testing.assert_close(single.double(), sampler(denoiser, x.double(), time_grid(8)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sampler", [euler, heun])
@ON_EACH
def test_churn_never_asks_beyond_t_1(schedule, sampler):
    seen = []

    class Watched(Said):
        def forward(self, x_t, t, cond=None):
            seen.append(float(t))
            return super().forward(x_t, t, cond)

    denoiser = Denoiser(Watched(schedule, "sample"), schedule, "sample")
    x = schedule.terminal_std * torch.randn(4, 3, dtype=F64)
    assert sampler(denoiser, x, time_grid(5, 0.98, 0.0), s_churn=100.0).isfinite().all()
    assert 0.98 < max(seen) <= 1 and min(seen) > 0 - (not schedule.noiseless(0.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_samples_are_those_of_the_cpu():
    """Grids stay on the CPU; a schedule that holds tensors is moved with the denoiser."""
    for schedule in schedules().values():
        denoiser, noise = Denoiser(Mild(), schedule, "sample"), torch.randn(4, 3, dtype=F64)
        for name, sampler in {**SAMPLERS, "churn": partial(heun, s_churn=2.0)}.items():
            found = []
            for device in ("cpu", "cuda"):
                there, x = denoiser.to(device), schedule.terminal_std * noise.to(device)
                times = time_grid(6, spacing="karras", schedule=there.schedule)
                drawn = sampler(Thresholded(there), x, times, None, torch.Generator(device).manual_seed(0))
                back = invert(there, drawn, times)
                assert drawn.device.type == back.device.type == device and back.isfinite().all(), name
                found.append(drawn.cpu())
            # elsewhere a GPU's generator draws other noise
            if name in ("ddim", "euler", "heun", "dpm_solver_pp"):
                torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@EVERY
def test_samplers_are_deterministic_by_generator(sampler):
    denoiser, x = Denoiser(Smooth(), CosineSchedule(), "v_prediction"), torch.randn(4, 3, dtype=F64)
    state = torch.get_rng_state()
    same, again, other = (sampler(denoiser, x, time_grid(6), None, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(same, again) and torch.equal(state, torch.get_rng_state())
    assert torch.equal(same, other) == (sampler not in (ancestral, sde_dpm_solver_pp))


@EVERY
def test_a_learned_variance_goes_with_every_sampler(sampler):
    """Only ancestral uses it: others answer as for the same network without one."""
    schedule, x = LogSNRLinearSchedule(8.0, -6.0), torch.randn(4, 3, dtype=F64)
    learned = Denoiser(Smooth(2), schedule, "v_prediction", "learned_range")
    plain = Denoiser(Smooth(), schedule, "v_prediction")
    same = torch.equal(
        sampler(learned, x, time_grid(6), None, generator()), sampler(plain, x, time_grid(6), None, generator())
    )
    assert same == (sampler is not ancestral)


@pytest.mark.parametrize("asked", ["small", "large"])
@pytest.mark.parametrize("own", ["small", "large", "learned_range"])
def test_ancestral_with_another_variance_is_the_denoiser_with_it(own, asked):
    schedule, x = LogSNRLinearSchedule(8.0, -6.0), torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(Smooth(2 if own == "learned_range" else 1), schedule, "v_prediction", own)
    other = Denoiser(Smooth(), schedule, "v_prediction", asked)
    found = ancestral(denoiser, x, time_grid(6), None, generator(), variance=asked)
    assert torch.equal(found, ancestral(other, x, time_grid(6), None, generator())) and denoiser.variance == own
    guided = ancestral(Guided(denoiser, 1.0), x, time_grid(6), None, generator(), variance=asked)
    assert torch.equal(found, guided)


def test_variances_that_are_not_there_are_refused():
    denoiser = Denoiser(Smooth(), LogSNRLinearSchedule(), "v_prediction")
    with pytest.raises(
        ValueError, match="'learned_range' needs a denoiser that has learned one; got a Denoiser with var"
    ):
        ancestral(denoiser, torch.zeros(2, 3), time_grid(2), variance="learned_range")
    with pytest.raises(ValueError, match="variance must be one of small, large, learned_range; got 'huge'"):
        ancestral(denoiser, torch.zeros(2, 3), time_grid(2), variance="huge")
    without = Denoiser(Smooth(), LogSNRLinearSchedule(), "v_prediction", "learned_range")
    with pytest.raises(ValueError, match="'learned_range' needs a backbone with 6 output channels for 3 of x; got 3"):
        ancestral(without, torch.zeros(2, 3), time_grid(2))


# Guidance


class Reference(nn.Module):
    """Guided x̂, from its formulas: ε̂ extrapolated within the interval, x̂ rescaled to the conditional spread."""

    def __init__(self, model, scale, interval, rescale):
        super().__init__()
        self.model, self.scale, self.interval, self.rescale = model, scale, interval, rescale

    def forward(self, x_t, t, cond):
        told, null = self.model(x_t, t, cond), self.model(x_t, t)
        scale = self.scale if self.interval[0] <= t <= self.interval[1] else 1.0
        epsilon = null.epsilon + scale * (told.epsilon - null.epsilon)
        alpha, sigma = self.model.schedule.alpha_sigma(t)
        x = (x_t - sigma * epsilon) / alpha
        return x * (self.rescale * told.mean.std(1, keepdim=True) / x.std(1, keepdim=True) + 1 - self.rescale)


class Labelled(Smooth):
    """Its null label is that of no condition."""

    def forward(self, x_t, t, cond=None):
        cond = torch.full((len(x_t),), 2) if cond is None else cond
        return super().forward(x_t, t, cond)


@EVERY
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.65)])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_with_interval_and_rescale_goes_with_every_sampler(sampler, interval, rescale):
    schedule, cond = LogSNRLinearSchedule(8.0, -6.0), torch.tensor([0, 1, 1, 0])
    model = Denoiser(Labelled(), schedule, "v_prediction")
    by_hand = Denoiser(Reference(model, 3.0, interval, rescale), schedule, "sample")
    x = torch.randn(4, 3, dtype=F64)
    found, expected = (
        sampler(denoiser, x, time_grid(8), cond, generator())
        for denoiser in (Guided(model, 3.0, interval, rescale), by_hand)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, sampler(model, x, time_grid(8), cond, generator()), rtol=1e-3)


# Thresholding


class Constant(nn.Module):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, x_t, t, cond=None):
        return self.x.expand_as(x_t)


def test_thresholding_moves_epsilon_too_and_leaves_the_loss_s_answer_alone():
    schedule, x, x_t = CosineSchedule(), 3 * torch.randn(4, 8, dtype=F64), torch.randn(4, 8, dtype=F64)
    plain = Denoiser(Constant(x), schedule, "sample", clip=(-0.1, 0.1))
    thresholded = Thresholded(plain, 0.9)
    found, (alpha, sigma) = thresholded.clipped(x_t, 0.4), schedule.alpha_sigma(0.4)
    torch.testing.assert_close(alpha * found.mean + sigma * found.epsilon, x_t)
    assert found.mean.abs().max() == 1 and torch.equal(thresholded(x_t, 0.4).mean, x)
    for i in range(4):  # each example by its own quantile
        alone = Thresholded(Denoiser(Constant(x[i : i + 1]), schedule, "sample"), 0.9).clipped(x_t[i : i + 1], 0.4)
        torch.testing.assert_close(found.mean[i : i + 1], alone.mean)


@EVERY
def test_thresholding_goes_with_every_sampler_guidance_and_a_learned_variance(sampler):
    """At a large scale x̂ leaves [-1, 1]; thresholded, samples end within it."""
    schedule, cond = CosineSchedule(), torch.tensor([0, 1, 1, 0])
    guided = Guided(Denoiser(Labelled(2), schedule, "sample", "learned_range"), 9.0)
    x = torch.randn(4, 3, dtype=F64)
    free, kept = (sampler(d, x, time_grid(8), cond, generator()) for d in (guided, Thresholded(guided)))
    assert free.abs().max() > 1.05 and kept.abs().max() <= 1 + 1e-9
    s, t = torch.tensor(0.4, dtype=F64), torch.tensor(0.5, dtype=F64)
    assert torch.equal(Thresholded(guided).reverse(x, s, t, cond).std, guided.reverse(x, s, t, cond).std)


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.1, math.nan])
def test_quantiles_that_cannot_be_are_refused(quantile):
    with pytest.raises(ValueError, match=rf"quantile must be in \(0, 1\]; got {quantile}"):
        Thresholded(Denoiser(Smooth(), CosineSchedule(), "v_prediction"), quantile)


# DDIM backwards


class Mild(nn.Module):
    """x̂ is a contraction of what it sees, as of data with a spread: DDIM's steps have an inverse."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x_t, t, cond=None):
        self.times.append(float(t))
        return 0.5 * torch.tanh(x_t) * (1 - over(torch.as_tensor(t, dtype=F64), x_t))


@ON_EACH
def test_inversion_undoes_ddim_s_own_steps(schedule):
    """With enough iterations to the last digits, at ten steps; with one by and by, as steps grow."""
    denoiser, noise = Denoiser(Mild(), schedule, "sample"), torch.randn(4, 3, dtype=F64)
    noise = schedule.terminal_std * noise
    x = ddim(denoiser, noise, time_grid(10))
    found = invert(denoiser, x, time_grid(10), iterations=200)
    torch.testing.assert_close(found, noise, rtol=1e-6, atol=1e-6 * schedule.terminal_std)
    assert min(denoiser.backbone.times) > 0, "never asked about a time without noise"


def test_the_error_of_plain_inversion_falls_as_the_steps():
    schedule, noise = LogSNRLinearSchedule(5.0, -5.0), torch.randn(4, 3, dtype=F64)
    denoiser = Denoiser(Mild(), schedule, "sample")

    def error(steps):
        times = time_grid(steps)
        return (invert(denoiser, ddim(denoiser, noise, times), times) - noise).abs().max().item()

    slope = math.log2(error(64) / error(512)) / 3
    assert slope == pytest.approx(1, abs=0.15) and error(512) < 0.05


def test_inversions_that_cannot_be_are_refused():
    denoiser = Denoiser(Mild(), CosineSchedule(), "sample")
    with pytest.raises(ValueError, match="iterations must be at least 1; got 0"):
        invert(denoiser, torch.zeros(2, 3), time_grid(2), iterations=0)
    with pytest.raises(ValueError, match="times must have a step between pure noise and none to be inverted"):
        invert(denoiser, torch.zeros(2, 3), time_grid(1))
    with pytest.raises(ValueError, match="strictly falling"):
        invert(denoiser, torch.zeros(2, 3), time_grid(4).flip(0))


# In a model


def model(schedule=None, **settings):
    return Diffusion(Denoiser(Smooth(), schedule or CosineSchedule(9.0, -9.0), "v_prediction"), 3, **settings)


@EVERY
def test_a_diffusion_takes_any_sampler_and_spacing(sampler):
    diffusion = model()
    for spacing in ("trailing", "leading", "linspace", "karras", "log_snr"):
        x = diffusion.sample(5, generator=generator(), sampler=sampler, steps=4, spacing=spacing)
        noise, schedule = torch.randn(5, 3, generator=(g := generator())), diffusion.denoiser.schedule
        by_hand = sampler(diffusion.denoiser, noise, time_grid(4, spacing=spacing, schedule=schedule), None, g)
        torch.testing.assert_close(x, diffusion.last(by_hand).mean)


def test_a_diffusion_starts_where_its_grid_does():
    """Of an exploding schedule at less than t = 1 the noise is that of the first time."""
    seen = []

    def watch(denoiser, x, times, cond=None, generator=None):
        seen.append((x, denoiser.schedule.alpha_sigma(times[0])[1].item()))
        return x

    diffusion = model(EDMSchedule(0.01, 50.0))
    for spacing in ("trailing", "leading"):
        diffusion.sample(20_000, generator=generator(), sampler=watch, steps=4, spacing=spacing)
    (full, top), (less, sigma) = seen
    torch.testing.assert_close(full / top, less / sigma)
    assert top == pytest.approx(50) and sigma < 25


def test_a_diffusion_hands_guidance_and_thresholds_on():
    diffusion, cond = model(), torch.tensor([0, 1, 0])
    diffusion.denoiser.backbone = Labelled()
    drawing = {"cond": cond, "sampler": heun, "steps": 4, "guidance_scale": 6.0}

    def drawn(**settings):
        return diffusion.sample(3, generator=generator(), **drawing, **settings)

    noise = torch.randn(3, 3, generator=generator())
    guided = Guided(diffusion.denoiser, 6.0, (0.2, 0.8), 0.5)
    for denoiser, settings in [
        (guided, {"guidance_interval": (0.2, 0.8), "guidance_rescale": 0.5}),
        (Thresholded(guided, 0.8), {"guidance_interval": (0.2, 0.8), "guidance_rescale": 0.5, "thresholding": 0.8}),
        (Thresholded(Guided(diffusion.denoiser, 6.0), 0.8), {"thresholding": 0.8}),
    ]:
        expected = diffusion.last(heun(denoiser, noise, time_grid(4), cond)).mean
        torch.testing.assert_close(drawn(**settings), expected)


def test_no_steps_are_refused_by_a_diffusion():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        model().sample(2, steps=0)
