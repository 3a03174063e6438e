import math

import pytest

from hybrids.comparison.page.columns import Cell, Column, columns, common_floor, headlines, leader
from hybrids.comparison.page.panels import even


def column(better, *cells, real=None):
    return Column("m", "M", "quality", better, "", "", tuple(Cell(v, None, *ends) for v, *ends in cells), Cell(real))


@pytest.mark.parametrize(
    ("better", "cells", "real", "first"),
    [
        ("lower", [(1.0, 0.9, 1.1), (1.3, 1.2, 1.4)], None, 0),
        ("higher", [(1.0, 0.9, 1.1), (1.3, 1.2, 1.4)], None, 1),
        ("lower", [(1.0, 0.9, 1.25), (1.3, 1.2, 1.4)], None, None),
        ("lower", [(1.0, 0.9, 1.2), (1.3, 1.2, 1.4)], None, None),
        # The second is apart, the third is uncertain: open.
        ("lower", [(1.0, 0.9, 1.1), (1.3, 1.2, 1.4), (2.0, 1.0, 3.0)], None, None),
        # Without an interval nobody knows.
        ("lower", [(1.0, None, None), (9.0, 8.9, 9.1)], None, None),
        ("lower", [(1.0, 0.9, 1.1), (9.0, None, None)], None, None),
        # Diverged or missing ones are no rivals; alone there is no contest.
        ("lower", [(1.0, 0.9, 1.1), (1.3, 1.2, 1.4), (math.nan, None, None), (None, None, None)], None, 0),
        ("lower", [(1.0, 0.9, 1.1), (math.inf, None, None)], None, None),
        ("neither", [(1.0, 0.9, 1.1), (1.3, 1.2, 1.4)], None, None),
        # Distance to real: 0.02 at most 0.07 against 0.1 at least; then the interval that holds real reaches to 0.
        ("real", [(0.98, 0.93, 1.03), (1.2, 1.1, 1.3)], 1.0, 0),
        ("real", [(1.2, 0.8, 1.6), (1.06, 1.05, 1.07)], 1.0, None),
        ("real", [(0.98, 0.93, 1.03), (1.2, 1.1, 1.3)], None, None),
    ],
)
def test_who_leads(better, cells, real, first):
    assert leader(column(better, *cells, real=real)) == first


def test_a_recipe_that_lost_a_seed_does_not_lead():
    """The mean of its others is no rival, however good; and where it is left with one other there is no contest."""
    lost = Cell(0.1, None, 0.05, 0.15, (0.1, math.nan))
    second, third = Cell(1.0, None, 0.9, 1.1, (1.0,)), Cell(2.0, None, 1.9, 2.1, (2.0,))
    given = ("m", "M", "quality", "lower", "", "")
    assert leader(Column(*given, (lost, second, third), Cell())) == 1
    assert leader(Column(*given, (lost, second), Cell())) is None


def test_cells_are_of_seeds_or_of_the_only_run(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    vae = report["recipes"][0]
    cell = {c.name: c for c in columns(report)}["frechet"].cells[0]
    assert cell.value == vae["summary"]["frechet"]["mean"] and cell.low == vae["summary"]["frechet"]["low"]
    assert cell.seeds == tuple(run["figures"]["frechet"]["value"] for run in vae["runs"]) and cell.planned == 3
    one = made_up.report(tmp_path, recipes=("vae", "gan"), seeds=(5,))
    found = {c.name: c for c in columns(one)}
    figure = one["recipes"][0]["runs"][0]["figures"]["frechet"]
    assert (found["frechet"].cells[0].low, found["frechet"].cells[0].high) == (figure["low"], figure["high"])
    assert "worst_seed" not in found


def test_the_worst_seed_is_one_that_diverged(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    worst = columns(report)[-1]
    assert worst.name == "worst_seed" and worst.axis == "stability"
    assert worst.cells[0].value == max(run["figures"]["frechet"]["value"] for run in report["recipes"][0]["runs"])
    report["recipes"][0]["runs"][1]["figures"]["frechet"]["value"] = math.nan
    lost = columns(report)
    assert math.isnan(lost[-1].cells[0].value) and lost[-1].cells[0].lost == 1


def test_why_there_is_no_number(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    report["recipes"].append(made_up.refused("wgan", "WGAN", "too small"))
    report["recipes"][1]["runs"][0]["missing"] = {"probe": "inversion was not asked for"}
    found = {c.name: c for c in columns(report)}
    assert found["bits_per_dim"].cells[1].why == "the model gives neither a likelihood nor a bound of it"
    assert found["probe"].cells[1].why == "inversion was not asked for"
    assert found["frechet"].cells[2].why == "refused: too small"


def test_one_headline_an_axis_that_somebody_has(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("gan",))
    chosen = headlines(columns(report))
    assert [c.name for c in chosen] == ["frechet", "coverage", "high_frequency", "samples_per_second", "worst_seed"]


def test_points_are_told_by_the_share_of_high_quality_and_by_the_kl_of_modes():
    names = {"frechet": "quality", "high_quality": "quality", "recall": "coverage", "kl": "coverage"}
    found = [Column(name, "", axis, "lower", "", "", (Cell(1.0),), Cell()) for name, axis in names.items()]
    assert [column.name for column in headlines(found)] == ["high_quality", "kl"]
    # What nobody has is no headline.
    found[1] = Column("high_quality", "", "quality", "higher", "", "", (Cell(),), Cell())
    assert [column.name for column in headlines(found)] == ["frechet", "kl"]


def test_one_finished_seed_has_no_worst(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    vae = report["recipes"][0]
    vae["runs"] = vae["runs"][:1]
    vae["summary"] = made_up.summarized(vae["runs"])
    worst = columns(report)[-1]
    assert worst.cells[0].value is None and worst.cells[0].why == "takes two finished runs at least"
    assert worst.cells[1].value == report["recipes"][1]["summary"]["frechet"]["worst"]


def test_the_floor_is_that_of_as_many_examples_as_the_recipes_have_samples(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    frechet = {c.name: c for c in columns(report)}["frechet"]
    assert common_floor(frechet) == 0.41
    for recipe in report["recipes"]:
        for run in recipe["runs"]:
            run["figures"]["frechet"]["floor"] = 0.2
    assert common_floor({c.name: c for c in columns(report)}["frechet"]) == 0.2
    # Of several that one recipe's runs have it is the least.
    report["recipes"][1]["runs"][0]["figures"]["frechet"]["floor"] = 0.3
    assert {c.name: c for c in columns(report)}["frechet"].cells[1].floor == 0.2
    for run in report["recipes"][1]["runs"]:
        run["figures"]["frechet"]["floor"] = 0.3
    assert common_floor({c.name: c for c in columns(report)}["frechet"]) == 0.41


def test_panels_are_dealt_to_rows_of_about_one_length():
    assert [even(n) for n in (0, 1, 4, 5, 6, 7, 8, 11, 15)] == [0, 1, 4, 5, 3, 4, 4, 4, 5]
