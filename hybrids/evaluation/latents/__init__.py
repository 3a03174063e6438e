"""Evaluation of a model's latents: reconstructions, linear probes, interpolations.

A model offers `encode`, or else `decode` and `noise`; its latents are then found by optimization. Latents z are a
tensor (B, *shape) or a tuple of them, as the model defines them; `flat` makes them (B, d).
"""

from .encoding import Latents, decode, encode, flat, is_noise, shaped
from .paths import evenness, interpolate, interpolations, smoothness, spherical
from .probes import active_units, linear_probe
from .search import invert, latents_of

__all__ = [
    "Latents",
    "active_units",
    "decode",
    "encode",
    "evenness",
    "flat",
    "interpolate",
    "interpolations",
    "invert",
    "is_noise",
    "latents_of",
    "linear_probe",
    "shaped",
    "smoothness",
    "spherical",
]
