import json
import math

import pytest
import torch

from hybrids.comparison.stability import collapsed, of_run, spikes, spread


def write(run, losses, norms=None, ended=True, more=()):
    """A run folder with one line a loss; norms by player."""
    run.mkdir(exist_ok=True)
    lines = [{"step": 10 * (i + 1), "loss/a": loss, "lr/a": 1e-3} for i, loss in enumerate(losses)]
    for player, values in (norms or {}).items():
        for line, value in zip(lines, values):
            line[f"grad_norm/{player}"] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    if ended:
        (run / "summary.json").write_text("{}")
    return run


def test_a_quiet_run(tmp_path):
    found = of_run(write(tmp_path / "run", [1.0] * 12, {"a": [2.0] * 12, "b": [0.1] * 12}))
    assert found == {
        "ended": 1, "diverged": 0, "not_finite": 0, "lines": 12, "steps": 120, "grad_norms": 24, "spikes": 0,
    }  # fmt: skip


def test_spikes_of_all_players_together(tmp_path):
    """Of the 7 norms a player has after its first five, two are spikes of one and one of the other."""
    a = [1, 1, 1, 1, 1, 1, 11, 1, 1, 100, 1, 9.9]
    b = [5, 5, 5, 5, 5, 5, 49, 51, 5, 5, 5, 5]
    found = of_run(write(tmp_path / "run", [1.0] * 12, {"a": a, "b": b}))
    assert found["spikes"] == 3 / 14


def test_the_median_runs():
    """Norms that grow tenfold, or fall, are unusual once; those before the sixth are not judged."""
    assert spikes([1] * 5) == []
    assert spikes([1] * 6 + [11] * 7) == [False] + [True] * 6 + [False]
    assert not any(spikes([1000 * 0.9**i for i in range(100)]))
    # A window of 50: the median forgets what was 50 norms ago.
    assert spikes([1000] * 60 + [1] * 60 + [11])[-1] and not spikes([1000] * 60 + [1] * 20 + [11])[-1]
    assert spikes([1, 1, math.nan, 1, 1, 1, math.inf, 1]) == [True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite(tmp_path, bad):
    found = of_run(write(tmp_path / "run", [1.0, bad, 2.0], ended=False))
    assert found["diverged"] == 1 and found["not_finite"] == 1 and found["ended"] == 0
    assert "spikes" not in found and found["grad_norms"] == 0


def test_a_norm_that_is_not_finite(tmp_path):
    found = of_run(write(tmp_path / "run", [1.0] * 7, {"a": [1.0] * 6 + [math.nan]}))
    assert found["diverged"] == 1 and found["not_finite"] == 1 and found["spikes"] == 1 / 2


def test_evaluations_and_a_line_cut_off_are_passed_over(tmp_path):
    run = write(tmp_path / "run", [1.0, 2.0], more=[{"step": 500, "evaluation/nats": math.nan}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss/a": 1')
    found = of_run(run)
    assert found["lines"] == 2 and found["steps"] == 20 and found["diverged"] == 0


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics.jsonl"):
        of_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "evaluation/kl": 1.0}\n')
    with pytest.raises(ValueError, match="no line with a loss"):
        of_run(str(tmp_path))


def test_the_spread_of_three():
    """By hand: 1, 2, 6 have mean 3 and std √7; t of two degrees of freedom is 4.302653 (its 0.975 quantile)."""
    found = spread([1, 2, 6])
    half = 4.302653 * math.sqrt(7 / 3)
    assert found["mean"] == 3 and found["std"] == pytest.approx(math.sqrt(7)) and found["runs"] == 3
    assert found["low"] == pytest.approx(3 - half, rel=1e-6) and found["high"] == pytest.approx(3 + half, rel=1e-6)


@pytest.mark.parametrize("better,worst", [("lower", 6), ("higher", 1), ("real", 1), ("neither", None)])
def test_the_worst_is_by_direction(better, worst):
    assert spread([1, 5, 6], better, real=4.5)["worst"] == worst


def test_one_run_has_no_interval():
    assert spread([2.5]) == {"mean": 2.5, "std": None, "low": None, "high": None, "worst": 2.5, "runs": 1}


def test_the_interval_holds_the_mean_in_95_of_100():
    """Of Gaussian values exactly; 4000 draws of n = 3 have a standard error of √(.95 × .05/4000) = .0034."""
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = [found["low"] < 0 < found["high"] for found in map(spread, draws.tolist())]
    assert abs(sum(held) / 4000 - 0.95) < 4 * 0.0034


@pytest.mark.parametrize(
    "values,options,said",
    [
        ([], {}, "at least one finite"),
        ([1.0, math.nan], {}, "finite"),
        ([1.0], {"better": "real"}, "needs real"),
        ([1.0], {"better": "up"}, "lower, higher, real, neither; got 'up'"),
    ],
)
def test_a_spread_of_nothing_is_refused(values, options, said):
    with pytest.raises(ValueError, match=said):
        spread(values, **options)


def test_the_share_that_collapsed():
    runs = [{"modes": 25}, {"modes": 3}, None, {"modes": 24}]
    assert collapsed(runs, lambda figures: figures["modes"] < 13) == 0.5
    assert collapsed(runs[:1], lambda figures: figures["modes"] < 13) == 0
    with pytest.raises(ValueError, match="at least one"):
        collapsed([], bool)
