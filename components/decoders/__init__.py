"""Decoders: z to p(x|z), whose distribution is chosen by a head; with a DeltaHead they are generators."""

from .generators import ModulatedConv, Resampling, ResidualGenerator, StyleGenerator
from .heads import BernoulliHead, CategoricalHead, DeltaHead, Head, LogisticHead, LogisticMixtureHead, NormalHead
from .residual import MLPDecoder, ResidualDecoder

__all__ = [
    "BernoulliHead",
    "CategoricalHead",
    "DeltaHead",
    "Head",
    "LogisticHead",
    "LogisticMixtureHead",
    "MLPDecoder",
    "ModulatedConv",
    "NormalHead",
    "Resampling",
    "ResidualDecoder",
    "ResidualGenerator",
    "StyleGenerator",
]
