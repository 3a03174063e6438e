"""Models of p(x), which nest: what can score data can be a prior."""

from .diffusion import Diffusion
from .gan import GAN
from .rates import Model, StandardNormal, rate
from .vae import VAE

__all__ = ["GAN", "VAE", "Diffusion", "Model", "StandardNormal", "rate"]
