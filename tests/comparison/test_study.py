import json

import pytest
import torch
from PIL import Image

from hybrids.comparison.study import cpu_seconds, save_panels, table, train_once

WORDS = "--data 8-gaussians --steps 3 --width 8 --batch-size 16 --device cpu --checkpoint-every 2".split()


def test_a_run_is_trained_once_and_its_cpu_time_kept(tmp_path, capsys):
    run = tmp_path / "runs" / "vae"
    assert cpu_seconds(run) == 0
    train_once("vae", WORDS, run)
    spent, summary = cpu_seconds(run), (run / "summary.json").read_text()
    assert spent > 0 and json.loads(summary)["steps"] == 3
    assert str(run) in capsys.readouterr().out
    train_once("vae", WORDS, run)
    assert (cpu_seconds(run), (run / "summary.json").read_text()) == (spent, summary)
    assert capsys.readouterr().out == ""


def test_a_run_that_was_stopped_goes_on_and_its_cpu_time_adds_up(tmp_path, monkeypatch):
    run = tmp_path / "vae"
    (run / "cpu_seconds.json").parent.mkdir()
    (run / "cpu_seconds.json").write_text("100.0\n")
    train_once("vae", WORDS, run)
    assert 100 < cpu_seconds(run) < 200
    monkeypatch.setattr("hybrids.comparison.study.experiment", lambda *_: 75)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(SystemExit, match="75"):
        train_once("vae", WORDS, tmp_path / "stopped")
    assert cpu_seconds(tmp_path / "stopped") > 0


def test_a_table_has_all_columns_in_order_of_appearance():
    rows = [{"model": "real", "kl": 0.0199999}, {"model": "GAN", "modes": 1000.0, "reached": False, "kl": 1.5}]
    assert table(rows).splitlines() == [
        "| model | kl | modes | reached |",
        "| --- | --- | --- | --- |",
        "| real | 0.02 |  |  |",
        "| GAN | 1.5 | 1000 | no |",
    ]


def test_panels_of_images_and_of_points_are_drawn(tmp_path):
    save_panels([[("images", torch.zeros(4, 3, 8, 8))], [("points", torch.randn(50, 2)), ("more", torch.randn(50, 2))]],
         tmp_path / "panels.png")  # fmt: skip
    assert Image.open(tmp_path / "panels.png").size == (600, 700)
