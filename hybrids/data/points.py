"""Two-dimensional data with an exact sampler and an exact log-density."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Checkerboard", "Density", "Mixture", "gaussians_8", "gaussians_25", "swiss_roll", "two_moons"]


class Density(Protocol):
    """A distribution over points (D,) that can be drawn from and whose density is known; all in float64."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, D), float64."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats, float64, for x (B, D) of any floating type."""
        ...


class Mixture:
    """A mixture of N(m_k, σ² I): log p(x) = log Σ_k w_k N(x; m_k, σ² I).

    Arguments:
        means: m, (K, D).
        std: σ, positive.
        weights: w, (K,), which sum to 1; None for 1/K each. The components of an even mixture are its modes, which
            `hybrids.evaluation` counts; those of a weighted one are nodes of an integral, and no modes.
    """

    def __init__(self, means: Tensor, std: float, weights: Tensor | None = None) -> None:
        self.means, self.std = means.double(), std
        self.weights = None if weights is None else weights.double()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw (n, D), float64."""
        if self.weights is None:
            index = torch.randint(len(self.means), (n,), generator=generator)
        else:
            index = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[index] + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of x (B, D): (B,) nats, float64."""
        k, d = self.means.shape
        means = self.means.to(x.device) / self.std
        weights = means.new_full((k,), 1 / k) if self.weights is None else self.weights.to(x.device)
        # log w N(x; m, σ² I) = x·m/σ² - |x|²/2σ² + (log w - |m|²/2σ² - d log σ√2π): one matrix product.
        bias = weights.log() - means.square().sum(1) / 2 - d * math.log(self.std * math.sqrt(2 * math.pi))
        parts = (x.double() / self.std).split(max(1, 2**21 // k))  # 16 MB for each part's products with all means
        return torch.cat([torch.addmm(bias, y, means.T).logsumexp(1) - y.square().sum(1) / 2 for y in parts])

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index of the nearest mean (B,), and the distance to it in units of σ (B,)."""
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
        """Draw (n, 2), float64."""
        row = torch.randint(self.squares, (n,), generator=generator)
        # Of a row's squares those whose column has the row's parity.
        column = 2 * torch.randint(self.squares // 2, (n,), generator=generator) + row % 2
        inside = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return (torch.stack([column, row], 1) + inside) * self.side - math.sqrt(3)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of x (B, 2): (B,) nats."""
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


def swiss_roll(std: float = 0.075) -> Mixture:
    """The roll (t cos t, t sin t), t uniform in (3π/2, 9π/2), as scikit-learn's seen from its end (Marsland 2009).

    The noise, about 0.5 before scaling, keeps the turns apart.
    """

    def roll(u: Tensor) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * u)
        return torch.stack([t * t.cos(), t * t.sin()], 1)

    return _along([roll], 20.2, std)


def two_moons(std: float = 0.1) -> Mixture:
    """Two half circles that reach into each other, as scikit-learn's; each coordinate scaled to unit variance."""

    def outer(u: Tensor) -> Tensor:
        return torch.stack([(math.pi * u).cos(), (math.pi * u).sin()], 1)

    def inner(u: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.5], dtype=torch.float64) - outer(u)

    return _along([outer, inner], 6.4, std)


def _along(curves: list[Callable[[Tensor], Tensor]], length: float, std: float) -> Mixture:
    """Return the mixture of Gaussians at the nodes of a quadrature along curves, of mean 0 and variance 1.

    The nodes are those of a composite Gauss-Legendre rule of the integral (1/K) Σ_k ∫₀¹ N(x; c_k(u), σ² I) du: 8 in a
    panel no longer than σ, which makes log p that of the blurred curves to 1e-6 up to 8σ from them.

    Arguments: curves, c_k: (n,) in [0, 1] → (n, 2); length, at least |dc_k/du| after scaling; std = σ, below 1.
    """
    if not 0 < std < 1:
        raise ValueError(f"std must be in (0, 1), since the variance is 1 with the noise; got {std}")
    panels = math.ceil(length / std)
    x, w = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(8))
    u = (torch.arange(panels)[:, None] + (x + 1) / 2).flatten() / panels
    points = torch.cat([curve(u) for curve in curves])
    weights = w.repeat(panels * len(curves)) / (2 * panels * len(curves))
    points = points - weights @ points
    return Mixture(points * ((1 - std**2) / (weights @ points.square())).sqrt(), std, weights)
