"""One of each distribution, and a comparison with a mean of random numbers, for the tests of this folder."""

import math

import torch
from answers import F64

from components.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    DiscretizedNormal,
    Normal,
)


def within(samples, expected, errors=4):
    """Assert that the mean of samples (N,) lies within four standard errors of the expected one."""
    error = samples.std() / math.sqrt(len(samples))
    assert (samples.mean() - expected).abs() <= errors * error + 1e-12, f"{samples.mean()} ± {error}, not {expected}"


def normal(batch=3, event=(2, 2), dtype=F64):
    return Normal(torch.randn(batch, *event, dtype=dtype), 0.3 + torch.rand(batch, *event, dtype=dtype))


def discretized(kind, mean, scale, grey_levels):
    """Either discretized distribution, of a scale of the logistic or a standard deviation."""
    if kind == "logistic":
        return DiscretizedLogistic(mean, scale.log(), grey_levels)
    return DiscretizedNormal(mean, scale, grey_levels)


def mixture(batch=3, components=4, event=(2, 2), grey_levels=9, dtype=F64):
    logits, means, log_scales = torch.randn(3, batch, components, *event, dtype=dtype)
    return DiscretizedLogisticMixture(logits, means, log_scales - 2, grey_levels)


def every(dtype=F64, copies=1, batch=3):
    """One of each distribution that has log_prob, over (batch, 2, 2), the batch repeated so many times."""
    raw = torch.randn(batch, 2, 2, dtype=dtype).repeat(copies, 1, 1)
    parts = torch.randn(3, batch, 4, 2, 2, dtype=dtype).repeat(1, copies, 1, 1, 1)
    return {
        "normal": Normal(raw, 0.5 + raw.abs()),
        "delta": Delta(raw),
        "bernoulli": Bernoulli(raw),
        "logistic": DiscretizedLogistic(raw, raw - 1, 17),
        "discretized normal": DiscretizedNormal(raw, 0.5 + raw.abs(), 17),
        "categorical": Categorical(torch.randn(batch, 17, 2, 2, dtype=dtype).repeat(copies, 1, 1, 1)),
        "mixture": DiscretizedLogisticMixture(parts[0], parts[1], parts[2] - 2, 17),
    }
