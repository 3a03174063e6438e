import json
import re
from pathlib import Path

import pytest
from torch import nn

from hybrids import Player, Terms
from hybrids.comparison.plan import (
    Options,
    check,
    data_of_options,
    errors_of,
    lengths,
    make_plan,
    matched,
    read_plan,
    run_words,
    trained_parameters,
    with_lengths,
)
from hybrids.comparison.recipes import DEFAULT, Recipe
from hybrids.data import Data, load_data
from hybrids.experiment import Refusal, Stage, load_recipe, parse

MINE = Path(__file__).with_name("mine.py").read_text()


def options(out, **changed):
    given = {"recipes": ("vae", "gan"), "data": "8-gaussians", "kind": "images", "value": 6400, "out": out}
    return Options(**{**given, **changed})


def planned(given):
    return make_plan(given, data_of_options(given))


def test_the_plan_matches_parameters_to_the_lower_median(tmp_path):
    plan = planned(options(tmp_path, recipes=("vae", "gan", "ddpm")))
    assert plan == read_plan(tmp_path)
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
    """8 × 8, their own, as every recipe takes them by itself."""
    plan = planned(options(tmp_path, data="digits"))
    for entry in plan["recipes"].values():
        assert entry["words"][:4] == ["--data", "digits", "--resolution", "8"]
    assert data_of_options(options(tmp_path, data="digits")).grey_levels == 17


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
        ({"recipes": ("vae",)}, "recipes: gan is missing"),
        ({"seeds": 1}, "seeds: 2 → 1"),
        ({"words": {"gan": "--lr 0.1"}}, "set gan: '' → '--lr 0.1'"),
        ({"data": "25-gaussians"}, "data: 8-gaussians → 25-gaussians"),
        ({"metrics": ("recall",)}, "metrics: None → ['recall']"),
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


def test_matched_is_the_nearest_of_all_widths():
    """Against a search of every width, targets below, between and above all counts included."""

    def count(width):
        return 3 * width * width + 7 * width + 100

    for target in (1, 300, 5_000, 77_777, 1_000_000):
        best = min(range(8, 700), key=lambda width: abs(count(width) - target))
        assert matched(count, target, 8) == (best, count(best))


def test_matched_passes_over_widths_that_cannot_be():
    """Networks of heads want multiples of four."""

    def count(width):
        if width % 4:
            raise ValueError("of heads")
        return 10 * width

    # 10 × 48 = 480, and 10 × 52 = 520 is farther from 490.
    assert matched(count, 490, 8) == (48, 480)
    with pytest.raises(ValueError, match="never"):
        matched(lambda width: (_ for _ in ()).throw(ValueError("never")), 100)


def test_matched_widths_of_recipes_are_nearest():
    data = Data.from_card(load_data("8-gaussians").card())
    for recipe in ("vae", "gan"):
        module = load_recipe(recipe)

        def count(width, module=module, recipe=recipe):
            return trained_parameters(module.build(parse(module.Settings, ["--width", str(width)], recipe), data))

        width, found = matched(count, 60_000, 8)
        assert count(width) == found
        assert all(abs(found - 60_000) <= abs(count(other) - 60_000) for other in (width - 1, width + 1) if other >= 8)


def test_trained_parameters_are_those_of_all_players_once():
    """A shared module counts once, a frozen one not at all, a critic does."""
    shared, own, critic, frozen = nn.Linear(3, 2), nn.Linear(2, 2, bias=False), nn.Linear(5, 1), nn.Linear(9, 9)
    frozen.requires_grad_(False)

    def player(name, *moves):
        return Player(lambda x: Terms(), list(moves), name=name)

    stages = [Stage("a", shared, [player("one", shared, own), player("two", critic, frozen)]),
              Stage("b", shared, [player("three", shared)])]  # fmt: skip
    assert trained_parameters(stages) == 8 + 4 + 6


def test_lengths_pay_the_budget_out_and_stages_share_it():
    assert lengths(3000, [64], split=False) == [46]
    assert lengths(3000, [64, 64], split=True) == [23, 23]
    # Half of 100 s each, at 0.5 s and 0.1 s a step; or as many steps of both.
    assert lengths(100, [0.5, 0.1], split=True) == [100, 500]
    assert lengths(120, [0.5, 0.1], split=False) == [200, 200]
    assert lengths(1, [64], split=False) == [1]
    with pytest.raises(ValueError, match=r"costs of a step must be above 0.*got \[0.0\]"):
        lengths(1e9, [0.0], split=False)


def test_a_recipe_of_ones_own_is_named_by_its_file(tmp_path, monkeypatch):
    """Its name is the file's stem, its family what the file says; a name alone is never looked up beside the user."""
    (tmp_path / "recipes").mkdir()
    file = tmp_path / "recipes" / "my_gaussian.py"
    file.write_text(MINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_family.py").write_text(MINE)
    assert Recipe("no_family.py").family() is None
    file.write_text(MINE + '\nFAMILY = "diffusion"\n')
    mine = Recipe("./recipes/my_gaussian.py")
    assert (mine.name, mine.title, mine.file) == ("my_gaussian", "my gaussian", file)
    assert mine.family() == "diffusion" and mine.module() is mine.module()
    out = tmp_path / "out"
    given = options(out, recipes=("vae", "recipes/my_gaussian.py"), words={"my_gaussian": "--lr 0.1"})
    check(given)
    entry = planned(given)["recipes"]["my_gaussian"]
    assert entry["given"] == str(file) and entry["family"] == "diffusion" and entry["words"][-2:] == ["--lr", "0.1"]
    # A mean and a standard deviation of points in the plane, and no width.
    assert (entry["parameters"], entry["width"], entry["stages"]) == (4, None, ["mine"])
    assert planned(given)["recipes"]["my_gaussian"] == entry
    # Words that only the folder has are typed to no recipe.
    plan = read_plan(out)
    kept = json.dumps(plan)
    plan["recipes"]["my_gaussian"]["words"] = ["--data", "evil.py:data", *entry["words"][2:]]
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(Refusal, match="words of my_gaussian: --data evil.py:data"):
        planned(given)
    (out / "plan.json").write_text(kept)
    (error,) = errors_of(options(out, recipes=("my_gaussian",)))
    assert "no such recipe" in error and "./mine.py" in error
    # Another file of that name is another recipe.
    (tmp_path / "my_gaussian.py").write_text(MINE)
    with pytest.raises(Refusal, match=f"my_gaussian was {re.escape(str(file))}, and is {tmp_path}/my_gaussian.py"):
        planned(options(out, recipes=("vae", "./my_gaussian.py"), words=given.words))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import no_such_module", "mine.py: cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "def build(settings, data): ...",
            "a recipe must define Settings and build(settings, data); Settings is missing",
        ),
        (f"{MINE}\nFAMILY = 3", "mine.py: FAMILY must be text, such as 'diffusion'; got 3"),
        (None, "mine.py: no such file"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, told):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(Refusal, match=re.escape(told)):
        check(options(tmp_path, recipes=(str(tmp_path / "mine.py"),)))


def test_the_default_recipes_are_each_family_and_each_connection():
    recipes = [Recipe(name) for name in DEFAULT]
    families = {recipe.family() for recipe in recipes}
    assert families == {"VAE", "GAN", "diffusion", "GAN + diffusion", "VAE + diffusion", "VAE + GAN + diffusion"}
    for recipe in recipes:
        latent, adversarial = recipe.name.startswith("latent"), "adversarial" in recipe.name
        assert ("GAN" in recipe.family()) == (adversarial or recipe.name == "gan")
        assert ("VAE" in recipe.family()) == (latent or recipe.name == "vae")
    assert len({recipe.title for recipe in recipes}) == len(DEFAULT)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"recipes": ("vae", "ddmp")}, "--recipes ddmp: no such recipe; did you mean ddpm?"),
        ({"recipes": ("vae", "vae")}, "--recipes: vae is given twice"),
        ({"recipes": ("vae", "./vae.py")}, "--recipes: vae is given twice"),
        ({"recipes": ()}, "--recipes: got none"),
        ({"kind": "hours"}, "kind of the budget: got 'hours'; expected one of images, flops, seconds"),
        ({"metrics": ("./nope.py:mine",)}, "--metrics ./nope.py:mine: expected a Python file"),
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"jobs": 0}, "--jobs 0: expected at least 1"),
        ({"value": 0}, "--images 0: expected more than 0"),
        ({"samples": 3}, "--samples 3: the metrics need at least 16 samples"),
        ({"metrics": ("frechett",)}, "--metrics frechett: metric 'frechett' is not known; did you mean frechet?"),
        ({"words": {"ddpm": "--lr 1"}}, "--set ddpm=…: ddpm is not in --recipes vae gan"),
        ({"words": {"gan": "--lrr 1"}}, "--set gan: --lrr: no such setting; did you mean --lr?"),
        ({"words": {"gan": "--steps 5 --seed 1"}}, "--set gan: --seed, --steps is set by the comparison"),
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
        data_of_options(options(tmp_path, data="digitz"))
    assert data_of_options(options(tmp_path, data="digits", resolution=16)).shape == load_data("digits", 16).shape
