"""Distributions over grey levels: two of them, or the K of a grid."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import wide
from .continuous import Normal, check_value, per_example

__all__ = ["Bernoulli", "Categorical", "DiscretizedLogistic", "DiscretizedNormal", "grid"]


def grid(levels: int, like: Tensor) -> Tensor:
    """The values 2v/(K-1) - 1, v = 0 … K-1, that discrete data of K levels take in [-1, 1]: (K,)."""
    return torch.linspace(-1, 1, levels, device=like.device, dtype=like.dtype)


def _rand_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise in the open interval (0, 1), safe under log."""
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return u.clamp(torch.finfo(x.dtype).tiny, 1 - torch.finfo(x.dtype).eps)


def _to_grid(y: Tensor, levels: int) -> Tensor:
    """y in [-1, 1] rounded to K levels, with the gradient of y."""
    steps = (levels - 1) / 2
    return y + (((y + 1) * steps).round() / steps - 1 - y).detach()


def _log_ndtr(x: Tensor) -> Tensor:
    """log Φ(x). torch's own has a gradient exp(-log Φ - ½x²) that cancels: in float32, 4% off at -1000, then NaN."""
    far = x < -1
    left, right = torch.where(far, x, -1.0), torch.where(far, -1.0, x)
    tail = torch.special.erfcx(-left * math.sqrt(0.5)).log() - 0.5 * left.square() - math.log(2)
    return torch.where(far, tail, torch.special.log_ndtr(right))


def _entropy(log_mass: Callable[[Tensor], Tensor], like: Tensor, levels: int) -> Tensor:
    """-Σ_v P(v) log P(v) for every dimension of `like`, summed over the event: (B,)."""
    values = grid(levels, like).view(-1, *[1] * like.ndim)
    masses = log_mass(values.expand(-1, *like.shape))
    return per_example(-(masses.exp() * masses).sum(0))


class Bernoulli:
    """Independent two-valued pixels in {-1, 1}, p(1) = sigmoid(logits).

    log p(y) = Σ h log p + (1 - h) log(1 - p) with h = (y + 1)/2; for grey y in (-1, 1) the same sum is the customary
    cross-entropy, which is no likelihood. Arguments: logits (B, *event).
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = wide(logits)

    @property
    def mean(self) -> Tensor:
        """2p - 1 = tanh(logits/2): (B, *event)."""
        return torch.tanh(self.logits / 2)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, *event) in {-1, 1}; gradients go straight through to the mean (Bengio 2013, 1308.3432)."""
        mean = self.mean
        hard = torch.where(_rand_like(mean, generator) < (mean + 1) / 2, 1.0, -1.0).to(mean.dtype)
        return hard + mean - mean.detach()

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) nats."""
        check_value(self, y, self.logits.shape)
        logits, y = torch.broadcast_tensors(self.logits, wide(y))
        return per_example(-F.binary_cross_entropy_with_logits(logits, (y + 1) / 2, reduction="none"))

    def entropy(self) -> Tensor:
        """(B,) nats."""
        p = torch.sigmoid(self.logits)
        return per_example(F.binary_cross_entropy_with_logits(self.logits, p, reduction="none"))


class DiscretizedLogistic:
    """A logistic integrated over the bins of K grey levels, edge bins open (Salimans 2017, 1701.05517, eq. 2).

    P(v) = S((x + ½Δ - mean)/s) - S((x - ½Δ - mean)/s), x = 2v/(K-1) - 1, Δ = 2/(K-1), S the sigmoid.
    Arguments: mean and log_scale = log s (B, *event); levels = K >= 2.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, levels: int) -> None:
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        self.location, self.log_scale, self.levels = wide(mean), wide(log_scale), levels

    @property
    def mean(self) -> Tensor:
        """The mean of the logistic clipped to [-1, 1], in closed form; rounding moves it by at most half a bin."""
        s = self.log_scale.exp()
        return -1 + s * (F.softplus((self.location + 1) / s) - F.softplus((self.location - 1) / s))

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, *event) on the grid; gradients go straight through the rounding."""
        u = _rand_like(self.location, generator)
        y = self.location + self.log_scale.exp() * (u.log() - (-u).log1p())
        return _to_grid(y.clamp(-1, 1), self.levels)

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) nats, of y on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.location.shape)
        return per_example(self._log_mass(wide(y)))

    def entropy(self) -> Tensor:
        """(B,) nats: the sum over all K levels, so it takes K times the event's memory."""
        return _entropy(self._log_mass, self.location, self.levels)

    def _log_mass(self, y: Tensor) -> Tensor:
        half = 1 / (self.levels - 1)
        inverse = (-self.log_scale).exp()
        upper, lower = (y + half - self.location) * inverse, (y - half - self.location) * inverse
        # log(S(u) - S(l)) = log S(u) + log S(-l) + log(1 - e^(l - u)): no cancellation, however far the tail.
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * half * inverse))
        tail = torch.where(y < -1 + half, F.logsigmoid(upper), F.logsigmoid(-lower))
        return torch.where((y < -1 + half) | (y > 1 - half), tail, inside)


class DiscretizedNormal:
    """A Gaussian integrated over the bins of K grey levels, edge bins open (Ho 2020, 2006.11239, eq. 13).

    P(v) = Φ((x + ½Δ - mean)/std) - Φ((x - ½Δ - mean)/std), x = 2v/(K-1) - 1, Δ = 2/(K-1).
    Arguments: mean (B, *event); std > 0, broadcastable to it; levels = K >= 2.
    """

    def __init__(self, mean: Tensor, std: Tensor | float, levels: int) -> None:
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        self.normal, self.levels = Normal(mean, std), levels

    @property
    def mean(self) -> Tensor:
        """The Gaussian's own mean, kept in [-1, 1]: (B, *event)."""
        return self.normal.mean.clamp(-1, 1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, *event) on the grid; gradients go straight through the rounding."""
        return _to_grid(self.normal.rsample(generator).clamp(-1, 1), self.levels)

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) nats, of y on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.normal.mean.shape)
        return per_example(self._log_mass(wide(y)))

    def entropy(self) -> Tensor:
        """(B,) nats: the sum over all K levels, so it takes K times the event's memory."""
        return _entropy(self._log_mass, self.normal.mean, self.levels)

    def _log_mass(self, y: Tensor) -> Tensor:
        half = 1 / (self.levels - 1)
        upper = (y + half - self.normal.mean) / self.normal.std
        lower = (y - half - self.normal.mean) / self.normal.std
        # Φ(u) - Φ(l) = Φ(-l) - Φ(-u): in the left tail both are small numbers, so no digits cancel.
        flip = lower > 0
        far = _log_ndtr(torch.where(flip, -lower, upper))
        near = _log_ndtr(torch.where(flip, -upper, lower))
        inside = far + torch.log(-torch.expm1((near - far).clamp(max=-torch.finfo(far.dtype).tiny)))
        tail = _log_ndtr(torch.where(y < -1 + half, upper, -lower))
        return torch.where((y < -1 + half) | (y > 1 - half), tail, inside)


class Categorical:
    """An arbitrary distribution over the K grey levels of every dimension.

    Arguments: logits (B, K, *event), unnormalized, over the values 2v/(K-1) - 1.
    """

    def __init__(self, logits: Tensor) -> None:
        if logits.ndim < 3 or logits.shape[1] < 2:
            raise ValueError(f"logits must be (B, K, *event) with K >= 2; got shape {tuple(logits.shape)}")
        self.log_mass = wide(logits).log_softmax(1)
        self.levels = logits.shape[1]

    @property
    def mean(self) -> Tensor:
        """(B, *event)."""
        return (self.log_mass.exp() * self._values()).sum(1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, *event) on the grid, by Gumbel's maximum; gradients go straight through to the mean."""
        u = _rand_like(self.log_mass, generator)
        index = (self.log_mass - (-u.log()).log()).argmax(1)
        mean = self.mean
        return grid(self.levels, mean)[index] + mean - mean.detach()

    def log_prob(self, y: Tensor) -> Tensor:
        """(B,) nats, of y on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.log_mass[:, 0].shape)
        index = ((wide(y) + 1) * ((self.levels - 1) / 2)).round().long().clamp(0, self.levels - 1)
        return per_example(self.log_mass.take_along_dim(index.unsqueeze(1), 1).squeeze(1))

    def entropy(self) -> Tensor:
        """(B,) nats."""
        return per_example(-(self.log_mass.exp() * self.log_mass).sum(1))

    def _values(self) -> Tensor:
        return grid(self.levels, self.log_mass).view(-1, *[1] * (self.log_mass.ndim - 2))
