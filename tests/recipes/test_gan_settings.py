"""The GAN's own settings: an MLP for images, where the learning rate ends; and the study of its collapse."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import TINY

from components.decoders import CategoricalHead, MLPDecoder, NormalHead
from components.discriminators import MLPDiscriminator
from hybrids.data import load_data
from hybrids.experiment import load_recipe, parse

SHAPE = (3, 8, 8)


def built(*words):
    recipe = load_recipe("gan")
    settings = parse(recipe.Settings, [*TINY["gan"], *words], "gan")
    (stage,) = recipe.build(settings, load_data(settings.data, settings.resolution))
    return stage


@pytest.mark.parametrize("head", [NormalHead("learned"), CategoricalHead(5)], ids=["learned", "categorical"])
def test_an_mlp_that_draws_images_is_one_of_their_pixels(head):
    images, pixels = (MLPDecoder(4, shape, head, width=8, depth=1) for shape in (SHAPE, 192))
    pixels.load_state_dict(images.state_dict())
    z, x = torch.randn(5, 4), 2 * torch.randint(5, (5, *SHAPE)) / 4 - 1
    p, q = images(z), pixels(z)
    assert p.mean.shape == (5, *SHAPE) and torch.equal(p.mean.flatten(1), q.mean)
    # The sum over an event goes another way round in float32.
    assert torch.allclose(p.log_prob(x), q.log_prob(x.flatten(1)), rtol=1e-5)


def test_an_mlp_that_judges_images_is_one_of_their_pixels():
    images, pixels = (MLPDiscriminator(shape, width=8, depth=2, given_features=2) for shape in (SHAPE, 192))
    pixels.load_state_dict(images.state_dict())
    x, given = torch.randn(5, *SHAPE), torch.randn(5, 2)
    assert torch.equal(images(x, given=given), pixels(x.flatten(1), given=given))
    with pytest.raises(ValueError, match=r"x must be \(B, 3, 8, 8\); got shape \(5, 192\)"):
        images(x.flatten(1), given=given)


def test_flat_is_for_images_too():
    stage = built("--data", "stacked-digits", "--flat")
    x = stage.model.sample(6)
    assert x.shape == (6, *SHAPE) and x.abs().max() <= 1
    assert isinstance(stage.model.generator, MLPDecoder) and stage.model.critic(x).shape == (6,)
    total, _ = stage.players[1](x)
    assert total.isfinite()


def test_points_have_an_mlp_whatever_is_asked():
    recipe = load_recipe("gan")
    settings = parse(recipe.Settings, ["--data", "25-gaussians", "--width", "8"], "gan")
    (stage,) = recipe.build(settings, load_data("25-gaussians"))
    assert isinstance(stage.model.generator, MLPDecoder) and stage.model.sample(6).shape == (6, 2)


@pytest.mark.parametrize("final", ["0.1", "0.02", "0", "1"])
def test_the_learning_rate_ends_at_its_share(final):
    stage = built("--steps", "100", "--final-lr", final)
    assert all(player.lr(0, 100) == 1 and player.lr(99, 100) == pytest.approx(float(final)) for player in stage.players)


@pytest.mark.slow
def script(name, monkeypatch):
    """scripts/studies/NAME.py as a module."""
    file = Path(__file__).parents[2] / "scripts" / "studies" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_study", file)
    study = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, study)  # dataclasses look their module up by name
    spec.loader.exec_module(study)
    return study


@pytest.mark.slow
def test_the_study_of_collapse_writes_its_table_and_trains_nothing_twice(tmp_path, monkeypatch, capsys):
    study = script("collapse", monkeypatch)
    for data, each in study.STUDIES.items():
        short = re.sub(r"--steps \d+", "--steps 2", each.words)
        monkeypatch.setitem(study.STUDIES, data, replace(each, words=short, samples=1000))
    monkeypatch.setattr(sys, "argv", ["collapse.py", "--out", str(tmp_path)])
    study.main()
    rows = json.loads((tmp_path / "collapse.json").read_text())
    assert [(row["data"], row["loss"]) for row in rows] == [
        (data, loss) for data in study.STUDIES for loss in ("real", *study.LOSSES)
    ]
    assert all(row["accepted"] is False for row in rows if row["loss"] == study.CURED)
    assert (tmp_path / "collapse.png").stat().st_size > 10_000
    lines = (tmp_path / "collapse.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(rows) + 2 * len(study.STUDIES)
    assert capsys.readouterr().out.count("effective batch") == 6
    study.main()
    assert "effective batch" not in capsys.readouterr().out
    assert json.loads((tmp_path / "collapse.json").read_text()) == rows


@pytest.mark.slow
def test_the_study_of_connections_has_a_row_a_run_and_one_for_the_autoencoder_alone(tmp_path, monkeypatch, capsys):
    study = script("connections", monkeypatch)
    for name, each in study.STUDIES.items():
        short = re.sub(r"(steps) \d+", r"\1 2", each.words)
        monkeypatch.setitem(study.STUDIES, name, replace(each, words=short))
    monkeypatch.setattr(study, "SAMPLES", {data: 1000 if n else 0 for data, n in study.SAMPLES.items()})
    monkeypatch.setattr(sys, "argv", ["connections.py", "--out", str(tmp_path)])
    study.main()
    rows = json.loads((tmp_path / "connections.json").read_text())
    found = [row["model"] for row in rows]
    assert sorted(found) == sorted([*study.STUDIES, *["real"] * 3, "its autoencoder, N(0, I)"])
    assert all(
        row["reached"] is False for row in rows if study.STUDIES.get(row["model"], study.Study("", "", "")).least
    )
    assert all("kl_floor" in row for row in rows if row["data"] == "stacked-digits")
    assert (tmp_path / "connections.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("effective batch") == len(study.STUDIES)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--data", "25-gaussians"])
    study.main()
    assert "effective batch" not in capsys.readouterr().out
