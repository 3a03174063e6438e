"""A model, a recipe, a data set and a metric of one's own, outside the repository, from training to the report."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from energy import EnergyModel
from things import rings, saturation

from hybrids.data import load_data
from hybrids.evaluation import Measurement, Metric, measure
from hybrids.evaluation.metrics import METRICS, check_range, metric_of
from hybrids.experiment import Refusal, parse
from hybrids.experiment.settings import Settings

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]
CPU = torch.device("cpu")
ANSWERED = {"frechet", "kernel", "sliced_wasserstein", "precision", "density", "recall", "coverage", "nearest_train",
            "high_frequency", "laplacian", "probe", "samples_per_second", "evaluations", "flops_per_sample",
            "parameters"}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder of a user's own, with copies of the files beside this one."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("energy.py", "things.py"):
        shutil.copy(HERE / name, folder)
    return folder


def run(folder, *words, code=0):
    """What a command says, run in the user's folder."""
    script = REPOSITORY / words[0] if words[0].startswith("scripts/") else words[0]
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words[1:])], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_own_things_go_all_the_way(project):
    """Train, resume, sample, evaluate with every metric that the model can answer, the others with their reason."""
    train = ["energy.py", "--data", "things.py:rings", "--batch-size", 16, "--device", "cpu", "--out", "run"]
    run(project, *train, "--steps", 4)
    assert "step 4" in run(project, *train, "--steps", 8, "--resume", "auto")
    own = ["run", "--recipe", "energy.py", "--device", "cpu"]
    run(project, "scripts/sample.py", *own, "--number", 4, "--out", "x.png")
    assert (project / "x.png").is_file()
    measured = ["scripts/evaluate.py", *own, "--samples", 60, "--metrics"]
    told = run(project, *measured, "all", "things.py:saturation", "--data", "things.py:rings")
    found = json.loads((project / "run" / "measured.json").read_text())
    assert set(found["metrics"]) == ANSWERED | {"saturation"}
    assert set(found["metrics"]) | set(found["missing"]) == {*METRICS, "saturation"} - {"fid", "kid"}
    assert found["missing"]["smoothness"] == "EnergyModel offers no decode(z), p(x|z)"
    assert "smoothness" in told and "offers no decode(z)" in told
    assert found["metrics"]["evaluations"]["value"] == 10
    # A file that only the run names is not executed.
    assert f"--data {project / 'things.py'}:rings" in run(project, *measured, "frechet", code=2)


@pytest.mark.slow
def test_own_things_beside_ours(project):
    """Compared with a recipe of the project on own data, in an own metric: figures, reasons and page."""
    words = ["--recipes", "vae", "energy.py", "--data", "things.py:rings", "--images", 320, "--samples", 60]
    words += ["--curve-samples", 20, "--metrics", "all", "things.py:saturation"]
    told = run(project, "scripts/compare.py", *words, "--device", "cpu", "--out", "comparison")
    report = json.loads((project / "comparison" / "report.json").read_text())
    vae, own = report["recipes"]
    assert own["recipe"] == "energy" and own["state"] == vae["state"] == "finished"
    assert {"frechet", "probe", "smoothness", "saturation"} <= set(vae["summary"])
    assert {"frechet", "probe", "saturation"} <= set(own["summary"]) and "smoothness" not in own["summary"]
    assert own["missing"]["smoothness"] == "EnergyModel offers no decode(z), p(x|z)"
    page = (project / "comparison" / "report.html").read_text()
    assert "saturation" in page and "offers no decode(z), p(x|z)" in page and "saturation" in told


def test_an_own_metric_is_registered_by_passing_it():
    data = rings()
    found = measure(
        EnergyModel(data.shape, 8, 2), data, CPU, samples=32, metrics=["precision", saturation], features="pixels"
    )
    assert list(found) == ["precision", "saturation"] and not found.missing
    x = data.decode(data.x[:32])
    ours = Metric("mean", "quality", "real", says="Mean.", function=lambda fake, real, features: fake.mean())
    whole = Metric("whole", function=lambda fake, _, features: Measurement(features(fake).shape[1], low=0.0, high=1.0))
    found = measure(None, data, CPU, metrics=[ours, whole], x=x, features="pixels")
    assert found["mean"].value == pytest.approx(x.mean().item()) and found["whole"].high == 1.0
    assert found["whole"].value == 64, "pixels are the features here"
    assert metric_of(saturation).says == "Share of values at an end of [-1, 1], over that of real examples."


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        (["nonsense.py:x"], "nonsense.py, which is not there"),
        ([f"{HERE / 'things.py'}:ringz"], "has no ringz"),
        ([3], "a name, a Metric or a function; got int"),
        ("frechet", "must be a list of names"),
        ([Metric("frechet", function=saturation)], "must be new"),
        ([Metric("mine")], "give function="),
        ([Metric("mine", better="up", function=saturation)], "better must be one of"),
        (
            [Metric("mine", function=lambda *_: "much")],
            "mine: its function must return a finite number or a Measurement; got 'much'",
        ),
        ([Metric("mine", function=lambda *_: float("nan"))], "mine: its function must return a finite number"),
        ([saturation, Metric("saturation", function=lambda *_: 1.0)], "two metrics are called saturation"),
        (["smoothness", "nats"], "none of the metrics has a value: smoothness: EnergyModel offers no decode"),
    ],
)
def test_metrics_that_are_none_are_refused(metrics, why):
    data = rings()
    with pytest.raises(ValueError, match=why):
        measure(EnergyModel(data.shape, 8, 2), data, CPU, samples=32, metrics=metrics, features="pixels")


class Wrong(EnergyModel):
    """What it offers is not what is asked for."""

    sample_steps = 3

    def encode(self, x):
        return [x]

    def decode(self, z):
        return z

    def posterior(self, x):
        return x

    def nll(self, x, cond=None):
        return x.flatten(1).sum(1)


def test_what_fails_in_one_metric_does_not_cost_the_others():
    data = rings()

    def broken(samples, real, features):
        raise ValueError("never finished")

    asked = ["laplacian", "probe", "reconstruction", "active_units", "nats", "evaluations", broken]
    found = measure(Wrong(data.shape, 8, 2), data, CPU, samples=32, metrics=asked, features="pixels")
    assert set(found) == {"laplacian", "evaluations"}
    assert set(found.missing) == {"probe", "reconstruction", "active_units", "nats", "broken"}
    assert found.missing["broken"] == "ValueError: never finished"


def test_a_model_that_cannot_be_sampled_is_measured_by_the_rest():
    data = rings()
    model = EnergyModel(data.shape, 8, 2)
    model.sample = None
    found = measure(model, data, CPU, metrics=["frechet", "probe", "parameters"], features="pixels")
    assert set(found) == {"probe", "parameters"}
    assert found.missing["frechet"] == "EnergyModel offers no sample(n, generator=)"


@pytest.mark.parametrize(
    ("scale", "why"),
    [
        (lambda x: (x + 1) / 2, r"span 0 to 1, as in \[0, 1\]"),
        (lambda x: (x + 1) * 127.5, "span 0 to 255, as 0"),
    ],
)
def test_samples_of_another_range_are_refused(scale, why):
    data = rings()
    x = data.decode(data.held_out)
    check_range(x, data)
    check_range(100 * x, data)  # a model that diverged is measured
    with pytest.raises(ValueError, match=why):
        measure(None, data, CPU, metrics=["frechet"], x=scale(x), features="pixels")


def test_own_data_are_loaded_by_file_and_name(tmp_path):
    named = f"{HERE / 'things.py'}:rings"
    data = load_data(named)
    assert data.name == named and data.classes == 3 and len(data) == 200 and torch.equal(data.x, rings().x)
    with pytest.raises(ValueError, match="drop --resolution"):
        load_data(named, resolution=16)
    (tmp_path / "text.py").write_text("data = 'digits'\n")
    with pytest.raises(ValueError, match="must return a Data.*got str"):
        load_data(f"{tmp_path / 'text.py'}:data")
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {named}\n")
    with pytest.raises(Refusal, match="only run where you name it"):
        parse(Settings, ["--config", str(config)], "vae")
    assert parse(Settings, ["--config", str(config), "--data", named], "vae").data == named


def test_the_guide_shows_these_files():
    guide = (REPOSITORY / "docs" / "own.md").read_text()
    for name in ("energy.py", "things.py"):
        assert f"```python\n{(HERE / name).read_text()}```" in guide
