"""What encoders, decoders and denoisers return: distributions over a whole event, in nats.

The batch is the first dimension, the event is all others: `log_prob` and `entropy` are (B,), summed over the event.
Parameters given in half precision are widened to float32. Every sampler takes a `torch.Generator`.
"""

from .continuous import Delta, Distribution, Implicit, Normal, per_example, randn_like
from .discrete import Bernoulli, Categorical, DiscretizedLogistic, DiscretizedNormal, grid
from .divergence import kl, kl_per_dimension

__all__ = [
    "Bernoulli",
    "Categorical",
    "Delta",
    "DiscretizedLogistic",
    "DiscretizedNormal",
    "Distribution",
    "Implicit",
    "Normal",
    "grid",
    "kl",
    "kl_per_dimension",
    "per_example",
    "randn_like",
]
