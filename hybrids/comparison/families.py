"""What the comparison calls our recipes, and the family that each is of."""

__all__ = ["DEFAULT", "FAMILIES", "family", "title"]

DEFAULT = (
    "vae",
    "gan",
    "ddpm",
    "variational_diffusion",
    "adversarial_diffusion",
    "latent_diffusion",
    "latent_adversarial_diffusion",
)
"""Three pure families, their three connections, all three at once."""
TITLES = {
    "vae": "VAE",
    "gan": "GAN",
    "ddpm": "DDPM",
    "hierarchical_vae": "Hierarchical VAE",
    "variational_diffusion": "Variational diffusion",
    "adversarial_diffusion": "Denoising diffusion GAN",
    "latent_diffusion": "Latent diffusion",
    "latent_adversarial_diffusion": "Latent diffusion GAN",
}
FAMILIES = {
    "vae": "VAE",
    "gan": "GAN",
    "ddpm": "diffusion",
    "hierarchical_vae": "VAE",
    "variational_diffusion": "diffusion",
    "adversarial_diffusion": "GAN + diffusion",
    "latent_diffusion": "VAE + diffusion",
    "latent_adversarial_diffusion": "VAE + GAN + diffusion",
}
"""VAE, GAN, diffusion, or those that are joined in a recipe."""


def title(recipe: str) -> str:
    """Return a recipe's name for people; of one that is not ours, its own name in words."""
    return TITLES.get(recipe, recipe.replace("_", " "))


def family(recipe: str) -> str:
    """Return the family of a recipe of ours by its name; `other` of one that is not ours."""
    return FAMILIES.get(recipe, "other")
