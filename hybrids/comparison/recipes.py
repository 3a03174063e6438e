"""The recipes of a comparison: the project's by name or a user's own by file, with title and family."""

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
"""The three families VAE, GAN and diffusion, their three pairs, and all three together."""
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
"""The family of each recipe, or the families that it combines."""


@dataclass(frozen=True)
class Recipe:
    """A recipe of recipes/ by its name, or a user's own by its file.

    Arguments:
        given: such as `vae`, or the path of a .py file, whose stem is then the recipe's name.
    """

    given: str

    @property
    def file(self) -> Path | None:
        """The file of a user's own recipe; None for one of recipes/."""
        return Path(self.given).resolve() if self.given.endswith(".py") else None

    @property
    def name(self) -> str:
        return self.given if self.file is None else self.file.stem

    @property
    def title(self) -> str:
        """The name in reports."""
        words = self.name.replace("_", " ")
        return TITLES.get(self.name, words) if self.file is None else words

    def module(self) -> ModuleType:
        """Load the recipe. Raises Refusal where it is missing, or defines no Settings or build."""
        module = _loaded(self.name, self.file)
        lacking = [name for name in ("Settings", "build") if not hasattr(module, name)]
        if lacking:
            raise Refusal(
                f"{self.given}: a recipe must define Settings and build(settings, data); {lacking[0]} is missing"
            )
        return module

    def family(self) -> str | None:
        """Return the recipe's entry in FAMILIES; for a user's own its module's FAMILY, or None."""
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
