"""Dynamic thresholding of x̂."""

import math
import re

import pytest
import torch
from answers import F64, Constant, Labelled, generator
from torch import nn

from components.denoisers import Denoiser, Guided, Thresholded
from components.samplers import Sampler
from components.schedules import CosineSchedule


def saying(x, **settings):
    """A denoiser whose x̂ is x."""
    return Denoiser(Constant(x), CosineSchedule(), "sample", **settings)


def test_it_moves_epsilon_too_and_leaves_the_estimate_of_the_loss_alone():
    x, x_t = 3 * torch.randn(4, 8, dtype=F64), torch.randn(4, 8, dtype=F64)
    thresholded = Thresholded(saying(x, clip=(-0.1, 0.1)), 0.9)
    estimate, (alpha, sigma) = thresholded.clipped(x_t, 0.4), CosineSchedule().alpha_sigma(0.4)
    torch.testing.assert_close(alpha * estimate.mean + sigma * estimate.epsilon, x_t)
    assert estimate.mean.abs().max() == 1 and torch.equal(thresholded(x_t, 0.4).mean, x)
    for i in range(4):  # each example by its own quantile
        alone = Thresholded(saying(x[i : i + 1]), 0.9).clipped(x_t[i : i + 1], 0.4)
        torch.testing.assert_close(estimate.mean[i : i + 1], alone.mean)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_it_is_that_of_diffusers(quantile):
    diffusers = pytest.importorskip("diffusers")
    x = 1.7 * torch.randn(6, 3, 8, 8, dtype=F64)
    x[0] *= 0.1  # within [-1, 1] it is left alone
    theirs = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e9)
    estimate = Thresholded(saying(x), quantile).clipped(torch.randn_like(x), 0.4)
    torch.testing.assert_close(estimate.mean, theirs._threshold_sample(x))
    assert torch.equal(estimate.mean[0], x[0]) and estimate.mean.abs().max() <= 1


def test_a_learned_variance_stays_as_it_is():
    guided = Guided(Denoiser(Labelled(learned=True), CosineSchedule(), "sample", "learned_range"), 9.0)
    x_t, cond, s, t = torch.randn(4, 3, dtype=F64), torch.tensor([0, 1, 1, 0]), 0.4, 0.5
    assert torch.equal(Thresholded(guided).reverse(x_t, s, t, cond).std, guided.reverse(x_t, s, t, cond).std)


class Answering:
    """What samplers ask of a denoiser, and nothing else."""

    schedule, self_condition = CosineSchedule(), False

    def __init__(self, denoiser):
        self.bounded, self.posterior, self.self_conditioning = (
            denoiser.bounded, denoiser.posterior, denoiser.self_conditioning,
        )  # fmt: skip
        self.denoiser = denoiser

    def __call__(self, x_t, t, cond=None, hidden=(), **given):
        return self.denoiser(x_t, t, cond, hidden, **given)


def test_whatever_answers_as_a_denoiser_does_is_thresholded():
    x_t = torch.randn(4, 3, dtype=F64)
    plain = saying(3 * torch.randn(4, 3, dtype=F64))
    expected = Thresholded(plain, 0.9)
    for inner in (Answering(plain), Guided(plain, 1.0), Answering(Guided(plain, 1.0))):
        thresholded = Thresholded(inner, 0.9)
        assert torch.equal(thresholded.clipped(x_t, 0.4).mean, expected.clipped(x_t, 0.4).mean)
        assert torch.equal(thresholded.reverse(x_t, 0.3, 0.4).mean, expected.reverse(x_t, 0.3, 0.4).mean)
        drawn = (Sampler(steps=3)(denoiser, x_t, None, generator()) for denoiser in (thresholded, expected))
        assert torch.equal(*drawn) and thresholded.schedule is inner.schedule


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.1, math.nan])
def test_refusals(quantile):
    with pytest.raises(ValueError, match=re.escape(f"quantile must be in (0, 1]; got {quantile}")):
        Thresholded(Denoiser(nn.Identity(), CosineSchedule(), "sample"), quantile)
