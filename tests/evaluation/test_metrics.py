"""All metrics in one call, on samplers whose faults are known."""

import math

import pytest
import torch
from answers import Draws
from torch import nn

from hybrids.data import Data, Mixture, digits, load_data
from hybrids.evaluation.measurements import bootstrap_deviation, interval_about, mean_of, proportion_interval
from hybrids.evaluation.metrics import METRICS, measure, measured_real, measured_samples
from hybrids.evaluation.sample_metrics import AT_EQUAL_NUMBERS, plug_in_kl
from hybrids.evaluation.samples.distances import kernel, kernel_interval
from hybrids.evaluation.samples.features import Pixels
from hybrids.evaluation.samples.reference import reference

CPU = torch.device("cpu")
OF_POINTS = ["frechet", "sliced_wasserstein", "wasserstein", "high_quality", "log_density", "precision", "recall",
             "coverage", "modes", "kl"]  # fmt: skip


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


def test_the_floor_of_confidence_is_that_of_as_many_held_out_digits():
    data = digits(8)
    x = data.decode(data.held_out[:100])
    found = measured_samples(x, data, CPU, metrics=["confidence"])["confidence"]
    assert found.value == found.floor < 1


def test_a_proper_distance_is_of_samples_and_its_floor_of_real_examples(monkeypatch):
    """By what tells black images from digits: how light they are."""
    fidelity, data = pytest.importorskip("torch_fidelity"), digits(8)

    def measured(input1, input2, **given):
        apart = abs(input1.x.float().mean() - input2.x.float().mean()).item()
        return {"frechet_inception_distance": apart}

    monkeypatch.setattr(fidelity, "calculate_metrics", measured)
    found = measured_samples(torch.full((100, 1, 8, 8), -1.0), data, CPU, metrics=["fid"])["fid"]
    light = reference(data, 100, Pixels(data.shape)).x.mean().item()
    assert found.value == pytest.approx((light + 1) * 127.5, abs=0.5) and found.floor < 0.1 * found.value


def test_noise_is_no_digits():
    data = digits(8)
    found = figures(lambda n, g: torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, data, None, 200)
    assert found["frechet"].value > 10 * found["frechet"].floor and found["precision"].value < 0.3
    assert found["high_frequency"].value > 1.5 and found["nearest_train"].value > 1.5
    assert found["confidence"].value < 0.9 < 0.95 < found["confidence"].floor
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
    measure(model.eval(), points, CPU, samples=100, metrics=["frechet"])
    assert not model.training
    real = [measured_real(points, CPU, samples=100, seed=seed)["frechet"] for seed in (0, 0, 1)]
    assert real[0] == real[1] != real[2]


def test_samples_that_are_there_are_taken(points):
    x = points.density.sample(100, torch.Generator().manual_seed(3)).float()
    silent = Draws(lambda n, g: pytest.fail("drawn again"))
    assert measure(silent, points, CPU, metrics=["precision"], x=x)["precision"].value > 0.8


@pytest.mark.parametrize(
    ("metrics", "samples", "why"),
    [
        (["frechett"], 100, "metric 'frechett' is not known; did you mean frechet?"),
        (["high_frequency"], 100, "none of the metrics has a value: high_frequency: it needs images"),
        (["frechet"], 15, "none of the metrics has a value: frechet: it needs at least 16 samples; got 15"),
        (["confidence"], 100, "confidence: .*classifier is of digits"),
        (["bits_per_dim"], 100, "none of the metrics has a value: bits_per_dim: Draws"),
        (["probe"], 100, "has a value: probe"),
        (["fid"], 100, "has a value: fid"),
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


def test_halves_of_too_few_examples_are_not_compared():
    x = torch.randn(31, 2)
    with pytest.raises(ValueError, match="few has 31 training examples; at least 32 are needed for two halves"):
        measure(None, Data("few", (2,), x=x), CPU, metrics=["frechet"], x=x)


def test_data_without_examples_leaves_what_needs_none(points):
    bare = Data.from_card(points.card())
    with pytest.raises(ValueError, match="has a value: frechet"):
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
    spread = bootstrap_deviation(values, lambda v: v.mean().item(), repeats=200)
    assert spread == pytest.approx(1 / math.sqrt(4000), rel=0.25)  # a deviation of 200 draws is known within 5%
    assert interval_about(0.1, 1.0, least=0.0).low == 0.0


def badness(name, figure):
    """A figure on a scale of its own where less is better, by what METRICS says of it."""
    off = figure.value - (figure.floor if METRICS[name].better == "real" else 0)
    return {"lower": off, "higher": -off, "real": abs(off)}[METRICS[name].better]


@pytest.mark.parametrize("data_name", ["25-gaussians", "digits"])
def test_the_better_end_of_each_metric_is_that_of_real_examples(data_name):
    """Against almost the same grey, or the same point between the modes, for all samples."""
    data = load_data(data_name, None if data_name == "25-gaussians" else 8)
    noise = torch.randn(500, *data.shape, generator=torch.Generator().manual_seed(0))
    real, same = measured_real(data, CPU, samples=500), measured_samples(0.02 * noise + 0.4, data, CPU)
    # Of 297 held-out digits, beside 500 samples, what depends on their number is missing.
    lost = AT_EQUAL_NUMBERS if data_name == "digits" else set()
    assert set(real) == set(same) - lost and len(real) >= (4 if lost else 10)
    assert all("297 held-out examples are fewer than 500" in real.missing[name] for name in lost & set(same))
    for name in real:
        if name != "nearest_train":
            assert badness(name, real[name]) < badness(name, same[name]), name
    # To be nearer to training than real examples are is no better.
    near = measured_samples(data.decode(data.x[:500]), data, CPU, metrics=["nearest_train"]) if data.is_image else {}
    assert all(badness(name, real[name]) < badness(name, figure) for name, figure in near.items())


@pytest.mark.parametrize("mean, scale", [(5e3, 1e3), (1e-3, 1e-5)])
def test_vectors_are_measured_at_unit_scale(mean, scale):
    """The data's own values are refused with the remedy; what a diverged or collapsed model draws is measured."""
    unit = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = Data("own", (3,), x=unit[:200] * scale + mean).standardized()
    own = unit[200:] * scale + mean
    for call in (lambda: measured_samples(own, data, CPU, metrics=["frechet"]),
                 lambda: measure(Draws(None), data, CPU, x=own, metrics=["frechet"])):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be at unit scale, .* values of own: give data.to_unit\(x\)"):
            call()
    at_unit = measured_samples(data.to_unit(own), data, CPU, metrics=["frechet"])["frechet"]
    assert at_unit.value < 3 * at_unit.floor
    for x in (1e3 * unit, torch.zeros(200, 3)):
        assert measured_samples(x, data, CPU, metrics=["frechet"])["frechet"].value > 1


def test_distances_are_of_half_the_training_set_and_counts_of_all_samples():
    """40 examples are two halves of 20; of two modes 100 exact samples find what 100 do."""
    density = Mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1)
    x = density.sample(140, torch.Generator().manual_seed(0)).float()
    data, x = Data("few", (2,), x=x[:40], density=density), x[40:]
    found, few = (measured_samples(part, data, CPU, metrics=OF_POINTS) for part in (x, x[:20]))
    for name in ("frechet", "sliced_wasserstein", "wasserstein", "precision", "recall", "coverage"):
        assert found[name] == few[name]
    inside = 1 - math.exp(-4.5)
    for figures, n in ((found, 100), (few, 20)):
        assert figures["kl"].floor == pytest.approx(plug_in_kl(n, 2))
        assert figures["modes"].floor == pytest.approx(2 * (1 - (1 - inside / 2) ** n), rel=1e-9)
        share = figures["high_quality"].value
        assert (figures["high_quality"].low, figures["high_quality"].high) == proportion_interval(share, n)


def test_a_kernel_distance_has_the_interval_of_its_variance_whatever_the_number(points):
    """Of 4000 examples subsets are of 1000; of 500 there is one, which is all of them."""
    x = points.density.sample(4000, torch.Generator().manual_seed(3)).float()
    found, few = (measured_samples(part, points, CPU, metrics=["kernel"])["kernel"] for part in (x, x[:500]))
    value, *variance = kernel(reference(points, 4000, Pixels((2,))).embeddings, x, 20)
    assert found.value == value and (found.low, found.high) == kernel_interval(value, *variance)
    assert 0 < found.high - found.low < 0.5 * (few.high - few.low)
    assert 0 < found.floor_spread < 0.5 * few.floor_spread and abs(few.floor) < few.floor_spread


def test_one_stray_sample_costs_fifty_nats_and_no_more():
    """A sample on the mean of N(0, s² I) has log p = -log 2πs²; one that is anywhere else at least -50."""
    density = Mixture(torch.zeros(1, 2), 0.5)
    x = torch.tensor([[0.0, 0.0], [1e4, 0.0]]).repeat(8, 1)
    found = measured_samples(x, Data("one", (2,), density=density), CPU, metrics=["log_density"])["log_density"]
    assert found.value == pytest.approx((-math.log(2 * math.pi * 0.25) - 50) / 2, rel=1e-6)
    # Minus the entropy, which 10,000 draws know to 1/100.
    assert found.floor == pytest.approx(-math.log(2 * math.pi * math.e * 0.25), abs=0.04)


def test_the_nearest_training_example_is_told_by_medians():
    """All training at 0; of held-out examples three are 1 away and two are far, of samples 12 are 2 away, 8 are far."""
    far = torch.tensor([[1.0], [1.0], [1.0], [50.0], [90.0]])
    data = Data("line", (1,), x=torch.zeros(40, 1), held_out=far)
    x = torch.cat([torch.full((12, 1), 2.0), torch.full((8, 1), 500.0)])
    found = measured_samples(x, data, CPU, metrics=["nearest_train"])["nearest_train"]
    assert found.value == pytest.approx(2.0) and found.floor == 1 and 0 <= found.low < 2 < found.high


def test_the_reference_is_made_once_for_each_size_and_space(points):
    pixels, other = Pixels((2,)), Pixels((2,))
    other.name = "another"
    first = reference(points, 100, pixels)
    assert reference(points, 100, pixels) is first and first.n == len(first.x) == len(first.other) == 100
    assert reference(points, 200, pixels).n == 200 and reference(points, 100, other).features is other
    # Two halves of the set: nothing is in both.
    whole = torch.cat([first.x, first.other])
    assert len(whole.unique(dim=0)) == 200


def test_real_examples_without_others_are_the_other_half():
    """Then every metric of them is its own floor, and not the 0 of a half against itself."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    found = measured_real(Data("few", (2,), x=x), CPU, samples=100)
    for name in ("frechet", "sliced_wasserstein", "wasserstein", "recall", "coverage"):
        assert abs(found[name].value - found[name].floor) < 4 * found[name].floor_spread and found[name].value > 1e-3


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
