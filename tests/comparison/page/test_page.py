"""Parts of the page by themselves: facts, warnings, cells of tables, rows of the comma-separated table, pictures."""

import csv
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from hybrids.comparison.page.columns import Cell, Column
from hybrids.comparison.page.comma import comma_separated
from hybrids.comparison.page.page import _budget, _how, _runs, _warning
from hybrids.comparison.page.panels import _cloud, _steps, panels
from hybrids.comparison.page.tables import adjectives, definitions, figures_of


def plain(markup):
    return " ".join(re.sub(r"<[^>]*>", " ", markup).replace("\u00a0", " ").split())


def rows(markup):
    """The texts of each row's cells."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", markup)
    return [[plain(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in found]


def column(better, *cells, real=None):
    return Column("m", "M", "quality", better, "", "Of m.", cells, Cell() if real is None else Cell(*real))


def recipes(n):
    return [{"title": f"R{i}", "family": f"R{i}", "state": "finished", "why": None, "runs": []} for i in range(n)]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("images", 64000, "64,000 images seen for each run"),
        ("seconds", 600.0, "600 s of training for each run"),
        ("flops", 1e12, "1.00 × 10¹² FLOPs of training for each run"),
    ],
)
def test_a_budget_has_its_unit(kind, value, said):
    assert _budget({"budget": {"kind": kind, "value": value}}) == said


def test_one_seed_is_not_called_a_mean_over_seeds():
    assert _how({"seeds": [0]}).startswith("One seed: ") and "mean over seeds" in _how({"seeds": [0, 1]})


def test_six_failures_are_named_and_more_are_counted():
    def said(n):
        failed = [one | {"state": "failed", "why": f"why {i}"} for i, one in enumerate(recipes(n))]
        return plain(_warning({"recipes": failed}))

    assert _warning({"recipes": recipes(3)}) == ""
    assert "R5 : failed: why 5" in said(6) and "more" not in said(6)
    assert "R5 : failed: why 5" in said(8) and "R6" not in said(8) and "and 2 more" in said(8)


def test_each_number_of_a_run_is_in_its_column():
    run = {
        "seed": 3,
        "state": "finished",
        "steps": 1000,
        "images": 64000,
        "seconds": 61.25,
        "flops": 1.3e12,
        "run": "r",
    }
    one = recipes(1)[0] | {"recipe": "vae", "parameters": 498_003, "words": "--width 8", "runs": [run, run]}
    head, first, second = rows(_runs({"recipes": [one]}))
    assert dict(zip(head, first)) == {
        "Recipe": "R0 vae", "Parameters": "498,003", "Settings": "--width 8", "Seed": "3", "State": "finished",
        "Steps": "1,000", "Images": "64,000", "Seconds": "61.2", "FLOPs": "1.30 × 10¹²", "Run": "r",
    }  # fmt: skip
    assert second == first[3:]


@pytest.mark.parametrize(("better", "sign"), [("lower", "↓ (lower is better)"), ("higher", "↑ (higher is better)"),
                                              ("real", "◎ (nearest to real)"), ("neither", "")])  # fmt: skip
def test_arrows_point_to_the_better_end(better, sign):
    head = rows(figures_of("", [column(better, Cell(1.0))], recipes(1)))[0]
    assert head == ["Recipe", f"M {sign}".strip()]
    told = rows(definitions([column(better, Cell(1.0))]))[1][2]
    assert told == (sign.replace("(", "").replace(")", "") or "told only")


def test_cells_say_which_runs_were_lost_and_what_floor_is_their_own():
    """Three runs were planned: of two one diverged; only one finished; all did, against another floor."""
    cells = [
        Cell(1.0, 0.1, None, None, (1.0, math.nan), 3),
        Cell(2.0, 0.1, None, None, (2.0,), 3),
        Cell(3.0, 0.3, 2.0, 4.0, (2.5, 3.0, 3.5), 3),
        Cell(math.nan, 0.1, None, None, (math.nan, math.inf, 1.5), 3),
        Cell(why="has none"),
    ]
    found = rows(figures_of("", [column("lower", *cells, real=(0.2, 0.1))], recipes(5)))
    assert found[1:3] == [["Real data", "0.200"], ["Noise floor", "0.100"]]
    assert [row[1] for row in found[3:]] == [
        "1.00 1 of 2 diverged", "2.00 1 of 3 runs", "3.0 [2.0, 4.0] floor 0.300", "diverged 2 of 3 runs", "– a",
    ]  # fmt: skip


def test_a_verdict_has_the_interval_of_its_number_and_of_no_other():
    """The mean of the cell with its interval; of another number three digits."""
    found = column("lower", Cell(2.0, None, 1.5, 2.5, (2.0,), 1))
    said = {"axis": "quality", "usual": "good", "recipe": "vae", "metric": "m", "verdict": "confirmed", "because": "b"}
    entries = [said | {"value": value} for value in (2.0, 4.5, None)]
    report = {"recipes": [recipes(1)[0] | {"recipe": "vae"}], "adjectives": entries}
    told = rows(adjectives(report, [found]))[1:]
    assert told[0] == ["Quality", "R0", "“good”", "M ↓ (lower is better)", "2.0 [1.5, 2.5]", "confirmed", "b"]
    assert [row[3] for row in told[1:]] == ["4.50", "–"]


def test_reasons_have_letters_and_then_numbers():
    cells = [Cell(why=f"why {i}") for i in (*range(28), 3)]
    marks = [row[1] for row in rows(figures_of("", [column("lower", *cells)], recipes(29)))[1:]]
    assert marks == [f"– {mark}" for mark in (*"abcdefghijklmnopqrstuvwxyz", "26", "27", "d")]


def test_the_columns_of_the_table_and_what_is_of_a_recipe_or_of_a_run():
    figure = {"value": 1.0, "floor": 0.5, "low": 0.75, "high": 1.25}
    run = {"seed": 0, "state": "failed", "why": "late", "steps": 10, "images": 640, "seconds": 2.0, "flops": 5.0,
           "figures": {"m": figure}}  # fmt: skip
    one = recipes(1)[0] | {"recipe": "vae", "state": "partial", "why": "some", "parameters": 100, "runs": [run]}
    none = recipes(1)[0] | {"recipe": "gan", "state": "refused", "why": "small", "parameters": None}
    report = {"metrics": [{"name": "m"}], "real": {"m": figure}, "recipes": [one, none]}
    head, real, first, second = csv.reader(comma_separated(report).splitlines())
    assert head == ["recipe", "title", "family", "seed", "state", "why", "parameters", "steps", "images", "seconds",
                    "flops", "m", "m_floor", "m_low", "m_high"]  # fmt: skip
    numbers = ["1.0", "0.5", "0.75", "1.25"]
    assert real == ["real", "Real data", *[""] * 9, *numbers]
    assert first == ["vae", "R0", "R0", "0", "failed", "late", "100", "10", "640", "2.0", "5.0", *numbers]
    assert second == ["gan", "R0", "R0", "", "refused", "small", *[""] * 9]


def test_originals_are_above_their_reconstructions(tmp_path):
    """Black above white: rows of cells of 64 pixels, two apart."""
    black = torch.full((3, 1, 8, 8), -1.0)
    save_file({"originals": black, "reconstructions": -black}, tmp_path / "seed-4.safetensors")
    run = {"seed": 4, "samples": "seed-4.safetensors"}
    (panel,) = panels({"shape": [1, 8, 8], "recipes": [{"title": "VAE", "runs": [{"seed": 3}, run]}]}, tmp_path)
    assert (panel.kind, panel.title, panel.note) == ("reconstructions", "VAE", "seed 4")
    assert panel.pixels.shape == (3, 2 + 2 * 66, 2 + 3 * 66)
    assert (panel.pixels[:, 2:66, 2:66] == 0).all() and (panel.pixels[:, 68:132, 2:66] == 1).all()


def test_a_way_is_a_row_from_left_to_right():
    shades = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 8, 8)
    pixels = _steps(shades, 2.5)
    assert [pixels[0, 30, 30 + 66 * i].item() for i in range(3)] == [0, 0.5, 1]
    assert pixels[0, 96, 30] == 0


def test_points_lie_where_they_are():
    """(2, 0.5) of a plane to ±2.5: nine tenths to the right, six tenths up."""
    ink = (_cloud(torch.tensor([[2.0, 0.5]]), 2.5) < 0.99).any(0).nonzero().float().mean(0)
    height, width = _cloud(torch.zeros(1, 2), 2.5).shape[1:]
    assert ink[1] / width == pytest.approx(0.9, abs=0.01) and ink[0] / height == pytest.approx(0.4, abs=0.01)
