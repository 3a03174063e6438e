"""The VAE's own settings: the rate's warm-up, MLPs for images."""

import pytest
import torch
from small import TINY

from hybrids.data import load_data
from hybrids.experiment import load_recipe, parse


def built(name, *words):
    recipe = load_recipe(name)
    settings = parse(recipe.Settings, [*TINY[name], *words], name)
    data = load_data(settings.data, settings.resolution)
    (stage,) = recipe.build(settings, data)
    return stage, data


@pytest.mark.parametrize(
    "words, weights",
    [
        (["--data", "digits"], {0: 1.0, 9: 1.0}),
        (["--data", "25-gaussians"], {0: 0.0, 1: 1 / 3, 2: 2 / 3, 3: 1.0, 9: 1.0}),
        (["--data", "digits", "--beta-warmup", "1", "--beta", "4"], {0: 0.0, 5: 2.0, 9: 3.6}),
        (["--data", "25-gaussians", "--beta-warmup", "0"], {0: 1.0}),
    ],
)
def test_the_weight_of_the_rate_rises_to_beta(words, weights):
    stage, data = built("vae", *words, "--steps", "10")
    (player,) = stage.players
    assert player.per == data.dimensions
    x = data.decode(data.x[:4])
    for step, weight in weights.items():
        terms = player.loss(x, step=step)
        assert terms["rate"][0] == pytest.approx(weight)
        assert terms["distortion"][0] == 1


@pytest.mark.parametrize("name", ["vae", "variational_diffusion"])
def test_flat_networks_of_images_are_mlps(name):
    stage, data = built(name, "--data", "stacked-digits", "--flat")
    assert not any(isinstance(module, torch.nn.Conv2d) for module in stage.model.modules())
    x = data.decode(data.x[:4])
    assert stage.model.nll(x)["distortion" if name == "vae" else "diffusion"][1].shape == (4,)
    assert stage.model.sample(2).shape == (2, *data.shape)
