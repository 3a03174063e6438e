"""`Diffusion.sample` by hand: which sampler, which grid, which guidance."""

from typing import get_args

import pytest
import torch
from answers import F64, Labelled, Mild, Smooth, generator

from components.denoisers import Denoiser, Guided, Thresholded
from components.samplers import DDIM, METHODS, Sampler, Spacing, time_grid
from components.schedules import BetaSchedule, CosineSchedule, EDMSchedule
from hybrids.models import Diffusion


def diffusion(schedule=None, backbone=None, **settings):
    schedule = schedule or CosineSchedule(9.0, -9.0)
    return Diffusion(Denoiser(backbone or Smooth(), schedule, "v_prediction"), 3, **settings)


# The mean is their step of lower order.
DPMS = {name: Sampler(METHODS[name](lower_order_final=False)) for name in ("dpm_solver_pp", "sde_dpm_solver_pp")}


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("method", METHODS)
def test_any_method_and_spacing(method, spacing):
    """From noise down the grid; where noise is left, the last step is x̂."""
    model, sampler, drawn = diffusion(), Sampler(method, 4, spacing), generator()
    x = model.sample(5, generator=generator(), sampler=sampler)
    noise, times = torch.randn(5, 3, generator=drawn), time_grid(3, spacing=spacing, schedule=model.denoiser.schedule)
    by_hand = DPMS[method] if method in DPMS else sampler
    end = by_hand(model.denoiser, noise, None, drawn, times, mean_at_end=False)
    torch.testing.assert_close(x, model.denoiser.clipped(end, 0.0).mean)


def test_the_noise_is_that_of_the_first_time_of_the_grid():
    """Of an exploding schedule, with a spacing that starts below t = 1."""
    starts = []

    class Watched(Sampler):
        def __call__(self, denoiser, x, cond=None, generator=None, times=None, mean_at_end=None):
            starts.append((x, denoiser.schedule.alpha_sigma(times[0])[1].item()))
            return x

    model = diffusion(EDMSchedule(0.01, 50.0))
    for spacing in ("trailing", "leading"):
        model.sample(20_000, generator=generator(), sampler=Watched(steps=4, spacing=spacing))
    (full, top), (less, sigma) = starts
    torch.testing.assert_close(full / top, less / sigma)
    assert top == pytest.approx(50) and sigma < 25


@pytest.mark.parametrize("options", [
    {"guidance_interval": (0.2, 0.8), "guidance_rescale": 0.5},
    {"guidance_interval": (0.2, 0.8), "guidance_rescale": 0.5, "thresholding": 0.8},
    {"thresholding": 0.8},
])  # fmt: skip
def test_guidance_and_thresholds_are_the_sampler_s_and_of_the_last_mean_too(options):
    model, cond = diffusion(backbone=Labelled()), torch.tensor([0, 1, 0])
    guided = Guided(
        model.denoiser, 6.0, options.get("guidance_interval", (0.0, 1.0)), options.get("guidance_rescale", 0.0)
    )
    by_hand = Thresholded(guided, options["thresholding"]) if "thresholding" in options else guided
    noise = torch.randn(3, 3, generator=generator())
    end = Sampler("heun")(by_hand, noise, cond, times=time_grid(3), mean_at_end=False)
    sampler = Sampler("heun", 4, guidance_scale=6.0, **options)
    x = model.sample(3, cond, generator(), sampler)
    torch.testing.assert_close(x, by_hand.clipped(end, 0.0, cond).mean)
    own = diffusion(backbone=model.denoiser.backbone, sampler=sampler)
    assert torch.equal(own.sample(3, cond, generator()), x)
    assert not torch.allclose(x, model.sample(3, cond, generator(), Sampler(DDIM(), 4)), rtol=1e-2)


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("schedule, timesteps", [
    (BetaSchedule(), 1000), (CosineSchedule(9.0, -9.0), None), (CosineSchedule(9.0, -9.0), 1000),
])  # fmt: skip
def test_encode_and_decode_take_the_grid_of_the_sampler(schedule, timesteps, spacing):
    """DDIM with the model's spacing, and its inversion, which evaluates the network at the same times."""
    sampler = Sampler("ddim", 4, spacing)
    model = Diffusion(Denoiser(Times(), schedule, "sample"), 3, timesteps=timesteps, sampler=sampler)
    z, expected = torch.randn(5, 3, dtype=F64), sampler.times(schedule, 4, timesteps)[:-1].tolist()
    x, times = model.decode(z).mean, model.denoiser.backbone.take()
    assert times == pytest.approx(expected) and len(times) == 4
    model.encode(x)
    assert model.denoiser.backbone.take()[::-1] == pytest.approx(expected)


class Times(Mild):
    """`Mild`, which records the times it is asked of."""

    def take(self):
        taken, self.times = list(map(float, self.times)), []
        return taken
