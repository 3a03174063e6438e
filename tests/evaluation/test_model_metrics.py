"""The metrics of a model itself, on models whose latents and likelihood are known."""

import math

import pytest
import torch
from torch import nn

from components.distributions import Normal
from hybrids import VAE, StandardNormal, Terms
from hybrids.data import Data, Mixture
from hybrids.evaluation.metrics import measure


class Around(nn.Module):
    """N(scale x, 0.1²): an encoder or a decoder."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x, cond=None):
        return Normal(self.scale * x, 0.1)


class Scored(nn.Module):
    """A model with that -log p of x (B, *event)."""

    def __init__(self, nats, grey_levels=None):
        super().__init__()
        self.nats, self.grey_levels = nats, grey_levels

    def nll(self, x, cond=None):
        return Terms(nll=self.nats(x))


def figure(name, model, data):
    return measure(model, data, torch.device("cpu"), metrics=[name])[name]


def vae(*shape, scale=1.0):
    """Its latents are the examples themselves, and its pictures `scale` times those."""
    return VAE(Around(), Around(scale), StandardNormal(shape))


def signs(n, seed):
    """Images (n, 1, 3, 3) of noise, the first pixel ±1, and whether it is +1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 3, 3, generator=generator)
    positive = torch.rand(n, generator=generator) < 0.3
    x[:, 0, 0, 0] = torch.where(positive, 1.0, -1.0)
    return x, positive.long()


def test_reconstruction_is_the_root_of_the_mean_square():
    """Halved, 2 is 1 off and 6 is 3 off: squares of 1 and 9, of mean 5, and 4 about it, over the examples."""
    x = torch.tensor([2.0, 6.0]).repeat(32)[:, None].expand(64, 2)
    found = figure("reconstruction", vae(2, scale=0.5), Data("line", (2,), x=x, held_out=x))
    error = 1.998341 * 4 / math.sqrt(63)  # Student's t of 63 degrees of freedom
    assert found.value == pytest.approx(math.sqrt(5), rel=1e-5)
    assert found.low == pytest.approx(math.sqrt(5 - error), rel=1e-5)
    assert found.high == pytest.approx(math.sqrt(5 + error), rel=1e-5)


def test_a_probe_reads_the_labels_of_the_examples_that_were_encoded():
    """Of 200 held-out labels 40 are wrong; training is mostly of label 0, as are 56 of the held-out ones."""
    x, labels = signs(600, 0)
    held_out, held_labels = signs(200, 1)
    held_labels = torch.where(torch.arange(200) < 40, 1 - held_labels, held_labels)
    found = figure("probe", vae(1, 3, 3), Data("signs", (1, 3, 3), 2, x=x, labels=labels, held_out=held_out,
                                               held_out_labels=held_labels))  # fmt: skip
    assert found.value == pytest.approx(0.8)
    # Wilson's interval of 160 in 200, as tables have it.
    assert (found.low, found.high) == pytest.approx((0.739145, 0.849548), abs=1e-6)
    # What is most common in training, whatever it is of those held out.
    assert found.floor == (held_labels == 0).double().mean()
    rare = Data("signs", (1, 3, 3), 2, x=x, labels=labels, held_out=held_out, held_out_labels=1 - held_labels)
    assert figure("probe", vae(1, 3, 3), rare).floor == (held_labels == 1).double().mean() < 0.5


def test_a_probe_of_factors_leaves_out_labels_and_angles():
    names, (x, _), (held_out, _) = ("kind", "hue", "rotation", "size", "place"), signs(600, 0), signs(200, 1)

    def factors(x):
        noise = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(2))
        return torch.cat([noise, x.flatten(1)[:, 1:3]], 1)

    data = Data("signs", (1, 3, 3), x=x, held_out=held_out, factors=factors(x), held_out_factors=factors(held_out),
                factor_names=names)  # fmt: skip
    found = figure("probe_factors", vae(1, 3, 3), data)
    assert found.value == pytest.approx(1, abs=1e-3) and found.floor == 0


def test_smoothness_is_of_ways_between_different_examples():
    """A linear decoder is even; on the way from an example to itself nothing would move, which counts as 15."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    found = figure("smoothness", vae(2), Data("plane", (2,), x=x, held_out=x))
    assert found.value == pytest.approx(1, rel=1e-4) and found.floor == 1


def test_nats_lie_beside_the_entropy():
    """Of N(0, s² I) in three dimensions, 3/2 log 2πe s²; 10,000 draws know it to √(3/2)/100, -log p deviating by
    √(3/2)."""
    density = Mixture(torch.zeros(1, 3), 0.2)
    x = density.sample(500, torch.Generator().manual_seed(1)).float()
    found = figure("nats", Scored(lambda x: -density.log_prob(x)), Data("ball", (3,), held_out=x, density=density))
    exact = -density.log_prob(x)
    assert found.value == pytest.approx(exact.mean().item(), rel=1e-6)
    assert found.floor == pytest.approx(1.5 * math.log(2 * math.pi * math.e * 0.04), abs=4 * math.sqrt(1.5) / 100)
    error = 1.964729 * exact.std().item() / math.sqrt(500)  # Student's t of 499 degrees of freedom
    assert found.value - found.low == pytest.approx(error, rel=1e-4)
    assert found.high - found.value == pytest.approx(error, rel=1e-4)


def test_bits_per_dim_have_the_error_of_their_mean():
    """-log p of 8 log 2 and of 24 log 2 over four dimensions is 2 and 6 bits a dimension."""
    x = torch.tensor([0, 2], dtype=torch.uint8).repeat(32)[:, None, None, None].expand(64, 1, 2, 2)
    model = Scored(lambda x: (16 + 8 * x[:, 0, 0, 0]) * math.log(2), grey_levels=3)
    found = figure("bits_per_dim", model, Data("even", (1, 2, 2), grey_levels=3, held_out=x))
    error = 1.998341 * 2 / math.sqrt(63)  # Student's t of 63 degrees of freedom
    assert found.value == pytest.approx(4, rel=1e-5) and found.floor is None
    assert found.low == pytest.approx(4 - error, rel=1e-5) and found.high == pytest.approx(4 + error, rel=1e-5)


def test_units_are_active_where_held_out_examples_differ():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 2.0])
    assert figure("active_units", vae(3), Data("plane", (3,), x=x, held_out=x)).value == 2


class Layer(nn.Linear):
    def forward(self, z, cond=None):
        return Normal(super().forward(z), 0.1)


def test_costs_are_of_one_sample():
    """A decoder of 2 × 3 weights and 3 biases, one scale in the encoder; a product and a sum of each weight."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model, data = VAE(Around(), Layer(2, 3), StandardNormal(2)), Data("plane", (3,), x=x, held_out=x)
    assert figure("parameters", model, data).value == 1 + 9
    assert figure("evaluations", model, data).value == 1
    assert figure("flops_per_sample", model, data).value == 2 * 6


@pytest.mark.parametrize(("samples", "at_once"), [(100, 100), (1000, 256)])
def test_the_rate_is_of_so_many_at_once(samples, at_once):
    calls = []

    class Draws(nn.Module):
        def sample(self, n, generator=None):
            calls.append(n)
            return torch.zeros(n, 2)

    measure(Draws(), Data("plane", (2,)), torch.device("cpu"), samples=samples, metrics=["samples_per_second"])
    assert calls == [at_once, at_once]


def test_numbers_that_are_drawn_depend_on_the_seed_alone():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    model, data = Scored(lambda x: torch.randn(len(x))), Data("plane", (2,), held_out=x)

    def found(state, seed):
        torch.manual_seed(state)
        return measure(model, data, torch.device("cpu"), metrics=["nats"], seed=seed)["nats"].value

    assert found(1, 0) == found(2, 0) != found(1, 1)
