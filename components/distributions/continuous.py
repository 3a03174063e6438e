"""The protocol of a distribution, the Gaussian, the point mass, and distributions that can only be sampled."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..precision import wide

__all__ = ["Delta", "Distribution", "Implicit", "Normal", "per_example", "randn_like"]


@runtime_checkable
class Distribution(Protocol):
    """A distribution over (B, *event); `Implicit` offers `rsample` only, and its other members raise."""

    @property
    def mean(self) -> Tensor:
        """Return the mean (B, *event)."""
        ...

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event), differentiably in the parameters."""
        ...

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log p(y) (B,) in nats. Raises ValueError unless y is (B, *event) or (1, *event)."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats."""
        ...


class Normal:
    """The Gaussian N(mean, diag std²): log p(y) = -½ Σ ((y - mean)²/std² + log 2π std²).

    Arguments:
        mean: (B, *event).
        std: > 0, broadcastable to mean. A std of 0 can be sampled from, but has no density.
    """

    def __init__(self, mean: Tensor, std: Tensor | float) -> None:
        self.mean = wide(mean)
        self.std = torch.as_tensor(std, dtype=self.mean.dtype, device=mean.device)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + std ε (B, *event), ε ~ N(0, I)."""
        return self.mean + self.std * randn_like(self.mean, generator)

    def log_prob(self, y: Tensor) -> Tensor:
        """Return the log-density (B,) in nats of y (B, *event)."""
        check_value(self, y, self.mean.shape)
        squares = ((wide(y) - self.mean) / self.std).square()
        return per_example(-0.5 * (squares + math.log(2 * math.pi)) - self.std.log())

    def entropy(self) -> Tensor:
        """Return ½ Σ log 2πe std²: (B,) in nats."""
        return per_example(0.5 * math.log(2 * math.pi * math.e) + self.std.log().expand_as(self.mean))


class Delta:
    """A point mass, the output of a deterministic decoder or a GAN's generator.

    `log_prob` is the log of the mass at y, 0 or -inf, not a density; its entropy is 0 in the same sense.

    Arguments:
        mean: the point (B, *event).
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = wide(mean)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return the point itself (B, *event)."""
        return self.mean

    def log_prob(self, y: Tensor) -> Tensor:
        """Return the log-mass (B,) of y (B, *event): 0 where y is the point, else -inf."""
        check_value(self, y, self.mean.shape)
        same = (y == self.mean).flatten(1).all(1)
        return torch.zeros(len(self.mean), dtype=self.mean.dtype, device=self.mean.device).masked_fill(~same, -math.inf)

    def entropy(self) -> Tensor:
        """Return 0 for each example: (B,)."""
        return torch.zeros(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)


class Implicit:
    """A distribution that can only be sampled, such as a GAN's: `mean`, `log_prob` and `entropy` raise TypeError.

    Arguments:
        draw: a function of a generator (or None) that returns (B, *event).
        name: the model's name, for the error messages.
    """

    def __init__(self, draw: Callable[[torch.Generator | None], Tensor], name: str) -> None:
        self.draw, self.name = draw, name

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event)."""
        return self.draw(generator)

    @property
    def mean(self) -> Tensor:
        """Raise TypeError: there is no mean."""
        raise self._refusal("mean")

    def log_prob(self, y: Tensor) -> Tensor:
        """Raise TypeError: there is no density."""
        raise self._refusal("log_prob")

    def entropy(self) -> Tensor:
        """Raise TypeError: there is no density."""
        raise self._refusal("entropy")

    def _refusal(self, what: str) -> TypeError:
        return TypeError(f"{self.name} is an implicit distribution: it has rsample, but no {what}; use samples instead")


def per_example(values: Tensor) -> Tensor:
    """Sum values (B, *event) over the event: (B,)."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw standard normal noise of x's shape, type and device; `torch.randn_like` takes no generator."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def rand_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw uniform noise of x's shape in the open interval (0, 1), where log u and log(1 - u) are finite."""
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return u.clamp(torch.finfo(x.dtype).tiny, 1 - torch.finfo(x.dtype).eps)


def same_event(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two shapes (B, *event) are equal, a batch of 1 aside: nothing else may broadcast."""
    return one[1:] == other[1:] and (one[:1] == other[:1] or 1 in (*one[:1], *other[:1]))


def check_value(p: Distribution, y: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError, naming p's class, unless y has p's shape (B, *event), or either has a batch of 1."""
    if not same_event(y.shape, shape):
        raise ValueError(
            f"y must have the {type(p).__name__}'s shape {tuple(shape)} (either may have a batch of 1); "
            f"got shape {tuple(y.shape)}"
        )
