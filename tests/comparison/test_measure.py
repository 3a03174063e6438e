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
from hybrids import GAN, VAE, Critic, Diffusion, Player, StandardNormal, Terms
from hybrids.comparison import measure
from hybrids.comparison.__main__ import main
from hybrids.comparison.measure import (
    Setup,
    complete,
    curve_of,
    evaluations_of,
    flops_of_stages,
    measure_real,
    measure_run,
    measurements_of,
    quality_of,
    real_complete,
    sample_steps,
    seconds_of_stages,
)
from hybrids.comparison.plan import Options, data_of_options, make_plan
from hybrids.comparison.runs import Run
from hybrids.data import Data, Mixture, load_data
from hybrids.evaluation.metrics import draw_samples
from hybrids.evaluation.sample_metrics import plug_in_kl
from hybrids.experiment import Settings, Stage

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
def setup(tmp_path):
    """N(0, STD² I) as a mixture of one."""
    density = Mixture(torch.zeros(1, 2), STD)
    x = density.sample(2000, torch.Generator().manual_seed(0)).float()
    return Setup(Data("ball", (2,), x=x, density=density), CPU, 0, tmp_path / "features")


def test_the_curve_is_of_the_last_stage_as_planned(tmp_path, monkeypatch, setup):
    """Of stages that end at 50 and at 110: every 20 steps and the end; step 67 is where somebody stopped it."""
    for step in (20, 40, 50, 60, 67, 80, 100, 110):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"stage": int(step >= 50), "ends": [50, 110]}))
    log = [{"step": step, "time/step_ms": 100.0} for step in (30, 60, 90, 110)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    monkeypatch.setattr(measure, "load", lambda folder, recipe, device: folder.name)
    monkeypatch.setattr(measure, "sample_steps", lambda model: None)
    monkeypatch.setattr(measure, "quality_of", lambda model, *given: ({"frechet": model}, 1.0))
    assert curve_of(tmp_path, None, 64, 20, setup, 32) == [
        {"step": step, "seconds": pytest.approx(seconds), "images": 64 * step, "frechet": f"step-{step}"}
        for step, seconds in ((60, 6.0), (80, 6.0), (100, 9.0), (110, 11.0))
    ]


class Second(nn.Module):
    """A model that takes a sampler for its second stage."""

    def __init__(self, second):
        super().__init__()
        self.second = second

    def sample(self, n, generator=None, sampler=None):
        return self.second.sample(n, generator=generator, **({} if sampler is None else {"sampler": sampler}))


def test_a_sampler_is_chosen_where_the_model_takes_one():
    """Whatever class it is of: its own or its second stage's, whose `sample_steps` says how many steps there are."""
    chain = diffusion(sampler=Sampler(steps=100))
    own = SimpleNamespace(sample_steps=7, sample=lambda n, sampler=None: None)
    assert [sample_steps(model) for model in (chain, Second(chain), own)] == [100, 100, 7]
    fixed = SimpleNamespace(sample_steps=7, sample=lambda n: None)
    gan = GAN(Generator(2, 2), Critic(MLPDiscriminator(2, 8)), 2)
    assert [sample_steps(model) for model in (fixed, gan, Second(gan), Draws(torch.randn))] == [None] * 4


@pytest.mark.parametrize(("steps", "drawn"), [(100, Sampler("ddim", 32)), (32, None)])
def test_curves_take_few_steps_of_a_long_chain_and_its_own_of_a_short_one(tmp_path, monkeypatch, setup, steps, drawn):
    folder = tmp_path / "checkpoints" / "step-9"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({"stage": 0, "ends": [9]}))
    hows = []
    monkeypatch.setattr(measure, "load", lambda folder, recipe, device: diffusion(sampler=Sampler(steps=steps)))
    monkeypatch.setattr(measure, "quality_of", lambda model, *given, **how: hows.append(how.get("sampler")))
    assert curve_of(tmp_path, None, 64, 3, setup, 32) == [] and hows == [drawn]


def test_a_chain_is_drawn_in_more_and_more_evaluations(setup):
    """One of the network in each step, of DDIM or the mean at t = 0, whatever the parts that samples are drawn in."""
    found, why = evaluations_of(diffusion(), setup, 600)
    assert why is None
    assert [point["evaluations"] for point in found] == [1, 2, 4, 8, 16, 32, 64]
    assert found[-1]["frechet"] < 0.2 * found[0]["frechet"] and found[-1]["high_quality"] > 0.97
    assert {point["sampler"] for point in found} == {"ddim"}


def test_a_chain_is_drawn_in_no_more_steps_than_it_has_levels(setup):
    """Its network was never trained between them."""
    found, _ = evaluations_of(diffusion(timesteps=8), setup, 64)
    assert [point["evaluations"] for point in found] == [1, 2, 4, 8]


def test_quality_has_the_rate_of_its_samples_and_is_lost_where_they_are(setup, monkeypatch):
    """A hundred that take half a second; within 3σ of the mode lie 1 - exp(-9/2)."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    def slow(n, generator):
        clock.now += 0.5
        return setup.data.density.sample(n, generator)

    monkeypatch.setattr(measure, "time", clock)
    values, rate = quality_of(Draws(slow), setup, 100)
    assert rate == 200 and values["high_quality_floor"] == pytest.approx(1 - math.exp(-4.5), rel=1e-5)
    values, _ = quality_of(Draws(lambda n, g: slow(n, g) * math.nan), setup, 100)
    assert list(values) == ["frechet"] and math.isnan(values["frechet"])


def test_a_metric_that_cannot_be_had_is_missing_and_says_why(setup):
    x = setup.data.density.sample(50, torch.Generator().manual_seed(1)).float()
    figures, missing = measurements_of(Draws(None), setup, x, ["frechet", "bits_per_dim"])
    assert list(figures) == ["frechet"] and list(missing) == ["bits_per_dim"]
    assert "no held-out examples" in missing["bits_per_dim"]
    # Where none of them can be had, and where samples are of another shape, one reason is told of all.
    for some, metrics, told in ((x, ["bits_per_dim"], "bits_per_dim: "), (x[:, :1], ["frechet"], "(50, 1)")):
        figures, missing = measurements_of(Draws(None), setup, some, metrics)
        assert figures == {} and list(missing) == ["samples"] and told in missing["samples"]


def test_what_was_measured_of_anything_else_is_not_kept(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    asked = {"samples": 64, "curve_samples": 32, "metrics": None, "value": 640}
    key, path = measure.key_of(tmp_path, asked), tmp_path / "measured.json"
    path.write_text(json.dumps({"key": key, "figures": {}}))
    assert measure.previous(path, key) == {"key": key, "figures": {}}
    for changed in ({"samples": 65}, {"curve_samples": 33}, {"metrics": ["frechet"]}):
        other = measure.key_of(tmp_path, {**asked, **changed})
        assert measure.previous(path, other) == {"key": other}
    # A metric of one's own is measured again where its file has changed.
    (tmp_path / "mine.py").write_text("1")
    own = {**asked, "metrics": [f"{tmp_path}/mine.py:width"]}
    before = measure.key_of(tmp_path, own)
    assert measure.key_of(tmp_path, own) == before
    (tmp_path / "mine.py").write_text("2")
    assert measure.key_of(tmp_path, own) != before
    # What else was asked changes no measurement; other weights do.
    assert measure.key_of(tmp_path, {**asked, "value": 1}) == key
    (tmp_path / "manifest.json").write_text('{"weights": 1}')
    assert measure.key_of(tmp_path, asked) != key
    path.write_text("{")
    assert measure.previous(path, key) == {"key": key}


def test_ways_lead_from_one_held_out_image_to_another(setup):
    """Latents that are the images: a straight line between the first four and the next four."""
    x = torch.randn(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    model = VAE(Around(), Around(), StandardNormal((1, 3, 3)))
    made = measure.pictures_of(model, Setup(Data("noise", (1, 3, 3), held_out=x), CPU, 0, setup.cache))
    assert torch.equal(made["originals"], x[:16]) and torch.allclose(made["reconstructions"], x[:16])
    ways = made["interpolations"]
    assert ways.shape == (4, 8, 1, 3, 3)
    assert torch.allclose(ways[:, 0], x[:4]) and torch.allclose(ways[:, -1], x[4:8])


def test_real_examples_are_measured_as_many_as_samples(tmp_path):
    asked = {"samples": 64, "curve_samples": 32, "metrics": None}
    assert not real_complete(tmp_path, asked)
    measure_real(tmp_path, load_data("8-gaussians"), asked, CPU)
    assert real_complete(tmp_path, asked) and not real_complete(tmp_path, {**asked, "metrics": ["kl"]})
    found = json.loads((tmp_path / "measured" / "real.json").read_text())
    assert found["samples"] == found["n"] == 64 and found["figures"]["kl"]["floor"] == pytest.approx(plug_in_kl(64, 8))
    assert load_file(tmp_path / "samples" / "real.safetensors")["samples"].shape == (4000, 2)


@pytest.fixture
def measured(tmp_path, monkeypatch, setup):
    """What a run of a model is measured to be, with its curve over training left out."""
    source, run = tmp_path / "source", Run(tmp_path, "gan", 3)
    source.mkdir()
    (source / "manifest.json").write_text("{}")
    asked = {"samples": 64, "curve_samples": 32, "metrics": ["frechet", "wasserstein", "nats"], "data": "ball"}
    monkeypatch.setattr(measure, "checkpoint_of", lambda folder: source)
    monkeypatch.setattr(measure, "data_of", lambda folder, data: setup.data)
    monkeypatch.setattr(measure, "curve_of", lambda *given: [])
    monkeypatch.setattr(measure, "flops_of_stages", lambda *given: [5.0])
    monkeypatch.setattr(measure, "settings_of_plan", lambda *given: None)

    def found(model):
        monkeypatch.setattr(measure, "load", lambda folder, recipe, device: model)
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
    assert torch.equal(load_file(measured.run.samples)["samples"], draw_samples(model, 64, 3, CPU))
    assert complete(measured.run, measured.asked) and not complete(measured.run, measured.asked | {"samples": 65})
    monkeypatch.setattr(measure, "draw_samples", lambda *given: pytest.fail("drawn again"))
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
    setup = Setup(load_data("8-gaussians"), torch.device("cpu"), 0, tmp_path)
    points, why = evaluations_of(Own(), setup, 200)
    assert points == [] and "Own offers no networks()" in why
    x = Own().sample(200)
    assert measurements_of(Own(), setup, x, ["high_quality"])[0]["high_quality"]["value"] > 0.95


def test_quality_brings_the_floor_of_each_of_its_metrics(tmp_path):
    """Of exact samples as near as the floor; of a generator one point, of one evaluation."""
    setup = Setup(load_data("8-gaussians"), torch.device("cpu"), 0, tmp_path)
    values, _ = quality_of(Own(), setup, 500)
    parts = ("", "_floor", "_floor_spread")
    assert values.keys() <= {name + part for name in ("high_quality", "frechet") for part in parts}
    assert abs(values["high_quality"] - values["high_quality_floor"]) < 0.02
    assert 0 < values["frechet_floor"] < 0.05 and values["high_quality_floor"] > 0.95
    gan = GAN(MLPDecoder(2, 2, DeltaHead(), 8), Critic(MLPDiscriminator(2, 8), non_saturating), 2)
    (point,), _ = evaluations_of(gan, setup, 200)
    assert point["evaluations"] == 1 and point["high_quality"] < 0.5 < point["high_quality_floor"]


# What a step costs.


@pytest.mark.parametrize(
    ("recipe", "value", "seconds"),
    [("vae", 100, 5.0), ("latent_diffusion", 100, 2.5), ("vae", 1000, 10.0), ("latent_diffusion", 20, 2.0)],
)
def test_a_pilot_takes_a_twentieth_of_the_budget_for_all_stages(tmp_path, monkeypatch, recipe, value, seconds):
    """But 2 s of each at least, and 10 s at most."""
    options = Options((recipe,), "8-gaussians", "seconds", value, tmp_path)
    make_plan(options, data_of_options(options))
    monkeypatch.setattr(measure, "seconds_of_stages", lambda settings, build, data, seconds: [seconds])
    main(["costs", recipe, "--out", str(tmp_path), "--device", "cpu"])
    assert json.loads((tmp_path / "pilots" / f"{recipe}.json").read_text()) == {"seconds": [seconds]}


class _Slow(nn.Module):
    """A first step of 0.5 s, as of a kernel that is compiled, then steps of 0.02 s, by a clock of its own; steps that
    are `disturbed` take ten times as long."""

    def __init__(self, disturbed=()):
        super().__init__()
        self.disturbed = disturbed
        self.weight = nn.Parameter(torch.zeros(2))
        self.calls, self.now = 0, 0.0

    def perf_counter(self):
        return self.now

    def loss(self, x):
        self.calls += 1
        self.now += 0.5 if self.calls == 1 else 0.2 if self.calls in self.disturbed else 0.02
        return Terms(error=(x - self.weight).square().sum(1))


def piloted(model, seconds, monkeypatch):
    """What a pilot of so many seconds finds."""
    data = Data("points", (2,), x=torch.randn(64, 2))
    monkeypatch.setattr("hybrids.comparison.measure.time", model)

    def build(settings, data):
        return [Stage("slow", model, [Player(model.loss, [model])])]

    return seconds_of_stages(Settings(device="cpu", batch_size=8, ema=0), build, data, seconds)


def test_a_pilot_measures_a_step_without_what_comes_before(monkeypatch):
    """With the first step in the mean it would be 0.044."""
    model = _Slow()
    assert piloted(model, 0.25, monkeypatch) == [pytest.approx(0.02)]
    # 5 steps before it counts, 13 to fill 0.25 s, and on to the next ten.
    assert model.calls == 20


def test_a_pilot_is_not_slowed_by_what_else_the_machine_does(monkeypatch):
    """Two of its five fifths are disturbed: the mean over all would be 0.09, and cost the recipe four steps of five."""
    model = _Slow(disturbed=range(21, 41))
    assert piloted(model, 5.0, monkeypatch) == [pytest.approx(0.02)]
    assert model.now > 5.0


def test_flops_count_all_players_and_micro_batches():
    """An MLP of one product, 2 B d k FLOPs forward; its backward needs that of the weights alone, as x wants none."""
    data = Data("points", (4,), x=torch.randn(64, 4))

    def build(settings, data):
        layers = [nn.Linear(4, 3, bias=False), nn.Linear(4, 5, bias=False)]
        players = [
            Player(lambda x, layer=layer: Terms(error=layer(x).square().sum(1)), [layer], name=f"p{i}")
            for i, layer in enumerate(layers)
        ]
        return [Stage("two", nn.ModuleList(layers), players)]

    (once,) = flops_of_stages(Settings(batch_size=8), build, data)
    assert once == 2 * (2 * 8 * 4 * 3 + 2 * 8 * 4 * 5)
    assert flops_of_stages(Settings(batch_size=8, accumulation=3), build, data) == [3 * once]
