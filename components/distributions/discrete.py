"""Distributions over grey levels: Bernoulli over two of them, the others over the K of a grid.

A level of mass 0 (an infinite logit, or a mass that underflows) adds nothing to an entropy.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import wide
from .continuous import Normal, check_value, per_example, rand_like

__all__ = ["Bernoulli", "Categorical", "DiscretizedLogistic", "DiscretizedNormal", "grid"]


class Bernoulli:
    """Independent two-valued pixels in {-1, 1}, p(1) = sigmoid(logits).

    log p(y) = Σ h log p + (1 - h) log(1 - p) with h = (y + 1)/2; for grey y in (-1, 1) the same sum is the customary
    cross-entropy, which is no likelihood.

    Arguments:
        logits: (B, *event); ±inf makes a pixel certain.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = wide(logits)

    @property
    def mean(self) -> Tensor:
        """Return 2p - 1 = tanh(logits/2): (B, *event)."""
        return torch.tanh(self.logits / 2)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event) in {-1, 1}; gradients go straight through to the mean (Bengio 2013, arXiv 1308.3432)."""
        mean = self.mean
        hard = torch.where(rand_like(mean, generator) < (mean + 1) / 2, 1.0, -1.0).to(mean.dtype)
        return hard + mean - mean.detach()

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log p(y) (B,) in nats of y (B, *event)."""
        check_value(self, y, self.logits.shape)
        return per_example(-binary_cross_entropy((wide(y) + 1) / 2, self.logits))

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats."""
        return per_example(binary_cross_entropy(torch.sigmoid(self.logits), self.logits))


class DiscretizedLogistic:
    """A logistic integrated over the bins of K grey levels, edge bins open (Salimans 2017, 1701.05517, eq. 2).

    P(v) = S((x + ½Δ - mean)/s) - S((x - ½Δ - mean)/s), x = 2v/(K-1) - 1, Δ = 2/(K-1), S the sigmoid.

    Arguments:
        mean: of the logistic, (B, *event).
        log_scale: log s, broadcastable to mean.
        grey_levels: K >= 2.
    Raises: ValueError for grey_levels below 2.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, grey_levels: int) -> None:
        check_grey_levels(grey_levels)
        self.location, self.log_scale, self.grey_levels = wide(mean), wide(log_scale), grey_levels

    @property
    def mean(self) -> Tensor:
        """Return the mean (B, *event) of the logistic clipped to [-1, 1], within half a bin of the exact one."""
        s = self.log_scale.exp()
        return -1 + s * (F.softplus((self.location + 1) / s) - F.softplus((self.location - 1) / s))

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event) on the grid; gradients go straight through the rounding."""
        u = rand_like(self.location, generator)
        y = self.location + self.log_scale.exp() * (u.log() - (-u).log1p())
        return _to_grid(y.clamp(-1, 1), self.grey_levels)

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log P(y) (B,) in nats of y (B, *event) on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.location.shape)
        return per_example(self._log_mass(wide(y)))

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats, summed over all K levels at once: K times the event's memory."""
        return _entropy(self._log_mass, self.location, self.grey_levels)

    def _log_mass(self, y: Tensor) -> Tensor:
        half = 1 / (self.grey_levels - 1)
        inverse = (-self.log_scale).exp()
        upper, lower = (y + half - self.location) * inverse, (y - half - self.location) * inverse
        # log(S(u) - S(l)) = log S(u) + log S(-l) + log(1 - e^(l - u)): no cancellation, however far the tail.
        width = torch.log(-torch.expm1(_below_zero(-2 * half * inverse)))
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + width
        tail = torch.where(y < -1 + half, F.logsigmoid(upper), F.logsigmoid(-lower))
        return torch.where((y < -1 + half) | (y > 1 - half), tail, inside)


class DiscretizedNormal:
    """A Gaussian integrated over the bins of K grey levels, edge bins open (Ho 2020, 2006.11239, eq. 13).

    P(v) = Φ((x + ½Δ - mean)/std) - Φ((x - ½Δ - mean)/std), x = 2v/(K-1) - 1, Δ = 2/(K-1).

    Arguments:
        mean: of the Gaussian, (B, *event).
        std: > 0, broadcastable to mean.
        grey_levels: K >= 2.
    Raises: ValueError for grey_levels below 2.
    """

    def __init__(self, mean: Tensor, std: Tensor | float, grey_levels: int) -> None:
        check_grey_levels(grey_levels)
        self.normal, self.grey_levels = Normal(mean, std), grey_levels

    @property
    def mean(self) -> Tensor:
        """Return the Gaussian's mean, clipped to [-1, 1]: (B, *event)."""
        return self.normal.mean.clamp(-1, 1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event) on the grid; gradients go straight through the rounding."""
        return _to_grid(self.normal.rsample(generator).clamp(-1, 1), self.grey_levels)

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log P(y) (B,) in nats of y (B, *event) on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.normal.mean.shape)
        return per_example(self._log_mass(wide(y)))

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats, summed over all K levels at once: K times the event's memory."""
        return _entropy(self._log_mass, self.normal.mean, self.grey_levels)

    def _log_mass(self, y: Tensor) -> Tensor:
        half = 1 / (self.grey_levels - 1)
        upper = (y + half - self.normal.mean) / self.normal.std
        lower = (y - half - self.normal.mean) / self.normal.std
        # Φ(u) - Φ(l) = Φ(-l) - Φ(-u): in the left tail both are small numbers, so no digits cancel.
        flip = lower > 0
        far = _log_ndtr(torch.where(flip, -lower, upper))
        near = _log_ndtr(torch.where(flip, -upper, lower))
        inside = far + torch.log(-torch.expm1(_below_zero(near - far)))
        tail = _log_ndtr(torch.where(y < -1 + half, upper, -lower))
        return torch.where((y < -1 + half) | (y > 1 - half), tail, inside)


class Categorical:
    """An arbitrary distribution over the K grey levels of every dimension: P(v) = softmax(logits)_v.

    A logit of -inf makes a level impossible. Where the K logits of a dimension are all -inf, or one is NaN or +inf,
    there is no distribution, and every result is NaN; a check would wait for the device at each call.

    Arguments:
        logits: (B, K, *event), unnormalized, over the values 2v/(K-1) - 1.
    Raises: ValueError for logits of fewer than three dimensions, or K below 2.
    """

    def __init__(self, logits: Tensor) -> None:
        if logits.ndim < 3 or logits.shape[1] < 2:
            raise ValueError(f"logits must be (B, K, *event) with K >= 2; got shape {tuple(logits.shape)}")
        self.log_mass = wide(logits).log_softmax(1)
        self.grey_levels = logits.shape[1]

    @property
    def mean(self) -> Tensor:
        """Return Σ_v P(v) (2v/(K-1) - 1): (B, *event)."""
        values = grid(self.grey_levels, self.log_mass).view(-1, *[1] * (self.log_mass.ndim - 2))
        return (self.log_mass.exp() * values).sum(1)

    def rsample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, *event) on the grid by the Gumbel-max trick; gradients go straight through to the mean."""
        u = rand_like(self.log_mass, generator)
        index = (self.log_mass - (-u.log()).log()).argmax(1)
        mean = self.mean
        return grid(self.grey_levels, mean)[index] + mean - mean.detach()

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log P(y) (B,) in nats of y (B, *event) on the grid 2v/(K-1) - 1."""
        check_value(self, y, self.log_mass[:, 0].shape)
        index = ((wide(y) + 1) * ((self.grey_levels - 1) / 2)).round().long().clamp(0, self.grey_levels - 1)
        return per_example(self.log_mass.take_along_dim(index.unsqueeze(1), 1).squeeze(1))

    def entropy(self) -> Tensor:
        """Return the entropy (B,) in nats."""
        return per_example(-p_log_p(self.log_mass).sum(1))


def grid(grey_levels: int, like: Tensor) -> Tensor:
    """Return the values 2v/(K-1) - 1, v = 0 … K-1, that discrete data of K = grey_levels take in [-1, 1].

    Returns: (K,), of the type and device of `like`.
    """
    return torch.linspace(-1, 1, grey_levels, device=like.device, dtype=like.dtype)


def check_grey_levels(grey_levels: int) -> None:
    """Raises ValueError for fewer than two grey levels."""
    if grey_levels < 2:
        raise ValueError(f"grey_levels must be at least 2; got {grey_levels}")


def p_log_p(log_p: Tensor) -> Tensor:
    """Return p log p of log p, elementwise: 0 with the gradient 0 where p is 0."""
    return log_p.exp() * log_p.clamp(min=-1e4)  # exp(-1e4) is 0 in float64, too


def binary_cross_entropy(q: Tensor, logits: Tensor) -> Tensor:
    """Return -q log p - (1 - q) log(1 - p), p = sigmoid(logits), elementwise and broadcast, with 0 log 0 = 0.

    torch's own is NaN for infinite logits.
    """
    logits, q = torch.broadcast_tensors(logits, q)
    finite = logits.nan_to_num(math.nan, 1e18, -1e18)  # 1e18 is any large number whose product with 0 is 0
    cross = F.binary_cross_entropy_with_logits(finite, q, reduction="none")
    return cross.masked_fill(logits.isinf() & (cross > 0), math.inf)


def _entropy(log_mass: Callable[[Tensor], Tensor], like: Tensor, grey_levels: int) -> Tensor:
    """-Σ_v P(v) log P(v) in every dimension of `like` (B, *event), summed over the event: (B,)."""
    values = grid(grey_levels, like).view(-1, *[1] * like.ndim).expand(-1, *like.shape)
    return per_example(-p_log_p(log_mass(values)).sum(0))


def _to_grid(y: Tensor, grey_levels: int) -> Tensor:
    """Round y in [-1, 1] to K grey levels, with the gradient of y."""
    steps = (grey_levels - 1) / 2
    return y + (((y + 1) * steps).round() / steps - 1 - y).detach()


def _below_zero(x: Tensor) -> Tensor:
    """x <= 0, moved to the negative number next to 0 where it is 0, so that log(1 - e^x) is finite."""
    return x.clamp(max=-torch.finfo(x.dtype).tiny)


def _log_ndtr(x: Tensor) -> Tensor:
    """log Φ(x). torch's own has a gradient exp(-log Φ - ½x²) that cancels: in float32, 4% off at -1000, then NaN."""
    x = x.clamp(min=-math.sqrt(torch.finfo(x.dtype).max))  # below, x² is infinite, and a difference of two logs NaN
    far = x < -1
    left, right = torch.where(far, x, -1.0), torch.where(far, -1.0, x)
    tail = torch.special.erfcx(-left * math.sqrt(0.5)).log() - 0.5 * left.square() - math.log(2)
    return torch.where(far, tail, torch.special.log_ndtr(right))
