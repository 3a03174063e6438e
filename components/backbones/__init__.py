"""Backbones: networks (x_t, t, cond) to a tensor, for denoisers of images, sequences and vectors."""

from .mlp import MLP
from .stochastic import MappingNetwork, Stochastic
from .transformers import DiT, SequenceTransformer
from .unet import UNet, multipliers_to

__all__ = [
    "DiT",
    "MLP",
    "MappingNetwork",
    "SequenceTransformer",
    "Stochastic",
    "UNet",
    "multipliers_to",
]
