import math

import pytest
import torch
from answers import F64

from hybrids.data import NAMES, Checkerboard, Mixture, gaussians_8, load_data, swiss_roll, two_moons

ALL = {"8-gaussians": gaussians_8, "swiss-roll": swiss_roll, "checkerboard": Checkerboard, "two-moons": two_moons}


@pytest.fixture(scope="module", params=ALL)
def density(request):
    return ALL[request.param]()


def drawn(density, n=20_000, seed=0):
    return density.sample(n, torch.Generator().manual_seed(seed))


def on_curves(name, u):
    """Points of the curves before scaling: (K, n, 2), as scikit-learn has them."""
    if name == "swiss-roll":
        t = 1.5 * math.pi * (1 + 2 * u)
        return torch.stack([t * t.cos(), t * t.sin()], 1)[None]
    outer = torch.stack([(math.pi * u).cos(), (math.pi * u).sin()], 1)
    return torch.stack([outer, torch.tensor([1.0, 0.5], dtype=F64) - outer])


def blurred(name, std, n=40_000):
    """The scaled curves blurred by σ, by Simpson's rule on n even intervals of each."""
    curves = on_curves(name, torch.linspace(0, 1, n + 1, dtype=F64))
    weights = torch.ones(n + 1, dtype=F64)
    weights[1::2], weights[2:-1:2] = 4, 2
    weights = weights.repeat(len(curves)) / (3 * n * len(curves))
    points = curves.flatten(0, 1) - weights @ curves.flatten(0, 1)
    return Mixture(points * ((1 - std**2) / (weights @ points.square())).sqrt(), std, weights)


# The sampler


def test_samples_have_zero_mean_and_unit_variance(density):
    x = drawn(density, 100_000)
    assert x.shape == (100_000, 2) and x.dtype == F64
    assert (x.mean(0).abs() < 4 / math.sqrt(len(x))).all()
    assert ((x.square().mean(0) - 1).abs() < 4 * x.square().std(0) / math.sqrt(len(x))).all()


def test_samples_repeat_with_their_generator_and_leave_the_global_one_alone(density):
    before = torch.get_rng_state()
    one = drawn(density, 5)
    assert torch.equal(one, drawn(density, 5)) and not torch.equal(one, drawn(density, 5, 1))
    assert torch.equal(before, torch.get_rng_state())


# The density


def test_densities_integrate_to_one(density):
    """By the midpoint rule on a grid; a grid whose lines are the board's own is exact there."""
    half, n = (1.5 * math.sqrt(3), 96) if isinstance(density, Checkerboard) else (3.5, 100)
    line = (torch.arange(n, dtype=F64) + 0.5) * (2 * half / n) - half
    points = torch.cartesian_prod(line, line)
    total = density.log_prob(points).exp().sum() * (2 * half / n) ** 2
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_densities_have_the_moments_of_the_samples(density):
    """Importance sampling, sampler over sampler: E_q[p/q] = 1 and E_q[x² p/q] = 1 with q a wide Gaussian."""
    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(8000, 2, generator=generator, dtype=F64)
    log_q = -x.square().sum(1) / 4.5 - math.log(2 * math.pi * 2.25)
    ratio = (density.log_prob(x) - log_q).exp()
    for values in (ratio, ratio * x[:, 0].square(), ratio * x[:, 1].square()):
        assert (values.mean() - 1).abs() < 4 * values.std() / math.sqrt(len(x))
    for values in (ratio * x[:, 0], ratio * x[:, 1]):
        assert values.mean().abs() < 4 * values.std() / math.sqrt(len(x))


def test_densities_are_those_of_their_samples(density):
    """Cells of a grid hold as many samples as the density says: χ² below its mean + 4 standard deviations."""
    x, fine = drawn(density, 20_000, 3), 4
    line = (torch.arange(24 * fine, dtype=F64) + 0.5) / fine * 0.25 - 3
    p = density.log_prob(torch.cartesian_prod(line, line)).exp().view(24, fine, 24, fine).mean((1, 3)) / 16
    cell = ((x + 3) / 0.25).floor().long()
    inside = ((cell >= 0) & (cell < 24)).all(1)
    found = torch.bincount(cell[inside] @ torch.tensor([24, 1]), minlength=576).view(24, 24)
    expected = p * len(x)
    enough = expected > 20
    chi = ((found - expected).square() / expected)[enough]
    allowed = 0.1 if isinstance(density, Checkerboard) else 0.0  # edges of squares within a cell: quadrature is coarse
    assert enough.sum() > 30 and chi.sum() < len(chi) * (1 + allowed) + 4 * math.sqrt(2 * len(chi))


def test_the_entropies_of_sampler_and_density_agree(density):
    """-E log p over samples, against -∫ p log p on a grid."""
    found = -density.log_prob(drawn(density, 4000))
    half, n = (math.sqrt(3), 64) if isinstance(density, Checkerboard) else (3.5, 100)
    line = (torch.arange(n, dtype=F64) + 0.5) * (2 * half / n) - half
    log_p = density.log_prob(torch.cartesian_prod(line, line))
    entropy = -torch.where(log_p > -100, log_p.exp() * log_p, 0.0).sum() * (2 * half / n) ** 2
    assert (found.mean() - entropy).abs() < 4 * found.std() / math.sqrt(len(found)) + 2e-3


def test_densities_take_single_precision_and_answer_in_double(density):
    x = drawn(density, 7)
    assert density.log_prob(x.float()).dtype == F64 and density.log_prob(x.float()).shape == (7,)
    torch.testing.assert_close(density.log_prob(x.float()), density.log_prob(x), rtol=1e-3, atol=1e-3)


# Each one's own


def test_8_gaussians_lie_on_a_circle_of_radius_2_with_sigma_01_before_scaling():
    mixture = gaussians_8()
    scale = mixture.std / 0.1
    assert scale == pytest.approx(1 / math.sqrt(2.01))
    torch.testing.assert_close((mixture.means / scale).norm(dim=1), torch.full((8,), 2.0, dtype=F64))
    neighbours = (mixture.means - mixture.means.roll(1, 0)).norm(dim=1) / scale
    torch.testing.assert_close(neighbours, torch.full((8,), 4 * math.sin(math.pi / 8), dtype=F64))


@pytest.mark.parametrize("name", ["swiss-roll", "two-moons"])
def test_the_mixture_is_the_blurred_curve_to_a_millionth(name):
    """On samples and up to 8σ from them, against Simpson's rule of 40,000 intervals; an eighth of the nodes is not."""
    density = ALL[name]()
    x = drawn(density, 40)
    direction = torch.nn.functional.normalize(drawn(density, 40, 1))
    points = torch.cat([x, x + 4 * density.std * direction, x + 8 * density.std * direction])
    fine = blurred(name, density.std).log_prob(points)
    assert (density.log_prob(points) - fine).abs().max() < 1e-6
    coarse = Mixture(density.means[::8], density.std, density.weights[::8] / density.weights[::8].sum())
    assert (coarse.log_prob(points) - fine).abs().max() > 1e-6


@pytest.mark.parametrize("std", [0.05, 0.3])
@pytest.mark.parametrize("make", [swiss_roll, two_moons])
def test_nodes_have_the_moments_and_a_panel_of_8_is_no_longer_than_sigma(make, std):
    density = make(std)
    assert density.std == std and density.weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert (density.weights @ density.means).abs().max() < 1e-10
    assert (density.weights @ density.means.square() + std**2 - 1).abs().max() < 1e-10
    # A panel's 8 nodes span 96% of it.
    assert (density.means[7::8] - density.means[::8]).norm(dim=1).max() <= 0.961 * std


@pytest.mark.parametrize("name", ["swiss-roll", "two-moons"])
def test_the_curves_are_those_of_scikit_learn(name):
    from sklearn.datasets import make_moons, make_swiss_roll

    if name == "two-moons":
        points = torch.as_tensor(make_moons(400, noise=None, random_state=0)[0])
    else:
        points = torch.as_tensor(make_swiss_roll(400, noise=0.0, random_state=0)[0])[:, [0, 2]]
    fine = on_curves(name, torch.linspace(0, 1, 20_000, dtype=F64)).flatten(0, 1)
    assert torch.cdist(points, fine).min(1).values.max() < 5e-3
    density = ALL[name]()
    assert torch.cdist(density.means, blurred(name, density.std).means).min(1).values.max() < 1e-3


def test_components_are_drawn_by_their_weights():
    mixture = Mixture(torch.tensor([[-5.0, 0.0], [5.0, 0.0]]), 0.5, torch.tensor([0.2, 0.8]))
    share = (drawn(mixture, 20_000)[:, 0] < 0).double().mean()
    assert abs(share - 0.2) < 4 * math.sqrt(0.16 / 20_000)
    torch.testing.assert_close(
        mixture.log_prob(mixture.means[:1]).exp() * (2 * math.pi * 0.25), torch.tensor([0.2], dtype=F64)
    )


def test_only_an_even_mixture_has_modes():
    assert load_data("8-gaussians").modes is not None and load_data("checkerboard").modes is None
    assert isinstance(load_data("two-moons").density, Mixture) and load_data("two-moons").modes is None


def test_the_checkerboard_is_uniform_on_half_of_its_squares():
    board = Checkerboard()
    assert (board.log_prob(drawn(board)) == -math.log(6)).all()
    s = board.side
    corner = -math.sqrt(3) + s / 2
    centres = torch.tensor([[corner + i * s, corner + j * s] for i in range(-1, 5) for j in range(-1, 5)], dtype=F64)
    on = board.log_prob(centres).isfinite()
    assert on.sum() == 8 and board.log_prob(centres)[~on].eq(-math.inf).all()
    assert drawn(board).sub(centres[on][:, None]).abs().amax(-1).min(0).values.max() <= s / 2 + 1e-12


@pytest.mark.parametrize("make, message", [
    (lambda: Checkerboard(3), "squares must be even and at least 2; got 3"),
    (lambda: two_moons(1.0), r"std must be in \(0, 1\), since the variance is 1 with the noise; got 1.0"),
])  # fmt: skip
def test_densities_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# As data


@pytest.mark.parametrize("name", ALL)
def test_data_of_points_holds_its_density(name):
    data = load_data(name)
    assert name in NAMES and data.name == name and data.shape == (2,) and data.classes == 0 and data.grey_levels is None
    assert len(data) == 100_000 and data.held_out.shape == (10_000, 2) and data.x.dtype == torch.float32
    assert data.density.log_prob(data.held_out[:500]).mean() > -2.5
    assert torch.equal(data.x[:100], load_data(name).x[:100])


@pytest.mark.parametrize("settings, message", [
    ({"resolution": 8}, "--data swiss-roll holds points, not images: drop --resolution and --channels"),
    ({"horizontal_flip": True}, "--data swiss-roll holds points, not images: drop --horizontal-flip and"),
])  # fmt: skip
def test_points_refuse_what_images_have(settings, message):
    with pytest.raises(ValueError, match=message):
        load_data("swiss-roll", **settings)
