"""scripts/sample.py and scripts/studies/samplers.py: which samples a run draws, how, and how good they are."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from answers import Smooth
from safetensors.torch import load_file
from small import TINY

import hybrids
from components.denoisers import DenoisedReconstruction, Denoiser
from components.samplers import DDIM, METHODS, Sampler
from components.schedules import CosineSchedule, LogSNRLinearSchedule
from hybrids import Diffusion, experiment
from hybrids.experiment import load_recipe

REPOSITORY = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).name}", REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(recipe, out, *argv):
    """A tiny run of two steps."""
    module = load_recipe(recipe)
    words = ["--device", "cpu", "--batch-size", "8", "--steps", "2", *TINY[recipe], "--out", out, *argv]
    experiment.main(module.Settings, module.build, list(map(str, words)))
    return out


@pytest.fixture
def run(tmp_path, few_digits):
    """Of a network that answers more than the zero it starts with."""
    return train("ddpm", tmp_path / "run", "--conditional", "--lr", 0.05, "--ema", 0)


def sample(monkeypatch, run, *argv):
    """What the script draws, in this process: (N, *event)."""
    out = run / "drawn.safetensors"
    words = ["sample.py", run, "--device", "cpu", "--tensor", out, *argv]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    script("sample").main()
    return load_file(out)["x"]


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", METHODS)
def test_the_script_draws_with_the_sampler_that_is_asked_for(run, monkeypatch, name):
    model = hybrids.load(run)
    x = sample(monkeypatch, run, "--number", 3, "--sampler", name, "--steps", 3, "--spacing", "karras", "--seed", 5)
    expected = model.sample(3, generator=generator(5), sampler=Sampler(name, steps=3, spacing="karras"))
    assert torch.equal(x, expected)


def test_the_script_hands_everything_on(run, monkeypatch):
    model, cond = hybrids.load(run), torch.full((3,), 7)
    words = ["--label", 7, "--guidance-scale", 3, "--guidance-interval", 0.2, 0.8, "--guidance-rescale", 0.5]
    words += ["--sampler", "ddim", "--eta", 0.5, "--steps", 4, "--thresholding", 0.9, "--number", 3]
    x = sample(monkeypatch, run, *words)
    guidance = {"guidance_scale": 3.0, "guidance_interval": (0.2, 0.8), "guidance_rescale": 0.5}
    sampler = Sampler(DDIM(eta=0.5), 4, **guidance, thresholding=0.9)
    expected = model.sample(3, cond, generator(0), sampler)
    assert torch.equal(x, expected)


def test_a_chunk_has_noise_of_its_own(run, monkeypatch):
    """Of the seed and its number: no chunk is one of the next seed's, and more samples leave the first ones alone."""
    first, second = (sample(monkeypatch, run, "--number", 5, "--chunk", 2, "--steps", 2, "--seed", s) for s in (0, 1))
    more = sample(monkeypatch, run, "--number", 8, "--chunk", 2, "--steps", 2)
    assert torch.equal(first[:4], more[:4]) and not torch.equal(first[:2], first[2:4])
    assert not torch.equal(first[2:4], second[:2])
    model = hybrids.load(run)
    for i, size in enumerate((2, 2, 1)):
        own = generator(script("sample").STRIDE * i)
        assert torch.equal(
            first[2 * i : 2 * i + 2], model.sample(size, generator=own, sampler=model.sampler.but(steps=2))
        )


def test_a_latent_model_hands_the_sampler_to_its_second_stage(tmp_path, few_digits, monkeypatch):
    run = train("latent_diffusion", tmp_path / "run")
    x = sample(monkeypatch, run, "--number", 3, "--sampler", "heun", "--steps", 2, "--spacing", "log_snr")
    model = hybrids.load(run)
    assert torch.equal(x, model.sample(3, generator=generator(0), sampler=Sampler("heun", 2, "log_snr")))


@pytest.mark.parametrize("argv, message", [
    (["--steps", 0], "steps must be at least 1; got 0"),
    (["--spacing", "leading", "--steps", 5000], "the sampler's steps must be at most timesteps, 8; got 5000"),
    (["--thresholding", 2], "thresholding must be a quantile in (0, 1]; got 2.0"),
    (["--label", 10], "--label 10: expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
    (["--guidance-scale", 2], "--guidance-scale: there is nothing to guide by without --label"),
    (["--guidance-rescale", 0.5], "--guidance-rescale: there is nothing to guide by without --label"),
    (["--guidance-interval", 0.1, 0.9], "--guidance-interval: there is nothing to guide by without --label"),
    (["--label", 1, "--guidance-rescale", 0.5], "guidance_interval and guidance_rescale change nothing"),
    (["--label", 1, "--guidance-scale", 1, "--guidance-interval", 0.1, 0.9], "guidance_interval and guidance_resca"),
    (["--label", 1, "--guidance-scale", 2, "--guidance-interval", 0.9, 0.1], "interval must be (low, high) with"),
    (["--eta", 0.5], "--eta goes with --sampler ddim; got the method of the run, Ancestral"),
    (["--eta", 0.5, "--sampler", "heun"], "--eta goes with --sampler ddim; got heun"),
    (["--sampler", "ddim", "--eta", 2], "eta must be in [0, 1]; got 2.0"),
    (["--sampler", "magic"], "argument --sampler: invalid choice: 'magic'"),
    (["--number", 0], "--number and --chunk must be at least 1; got 0"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused(run, monkeypatch, capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        sample(monkeypatch, run, *argv)
    assert message in capsys.readouterr().err


def test_a_model_without_a_sampler_refuses_its_settings_by_name(tmp_path, few_digits, monkeypatch, capsys):
    run = train("gan", tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        sample(monkeypatch, run, "--sampler", "heun", "--steps", 4, "--spacing", "karras")
    said = capsys.readouterr().err
    assert all(f"{flag}: GAN has no sampler to set" in said for flag in ("--sampler", "--steps", "--spacing"))


@pytest.mark.slow
def test_two_processes_draw_what_one_does(run, monkeypatch, launch):
    words = ["--number", 11, "--chunk", 2, "--sampler", "sde_dpm_solver_pp", "--steps", 3]
    one = sample(monkeypatch, run, *words)
    both = run / "both.safetensors"
    said = launch(REPOSITORY / "scripts" / "sample.py", run, "--device", "cpu", *words, "--tensor", both)
    assert torch.equal(one, load_file(both)["x"]) and said.count("11 samples of") == 1


@pytest.mark.slow
def test_a_refusal_reaches_processes_without_a_chunk(run):
    """They do not wait for the one that failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [REPOSITORY / "scripts" / "sample.py", run, "--device", "cpu", "--number", "2", "--steps", "0"]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert said.returncode != 0 and said.stderr.count("steps must be at least 1; got 0") == 1


# The study


def test_the_energy_distance_is_unbiased_and_known_of_points():
    study = script("studies/samplers")
    torch.manual_seed(0)
    a, b = torch.tensor([[0.0, 0.0]] * 3), torch.tensor([[3.0, 4.0]] * 5)
    assert study.energy_distance(a, b) == pytest.approx(2 * 5 / math.sqrt(2))
    equal = torch.tensor([study.energy_distance(*torch.randn(2, 30, 4)) for _ in range(400)])
    assert equal.mean().abs() < 4 * equal.std() / 20
    assert (equal < 0).any() and study.energy_distance(torch.randn(500, 4), 1.3 * torch.randn(500, 4)) > 0.01


def test_the_sliced_distance_of_shifted_sets_is_the_shift_over_the_root_of_d():
    study = script("studies/samplers")
    x = torch.randn(300, 16, generator=generator(0))
    shift = torch.zeros(16)
    shift[3] = 8.0
    # 500 directions: E (θ·μ)² = ‖μ‖²/d, whose standard deviation over θ is about √2 times itself
    found = study.sliced_wasserstein(x, x + shift) ** 2
    assert found == pytest.approx(64 / 16, rel=4 * math.sqrt(2 / 500))
    assert study.sliced_wasserstein(x, x) < 1e-6


@pytest.mark.parametrize("schedule, reconstruction", [
    (CosineSchedule(), None), (LogSNRLinearSchedule(), None), (LogSNRLinearSchedule(), DenoisedReconstruction(0.1)),
])  # fmt: skip
@pytest.mark.parametrize("method", ["ddim", "heun"])
def test_a_budget_of_evaluations_is_used_and_kept(schedule, reconstruction, method):
    """N steps of ddim take N, of heun 2 N - 1; where x_0 is decoded by x̂, N + 1 and 2 N + 1."""
    steps_for = script("studies/samplers").steps_for
    for budget in range(1, 9):
        model = Diffusion(Denoiser(Smooth(), schedule, "v_prediction"), 3, reconstruction)
        if steps := steps_for(model, method, budget):
            model.sample(2, sampler=Sampler(method, steps))
            assert budget - METHODS[method].evaluations < model.denoiser.backbone.calls <= budget
        else:
            assert reconstruction is not None and budget <= METHODS[method].evaluations


@pytest.mark.slow
def test_the_study_writes_its_table_and_keeps_what_it_has(run, monkeypatch, tmp_path):
    out = tmp_path / "study"
    study = script("studies/samplers")
    words = ["samplers.py", run, "--evaluations", 4, 1, "--samples", 4, "--samplers", "ddim", "heun", "--out", out]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--device", "cpu"])
    study.main()
    rows = json.loads((out / "samplers.json").read_text())["rows"]
    cells = [(row["sampler"], row.get("steps"), row.get("evaluations")) for row in rows]
    assert cells == [("training examples", None, None), ("ddim", 1, 1), ("ddim", 4, 4), ("heun", 1, 1), ("heun", 2, 3)]
    assert all(
        math.isfinite(row[key]) for row in rows for key in ("energy_distance", "sliced_wasserstein", "confidence")
    )
    assert (out / "samplers.md").read_text().count("\n") == 7 and (out / "samplers.png").stat().st_size > 1000
    monkeypatch.setattr(study, "draw_samples", lambda *_, **__: pytest.fail("drawn twice"))
    study.main()
    assert json.loads((out / "samplers.json").read_text())["rows"] == rows


def test_the_study_refuses_what_is_no_diffusion(tmp_path, few_digits, monkeypatch, capsys):
    run = train("gan", tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["samplers.py", str(run), "--out", str(tmp_path / "study"), "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        script("studies/samplers").main()
    assert "expected a diffusion, or a latent one; got a GAN" in capsys.readouterr().err
