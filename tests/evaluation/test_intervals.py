"""A nominal 95% interval covers the truth in 90 to 98% of trials, as scripts/studies/intervals.py simulates it."""

import importlib.util
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2, norm, t

from hybrids.data import Data
from hybrids.evaluation.measurements import (
    deviation_interval,
    mean_of,
    proportion_interval,
    quantile,
    ratio_of,
    variance_beyond,
)
from hybrids.evaluation.sample_metrics import SAMPLE_METRICS, SampleSet
from hybrids.evaluation.samples.distances import kernel, kernel_interval
from hybrids.evaluation.samples.features import Pixels

SCRIPT = Path(__file__).parents[2] / "scripts" / "studies" / "intervals.py"
spec = importlib.util.spec_from_file_location("study_of_intervals", SCRIPT)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)

SLACK = 0.012
"""The standard error of a share of 98% of 140 trials."""
CASES = {case.name: case for case in study.CASES}


def within(share, slack=0.0):
    return 0.90 - slack <= share <= 0.98 + slack


# Formulas


def test_quantiles_are_those_of_students_t():
    for freedom in (1, 2, 9, 100):
        assert quantile(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-9)
    assert quantile(math.inf) == pytest.approx(norm.ppf(0.975), abs=1e-6)


def test_the_ends_of_wilsons_interval_are_a_score_tests():
    """|p - share| = z √(p (1 - p)/n) at both, for shares inside; none of zero width at 0 and 1."""
    for share, n in ((0.3, 10), (0.98, 500), (0.01, 60)):
        for p in proportion_interval(share, n):
            assert abs(p - share) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), rel=1e-9)
    z = 1.959964**2
    assert proportion_interval(0, 50) == (0, pytest.approx(z / (50 + z)))
    assert proportion_interval(1, 50) == (pytest.approx(50 / (50 + z)), 1)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("n", [60, 300, 1000])
def test_a_proportion_is_covered(p, n):
    """The exact probability, over all outcomes."""
    assert within(study.coverage_of_proportion(p, n))


def test_proportions_of_0_and_1_are_always_covered_and_refusals_name_the_argument():
    for p in (0.0, 1.0):
        assert study.coverage_of_proportion(p, 60) == pytest.approx(1)
    for share, n in ((1.1, 5), (-0.1, 5), (0.5, 0)):
        with pytest.raises(ValueError, match=r"share must be in \[0, 1\] and n positive"):
            proportion_interval(share, n)
    with pytest.raises(ValueError, match="n must be at least 2; got 1"):
        deviation_interval(1.0, 1)


@pytest.mark.parametrize("n", [3, 30, 300])
def test_a_mean_is_covered(n):
    """Of three values as of many, which the normal quantile would do in 81%."""
    assert within(study.coverage_of_mean(lambda n, g: torch.randn(n, generator=g), 0.0, n, 2000))


def test_a_mean_of_skewed_values_and_a_ratio_of_means_are_covered():
    def exponential(n, generator):
        return -torch.rand(n, generator=generator, dtype=torch.float64).log()

    assert within(study.coverage_of_mean(exponential, 1.0, 100, 2000))
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(1000):
        found = ratio_of(3 * exponential(100, generator), exponential(100, generator))
        hits += found.low <= 3 <= found.high
    assert within(hits / 1000)


def test_a_standard_deviation_is_covered():
    for n in (2, 3, 10):
        low, high = deviation_interval(2.0, n)
        assert chi2.cdf((n - 1) * 4 / low**2, n - 1) == pytest.approx(0.975)
        assert chi2.cdf((n - 1) * 4 / high**2, n - 1) == pytest.approx(0.025)
    ends = [deviation_interval(x.std().item(), 3) for x in torch.randn(1000, 3, dtype=torch.float64)]
    assert within(sum(low <= 1 <= high for low, high in ends) / 1000)


def test_one_value_has_an_interval_of_no_width_but_no_nan():
    assert mean_of(torch.tensor([2.0])).high == 2


# Kernel


def test_the_variance_of_the_kernel_distance_is_unbiased():
    """Its mean over estimates is their variance, of equal distributions, of others, of unequal numbers, of subsets."""
    generator = torch.Generator().manual_seed(0)

    def normal(n):
        return torch.randn(n, 8, generator=generator, dtype=torch.float64)

    for shift, n, m, subsets, size in (
        (0, 40, 40, 1, 40),
        (0.3, 40, 40, 1, 40),
        (0.3, 60, 40, 8, 20),
        (0, 60, 60, 4, 20),
    ):
        found = torch.tensor(
            [kernel(normal(n), normal(m) + shift, subsets, size) for _ in range(400)], dtype=torch.float64
        )
        spread = found[:, 0].var().item()
        # A variance of 400 values is known to 7% where they are Gaussian, less where they have tails.
        assert found[:, 1:].sum(1).mean().item() == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("name", ["equal", "shifted", "wide"])
@pytest.mark.parametrize("n", [60, 300])
def test_the_kernel_distance_is_covered(name, n):
    """By the known MMD² of two Gaussians: 0 of equal ones."""
    case, generator, trials, hits = CASES[name], torch.Generator().manual_seed(1), 500 if n == 60 else 200, 0
    exact = study.mmd(case)
    assert exact == 0 or name != "equal"
    for _ in range(trials):
        low, high = kernel_interval(*kernel(case.real(n, generator), case.fake(n, generator)))
        hits += low <= exact <= high
    assert within(hits / trials)


def test_the_known_mmd_is_the_mean_of_unbiased_estimates():
    generator = torch.Generator().manual_seed(0)
    for case in (CASES["shifted"], CASES["wide"]):
        found = [kernel(case.real(100, generator), case.fake(100, generator))[0] for _ in range(300)]
        each = torch.tensor(found, dtype=torch.float64)
        assert each.mean().item() == pytest.approx(study.mmd(case), abs=4 * each.std().item() / 300**0.5)


# Figures as they are measured: Fréchet, neighbours and floors


@cache
def simulated(name, n, trials):
    case = CASES[name]
    figures, truth = list(study.measured(case, n, trials)), study.truth(case, n, 6 * trials)
    return figures, truth, study.coverage(figures, truth)


@pytest.mark.parametrize(
    ("name", "n", "trials"),
    [
        ("equal", 60, 140),
        *[pytest.param(name, 60, 140, marks=pytest.mark.slow) for name in CASES if name != "equal"],
        pytest.param("shifted", 300, 140, marks=pytest.mark.slow),
        *[pytest.param(name, 300, 140, marks=pytest.mark.full) for name in CASES if name != "shifted"],
    ],
)
def test_distances_and_neighbours_are_covered(name, n, trials):
    _, truth, shares = simulated(name, n, trials)
    # Among 60, a share of 98% takes few values: Wilson's interval then covers more than it says.
    few = {metric for metric, value in truth.items() if abs(value - 1) * n < 2 and metric in ("precision", "recall")}
    off = {metric: share for metric, share in shares.items() if not within(share, SLACK)}
    assert {metric: share for metric, share in off.items() if metric not in few or share < 0.9} == {}


@pytest.mark.parametrize("n", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_exact_samples_lie_within_the_spread_of_floors(n):
    """And the floor, the mean of ten splits, is what exact samples are expected to have."""
    figures = simulated("equal", n, 140)[0]
    for name, share in study.coverage_of_floors(figures).items():
        assert share >= 0.90 - 0.025, name  # a standard error of a share of 90% of 140
        values = torch.tensor([[found[name].value, found[name].floor] for found in figures], dtype=torch.float64)
        difference = values[:, 0] - values[:, 1]
        assert abs(difference.mean()) < 4 * difference.std() / len(values) ** 0.5, name
        # Better known than by one split.
        assert values[:, 1].std() < values[:, 0].std(), name


def test_what_is_beyond_the_null_variance():
    assert variance_beyond(5.0, 1.0) == 4 and variance_beyond(2.0, 1.0) == variance_beyond(1.5, 1.0) == 1


def test_copies_of_one_example_have_shares_of_0_and_1_with_intervals():
    """Samples far away, all the same: no precision, no recall; what 100 examples say of 0 is not that it is 0."""
    generator = torch.Generator().manual_seed(0)
    data = Data("simulated", (3,), x=torch.randn(200, 3, generator=generator))
    bench = SampleSet(torch.full((100, 3), 50.0), data, lambda: Pixels((3,)), torch.device("cpu"))
    for name in ("precision", "recall", "coverage"):
        found = SAMPLE_METRICS[name](bench)
        assert found.value == found.low == 0 and 0.03 < found.high < 0.06 and found.floor > 0.5
