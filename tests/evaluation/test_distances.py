"""Distances on cases with known answers, against brute force, and against torch-fidelity."""

import builtins
import math

import pytest
import torch

from hybrids.evaluation.samples.distances import (
    _influence,
    _mmd,
    _moments,
    fid,
    frechet,
    frechet_variance,
    gaussian_frechet,
    kernel,
    kid,
    sliced_wasserstein,
    sliced_wasserstein_of_splits,
    wasserstein,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d, seed):
    a = normal(d, d, seed=seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


# Fréchet


def test_frechet_of_commuting_gaussians_is_that_of_their_deviations():
    """Of diagonal covariances it is |m_1 - m_2|² + Σ (s_1 - s_2)²; N(0, 1) and N(0, 4) are 1 apart."""
    one = torch.ones(1, 1, dtype=torch.float64)
    assert gaussian_frechet(torch.zeros(1), one, torch.zeros(1), 4 * one) == pytest.approx(1.0, rel=1e-12)
    m_1, m_2, s_1, s_2 = normal(2, 3)[0], normal(2, 3)[1], *normal(2, 3, seed=1).abs()
    expected = (m_1 - m_2).square().sum() + (s_1 - s_2).square().sum()
    found = gaussian_frechet(m_1, s_1.square().diag(), m_2, s_2.square().diag())
    assert found == pytest.approx(expected.item(), rel=1e-12)


def test_frechet_of_covariances_that_do_not_commute():
    """Tr (C_1 C_2)^½ by the eigenvalues of the product itself, which is not symmetric."""
    c_1, c_2, zero = covariance(6, 0), covariance(6, 1), torch.zeros(6)
    cross = torch.linalg.eigvals(c_1 @ c_2).real.sqrt().sum()
    expected = c_1.trace() + c_2.trace() - 2 * cross
    assert gaussian_frechet(zero, c_1, zero, c_2) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_samples_of_two_gaussians_is_the_analytic_one_within_a_percent():
    c_1, c_2, d = covariance(4, 2), covariance(4, 3), 4
    m = torch.full((d,), 1.5, dtype=torch.float64)
    x = normal(100_000, d, seed=4) @ torch.linalg.cholesky(c_1).T
    y = normal(100_000, d, seed=5) @ torch.linalg.cholesky(c_2).T + m
    exact = gaussian_frechet(torch.zeros(d), c_1, m, c_2)
    # The largest part, |m|² = 9, is known to 2 |m| √(2·0.5/1e5), 0.02: 0.2%.
    assert frechet(x, y) == pytest.approx(exact, rel=0.01)


def test_frechet_of_a_set_and_itself_is_nothing_even_of_no_rank():
    x = normal(20, 50)
    assert frechet(x, x) < 1e-6 * x.var(0).sum()
    assert frechet(x, x + 1) == pytest.approx(50, rel=1e-6)


def test_the_influence_of_an_example_is_the_derivative_of_the_distance():
    """By moving the weight of one example: d/dw of the distance of weighted moments at equal weights."""
    x, y = normal(30, 3), 1.5 * normal(40, 3, seed=1) + 0.7

    def moments(weights):
        mean = weights @ y
        return mean, (y - mean).T @ (weights[:, None] * (y - mean))

    equal, step = torch.full((40,), 1 / 40, dtype=torch.float64), 1e-5
    of_x, slopes = _moments(x), []
    for i in range(40):
        towards = torch.zeros(40, dtype=torch.float64)
        towards[i] = 1
        up, down = (gaussian_frechet(*of_x, *moments(equal + h * (towards - equal))) for h in (step, -step))
        slopes.append((up - down) / (2 * step))
    found = _influence(of_x, y, moments(equal))
    assert (found - found.mean()).tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-6)


def test_the_variance_of_frechet_of_no_rank_is_finite():
    x, y = normal(20, 50), normal(20, 50, seed=1)
    assert 0 < frechet_variance(x, y) < frechet(x, y) ** 2
    # A direction that neither has adds nothing.
    wider = [torch.cat([part, torch.zeros(20, 3)], 1) for part in (normal(20, 4), normal(20, 4, seed=1))]
    narrow = frechet_variance(*(part[:, :4] for part in wider))
    assert frechet_variance(*wider) == pytest.approx(narrow, rel=1e-6)


# Kernel


def by_pairs(x, y):
    """MMD² over all pairs, one at a time."""
    d = x.shape[1]

    def k(a, b):
        return (float(a @ b) / d + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_of_all_is_the_sum_over_pairs():
    x, y = normal(12, 3), normal(12, 3, seed=1) + 0.3
    assert kernel(x, y, subsets=3)[0] == pytest.approx(by_pairs(x, y), rel=1e-10)


def test_kernel_is_unbiased():
    """0 in expectation where p = q, within four standard errors of 400 independent estimates."""
    found = torch.tensor([kernel(normal(20, 3, seed=2 * i), normal(20, 3, seed=2 * i + 1), 1)[0] for i in range(400)])
    assert abs(found.mean()) < 4 * found.std() / 20
    assert kernel(normal(200, 3), normal(200, 3, seed=1) + 1)[0] > 1


def test_kernel_draws_its_subsets_anew_but_the_same_each_time():
    x, y = normal(300, 3), normal(300, 3, seed=1)
    first = kernel(x, y, subsets=5, size=50)
    assert first == kernel(x, y, subsets=5, size=50) != kernel(x, y, subsets=5, size=51)
    other = torch.Generator().manual_seed(1)
    assert first[0] != kernel(x, y, subsets=5, size=50, generator=other)[0]


def test_the_variance_of_a_kernel_distance_is_by_pairs():
    """First and second order of x, by the definitions: U-centred squares, and the witness's variance less its noise."""
    x, y = normal(7, 3), normal(7, 3, seed=1) + 0.5
    n = len(x)
    own, cross = (((a @ b.T) / 3 + 1) ** 3 for a, b in ((x, x), (x, y)))
    rest = [[own[i, j].item() if i != j else 0.0 for j in range(n)] for i in range(n)]
    of_row, whole = [sum(row) for row in rest], sum(map(sum, rest))
    centred = [
        rest[i][j] - of_row[i] / (n - 2) - of_row[j] / (n - 2) + whole / ((n - 1) * (n - 2))
        for i in range(n) for j in range(n) if i != j
    ]  # fmt: skip
    xx = sum(c * c for c in centred) / (n * (n - 3))
    both = (cross - cross.mean(1, keepdim=True) - cross.mean(0) + cross.mean()).square().sum().item() / (n - 1) ** 2
    witness = (torch.tensor(of_row, dtype=torch.float64) / (n - 2) - cross.mean(1)).var().item()
    parts = _mmd(x, y).tolist()
    assert parts[1] == pytest.approx(witness - xx / (n - 2) - both / n, rel=1e-9)
    assert parts[3] == pytest.approx(xx, rel=1e-9) and parts[5] == pytest.approx(both, rel=1e-9)


# Wasserstein


def test_sliced_wasserstein_of_splits_is_that_of_their_halves():
    x = normal(40, 5)
    halves = torch.stack([normal(40, seed=seed).argsort() < 20 for seed in range(3)])
    each = [sliced_wasserstein(x[half], x[~half], projections=8) for half in halves]
    assert sliced_wasserstein_of_splits(x, halves, projections=8, rows=3).tolist() == pytest.approx(each, rel=1e-12)
    with pytest.raises(ValueError, match=r"halves must be \(S, 40\), each with as many true as false"):
        sliced_wasserstein_of_splits(x, torch.ones(1, 40, dtype=torch.bool))


def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d():
    """(E (w·s)²)^½ = |s|/√d: of 4096 directions within four standard errors."""
    x, shift = normal(100, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    w = normal(3, 4096, seed=9)
    spread = ((w / w.norm(dim=0)).T @ shift).square().std() / 64
    found = sliced_wasserstein(x, x + shift, projections=4096)
    assert found**2 == pytest.approx(shift.square().sum().item() / 3, abs=4 * spread.item())
    assert sliced_wasserstein(x, x) == 0


def test_sliced_wasserstein_of_unequal_sizes_is_that_of_the_repeated_sets():
    x, y = normal(4, 3), normal(6, 3, seed=1)
    repeated = sliced_wasserstein(x.repeat(3, 1), y.repeat(2, 1), projections=8)
    assert sliced_wasserstein(x, y, projections=8) == pytest.approx(repeated, rel=1e-12)
    assert sliced_wasserstein(x, y, projections=8, rows=3) == pytest.approx(repeated, rel=1e-12)


def test_wasserstein_is_the_best_of_all_pairings():
    from itertools import permutations

    x, y = normal(6, 2), normal(6, 2, seed=1)
    best = min((x - y[list(order)]).square().sum(1).mean().item() for order in permutations(range(6)))
    assert wasserstein(x, y) == pytest.approx(math.sqrt(best), rel=1e-12)


def test_wasserstein_of_a_shift_is_its_length_and_of_many_points_is_bounded():
    x = normal(500, 2)
    assert wasserstein(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5, rel=1e-12)
    assert wasserstein(x, normal(500, 2, seed=1), points=30) > wasserstein(x, normal(500, 2, seed=1))


@pytest.mark.parametrize("distance", [frechet, kernel, sliced_wasserstein, wasserstein])
def test_sets_that_do_not_fit_are_refused(distance):
    with pytest.raises(ValueError, match=r"\(N, d\) and \(M, d\).*\(5, 3\) and \(5, 2\)"):
        distance(normal(5, 3), normal(5, 2))
    with pytest.raises(ValueError, match="at least"):
        distance(normal(0, 3), normal(5, 3))


# torch-fidelity


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    known = builtins.__import__

    def missing(name, *given, **options):
        if name.startswith("torch_fidelity"):
            raise ImportError("No module named 'torch_fidelity'")
        return known(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    for proper in (fid, kid):
        with pytest.raises(ValueError, match="python -m pip install 'torch-fidelity>=0.4'") as error:
            proper(torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8))
        assert "\n" not in str(error.value)


def test_frechet_is_that_of_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = normal(400, 48) @ normal(48, 48, seed=1), normal(500, 48, seed=2) @ normal(48, 48, seed=3) + 0.5
    theirs = fidelity.fid_statistics_to_metric(
        fidelity.fid_features_to_statistics(x), fidelity.fid_features_to_statistics(y), False
    )["frechet_inception_distance"]
    assert frechet(x, y) == pytest.approx(theirs, rel=1e-3)


def test_kernel_is_that_of_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = normal(300, 48), normal(300, 48, seed=2) * 1.2 + 0.1
    theirs = fidelity.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=300, verbose=False, rng_seed=0)
    assert kernel(x, y, 1, 300)[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


def test_proper_distances_without_weights_say_so(monkeypatch):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    def no_network(*given, **options):
        raise OSError("no network")

    monkeypatch.setattr(inception, "load_state_dict_from_url", no_network)
    x = torch.zeros(4, 1, 8, 8)
    for proper in (fid, kid):
        with pytest.raises(ValueError, match=r"Inception's weights.*\(no network\).*weights=FILE"):
            proper(x, x)


def test_proper_distances_are_of_bytes_and_the_means_of_their_package(monkeypatch):
    """Grey in three channels, from -1 at 0 to 1 at 255; subsets of no more than there are images."""
    fidelity, asked = pytest.importorskip("torch_fidelity"), []

    def measured(**given):
        asked.append(given)
        return {"frechet_inception_distance": 1.0, "kernel_inception_distance_mean": 2.0,
                "kernel_inception_distance_std": 3.0}  # fmt: skip

    monkeypatch.setattr(fidelity, "calculate_metrics", measured)
    x, y = torch.tensor([-1.0, 0.0, 1.0, 7.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8), torch.zeros(5, 3, 8, 8)
    assert fid(x, y) == 1 and kid(x, y) == 2
    assert asked[0]["fid"] and asked[1]["kid"] and asked[1]["kid_subset_size"] == 4
    first, second = asked[0]["input1"], asked[0]["input2"]
    assert (len(first), len(second)) == (4, 5) and first[0].shape == (3, 8, 8) and first[0].dtype == torch.uint8
    assert [int(first[i].unique()) for i in (0, 1, 2, 3)] == [0, 128, 255, 255]


@pytest.mark.slow
def test_a_proper_distance_of_random_weights(tmp_path, monkeypatch):
    """The mechanics: grey images in, a finite number out; the weights are nobody's."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.save({}, tmp_path / "weights.pth")
    torch.manual_seed(0)
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    assert math.isfinite(kid(x, -x, weights=tmp_path / "weights.pth", subsets=2))
