import math

import pytest
import torch
from torch import nn

from components.discriminators import NoiseOfPair
from components.schedules import CosineSchedule, FlowSchedule, VariancePreservingSchedule


class OfPairs(nn.Module):
    """Records its inputs."""

    def forward(self, x, given, **optional):
        self.given, self.optional = given, optional
        return (x * given).flatten(1).sum(1)


@pytest.mark.parametrize("schedule", [VariancePreservingSchedule(), CosineSchedule(), FlowSchedule()])
def test_the_noise_of_a_real_pair_is_the_noise_that_made_it_whatever_x_is(schedule):
    x, epsilon = 3 + 5 * torch.rand(3, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    s, t = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    x_s = schedule.marginal(x, s.double()).rsample()
    transition = schedule.transition(x_s, s.double(), t)
    network = OfPairs()
    logits = NoiseOfPair(network, schedule, 4)(x_s, t=t, given=transition.mean + transition.std * epsilon)
    torch.testing.assert_close(network.given, epsilon, rtol=0, atol=1e-10)
    assert network.optional.keys() == {"t"}
    torch.testing.assert_close(logits, (x_s * epsilon).sum(1), rtol=0, atol=1e-9)


def test_with_one_step_there_is_no_time_and_the_noise_is_that_of_t_1():
    schedule, network = VariancePreservingSchedule(), OfPairs()
    x, x_1 = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(1.0)
    NoiseOfPair(network, schedule, 1)(x, given=x_1)
    torch.testing.assert_close(network.given, (x_1 - alpha * x) / sigma, rtol=0, atol=1e-10)
    assert network.optional == {}


def test_the_noise_of_a_pair_separates_generators_that_return_the_mean():
    """x = ±1 with x̂ = E[x|x_t] = tanh(α x_t/σ²): the last step's ε is independent of x, but not of x̂."""
    schedule, n = VariancePreservingSchedule(), 100_000
    x, t = torch.randint(2, (n, 1)).double() * 2 - 1, torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    x_t = alpha * x + sigma * torch.randn_like(x)
    mean = torch.tanh(alpha * x_t / sigma.square())
    pair = NoiseOfPair(OfPairs(), schedule, 2)
    real, fake = ((pair.noise(x_s, x_t, t) * x_s).mean().abs().item() for x_s in (x, mean))
    error = 4 / math.sqrt(n)
    assert real < error < fake / 10


SCHEDULE, X = VariancePreservingSchedule(), torch.zeros(2, 3)


@pytest.mark.parametrize("make, message", [
    (lambda: NoiseOfPair(OfPairs(), SCHEDULE, 0), "timesteps must be at least 1; got 0"),
    (lambda: NoiseOfPair(OfPairs(), SCHEDULE, 1)(X), "given must be x_t"),
    (lambda: NoiseOfPair(OfPairs(), SCHEDULE, 4)(X, given=X), "t must be given where timesteps = 4 > 1"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
