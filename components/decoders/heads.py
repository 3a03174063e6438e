"""Likelihood heads: what a decoder's last features mean, as a distribution over its event.

Each takes raw features (B, factor C, ...) to a distribution over (B, C, ...), in float32 or wider.
"""

import math

import torch
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
    """Raw features (B, factor C, ...) to a distribution over (B, C, ...).

    `factor` is how many numbers the distribution needs for each of its dimensions.
    """

    factor: int = 1

    def forward(self, raw: Tensor) -> Distribution:
        raise TypeError(f"{type(self).__name__} is abstract in forward: a head turns features into a Distribution")


class DeltaHead(Head):
    """A single point: tanh(raw) in (-1, 1), or raw itself with bounded=False. What a GAN's generator returns."""

    def __init__(self, bounded: bool = True) -> None:
        super().__init__()
        self.bounded = bounded

    def forward(self, raw: Tensor) -> Delta:
        return Delta(torch.tanh(wide(raw)) if self.bounded else raw)


class NormalHead(Head):
    """N(raw, sigma^2 I).

    sigma: a float > 0 fixes it; "shared" learns one for all dimensions, starting at 1 (Rybkin et al. 2021,
    arXiv 2006.13202); "learned" reads log sigma of each dimension off the network (factor 2: means, then log sigmas).
    A learned log sigma is squeezed softly into `limits`, since likelihood is unbounded where sigma goes to zero; the
    lower default is Rybkin's, the upper an unmeasured guess.
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
    """A logistic discretized to `levels` grey values (factor 2: means, then log scales).

    log scale is squeezed softly into [-7, 3]: the lower limit is that of Salimans et al. 2017 (arXiv 1701.05517), the
    upper one an unmeasured guess.
    """

    factor = 2

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        self.levels = levels

    def forward(self, raw: Tensor) -> DiscretizedLogistic:
        mean, log_scale = wide(raw).chunk(2, dim=1)
        return DiscretizedLogistic(mean, soft_clamp(log_scale, -7.0, 3.0), self.levels)


class LogisticMixtureHead(Head):
    """A mixture of `components` discretized logistics in each dimension (factor 3 `components`).

    Channel ((j M) + m) C + c is of channel c and component m of M: for j = 0 its logit, 1 its mean, 2 its log scale,
    which is squeezed softly into [-7, 3] as in LogisticHead.
    """

    def __init__(self, levels: int = 256, components: int = 5) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        if components < 1:
            raise ValueError(f"components must be at least 1; got {components}")
        self.levels, self.components, self.factor = levels, components, 3 * components

    def forward(self, raw: Tensor) -> DiscretizedLogisticMixture:
        logits, means, log_scales = wide(raw).unflatten(1, (3, self.components, -1)).unbind(1)
        return DiscretizedLogisticMixture(logits, means, soft_clamp(log_scales, -7.0, 3.0), self.levels)


class CategoricalHead(Head):
    """A probability for each of `levels` grey values (factor `levels`: channel k C + c is level k of channel c)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        self.factor = self.levels = levels

    def forward(self, raw: Tensor) -> Categorical:
        return Categorical(raw.unflatten(1, (self.factor, -1)))


class BernoulliHead(Head):
    """Independent values in {-1, 1} with logits raw."""

    def forward(self, raw: Tensor) -> Bernoulli:
        return Bernoulli(raw)
