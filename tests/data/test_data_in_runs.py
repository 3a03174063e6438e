"""What a run records and prints of its data: classes by name, and the scale of vectors, in which samples are drawn."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import TINY

import hybrids
from hybrids import experiment
from hybrids.data import Data, load_data
from hybrids.evaluation.likelihood import likelihood
from hybrids.experiment import Refusal, load_recipe
from hybrids.experiment.run import loading
from hybrids.experiment.run.loading import checkpoint_of, data_of, described_data
from hybrids.experiment.run.run import _changed_data

REPOSITORY = Path(__file__).parents[2]


def train(recipe, out, *argv):
    """A tiny run of two steps."""
    module = load_recipe(recipe)
    words = ["--device", "cpu", "--batch-size", "8", "--steps", "2", *TINY[recipe], "--out", out, *argv]
    experiment.main(module.Settings, module.build, list(map(str, words)))
    return out


def sample(monkeypatch, run, *argv):
    """What scripts/sample.py draws, in this process: (N, *event)."""
    spec = importlib.util.spec_from_file_location("script_sample", REPOSITORY / "scripts" / "sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = run / "drawn.safetensors"
    words = ["sample.py", run, "--device", "cpu", "--number", 8, "--tensor", out, *argv]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    module.main()
    return load_file(out)["x"]


def pets(root, names):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(12):
            Image.new("L", (8, 8), 40 * i + j).save(root / name / f"{j}.png")
    return root


def test_classes_have_names_in_a_run_its_samples_and_its_resume(tmp_path, monkeypatch, capsys):
    """Printed with their numbers of examples; drawn by name; a resume on other classes is refused."""
    data, out = pets(tmp_path / "pets", ["1", "2", "10"]), tmp_path / "run"
    train("vae", out, "--data", data, "--conditional")
    printed = capsys.readouterr().out
    counts = torch.bincount(data_of(checkpoint_of(out)).labels)
    assert (
        "classes " + ", ".join(f"{i} {name} ({n})" for i, (name, n) in enumerate(zip(["1", "2", "10"], counts)))
        in printed
    )
    assert described_data(checkpoint_of(out)).class_names == ("1", "2", "10")
    drawn = sample(monkeypatch, out, "--label", "10")
    assert "label 2 (10)" in capsys.readouterr().out
    model = hybrids.load(out)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(drawn, model.sample(8, cond=torch.full((8,), 2), generator=generator))
    with pytest.raises(SystemExit, match="2"):
        sample(monkeypatch, out, "--label", "bird")
    assert "--label bird: expected one of 0 1, 1 2, 2 10" in capsys.readouterr().err
    (data / "10").rename(data / "11")
    with pytest.raises(Refusal, match="0 1 .*, 2 11 .*; the run was trained on 0 1, 1 2, 2 10: its labels mean"):
        data_of(checkpoint_of(out))
    words = ("--data", data, "--conditional", "--steps", 3, "--resume", "auto")
    with pytest.raises(SystemExit, match="2"):
        train("vae", out, *words)
    assert "the data's class_names have changed since" in capsys.readouterr().err
    (data / "11").rename(data / "10")
    Image.new("L", (8, 8), 9).save(data / "1" / "more.png")
    train("vae", out, *words)
    assert "examples: " in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["ddpm", "vae", "gan"])
@pytest.mark.parametrize("d", [1, 3])
def test_vectors_of_any_scale_are_drawn_in_the_data_s_own_values(recipe, d, tmp_path, monkeypatch, capsys):
    """5000 ± 1000 trains at unit scale; samples of the script are mapped back, and -log p has the log-determinant."""
    values = 1000 * numpy.random.default_rng(0).standard_normal((200, d)) + 5000
    numpy.save(tmp_path / "x.npy", values)
    out = train(recipe, tmp_path / "run", "--data", tmp_path / "x.npy", "--resolution", "none")
    assert "are standardized; samples are mapped back" in capsys.readouterr().out
    model, data = hybrids.load(out), data_of(checkpoint_of(out))
    assert data.x.abs().max() < 6
    unit = model.sample(8, generator=torch.Generator().manual_seed(0))
    drawn = sample(monkeypatch, out)
    torch.testing.assert_close(drawn, unit * torch.tensor(data.scale) + torch.tensor(data.mean), rtol=1e-5, atol=1e-2)
    assert torch.equal(model.to_data(unit), drawn)
    assert all((out / "samples" / name).stat().st_size > 1000 for name in ("step-2.png", "drawn-0.png"))
    if recipe != "gan":
        torch.manual_seed(0)
        plain = likelihood(model, data.held_out, every_level=True)
        torch.manual_seed(0)
        own = likelihood(model, data.held_out, every_level=True, log_scale=data.log_scale)
        assert own["nats"] - plain["nats"] == pytest.approx(d * numpy.log(1000), abs=0.2 * d)
        assert own["nats_scale"] == pytest.approx(data.log_scale)
    # Examples of another file, or of the changed one, keep the scale that the run was trained at.
    numpy.save(tmp_path / "other.npy", values / 100 + 9000)
    numpy.save(tmp_path / "x.npy", 2 * values)
    for name, own in (("other.npy", values / 100 + 9000), ("x.npy", 2 * values)):
        other = data_of(checkpoint_of(out), str(tmp_path / name))
        held = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:20].sort().values
        assert (other.mean, other.scale) == (data.mean, data.scale)
        assert torch.allclose(other.held_out, data.to_unit(torch.tensor(own)[held]).float(), atol=1e-4)
    numpy.save(tmp_path / "wide.npy", numpy.zeros((20, d + 1)))
    with pytest.raises(Refusal, match=rf"wide.npy has examples of shape \({d + 1},\); the run was trained on \({d},"):
        data_of(checkpoint_of(out), str(tmp_path / "wide.npy"))
    with pytest.raises(SystemExit, match="2"):
        train(recipe, out, "--data", tmp_path / "x.npy", "--resolution", "none", "--steps", 3, "--resume", "auto")
    assert "the data's mean and scale have changed since" in capsys.readouterr().err


def test_runs_from_before_vectors_were_standardized_saw_their_own_values(tmp_path, monkeypatch):
    """A card without mean and scale means the identity: for `data_of`, and for a resume, which is refused."""
    values = 1000 * torch.randn(200, 2, dtype=torch.float64) + 5000
    numpy.save(tmp_path / "x.npy", values.numpy())
    data = load_data(str(tmp_path / "x.npy"))
    card = {name: value for name, value in data.card().items() if name not in ("mean", "scale")}
    settings = {"data": data.name}
    monkeypatch.setattr(loading.disk, "load_manifest", lambda path: {"card": {"settings": settings, "data": card}})
    held = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:20].sort().values
    before = data_of(tmp_path)
    assert before.scale == () and torch.allclose(before.held_out, values[held].float(), rtol=1e-6)
    saved = SimpleNamespace(folder=tmp_path, card={"data": card})
    with pytest.raises(Refusal, match=r"the data's mean and scale have changed since, from \[0.0, 0.0\] to"):
        _changed_data(saved, data.card(), False)
    unit = data.card() | {"mean": [0.0, 0.0], "scale": [1.0, 1.0]}
    assert _changed_data(saved, unit, False) == []


def test_fashion_10k_trains_by_its_name_and_is_drawn_by_its_classes(tmp_path, monkeypatch, capsys):
    out = train("vae", tmp_path / "run", "--data", "fashion-10k", "--conditional", "--flat")
    assert "vae on fashion-10k (1, 28, 28) (9000 examples)" in capsys.readouterr().out
    assert described_data(checkpoint_of(out)).class_names[9] == "Ankle boot"
    assert data_of(checkpoint_of(out)).shape == (1, 28, 28) and "reads the data" not in capsys.readouterr().out
    assert sample(monkeypatch, out, "--label", "T-shirt/top").shape == (8, 1, 28, 28)


def test_an_oblong_array_is_found_again(tmp_path):
    numpy.save(tmp_path / "x.npy", numpy.random.default_rng(0).integers(0, 256, (40, 1, 8, 12), "uint8"))
    out = train("gan", tmp_path / "run", "--data", tmp_path / "x.npy", "--resolution", "none", "--flat")
    assert data_of(checkpoint_of(out)).shape == (1, 8, 12)


def test_cards_of_earlier_runs_are_read():
    card = json.loads(json.dumps({"name": "digits", "shape": [1, 8, 8], "classes": 10, "grey_levels": 17}))
    data = Data.from_card(card)
    assert data.class_names == () and data.scale == () and data.label("9") == 9


@pytest.mark.parametrize("wrong, message", [
    ({"labels": torch.tensor([1, 2]), "classes": 2}, "labels must be in 0 … 1; got 1 … 2: count from 0"),
    ({"held_out_labels": torch.tensor([-1]), "classes": 2}, "held_out_labels must be in 0 … 1; got -1 … -1"),
    ({"classes": 2, "class_names": ("a",)}, r"class_names must be as many as the classes, 2; got \\('a',\\)"),
    ({"mean": (0.0,), "scale": (1.0,)}, "mean and scale must have one value a dimension, 3; got 1 and 1"),
])  # fmt: skip
def test_data_that_contradicts_itself_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message.replace("\\\\", "\\")):
        Data("x", (3,), x=torch.zeros(2, 3), **wrong)
