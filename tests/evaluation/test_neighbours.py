"""Precision, recall, density and coverage by brute force, by a published implementation, and where they are known."""

import math

import pytest
import torch

from hybrids.data import gaussians_25
from hybrids.evaluation.samples.neighbours import (
    Neighbours,
    nearest,
    neighbours,
    neighbours_of_splits,
    neighbours_variance,
    radii,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_pairs(real, fake, precision_k, density_k):
    """The definitions, one pair at a time."""

    def ball(x, i, k):
        return sorted(math.dist(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]

    real, fake = real.double().tolist(), fake.double().tolist()
    of_real = [ball(real, i, precision_k) for i in range(len(real))]
    of_fake = [ball(fake, j, precision_k) for j in range(len(fake))]
    wide = [ball(real, i, density_k) for i in range(len(real))]
    apart = [[math.dist(a, b) for b in fake] for a in real]
    n, m = range(len(real)), range(len(fake))
    return {
        "precision": sum(any(apart[i][j] < of_real[i] for i in n) for j in m) / len(m),
        "recall": sum(any(apart[i][j] < of_fake[j] for j in m) for i in n) / len(n),
        "density": sum(apart[i][j] < wide[i] for i in n for j in m) / (density_k * len(m)),
        "coverage": sum(any(apart[i][j] < wide[i] for j in m) for i in n) / len(n),
    }


@pytest.mark.parametrize(("d", "precision_k", "density_k"), [(2, 3, 5), (8, 3, 3), (3, 1, 7)])
def test_they_are_what_their_definitions_say(d, precision_k, density_k):
    real, fake = normal(60, d), 1.1 * normal(45, d, seed=1) + 0.8
    found = neighbours(real, fake, precision_k, density_k)
    assert found == pytest.approx(by_pairs(real, fake, precision_k, density_k), abs=1e-12)
    assert 0 < found["precision"] < 1 and 0 < found["recall"] < 1  # else nothing is seen


@pytest.mark.parametrize("rows", [1, 7, 59, 60, 1000])
def test_parts_are_as_the_whole(rows):
    real, fake = normal(60, 4), normal(45, 4, seed=1) + 0.4
    assert neighbours(real, fake, rows=rows) == pytest.approx(neighbours(real, fake), abs=1e-12)
    assert torch.allclose(radii(real, 3, rows), radii(real, 3), rtol=1e-12)
    assert torch.allclose(nearest(fake, real, rows), nearest(fake, real), rtol=1e-12)


def splits(n, many=4):
    return torch.stack([normal(n, seed=100 + seed).argsort() < n // 2 for seed in range(many)])


@pytest.mark.parametrize(("n", "d"), [(60, 2), (300, 3)])
def test_splits_are_as_their_halves(n, d):
    """Also where more than 48 nearest have to be looked at: of 250 copies on one place and 50 others."""
    x, halves = normal(n, d), splits(n)
    # In the second the first 250 are close to each other, and all in one half but for a few.
    crowded = torch.cat([1e-3 * normal(n - 20, d), 5 + normal(20, d, seed=1)])
    sorted_half = torch.arange(n) < n // 2
    for examples, masks in ((x, halves), (crowded, torch.cat([halves, sorted_half[None]]))):
        found = neighbours_of_splits(examples, masks, rows=77)
        for i, half in enumerate(masks):
            alone = neighbours(examples[half], examples[~half])
            assert {name: values[i].item() for name, values in found.items()} == pytest.approx(alone, abs=1e-12)


def test_the_variance_is_that_of_independent_batches():
    """Of samples that are all alike within batches there is none; else it is found again, and depends on the seed."""
    real, fake = normal(100, 3), normal(100, 3, seed=1) + 0.5
    variances, freedom = neighbours_variance(real, fake)
    assert freedom == 20 and all(value > 0 for value in variances.values())
    assert variances == neighbours_variance(real, fake)[0]
    assert variances != neighbours_variance(real, fake, generator=torch.Generator().manual_seed(1))[0]
    assert neighbours_variance(real, fake, size=10)[1] == 4 * 9
    far = neighbours_variance(real, fake + 100)[0]
    assert set(far.values()) == {0}


def test_distances_are_those_of_cdist():
    x, y = normal(30, 5) + 100, normal(20, 5, seed=1) + 100
    apart = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(nearest(x, y), apart.amin(1), rtol=1e-9)
    own = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1).values
    assert torch.allclose(radii(x, 4), own[:, 4], rtol=1e-9)


def test_a_copy_is_at_no_distance():
    x = normal(40, 64) + 10
    assert nearest(x, x).max() < 1e-6
    assert radii(x.repeat(2, 1), 1).max() < 1e-6


def test_a_set_and_itself():
    """Every example lies in its own ball: precision, recall and coverage are 1.

    A ball has itself and k - 1 others, and the k-th on its boundary, where rounding decides: density in [1, (k + 1)/k].
    """
    x = normal(300, 3)
    found = neighbours(x, x)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert 1 - 1e-12 < found["density"] < 1.2 + 1e-12


def test_coverage_of_the_same_distribution_is_the_known_one():
    """E coverage = 1 - Π_{i<k} (N - i)/(2N - 1 - i) ≈ 1 - 2^-k for N samples of N real (Naeem 2020, lemma 2)."""
    n, k = 400, 5
    found = [neighbours(normal(n, 2, seed=2 * i), normal(n, 2, seed=2 * i + 1))["coverage"] for i in range(20)]
    expected = 1 - math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    error = torch.tensor(found).std().item() / math.sqrt(20)
    assert sum(found) / 20 == pytest.approx(expected, abs=4 * error)


def test_dropped_modes_cost_recall_and_coverage_but_not_precision():
    mixture, generator = gaussians_25(), torch.Generator().manual_seed(0)
    real, whole = mixture.sample(1000, generator), mixture.sample(2500, generator)
    half = whole[mixture.nearest(whole)[0] < 12][:1000]
    all_, few = neighbours(real, whole[:1000]), neighbours(real, half)
    assert few["precision"] == pytest.approx(all_["precision"], abs=0.05) and few["precision"] > 0.9
    share = (mixture.nearest(real)[0] < 12).double().mean().item()
    for name in ("recall", "coverage"):
        assert all_[name] > 0.85 and few[name] < share + 0.05


def test_noise_is_neither_precise_nor_covers():
    real, noise = normal(500, 8), 20 * normal(500, 8, seed=1)
    found = neighbours(real, noise)
    assert found["precision"] < 0.01 and found["density"] < 0.01 and found["coverage"] < 0.01


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="k=3 and 3 examples"):
        neighbours(normal(3, 2), normal(10, 2))
    with pytest.raises(ValueError, match=r"fake must be \(M, 2\); got shape \(10, 3\)"):
        Neighbours(normal(10, 2))(normal(10, 3))
    with pytest.raises(ValueError, match=r"halves must be \(S, 20\), each with as many true as false; got \(1, 20\)"):
        neighbours_of_splits(normal(20, 2), torch.arange(20)[None] < 9)
    with pytest.raises(ValueError, match="halves must have more than 5 examples; got 5"):
        neighbours_of_splits(normal(10, 2), torch.arange(10)[None] < 5)
    with pytest.raises(ValueError, match="at least 12 examples; got 11"):
        neighbours_variance(normal(11, 2), normal(20, 2))
    with pytest.raises(ValueError, match="rows must be at least 1"):
        nearest(normal(3, 2), normal(3, 2), rows=0)


@pytest.mark.parametrize("d", [2, 32])
def test_they_are_those_of_the_authors(d):
    prdc = pytest.importorskip("prdc")
    real, fake = normal(500, d), 0.8 * normal(400, d, seed=1) + 0.1
    theirs = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), 5)
    assert neighbours(real, fake, 5, 5) == pytest.approx({k: float(v) for k, v in theirs.items()}, abs=1e-12)
