import math

import pytest
import torch
from torch import nn

from components.distributions import Categorical, Normal
from hybrids.data import digits, gaussians_25, load_data, stacked_digits
from hybrids.evaluation import agreement, coverage, evaluate, likelihood, measured_samples, stacked_coverage
from hybrids.terms import Terms


class Uniform(nn.Module):
    """Every one of K grey levels equally likely."""

    def __init__(self, grey_levels=17, shape=(1, 8, 8)):
        super().__init__()
        self.grey_levels, self.shape = grey_levels, shape

    def nll(self, x, cond=None):
        return Terms(nll=-Categorical(torch.zeros(len(x), self.grey_levels, *self.shape)).log_prob(x))

    def sample(self, n, cond=None, generator=None):
        return Categorical(torch.zeros(n, self.grey_levels, *self.shape)).rsample(generator)


class Noisy(nn.Module):
    """A density whose bound is the truth and noise of deviation 3 in two parts, one of them weighted."""

    def nll(self, x, cond=None):
        exact = -Normal(torch.zeros_like(x), 1.0).log_prob(x)
        return Terms(rate=(2.0, 3 * torch.randn(len(x))), distortion=exact)


# Likelihood


@pytest.mark.parametrize("grey_levels", [17, 256])
def test_a_uniform_model_of_k_levels_has_log2_k_bits_a_dimension(grey_levels):
    found = likelihood(Uniform(grey_levels), torch.randint(grey_levels, (300, 1, 8, 8)) / ((grey_levels - 1) / 2) - 1)
    assert found["bits_per_dim"] == pytest.approx(math.log2(grey_levels), rel=1e-6)
    assert found["nats"] == pytest.approx(64 * math.log(grey_levels), rel=1e-6)
    assert found["nats_per_dim"] == pytest.approx(math.log(grey_levels), rel=1e-6)
    assert found["nats_nll"] == pytest.approx(found["nats"], rel=1e-6)


def test_that_of_uniform_17_is_the_known_number():
    assert likelihood(Uniform(), torch.zeros(4, 1, 8, 8))["bits_per_dim"] == pytest.approx(4.087463, rel=1e-6)


def test_a_density_has_no_bits():
    assert "bits_per_dim" not in likelihood(Noisy(), torch.randn(50, 2))


def test_random_levels_are_averaged_over_the_draws():
    x = torch.randn(100, 2)
    exact = -Normal(torch.zeros_like(x), 1.0).log_prob(x).mean().item()
    for draws in (100, 5000):
        errors = torch.tensor([likelihood(Noisy(), x, draws)["nats"] - exact for _ in range(30)])
        expected = 6 / math.sqrt(draws)  # a deviation of 30 draws is known within 13%
        assert 0.5 * expected < errors.std() < 1.6 * expected


def test_its_parts_sum_to_the_whole():
    found = likelihood(Noisy(), torch.randn(100, 2))
    assert found["nats_rate"] + found["nats_distortion"] == pytest.approx(found["nats"], rel=1e-5)


def test_the_standard_error_is_that_of_the_mean_over_examples():
    x = torch.randn(2000, 2, dtype=torch.float64)
    each = -Normal(torch.zeros_like(x), 1.0).log_prob(x)

    class Exact(nn.Module):
        def nll(self, x, cond=None):
            return Terms(nll=-Normal(torch.zeros_like(x), 1.0).log_prob(x))

    found = likelihood(Exact(), x)["nats_per_dim_standard_error"]
    assert found == pytest.approx(each.std().item() / math.sqrt(2000) / 2, rel=1e-6)


# Coverage


def test_exact_samples_cover_every_mode():
    mixture = gaussians_25()
    found = coverage(mixture.sample(10_000), mixture)
    inside = 1 - math.exp(-4.5)  # of a 2-D Gaussian within 3σ: .98889
    assert found["modes"] == 25
    assert found["high_quality"] == pytest.approx(inside, abs=4 * math.sqrt(inside * (1 - inside) / 10_000))
    assert 0 < found["kl"] < 2.5e-3  # χ² of 24 degrees over 2n: .0012 ± .00035


def test_collapsed_samples_show():
    mixture = gaussians_25()
    found = coverage(mixture.means[7] + mixture.std * torch.randn(1000, 2, dtype=torch.float64), mixture)
    assert found["modes"] == 1 and found["kl"] == pytest.approx(math.log(25), rel=1e-9)
    assert found["high_quality"] == pytest.approx(0.989, abs=0.015)


def test_samples_between_the_modes_are_of_no_mode():
    mixture = gaussians_25()
    found = coverage(mixture.means + 10 * mixture.std, mixture)
    assert found["modes"] == 0 and found["high_quality"] == 0 and found["kl"] == pytest.approx(0, abs=1e-12)


# Agreement


def test_a_classifier_agrees_with_real_digits():
    data = digits(8)
    found = agreement(data.decode(data.held_out))
    assert found["classifier_accuracy"] > 0.95 and found["confidence"] > 0.95
    assert found["classes"] == 10 and found["rarest_class_share"] > 0.05


def test_it_reads_held_out_digits_as_their_labels_as_often_as_it_is_right():
    data = digits(8)
    found = agreement(data.decode(data.held_out), data.held_out_labels)
    assert found["label_agreement"] == pytest.approx(found["classifier_accuracy"])
    assert agreement(data.decode(data.held_out), (data.held_out_labels + 1) % 10)["label_agreement"] < 0.05


def test_it_does_not_agree_with_noise_or_with_one_digit():
    data = digits(8)
    assert agreement(torch.rand(300, 1, 8, 8) * 2 - 1)["confidence"] < 0.9
    zeros = data.decode(data.held_out[data.held_out_labels == 0])
    assert agreement(zeros)["classes"] <= 3 and agreement(zeros)["rarest_class_share"] == 0


# Stacked digits


def kl_of(labels):
    share = torch.bincount(labels, minlength=1000).double() / len(labels)
    return torch.xlogy(share, 1000 * share).sum().item()


def test_real_stacked_digits_have_every_mode():
    """The classifier has seen these digits, so that their labels' KL is what it must find, the floor included."""
    data = stacked_digits()
    found = stacked_coverage(data.decode(data.x[:26_000]))
    assert found["modes"] == 1000 and found["confidence"] > 0.99 and found["classifier_accuracy"] > 0.95
    assert found["kl"] == pytest.approx(kl_of(data.labels[:26_000]), abs=2e-4)
    # What the training digits' classes lack of evenness, thrice; χ² of 999 degrees over 2N deviates by .00086.
    imbalance = torch.bincount(digits(8).labels).double() / 1500
    expected = found["kl_floor"] + 3 * torch.xlogy(imbalance, 10 * imbalance).sum().item()
    assert found["kl_floor"] == pytest.approx(0.019212, abs=1e-6)
    assert found["kl"] == pytest.approx(expected, abs=4 * 0.00086)


def test_one_stack_repeated_is_one_mode():
    data = stacked_digits()
    found = stacked_coverage(data.decode(data.x[:1]).repeat(500, 1, 1, 1))
    assert found["modes"] == 1 and found["kl"] == pytest.approx(math.log(1000), rel=1e-12)


def test_modes_are_of_ordered_channels():
    """Of three different digits the six orders are six modes, drawn 1, 2, … 6 times here."""
    data = digits(8)
    x = torch.cat([data.decode(data.x[(data.labels == k).nonzero()[0]])[:, 0] for k in (0, 4, 7)])
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    found = stacked_coverage(x[orders.repeat_interleave(torch.arange(1, 7), 0)])
    share = torch.arange(1.0, 7.0, dtype=torch.float64) / 21
    assert found["modes"] == 6
    assert found["kl"] == pytest.approx(torch.xlogy(share, 1000 * share).sum().item(), rel=1e-9)


def test_stacks_have_three_channels():
    with pytest.raises(ValueError, match=r"samples must be \(N, 3, H, W\); got shape \(4, 1, 8, 8\)"):
        stacked_coverage(torch.zeros(4, 1, 8, 8))


# All together


def test_evaluate_leaves_the_global_random_numbers_alone_and_repeats():
    model, data, before = Uniform(), digits(8), torch.get_rng_state()
    first, second = (evaluate(model, data, torch.device("cpu"), samples=50) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state()) and first == second
    assert first["bits_per_dim"] == pytest.approx(math.log2(17), rel=1e-6) and "confidence" in first
    assert all(isinstance(value, float) for value in first.values())  # TensorBoard draws them
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        x = model.sample(50, generator=generator)
    for name, figure in measured_samples(x, data, torch.device("cpu"), metrics=("frechet", "high_frequency")).items():
        assert first[name] == figure.value


@pytest.mark.slow
def test_evaluate_has_a_distance_for_any_images():
    data = load_data("shapes", 16)

    class Real(nn.Module):
        def sample(self, n, cond=None, generator=None):
            return data.decode(data.x[-n:])

    class Grey(nn.Module):
        def sample(self, n, cond=None, generator=None):
            return torch.zeros(n, *data.shape)

    real, grey = (evaluate(model, data, torch.device("cpu"), samples=200) for model in (Real(), Grey()))
    assert real["frechet"] < 0.2 * grey["frechet"] and real["recall"] > 0.5 > grey["recall"]
    assert real["high_frequency"] == pytest.approx(1, abs=0.3) and grey["high_frequency"] == 0


def test_evaluate_scores_points_by_coverage():
    class Exact(nn.Module):
        def sample(self, n, cond=None, generator=None):
            return gaussians_25().sample(n, generator)

    found = evaluate(Exact(), load_data("25-gaussians"), torch.device("cpu"))
    assert found["modes"] == 25 and "nats" not in found


@pytest.mark.slow
def test_evaluate_counts_the_modes_of_stacked_digits():
    data = stacked_digits(5000)

    class Real(nn.Module):
        def sample(self, n, cond=None, generator=None):
            return data.decode(data.x[:n])

    found = evaluate(Real(), data, torch.device("cpu"))
    assert found["kl_floor"] == pytest.approx(999 / 6000)
    assert found["modes"] == len(data.labels[:3000].unique())
