import math

import pytest
import torch
from answers import F64

from hybrids.data import Mixture, gaussians_25, load_data


def test_25_gaussians_have_zero_mean_and_unit_variance():
    mixture = gaussians_25()
    assert mixture.means.mean(0).abs().max() < 1e-12
    covariance = mixture.means.T @ mixture.means / 25 + mixture.std**2 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(covariance, torch.eye(2, dtype=F64), rtol=0, atol=1e-12)


def test_25_gaussians_are_a_grid_of_spacing_2_and_sigma_05_before_scaling():
    mixture = gaussians_25()
    scale = mixture.std / 0.05
    unscaled = mixture.means / scale
    assert scale == pytest.approx(1 / math.sqrt(8.0025)) and unscaled.shape == (25, 2)
    assert sorted({round(v, 6) for v in unscaled.flatten().tolist()}) == [-4, -2, 0, 2, 4]
    assert len({tuple(point) for point in unscaled.round().tolist()}) == 25


def test_samples_have_the_moments_of_the_mixture():
    x = gaussians_25().sample(100_000)
    n = math.sqrt(len(x))
    assert (x.mean(0).abs() < 4 / n).all()
    assert ((x.square().mean(0) - 1).abs() < 4 * x.square().std(0) / n).all()
    assert x.dtype == F64


def test_log_prob_integrates_to_one():
    mixture = gaussians_25()
    line = torch.arange(-1.6, 1.6, mixture.std / 2, dtype=F64)
    log_prob = mixture.log_prob(torch.cartesian_prod(line, line))
    assert (log_prob.exp().sum() * (mixture.std / 2) ** 2).item() == pytest.approx(1, abs=1e-6)


def test_log_prob_agrees_with_the_samples():
    """The entropy of 25 modes that do not overlap is log 25 + log 2πe σ² = -2.0144 nats."""
    mixture = gaussians_25()
    entropy = math.log(25) + math.log(2 * math.pi * math.e * mixture.std**2)
    assert entropy == pytest.approx(-2.014, abs=5e-4)
    found = -mixture.log_prob(mixture.sample(20_000))
    assert (found.mean() - entropy).abs() < 4 * found.std() / math.sqrt(20_000)


def test_log_prob_is_that_of_torch_s_mixture():
    means, x = torch.randn(4, 3, dtype=F64), torch.randn(10, 3, dtype=F64)
    each = torch.distributions.Normal(means, 0.7).log_prob(x[:, None]).sum(-1)
    torch.testing.assert_close(Mixture(means, 0.7).log_prob(x), each.logsumexp(1) - math.log(4), rtol=1e-10, atol=0)


def test_log_prob_is_finite_far_away():
    assert gaussians_25().log_prob(torch.tensor([[100.0, -100.0]])).isfinite().all()


def test_nearest_is_in_units_of_sigma():
    mixture = gaussians_25()
    index, distance = mixture.nearest(mixture.means + torch.tensor([2.0, 0.0]) * mixture.std)
    assert torch.equal(index, torch.arange(25)) and distance.tolist() == pytest.approx([2.0] * 25, abs=1e-6)


def test_a_generator_makes_samples_repeatable():
    one, other = (gaussians_25().sample(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)


def test_the_data_set_holds_its_density_and_is_always_the_same():
    data = load_data("25-gaussians")
    assert data.shape == (2,) and len(data) == 100_000 and len(data.held_out) == 10_000
    assert data.x.dtype == torch.float32 and data.grey_levels is None and not data.is_image and data.dimensions == 2
    assert torch.equal(data.x, load_data("25-gaussians").x) and not torch.equal(data.x[:10_000], data.held_out)
    assert (-data.density.log_prob(data.held_out)).mean().item() == pytest.approx(-2.014, abs=0.05)


@pytest.mark.parametrize("settings, message", [
    ({"name": "~nobody-of-that-name/x"}, "--data ~nobody-of-that-name/x is no path that can be read: "),
    ({"name": "/" + "x" * 5000}, r"--data /x{79}… is no path that can be read: .*too long"),
    ({"name": "25-gaussian"}, "--data '25-gaussian' is not known; did you mean 25-gaussians?"),
    ({"name": "imagenet"}, "--data 'imagenet' is not known.* Expected one of digits, stacked-digits, 25-gaussians"),
    ({"name": "25-gaussians", "resolution": 8}, "25-gaussians holds points, not images: drop --resolution"),
    ({"name": "stacked-digits", "resolution": 16}, "stacked-digits is 3 × 8 × 8; got --resolution 16"),
    ({"name": "stacked-digits", "channels": 1}, "stacked-digits is 3 × 8 × 8; got --resolution None --channels 1"),
])  # fmt: skip
def test_what_is_no_data_set_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_data(**settings)
