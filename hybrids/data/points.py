"""Two-dimensional data with an exact sampler and an exact log-density."""

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Checkerboard", "Density", "Mixture", "gaussians_8", "gaussians_25"]


class Density(Protocol):
    """A distribution over points (D,) that can be drawn from and whose density is known; all in float64."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, D), float64."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats, float64, for x (B, D) of any floating type."""
        ...


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
        squares = (x.double().unsqueeze(1) - self.means.to(x.device)).square().sum(-1) / self.std**2
        d = self.means.shape[1]
        constant = math.log(len(self.means)) + d * math.log(self.std * math.sqrt(2 * math.pi))
        return torch.logsumexp(-0.5 * squares, dim=1) - constant

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest mode's index (B,), and the distance to it in units of σ (B,)."""
        distance, index = torch.cdist(x.double().cpu(), self.means).min(1)
        return index, distance / self.std


class Checkerboard:
    """The uniform distribution on every other square of a board: log p(x) = -log(area) there, -∞ elsewhere.

    Argument: squares, along one side; even, so that the mean is zero. The board is [-√3, √3]², which makes either
    coordinate uniform with unit variance.
    """

    def __init__(self, squares: int = 4) -> None:
        if squares < 2 or squares % 2:
            raise ValueError(f"squares must be even and at least 2; got {squares}")
        self.squares, self.side = squares, 2 * math.sqrt(3) / squares

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, 2), float64."""
        row = torch.randint(self.squares, (n,), generator=generator)
        # Of a row's squares those whose column has the row's parity.
        column = 2 * torch.randint(self.squares // 2, (n,), generator=generator) + row % 2
        inside = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return (torch.stack([column, row], 1) + inside) * self.side - math.sqrt(3)

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats."""
        cell = ((x.double() + math.sqrt(3)) / self.side).floor()
        on = ((cell >= 0) & (cell < self.squares)).all(-1) & (cell.sum(-1) % 2 == 0)
        # Half of (2√3)².
        return torch.full_like(cell[:, 0], -math.log(6)).masked_fill(~on, -math.inf)


def gaussians_8() -> Mixture:
    """Eight Gaussians of σ 0.1 on a circle of radius 2, scaled to unit variance in each direction."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    scale = 1 / math.sqrt(2 + 0.1**2)
    return Mixture(2 * scale * torch.stack([angle.cos(), angle.sin()], 1), 0.1 * scale)


def gaussians_25() -> Mixture:
    """A 5 × 5 grid of Gaussians of spacing 2 and σ 0.05, scaled to unit variance in each direction."""
    line = torch.arange(-4.0, 5.0, 2.0, dtype=torch.float64)
    scale = 1 / math.sqrt(8 + 0.05**2)
    return Mixture(torch.cartesian_prod(line, line) * scale, 0.05 * scale)
