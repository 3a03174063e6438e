"""What the charts draw: the numbers of the report, each on its own axis."""

import math

import pytest

from hybrids.comparison.page import charts as module
from hybrids.comparison.page.columns import headlines, read_columns


@pytest.fixture
def drawn(made_up, tmp_path, monkeypatch):
    """(report, its columns, {name: figure}) of two recipes with two seeds."""
    figures = []
    monkeypatch.setattr(module, "png", lambda figure: figures.append(figure) or b"")
    report = made_up.report(tmp_path, recipes=("vae", "ddpm"), seeds=(0, 1))
    found = read_columns(report)
    names = [picture.name for picture in module.plot_charts(report, found)]
    assert names == ["axes.png", "sampling.png", "training.png", "coverage-sharpness.png"]
    return report, found, dict(zip(names, figures))


def thick(axes):
    """The lines that are means, as their points."""
    lines = [line for line in axes.get_lines() if line.get_linewidth() == 1.8]
    return [list(zip(line.get_xdata(), line.get_ydata())) for line in lines]


def dots(axes):
    return [tuple(point) for group in axes.collections for point in group.get_offsets().tolist()]


def mean(recipe, key, name, i):
    runs = recipe["runs"]
    return sum(run[key][i][name] for run in runs) / len(runs)


def test_training_is_the_mean_of_the_seeds_over_their_seconds(drawn):
    report, _, figures = drawn
    (axes,) = figures["training.png"].axes
    expected = [
        [(mean(recipe, "curve", "seconds", i), mean(recipe, "curve", "frechet", i)) for i in range(5)]
        for recipe in report["recipes"]
    ]
    assert thick(axes) == [[pytest.approx(point) for point in line] for line in expected]
    assert axes.get_xlabel() == "Training time (s)" and axes.get_ylabel() == "Fréchet distance ↓"


def test_a_seed_s_gap_is_a_gap_in_the_mean(made_up, tmp_path, monkeypatch):
    """Points are averaged with those of the same checkpoint, whatever another seed lacks."""
    figures = []
    monkeypatch.setattr(module, "png", lambda figure: figures.append(figure) or b"")
    report = made_up.report(tmp_path, recipes=("vae",), seeds=(0, 1))
    runs = report["recipes"][0]["runs"]
    runs[1]["curve"][0]["frechet"] = "nan"
    module.plot_charts(report, read_columns(report))
    (axes,) = next(figure for figure in figures if figure.axes[0].get_xlabel() == "Training time (s)").axes
    (line,) = thick(axes)
    assert math.isnan(line[0][1])
    expected = [sum(run["curve"][i]["frechet"] for run in runs) / 2 for i in range(1, 5)]
    assert [y for _, y in line[1:]] == pytest.approx(expected)


def test_sampling_is_over_evaluations_and_over_speed(drawn):
    """A chain is a line; a model of one number a point, at what it costs and what it reaches."""
    report, found, figures = drawn
    by_name = {column.name: column for column in found}
    ddpm = report["recipes"][1]
    for axes, name in zip(figures["sampling.png"].axes, ("evaluations", "samples_per_second")):
        point, line = thick(axes)
        expected = [(mean(ddpm, "evaluations_curve", name, i), mean(ddpm, "evaluations_curve", "frechet", i))
                    for i in range(6)]  # fmt: skip
        assert line == [pytest.approx(p) for p in sorted(expected)]
        assert point == [pytest.approx((by_name[name].cells[0].value, by_name["frechet"].cells[0].value))]


def test_coverage_is_up_and_sharpness_across(drawn):
    report, _, figures = drawn
    (axes,) = figures["coverage-sharpness.png"].axes
    assert axes.get_xlabel().startswith("High frequencies") and axes.get_ylabel() == "Coverage ↑"
    for recipe in report["recipes"]:
        expected = [recipe["summary"][name]["mean"] for name in ("high_frequency", "coverage")]
        assert any(point == pytest.approx(expected) for point in dots(axes))


def test_each_axis_shows_means_seeds_intervals_real_data_and_the_floor(drawn):
    report, found, figures = drawn
    column = headlines(found)[0]
    axes = figures["axes.png"].axes[0]
    assert column.name == "frechet" and axes.get_title(loc="left") == "Fréchet distance"
    across = {line.get_linestyle(): line.get_xdata()[0] for line in axes.get_lines() if line.get_linewidth() == 1.2}
    assert across == {"-": report["real"]["frechet"]["value"], "--": report["real"]["frechet"]["floor"]}
    (band,) = axes.patches
    spread = report["real"]["frechet"]["floor_spread"]
    assert (band.get_x(), band.get_width()) == (pytest.approx(0.41 - spread), pytest.approx(2 * spread))
    ends = [tuple(line.get_xdata()) for line in axes.get_lines() if line.get_linewidth() == 2.2]
    for i, (cell, (low, high)) in enumerate(zip(column.cells, ends, strict=True)):
        assert high == pytest.approx(cell.high) and (low == pytest.approx(cell.low) or cell.low <= 0)
        places = [x for x, y in dots(axes) if y == i]
        assert sorted(places) == pytest.approx(sorted([*cell.seeds, cell.value]))


def test_a_floor_is_drawn_where_all_points_share_it(drawn):
    report, _, figures = drawn
    (axes,) = figures["training.png"].axes
    assert [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"] == [0.3]
    (band,) = axes.patches
    assert (band.get_y(), band.get_height()) == (pytest.approx(0.28), pytest.approx(0.04))
    report["recipes"][0]["runs"][0]["curve"][0]["frechet_floor"] = 0.2
    assert module._floor(report, "curve", "frechet") is None
    # Old reports know no spread.
    for recipe in report["recipes"]:
        for run in recipe["runs"]:
            for point in run["curve"]:
                point["frechet_floor"] = point.pop("frechet_floor_spread") and 0.3
    assert module._floor(report, "curve", "frechet") == (0.3, None)


def test_a_metric_of_ones_own_has_a_panel(drawn):
    _, found, figures = drawn
    axes = figures["axes.png"].axes[len(headlines(found)) - 1]
    assert axes.get_title(loc="left") == "My own/metric"
    assert [text.get_text() for text in axes.texts] == ["my axis · better →"]
