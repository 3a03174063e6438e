"""What models share: a ratio of densities that keeps its digits, and the errors of what has no likelihood."""

import pytest
import torch
from answers import F64
from torch import nn

from components.distributions import Delta, Normal
from hybrids import GAN, VAE, AdversarialDiffusion, Critic, StandardNormal
from hybrids.evaluation import importance_weighted
from hybrids.models.parts import log_ratio

X = torch.tensor([[0.3, -0.6]], dtype=F64)


def test_near_gaussians_keep_their_digits_in_float32():
    """log p - log q at a distance of 1e-4 σ: the two log-densities, of -1000 each, would leave nothing of it."""
    mean = torch.randn(4, 1000)
    q, p = Normal(mean, 0.05), Normal(mean + 5e-6, 0.05)
    y = q.rsample()
    shift = (q.mean.double() - p.mean.double()) / q.std.double()
    away = (y.double() - q.mean.double()) / q.std.double()
    exact = -(shift * away + 0.5 * shift**2).sum(1)
    torch.testing.assert_close(log_ratio(p, q, y), exact, rtol=1e-8, atol=1e-10)
    assert ((p.log_prob(y) - q.log_prob(y)).double() - exact).abs().max() > 1e-5


def test_the_ratio_of_two_points_is_one():
    """Nothing is left to choose."""
    y = torch.randn(4, 3)
    assert not log_ratio(Delta(y + 1), Delta(y), y).any() and log_ratio(Delta(y), Delta(y), y).dtype == F64


class Encoder(nn.Module):
    def forward(self, x, cond=None):
        return Normal(0.5 * x, 0.6)


class Prior(nn.Module):
    nll = sample = None


GAME = GAN(nn.Linear(2, 2), Critic(nn.Linear(2, 1), lambda *logits: None), 2)


@pytest.mark.parametrize("ask, error, message", [
    (lambda: VAE(Encoder(), Encoder(), Prior()).log_weight(X), ValueError,
     "prior must offer log_weight .*; Prior does not"),
    (lambda: importance_weighted(nn.Linear(2, 2), X, 4), TypeError,
     "model must offer log_weight .*; Linear does not"),
    (lambda: importance_weighted(StandardNormal(2), X, samples=0), ValueError, "samples and rows must be at least 1"),
    (lambda: importance_weighted(StandardNormal(2), X, samples=1, rows=0), ValueError,
     "samples and rows must be at least 1"),
    (lambda: GAME.log_prob(X), TypeError, "GAN is an implicit model: .* measure its samples instead, by coverage"),
    (lambda: AdversarialDiffusion.__new__(AdversarialDiffusion).log_prob(X), TypeError,
     "AdversarialDiffusion is an implicit model: .* measure its samples instead, by coverage"),
])  # fmt: skip
def test_what_has_no_weight_or_density_is_refused_by_name(ask, error, message):
    with pytest.raises(error, match=message):
        ask()
