"""Likelihood heads, which map a decoder's last features to a distribution over its event.

Each maps raw features (B, factor C, ...) to a distribution over (B, C, ...), in float32 or wider.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from ..distributions import (
    Bernoulli,
    Categorical,
    Delta,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Distribution,
    Normal,
)
from ..layers import soft_clamp
from ..precision import wide

__all__ = ["BernoulliHead", "CategoricalHead", "DeltaHead", "Head", "LogisticHead", "LogisticMixtureHead", "NormalHead"]


class Head(nn.Module):
    """A map from raw features (B, factor C, ...) to a distribution over (B, C, ...); abstract.

    `factor` is how many numbers the distribution needs for each of its dimensions.
    """

    factor: int = 1

    def forward(self, raw: Tensor) -> Distribution:
        raise TypeError(f"{type(self).__name__} is abstract: define forward(raw), which returns a Distribution")


class DeltaHead(Head):
    """A single point, tanh(raw) in (-1, 1): the output of a GAN's generator.

    Arguments:
        bounded: False gives raw itself.
    """

    def __init__(self, bounded: bool = True) -> None:
        super().__init__()
        self.bounded = bounded

    def forward(self, raw: Tensor) -> Delta:
        return Delta(torch.tanh(wide(raw)) if self.bounded else raw)


class NormalHead(Head):
    """N(raw, sigma² I), with sigma fixed, one learned number, or a function of the features.

    A learned log sigma is squeezed softly into `limits`, since likelihood is unbounded where sigma goes to zero.

    Arguments:
        sigma: a float > 0 fixes it; "shared" learns one for all dimensions, starting at 1 (Rybkin et al. 2021, arXiv
            2006.13202); "learned" takes log sigma of each dimension from the features (factor 2: means, then log
            sigmas).
        limits: (low, high) of a learned log sigma; the default low is Rybkin's, the default high an unmeasured guess.
    Raises: ValueError for sigma that is neither, and for limits out of order.
    """

    def __init__(self, sigma: float | str = 1.0, limits: tuple[float, float] = (-6.0, 3.0)) -> None:
        super().__init__()
        if sigma not in ("shared", "learned") and not (isinstance(sigma, int | float) and 0 < sigma < math.inf):
            raise ValueError(f"sigma must be a positive number, 'shared' or 'learned'; got {sigma!r}")
        if not limits[0] < limits[1]:
            raise ValueError(f"limits must be (low, high) of log sigma with low < high; got {limits}")
        self.sigma, self.limits = sigma, limits
        self.factor = 2 if sigma == "learned" else 1
        if sigma == "shared":
            self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, raw: Tensor) -> Normal:
        raw = wide(raw)
        if self.sigma == "learned":
            mean, log_sigma = raw.chunk(2, dim=1)
            return Normal(mean, soft_clamp(log_sigma, *self.limits).exp())
        if self.sigma == "shared":
            return Normal(raw, soft_clamp(self.log_sigma, *self.limits).exp().expand_as(raw))
        return Normal(raw, torch.full_like(raw, float(self.sigma)))


class LogisticHead(Head):
    """A logistic discretized to `grey_levels` grey values (factor 2: means, then log scales).

    The log scale is squeezed softly into [-7, 3]: the lower limit is that of Salimans et al. 2017 (arXiv 1701.05517),
    the upper one an unmeasured guess.

    Arguments:
        grey_levels: K >= 2.
    """

    factor = 2

    def __init__(self, grey_levels: int = 256) -> None:
        super().__init__()
        _check_grey_levels(grey_levels)
        self.grey_levels = grey_levels

    def forward(self, raw: Tensor) -> DiscretizedLogistic:
        mean, log_scale = wide(raw).chunk(2, dim=1)
        return DiscretizedLogistic(mean, soft_clamp(log_scale, -7.0, 3.0), self.grey_levels)


class LogisticMixtureHead(Head):
    """A mixture of `components` discretized logistics in each dimension (factor 3 `components`).

    Channel (p M + m) C + c belongs to channel c and component m of M: p = 0 is its logit, 1 its mean, 2 its log scale,
    which is squeezed softly into [-7, 3] as in LogisticHead.

    Arguments:
        grey_levels: K >= 2.
        components: M >= 1.
    """

    def __init__(self, grey_levels: int = 256, components: int = 5) -> None:
        super().__init__()
        _check_grey_levels(grey_levels)
        if components < 1:
            raise ValueError(f"components must be at least 1; got {components}")
        self.grey_levels, self.components, self.factor = grey_levels, components, 3 * components

    def forward(self, raw: Tensor) -> DiscretizedLogisticMixture:
        parameters = rearrange(wide(raw), "b (p m c) ... -> p b m c ...", p=3, m=self.components)
        logits, means, log_scales = parameters.unbind()
        return DiscretizedLogisticMixture(logits, means, soft_clamp(log_scales, -7.0, 3.0), self.grey_levels)


class CategoricalHead(Head):
    """A probability for each of `grey_levels` grey values (factor `grey_levels`).

    Channel k C + c is level k of channel c.

    Arguments:
        grey_levels: K >= 2.
    """

    def __init__(self, grey_levels: int) -> None:
        super().__init__()
        _check_grey_levels(grey_levels)
        self.factor = self.grey_levels = grey_levels

    def forward(self, raw: Tensor) -> Categorical:
        return Categorical(rearrange(raw, "b (k c) ... -> b k c ...", k=self.grey_levels))


class BernoulliHead(Head):
    """Independent values in {-1, 1}, with raw as their logits."""

    def forward(self, raw: Tensor) -> Bernoulli:
        return Bernoulli(raw)


def _check_grey_levels(grey_levels: int) -> None:
    """Raise ValueError for fewer than two grey levels, when the head is built rather than when it is first called."""
    if grey_levels < 2:
        raise ValueError(f"grey_levels must be at least 2; got {grey_levels}")
