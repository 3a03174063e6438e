"""The distributions that encoders, decoders and denoisers return, over a whole event, in nats.

The batch is the first dimension, the event is all others: `log_prob` and `entropy` are (B,), summed over the event.
Parameters given in half precision are widened to float32. Every sampler takes a `torch.Generator`.
"""

from .continuous import Delta, Distribution, Implicit, Normal, per_example, randn_like
from .dequantization import check_grid, dequantized, log_bin
from .discrete import Bernoulli, Categorical, DiscretizedLogistic, DiscretizedNormal, grid
from .divergence import kl, kl_per_dimension
from .mixtures import DiscretizedLogisticMixture

__all__ = [
    "Bernoulli",
    "Categorical",
    "Delta",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "DiscretizedNormal",
    "Distribution",
    "Implicit",
    "Normal",
    "check_grid",
    "dequantized",
    "grid",
    "kl",
    "kl_per_dimension",
    "log_bin",
    "per_example",
    "randn_like",
]
