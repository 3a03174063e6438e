"""Distributions: rows 1, 2 and 7."""

import math

import torch
from answers import F64

from components.distributions import DiscretizedLogistic, DiscretizedNormal, Normal, grid, kl


def test_the_kl_of_gaussians_is_the_mean_log_ratio(row):
    """KL(q ‖ p) of diagonal Gaussians in closed form is E_q[log q - log p]. Kingma & Welling 2013, appendix B."""
    (mean_q, mean_p), (std_q, std_p) = torch.randn(2, 1, 4, dtype=F64), 0.3 + torch.rand(2, 1, 4, dtype=F64)
    q, p = Normal(mean_q, std_q), Normal(mean_p, std_p)
    many = Normal(q.mean.expand(20_000, 4), q.std)
    z = many.rsample()
    ratio = many.log_prob(z) - p.log_prob(z)
    row(1, kl(q, p), ratio.mean(), standard_error=ratio.std() / math.sqrt(len(z)), words="against 20 000 draws")
    one = kl(Normal(torch.tensor([[0.7]], dtype=F64), 0.4), Normal(torch.zeros(1, 1, dtype=F64), 1.0))
    row(1, one, 0.741291, relative=1e-6, words="KL(N(.7, .4²) ‖ N(0, 1))")


def test_reparameterized_gradients(row):
    """Of z = μ + σ ε the mean gradient of z² is 2μ and 2σ. Kingma & Welling 2013, 1312.6114, section 2.4."""
    mean = torch.full((40_000, 1), 0.7, dtype=F64, requires_grad=True)
    std = torch.full((40_000, 1), 0.4, dtype=F64, requires_grad=True)
    Normal(mean, std).rsample().square().sum().backward()
    for leaf, expected, words in ((mean, 1.4, "∇_μ E[z²] at μ = .7"), (std, 0.8, "∇_σ E[z²] at σ = .4")):
        row(2, leaf.grad.mean(), expected, standard_error=leaf.grad.std() / 200, words=words)


def test_discretized_masses_sum_to_one(row):
    """A discretized logistic or Gaussian sums to one over its grey levels, edge bins open. Salimans 2017; Ho 2020."""
    means = torch.tensor([-30.0, -1.0, -0.37, 0.0, 0.999, 2.0, 30.0], dtype=F64)
    kinds = {
        "logistic": lambda mean, scale, grey_levels: DiscretizedLogistic(mean, scale.log(), grey_levels),
        "Gaussian": DiscretizedNormal,
    }
    for kind, make in kinds.items():
        for grey_levels in (256, 17):
            y = grid(grey_levels, means).repeat(len(means))[:, None]
            mean = means.repeat_interleave(grey_levels)[:, None]
            scales = (1e-3, 0.02, 0.3, 5.0)
            mass = torch.stack([make(mean, torch.full_like(mean, s), grey_levels).log_prob(y).exp() for s in scales])
            total = mass.view(len(scales), len(means), grey_levels).sum(2)
            row(7, total, 1.0, 1e-10, words=f"{kind}, {grey_levels} levels")
