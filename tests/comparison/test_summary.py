import json
import math

import pytest
import torch

from hybrids.comparison.runs import Run
from hybrids.comparison.summary import report_of, seed_statistics, summarize
from hybrids.experiment import Refusal


def lines(folder, *entries):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def trained(run, code=0, why=None, refused=False, step_ms=(100.0, 200.0)):
    lines(run.folder, {"step": 10, "loss/p": 1.0, "time/step_ms": step_ms[0]},
          {"step": 20, "loss/p": 1.0, "time/step_ms": step_ms[1]})  # fmt: skip
    outcome = {"code": code, "why": why, "refused": refused}
    run.folder.with_name(f"seed-{run.seed}.json").write_text(json.dumps(outcome))


def measured(run, frechet, last, at_8=1.0):
    run.measured.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "figures": {"frechet": {"value": frechet, "floor": 0.1, "low": None, "high": None}},
        "missing": {},
        "flops_per_step": [5.0],
        "curve": [{"step": 10, "seconds": 1.0, "images": 640, "frechet": 9.0},
                  {"step": 20, "seconds": 3.0, "images": 1280, "frechet": last}],
        "evaluations_curve": [{"evaluations": 1.0, "frechet": 8.0, "samples_per_second": 80.0},
                              {"evaluations": 8.0, "frechet": at_8, "samples_per_second": 10.0}],
    }  # fmt: skip
    run.measured.write_text(json.dumps(body))


@pytest.fixture
def plan(tmp_path):
    entry = {"own": "", "words": ["--data", "8-gaussians"], "width": 8, "parameters": 100, "batch": 64,
             "stages": ["a"], "lengths": [20], "split": False, "refused": None}  # fmt: skip
    asked = {"kind": "images", "value": 1280, "samples": 100, "curve_samples": 50, "metrics": None}
    card = {"name": "8-gaussians", "shape": [2], "classes": 0, "grey_levels": None, "examples": 10}
    return {"format": 1, "asked": asked, "seeds": 2, "data": card, "parameters": 100,
            "recipes": {name: dict(entry) for name in ("vae", "gan", "ddpm", "latent_diffusion")}}  # fmt: skip


def test_everything_that_lies_there_is_in_the_report(tmp_path, plan):
    vae, gan = ([Run(tmp_path, name, seed) for seed in (0, 1)] for name in ("vae", "gan"))
    for run, frechet in zip(vae, (1.0, 3.0)):
        trained(run)
        measured(run, frechet, last=2.0)
    trained(gan[0])
    measured(gan[0], math.inf, last=4.0)
    trained(gan[1], 2, "stopped at step 20: loss of player 'critic' is not finite")
    plan["recipes"]["vae"]["parameters"] = 101
    plan["recipes"]["ddpm"] |= {"refused": "--conditional needs labels", "lengths": None}
    for seed in (0, 1):
        trained(Run(tmp_path, "latent_diffusion", seed), 1, "RuntimeError: of memory")
    report = summarize(tmp_path, plan, {"device": "cpu"}, "compare")

    assert report["budget"] == {"kind": "images", "value": 1280} and report["seeds"] == [0, 1]
    assert (report["samples"], report["curve_samples"], report["parameters"]) == (100, 50, 100)
    recipes = {recipe["recipe"]: recipe for recipe in report["recipes"]}
    assert [recipe["parameters"] for recipe in recipes.values()] == [101, 100, 100, 100]
    assert [recipe["state"] for recipe in recipes.values()] == ["finished", "partial", "refused", "failed"]
    assert recipes["ddpm"]["why"] == "--conditional needs labels" and recipes["ddpm"]["runs"] == []
    assert recipes["gan"]["why"].startswith("seed 1: stopped at step 20")
    assert recipes["latent_diffusion"]["why"].count("RuntimeError: of memory") == 2

    summary = recipes["vae"]["summary"]
    assert summary["frechet"]["mean"] == 2 and summary["frechet"]["worst"] == 3 and summary["frechet"]["runs"] == 2
    # std of (1, 3) is √2.
    assert summary["spread"]["mean"] == pytest.approx(math.sqrt(2) / 2)
    # 10 steps of 0.1 s, 10 of 0.2 s.
    assert summary["training_seconds"]["mean"] == pytest.approx(3.0)
    assert summary["flops_per_step"]["mean"] == 5
    run = recipes["vae"]["runs"][0]
    assert (run["steps"], run["images"], run["flops"], run["run"]) == (20, 1280, 100, "runs/vae/seed-0")

    # One run of the GAN diverged, the other's figure is infinite: in the run, not in the mean.
    assert recipes["gan"]["summary"]["diverged"]["mean"] == 0.5
    assert "frechet" not in recipes["gan"]["summary"]
    on_disk = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert on_disk["recipes"][1]["runs"][0]["figures"]["frechet"]["value"] == "inf"
    assert {"vae", "gan"} <= {entry["recipe"] for entry in report["adjectives"]} <= set(recipes) - {"ddpm"}


def test_the_stated_quality_is_the_median_recipes(tmp_path, plan):
    """Curves end at 2, 4 and 6; with the median, 4, two of them reach it, at their last point."""
    plan["seeds"] = 1
    del plan["recipes"]["latent_diffusion"]
    for name, last in zip(plan["recipes"], (2.0, 4.0, 6.0)):
        run = Run(tmp_path, name, 0)
        trained(run)
        measured(run, last, last, at_8=last)
    runs = {r["recipe"]: r["runs"][0] for r in summarize(tmp_path, plan, {}, "")["recipes"]}
    for name in ("vae", "gan"):
        assert runs[name]["figures"]["seconds_to_quality"]["value"] == 3.0
        assert runs[name]["figures"]["rate_at_quality"]["value"] == 10.0
    assert "seconds_to_quality" not in runs["ddpm"]["figures"]
    assert runs["ddpm"]["missing"]["seconds_to_quality"] == "never reaches a Fréchet distance of 4"


def test_quality_of_points_is_the_share_near_a_mode(tmp_path, plan):
    """More is better: of shares that end at .9, .5 and .1, .5 is the stated one, whatever the Fréchet distance."""
    plan["seeds"] = 2
    del plan["recipes"]["latent_diffusion"]
    for name, last in zip(plan["recipes"], (0.9, 0.5, 0.1)):
        for seed, off in enumerate((-0.01, 0.01)):
            run = Run(tmp_path, name, seed)
            trained(run)
            measured(run, 1.0, 1.0)
            body = json.loads(run.measured.read_text())
            body["figures"]["high_quality"] = {"value": last + off, "floor": 0.99, "low": None, "high": None}
            for curve, start in (("curve", 0.05), ("evaluations_curve", 0.06)):
                for point, value in zip(body[curve], (start, last)):
                    point["high_quality"] = value
            run.measured.write_text(json.dumps(body))
    recipes = {recipe["recipe"]: recipe for recipe in summarize(tmp_path, plan, {}, "")["recipes"]}
    for name in ("vae", "gan"):
        assert recipes[name]["runs"][0]["figures"]["seconds_to_quality"]["value"] == 3.0
    missing = recipes["ddpm"]["runs"][0]["missing"]
    assert missing["rate_at_quality"] == "never reaches a share of high quality of 0.5"
    assert recipes["gan"]["summary"]["spread"]["mean"] == pytest.approx(0.02 / 2**0.5 / 0.5)


def test_quality_is_told_in_what_runs_have_as_a_figure(tmp_path, plan):
    """--metrics frechet on points: curves have the share near a mode too, but all of the report tells one metric."""
    plan["recipes"] = {"vae": plan["recipes"]["vae"]}
    for seed, frechet in enumerate((1.0, 3.0)):
        run = Run(tmp_path, "vae", seed)
        trained(run)
        measured(run, frechet, 2.0, at_8=3.0)
        body = json.loads(run.measured.read_text())
        for point in (*body["curve"], *body["evaluations_curve"]):
            point["high_quality"] = 0.9
        run.measured.write_text(json.dumps(body))
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    assert recipe["summary"]["spread"]["mean"] == pytest.approx(math.sqrt(2) / 2)
    assert recipe["runs"][0]["figures"]["seconds_to_quality"]["value"] == 3.0
    assert recipe["runs"][0]["missing"]["rate_at_quality"] == "never reaches a Fréchet distance of 2"


def test_a_run_that_was_not_measured_says_so(tmp_path, plan):
    plan["seeds"], plan["recipes"] = 1, {"vae": plan["recipes"]["vae"]}
    run = Run(tmp_path, "vae", 0)
    trained(run)
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    assert recipe["state"] == "failed" and "not measured: the comparison was stopped before" in recipe["why"]
    run.measured.parent.mkdir()
    run.measured.with_name("vae-seed-0.failed.json").write_text(json.dumps({"why": "of memory"}))
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    assert "not measured: of memory" in recipe["why"]


def test_a_recipe_that_refuses_when_it_runs_is_refused_and_has_no_runs(tmp_path, plan):
    plan["recipes"] = {"vae": plan["recipes"]["vae"]}
    for seed in (0, 1):
        trained(Run(tmp_path, "vae", seed), 2, "--device cuda: there is none here", refused=True)
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    assert (recipe["state"], recipe["why"], recipe["runs"]) == ("refused", "--device cuda: there is none here", [])


def test_of_an_even_number_of_recipes_the_better_median_is_stated(tmp_path, plan):
    """Curves end at 2 and 4: 2 is stated, which the second never reaches; the first has it from its first point on."""
    plan["seeds"], plan["recipes"] = 1, {name: plan["recipes"][name] for name in ("vae", "gan")}
    for name, last in zip(plan["recipes"], (2.0, 4.0)):
        run = Run(tmp_path, name, 0)
        trained(run)
        measured(run, last, last, at_8=last)
    first = Run(tmp_path, "vae", 0).measured
    body = json.loads(first.read_text())
    body["curve"][0]["frechet"] = body["evaluations_curve"][0]["frechet"] = 1.5
    first.write_text(json.dumps(body))
    vae, gan = (recipe["runs"][0] for recipe in summarize(tmp_path, plan, {}, "")["recipes"])
    assert vae["figures"]["seconds_to_quality"]["value"] == 1.0
    assert vae["figures"]["rate_at_quality"]["value"] == 80.0
    assert gan["missing"]["seconds_to_quality"] == "never reaches a Fréchet distance of 2"


def test_steps_and_flops_are_those_of_all_stages(tmp_path, plan):
    """10 steps of 5 FLOPs and 20 of 8: 210 in 30 steps, of 64 examples each."""
    plan["seeds"], plan["recipes"] = 1, {"vae": plan["recipes"]["vae"] | {"lengths": [10, 20], "split": True}}
    run = Run(tmp_path, "vae", 0)
    trained(run)
    measured(run, 1.0, 1.0)
    run.measured.write_text(json.dumps(json.loads(run.measured.read_text()) | {"flops_per_step": [5.0, 8.0]}))
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    (found,) = recipe["runs"]
    assert (found["steps"], found["images"], found["flops"]) == (30, 30 * 64, 210)
    assert found["figures"]["flops_per_step"]["value"] == 7
    assert recipe["words"] == "--data 8-gaussians --steps 20 --first-steps 10"


@pytest.mark.parametrize(("real", "worst"), [(None, 0.5), (0.7, 1.2)])
def test_the_worst_ratio_is_farthest_from_what_real_examples_have(tmp_path, plan, real, worst):
    """Of 0.5 and 1.2: from 1, where real examples were not measured."""
    plan["recipes"] = {"vae": plan["recipes"]["vae"]}
    for seed, value in enumerate((0.5, 1.2)):
        run = Run(tmp_path, "vae", seed)
        trained(run)
        measured(run, 1.0, 1.0)
        body = json.loads(run.measured.read_text())
        body["figures"]["high_frequency"] = {"value": value, "floor": 1.0, "low": None, "high": None}
        run.measured.write_text(json.dumps(body))
    if real is not None:
        figure = {"value": real, "floor": 1.0, "low": None, "high": None}
        (tmp_path / "measured" / "real.json").write_text(json.dumps({"figures": {"high_frequency": figure}}))
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    assert recipe["summary"]["high_frequency"]["worst"] == worst


def test_what_was_measured_of_a_run_before_it_failed_does_not_count(tmp_path, plan):
    plan["seeds"], plan["recipes"] = 1, {"vae": plan["recipes"]["vae"]}
    run = Run(tmp_path, "vae", 0)
    trained(run, 1, "RuntimeError: of memory")
    measured(run, 1.0, 1.0)
    (recipe,) = summarize(tmp_path, plan, {}, "")["recipes"]
    assert recipe["state"] == "failed" and "frechet" not in recipe["summary"]
    assert "frechet" not in recipe["runs"][0]["figures"] and recipe["runs"][0]["samples"] is None
    assert not recipe["runs"][0]["curve"] and "seconds_to_quality" not in recipe["summary"]


def test_the_spread_of_three():
    """By hand: 1, 2, 6 have mean 3 and std √7; t of two degrees of freedom is 4.302653 (its 0.975 quantile)."""
    found = seed_statistics([1, 2, 6])
    half = 4.302653 * math.sqrt(7 / 3)
    assert found["mean"] == 3 and found["std"] == pytest.approx(math.sqrt(7)) and found["runs"] == 3
    assert found["low"] == pytest.approx(3 - half, rel=1e-6) and found["high"] == pytest.approx(3 + half, rel=1e-6)


@pytest.mark.parametrize("better,worst", [("lower", 6), ("higher", 1), ("real", 1), ("neither", None)])
def test_the_worst_is_by_direction(better, worst):
    assert seed_statistics([1, 5, 6], better, real=4.5)["worst"] == worst


def test_one_run_has_no_interval():
    assert seed_statistics([2.5]) == {"mean": 2.5, "std": None, "low": None, "high": None, "worst": 2.5, "runs": 1}


def test_the_interval_holds_the_mean_in_95_of_100():
    """Of Gaussian values exactly; 4000 draws of n = 3 have a standard error of √(.95 × .05/4000) = .0034."""
    draws = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = [found["low"] < 0 < found["high"] for found in map(seed_statistics, draws.tolist())]
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
        seed_statistics(values, **options)


def test_no_comparison_has_no_report(tmp_path):
    with pytest.raises(Refusal, match="there is no plan.json"):
        report_of(tmp_path)


def change(run, **parts):
    """Change what was measured of a run."""
    run.measured.write_text(json.dumps(json.loads(run.measured.read_text()) | parts))


def test_why_a_model_has_no_figure_is_told_of_the_run_and_of_the_recipe(tmp_path, plan):
    """Of the recipe where no run has it: what one run alone lacks, the other's figure stands for."""
    plan["recipes"] = {"vae": plan["recipes"]["vae"]}
    none, one = {"probe": "no labels"}, {"probe": "no labels", "recall": "too few samples", "kl": "for one run alone"}
    for seed, missing in enumerate((one, none)):
        run = Run(tmp_path, "vae", seed)
        trained(run)
        measured(run, 1.0, 1.0)
        change(run, missing=missing)
    body = json.loads(run.measured.read_text())
    change(run, figures=body["figures"] | {"recall": {"value": 0.5, "floor": 0.6, "low": 0.4, "high": 0.6}})
    report = summarize(tmp_path, plan, {}, "")
    (recipe,) = report["recipes"]
    assert recipe["missing"] == {"probe": "no labels"}
    assert recipe["runs"][0]["missing"]["recall"] == "too few samples" and "recall" in recipe["summary"]
    # A figure that all lack is in no table, unless it was asked for.
    assert "probe" not in {metric["name"] for metric in report["metrics"]}
    plan["asked"]["metrics"] = ["probe", "recall"]
    assert "probe" in {metric["name"] for metric in summarize(tmp_path, plan, {}, "")["metrics"]}


def test_the_cost_of_training_is_told_and_what_is_far_from_equal(tmp_path, plan):
    """130 parameters are 19% above the median of 100, 109 and 130; 4 FLOPs a step 20% below that of 5, 5 and 4."""
    plan["seeds"] = 1
    del plan["recipes"]["latent_diffusion"]
    for name, parameters, flops in zip(plan["recipes"], (100, 109, 130), (5.0, 5.0, 4.0)):
        run = Run(tmp_path, name, 0)
        trained(run)
        measured(run, 1.0, 1.0)
        change(run, flops_per_step=[flops])
        plan["recipes"][name]["parameters"] = parameters
    recipes = {recipe["recipe"]: recipe for recipe in summarize(tmp_path, plan, {}, "")["recipes"]}
    assert recipes["vae"]["cost"] == {"flops": 100, "steps": 20, "images": 1280, "seconds": pytest.approx(3.0)}
    assert recipes["vae"]["warnings"] == recipes["gan"]["warnings"] == []
    of_parameters, of_flops = recipes["ddpm"]["warnings"]
    assert of_parameters == "130 trained parameters, 19% more than the recipes' median, 109"
    assert of_flops == "80 training operations (FLOPs), 20% fewer than the recipes' median, 100"


def test_a_metric_of_ones_own_and_the_spread_of_floors_are_carried(tmp_path, plan):
    """What is nearest to real is best; where real examples were not measured nobody is the worst."""
    plan["seeds"] = 1
    plan["recipes"] = {"mine": plan["recipes"]["vae"] | {"given": "/home/me/mine.py", "family": "VAE"}}
    run = Run(tmp_path, "mine", 0)
    trained(run)
    measured(run, 1.0, 1.0)
    own = {"name": "width", "axis": "own", "better": "real", "unit": "", "says": "Of mine."}
    figure = {"value": 2.0, "floor": 1.5, "floor_spread": 0.1, "low": None, "high": None}
    change(run, figures={"width": figure}, own_metrics=[own])
    (tmp_path / "measured" / "real.json").write_text(json.dumps({"figures": {}, "n": 97, "missing": {"fid": "no"}}))
    report = summarize(tmp_path, plan, {}, "")
    (recipe,) = report["recipes"]
    assert (recipe["title"], recipe["family"]) == ("mine", "VAE") and own in report["metrics"]
    assert recipe["runs"][0]["figures"]["width"] == figure
    assert recipe["summary"]["width"]["mean"] == 2.0 and recipe["summary"]["width"]["worst"] is None
    assert report["real_n"] == 97 and report["real_missing"] == {"fid": "no"}
