"""A generator is all the randomness of a model: the same one, the same numbers, and torch's own is left alone."""

import pytest
import torch
from answers import generator
from models import MODELS, examples

from hybrids.terms import Terms

METHODS = ("loss", "nll", "bound", "log_weight", "log_prob", "sample", "judge")
REFUSED = {
    "GAN": {"log_prob"},
    "adversarial diffusion": {"log_prob"},
    "diffusion, continuous": {"log_weight"},
    "diffusion, times that learn": {"log_weight"},
    "diffusion, likelihood": {"log_weight"},
    "diffusion, grey levels": {"log_weight"},
    "VAE, diffusion prior": {"log_weight"},
    "latent model, as a VAE": {"log_weight"},
    "standard normal": {"log_prob"},
}
"""What a model has no answer to, or (log_prob of the standard normal) takes no generator for."""
DETERMINISTIC = {
    "standard normal": {"loss", "nll", "bound", "log_weight"},
    "diffusion, continuous": {"log_prob"},
    "diffusion, times that learn": {"log_prob"},
    "autoencoder, codes": {"loss", "judge"},
}
"""What draws nothing."""
LEARN = {"diffusion, times that learn", "autoencoder, codes"}
"""Models with averages that every loss in training moves: they are asked in eval mode only."""


def answer(model, name, method, seed):
    """The tensors of a model's answer, all that is random drawn from one seed."""
    options = {"strata": 4} if method == "bound" else {}
    if method == "log_prob" and name != "VAE":
        options = {"flow": model.flow(method="rk4", steps=2)}
    x = 6 if method == "sample" else examples(name)
    result = getattr(model, method)(x, generator=generator(seed), **options)
    return [values for _, values in result.values()] if isinstance(result, Terms) else [result]


@pytest.mark.parametrize("name", MODELS)
def test_a_generator_is_all_the_randomness(name):
    """In training and in eval mode: equal at one seed, other at another, and the global state untouched."""
    model = MODELS[name]()
    methods = [m for m in METHODS if hasattr(model, m) and m not in REFUSED.get(name, ())]
    assert "sample" in methods and len(methods) >= 2
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    for training in (False,) if name in LEARN else (False, True):
        model.train(training)
        for method in methods:
            state = torch.get_rng_state()
            one, again, other = (answer(model, name, method, seed) for seed in (1, 1, 2))
            assert torch.equal(torch.get_rng_state(), state), method
            assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True)), method
            same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert same == (method in DETERMINISTIC.get(name, ())), method


def test_a_latent_model_s_batches_draw_from_it_too():
    """z of a cached batch, the labels that are dropped, and the second stage's noise."""
    model = MODELS["latent model"]()
    stored = torch.rand(6, 2, 2, 4, 4)
    state = torch.get_rng_state()
    one, again, other = (model.latent_loss(stored, generator(seed)).per_example for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other) and torch.equal(torch.get_rng_state(), state)
