"""Every recipe takes images of any size: it trains, samples, comes back from its run, and gives bits/dim."""

import math

import numpy
import pytest
from small import TINY, last_step

from hybrids import experiment, load
from hybrids.data import arrays
from hybrids.experiment import load_recipe

pytestmark = pytest.mark.slow

SIZES = [(28, 28), (12, 20)]
BITS = {"vae", "hierarchical_vae", "ddpm", "variational_diffusion", "latent_diffusion"}
"""Recipes with a bound on log p(x)."""


def words(name):
    """The settings of a tiny run, but for the resolution, which is the file's."""
    tiny = TINY[name] if name != "latent_diffusion" else [*TINY[name], "--second", "diffusion"]  # a flow has no bound
    return [word for i, word in enumerate(tiny) if "--resolution" not in (word, tiny[i - 1])]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of 40 images of each size."""
    folder, random = tmp_path_factory.mktemp("sizes"), numpy.random.default_rng(0)
    for height, width in SIZES:
        x = random.integers(0, 256, (40, 1, height, width), dtype=numpy.uint8)
        numpy.savez(folder / f"{height}x{width}.npz", x=x, labels=numpy.arange(40) % 2)
    return folder


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
@pytest.mark.parametrize("name", TINY)
def test_a_recipe_keeps_the_size_of_its_images(name, size, files, tmp_path):
    """Two steps, a picture, samples of a loaded run, and a finite number of bits a dimension of the data itself."""
    file = files / "{}x{}.npz".format(*size)
    recipe, out = load_recipe(name), str(tmp_path / "run")
    common = ["--data", str(file), "--steps", "2", "--batch-size", "8", "--device", "cpu", "--out", out]
    experiment.main(recipe.Settings, recipe.build, [*common, *words(name)])
    assert (tmp_path / f"run/samples/step-{last_step(name, 2)}.png").is_file()
    model, data = load(tmp_path / "run"), arrays(file)
    assert data.shape == (1, *size)
    samples = model.sample(3)
    assert samples.shape == (3, 1, *size) and samples.isfinite().all()
    if name not in BITS:
        return
    x = data.decode(data.held_out[:2])
    of_x = model.vae() if name == "latent_diffusion" else model
    bits = float(of_x.bound(x, strata=2).total) / (math.prod(size) * math.log(2))
    assert 1 < bits < math.inf
