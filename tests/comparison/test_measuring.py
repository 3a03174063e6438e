"""What the comparison measures of a run, on models whose samples and costs are known."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from answers import Draws
from safetensors.torch import load_file
from torch import nn

from components.decoders import DeltaHead, MLPDecoder
from components.denoisers import Denoiser, GaussianMean
from components.discriminators import MLPDiscriminator
from components.distributions import Delta, Normal
from components.losses import non_saturating
from components.samplers import Sampler
from components.schedules import LogSNRLinearSchedule
from hybrids import GAN, VAE, Critic, Diffusion, StandardNormal
from hybrids.comparison import measuring
from hybrids.comparison.measuring import (
    Bench,
    complete,
    curve_of,
    evaluations_of,
    figures_of,
    measure_real,
    measure_run,
    quality_of,
)
from hybrids.comparison.runs import Run
from hybrids.data import Data, Mixture, load_data
from hybrids.evaluation.metrics import draw
from hybrids.evaluation.samples.bench import plug_in_kl

CPU = torch.device("cpu")
STD = 0.5


class Around(nn.Module):
    """N(x, 0.1²): an encoder or a decoder."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x, cond=None):
        return Normal(x + self.shift, 0.1)


class Generator(nn.Linear):
    def forward(self, z, cond=None):
        return Delta(super().forward(z))


def diffusion(**settings):
    """The exact diffusion of N(0, STD² I) in the plane."""
    schedule = LogSNRLinearSchedule(8.0, -8.0)
    mean = GaussianMean(schedule, torch.zeros(2), STD**2 * torch.eye(2))
    return Diffusion(Denoiser(mean, schedule, "sample"), 2, **settings)


@pytest.fixture
def bench(tmp_path):
    """N(0, STD² I) as a mixture of one."""
    density = Mixture(torch.zeros(1, 2), STD)
    x = density.sample(2000, torch.Generator().manual_seed(0)).float()
    return Bench(Data("ball", (2,), x=x, density=density), CPU, 0, tmp_path / "features")


def test_the_curve_is_of_the_last_stage_as_planned(tmp_path, monkeypatch, bench):
    """Of stages that end at 50 and at 110: every 20 steps and the end; step 67 is where somebody stopped it."""
    for step in (20, 40, 50, 60, 67, 80, 100, 110):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"stage": int(step >= 50), "ends": [50, 110]}))
    log = [{"step": step, "time/step_ms": 100.0} for step in (30, 60, 90, 110)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    monkeypatch.setattr(measuring, "load", lambda folder, device: folder.name)
    monkeypatch.setattr(measuring, "quality_of", lambda model, *given: ({"frechet": model}, 1.0))
    assert curve_of(tmp_path, 64, 20, bench, 32) == [
        {"step": step, "seconds": pytest.approx(seconds), "images": 64 * step, "frechet": f"step-{step}"}
        for step, seconds in ((60, 6.0), (80, 6.0), (100, 9.0), (110, 11.0))
    ]


def test_curves_take_few_steps_of_a_long_chain_and_its_own_of_a_short_one():
    quick = {"sampler": Sampler("ddim", 32)}
    long, short = diffusion(sampler=Sampler(steps=100)), diffusion(sampler=Sampler(steps=32))
    assert measuring._quick(long) == measuring._quick(SimpleNamespace(second=long)) == quick
    assert measuring._quick(short) == measuring._quick(Draws(torch.randn)) == {}


def test_a_chain_is_drawn_in_more_and_more_evaluations(bench):
    """One of the network in each step of DDIM and one at t = 0, whatever the parts that samples are drawn in."""
    found = evaluations_of(diffusion(), bench, 600)
    assert [point["evaluations"] for point in found] == [steps + 1 for steps in (1, 2, 4, 8, 16, 32, 64)]
    assert found[-1]["frechet"] < 0.2 * found[0]["frechet"] and found[-1]["high_quality"] > 0.97
    assert {point["sampler"] for point in found} == {"ddim"}


def test_a_chain_is_drawn_in_no_more_steps_than_it_has_levels(bench):
    """Its network was never trained between them."""
    found = evaluations_of(diffusion(timesteps=8), bench, 64)
    assert [point["evaluations"] for point in found] == [1, 2, 4, 8]


def test_quality_has_the_rate_of_its_samples_and_is_lost_where_they_are(bench, monkeypatch):
    """A hundred that take half a second; within 3σ of the mode lie 1 - exp(-9/2)."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def slow(n, generator):
        clock.now += 0.5
        return bench.data.density.sample(n, generator)

    monkeypatch.setattr(measuring, "time", clock)
    values, rate = quality_of(Draws(slow), bench, 100)
    assert rate == 200 and values["high_quality_floor"] == pytest.approx(1 - math.exp(-4.5), rel=1e-5)
    values, _ = quality_of(Draws(lambda n, g: slow(n, g) * math.nan), bench, 100)
    assert list(values) == ["frechet"] and math.isnan(values["frechet"])


def test_a_metric_that_cannot_be_had_is_missing_and_says_why(bench):
    x = bench.data.density.sample(50, torch.Generator().manual_seed(1)).float()
    figures, missing = figures_of(Draws(None), bench, x, ["frechet", "bits_per_dim"])
    assert list(figures) == ["frechet"] and list(missing) == ["bits_per_dim"]
    assert missing["bits_per_dim"].startswith("metric bits_per_dim cannot be had: ball has no held-out examples")


def test_what_was_measured_of_anything_else_is_not_kept(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    asked = {"samples": 64, "curve_samples": 32, "metrics": None, "value": 640}
    key, path = measuring.key_of(tmp_path, asked), tmp_path / "measured.json"
    path.write_text(json.dumps({"key": key, "figures": {}}))
    assert measuring.kept(path, key) == {"key": key, "figures": {}}
    for changed in ({"samples": 65}, {"curve_samples": 33}, {"metrics": ["frechet"]}):
        other = measuring.key_of(tmp_path, {**asked, **changed})
        assert measuring.kept(path, other) == {"key": other}
    # What else was asked changes no measurement; other weights do.
    assert measuring.key_of(tmp_path, {**asked, "value": 1}) == key
    (tmp_path / "manifest.json").write_text('{"weights": 1}')
    assert measuring.key_of(tmp_path, asked) != key
    path.write_text("{")
    assert measuring.kept(path, key) == {"key": key}


def test_ways_lead_from_one_held_out_image_to_another(bench):
    """Latents that are the images: a straight line between the first four and the next four."""
    x = torch.randn(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    model = VAE(Around(), Around(), StandardNormal((1, 3, 3)))
    made = measuring.pictures_of(model, Bench(Data("noise", (1, 3, 3), held_out=x), CPU, 0, bench.cache))
    assert torch.equal(made["originals"], x[:16]) and torch.allclose(made["reconstructions"], x[:16])
    ways = made["interpolations"]
    assert ways.shape == (4, 8, 1, 3, 3)
    assert torch.allclose(ways[:, 0], x[:4]) and torch.allclose(ways[:, -1], x[4:8])


def test_real_examples_are_measured_as_many_as_samples(tmp_path):
    asked = {"samples": 64, "curve_samples": 32}
    measure_real(tmp_path, load_data("8-gaussians"), asked, CPU)
    found = json.loads((tmp_path / "measured" / "real.json").read_text())
    assert found["samples"] == 64 and found["figures"]["kl"]["floor"] == pytest.approx(plug_in_kl(64, 8))
    assert load_file(tmp_path / "samples" / "real.safetensors")["samples"].shape == (4000, 2)


@pytest.fixture
def measured(tmp_path, monkeypatch, bench):
    """What a run of a model is measured to be, with its curve over training left out."""
    source, run = tmp_path / "source", Run(tmp_path, "gan", 3)
    source.mkdir()
    (source / "manifest.json").write_text("{}")
    asked = {"samples": 64, "curve_samples": 32, "metrics": ["frechet", "wasserstein", "nats"]}
    monkeypatch.setattr(measuring, "checkpoint_of", lambda folder: source)
    monkeypatch.setattr(measuring, "data_of", lambda folder: bench.data)
    monkeypatch.setattr(measuring, "curve_of", lambda *given: [])
    monkeypatch.setattr("hybrids.comparison.budgets.flops_of_stages", lambda *given: [5.0])
    monkeypatch.setattr("hybrids.comparison.plan.settings_of_plan", lambda *given: None)

    def found(model):
        monkeypatch.setattr(measuring, "load", lambda folder, device: model)
        measure_run(run, {"batch": 8, "lengths": [10]}, asked, CPU)
        return json.loads(run.measured.read_text())

    return SimpleNamespace(of=found, run=run, asked=asked)


def test_a_run_is_measured_once_and_wholly(measured, monkeypatch):
    model = GAN(Generator(2, 2), Critic(MLPDiscriminator(2, 8)), 2)
    assert not complete(measured.run, measured.asked)
    found = measured.of(model)
    assert set(found["figures"]) == {"frechet", "wasserstein"} and set(found["missing"]) == {"nats"}
    assert found["flops_per_step"] == [5.0] and len(found["evaluations_curve"]) == 1
    # Of the run's own seed.
    assert torch.equal(load_file(measured.run.samples)["samples"], draw(model, 64, 3, CPU))
    assert complete(measured.run, measured.asked) and not complete(measured.run, measured.asked | {"samples": 65})
    monkeypatch.setattr(measuring, "draw", lambda *given: pytest.fail("drawn again"))
    assert measured.of(model) == found
    del found["evaluations_curve"]
    measured.run.measured.write_text(json.dumps(found))
    assert not complete(measured.run, measured.asked)


def test_samples_that_are_not_finite_have_no_figures_and_it_is_said(measured):
    generator = Generator(2, 2)
    torch.nn.init.constant_(generator.bias, math.nan)
    found = measured.of(GAN(generator, Critic(MLPDiscriminator(2, 8)), 2))
    assert found["figures"] == {} and found["missing"] == {"samples": "some samples are not finite"}
    assert complete(measured.run, measured.asked)


class Own(nn.Module):
    """A user's model, which samples exactly."""

    def sample(self, n, cond=None, generator=None):
        return load_data("8-gaussians").density.sample(n, generator)


def test_a_model_of_the_users_has_figures_but_no_curve_over_evaluations(tmp_path):
    """What a sample of it costs is not known, and must not fail what is."""
    bench = Bench(load_data("8-gaussians"), torch.device("cpu"), 0, tmp_path)
    assert evaluations_of(Own(), bench, 200) == []
    x = Own().sample(200)
    assert figures_of(Own(), bench, x, ["high_quality"])[0]["high_quality"]["value"] > 0.95


def test_quality_brings_the_floor_of_each_of_its_metrics(tmp_path):
    """Of exact samples as near as the floor; of a generator one point, of one evaluation."""
    bench = Bench(load_data("8-gaussians"), torch.device("cpu"), 0, tmp_path)
    values, _ = quality_of(Own(), bench, 500)
    assert values.keys() == {"high_quality", "high_quality_floor", "frechet", "frechet_floor"}
    assert abs(values["high_quality"] - values["high_quality_floor"]) < 0.02
    assert 0 < values["frechet_floor"] < 0.05 and values["high_quality_floor"] > 0.95
    gan = GAN(MLPDecoder(2, 2, DeltaHead(), 8), Critic(MLPDiscriminator(2, 8), non_saturating), 2)
    (point,) = evaluations_of(gan, bench, 200)
    assert point["evaluations"] == 1 and point["high_quality"] < 0.5 < point["high_quality_floor"]
