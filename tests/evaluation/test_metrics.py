"""All metrics in one call, on samplers whose faults are known."""

import math

import pytest
import torch
from torch import nn

from hybrids.data import Data, digits, load_data
from hybrids.evaluation.figures import about, mean_of, resampled
from hybrids.evaluation.metrics import METRICS, measure, measured_real
from hybrids.evaluation.of_samples import plug_in_kl

CPU = torch.device("cpu")
OF_POINTS = ["frechet", "sliced_wasserstein", "wasserstein", "high_quality", "log_density", "precision", "recall",
             "coverage", "modes", "kl"]  # fmt: skip


class Draws(nn.Module):
    """A sampler that is a function of n and a generator."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def sample(self, n, cond=None, generator=None):
        return self.draw(n, generator)


@pytest.fixture(scope="module")
def points():
    return load_data("25-gaussians")


def figures(draw, data, metrics=OF_POINTS, samples=500, **options):
    return measure(Draws(draw), data, CPU, samples=samples, metrics=metrics, **options)


def test_exact_samples_are_at_the_floor(points):
    found = figures(points.density.sample, points)
    assert list(found) == OF_POINTS
    for name in ("frechet", "sliced_wasserstein", "wasserstein"):
        assert found[name].value < 3 * found[name].floor + 0.05
    for name in ("precision", "recall", "coverage", "high_quality"):
        assert found[name].value == pytest.approx(found[name].floor, abs=0.06)
    assert found["modes"].value == 25 and found["kl"].value < 2 * found["kl"].floor
    assert found["log_density"].low < found["log_density"].floor < found["log_density"].high
    assert found["high_quality"].floor == pytest.approx(1 - math.exp(-4.5), rel=1e-5)


def test_noise_is_far_from_it(points):
    found = figures(lambda n, g: 3 * torch.randn(n, 2, generator=g), points)
    for name in ("frechet", "sliced_wasserstein", "wasserstein"):
        assert found[name].value > 3 * found[name].floor
    assert found["high_quality"].value < 0.1 and found["precision"].value < 0.5
    assert found["log_density"].value < -30


def test_half_the_modes_cost_coverage_alone(points):
    density = points.density

    def half(n, generator):
        x = density.sample(4 * n, generator)
        return x[density.nearest(x)[0] < 12][:n]

    found = figures(half, points)
    assert found["modes"].value == 12
    assert found["kl"].value == pytest.approx(math.log(25 / 12), abs=0.05)
    for name in ("recall", "coverage"):
        assert found[name].value < 0.6 < 0.8 < found[name].floor
    for name in ("precision", "high_quality"):
        assert found[name].value == pytest.approx(found[name].floor, abs=0.06)


def test_a_copy_of_the_training_set_is_seen_as_such():
    data = digits(8)
    copy = figures(lambda n, g: data.decode(data.x[:n]), data, ["nearest_train"], 300)["nearest_train"]
    assert copy.value < 1e-5 and copy.floor == 1
    real = measured_real(data, CPU, samples=297)
    assert real["nearest_train"].value == pytest.approx(1.0, abs=0.05)
    assert real["frechet"].value < 3 * real["frechet"].floor and real["confidence"].value > 0.95


def test_noise_is_no_digits():
    data = digits(8)
    found = figures(lambda n, g: torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, data, None, 200)
    assert found["frechet"].value > 10 * found["frechet"].floor and found["precision"].value < 0.3
    assert found["high_frequency"].value > 1.5 and found["nearest_train"].value > 1.5
    assert "modes" not in found and "wasserstein" not in found and "fid" not in found


def test_a_blurred_copy_is_less_sharp():
    data = digits(8)

    def blurred(n, generator):
        return nn.functional.avg_pool2d(data.decode(data.x[:n]), 3, 1, 1)

    found = figures(blurred, data, ["high_frequency", "laplacian"], 300)
    assert found["high_frequency"].value < 0.5 and found["laplacian"].value < 0.3
    assert found["high_frequency"].floor == pytest.approx(1, abs=0.1)


def test_it_repeats_and_leaves_the_random_numbers_and_modes_alone(points):
    model, before = Draws(points.density.sample).train(), torch.get_rng_state()
    first = measure(model, points, CPU, samples=100, metrics=["frechet", "kernel"], seed=3)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert first == measure(model, points, CPU, samples=100, metrics=["kernel", "frechet"], seed=3)
    assert first != measure(model, points, CPU, samples=100, metrics=["kernel", "frechet"], seed=4)


def test_samples_that_are_there_are_taken(points):
    x = points.density.sample(100, torch.Generator().manual_seed(3)).float()
    silent = Draws(lambda n, g: pytest.fail("drawn again"))
    assert measure(silent, points, CPU, metrics=["precision"], x=x)["precision"].value > 0.8


@pytest.mark.parametrize(
    ("metrics", "samples", "why"),
    [
        (["frechett"], 100, "metric 'frechett' is not known; did you mean frechet?"),
        (["high_frequency"], 100, "metric high_frequency cannot be had: 25-gaussians holds no images"),
        (["frechet"], 15, "metric frechet cannot be had: it needs at least 16 samples; got 15"),
        (["confidence"], 100, "metric confidence cannot be had.*reads digits"),
        (["bits_per_dim"], 100, "metric bits_per_dim cannot be had: Draws"),
        (["probe"], 100, "metric probe cannot be had"),
        (["fid"], 100, "metric fid cannot be had"),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused(points, metrics, samples, why):
    with pytest.raises(ValueError, match=why):
        figures(points.density.sample, points, metrics, samples)


def test_samples_that_are_none_are_refused(points):
    for bad, why in ((torch.zeros(20, 3), r"\('N', 2\) for 25-gaussians; got shape \(20, 3\)"),
                     (torch.full((20, 2), math.nan), "samples must be finite; sample 0")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            measure(None, points, CPU, metrics=["frechet"], x=bad)


def test_data_without_examples_leaves_what_needs_none(points):
    bare = Data.from_card(points.card())
    with pytest.raises(ValueError, match="frechet cannot be had"):
        figures(points.density.sample, bare, ["frechet"])
    assert "frechet" not in figures(points.density.sample, bare, None, 50)


def test_every_metric_is_described():
    axes = {"quality", "coverage", "sharpness", "control", "likelihood", "speed"}
    for name, metric in METRICS.items():
        assert name == metric.name and metric.axis in axes and metric.says.endswith(".")
        assert metric.better in ("lower", "higher", "real", "neither")


def test_the_plug_in_floor_is_what_even_draws_show():
    """Its mean over 200 histograms within four standard errors; (K - 1)/2n where n is large."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        share = torch.bincount(torch.randint(50, (100,), generator=generator), minlength=50).double() / 100
        found.append(torch.xlogy(share, 50 * share).sum())
    each = torch.stack(found)
    assert plug_in_kl(100, 50) == pytest.approx(each.mean().item(), abs=4 * each.std().item() / math.sqrt(200))
    assert plug_in_kl(100_000, 50) == pytest.approx(49 / 200_000, rel=0.01)


def test_intervals_are_those_of_the_mean():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_of(values, floor=0.5, scale=2.0)
    assert found.value == pytest.approx(2 * values.mean().item()) and found.floor == 0.5
    assert found.high - found.low == pytest.approx(4 * 1.959964 / math.sqrt(4000), rel=0.05)
    spread = resampled(values, lambda v: v.mean().item(), repeats=200)
    assert spread == pytest.approx(1 / math.sqrt(4000), rel=0.25)  # a deviation of 200 draws is known within 5%
    assert about(0.1, 1.0, least=0.0).low == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("data_name", ["digits", "25-gaussians"])
@pytest.mark.parametrize("recipe", ["vae", "gan", "ddpm", "latent_diffusion", "hierarchical_vae"])
def test_whole_measurements_of_untrained_recipes(recipe, data_name):
    from small import TINY

    from hybrids.experiment import load_recipe, parse

    if (recipe, data_name) == ("latent_diffusion", "25-gaussians"):
        pytest.skip("its tiny settings are of images")
    module, words = load_recipe(recipe), list(TINY[recipe])
    if data_name != "digits" and "--resolution" in words:
        del words[words.index("--resolution") : words.index("--resolution") + 2]
    data = load_data(data_name, 8 if data_name == "digits" else None)
    torch.manual_seed(0)
    model = module.build(parse(module.Settings, [*words, "--data", data_name], recipe), data)[-1].model
    found = measure(model, data, CPU, samples=64)
    assert all(math.isfinite(figure.value) for figure in found.values())
    expected = {"frechet", "recall", "reconstruction", "smoothness", "evaluations", "parameters", "samples_per_second"}
    expected |= {"probe", "high_frequency", "confidence"} if data_name == "digits" else {"log_density", "modes"}
    assert expected <= set(found) and ("nats" in found) == (recipe not in ("gan", "latent_diffusion"))
