"""Every recipe as its user starts it: two steps on each kind of data, and `--help`."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from small import TINY, last_step

from hybrids.experiment import Settings, load_recipe

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.py"))
IMAGES_ONLY: set[str] = set()


def start(name, cwd, *argv):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "recipes" / f"{name}.py"), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("data", ["digits", "25-gaussians"])
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(name, data, tmp_path):
    """From any folder: exit code 0, the files of a run, no warning of ours. Points for recipes that take them."""
    if name in IMAGES_ONLY and data != "digits":
        pytest.skip("images only")
    tiny = TINY[name]
    if data != "digits":
        of_images = {"--resolution", "--critic"}
        tiny = [a for i, a in enumerate(tiny) if not of_images & {a, tiny[i - 1]}]
    argv = ["--data", data, "--steps", 2, "--batch-size", 8, "--accumulation", 2, "--device", "cpu", *tiny]
    done = start(name, tmp_path, *argv)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "effective batch 16 = 8 × 1 process(es) × 2 micro-batch(es)" in done.stdout
    # The default run folder: runs/RECIPE/TIMESTAMP.
    (out,) = (tmp_path / "runs" / name).iterdir()
    assert f"done: {out.relative_to(tmp_path)}" in done.stdout
    end = last_step(name, 2)
    assert (out / f"samples/step-{end}.png").is_file() and (out / f"checkpoints/step-{end}/manifest.json").is_file()
    assert json.loads((out / "summary.json").read_text())["steps"] == end


@pytest.mark.parametrize("name", RECIPES)
def test_help(name, tmp_path):
    """`--help` exits with 0, tells what the recipe is, and lists its own settings before the common ones."""
    done = start(name, tmp_path, "--help")
    assert done.returncode == 0 and not done.stderr and not list(tmp_path.iterdir())
    recipe = load_recipe(name)
    own, common = done.stdout.split("settings of every recipe", 1)
    assert recipe.__doc__.splitlines()[0] in own and f"recipes/{name}.py" in own
    inherited = {field.name for field in fields(Settings)}
    assert set(recipe.Settings.structural) <= {field.name for field in fields(recipe.Settings)}
    for field in fields(recipe.Settings):
        flag = "--" + field.name.replace("_", "-")
        place = common if field.name in inherited else own
        assert f"  {flag}  " in place or f"  {flag}, " in place, flag
        if field.name not in inherited:
            assert field.metadata["rule"].help, f"{flag} has no help"
