"""What bad settings and bad luck get, as a user of a recipe sees it: an exit code, one message, no traceback.

`FAULTS` lists, for each row of the list of faults, the tests that hold it; the details of each message are tested where
it is made.
"""

import json
import os
import re
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small import TINY
from torch import nn

from components.denoisers import Denoiser
from components.schedules import FlowSchedule
from hybrids import Player, Terms, experiment
from hybrids.data.streaming import WorkerDied
from hybrids.experiment import Stage, load_recipe
from hybrids.experiment.checkpoints.checkpoint import verify

FOLDERS, STREAMING, BATCHES = "data/test_folders", "data/test_streaming", "data/test_batches"
HERE, RUN, CHECKPOINT = "experiment/test_faults", "experiment/test_run", "experiment/test_checkpoint"
FAULTS = {
    1: (FOLDERS, "fault_1_a_missing_folder"),
    2: (FOLDERS, "fault_2_an_empty_folder"),
    3: (FOLDERS, "faults_3_and_4_bad_images"),
    4: (FOLDERS, "faults_3_and_4_bad_images"),
    5: (FOLDERS, "fault_5_other_files"),
    6: (FOLDERS, "fault_6_mixed_sizes"),
    7: (FOLDERS, "faults_7_and_8_modes"),
    8: (FOLDERS, "fault_8_sixteen_bits"),
    9: (FOLDERS, "fault_9_decompression_bombs"),
    10: (HERE, "fault_10_a_batch_larger"),
    11: (BATCHES, "faults_10_and_11"),
    12: (FOLDERS, "fault_12_uneven_shards"),
    13: (FOLDERS, "fault_13_a_link_to_a_folder_above"),
    14: (STREAMING, "fault_14_a_killed_worker"),
    15: (HERE, "faults_15_and_16_bad_batches"),
    16: (HERE, "faults_15_and_16_bad_batches"),
    17: (HERE, "fault_17_unknown_settings"),
    18: (HERE, "fault_18_types_and_ranges"),
    19: (HERE, "fault_19_parts"),
    20: (HERE, "fault_20_a_schedule_and_a_prediction"),
    21: (HERE, "fault_21_fp16"),
    22: (HERE, "fault_22_a_folder"),
    23: ("data/test_hub", "fault_23_a_missing_package"),
    24: (HERE, "fault_24_a_parameter"),
    25: (HERE, "fault_25_a_device"),
    26: (RUN, "a_loss_that_is_not_finite"),
    27: (RUN, "a_gradient_that_is_not_finite"),
    28: (HERE, "fault_28_out_of_memory"),
    29: (RUN, "a_nan_before_the_last_checkpoint"),
    30: (HERE, "fault_30_a_full_disk"),
    31: (CHECKPOINT, "a_kill_at_each_stage"),
    32: (RUN, "a_signal_stops_a_run"),
    33: (RUN, "a_second_signal"),
    34: (HERE, "faults_34_to_36_damage"),
    35: (HERE, "faults_34_to_36_damage"),
    36: (HERE, "faults_34_to_36_damage"),
    37: (HERE, "fault_22_a_folder"),
    38: (HERE, "fault_22_a_folder"),
    39: (CHECKPOINT, "a_poisoned_pickle"),
    40: (CHECKPOINT, "a_path_out_of_the_folder"),
    41: (RUN, "two_processes_resume"),
    42: (HERE, "fault_42_missing_random_numbers"),
    43: (RUN, "fault_43_a_resume"),
    44: (HERE, "faults_44_and_45_another_format"),
    45: (HERE, "faults_44_and_45_another_format"),
    46: (CHECKPOINT, "keep_one_writes_first"),
    47: (HERE, "fault_47_nothing_to_resume_from"),
    48: (HERE, "fault_48_a_folder_in_use"),
    49: (HERE, "fault_49_a_folder_that_cannot"),
    50: (HERE, "fault_50_tensorboard"),
}
"""Row of the list of faults → a file of tests and how the name of a test in it begins."""

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a recipe's main (or another build) and return what it is refused with, one reason a line."""
    monkeypatch.chdir(tmp_path)

    def refuse(name, *argv, settings=experiment.Settings, code=2):
        build = name
        if isinstance(name, str):
            recipe = load_recipe(name)
            build, settings = recipe.build, recipe.Settings
        if "--device" not in argv:
            argv = ("--device", "cpu", *argv)
        with pytest.raises(SystemExit) as caught:
            experiment.main(settings, build, [str(a) for a in argv])
        said = capsys.readouterr()
        assert caught.value.code == code and "Traceback" not in said.err + said.out
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


@pytest.mark.parametrize("number", range(1, 51))
def test_every_fault_has_a_test(number):
    file, name = FAULTS[number]
    assert re.search(rf"^def test_{name}", (Path(__file__).parents[1] / f"{file}.py").read_text(), re.MULTILINE)


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
    """Batches of one's own: the same one again and again, after so many of zeros."""

    def __init__(self, batch, zeros=0):
        self.batch, self.zeros = batch, zeros

    def __iter__(self):
        yield from [torch.zeros(4, 1, 8, 8)] * self.zeros
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
    assert contains(found, "stage 'painting', step 1: ", *parts) and "checkpoints" not in found
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        (torch.full((4, 1, 8, 8), float("nan")), ("finite", "sample 0", "NaN")),
        (torch.full((4, 1, 8, 8), 255.0), ("[-1, 1]", "sample 0", "255")),
        (
            {"x": torch.zeros(4, 1, 8, 8), "cond": torch.tensor([0, 1, 7, 2])},
            ("labels must be in 0..3", "sample 2", "7"),
        ),
    ],
    ids=["NaN", "scale", "label"],
)
def test_faults_15_and_16_bad_batches_in_mid_run(refused, tmp_path, batch, parts):
    """After the first step: exit code 2, the step, and the checkpoint before it stays whole."""

    def build(settings, data):
        (stage,) = toy(Fixed(batch, 3))(settings, data)
        stage.model.num_classes = 4
        return [stage]

    argv = ["--steps", 9, "--checkpoint-every", 2, "--resolution", 8, "--out", tmp_path / "run"]
    message = refused(build, *argv)
    assert contains(message, "stage 'painting', step 4: ", *parts, "checkpoints of the run are from before")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]
    verify(tmp_path / "run/checkpoints/step-2")


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
    """Images too small for a network are refused when it is built, with recipe, data, shape and remedy named."""
    few = refused("hierarchical_vae", "--levels", 5)
    assert contains(few, "recipe hierarchical_vae with --data digits", "(1, 8, 8)", "got 5", "--resolution")
    assert contains(refused("ddpm", "--sample-steps", 2000), "--sample-steps 2000", "--timesteps 1000")


def test_a_network_that_is_too_large(refused):
    """Refused when it is built, with the reason; a rate without a weight would leave a network unused."""
    message = refused("vae", "--width", 10**9, "--latent", 10**9)
    assert contains(message, "recipe vae with --data digits: out of memory", "lower --resolution")
    assert contains(refused("hierarchical_vae", "--beta", 0), "--beta", "above 0", "'0'")


def test_fault_20_a_schedule_and_a_prediction(refused):
    """ε at pure noise says nothing of x: refused at build, with the predictions that go."""

    def build(settings, data):
        Denoiser(nn.Identity(), FlowSchedule(), "epsilon")

    assert contains(
        refused(build, "--resolution", 8),
        "recipe test_faults with --data digits",
        "'epsilon' does not go with",
        "use v_prediction",
    )


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


# A run that stops, and what is left of it.


def go(out, *argv, build=None):
    """A run of one linear layer; each word of argv is text."""
    words = ["--device", "cpu", "--resolution", "8", "--batch-size", "4", "--log-every", "1", "--out", str(out)]
    experiment.main(experiment.Settings, build or toy(), [*words, *map(str, argv)])


def at_step(actions):
    """A loss that does something while a step is computed: step (from 1) → action."""
    calls = []

    def loss(layer, x):
        calls.append(1)
        if action := actions.get(len(calls)):
            action()
        return Terms(a=layer(x.flatten(1))[:, 0].square())

    return loss


@contextmanager
def full_disk():
    """Yield a function after whose call every write of this process fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_fault_28_out_of_memory(error, refused, tmp_path, few_digits):
    """Advice in numbers, and the checkpoint before it stays."""

    def out_of_memory():
        raise error

    build = toy(loss=at_step({4: out_of_memory}))
    argv = ["--resolution", 8, "--batch-size", 4, "--steps", 6, "--checkpoint-every", 2, "--out", tmp_path / "run"]
    message = refused(build, *argv)
    assert contains(message, "out of memory", "--batch-size 2 --accumulation 2", "are intact", "--resume auto")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]


def test_fault_30_a_full_disk_in_a_save(refused, tmp_path, few_digits):
    """Exit code 74, the cause; the checkpoint before is whole, nothing temporary stays, and the run goes on from it."""
    out = tmp_path / "run"
    argv = ["--resolution", 8, "--batch-size", 4, "--steps", 6, "--log-every", 1, "--checkpoint-every", 2, "--out", out]
    with full_disk() as fill, pytest.warns(UserWarning, match="the log's line of step 4 was not written"):
        message = refused(toy(loss=at_step({4: fill})), *argv, code=74)
    assert contains(message, "step-4: was not saved", "File too large", "MiB are free", "--resume auto")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-2"]
    go(out, "--steps", 6, "--resume", "auto")
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_at_a_line_of_the_log_costs_that_line(tmp_path, few_digits):
    """The run goes on, and the lines before and after are whole."""
    out = tmp_path / "run"
    with full_disk() as fill:
        free = partial(resource.setrlimit, resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
        loss = at_step({4: fill, 6: free})  # the first call is that of the table of players
        with pytest.warns(UserWarning) as caught:
            go(out, "--steps", 6, build=toy(loss=loss))
    warned = [str(one.message) for one in caught if "was not written" in str(one.message)]
    assert [re.search(r"line of step (\d)", text)[1] for text in warned] == ["3", "4"]
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 5, 6]
    assert (out / "summary.json").is_file() and (out / "checkpoints/step-6/manifest.json").is_file()


def test_a_full_disk_at_the_start_is_refused(refused, tmp_path, few_digits):
    """Exit code 74; on resume the log is as it was."""
    out = tmp_path / "run"
    go(out, "--steps", 2)
    before = contents(out)
    argv = ["--resolution", 8, "--batch-size", 4, "--steps", 4, "--out", out, "--resume", "auto"]
    with full_disk() as fill, pytest.warns(UserWarning, match=r"\.lock: cannot be written"):
        fill()
        message = refused(toy(), *argv, code=74)
    assert contains(message, f"--out {out}: cannot be written", "File too large", "make room")
    assert contents(out) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_faults_34_to_36_damage(damage, refused, tmp_path, few_digits):
    """`auto` warns and takes the checkpoint before; an explicit path is refused; where none is whole, `auto` refuses
    and changes nothing: neither the log nor what is still usable."""
    out = tmp_path / "run"
    go(out, "--steps", 4, "--checkpoint-every", 2)

    def spoil(step):
        path = out / f"checkpoints/step-{step}/optimizers.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
        if damage == "missing":
            path.unlink()

    spoil(4)
    argv = ["--resolution", 8, "--batch-size", 4, "--steps", 6, "--log-every", 1, "--out", out]
    why = {"truncated": "truncated?", "flipped": "corrupted", "missing": "is missing"}[damage]
    assert contains(refused(toy(), *argv, "--resume", out / "checkpoints/step-4"), "step-4/optimizers.safetensors", why)
    shutil.copytree(out, tmp_path / "other")
    with pytest.warns(UserWarning, match="checkpoint passed over: .*step-4/optimizers.safetensors"):
        go(tmp_path / "other", "--steps", 4, "--resume", "auto")
    spoil(2)
    before = contents(out)
    message = refused(toy(), *argv, "--resume", "auto")
    assert contains(message, "none of its checkpoints is whole", "step-4/", "step-2/", why, "scripts/verify.py")
    assert contents(out) == before


def test_fault_42_missing_random_numbers(tmp_path, few_digits):
    """A checkpoint without them resumes with a warning."""
    from accelerate import Accelerator

    from hybrids.experiment.checkpoints.checkpoint import read, save

    out = tmp_path / "run"
    go(out, "--steps", 2)
    saved = read(out / "checkpoints/step-2", 0)
    state = replace(saved.state, rank_tensors={}, rank_values={})
    save(out / "checkpoints", 2, state, saved.card, Accelerator(cpu=True), 2)
    with pytest.warns(UserWarning, match="has no random number state for this process: .* not bit-exactly"):
        go(out, "--steps", 3, "--resume", "auto")
    assert (out / "checkpoints/step-3/manifest.json").is_file()


@pytest.mark.parametrize(("version", "words"), [(9, "update hybrids"), (1, "an older hybrids wrote")])
def test_faults_44_and_45_another_format(version, words, refused, tmp_path, few_digits):
    """Refused, naming both formats, though an older checkpoint is whole; nothing changes."""
    out = tmp_path / "run"
    go(out, "--steps", 4, "--checkpoint-every", 2)
    path = out / "checkpoints/step-4/manifest.json"
    path.write_text(path.read_text().replace('"format": 2', f'"format": {version}'))
    before = contents(out)
    argv = ["--resolution", 8, "--batch-size", 4, "--steps", 6, "--out", out, "--resume", "auto"]
    assert contains(refused(toy(), *argv), f"is of format {version}", "reads format 2", words)
    assert contents(out) == before


def test_auto_without_out_is_refused(refused):
    assert contains(refused("vae", "--resume", "auto"), "--resume auto", "without --out", "add it")


def test_fault_50_tensorboard(tmp_path, few_digits, monkeypatch):
    """Its failure is a warning, and the run goes on without it."""

    def broken(*args, **options):
        raise RuntimeError("no board today")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", broken)
    with pytest.warns(UserWarning, match="TensorBoard failed .no board today.; the run goes on"):
        go(tmp_path / "run", "--steps", 2)
    assert (tmp_path / "run/summary.json").is_file()


NAMES = [".lock", "config.yaml", "metrics.jsonl", "summary.json", "samples", "tensorboard", "checkpoints"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_through_a_link(name, refused, tmp_path, few_digits):
    """A run folder of a stranger's, with a link out under a name that a run writes, is refused."""
    out, aim = tmp_path / "run", tmp_path / "aim"
    out.mkdir()
    aim.touch() if "." in name else aim.mkdir()
    (out / name).symlink_to(aim)
    for more in ([], ["--resume", "auto"], ["--overwrite"]):
        argv = ["--resolution", 8, "--batch-size", 4, "--steps", 2, "--out", out, *more]
        assert contains(refused(toy(), *argv), f"--out {out}: {name} is a symbolic link to {aim}", "remove the link")
    assert aim.read_bytes() == b"" if aim.is_file() else not list(aim.iterdir())


def test_temporary_names_are_not_written_through(tmp_path, few_digits):
    """A link under a temporary name is replaced, and what it leads to is left alone."""
    out, aim = tmp_path / "run", tmp_path / "aim"
    (out / "checkpoints").mkdir(parents=True)
    aim.mkdir()
    for name in (f".writable-{os.getpid()}.tmp", f".config.yaml.{os.getpid()}.tmp", f".summary.json.{os.getpid()}.tmp"):
        (out / name).symlink_to(aim / "new")
    (out / "checkpoints/.step-2.tmp").symlink_to(aim)
    go(out, "--steps", 2)
    assert not list(aim.iterdir()) and (out / "checkpoints/step-2/manifest.json").is_file()


@pytest.mark.parametrize("line", ["3", "[1]", '{"step": "x"}', "[" * 100_000, "\udcff"])
def test_strange_lines_of_a_log_are_dropped(line, tmp_path, few_digits):
    """What another hand, or a crash, left in metrics.jsonl does not stop a resume."""
    out = tmp_path / "run"
    go(out, "--steps", 2)
    with (out / "metrics.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    go(out, "--steps", 3, "--resume", "auto")
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
