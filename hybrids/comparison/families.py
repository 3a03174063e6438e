"""What the comparison calls each recipe, and the family that it is of."""

__all__ = ["DEFAULT", "family", "title"]

# Three pure families, their three connections, all three at once.
DEFAULT = (
    "vae",
    "gan",
    "ddpm",
    "variational_diffusion",
    "adversarial_diffusion",
    "latent_diffusion",
    "latent_adversarial_diffusion",
)
_KNOWN = {
    "vae": ("VAE", "VAE"),
    "gan": ("GAN", "GAN"),
    "ddpm": ("DDPM", "diffusion"),
    "hierarchical_vae": ("Hierarchical VAE", "VAE"),
    "variational_diffusion": ("Variational diffusion", "diffusion"),
    "adversarial_diffusion": ("Denoising diffusion GAN", "GAN + diffusion"),
    "latent_diffusion": ("Latent diffusion", "VAE + diffusion"),
    "latent_adversarial_diffusion": ("Latent diffusion GAN", "VAE + GAN + diffusion"),
}


def title(recipe: str) -> str:
    """A recipe's name for people; of one that is not ours, its own name in words."""
    return _KNOWN[recipe][0] if recipe in _KNOWN else recipe.replace("_", " ")


def family(recipe: str) -> str:
    """VAE, GAN, diffusion, or those that are joined in it; `other` for a recipe that is not ours."""
    return _KNOWN[recipe][1] if recipe in _KNOWN else "other"
