"""A folder of 500 crops of photographs, as `scripts/studies/crops.py` makes it, trains every recipe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small import TINY

from hybrids import experiment
from hybrids.experiment import load_recipe

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
LOSSES = {"vae": "loss/vae", "gan": "loss/critic", "ddpm": "loss/denoiser"}


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "crops"
    subprocess.run([sys.executable, REPOSITORY / "scripts" / "studies" / "crops.py", folder], check=True)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 500
    return folder


@pytest.mark.parametrize("name", LOSSES)
def test_the_crops_train(name, crops, tmp_path, capsys):
    """At 32 × 32, in three channels; every kind is converted and said; the loss falls (a critic's, for a while)."""
    recipe = load_recipe(name)
    argv = ["--data", str(crops), *TINY[name], "--resolution", "32", "--batch-size", "16", "--steps", "40", "--lr",
            "2e-3", "--log-every", "10", "--device", "cpu", "--out", str(tmp_path / "run")]  # fmt: skip
    experiment.main(recipe.Settings, recipe.build, argv)
    said = "".join(capsys.readouterr())
    assert "(3, 32, 32)" in said
    for kind in ("16-bit", "CMYK", "grayscale", "palette", "with alpha"):
        assert f"72 {kind}" in said or f"70 {kind}" in said, kind
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line[LOSSES[name]] for line in lines if LOSSES[name] in line]
    assert len(losses) == 4 and min(losses) < 0.97 * losses[0]
    assert (tmp_path / "run/samples/step-40.png").is_file()
