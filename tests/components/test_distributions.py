import math
import re

import pytest
import torch

from components.decoders import BernoulliHead, LogisticHead, NormalHead
from components.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    DiscretizedLogistic,
    DiscretizedNormal,
    Distribution,
    Implicit,
    Normal,
    grid,
    kl,
    kl_per_dimension,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def within(samples, expected, errors=4):
    """Whether the mean of samples (N,) lies within four standard errors of what is expected (or at the last digits)."""
    error = samples.std() / math.sqrt(len(samples))
    assert (samples.mean() - expected).abs() <= errors * error + 1e-12, f"{samples.mean()} ± {error}, not {expected}"


def normal(batch=3, event=(2, 2), dtype=F64):
    return Normal(torch.randn(batch, *event, dtype=dtype), 0.3 + torch.rand(batch, *event, dtype=dtype))


def discretized(kind, mean, scale, levels):
    """Either discretized distribution, of a log scale or a standard deviation."""
    return (
        DiscretizedLogistic(mean, scale.log(), levels) if kind == "logistic" else DiscretizedNormal(mean, scale, levels)
    )


DISCRETIZED = pytest.mark.parametrize("kind", ["logistic", "normal"])
LEVELS = pytest.mark.parametrize("levels", [256, 17])


def every(dtype=F64, copies=1, batch=3):
    """One of each distribution that has log_prob, over (batch, 2, 2), the batch repeated so many times."""
    raw = torch.randn(batch, 2, 2, dtype=dtype).repeat(copies, 1, 1)
    return {
        "normal": Normal(raw, 0.5 + raw.abs()),
        "delta": Delta(raw),
        "bernoulli": Bernoulli(raw),
        "logistic": DiscretizedLogistic(raw, raw - 1, 17),
        "discretized normal": DiscretizedNormal(raw, 0.5 + raw.abs(), 17),
        "categorical": Categorical(torch.randn(batch, 17, 2, 2, dtype=dtype).repeat(copies, 1, 1, 1)),
    }


KINDS = pytest.mark.parametrize("kind", list(every()))
RANDOM = pytest.mark.parametrize("kind", [kind for kind in every() if kind != "delta"])


# Normal


def test_kl_to_the_standard_normal_is_the_textbook_formula():
    q = normal()
    expected = 0.5 * (q.mean.square() + q.std.square() - 1 - q.std.square().log()).sum((1, 2))
    torch.testing.assert_close(kl(q, Normal(torch.zeros(1, 2, 2, dtype=F64), 1.0)), expected, rtol=1e-12, atol=0)
    one = kl(Normal(torch.tensor([[0.7]], dtype=F64), 0.4), Normal(torch.zeros(1, 1, dtype=F64), 1.0))
    assert one.item() == pytest.approx(0.741291, rel=1e-6)


def test_kl_per_dimension_sums_to_kl():
    q, p = normal(), normal()
    torch.testing.assert_close(kl_per_dimension(q, p).sum((1, 2)), kl(q, p), rtol=1e-14, atol=0)


def test_kl_of_equal_normals_is_zero():
    q = normal()
    assert kl(q, q).abs().max() < 1e-15


def test_normal_log_prob_is_torch_s():
    q = normal()
    y = torch.randn_like(q.mean)
    expected = torch.distributions.Normal(q.mean, q.std).log_prob(y).sum((1, 2))
    torch.testing.assert_close(q.log_prob(y), expected, rtol=1e-12, atol=0)


def test_normal_entropy_counts_every_dimension_of_a_shared_std():
    p = Normal(torch.zeros(3, 2, 2, dtype=F64), 0.5)
    expected = 4 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))
    torch.testing.assert_close(p.entropy(), torch.full((3,), expected, dtype=F64), rtol=1e-12, atol=0)


def test_a_shared_std_and_a_batch_of_one_broadcast_in_log_prob():
    y = torch.randn(5, 2, 2, dtype=F64)
    shared, full = Normal(torch.zeros(1, 2, 2, dtype=F64), 2.0), Normal(torch.zeros_like(y), torch.full_like(y, 2.0))
    torch.testing.assert_close(shared.log_prob(y), full.log_prob(y), rtol=1e-14, atol=0)


# Discretized


@DISCRETIZED
@LEVELS
def test_masses_are_differences_of_the_distribution_function(kind, levels):
    mean, scale = torch.tensor([[0.2]], dtype=F64), torch.tensor([[0.3]], dtype=F64)
    p = discretized(kind, mean, scale, levels)
    y, half = grid(levels, mean)[1:-1], 1 / (levels - 1)
    cdf = torch.sigmoid if kind == "logistic" else torch.special.ndtr
    expected = cdf((y + half - mean[0]) / scale[0]) - cdf((y - half - mean[0]) / scale[0])
    found = torch.stack([p.log_prob(value.view(1, 1)).exp()[0] for value in y])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@DISCRETIZED
@LEVELS
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
def test_log_prob_and_gradients_are_finite_far_in_the_tails(kind, levels, dtype, scale):
    y = grid(levels, torch.zeros(1, dtype=dtype))[:, None].repeat(4, 1)
    mean = torch.tensor([-50.0, -1.5, 1.5, 50.0], dtype=dtype).repeat_interleave(levels)[:, None].requires_grad_()
    scales = torch.full_like(mean, scale).requires_grad_()
    log_prob = discretized(kind, mean, scales, levels).log_prob(y)
    log_prob.sum().backward()
    for values in (log_prob, mean.grad, scales.grad):
        assert values.isfinite().all()


@DISCRETIZED
@pytest.mark.parametrize("scale", [1e-3, 0.01, 0.1])
@pytest.mark.parametrize("place", [-50.0, -1.5, 0.03, 1.5])
def test_gradients_in_float32_are_those_of_float64(kind, scale, place):
    def gradients(dtype):
        y = grid(256, torch.zeros(1, dtype=dtype))[:, None]
        mean, scales = torch.full_like(y, place).requires_grad_(), torch.full_like(y, scale).requires_grad_()
        return torch.autograd.grad(discretized(kind, mean, scales, 256).log_prob(y).sum(), (mean, scales))

    for half, full in zip(gradients(torch.float32), gradients(F64)):
        torch.testing.assert_close(half.double(), full, rtol=1e-4, atol=1e-4 * full.abs().max().item())


@DISCRETIZED
def test_a_tail_pulls_the_mean_towards_the_data(kind):
    mean = torch.tensor([[30.0], [-30.0]], requires_grad=True)
    discretized(kind, mean, torch.full_like(mean, 0.1), 17).log_prob(torch.zeros(2, 1)).sum().backward()
    assert mean.grad[0] < -1 and mean.grad[1] > 1


@LEVELS
@pytest.mark.parametrize("scale", [1e-3, 0.05, 0.5, 4.0])
def test_the_logistic_s_mean_is_within_half_a_bin_of_the_exact_one(levels, scale):
    location = torch.linspace(-1.4, 1.4, 29, dtype=F64)[:, None]
    values = grid(levels, location)
    p = DiscretizedLogistic(location.repeat_interleave(levels, 0), torch.tensor(scale, dtype=F64).log(), levels)
    mass = p.log_prob(values.repeat(len(location))[:, None]).exp().view(len(location), levels)
    found = DiscretizedLogistic(location, torch.tensor(scale, dtype=F64).log(), levels).mean[:, 0]
    assert ((mass * values).sum(1) - found).abs().max() <= 1 / (levels - 1)


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_levels_below_two_are_refused(levels):
    x = torch.zeros(1, 1)
    for build in (lambda k: DiscretizedLogistic(x, x, k), lambda k: DiscretizedNormal(x, 1.0, k)):
        build(levels)
        with pytest.raises(ValueError, match="levels must be at least 2; got 1"):
            build(1)


# All of them


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


@pytest.mark.parametrize("kind", ["bernoulli", "logistic", "discretized normal", "categorical"])
def test_draws_lie_on_the_grid(kind):
    levels = 2 if kind == "bernoulli" else 17
    draws = every(copies=200)[kind].rsample().flatten()
    assert (draws[:, None] - grid(levels, draws)).abs().min(1).values.max() < 1e-12


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_draws_average_to_the_mean(kind):
    p = every(copies=3000)[kind]
    within((p.rsample() - p.mean).flatten(1).mean(1), 0.0)


def test_a_straight_through_draw_has_the_gradient_of_the_mean():
    for build, raw in ((Bernoulli, torch.randn(3, 2, dtype=F64)), (Categorical, torch.randn(3, 5, 2, dtype=F64))):
        raw.requires_grad_()
        weight = torch.randn(3, 2, dtype=F64)
        (from_draw,) = torch.autograd.grad((build(raw).rsample() * weight).sum(), raw)
        (from_mean,) = torch.autograd.grad((build(raw).mean * weight).sum(), raw)
        torch.testing.assert_close(from_draw, from_mean, rtol=1e-12, atol=0)
        assert from_draw.abs().min() > 0


@DISCRETIZED
def test_a_draw_inside_the_range_moves_one_to_one_with_the_mean(kind):
    mean = torch.zeros(100, 1, dtype=F64, requires_grad=True)
    discretized(kind, mean, torch.full_like(mean, 0.05), 17).rsample().sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))


@KINDS
@pytest.mark.parametrize("event", [(2, 1), (1, 2), (1, 1), (2,), (2, 3), (1, 2, 2), ()])
def test_a_value_of_another_event_is_refused_and_not_broadcast(kind, event):
    p = every()[kind]
    message = (
        f"y must be of the {type(p).__name__}'s shape (3, 2, 2), or either of a batch of 1; got shape {(3, *event)}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        p.log_prob(torch.ones(3, *event, dtype=F64))


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


@KINDS
@pytest.mark.parametrize("batch", [2, 4])
def test_a_value_of_another_batch_is_refused(kind, batch):
    with pytest.raises(ValueError, match=rf"shape \(3, 2, 2\), or either of a batch of 1; got shape \({batch}, 2, 2\)"):
        every()[kind].log_prob(torch.ones(batch, 2, 2, dtype=F64))


def test_a_decoder_of_fewer_channels_is_refused():
    for head in (NormalHead(0.1), NormalHead("shared"), NormalHead("learned"), LogisticHead(17), BernoulliHead()):
        p = head(torch.randn(2, head.factor, 4, 4))
        message = (
            f"y must be of the {type(p).__name__}'s shape (2, 1, 4, 4), or either of a batch of 1; got shape (2, 3, 4"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            p.log_prob(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("std", [0.5, (), (1, 2, 1), (1, 2, 2), (3, 1, 1)])
def test_a_shared_std_is_one_for_all_in_log_prob_and_in_kl(std):
    mean, y = torch.randn(2, 3, 2, 2, dtype=F64)
    std = std if isinstance(std, float) else 0.3 + torch.rand(std, dtype=F64)
    shared, full = Normal(mean, std), Normal(mean, torch.as_tensor(std, dtype=F64).expand(3, 2, 2))
    torch.testing.assert_close(shared.log_prob(y), full.log_prob(y), rtol=1e-12, atol=1e-12)
    other = normal()
    torch.testing.assert_close(kl(shared, other), kl(full, other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl(other, shared), kl(other, full), rtol=1e-12, atol=1e-12)


# Bernoulli, Categorical, Delta, Implicit


def test_bernoulli_masses_of_its_two_values_sum_to_one():
    p = Bernoulli(torch.randn(50, 1, dtype=F64) * 10)
    one = torch.ones(50, 1, dtype=F64)
    assert (p.log_prob(one).exp() + p.log_prob(-one).exp() - 1).abs().max() < 1e-12
    torch.testing.assert_close(p.log_prob(one).exp()[:, None], torch.sigmoid(p.logits), rtol=1e-12, atol=0)


def test_bernoulli_is_finite_at_extreme_logits():
    logits = torch.tensor([[-1e4], [1e4]], requires_grad=True)
    p = Bernoulli(logits)
    (p.log_prob(torch.ones(2, 1)) + p.entropy()).sum().backward()
    assert p.log_prob(torch.ones(2, 1)).tolist() == [-1e4, 0.0] and logits.grad.isfinite().all()


def test_bernoulli_kl_is_closed_and_right():
    q, p = Bernoulli(torch.randn(3, 4, dtype=F64)), Bernoulli(torch.randn(3, 4, dtype=F64))
    a, b = torch.sigmoid(q.logits), torch.sigmoid(p.logits)
    expected = (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).sum(1)
    torch.testing.assert_close(kl(q, p), expected, rtol=1e-10, atol=0)


def test_categorical_puts_level_v_at_its_grey_value():
    logits = torch.randn(1, 17, 1, dtype=F64)
    p = Categorical(logits)
    found = torch.stack([p.log_prob(value.view(1, 1))[0] for value in grid(17, logits)])
    torch.testing.assert_close(found, logits.log_softmax(1)[0, :, 0], rtol=1e-12, atol=0)


def test_categorical_mean_and_entropy_of_the_uniform_one():
    p = Categorical(torch.zeros(2, 17, 3, dtype=F64))
    assert p.mean.abs().max() < 1e-15
    torch.testing.assert_close(p.entropy(), torch.full((2,), 3 * math.log(17), dtype=F64), rtol=1e-12, atol=0)


def test_categorical_kl_is_closed_and_right():
    q, p = Categorical(torch.randn(3, 5, 2, dtype=F64)), Categorical(torch.randn(3, 5, 2, dtype=F64))
    expected = (q.log_mass.exp() * (q.log_mass - p.log_mass)).sum((1, 2))
    torch.testing.assert_close(kl(q, p), expected, rtol=1e-12, atol=0)


def test_categorical_refuses_logits_without_levels():
    with pytest.raises(ValueError, match=r"logits must be \(B, K, \*event\) with K >= 2; got shape \(3, 5\)"):
        Categorical(torch.zeros(3, 5))


def test_delta_is_all_mass_on_one_point():
    x = torch.randn(3, 2)
    y = x.clone()
    y[1, 0] += 1
    assert Delta(x).log_prob(y).tolist() == [0.0, -math.inf, 0.0] and Delta(x).entropy().tolist() == [0.0] * 3
    assert torch.equal(Delta(x).rsample(), x)


def test_implicit_draws_and_refuses_the_rest_by_name():
    p = Implicit(lambda generator: torch.randn(3, 2, generator=generator), "TinyGAN")
    assert torch.equal(*(p.rsample(torch.Generator().manual_seed(1)) for _ in range(2)))
    for what, ask in (
        ("mean", lambda: p.mean),
        ("log_prob", lambda: p.log_prob(torch.zeros(3, 2))),
        ("entropy", p.entropy),
    ):
        with pytest.raises(TypeError, match=f"TinyGAN is an implicit distribution: it has rsample, but no {what}"):
            ask()


def test_kl_by_monte_carlo_is_unbiased():
    q = DiscretizedNormal(torch.zeros(20_000, 1, dtype=F64), 0.4, 17)
    p = DiscretizedLogistic(torch.zeros(1, 1, dtype=F64), torch.tensor(0.3, dtype=F64).log(), 17)
    values = grid(17, p.location)[:, None]
    one = DiscretizedNormal(torch.zeros(17, 1, dtype=F64), 0.4, 17).log_prob(values)
    within(kl(q, p), (one.exp() * (one - p.log_prob(values))).sum())


def test_kl_averages_over_its_samples():
    q, p = (DiscretizedNormal(torch.zeros(2000, 1), std, 17) for std in (0.4, 0.5))
    one, many = (kl(q, p, samples).var() for samples in (1, 16))
    assert many < one / 8
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        kl(q, p, 0)


def test_kl_with_an_implicit_distribution_is_refused():
    with pytest.raises(TypeError, match="TinyGAN"):
        kl(normal(), Implicit(lambda generator: torch.zeros(3, 2, 2), "TinyGAN"))


PAIRS = {
    "normal": lambda *shape: Normal(torch.randn(shape, dtype=F64), 0.5),
    "bernoulli": lambda *shape: Bernoulli(torch.randn(shape, dtype=F64)),
    "categorical": lambda batch, *event: Categorical(torch.randn(batch, 5, *event, dtype=F64)),
    "discretized normal": lambda *shape: DiscretizedNormal(torch.randn(shape, dtype=F64), 0.5, 5),
}


@pytest.mark.parametrize("kind", list(PAIRS))
@pytest.mark.parametrize("q, p", [
    ((4, 2), (1, 1)), ((4, 2), (4, 1)), ((4, 1), (4, 2)), ((4, 2), (4, 3)), ((4, 2), (4, 2, 2)), ((4, 2), (3, 2)),
])  # fmt: skip
def test_kl_of_different_shapes_is_refused_and_not_broadcast(kind, q, p):
    with pytest.raises(
        ValueError, match="must be of (one|the DiscretizedNormal's) shape.*, or either of a batch of 1; got"
    ):
        kl(PAIRS[kind](*q), PAIRS[kind](*p))


@pytest.mark.parametrize("kind", ["normal", "bernoulli", "categorical"])
def test_kl_takes_a_batch_of_one_on_either_side(kind):
    raw = torch.randn(2, 4, 5, 2, dtype=F64)
    build = {"normal": lambda x: Normal(x[:, 0], 0.5), "bernoulli": lambda x: Bernoulli(x[:, 0])}.get(kind, Categorical)
    many, one, repeated = (build(x) for x in (raw[0], raw[1, :1], raw[1, :1].repeat(4, 1, 1)))
    torch.testing.assert_close(kl(many, one), kl(many, repeated), rtol=1e-12, atol=0)
    torch.testing.assert_close(kl(one, many), kl(repeated, many), rtol=1e-12, atol=0)


def test_kl_names_both_shapes():
    q, p = Normal(torch.zeros(4, 2), 1.0), Normal(torch.zeros(1, 1), 1.0)
    for divergence in (kl, kl_per_dimension):
        with pytest.raises(ValueError, match=r"got Normal of shape \(4, 2\) and Normal of shape \(1, 1\)"):
            divergence(q, p)
