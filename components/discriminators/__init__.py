"""Discriminators: x to logits, high for real; twice differentiable, without normalization over the batch."""

from .pairs import NoiseOfPair
from .projected import FeatureDiscriminator
from .single import MinibatchStd, MLPDiscriminator, MultiScaleDiscriminator, PatchDiscriminator, ResidualDiscriminator

__all__ = [
    "FeatureDiscriminator",
    "MLPDiscriminator",
    "MinibatchStd",
    "MultiScaleDiscriminator",
    "NoiseOfPair",
    "PatchDiscriminator",
    "ResidualDiscriminator",
]
