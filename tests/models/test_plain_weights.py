"""Every model's state_dict is a plain safetensors file: no tensor twice, none of a stride of its own."""

import pytest
import torch
from models import MODELS
from safetensors.torch import load_file, save_file
from small import TINY
from torch import nn

from hybrids.data import Data
from hybrids.experiment import load_recipe, parse

DIGITS = Data("digits", (1, 8, 8), classes=10, grey_levels=17)


def changed(model):
    """The model with other weights, every one and every floating buffer."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return model


def check(build, path):
    """Saved as it is and loaded into another one, every tensor is the same to the bit, with no name left over."""
    model, other = changed(build()), build()
    save_file(model.state_dict(), path)
    result = other.load_state_dict(load_file(path))
    assert not result.missing_keys and not result.unexpected_keys
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    parameters = [p.data_ptr() for p in model.state_dict().values() if p.numel()]
    assert len(parameters) == len(set(parameters))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "standard normal"])
def test_a_model_s_weights_are_plain(name, tmp_path):
    check(MODELS[name], tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_recipe_s_weights_are_plain(name, tmp_path):
    def build():
        recipe = load_recipe(name)
        stages = recipe.build(parse(recipe.Settings, TINY[name], name), DIGITS)
        return nn.ModuleList([stage.model for stage in stages][-1:])

    check(build, tmp_path / "model.safetensors")
