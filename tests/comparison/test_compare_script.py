import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = str(REPOSITORY / "scripts" / "compare.py")
WORDS = [
    "--data",
    "8-gaussians",
    "--device",
    "cpu",
    "--samples",
    "64",
    "--curve-samples",
    "32",
    "--parameters",
    "20000",
]
FEW = ["--metrics", "frechet", "recall", "nats"]
TIMES = {"training_seconds", "seconds_to_quality", "rate_at_quality", "samples_per_second"}


def start(out, *words):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, SCRIPT, *words, "--out", str(out)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=env)  # fmt: skip


def compare(out, *words):
    process = start(out, *words)
    said, errors = process.communicate(timeout=900)
    return process.returncode, said, errors


def report(out):
    return json.loads((out / "report.json").read_text())


def table(out):
    """All that the report says but for times."""
    rows = []
    for recipe in report(out)["recipes"]:
        for run in recipe["runs"]:
            figures = {name: figure for name, figure in run["figures"].items() if name not in TIMES}
            curve = [(point["step"], point["images"], point["frechet"]) for point in run["curve"]]
            quick = [(point["evaluations"], point["frechet"]) for point in run["evaluations_curve"]]
            told = [recipe["recipe"], recipe["state"], recipe["parameters"], run["seed"], run["steps"], run["flops"]]
            rows.append([*told, figures, curve, quick])
    return rows


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.full
def test_stopped_and_killed_it_ends_with_the_same_table(tmp_path):
    """A straight comparison beside one that got SIGTERM in its run, SIGKILL in it, SIGKILL while it was measured."""
    words = [*WORDS, *FEW, "--recipes", "latent_diffusion", "--images", "12800"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert compare(straight, *words)[0] == 0
    run = broken / "runs" / "latent_diffusion" / "seed-0"

    process = start(broken, *words)
    wait_for(lambda: any(run.glob("checkpoints/step-*")), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "the same command continues" in said
    assert json.loads((broken / "plan.json").read_text())["recipes"]["latent_diffusion"]["lengths"] == [100, 100]

    process = start(broken, *words)
    # The run has saved where it stood; it goes on, to a checkpoint that it had not reached.
    wait_for(lambda: (run / "checkpoints" / "step-119").is_dir(), process)
    process.kill()
    process.communicate()

    process = start(broken, *words)
    wait_for((broken / "measured" / "latent_diffusion-seed-0.json").is_file, process)
    process.kill()
    process.communicate()
    done = (run / "summary.json").read_text()

    code, said, errors = compare(broken, *words)
    assert code == 0, errors
    assert table(broken) == table(straight)
    assert [row[:2] for row in table(broken)] == [["latent_diffusion", "finished"]]
    assert (run / "summary.json").read_text() == done
    assert str(broken / "report") in said

    # Nothing is left to do, and nothing is done.
    before = {
        path: path.stat().st_mtime_ns for part in ("runs", "measured") for path in (broken / part).rglob("*.json")
    }
    assert compare(broken, *words)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_what_fails_and_what_is_refused_is_told_and_the_rest_goes_on(tmp_path):
    words = [*WORDS, *FEW, "--recipes", "gan", "ddpm", "vae", "--images", "640", "--jobs", "2"]
    words += ["--set", "gan=--lr 1e30", "--set", "ddpm=--conditional"]
    code, said, errors = compare(tmp_path, *words)
    assert code == 0, errors
    recipes = {recipe["recipe"]: recipe for recipe in report(tmp_path)["recipes"]}
    assert {name: recipe["state"] for name, recipe in recipes.items()} == {
        "gan": "failed",
        "ddpm": "refused",
        "vae": "finished",
    }
    assert "not finite" in recipes["gan"]["why"] and "--conditional needs labels" in recipes["ddpm"]["why"]
    assert recipes["gan"]["summary"]["diverged"]["mean"] == 1
    for name in ("gan", "ddpm"):
        assert f"{name}: {recipes[name]['state']}: {recipes[name]['why']}" in said
    # nats of a VAE, which a GAN could not have had; frechet; recall.
    assert set(recipes["vae"]["summary"]) >= {"frechet", "recall", "nats", "flops_per_step", "training_seconds"}
    assert (tmp_path / recipes["vae"]["runs"][0]["samples"]).is_file()
    # --report-only draws the same again, and trains nothing.
    before = table(tmp_path)
    assert compare(tmp_path, "--report-only")[0] == 0 and table(tmp_path) == before


@pytest.mark.full
def test_flops_buy_as_many_steps_as_they_pay_for(tmp_path):
    code, _, errors = compare(tmp_path, *WORDS, *FEW, "--recipes", "vae", "--flops", "1e9")
    assert code == 0, errors
    (recipe,) = report(tmp_path)["recipes"]
    steps, per_step = recipe["runs"][0]["steps"], recipe["summary"]["flops_per_step"]["mean"]
    assert steps * per_step <= 1e9 < (steps + 1) * per_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipes", "vae"], "expected exactly one budget; got none"),
        (["--images", "10", "--seconds", "1"], "expected exactly one budget; got --images and --seconds"),
        (["--images", "10", "--recipes", "vea"], "--recipes vea: no such recipe; did you mean vae?"),
        (["--images", "10", "--set", "vae"], "--set 'vae': expected RECIPE="),
        # All at once: not the budget alone.
        (["--recipes", "vae", "gann"], "--recipes gann: no such recipe; did you mean gan?"),
        (["--report-only"], "there is no plan.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, words, told):
    code, _, errors = compare(tmp_path / "out", *words)
    assert code == 2 and told in errors and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_comparisons_in_one_folder_are_refused(tmp_path):
    from hybrids.experiment.checkpoints.run_folder import lock

    with lock(tmp_path):
        code, _, errors = compare(tmp_path, *WORDS, "--recipes", "vae", "--images", "640")
    assert code == 2 and "is in use by" in errors and not (tmp_path / "plan.json").exists()


@pytest.mark.full
def test_a_recipe_and_a_metric_of_ones_own_stand_beside_ours(tmp_path):
    """By files outside; what a model cannot answer is a dash with its reason; nothing is done twice."""
    file = tmp_path / "outside" / "mine.py"
    file.parent.mkdir()
    shutil.copy(Path(__file__).with_name("mine.py"), file)
    words = ["--data", "8-gaussians", "--device", "cpu", "--samples", "64", "--curve-samples", "32", "--images", "640"]
    words += ["--recipes", "vae", str(file), "--metrics", "frechet", "nats", f"{file}:width"]
    words += ["--set", "mine=--lr 0.1"]
    code, said, errors = compare(tmp_path / "out", *words)
    assert code == 0, errors
    vae, mine = report(tmp_path / "out")["recipes"]
    assert (mine["recipe"], mine["title"], mine["family"], mine["state"]) == ("mine", "mine", None, "finished")
    assert mine["parameters"] == 4 and mine["words"].endswith("--lr 0.1 --steps 10")
    assert {"frechet", "width"} <= mine["summary"].keys() and {"frechet", "width", "nats"} <= vae["summary"].keys()
    assert 0.5 < mine["summary"]["width"]["mean"] < 1.5 and len(mine["runs"][0]["curve"]) == 5
    assert set(mine["missing"]) >= {"nats", "rate_at_quality"}
    assert f") {mine['missing']['nats']}\n" in said and "mine: 4 trained parameters, 100% fewer than" in said
    assert mine["cost"]["steps"] == 10 and mine["cost"]["images"] == 640
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*seed-0*.json")}
    assert len(before) == 4
    assert compare(tmp_path / "out", *words)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # A path that is read from a folder is not executed: the report is made without the file.
    file.write_text("raise RuntimeError")
    assert compare(tmp_path / "out", "--report-only")[0] == 0
