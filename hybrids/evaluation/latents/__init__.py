"""What a model's latents are worth: reconstructions, linear probes, paths between them.

A model offers `encode` or, where it has none, `decode` and `noise`, by which latents are searched for. Latents z are a
tensor (B, *shape), or a tuple of them, as the model has them; `flat` makes them (B, d).
"""

from .asking import Latents, decode, encode, flat, is_noise, shaped
from .paths import evenness, interpolate, interpolations, smoothness, spherical
from .probes import active_units, probe
from .search import invert, latents, reconstruct, reconstruction

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
    "latents",
    "probe",
    "reconstruct",
    "reconstruction",
    "shaped",
    "smoothness",
    "spherical",
]
