"""What holds for every distribution: it integrates to one, its entropy is E[-log p], shapes, types, generators."""

import itertools
import math
import re

import pytest
import torch
from answers import F64
from instances import discretized, every, mixture, within

from components.decoders import BernoulliHead, LogisticHead, NormalHead
from components.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    DiscretizedLogisticMixture,
    Distribution,
    Normal,
    grid,
)

KINDS = pytest.mark.parametrize("kind", list(every()))
RANDOM = pytest.mark.parametrize("kind", [kind for kind in every() if kind != "delta"])
DISCRETIZED = [
    (kind, mean, scale, k)
    for kind in ("logistic", "normal")
    for mean, scale in ((0.2, 0.3), (-0.37, 1e-3), (0.999, 5.0), (30.0, 0.02), (-30.0, 0.3))
    for k in (2, 17, 256)
]
ONE = torch.ones(1, 2, dtype=F64)
LINE = torch.linspace(-9, 9, 601, dtype=F64)


def pair(*values):
    """A batch of one event of two dimensions: (1, 2), or (1, K, 2) of pairs."""
    return torch.tensor(values, dtype=F64).unsqueeze(0)


@pytest.mark.parametrize("build, values", [
    pytest.param(lambda: Normal(pair(0.7, -1.3), pair(0.4, 1.0)), LINE, id="normal"),
    pytest.param(lambda: Normal(pair(0.7, -1.3), 0.2), LINE, id="normal-shared-std"),
    pytest.param(lambda: Delta(pair(-0.5, 1.0)), 5, id="delta"),
    pytest.param(lambda: Bernoulli(pair(0.3, -4.0)), 2, id="bernoulli"),
    pytest.param(lambda: Bernoulli(pair(math.inf, -math.inf)), 2, id="bernoulli-certain"),
    *(pytest.param(lambda c=c: discretized(c[0], c[1] * ONE, c[2] * ONE, c[3]), c[3], id="-".join(map(str, c)))
      for c in DISCRETIZED),
    pytest.param(lambda: Categorical(torch.randn(1, 17, 2, dtype=F64) * 3), 17, id="categorical"),
    pytest.param(lambda: Categorical(pair((0.0, 1.0), (-math.inf, 2.0), (0.5, -math.inf))), 3, id="categorical-inf"),
    *(pytest.param(lambda k=k: mixture(1, event=(2,), grey_levels=k), k, id=f"mixture-{k}") for k in (2, 9, 256)),
    pytest.param(lambda: DiscretizedLogisticMixture(pair((0.0, 0.0), (-math.inf, 0.0)), pair((0.1, -1.0), (0.2, 1.0)),
                                                    torch.full((1, 2, 2), -3.0, dtype=F64), 9), 9, id="mixture-inf"),
])  # fmt: skip
def test_every_distribution_integrates_to_one(build, values):
    """A density by quadrature over the plane, which is exact to rounding here, a mass function by its sum."""
    p, volume = build(), 1.0
    if isinstance(values, int):
        values = grid(values, p.mean)
    else:
        volume = (values[1] - values[0]).item() ** 2
    plane = torch.cartesian_prod(values, values)
    assert p.log_prob(plane).exp().sum().item() * volume == pytest.approx(1, abs=1e-10)


@KINDS
def test_the_contract(kind):
    p = every()[kind]
    assert isinstance(p, Distribution)
    assert p.mean.shape == p.rsample().shape == (3, 2, 2)
    assert p.log_prob(p.rsample()).shape == p.entropy().shape == (3,)


@KINDS
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(kind, half):
    p = every(half)[kind]
    for value in (p.mean, p.rsample(), p.log_prob(torch.ones(3, 2, 2, dtype=half)), p.entropy()):
        assert value.dtype == torch.float32


@RANDOM
def test_entropy_is_the_mean_of_minus_log_prob(kind):
    p = every(copies=3000)[kind]
    draws = p.log_prob(p.rsample()).view(3000, 3)
    for i in range(3):
        within(-draws[:, i], p.entropy()[i])


@RANDOM
def test_a_generator_makes_draws_repeatable(kind):
    p = every()[kind]
    first, again, other = (p.rsample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@RANDOM
def test_a_generator_leaves_the_global_random_numbers_alone(kind):
    p, before = every()[kind], torch.get_rng_state()
    p.rsample(torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["bernoulli", "logistic", "discretized normal", "categorical", "mixture"])
def test_draws_lie_on_the_grid(kind):
    draws = every(copies=200)[kind].rsample().flatten()
    values = grid(2 if kind == "bernoulli" else 17, draws)
    assert (draws[:, None] - values).abs().min(1).values.max() < 1e-12


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_draws_average_to_the_mean(kind):
    p = every(copies=3000)[kind]
    within((p.rsample() - p.mean).flatten(1).mean(1), 0.0)


@KINDS
def test_a_batch_of_one_broadcasts_against_many(kind):
    """One value under many parameters, as of K draws of a latent, and many values under one."""
    p, y = every()[kind], 2.0 * torch.randint(2, (3, 2, 2), dtype=F64) - 1
    torch.testing.assert_close(p.log_prob(y[:1]), p.log_prob(y[:1].expand(3, 2, 2)), rtol=0, atol=0)
    torch.manual_seed(1)
    one = every(batch=1)[kind]
    torch.manual_seed(1)
    repeated = every(batch=1, copies=3)[kind]
    torch.testing.assert_close(one.log_prob(y), repeated.log_prob(y), rtol=0, atol=0)


EVENTS = [(2, 1), (1, 2), (1, 1), (2,), (2, 3), (1, 2, 2), ()]
SHAPES = [*((3, *event) for event in EVENTS), (2, 2, 2), (4, 2, 2)]


@pytest.mark.parametrize("kind, shape", list(itertools.product(every(), SHAPES)))
def test_a_value_of_another_shape_is_refused_and_not_broadcast(kind, shape):
    p = every()[kind]
    message = f"y must have the {type(p).__name__}'s shape (3, 2, 2) (either may have a batch of 1); got shape {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        p.log_prob(torch.ones(shape, dtype=F64))


@pytest.mark.parametrize("head", [NormalHead(0.1), NormalHead("shared"), NormalHead("learned"), LogisticHead(17),
                                  BernoulliHead()], ids=lambda head: type(head).__name__)  # fmt: skip
def test_a_decoder_of_fewer_channels_is_refused(head):
    p = head(torch.randn(2, head.factor, 4, 4))
    message = f"y must have the {type(p).__name__}'s shape (2, 1, 4, 4) (either may have a batch of 1); got shape (2, 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        p.log_prob(torch.zeros(2, 3, 4, 4))
