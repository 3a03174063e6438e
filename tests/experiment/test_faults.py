"""What bad settings and bad luck get, as a user of a recipe sees it: exit code 2, one message, no traceback.

Numbers are the rows of the list of faults; the details of each message are tested where it is made.
"""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from small import TINY
from torch import nn

from hybrids import Player, Terms, experiment
from hybrids.data.streaming import WorkerDied
from hybrids.experiment import Stage, load_recipe

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a recipe's main (or another build) and return what it is refused with, one reason a line."""
    monkeypatch.chdir(tmp_path)

    def refuse(name, *argv, settings=experiment.Settings):
        build = name
        if isinstance(name, str):
            recipe = load_recipe(name)
            build, settings = recipe.build, recipe.Settings
        if "--device" not in argv:
            argv = ("--device", "cpu", *argv)
        with pytest.raises(SystemExit) as caught:
            experiment.main(settings, build, [str(a) for a in argv])
        said = capsys.readouterr()
        assert caught.value.code == 2 and "Traceback" not in said.err + said.out
        reasons = said.err.strip().splitlines()
        # A progress bar may have started before the first step was refused.
        reasons = [line[line.index("refused: ") :] for line in reasons if "refused: " in line]
        assert reasons and all(line.startswith("refused: ") for line in reasons)
        return "\n".join(reasons)

    return refuse


def contains(message: str, *parts: str) -> bool:
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    return True


def untouched(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


# Data.


def test_fault_10_a_batch_larger_than_the_data(refused, tmp_path):
    """Refused before a run folder is made: the setting, what it needs, what there is."""
    assert contains(
        refused("vae", "--batch-size", 5000), "--batch-size 5000", "needs 5000 examples", "has 1500", "lower"
    )
    assert untouched(tmp_path / "runs")


def test_an_unknown_data_set(refused):
    assert contains(refused("gan", "--data", "digts"), "'digts'", "did you mean digits?", "25-gaussians")


def test_data_that_a_recipe_cannot_take(refused):
    found = refused("vae", "--data", "25-gaussians", "--likelihood", "logistic")
    assert contains(found, "--likelihood logistic", "--data 25-gaussians", "use normal")
    assert contains(refused("vae", "--data", "25-gaussians", "--resolution", 8), "--resolution", "drop")
    assert contains(refused("vae", "--data", "stacked-digits", "--resolution", 16), "--resolution 16", "3 × 8 × 8")


def toy(batches=None, loss=None, moves=None, **options):
    """A build of one linear layer, with batches and a loss of its own."""

    def build(settings, data):
        layer = nn.Linear(64, 1)
        layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)
        of = loss or (lambda m, x: Terms(a=m(x.flatten(1))[:, 0].square()))
        players = [Player(lambda x: of(layer, x), [layer], optimizer=SGD, name="painter", **options)]
        return [Stage("painting", layer, players, batches=batches)]

    return build


class Fixed:
    """Batches of one's own: the same one again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ("x must be floating point", "torch.uint8", "x / 127.5 - 1")),
        (torch.full((4, 1, 8, 8), 0.5).index_fill(0, torch.tensor([2]), 255.0), ("[-1, 1]", "sample 2", "255")),
        (torch.zeros(4, 1, 8, 8).index_fill(0, torch.tensor([3]), float("nan")), ("finite", "sample 3", "NaN")),
    ],
    ids=["uint8", "scale", "NaN"],
)
def test_faults_15_and_16_bad_batches(refused, tmp_path, batch, parts):
    """uint8, a wrong scale, NaN: named with the sample, before the first update."""
    found = refused(toy(Fixed(batch)), "--steps", 3, "--resolution", 8, "--out", tmp_path / "run")
    assert contains(found, "stage 'painting'", *parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


# Settings.


def test_fault_17_unknown_settings(refused, tmp_path):
    """On the command line and in a file, each with the nearest match, all at once."""
    config = tmp_path / "given.yaml"
    config.write_text("latnt: 3\n")
    found = refused("vae", "--config", config, "--stesp", 5)
    assert contains(found, "latnt", "latent", "--stesp", "--steps") and len(found.splitlines()) == 2


def test_fault_18_types_and_ranges(refused):
    """What was received and what was expected, for every wrong setting at once."""
    found = refused("vae", "--steps", 0, "--lr", -1, "--batch-size", "many", "--likelihood", "cauchy")
    assert len(found.splitlines()) == 4
    assert contains(found, "--steps", "at least 1", "'0'", "--lr", "above 0", "'-1'", "--batch-size", "'many'")
    assert contains(found, "--likelihood", "logistic, categorical", "'cauchy'")


def test_fault_19_parts_that_do_not_fit(refused):
    """A resolution that a network cannot halve is refused when it is built, with recipe and data named."""
    assert contains(refused("ddpm", "--resolution", 9), "recipe ddpm with --data digits", "9")
    assert contains(refused("ddpm", "--sample-steps", 2000), "--sample-steps 2000", "--timesteps 1000")


@pytest.mark.parametrize("name", TINY)
def test_fault_21_fp16(refused, name):
    """Refused for every recipe, with the reason and the remedy."""
    assert contains(refused(name, "--mixed-precision", "fp16"), "--mixed-precision", "scaler", "use bf16", "'fp16'")


def test_fault_22_a_folder_that_holds_another_run(refused, tmp_path, few_digits):
    """Refused unless told to resume or overwrite; nothing in it changes."""
    recipe, out = load_recipe("vae"), tmp_path / "run"
    argv = ["--device", "cpu", "--batch-size", "8", "--steps", "2", "--out", str(out), *TINY["vae"]]
    experiment.main(recipe.Settings, recipe.build, argv)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert contains(refused("vae", *argv), str(out), "another run", "--resume auto", "--overwrite")
    assert contains(refused("gan", *argv[2:]), str(out), "another run")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # Another recipe does not go on from it, and another architecture is named by its tensors (faults 37, 38).
    assert contains(refused("gan", *argv, "--resume", "auto"), "recipe 'vae', this is 'gan'")
    wider = refused(
        "vae", "--batch-size", 8, "--out", out, "--steps", 3, "--width", 16, "--latent", 4, "--resume", "auto"
    )
    assert contains(wider, "another architecture", "expected (16, 1, 3, 3), got (8, 1, 3, 3)")
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")}.items() <= before.items()
    # Another seed is another order of the data.
    assert contains(refused("vae", *argv, "--steps", 3, "--seed", 1, "--resume", "auto"), "--seed 1", "of seed 0")


def test_fault_24_a_parameter_that_nobody_moves(refused):
    """In no optimizer by accident: named; meant: `still`, or requires_grad False."""

    def build(settings, data, forgotten=lambda layer: None):
        (stage,) = toy()(settings, data)
        model = nn.ModuleDict({"head": stage.model, "trunk": nn.Linear(3, 3)})
        model.sample = stage.model.sample
        forgotten(model["trunk"])
        return [Stage("painting", model, stage.players)]

    found = refused(build, "--resolution", 8)
    assert contains(found, "stage 'painting'", "no player moves trunk.weight, trunk.bias", "requires_grad")


def test_fault_24_a_parameter_of_two_players(refused):
    def build(settings, data):
        (stage,) = toy()(settings, data)
        whole = nn.Sequential(stage.model)
        second = Player(lambda x: Terms(b=whole(x.flatten(1))[:, 0]), [whole], optimizer=SGD, name="second")
        return [Stage("painting", stage.model, [*stage.players, second])]

    found = refused(build, "--resolution", 8, "--steps", 2)
    assert contains(found, "stage 'painting'", "'painter' and 'second' both move 0.weight", "(1, 64)")


def test_fault_24_a_parameter_without_a_gradient(refused):
    """What a loss does not use is named in the first step, before anything is saved."""

    def loss(layer, x):
        return Terms(a=x.flatten(1) @ layer.weight[0])

    found = refused(toy(loss=loss), "--resolution", 8, "--steps", 2)
    assert contains(found, "stage 'painting'", "player 'painter'", "does not use 1 of the parameters it moves: 0.bias")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_fault_25_a_device_that_is_not_there(refused, device):
    there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
    if there:
        pytest.skip(f"{device} is available")
    assert contains(refused("vae", "--device", device), f"--device {device}", "auto", "cpu")


# Checkpoints and folders.


def test_fault_47_nothing_to_resume_from(refused, tmp_path):
    """A path with nothing there is refused, resolved; no run is begun."""
    found = refused("vae", "--resume", "nowhere", "--out", "fresh")
    assert contains(found, "--resume nowhere", str(tmp_path / "nowhere"), "auto")
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == [".lock"]


def test_fault_49_a_folder_that_cannot_be_written(refused, tmp_path):
    """Refused at the start."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    # To root permissions say nothing; below a file not even root can make a folder.
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run" if os.access(closed, os.W_OK) else closed / "run"
    assert contains(refused("vae", "--out", out), f"--out {out}", "cannot be written", "give a folder that can")


def test_fault_48_a_folder_in_use(refused, tmp_path):
    """A second run in one folder is refused while the first lives."""
    from hybrids.experiment.checkpoints.run_folder import lock

    with lock(tmp_path / "run"):
        assert contains(refused("vae", "--out", tmp_path / "run"), "is in use by process", "another folder")


def test_overwrite_replaces_a_run(tmp_path, few_digits):
    """The remedy that fault 22's message names works."""
    recipe, out = load_recipe("vae"), tmp_path / "run"
    argv = ["--device", "cpu", "--batch-size", "8", "--out", str(out), *TINY["vae"]]
    experiment.main(recipe.Settings, recipe.build, [*argv, "--steps", "3"])
    (out / "notes.txt").write_text("mine")
    experiment.main(recipe.Settings, recipe.build, [*argv, "--steps", "2", "--overwrite"])
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-2"]
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [ValueError("image 3 is cut off"), WorkerDied("a data worker was killed")])
def test_fault_14_data_that_fails_in_mid_run_ends_in_one_message(error, refused, tmp_path):
    """Steps after the first: exit code 2, what failed, and the checkpoint before it stays."""

    def build(settings, data):
        layer = nn.Linear(64, 1)
        layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)

        class Failing:
            """Batches that end in an error."""

            def __iter__(self):
                yield from [torch.zeros(4, 1, 8, 8)] * 3
                raise error

            def state_dict(self):
                return {}

        player = Player(lambda x: Terms(a=layer(x.flatten(1))[:, 0].square()), [layer], optimizer=SGD, name="one")
        return [Stage("one", layer, [player], batches=Failing())]

    out = tmp_path / "run"
    argv = ["--steps", 9, "--checkpoint-every", 2, "--resolution", 8, "--out", out]
    assert refused(build, *argv) == f"refused: stopped: {error}"
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-2"]
