"""`Diffusion.sample` by hand: which sampler, which grid, which guidance."""

from typing import get_args

import pytest
import torch
from answers import Labelled, Smooth, generator

from components.denoisers import Denoiser, Guided, Thresholded
from components.samplers import DDIM, METHODS, Sampler, Spacing, time_grid
from components.schedules import CosineSchedule, EDMSchedule
from hybrids.models import Diffusion


def diffusion(schedule=None, backbone=None, **settings):
    schedule = schedule or CosineSchedule(9.0, -9.0)
    return Diffusion(Denoiser(backbone or Smooth(), schedule, "v_prediction"), 3, **settings)


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("method", METHODS)
def test_any_method_and_spacing(method, spacing):
    """From noise down the grid; where noise is left, x̂ of one more evaluation."""
    model, sampler, drawn = diffusion(), Sampler(method, 4, spacing), generator()
    x = model.sample(5, generator=generator(), sampler=sampler)
    noise, times = torch.randn(5, 3, generator=drawn), time_grid(4, spacing=spacing, schedule=model.denoiser.schedule)
    end = sampler(model.denoiser, noise, None, drawn, times)
    torch.testing.assert_close(x, model.denoiser.clipped(end, 0.0).mean)


def test_the_noise_is_that_of_the_first_time_of_the_grid():
    """Of an exploding schedule, with a spacing that starts below t = 1."""
    starts = []

    class Watched(Sampler):
        def __call__(self, denoiser, x, cond=None, generator=None, times=None, mean_at_end=False):
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
    end = Sampler("heun", steps=4)(by_hand, torch.randn(3, 3, generator=generator()), cond)
    sampler = Sampler("heun", 4, guidance_scale=6.0, **options)
    x = model.sample(3, cond, generator(), sampler)
    torch.testing.assert_close(x, by_hand.clipped(end, 0.0, cond).mean)
    own = diffusion(backbone=model.denoiser.backbone, sampler=sampler)
    assert torch.equal(own.sample(3, cond, generator()), x)
    assert not torch.allclose(x, model.sample(3, cond, generator(), Sampler(DDIM(), 4)), rtol=1e-2)
