"""Models that nest, losses that add, players that oppose: VAEs, GANs, diffusion models, and their hybrids."""

import os

import components

if getattr(components, "PROJECT", None) != "hybrids":
    raise ImportError(
        f"hybrids needs its own package `components`, but another of that name comes first on sys.path: "
        f"{getattr(components, '__file__', None)}; run from another folder, or rename that package"
    )

if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
    # DDP imports it too; imported while there is a process group it keeps that group, whose threads then outlive
    # `end_training` and can abort the process at its exit. Accelerator() makes the group: so here, before it.
    import torch._dynamo  # noqa: F401

from .adaptive import adaptive
from .batch import Batch, unpack
from .critic import Critic
from .ema import EMA
from .experiment import load, restore, save
from .game import Player, train, warmup_cosine
from .models import (
    GAN,
    VAE,
    AdversarialDiffusion,
    Autoencoder,
    Diffusion,
    HierarchicalVAE,
    LatentModel,
    StandardNormal,
    rate,
)
from .probe import probe
from .terms import Terms

__all__ = [
    "EMA",
    "GAN",
    "VAE",
    "AdversarialDiffusion",
    "Autoencoder",
    "Batch",
    "Critic",
    "Diffusion",
    "HierarchicalVAE",
    "LatentModel",
    "Player",
    "StandardNormal",
    "Terms",
    "adaptive",
    "load",
    "probe",
    "rate",
    "restore",
    "save",
    "train",
    "unpack",
    "warmup_cosine",
]
