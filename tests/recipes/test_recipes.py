"""Every recipe takes two steps on each kind of data and lists its settings; three of them are started as files."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from small import TINY, last_step

from hybrids import experiment
from hybrids.experiment import Settings, load_recipe

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.py"))


def words(name, data):
    """The command line of a tiny run of two steps; points have no settings of images."""
    tiny = TINY[name]
    if data != "digits":
        of_images = {"--resolution", "--critic"}
        tiny = [word for i, word in enumerate(tiny) if not of_images & {word, tiny[i - 1]}]
    common = ["--steps", "2", "--batch-size", "8", "--accumulation", "2", "--device", "cpu"]
    return ["--data", data, *common, *tiny]


def check_run(name, folder, printed):
    """The files of a run in the default run folder, runs/RECIPE/TIMESTAMP, and what it printed."""
    assert "effective batch 16 = 8 × 1 process(es) × 2 micro-batch(es)" in printed
    (out,) = (folder / "runs" / name).iterdir()
    assert f"done: {out.relative_to(folder)}" in printed
    end = last_step(name, 2)
    assert (out / f"samples/step-{end}.png").is_file() and (out / f"checkpoints/step-{end}/manifest.json").is_file()
    assert json.loads((out / "summary.json").read_text())["steps"] == end


@pytest.mark.parametrize("data", ["digits", "25-gaussians"])
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(name, data, tmp_path, monkeypatch, capsys, recwarn, request):
    """Without a warning that a user would see."""
    if data == "digits":
        request.getfixturevalue("few_digits")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    experiment.main(recipe.Settings, recipe.build, words(name, data))
    check_run(name, tmp_path, capsys.readouterr().out)
    assert not [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), [("vae", "digits"), ("gan", "25-gaussians"), ("latent_diffusion", "digits")])
def test_a_recipe_is_a_file(name, data, tmp_path):
    """From any folder: exit code 0, no warning, the files of a run."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, REPOSITORY / "recipes" / f"{name}.py", *words(name, data)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    check_run(name, tmp_path, done.stdout)


@pytest.mark.parametrize("name", RECIPES)
def test_help(name, tmp_path, monkeypatch, capsys):
    """`--help` exits with 0, tells what the recipe is, and lists its own settings before the common ones."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    with pytest.raises(SystemExit, match="^0$"):
        experiment.main(recipe.Settings, recipe.build, ["--help"])
    printed = capsys.readouterr()
    assert not printed.err and not list(tmp_path.iterdir())
    own, common = printed.out.split("settings of every recipe", 1)
    assert recipe.__doc__.splitlines()[0] in own and f"recipes/{name}.py" in own
    inherited = {field.name for field in fields(Settings)}
    assert set(recipe.Settings.structural) <= {field.name for field in fields(recipe.Settings)}
    for field in fields(recipe.Settings):
        flag = "--" + field.name.replace("_", "-")
        place = common if field.name in inherited else own
        assert f"  {flag}  " in place or f"  {flag}, " in place, flag
        if field.name not in inherited:
            assert field.metadata["rule"].help, f"{flag} has no help"
