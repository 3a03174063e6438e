"""Two-dimensional data with an exact sampler and an exact log-density."""

import math

import torch
from torch import Tensor

__all__ = ["Mixture", "gaussians_25"]


class Mixture:
    """An even mixture of N(m_k, σ² I): log p(x) = log (1/K) Σ_k N(x; m_k, σ² I).

    Arguments: means (K, D); std = σ.
    """

    def __init__(self, means: Tensor, std: float) -> None:
        self.means, self.std = means.double(), std

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, D), float64."""
        index = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[index] + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats."""
        squares = (x.double().unsqueeze(1) - self.means).square().sum(-1) / self.std**2
        d = self.means.shape[1]
        constant = math.log(len(self.means)) + d * math.log(self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(-0.5 * squares, dim=1) - constant

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest mode's index (B,), and the distance to it in units of σ (B,)."""
        distance, index = torch.cdist(x.double().cpu(), self.means).min(1)
        return index, distance / self.std


def gaussians_25() -> Mixture:
    """A 5 × 5 grid of Gaussians of spacing 2 and σ 0.05, scaled to unit variance in each direction."""
    line = torch.arange(-4.0, 5.0, 2.0, dtype=torch.float64)
    scale = 1 / math.sqrt(8 + 0.05**2)
    return Mixture(torch.cartesian_prod(line, line) * scale, 0.05 * scale)
