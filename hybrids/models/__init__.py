"""Models of p(x), which nest: what can score data can be a prior."""

from .adversarial import AdversarialDiffusion
from .autoencoder import Autoencoder
from .diffusion import Diffusion
from .gan import GAN
from .hierarchical import HierarchicalVAE
from .latent import LatentModel
from .model import Model, NotOffered
from .rates import StandardNormal, rate
from .vae import VAE

__all__ = [
    "GAN",
    "VAE",
    "AdversarialDiffusion",
    "Autoencoder",
    "Diffusion",
    "HierarchicalVAE",
    "LatentModel",
    "Model",
    "NotOffered",
    "StandardNormal",
    "rate",
]
