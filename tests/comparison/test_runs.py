import json
import math

import pytest

from hybrids.comparison.runs import Run, progress, spikes, stability, timeline


def lines(folder, *entries):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_progress_and_time_are_read_from_the_log(tmp_path):
    assert progress(tmp_path) == 0 and timeline(tmp_path) == []
    lines(tmp_path, {"step": 5, "time/step_ms": 20.0}, {"step": 5, "evaluation/x": 1.0},
          {"step": 10, "time/step_ms": 10.0})  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "time')
    assert progress(tmp_path) == 10
    assert timeline(tmp_path) == [(5, pytest.approx(0.1)), (10, pytest.approx(0.15))]


@pytest.mark.parametrize(
    ("log", "code", "refused"),
    [
        ("refused: data: no labels\n", 2, True),
        ("refused: stopped at step 3: loss of player 'a' is not finite\n", 76, False),
        ("Traceback\nValueError: x\n", 1, False),
        ("", -9, False),
    ],
)
def test_a_run_that_a_nan_stops_has_failed_and_was_not_refused(tmp_path, log, code, refused):
    run = Run(tmp_path, "vae", 0)
    run.log.parent.mkdir(parents=True)
    run.log.write_text(log)
    outcome = run.ended(code)
    assert outcome["refused"] is refused and not run.finished()
    assert not outcome["why"].startswith("refused")


def test_a_run_has_finished_only_where_there_is_one(tmp_path):
    """A file of one's own that never starts an experiment ends well, too."""
    run = Run(tmp_path, "mine", 0)
    outcome = run.ended(0)
    assert outcome["code"] == 1 and "experiment.main(Settings, build)" in outcome["why"] and not run.finished()
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text("{}")
    assert run.ended(0)["why"] is None and run.finished()


def write(run, losses, norms=None):
    """A log with one line a loss; norms by player."""
    entries = [{"step": 10 * (i + 1), "loss/a": loss, "lr/a": 1e-3} for i, loss in enumerate(losses)]
    for player, values in (norms or {}).items():
        for entry, value in zip(entries, values):
            entry[f"grad_norm/{player}"] = value
    lines(run, *entries)
    return run


def test_spikes_of_all_players_together(tmp_path):
    """Of the 7 norms a player has after its first five, two are spikes of one and one of the other."""
    assert stability(write(tmp_path, [1.0] * 12, {"a": [2.0] * 12, "b": [0.1] * 12})) == {"diverged": 0, "spikes": 0}
    a = [1, 1, 1, 1, 1, 1, 11, 1, 1, 100, 1, 9.9]
    b = [5, 5, 5, 5, 5, 5, 49, 51, 5, 5, 5, 5]
    assert stability(write(tmp_path, [1.0] * 12, {"a": a, "b": b}))["spikes"] == 3 / 14


def test_the_median_runs():
    """Norms that grow tenfold, or fall, are unusual once; those before the sixth are not judged."""
    assert spikes([1] * 5) == []
    assert spikes([1] * 6 + [11] * 7) == [False] + [True] * 6 + [False]
    assert not any(spikes([1000 * 0.9**i for i in range(100)]))
    # A window of 50: the median forgets what was 50 norms ago.
    assert spikes([1000] * 60 + [1] * 60 + [11])[-1] and not spikes([1000] * 60 + [1] * 20 + [11])[-1]
    assert spikes([1, 1, math.nan, 1, 1, 1, math.inf, 1]) == [True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_diverged(tmp_path, bad):
    assert stability(write(tmp_path / "loss", [1.0, bad, 2.0])) == {"diverged": 1}
    found = stability(write(tmp_path / "norm", [1.0] * 7, {"a": [1.0] * 6 + [bad]}))
    assert found == {"diverged": 1, "spikes": 1 / 2}


def test_evaluations_and_a_line_cut_off_are_passed_over(tmp_path):
    assert stability(tmp_path) == {}
    lines(tmp_path, {"step": 500, "evaluation/nats": math.nan})
    assert stability(tmp_path) == {}
    lines(tmp_path, {"step": 10, "loss/a": 1.0}, {"step": 500, "evaluation/nats": math.nan})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss/a": NaN')
    assert stability(tmp_path) == {"diverged": 0}
