import json
import re
import sys

import pytest

from hybrids.comparison import worker
from hybrids.comparison.options import Options, check, data_asked
from hybrids.comparison.plan import kept_plan, make_plan, run_words, with_lengths
from hybrids.comparison.whole import _Whole
from hybrids.data import load_data
from hybrids.experiment import Refusal
from hybrids.experiment.signals import Signals


def options(out, **changed):
    given = {"recipes": ("vae", "gan"), "data": "8-gaussians", "kind": "images", "value": 6400, "out": out}
    return Options(**{**given, **changed})


def planned(given):
    return make_plan(given, data_asked(given))


def test_the_plan_matches_parameters_to_the_lower_median(tmp_path):
    plan = planned(options(tmp_path, recipes=("vae", "gan", "ddpm")))
    assert plan == kept_plan(tmp_path)
    # By default 142,211 (gan), 235,394 (ddpm) and 807,972 (vae): the middle one keeps its width.
    assert plan["parameters"] == plan["recipes"]["ddpm"]["parameters"]
    for entry in plan["recipes"].values():
        assert abs(entry["parameters"] / plan["parameters"] - 1) < 0.05
        assert entry["words"][-2:] == ["--width", str(entry["width"])]
    assert planned(options(tmp_path / "b", parameters=50_000))["parameters"] == 50_000


def test_a_width_that_is_set_stays(tmp_path):
    plan = planned(options(tmp_path, parameters=50_000, words={"gan": "--width 12"}))
    assert plan["recipes"]["gan"]["width"] == 12
    assert plan["recipes"]["gan"]["words"].count("--width") == 1


def test_all_recipes_get_digits_of_one_size(tmp_path):
    """By themselves vae takes 8 × 8, gan and ddpm 16 × 16."""
    plan = planned(options(tmp_path, data="digits"))
    for entry in plan["recipes"].values():
        assert entry["words"][:4] == ["--data", "digits", "--resolution", "8"]


def test_a_recipe_that_the_data_refuses_is_refused_alone(tmp_path):
    plan = planned(options(tmp_path, words={"gan": "--batch-size 100000000"}))
    assert "--batch-size 100000000" in plan["recipes"]["gan"]["refused"]
    assert plan["recipes"]["vae"]["refused"] is None
    plan = planned(options(tmp_path / "b", recipes=("vae", "ddpm"), words={"ddpm": "--conditional"}))
    assert plan["recipes"]["ddpm"]["refused"] == "--conditional needs labels; --data 8-gaussians has none"


def test_an_example_of_every_micro_batch_counts(tmp_path):
    plan = planned(options(tmp_path, words={"gan": "--batch-size 16 --accumulation 4"}))
    assert plan["recipes"]["gan"]["batch"] == 64
    with_lengths(tmp_path, plan, "gan", None)
    assert plan["recipes"]["gan"]["lengths"] == [100]


def test_recipes_and_seeds_may_be_added(tmp_path):
    first = planned(options(tmp_path))
    second = planned(options(tmp_path, recipes=("vae", "gan", "ddpm"), seeds=3))
    assert second["seeds"] == 3 and list(second["recipes"]) == ["vae", "gan", "ddpm"]
    assert second["parameters"] == first["parameters"]
    assert all(second["recipes"][recipe] == first["recipes"][recipe] for recipe in ("vae", "gan"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"value": 3200}, "value: 6400 → 3200"),
        ({"kind": "flops"}, "kind: images → flops"),
        ({"samples": 500}, "samples: 2000 → 500"),
        ({"parameters": 9}, "parameters: None → 9"),
        ({"recipes": ("vae",)}, "recipes: gan is dropped"),
        ({"seeds": 1}, "seeds: 2 → 1"),
        ({"words": {"gan": "--lr 0.1"}}, "set gan: '' → '--lr 0.1'"),
        ({"data": "25-gaussians"}, "data: 8-gaussians → 25-gaussians"),
    ],
)
def test_other_changes_are_refused_with_the_difference(tmp_path, changed, told):
    planned(options(tmp_path, seeds=2))
    before = (tmp_path / "plan.json").read_text()
    with pytest.raises(Refusal, match=re.escape(told)):
        planned(options(tmp_path, **{"seeds": 2, **changed}))
    assert (tmp_path / "plan.json").read_text() == before
    assert planned(options(tmp_path, seeds=2, jobs=7, device="cpu"))


def test_stages_split_the_budget_and_the_last_is_saved_six_times_and_at_its_end(tmp_path):
    plan = planned(options(tmp_path, recipes=("vae", "latent_diffusion")))
    for recipe in plan["recipes"]:
        with_lengths(tmp_path, plan, recipe, None)
    assert [entry["lengths"] for entry in plan["recipes"].values()] == [[100], [50, 50]]
    words = run_words(plan["recipes"]["latent_diffusion"], 3, "cpu")
    given = dict(zip(words[::2], words[1::2]))
    assert given["--steps"] == given["--first-steps"] == "50" and given["--seed"] == "3"
    every = int(given["--checkpoint-every"])
    # The last is the end, wherever it falls.
    assert [step for step in range(51, 101) if step % every == 0 or step == 100] == [54, 63, 72, 81, 90, 99, 100]
    # None of them is removed again.
    assert int(given["--keep-checkpoints"]) >= len([step for step in range(1, 101) if step % every == 0]) + 2


@pytest.mark.parametrize(("images", "every"), [(640, "1"), (64 * 4000, "20")])
def test_a_log_has_two_hundred_lines_or_one_a_step(tmp_path, images, every):
    plan = planned(options(tmp_path, recipes=("vae",), value=images))
    with_lengths(tmp_path, plan, "vae", None)
    words = run_words(plan["recipes"]["vae"], 0, "cpu")
    assert words[words.index("--log-every") + 1] == every


@pytest.mark.parametrize(
    ("recipe", "value", "seconds"),
    [("vae", 100, 5.0), ("latent_diffusion", 100, 2.5), ("vae", 1000, 10.0), ("latent_diffusion", 20, 2.0)],
)
def test_a_pilot_takes_a_twentieth_of_the_budget_for_all_stages(tmp_path, monkeypatch, recipe, value, seconds):
    """But 2 s of each at least, and 10 s at most."""
    planned(options(tmp_path, recipes=(recipe,), kind="seconds", value=value))
    monkeypatch.setattr(worker, "seconds_of_stages", lambda settings, build, data, seconds: [seconds])
    monkeypatch.setattr(sys, "argv", ["worker", "costs", recipe, "--out", str(tmp_path), "--device", "cpu"])
    worker.main()
    assert json.loads((tmp_path / "pilots" / f"{recipe}.json").read_text()) == {"seconds": [seconds]}


def test_what_a_pilot_found_is_kept(tmp_path):
    """A restart has the same number of steps, whatever the machine does by then; an earlier pilot is not run again."""
    given = options(tmp_path, kind="seconds", value=20)
    data = data_asked(given)
    plan = make_plan(given, data)
    (tmp_path / "pilots").mkdir()
    for recipe, seconds in (("vae", 0.1), ("gan", 0.04)):
        (tmp_path / "pilots" / f"{recipe}.json").write_text(json.dumps({"seconds": [seconds]}))
    _Whole(given, plan, data, Signals()).pilots()
    assert [entry["lengths"] for entry in kept_plan(tmp_path)["recipes"].values()] == [[200], [500]]
    (tmp_path / "pilots" / "vae.json").write_text(json.dumps({"seconds": [99.0]}))
    again = make_plan(given, data)
    _Whole(given, again, data, Signals()).pilots()
    assert again["recipes"]["vae"]["lengths"] == [200]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"recipes": ("vae", "ddmp")}, "--recipes ddmp: there is no such recipe; did you mean ddpm?"),
        ({"recipes": ("vae", "vae")}, "--recipes: a recipe is named twice"),
        ({"recipes": ()}, "--recipes: names none"),
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"jobs": 0}, "--jobs 0: expected at least 1"),
        ({"value": 0}, "--images 0: expected more than 0"),
        ({"samples": 3}, "--samples 3: the metrics need at least 16 samples"),
        ({"metrics": ("frechett",)}, "--metrics frechett: there is no such metric; did you mean frechet?"),
        ({"words": {"ddpm": "--lr 1"}}, "--set ddpm=…: is not among --recipes vae gan"),
        ({"words": {"gan": "--lrr 1"}}, "--set gan: --lrr: no such setting; did you mean --lr?"),
        ({"words": {"gan": "--steps 5 --seed 1"}}, "--set gan: --seed, --steps is the comparison's own to give"),
        ({"words": {"gan": "--lr 'x"}}, '--set gan="--lr \'x": No closing quotation'),
        ({"parameters": 0}, "--parameters 0: expected at least 1"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path, changed, told):
    check(options(tmp_path))
    with pytest.raises(Refusal, match=re.escape(told)):
        check(options(tmp_path, **changed))


def test_all_errors_are_told_at_once(tmp_path):
    with pytest.raises(Refusal) as refused:
        check(options(tmp_path, recipes=("vea",), seeds=0, samples=1))
    assert len(refused.value.errors) == 3


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="--out .*is a file"):
        check(options(tmp_path / "file" / "inside"))


def test_a_data_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refusal, match="--data"):
        data_asked(options(tmp_path, data="digitz"))
    assert data_asked(options(tmp_path, data="digits", resolution=16)).shape == load_data("digits", 16).shape
