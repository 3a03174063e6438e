"""The Gaussian, the point mass, and the distribution that can only be sampled."""

import math

import pytest
import torch
from answers import F64
from instances import normal

from components.distributions import Delta, Implicit, Normal, kl


def test_normal_log_prob_is_torch_s():
    q = normal()
    y = torch.randn_like(q.mean)
    expected = torch.distributions.Normal(q.mean, q.std).log_prob(y).sum((1, 2))
    torch.testing.assert_close(q.log_prob(y), expected, rtol=1e-12, atol=0)


def test_normal_entropy_counts_every_dimension_of_a_shared_std():
    p = Normal(torch.zeros(3, 2, 2, dtype=F64), 0.5)
    expected = 4 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    torch.testing.assert_close(p.entropy(), torch.full((3,), expected, dtype=F64), rtol=1e-12, atol=0)


def test_a_shared_std_and_a_batch_of_one_broadcast_in_log_prob():
    y = torch.randn(5, 2, 2, dtype=F64)
    shared, full = Normal(torch.zeros(1, 2, 2, dtype=F64), 2.0), Normal(torch.zeros_like(y), torch.full_like(y, 2.0))
    torch.testing.assert_close(shared.log_prob(y), full.log_prob(y), rtol=1e-14, atol=0)


@pytest.mark.parametrize("std", [0.5, (), (1, 2, 1), (1, 2, 2), (3, 1, 1)])
def test_a_shared_std_is_one_for_all_in_log_prob_and_in_kl(std):
    mean, y = torch.randn(2, 3, 2, 2, dtype=F64)
    std = std if isinstance(std, float) else 0.3 + torch.rand(std, dtype=F64)
    shared, full = Normal(mean, std), Normal(mean, torch.as_tensor(std, dtype=F64).expand(3, 2, 2))
    torch.testing.assert_close(shared.log_prob(y), full.log_prob(y), rtol=1e-12, atol=1e-12)
    other = normal()
    torch.testing.assert_close(kl(shared, other), kl(full, other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl(other, shared), kl(other, full), rtol=1e-12, atol=1e-12)


def test_delta_is_all_mass_on_one_point():
    x = torch.randn(3, 2)
    y = x.clone()
    y[1, 0] += 1
    assert Delta(x).log_prob(y).tolist() == [0.0, -math.inf, 0.0] and Delta(x).entropy().tolist() == [0.0] * 3
    assert torch.equal(Delta(x).rsample(), x)


TINY = Implicit(lambda generator: torch.randn(3, 2, generator=generator), "TinyGAN")


def test_an_implicit_distribution_draws_repeatably():
    assert torch.equal(*(TINY.rsample(torch.Generator().manual_seed(1)) for _ in range(2)))


@pytest.mark.parametrize("name, call", [
    ("mean", lambda: TINY.mean), ("log_prob", lambda: TINY.log_prob(torch.zeros(3, 2))), ("entropy", TINY.entropy),
])  # fmt: skip
def test_refusals(name, call):
    message = f"TinyGAN is an implicit distribution: it has rsample, but no {name}; use samples instead"
    with pytest.raises(TypeError, match=message):
        call()
