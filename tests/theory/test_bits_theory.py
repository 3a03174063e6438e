"""Bits a dimension: row 42."""

import math

import torch
from answers import F64
from torch import nn

from components.distributions import Categorical, DiscretizedNormal, Normal, dequantized, grid, log_bin
from hybrids import Terms
from hybrids.evaluation import likelihood


class Uniform(nn.Module):
    """Every one of K grey levels equally likely."""

    def __init__(self, grey_levels):
        super().__init__()
        self.grey_levels = grey_levels

    def nll(self, x, cond=None):
        return Terms(nll=-Categorical(torch.zeros(len(x), self.grey_levels, *x.shape[1:], dtype=F64)).log_prob(x))


class Box(nn.Module):
    """The density that is uniform over all bins of K grey levels, from -1 - ½Δ to 1 + ½Δ."""

    def __init__(self, grey_levels):
        super().__init__()
        self.width = 2 + math.exp(log_bin(grey_levels))

    def nll(self, x, cond=None):
        assert (x.abs() <= self.width / 2).all()
        return Terms(nll=torch.full((len(x),), x[0].numel() * math.log(self.width), dtype=F64))


def test_bits_a_dimension_are_nats_over_d_log_2_and_the_bin_s_volume(row):
    """Bits/dim are nats/(d log 2), and for a density of x = 2v/(K-1) - 1 also log2((K-1)/2). Theis 2015, 1511.01844."""
    for grey_levels, volume in ((256, 6.994353), (17, 3.0)):
        x = grid(grey_levels, torch.zeros((), dtype=F64))[torch.randint(grey_levels, (20, 1, 4, 4))]
        discrete = likelihood(Uniform(grey_levels), x, draws=20)
        row(42, discrete["bits_per_dim"], math.log2(grey_levels), 1e-12, words=f"uniform over {grey_levels} levels")
        row(42, discrete["nats"] / (16 * math.log(2)), math.log2(grey_levels), 1e-12, words="its nats/(d log 2)")
        change = -log_bin(grey_levels) / math.log(2)
        density = likelihood(Box(grey_levels), dequantized(x, grey_levels), draws=20)["nats_per_dim"] / math.log(2)
        row(42, density + change, math.log2(grey_levels), 1e-12, words="its dequantized density, and the volume")
        row(42, change, volume, 1e-6, words=f"log2((K-1)/2), K = {grey_levels}")


def test_a_dequantized_density_bounds_the_probability_of_its_bins(row):
    """E log p(x + Δu) + log Δ is at most log P(x), P the mass of the bin. Theis 2015, 1511.01844, section 3.1."""
    grey_levels, std, n = 17, 0.2, 40_000
    mean = torch.tensor([[0.1]], dtype=F64)
    x = grid(grey_levels, mean)[4:13, None]
    mass = DiscretizedNormal(mean.expand_as(x), std, grey_levels).log_prob(x)
    draws = dequantized(x.repeat(n, 1), grey_levels)
    density = Normal(mean, std).log_prob(draws).view(n, len(x)) + log_bin(grey_levels)
    error = density.std(0) / math.sqrt(n)
    row(42, density.mean(0) - mass, at_most=0.0, standard_error=error, words="density less mass, K = 17, nats")
