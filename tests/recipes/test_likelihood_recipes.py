"""What the hierarchical VAE's and the variational diffusion's recipes refuse, and what the latter needs no data for."""

from dataclasses import replace

import pytest
import torch
from answers import generator

from hybrids.data import Data, load_data
from hybrids.experiment import load_recipe, parse
from hybrids.experiment.checkpoints.state import load_weights, weights
from hybrids.refusal import Refusal

POINTS = Data("25-gaussians", (2,))
DIGITS = Data("digits", (1, 8, 8), 10, 17)


def build(name, data, **settings):
    recipe = load_recipe(name)
    return recipe.build(replace(parse(recipe.Settings, ["--width", "8"], name), **settings), data)[0].model


@pytest.mark.parametrize("name, data, settings, message", [
    ("variational_diffusion", POINTS, {"prediction": "grid"}, "--prediction grid is of grey levels; --data 25-gauss"),
    ("variational_diffusion", POINTS, {"learn_endpoints": True}, "--learn-endpoints: the likelihood of --data 25-gaus"),
    ("hierarchical_vae", POINTS, {"likelihood": "mixture"}, "--likelihood mixture is of grey levels; --data 25-gaussi"),
    ("hierarchical_vae", DIGITS, {"levels": 5}, "levels must be from 1 to 4 .*; got 5: .*--resolution"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(name, data, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, data, **settings)


def test_a_straight_line_has_no_ends_to_learn():
    with pytest.raises(
        Refusal, match="--learn-endpoints with --schedule linear: only a learned schedule learns its ends"
    ):
        parse(load_recipe("variational_diffusion").Settings, ["--learn-endpoints", "--schedule", "linear"], "any")


def test_the_marginals_of_the_training_data_come_back_with_the_weights():
    """A run is loaded without its data: built on their shape alone, it has even marginals, and then the saved ones."""
    data = load_data("digits", 8)
    trained, loaded = build("variational_diffusion", data), build("variational_diffusion", DIGITS)
    marginals = loaded.denoiser.prediction.log_marginal
    assert not marginals.any()
    load_weights(loaded, weights(trained), "here")
    x = data.decode(data.held_out[:4])
    one, other = (model.eval().nll(x, generator=generator()).per_example for model in (trained, loaded))
    assert torch.equal(one, other) and marginals.exp().sum(0).allclose(torch.ones(1, 8, 8))
