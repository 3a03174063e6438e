import math

import pytest
import torch
from torch import nn

from components.denoisers import Denoiser
from components.schedules import BetaSchedule, LogSNRLinearSchedule
from hybrids import Diffusion

STD, T = 0.5, 8
F64 = torch.float64


class Exact(nn.Module):
    """E[ε|x_t] of x ~ N(0, STD²) times a scale, and v, the same for all, both learned."""

    def __init__(self, schedule, v):
        super().__init__()
        self.schedule = schedule
        self.scale = nn.Parameter(torch.ones((), dtype=F64))
        self.v = nn.Parameter(torch.full((T,), v, dtype=F64))

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (c.view(-1, 1) for c in self.schedule.alpha_sigma(t.expand(len(x_t))))
        epsilon = sigma * x_t / (alpha**2 * STD**2 + sigma**2)
        v = self.v[(t.expand(len(x_t)) * T).round().long() - 1]
        return torch.cat([self.scale * epsilon, v.view(-1, 1).expand_as(x_t)], 1)


def model(schedule, v=0.3):
    denoiser = Denoiser(Exact(schedule, v), schedule, "epsilon", "learned_range")
    return Diffusion(denoiser, 3, timesteps=T)


def best(schedule, i):
    """v at which p(x_s|x_t) has the variance of q(x_s|x_t), which is Gaussian for Gaussian data."""
    s, t = (i - 1) / T, i / T
    alpha, sigma = schedule.alpha_sigma(t)
    left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
    _, on_x, small = schedule.posterior_coefficients(s, t)
    large = schedule.step(s, t)[1]
    low, high = small.square().log(), large.log()
    return float(2 * ((small.square() + on_x.square() * left).log() - low) / (high - low) - 1)


SCHEDULES = [BetaSchedule("squaredcos_cap_v2", T), LogSNRLinearSchedule(4.0, -4.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["starts clean", "starts noisy"])
def test_the_variance_that_is_learned_is_that_of_the_exact_reverse_step(schedule):
    """At v = `best` the mean gradient of the term is zero at every level, and nowhere else; it is convex in log σ²."""
    torch.manual_seed(0)
    diffusion = model(schedule)
    network = diffusion.denoiser.backbone
    first = 1 + int(diffusion.starts_clean)
    for offset in (0.0, 0.5):
        with torch.no_grad():
            network.v.copy_(torch.tensor([best(schedule, i) + offset if i >= first else 0.0 for i in range(1, T + 1)]))
        draws = []
        for _ in range(60):
            network.v.grad = None
            diffusion.loss(STD * torch.randn(2000, 3, dtype=F64))["variance"][1].mean().backward()
            draws.append(network.v.grad)
        mean, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(len(draws))
        if offset == 0:
            assert (mean.abs() <= 4 * error)[first - 1 :].all()
        else:
            assert (mean > 4 * error)[first - 1 :].all()
    assert (mean[: first - 1] == 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["starts clean", "starts noisy"])
def test_its_gradient_is_in_the_variance_alone_and_its_weight_is_t_thousandths(schedule):
    torch.manual_seed(0)
    diffusion = model(schedule)
    network, x = diffusion.denoiser.backbone, STD * torch.randn(500, 3, dtype=F64)
    terms = diffusion.loss(x)
    assert set(terms) == {"simple", "variance"} and terms["variance"][0] == 0.001 * T
    of_scale, of_v = torch.autograd.grad(terms["variance"][1].mean(), [network.scale, network.v])
    assert of_scale == 0 and bool((of_v[int(diffusion.starts_clean) :] != 0).all())
    of_scale, of_v = torch.autograd.grad(diffusion.loss(x)["simple"][1].mean(), [network.scale, network.v])
    assert of_scale != 0 and bool((of_v == 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["starts clean", "starts noisy"])
def test_the_term_is_the_level_of_the_bound(schedule):
    """Its mean over random levels is the mean of `rates` over the same levels."""
    torch.manual_seed(0)
    diffusion, x = model(schedule), STD * torch.randn(40_000, 3, dtype=F64)
    found = diffusion.loss(x)["variance"][1].detach()
    expected = torch.stack([diffusion.rates(x[:5000]).mean(1).sum() / T for _ in range(4)])
    error = math.hypot(found.std() / math.sqrt(len(found)), expected.std() / 2)
    assert abs(found.mean() - expected.mean()) <= 4 * error
