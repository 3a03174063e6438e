"""Encoders: x to q(z|x), a diagonal Gaussian over a latent vector or map; frozen features of images."""

from .residual import MLPEncoder, ResidualEncoder, latent_shape
from .vision import TimmEncoder, TimmFeatures, ViTEncoder

__all__ = [
    "MLPEncoder",
    "ResidualEncoder",
    "TimmEncoder",
    "TimmFeatures",
    "ViTEncoder",
    "latent_shape",
]
