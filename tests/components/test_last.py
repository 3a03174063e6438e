import math

import pytest
import torch
from torch import nn

from components.denoisers import DenoisedLast, Denoiser, GaussianLast, GridLast
from components.distributions import Categorical, DiscretizedNormal, Normal, grid
from components.schedules import BetaSchedule, CosineSchedule, LogSNRLinearSchedule

F64 = torch.float64

# Nodes and weights for the mean over ε ~ N(0, 1).
EPSILON = torch.linspace(-9, 9, 401, dtype=F64)
WEIGHT = torch.exp(-0.5 * EPSILON**2) / torch.exp(-0.5 * EPSILON**2).sum()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("log_snr", [13.3, 6.0, 2.0])
def test_gaussian_last_costs_what_the_formula_says(log_snr):
    """L_0 = ½ log 2πe - ½ λ_0 nats a dimension: with E ε² = 1, whatever x."""
    schedule = LogSNRLinearSchedule(log_snr, -5.0)
    x = torch.randn(2, 3, dtype=F64).repeat_interleave(2, 0)
    alpha, sigma = schedule.alpha_sigma(0.0)
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    found = -GaussianLast(schedule)(alpha * x + sigma * signs).log_prob(x)
    expected = 3 * (0.5 * math.log(2 * math.pi * math.e) - 0.5 * log_snr)
    torch.testing.assert_close(found, torch.full((4,), expected, dtype=F64), rtol=1e-9, atol=1e-9)


def test_gaussian_last_is_the_likelihood_of_x_given_x_0_as_a_density_of_x():
    schedule = LogSNRLinearSchedule(2.0, -5.0)
    x_0 = torch.full((4001, 1), 0.3, dtype=F64)
    x = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    density = GaussianLast(schedule)(x_0).log_prob(x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-9)
    alpha, _ = schedule.alpha_sigma(0.0)
    assert x[density.argmax()].item() == pytest.approx((0.3 / alpha).item(), abs=4e-3)


def bits(levels, log_snr):
    """E[-log2 p(x|x_0)] for x uniform on the grid, by quadrature over the noise."""
    schedule = LogSNRLinearSchedule(log_snr, -5.0)
    alpha, sigma = schedule.alpha_sigma(0.0)
    last = GridLast(schedule, levels)
    total = 0.0
    for value in grid(levels, EPSILON)[: (levels + 1) // 2]:  # the other half is its mirror image
        x = value.expand(len(EPSILON), 1)
        cost = (WEIGHT * -last(alpha * x + sigma * EPSILON[:, None]).log_prob(x)).sum().item()
        total += cost if value.abs() < 1e-12 else 2 * cost
    return total / levels / math.log(2)


RECONSTRUCTION = pytest.mark.parametrize(
    "levels, log_snr, vdm, ours",
    [(256, 13.3, 0.010412, 0.010018), (17, 8.0, 0.005158, 0.002537), (17, 7.0, 0.184434, 0.139746)],
)


@RECONSTRUCTION
def test_numbers_of_the_reconstruction_in_bits(levels, log_snr, vdm, ours):
    assert bits(levels, log_snr) == pytest.approx(ours, abs=1e-6)


@RECONSTRUCTION
def test_numbers_of_the_reconstruction_on_vdm_s_closer_grid(levels, log_snr, vdm, ours):
    """Theirs is 2(v+½)/K - 1: only the spacing over σ_0/α_0 matters, so it is ours at a lower log-SNR."""
    assert bits(levels, log_snr + 2 * math.log((levels - 1) / levels)) == pytest.approx(vdm, abs=1e-6)


def test_grid_last_is_bayes_rule_on_an_even_grid():
    schedule = LogSNRLinearSchedule(3.0, -5.0)
    x_0 = torch.randn(5, 2, dtype=F64)
    p, values = GridLast(schedule, 17)(x_0), grid(17, x_0)
    evidence = torch.stack([schedule.marginal(value.view(1, 1), 0.0).log_prob(x_0.reshape(-1, 1)) for value in values])
    torch.testing.assert_close(
        p.log_mass, evidence.view(17, 5, 2).transpose(0, 1).log_softmax(1), rtol=1e-10, atol=1e-10
    )


def test_grid_last_on_images_is_a_categorical_of_its_levels():
    last = GridLast(LogSNRLinearSchedule(8.0, -5.0), 17)
    p = last(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16))
    assert isinstance(p, Categorical) and last.levels == p.levels == 17
    assert p.mean.shape == (2, 3, 4, 4) and p.mean.dtype == torch.float32 and p.log_mass.isfinite().all()


class Half(nn.Module):
    def forward(self, x_t, t, cond=None):
        return 0.5 * x_t if cond is None else cond * x_t


def test_denoised_last_stands_around_the_estimate():
    denoiser = Denoiser(Half(), BetaSchedule(), "sample")
    x_t, y = torch.randn(2, 4, 3, dtype=F64)
    p = DenoisedLast(denoiser, 0.001, 0.02)(x_t)
    assert isinstance(p, Normal)
    torch.testing.assert_close(p.log_prob(y), Normal(0.5 * x_t, 0.02).log_prob(y), rtol=1e-12, atol=0)
    assert torch.equal(DenoisedLast(denoiser, 0.001, 0.02)(x_t, 0.25).mean, 0.25 * x_t)


def test_denoised_last_on_levels_sums_to_one():
    denoiser = Denoiser(Half(), BetaSchedule(), "sample", clip=(-1.0, 1.0))
    p = DenoisedLast(denoiser, 0.001, 0.02, 17)(torch.full((17, 1), 9.0, dtype=F64))
    assert isinstance(p, DiscretizedNormal) and (p.normal.mean == 1).all()
    assert p.log_prob(grid(17, p.mean)[:, None]).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("schedule", [BetaSchedule(), CosineSchedule()], ids=["beta", "cosine"])
def test_a_schedule_without_noise_at_0_is_refused(schedule):
    for build in (GaussianLast, lambda schedule: GridLast(schedule, 17)):
        with pytest.raises(
            ValueError, match=f"needs noise at t = 0; {type(schedule).__name__} has σ = 0 there: use a fin"
        ):
            build(schedule)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_denoised_last_refuses_a_std_that_is_none(std):
    with pytest.raises(ValueError, match=f"std must be above 0; got {std}"):
        DenoisedLast(Denoiser(Half(), BetaSchedule(), "sample"), 0.001, std)
