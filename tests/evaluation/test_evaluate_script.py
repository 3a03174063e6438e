"""scripts/evaluate.py: the same numbers on 1, 2 and 3 processes, killed and resumed, and what it refuses."""

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from hybrids import experiment, load
from hybrids.data import load_data
from hybrids.evaluation import measure
from hybrids.experiment import load_recipe

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "evaluate.py"
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.slow


def start(*argv, processes=1):
    """The script in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *map(str, argv), "--device", "cpu"]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def said_by(process, expect=0):
    try:
        said, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate()
        raise AssertionError(f"still running: {said[-3000:]}") from None
    assert process.returncode == expect, said[-5000:]
    return said


def fresh():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """The script in this process: what it said."""
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*argv, expect=0):
        fresh()
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, argv), "--device", "cpu"])
        code = 0
        try:
            module.main()
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert code == expect, out + err
        return out + err

    return run


def train(name, folder, *argv):
    fresh()
    recipe = load_recipe(name)
    experiment.main(recipe.Settings, recipe.build, ["--device", "cpu", "--out", str(folder), *map(str, argv)])
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return train("vae", tmp_path_factory.mktemp("vae") / "run", "--steps", 2, "--width", 8)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    options = ("--steps", 2, "--timesteps", 12, "--data", "8-gaussians", "--width", 8, "--sample-steps", 2)
    return train("ddpm", tmp_path_factory.mktemp("ddpm") / "run", *options)


def found(path):
    return json.loads(path.read_text())


def test_one_two_and_three_processes_give_one_answer(evaluate, ddpm, tmp_path):
    """Of the bound, the importance-weighted bound, the flow with Hutchinson's noise; in chunks that do not divide."""
    asked = (ddpm, "--importance-samples", 3, "--ode", "--ode-steps", 10, "--divergence", "gaussian", "--examples", 50,
             "--batch-size", 7, "--draws", 100, "--importance-times")  # fmt: skip
    answers = []
    for processes in (1, 2, 3):
        out = tmp_path / f"{processes}.json"
        alone = processes == 1
        said = evaluate(*asked, "--out", out) if alone else said_by(start(*asked, "--out", out, processes=processes))
        assert "ode_nats_per_dim" in said and said.count("examples  ") == 1  # the main process alone speaks
        answers.append(found(out))
        assert [path.name for path in tmp_path.glob(".*")] == []
    one, *others = (answer["likelihood"] for answer in answers)
    assert one["examples"] == 50 and one["ode_steps"] == 10 and one["importance_samples"] == 3 and one["draws"] == 2
    for other in others:
        assert other.keys() == one.keys()
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    assert answers[0]["settings"] == answers[1]["settings"]


def test_one_that_was_killed_goes_on_where_it_was(evaluate, vae, tmp_path):
    """Killed, two ranks at that: finished chunks are kept, not computed again, and the answer is that of one go."""
    out, straight = tmp_path / "out.json", tmp_path / "straight.json"
    asked = (vae, "--likelihood", "--batch-size", 8, "--importance-samples", 200, "--examples", 96, "--draws", 1)
    evaluate(*asked, "--out", straight)
    parts = tmp_path / ".out.json.parts"
    process = start(*asked, "--out", out)
    deadline = time.monotonic() + 100
    while len(list(parts.glob("chunk-*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("chunk-*")}
    assert 2 <= len(kept) < 12 and not out.exists()
    process = start(*asked, "--out", out, processes=2)
    while not out.exists() and process.poll() is None and time.monotonic() < deadline + 100:
        if len(list(parts.glob("chunk-*"))) > len(kept):
            # The folder goes once all are there.
            with contextlib.suppress(FileNotFoundError):
                assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept, "written again"
        time.sleep(0.05)
    said_by(process)
    one, other = found(straight)["likelihood"], found(out)["likelihood"]
    assert one == other and not parts.exists()
    # Finished, it has nothing to do; another seed starts over.
    assert "already finished with these settings" in evaluate(*asked, "--out", out)
    assert found(out)["likelihood"] == other
    evaluate(vae, "--likelihood", "--examples", 8, "--seed", 1, "--out", out)
    assert found(out)["settings"]["seed"] == 1 and found(out)["likelihood"] != other


def test_changed_settings_start_over(evaluate, vae, tmp_path):
    out = tmp_path / "out.json"
    parts = tmp_path / ".out.json.parts"
    asked = ("--likelihood", "--draws", 1, "--batch-size", 8)
    evaluate(vae, *asked, "--examples", 24, "--out", out)
    card = {**found(out)["settings"], "seed": 2, "importance_samples": 9}
    out.unlink()
    parts.mkdir()
    (parts / "card.json").write_text(json.dumps(card))
    (parts / "chunk-000000.safetensors").write_bytes(b"of another evaluation")
    said = evaluate(vae, *asked, "--examples", 16, "--seed", 3, "--out", out)
    assert "settings changed (examples, found, importance_samples, seed): starting from the beginning" in said
    assert found(out)["likelihood"]["examples"] == 16


def test_it_writes_beside_the_run_by_default_and_measures_the_train_split(evaluate, vae):
    said = evaluate(vae, "--likelihood", "--examples", 20, "--split", "train")
    assert str(vae / "evaluation.json") in said
    likelihood = found(vae / "evaluation.json")["likelihood"]
    assert math.isfinite(likelihood["bits_per_dim"]) and likelihood["grey_levels"] == 17
    assert found(vae / "evaluation.json")["settings"]["split"] == "train"


def test_a_conditional_model_is_measured_given_labels_or_without(evaluate, tmp_path):
    options = ("--steps", 4, "--timesteps", 4, "--width", 8, "--resolution", 8, "--sample-steps", 2, "--lr", 0.05)
    run = train("ddpm", tmp_path / "run", *options, "--conditional", "--flat")
    answers = []
    for extra in ([], ["--labels"]):
        evaluate(run, "--likelihood", "--every-level", "--examples", 16, *extra, "--out", tmp_path / "out.json")
        answers.append(found(tmp_path / "out.json")["likelihood"])
    assert answers[0]["nats"] != answers[1]["nats"] and answers[0]["grey_levels"] == 17
    assert answers[0]["nats_prior"] == answers[1]["nats_prior"]  # the same noise, and no network in it


def test_what_cannot_be_measured_is_refused_without_a_traceback(evaluate, vae, ddpm, tmp_path):
    gan = train("gan", tmp_path / "gan", "--steps", 1, "--data", "8-gaussians")
    for argv, message in (
        ((gan, "--likelihood"), "GAN is an implicit model"),
        ((vae, "--ode"), "flow needs a Diffusion, or a VAE whose prior is one; got StandardNormal"),
        ((tmp_path / "nothing", "--likelihood"), "no valid checkpoint there"),
        ((ddpm, "--likelihood", "--labels"), "--labels: 8-gaussians has no labels"),
        ((vae,), "give either --likelihood or --metrics"),
        ((vae, "--likelihood", "--batch-size", 0), "--batch-size must be at least 1; got 0"),
        ((vae, "--likelihood", "--importance-times"), "importance_times needs a Diffusion; got VAE"),
    ):
        said = evaluate(*argv, "--out", tmp_path / "x.json", expect=2)
        assert message in said and "Traceback" not in said, said
        assert not list(tmp_path.glob(".*"))  # nothing is left behind
    # Two ranks are refused alike, and none is left waiting.
    process = start(gan, "--likelihood", "--out", tmp_path / "x.json", processes=2)
    assert said_by(process, expect=1).count("refused: --likelihood") == 1


# Metrics of samples.


def test_metrics_are_those_of_measure(evaluate, vae, tmp_path):
    said = evaluate(vae, "--metrics", "frechet", "high_frequency", "--samples", 64, "--out", tmp_path / "m.json")
    written = found(tmp_path / "m.json")["metrics"]
    assert set(written) == {"frechet", "high_frequency"} and f"{written['frechet']['value']:.4g}" in said
    same = measure(
        load(vae, device="cpu"), load_data("digits", 8), torch.device("cpu"), samples=64, metrics=("frechet",)
    )
    assert written["frechet"]["value"] == same["frechet"].value
    for argv, message in (
        (("--metrics", "frechett"), "did you mean frechet?"),
        (("--metrics", "wasserstein"), "none of the metrics has a value: wasserstein: it needs points of the plane"),
        (("--metrics", "--samples", 3), "--samples must be at least"),
        (("--metrics", "--likelihood"), "give either --likelihood or --metrics"),
    ):
        assert message in evaluate(vae, *argv, expect=2)


def test_a_latent_diffusion_is_scored_as_the_vae_whose_prior_it_is(evaluate, tmp_path):
    words = ("--data", "digits", "--resolution", 8, "--flat", "--latent", 4, "--steps", 2, "--width", 8, "--second")
    run = train("latent_diffusion", tmp_path / "run", *words, "diffusion")
    evaluate(run, "--likelihood", "--examples", 16, "--draws", 16, "--out", tmp_path / "out.json")
    values = found(tmp_path / "out.json")["likelihood"]
    assert {"nats_distortion", "nats_posterior_entropy", "nats_prior.diffusion"} <= values.keys()
    assert "bits_per_dim" not in values  # a density
    other = train("latent_diffusion", tmp_path / "flow", *words, "flow")
    assert "FlowSchedule is noiseless at t = 0" in evaluate(other, "--likelihood", "--examples", 16, expect=2)
