"""Models of p(x). They nest: a model that can score data can be the prior of another."""

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
