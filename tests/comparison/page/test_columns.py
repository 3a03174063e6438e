"""What the tables say: cells and columns, who leads, why numbers are missing, rounding, the CSV."""

import csv
import math
import random

import pytest

from hybrids.comparison.page.columns import (
    Cell,
    Column,
    Entry,
    Floor,
    common_floor,
    csv_text,
    decimal_places,
    headlines,
    integer,
    interval,
    leader,
    make_table,
    plus_minus,
    read_columns,
    rounded,
)


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
    cell = {c.name: c for c in read_columns(report)}["frechet"].cells[0]
    assert cell.value == vae["summary"]["frechet"]["mean"] and cell.low == vae["summary"]["frechet"]["low"]
    assert cell.seeds == tuple(run["figures"]["frechet"]["value"] for run in vae["runs"]) and cell.planned == 3
    one = made_up.report(tmp_path, recipes=("vae", "gan"), seeds=(5,))
    found = {c.name: c for c in read_columns(one)}
    figure = one["recipes"][0]["runs"][0]["figures"]["frechet"]
    assert (found["frechet"].cells[0].low, found["frechet"].cells[0].high) == (figure["low"], figure["high"])
    assert "worst_seed" not in found


def test_the_worst_seed_is_one_that_diverged(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    worst = read_columns(report)[-1]
    assert worst.name == "worst_seed" and worst.axis == "stability"
    assert worst.cells[0].value == max(run["figures"]["frechet"]["value"] for run in report["recipes"][0]["runs"])
    report["recipes"][0]["runs"][1]["figures"]["frechet"]["value"] = math.nan
    lost = read_columns(report)
    assert math.isnan(lost[-1].cells[0].value) and lost[-1].cells[0].lost == 1


def test_why_there_is_no_number(made_up, tmp_path):
    """The recipe's reason, else its runs', else what became of it; an old report has none of these."""
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    report["recipes"].append(made_up.refused("wgan", "WGAN", "too small"))
    gan = report["recipes"][1]

    def whys():
        return {c.name: [cell.why for cell in c.cells] for c in read_columns(report)}

    assert whys()["bits_per_dim"] == ["", "the model offers neither nll nor bound", "refused: too small"]
    assert whys()["factor_vae"][:2] == ["these data have no factors"] * 2
    gan["missing"] = {}
    assert whys()["probe"][1] == "the model offers no encode"
    for run in gan["runs"]:
        run |= {"figures": {}, "missing": {"samples": "some samples are not finite"}}
    gan["summary"] = {}
    assert whys()["frechet"][1] == "some samples are not finite"
    del gan["missing"]
    for run in gan["runs"]:
        del run["missing"]
    assert whys()["probe"][1] == "not defined for this model on these data, or not measured"


def test_a_metric_of_ones_own_needs_a_name_alone(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    report["metrics"].append({"name": "bare"})
    every = {c.name: c for c in read_columns(report)}
    own, bare = every["my own/metric"], every["bare"]
    assert (own.label, own.axis, own.anchor) == ("My own/metric", "my axis", "metric-my-own-metric")
    assert own.cells[0].value == report["recipes"][0]["summary"]["my own/metric"]["mean"]
    assert (bare.label, bare.axis, bare.better, bare.measured) == ("Bare", "other", "", False)
    assert own in headlines(list(every.values()))


def test_one_headline_an_axis_that_somebody_has(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("gan",))
    chosen = headlines(read_columns(report))
    names = ["frechet", "coverage", "high_frequency", "samples_per_second", "worst_seed", "my own/metric"]
    assert [c.name for c in chosen] == names


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
    worst = read_columns(report)[-1]
    assert worst.cells[0].value is None and worst.cells[0].why == "needs at least two finished runs"
    assert worst.cells[1].value == report["recipes"][1]["summary"]["frechet"]["worst"]


def test_the_floor_is_that_of_as_many_examples_as_the_recipes_have_samples(made_up, tmp_path):
    """The one that all recipes share, else that of real data; of a recipe's runs the mean, of its spread too."""
    report = made_up.report(tmp_path, recipes=("vae", "gan"))
    runs = [run["figures"]["frechet"] for recipe in report["recipes"] for run in recipe["runs"]]

    def frechet():
        return {c.name: c for c in read_columns(report)}["frechet"]

    for figure in runs:
        figure |= {"floor": 0.2, "floor_spread": 0.03}
    assert common_floor(frechet()) == Floor(0.2, 0.03)
    runs[3] |= {"floor": 0.5, "floor_spread": 0.06}
    assert frechet().cells[1].floor == Floor(pytest.approx(0.3), pytest.approx(0.04))
    assert common_floor(frechet()) == Floor(0.41, pytest.approx(0.041))
    # Old reports have no spread.
    for figure in runs:
        del figure["floor_spread"]
    assert frechet().cells[0].floor == Floor(0.2, None)


def read(text: str) -> float:
    """What a reader takes a written number for."""
    digits = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    mantissa, _, power = text.replace("−", "-").replace(",", "").partition(" × 10")
    return float(mantissa) * 10.0 ** int(power.translate(digits) or 0)


@pytest.mark.parametrize(
    ("value", "low", "high", "text", "spread"),
    [
        (1.0, 0.9, 1.1, "1.00", "[0.90, 1.10]"),
        (12.3456, 11.9, 12.8, "12.3", "[11.9, 12.8]"),
        (5.27, 4.9, 5.6, "5.3", "[4.9, 5.6]"),
        (8734.0, 8012.0, 9388.0, "8,700", "[8,000, 9,400]"),
        (-0.0123, -0.0125, -0.0121, "−0.01230", "[−0.01250, −0.01210]"),
        (0.5, 0.5, 0.5, "0.500", ""),
        (0.98765, None, None, "0.988", ""),
        (0.0, None, None, "0", ""),
        (1.3e12, None, None, "1.30 × 10¹²", ""),
        (2.5e-6, None, None, "2.50 × 10⁻⁶", ""),
        # The ends are written as the value is, whatever they would be alone.
        (0.00012, 0.00005, 0.00019, "0.00012", "[0.00005, 0.00019]"),
        (1.1e7, 0.9e7, 1.3e7, "1.10 × 10⁷", "[0.90 × 10⁷, 1.30 × 10⁷]"),
        (math.nan, None, None, "diverged", ""),
        (-math.inf, 0.0, 1.0, "diverged", ""),
        (1.0, math.nan, 2.0, "1.00", ""),
    ],
)
def test_numbers_are_written_to_what_their_uncertainty_carries(value, low, high, text, spread):
    assert rounded(value, low, high) == text
    assert interval(value, low, high) == spread


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (1.5634, 0.2371, "1.56 ± 0.24"),
        (0.4, 0.05, "0.40 ± 0.05"),
        (0.0004, 0.00005, "0.00040 ± 0.00005"),
        (4.0e-5, 6.0e-6, "4.0 × 10⁻⁵ ± 0.6 × 10⁻⁵"),
        (1.56, None, "1.56"),
        (1.56, 0.0, "1.56"),
        (1.56, math.nan, "1.56"),
        (math.nan, 0.1, "diverged"),
    ],
)
def test_a_floor_is_written_with_its_spread(value, spread, text):
    assert plus_minus(value, spread) == text


def test_counts_are_whole():
    assert [rounded(v, count=True) for v in (25.0, 1000.0, 24.67)] == ["25", "1,000", "24.7"]
    assert [integer(v) for v in (64000, 0, None, 1_234_567, 1e12)] == ["64,000", "0", "–", "1,234,567", "1.00 × 10¹²"]


def test_rounding_costs_at_most_a_sixth_of_the_half_width_and_keeps_no_idle_digits():
    """At half-width h the last digit is at most h/3, so rounding errs by h/6 at most; and it is h/30 at least."""
    rng = random.Random(0)
    for _ in range(2000):
        value = rng.choice((-1, 1)) * 10 ** rng.uniform(-3.5, 6.5)
        half = abs(value) * 10 ** rng.uniform(-3, 0)
        unit = 10.0 ** -decimal_places(value, value - half, value + half)
        assert half / 30 <= unit * (1 + 1e-9) and unit <= half / 3 * (1 + 1e-9)
        assert abs(read(rounded(value, value - half, value + half)) - value) <= half / 6 * (1 + 1e-6)


def test_three_significant_digits_without_an_interval():
    rng = random.Random(1)
    for _ in range(2000):
        value = rng.choice((-1, 1)) * 10 ** rng.uniform(-12, 15)
        assert abs(read(rounded(value)) / value - 1) <= 0.00501


def test_a_true_minus_and_no_negative_zero():
    assert rounded(-1.5) == "−1.50"
    assert rounded(-0.0001, -10.0, 10.0) == "0"


def test_the_columns_of_the_csv_and_what_is_of_a_recipe_or_of_a_run():
    figure = {"value": 1.0, "floor": 0.5, "floor_spread": 0.1, "low": 0.75, "high": 1.25}
    run = {"seed": 0, "state": "failed", "why": "late", "steps": 10, "images": 640, "seconds": 2.0, "flops": 5.0,
           "figures": {"m": figure}, "missing": {"n": "has no n; nor o"}}  # fmt: skip
    one = {"recipe": "vae", "title": "V, A", "family": "VAE", "state": "partial", "why": "some", "parameters": 100,
           "runs": [run], "missing": {"n": "none", "o": "no o"}}  # fmt: skip
    none = one | {"recipe": "gan", "state": "refused", "why": "small", "parameters": None, "runs": [], "missing": {}}
    report = {"metrics": [{"name": "m"}], "real": {"m": figure}, "recipes": [one, none]}
    head, real, first, second = csv.reader(csv_text(report).splitlines())
    assert head == ["recipe", "title", "family", "seed", "state", "why", "parameters", "steps", "images", "seconds",
                    "flops", "m", "m_floor", "m_floor_spread", "m_low", "m_high", "missing"]  # fmt: skip
    numbers = ["1.0", "0.5", "0.1", "0.75", "1.25"]
    assert real == ["real", "Real data", *[""] * 9, *numbers, ""]
    assert first == ["vae", "V, A", "VAE", "0", "failed", "late", "100", "10", "640", "2.0", "5.0", *numbers,
                     "n: has no n; nor o; o: no o"]  # fmt: skip
    assert second == ["gan", "V, A", "VAE", "", "refused", "small", *[""] * 11]


def test_cells_name_the_runs_that_were_lost_and_a_floor_of_their_own():
    """Three runs were planned: of two one diverged; only one finished; all did, against another floor."""
    floor = Floor(0.1, 0.02)
    cells = [
        Cell(1.0, floor, None, None, (1.0, math.nan), 3),
        Cell(2.0, floor, None, None, (2.0,), 3),
        Cell(3.0, Floor(0.3, 0.04), 2.0, 4.0, (2.5, 3.0, 3.5), 3),
        Cell(math.nan, floor, None, None, (math.nan, math.inf, 1.5), 3),
        Cell(why="has none"),
    ]
    shown = make_table("", [Column("m", "M", "quality", "lower", "", "", tuple(cells), Cell(0.2, floor))])
    assert shown.real == {"Real data": [Entry("0.200", [])], "Noise floor": [Entry("0.100 ± 0.020", [])]}
    assert [row for (row,) in shown.rows] == [
        Entry("1.00", ["1 of 2 diverged"]),
        Entry("2.00", ["1 of 3 runs"]),
        Entry("3.0", ["[2.0, 4.0]", "floor 0.30 ± 0.04"]),
        Entry("diverged", ["2 of 3 runs"], "diverged"),
        Entry("–", [], "none", "has none"),
    ]


def test_reasons_are_listed_once_in_the_order_of_reading():
    cells = [Cell(why=why) for why in "bca"], [Cell(why=why) for why in "dcb"]
    shown = make_table("", [Column(n, n, "quality", "lower", "", "", tuple(c), Cell()) for n, c in zip("mn", cells)])
    assert shown.reasons == ["b", "d", "c", "a"] and shown.real == {}


def test_real_data_have_a_reason_too(made_up, tmp_path):
    report = made_up.report(tmp_path, recipes=("vae",))
    report["real_missing"] = {"probe": "takes a model"}
    every = {c.name: c for c in read_columns(report)}
    shown = make_table("", [every[name] for name in ("frechet", "probe", "spikes")])
    assert shown.real["Real data"][1:] == [Entry("–", [], "none", "takes a model"), Entry("", [])]
    assert shown.reasons == ["takes a model"]
