"""Points on curves, blurred by Gaussian noise; their density is an integral over the curve."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Curves", "swiss_roll", "two_moons"]

NODES = 8
"""Gauss-Legendre nodes of a panel. With panels no longer than σ, log p is right to 1e-6 up to 8σ from the curve."""


class Curves:
    """x = a ⊙ (c_k(u) - m) + σ ε with k uniform, u ~ U(0, 1), ε ~ N(0, I), of zero mean and unit variance.

    p(x) = (1/K) Σ_k ∫₀¹ N(x; c_k(u), σ² I) du, by a composite Gauss-Legendre rule; m and a (by coordinate) are those
    for which the mean is 0 and each variance 1 - σ² before the noise.

    Arguments: curves, c_k: (n,) in [0, 1] → (n, 2); speed, the largest |dc_k/du|; std = σ, after scaling, below 1.
    """

    def __init__(self, curves: list[Callable[[Tensor], Tensor]], speed: float, std: float) -> None:
        if not 0 < std < 1:
            raise ValueError(f"std must be in (0, 1), since the variance is 1 with the noise; got {std}")
        self.curves, self.std = curves, std
        self.centre, self.scale = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        points, weights = self.quadrature(math.ceil(speed))
        mean = weights @ points
        variance = weights @ (points - mean).square()
        self.centre, self.scale = mean, ((1 - std**2) / variance).sqrt()
        self.panels = math.ceil(speed * self.scale.max().item() / std)
        self.nodes, self.weights = self.quadrature(self.panels)

    def quadrature(self, panels: int) -> tuple[Tensor, Tensor]:
        """Points on the scaled curves (N, 2) and their weights (N,), which sum to one."""
        x, w = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(NODES))
        left = torch.arange(panels, dtype=torch.float64)[:, None] / panels
        u = (left + (x + 1) / (2 * panels)).flatten()
        weight = (w / (2 * panels)).repeat(panels) / len(self.curves)
        return torch.cat([self._at(curve, u) for curve in self.curves]), weight.repeat(len(self.curves))

    def _at(self, curve: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        return (curve(u) - self.centre) * self.scale

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, 2), float64."""
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        index = torch.randint(len(self.curves), (n,), generator=generator)
        every = torch.stack([self._at(curve, u) for curve in self.curves])
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return every[index, torch.arange(n)] + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats."""
        nodes = self.nodes.to(x.device) / self.std
        # log N(x; c, σ² I) w = x·c/σ² - |x|²/2σ² + (log w - |c|²/2σ² - log 2πσ²): one matrix product.
        bias = self.weights.log().to(x.device) - nodes.square().sum(1) / 2 - math.log(2 * math.pi * self.std**2)
        found = [
            torch.addmm(bias, part, nodes.T).logsumexp(1) - part.square().sum(1) / 2
            # A chunk's products with all nodes stay within some tens of MB.
            for part in (x.double() / self.std).split(1024)
        ]
        return torch.cat(found)


def swiss_roll(std: float = 0.075) -> Curves:
    """The roll (t cos t, t sin t), t uniform in (3π/2, 9π/2), as scikit-learn's seen from its end (Marsland 2009).

    The noise, about 0.5 before scaling, keeps the turns apart.
    """

    def roll(u: Tensor) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * u)
        return torch.stack([t * t.cos(), t * t.sin()], 1)

    return Curves([roll], 3 * math.pi * math.hypot(1, 4.5 * math.pi), std)


def two_moons(std: float = 0.1) -> Curves:
    """Two half circles that reach into each other, as scikit-learn's; each coordinate scaled to unit variance."""

    def outer(u: Tensor) -> Tensor:
        angle = math.pi * u
        return torch.stack([angle.cos(), angle.sin()], 1)

    def inner(u: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.5], dtype=torch.float64) - outer(u)

    return Curves([outer, inner], math.pi, std)
