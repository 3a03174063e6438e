"""Reconstructions p(x|x_t) at the first level of a diffusion."""

import math
import re

import pytest
import torch
from answers import F64, Smooth
from torch import nn

from components.denoisers import (
    PREDICTIONS,
    DenoisedReconstruction,
    Denoiser,
    Estimate,
    GaussianReconstruction,
    GreyLevelReconstruction,
    GreyLevels,
    PosteriorReconstruction,
    Reconstruction,
)
from components.distributions import Categorical, DiscretizedNormal, Normal, grid
from components.schedules import BetaSchedule, LogSNRLinearSchedule

# Nodes and weights for the mean over ε ~ N(0, 1).
EPSILON = torch.linspace(-9, 9, 401, dtype=F64)
WEIGHT = torch.exp(-0.5 * EPSILON**2) / torch.exp(-0.5 * EPSILON**2).sum()


def first(schedule, x_0):
    """The level of t = 0."""
    return schedule.level(0.0, x_0)


@pytest.mark.parametrize("log_snr", [13.3, 6.0, 2.0])
def test_the_gaussian_one_costs_what_its_formula_says(log_snr):
    """L_0 = ½ log 2πe - ½ λ_0 nats a dimension: with E ε² = 1, whatever x."""
    schedule = LogSNRLinearSchedule(log_snr, -5.0)
    x = torch.randn(2, 3, dtype=F64).repeat_interleave(2, 0)
    alpha, sigma = schedule.alpha_sigma(0.0)
    x_0 = alpha * x + sigma * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    cost = -GaussianReconstruction()(x_0, first(schedule, x_0)).log_prob(x)
    expected = 3 * (0.5 * math.log(2 * math.pi * math.e) - 0.5 * log_snr)
    torch.testing.assert_close(cost, torch.full((4,), expected, dtype=F64), rtol=1e-9, atol=1e-9)


def test_the_gaussian_one_is_the_likelihood_of_x_given_x_0_as_a_density_of_x():
    schedule = LogSNRLinearSchedule(2.0, -5.0)
    x_0 = torch.full((4001, 1), 0.3, dtype=F64)
    x = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    density = GaussianReconstruction()(x_0, first(schedule, x_0)).log_prob(x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-9)
    alpha, _ = schedule.alpha_sigma(0.0)
    assert x[density.argmax()].item() == pytest.approx((0.3 / alpha).item(), abs=4e-3)


def bits(grey_levels, log_snr):
    """E[-log2 p(x|x_0)] for x uniform on the grid, by quadrature over the noise."""
    schedule = LogSNRLinearSchedule(log_snr, -5.0)
    alpha, sigma = schedule.alpha_sigma(0.0)
    reconstruction, total = GreyLevelReconstruction(grey_levels), 0.0
    for value in grid(grey_levels, EPSILON)[: (grey_levels + 1) // 2]:  # the other half is its mirror image
        x = value.expand(len(EPSILON), 1)
        x_0 = alpha * x + sigma * EPSILON[:, None]
        cost = (WEIGHT * -reconstruction(x_0, first(schedule, x_0)).log_prob(x)).sum().item()
        total += cost if value.abs() < 1e-12 else 2 * cost
    return total / grey_levels / math.log(2)


@pytest.mark.parametrize("grey_levels, log_snr, vdm, ours", [
    (256, 13.3, 0.010412, 0.010018), (17, 8.0, 0.005158, 0.002537), (17, 7.0, 0.184434, 0.139746),
])  # fmt: skip
def test_numbers_of_the_grey_level_one_in_bits(grey_levels, log_snr, vdm, ours):
    """VDM's grid is 2(v+½)/K - 1: only the spacing over σ_0/α_0 matters, so it is ours at a lower log-SNR."""
    assert bits(grey_levels, log_snr) == pytest.approx(ours, abs=1e-6)
    closer = log_snr + 2 * math.log((grey_levels - 1) / grey_levels)
    assert bits(grey_levels, closer) == pytest.approx(vdm, abs=1e-6)


def test_the_grey_level_one_is_bayes_rule_on_equally_likely_levels():
    schedule, x_0 = LogSNRLinearSchedule(3.0, -5.0), torch.randn(5, 2, dtype=F64)
    p, values = GreyLevelReconstruction(17)(x_0, first(schedule, x_0)), grid(17, x_0)
    evidence = torch.stack([schedule.marginal(value.view(1, 1), 0.0).log_prob(x_0.reshape(-1, 1)) for value in values])
    expected = evidence.view(17, 5, 2).transpose(0, 1).log_softmax(1)
    torch.testing.assert_close(p.log_mass, expected, rtol=1e-10, atol=1e-10)


def test_the_grey_level_one_of_images_is_a_categorical():
    reconstruction, x_0 = GreyLevelReconstruction(17), torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    p = reconstruction(x_0, first(LogSNRLinearSchedule(8.0, -5.0), x_0))
    assert isinstance(p, Categorical) and reconstruction.grey_levels == p.grey_levels == 17
    assert p.mean.shape == (2, 3, 4, 4) and p.mean.dtype == torch.float32 and p.log_mass.isfinite().all()


def test_the_denoised_one_stands_around_the_estimate():
    x_t, y = torch.randn(2, 4, 3, dtype=F64)
    estimate = Denoiser(Smooth(), BetaSchedule(), "v_prediction")(x_t, 0.001)
    p = DenoisedReconstruction(0.02)(x_t, estimate.level, estimate)
    assert isinstance(p, Normal) and torch.equal(p.mean, estimate.mean)
    torch.testing.assert_close(p.log_prob(y), Normal(estimate.mean, 0.02).log_prob(y), rtol=1e-12, atol=0)


def test_the_denoised_one_on_grey_levels_sums_to_one():
    denoiser = Denoiser(nn.Identity(), BetaSchedule(), "sample", clip=(-1.0, 1.0))
    denoiser.backbone.forward = lambda x_t, t, cond=None: 0.5 * x_t
    x_t = torch.full((17, 1), 9.0, dtype=F64)
    estimate = denoiser.clipped(x_t, 0.001)
    p = DenoisedReconstruction(0.02, 17)(x_t, estimate.level, estimate)
    assert isinstance(p, DiscretizedNormal) and (p.normal.mean == 1).all()
    assert p.log_prob(grid(17, p.mean)[:, None]).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_posterior_one_is_the_denoiser_s_own_and_without_knowledge_the_grey_level_one():
    schedule, x_0 = LogSNRLinearSchedule(3.0, -5.0), torch.randn(9, 1, dtype=F64)
    log_p = torch.tensor([0.5] + [1 / 32] * 16, dtype=F64).log()[:, None]

    def decoded(log_marginal):
        denoiser = Denoiser(nn.Identity(), schedule, GreyLevels((1,), 17, log_marginal))
        denoiser.backbone.forward = lambda x_t, t, cond=None: x_t.new_zeros(len(x_t), 17)
        estimate = denoiser(x_0, 0.0)
        return PosteriorReconstruction(17)(x_0, estimate.level, estimate), estimate

    p, estimate = decoded(log_p)
    assert isinstance(p, Categorical) and torch.equal(p.log_mass, estimate.posterior.log_mass)
    plain = GreyLevelReconstruction(17)(x_0, first(schedule, x_0))
    torch.testing.assert_close(decoded(None)[0].log_mass, plain.log_mass, rtol=1e-10, atol=1e-10)


def test_each_says_what_it_needs():
    needs = {
        GaussianReconstruction(): (False, True, None),
        GreyLevelReconstruction(17): (False, True, 17),
        DenoisedReconstruction(0.1): (True, False, None),
        DenoisedReconstruction(0.1, 5): (True, False, 5),
        PosteriorReconstruction(17): (True, False, 17),
    }
    for module, expected in needs.items():
        assert (module.uses_estimate, module.needs_noise, module.grey_levels) == expected
        assert not module.state_dict()


LEVEL, X = LogSNRLinearSchedule().level(0.0, torch.zeros(2, 3)), torch.zeros(2, 3)


@pytest.mark.parametrize("call, message", [
    *[(lambda std=std: DenoisedReconstruction(std), f"std must be above 0; got {std}")
      for std in (0.0, -1.0, math.nan)],
    (lambda: DenoisedReconstruction(0.1)(X, LEVEL), "DenoisedReconstruction needs the denoiser's estimate; got None"),
    (lambda: PosteriorReconstruction(5)(X, LEVEL), "PosteriorReconstruction needs the denoiser's estimate; got None"),
    (lambda: PosteriorReconstruction(5)(X, LEVEL, Estimate(PREDICTIONS["flow"], X, X, LEVEL)),
     "PosteriorReconstruction needs a denoiser with prediction GreyLevels; got an estimate of 'flow'"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_an_abstract_one_says_so():
    with pytest.raises(TypeError, match="Reconstruction is abstract in forward"):
        Reconstruction()(X, LEVEL)
