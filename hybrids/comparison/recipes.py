"""A recipe as a comparison sees it: one of ours by name or a user's own by file, its title and its family."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from ..experiment import Refusal, load_recipe

__all__ = ["DEFAULT", "FAMILIES", "Recipe"]

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


@dataclass(frozen=True)
class Recipe:
    """One of recipes/ by its name, or one's own by its file.

    Arguments: given, such as `vae`, or the path of a .py file, whose stem is then the recipe's name.
    """

    given: str

    @property
    def file(self) -> Path | None:
        """The file of one's own."""
        return Path(self.given).resolve() if self.given.endswith(".py") else None

    @property
    def name(self) -> str:
        return self.given if self.file is None else self.file.stem

    @property
    def title(self) -> str:
        """The name for people."""
        words = self.name.replace("_", " ")
        return TITLES.get(self.name, words) if self.file is None else words

    def module(self) -> ModuleType:
        """Load it. Raises Refusal where it is not there, or offers no Settings and build."""
        module = _loaded(self.name, self.file)
        lacking = [name for name in ("Settings", "build") if not hasattr(module, name)]
        if lacking:
            raise Refusal(
                f"{self.given}: a recipe must define Settings and build(settings, data); no {lacking[0]} there"
            )
        return module

    def family(self) -> str | None:
        """VAE, GAN, diffusion or those that are joined in it; of one's own what its module's FAMILY says, or None."""
        if self.file is None:
            return FAMILIES.get(self.name)
        family = getattr(self.module(), "FAMILY", None)
        if family is not None and not isinstance(family, str):
            raise Refusal(f"{self.given}: FAMILY must be text, such as 'diffusion'; got {family!r}")
        return family


@cache
def _loaded(name: str, file: Path | None) -> ModuleType:
    """Load a recipe once, so that its classes are the same throughout."""
    return load_recipe(name, file)
