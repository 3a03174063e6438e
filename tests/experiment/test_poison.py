"""Run folders of strangers: whatever lies in them is refused by name; nothing is executed, or written outside them.

`hybrids.load`, sample.py, evaluate.py, verify.py and a resume read folders that were changed by one who can write right
seals.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import stat
import struct
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from small import TINY

import hybrids
from hybrids import experiment
from hybrids.experiment import Refusal, load_recipe
from hybrids.experiment.checkpoints.checkpoint import _render, _seal
from hybrids.own import load_module

pytestmark = pytest.mark.slow  # 52 folders

SCRIPTS = Path(__file__).parents[2] / "scripts"
STEP = "checkpoints/step-2"
RECIPE = load_recipe("vae")
WORDS = ["--device", "cpu", "--batch-size", "8", *TINY["vae"]]


def train(out, *argv):
    experiment.main(RECIPE.Settings, RECIPE.build, [*WORDS, "--out", str(out), *map(str, argv)])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A whole run of two steps."""
    out = tmp_path_factory.mktemp("poison") / "run"
    train(out, "--steps", 2)
    return out


@pytest.fixture
def readers(monkeypatch):
    """Everything that reads a run folder, by name: a function of the folder and further words of a command line."""

    def script(name, *options):
        module = load_module(SCRIPTS / f"{name}.py")

        def read(run, *words):
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, [run, *options, *words])])
            module.main()

        return read

    return {
        "sample": script("sample", "--device", "cpu", "--number", 2),
        "evaluate": script("evaluate", "--likelihood", "--device", "cpu", "--examples", 4, "--draws", 1),
        "verify": script("verify"),
        "load": hybrids.load,
        "resume": lambda run, *words: train(run, "--steps", 3, "--resume", "auto", *words),
    }


# Ways to change a run folder.


def reseal(run, **changed):
    """Write another manifest as one who knows the format would."""
    path = run / STEP / "manifest.json"
    body = {**json.loads(path.read_text()), **changed}
    body.pop("seal")
    path.write_text(_render({**body, "seal": _seal(body)}))


def manifest(**changed):
    return lambda run: reseal(run, **changed)


def card(part=None, **changed):
    """Change entries of the card, or of a part of it."""

    def change(run):
        card = json.loads((run / STEP / "manifest.json").read_text())["card"]
        reseal(run, card={**card, **changed} if part is None else {**card, part: {**card[part], **changed}})

    return change


def content(name, data):
    """Change a file of the checkpoint, and its entry in the manifest; data are bytes, or made of the old ones."""

    def change(run):
        path = run / STEP / name
        new = data(path.read_bytes()) if callable(data) else data
        path.write_bytes(new)
        files = json.loads((run / STEP / "manifest.json").read_text())["files"]
        reseal(run, files={**files, name: {"size": len(new), "sha256": hashlib.sha256(new).hexdigest()}})

    return change


def entries(name, **changed):
    return content(name, lambda old: json.dumps({**json.loads(old), **changed}).encode())


def tensor_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return content("stage-0.safetensors", struct.pack("<Q", len(text)) + text + data)


def one_tensor(**changed):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changed}
    return tensor_file({"x": entry}, b"\0\0\0\0")


def moments(change):
    def changed(run):
        tensors = {key: change(value) for key, value in load_file(run / STEP / "optimizers.safetensors").items()}
        content("optimizers.safetensors", save(tensors))(run)

    return changed


def linked(name):
    """Put a link to the folder `aim` beside the run in the place of a name."""

    def change(run):
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(run.parent / "aim")

    return change


def replaced(name, make):
    """Put something of another kind in the place of a file."""

    def change(run):
        (run / name).unlink(missing_ok=True)
        make(run / name)

    return change


class Poison:
    def __reduce__(self):
        return (exec, (EVIL,))


EVIL = "import pathlib; pathlib.Path('witness').touch()"
FILE_OF_CODE = pickle.dumps(Poison())
MODEL, ALL = {"load", "sample", "evaluate"}, {"load", "sample", "evaluate", "resume"}
UNREAD = "stage-0.safetensors: cannot be read"
DEEP = b"[" * 100_000

FOLDERS = {
    "nothing": (lambda run: None, set(), ""),
    # Code and paths.
    "a recipe in the run folder": (card(recipe="stranger"), ALL, "recipe 'stranger'"),
    "a path for a recipe": (card(recipe="../stranger"), ALL, "'../stranger'"),
    "a long name of a recipe": (card(recipe="a" * 5000), ALL, "aaaaaaaa"),
    "another recipe": (card(recipe="gan"), ALL, "recipe 'gan'|step-2"),
    "a pickle": (content("stage-0.safetensors", FILE_OF_CODE), ALL, UNREAD),
    "data made by a file": (card("settings", data="evil.py:make"), {"evaluate"}, "Python file.*--data evil.py:make"),
    "data elsewhere": (card("settings", data="/etc/passwd"), {"evaluate"}, "--data /etc/passwd is not a folder"),
    "no data": (card("settings", data=["x"]), MODEL, "data: expected text"),
    "a path in a manifest": (manifest(files={"../x.json": {"size": 1, "sha256": ""}}), ALL | {"verify"}, "'../x.json'"),
    # Links and other kinds of files.
    "samples lead out": (linked("samples"), {"sample", "resume"}, "samples is a symbolic link"),
    "parts lead out": (linked(".evaluation.json.parts"), {"evaluate"}, r"\.parts is a symbolic link"),
    "the evaluation leads out": (linked("evaluation.json"), {"evaluate"}, "evaluation.json: is a folder"),
    "a checkpoint in a circle": (
        lambda run: (shutil.rmtree(run / STEP), (run / STEP).symlink_to(run / STEP)),
        ALL | {"verify"},
        "step-2: there is no such checkpoint|no checkpoint there",
    ),
    "a pipe for a log": (replaced("metrics.jsonl", os.mkfifo), {"resume"}, "metrics.jsonl is there and is not a file"),
    "a folder for a summary": (replaced("summary.json", os.mkdir), {"resume"}, "summary.json is there"),
    "a folder for a picture": (replaced("samples/step-3.png", os.mkdir), set(), ""),
    "a pipe for weights": (replaced(f"{STEP}/stage-0.safetensors", os.mkfifo), ALL | {"verify"}, "is missing"),
}
CONTENTS = {
    # What JSON can hold.
    "settings that are none": (card(settings=[]), ALL, "step-2: its content does not fit"),
    "a setting of another type": (card("settings", width="abc"), MODEL, "step-2, setting width: expected a whole"),
    "a network too large": (card("settings", latent=10**12), MODEL, "step-2: its content does not fit.*memory"),
    "an integer too large": (card("settings", width=10**30), MODEL, "step-2, setting width: expected a whole"),
    "no data set": (card(data=[]), ALL, "step-2: its content does not fit"),
    "a shape of text": (card("data", shape="abc"), MODEL, "step-2: its content does not fit"),
    "a shape too large": (
        card("data", shape=[1, 10**6, 10**6]),
        MODEL,
        "step-2(: its content does not fit|.*another architecture)",
    ),
    "a scale of text": (card("data", scale=["x"] * 64), ALL, "step-2: (its content does not fit|the data's scale)"),
    "a negative step": (manifest(step=-3), ALL | {"verify"}, "step-2/manifest.json: is no manifest"),
    "shapes that are none": (
        manifest(tensors={"stage-0.safetensors": {"x": [["a"], "F32"]}}),
        ALL | {"verify"},
        "step-2/manifest.json: is no manifest",
    ),
    "deep JSON": (content("progress.json", DEEP), ALL, "progress.json: cannot be read"),
    "long numbers": (content("progress.json", b"9" * 10_000), ALL, "progress.json: cannot be read"),
    "no progress": (content("progress.json", b"[]"), ALL, "step-2: its content does not fit"),
    "a stage before the first": (entries("progress.json", stage=-1), ALL, "its stage is number -1, of 1"),
    "a stage after the last": (entries("progress.json", stage=9), ALL, "its stage is number 9, of 1"),
    "no time": (entries("progress.json", seconds=None), {"resume"}, "step-2: its content does not fit"),
    "a negative position": (
        entries("rank-0.json", batches={"consumed": -5, "seed": 0}),
        {"resume"},
        "position in the data must be a number of examples; got -5",
    ),
    "no position": (entries("rank-0.json", batches=[]), {"resume"}, "step-2: its content does not fit"),
    "no random numbers": (entries("rank-0.json", python="x"), {"resume"}, "step-2: its content does not fit"),
    "no average": (content("ema.json", b"{}"), {"resume"}, "step-2: its content does not fit"),
    # Tensors.
    "moments of another shape": (
        moments(lambda x: x[:1] if x.ndim else x),
        {"resume"},
        "step-2, optimizer, vae/",
    ),
    "steps of another shape": (moments(lambda x: x if x.ndim else torch.zeros(3)), {"resume"}, r"other shape step"),
    "a huge header": (content("stage-0.safetensors", struct.pack("<Q", 2**62)), ALL, UNREAD),
    "a deep header": (tensor_file(DEEP), ALL, UNREAD),
    "a shape of halves": (one_tensor(shape=[0.5, 2]), ALL, UNREAD),
    "a shape beyond 64 bits": (one_tensor(shape=[0, 10**30], data_offsets=[0, 0]), ALL, UNREAD),
    "an offset of a half": (one_tensor(data_offsets=[0.0, 4.0]), ALL, UNREAD),
    "a dtype that is none": (one_tensor(dtype=["F32"]), ALL, UNREAD),
    "a hundred dimensions": (one_tensor(shape=[1] * 100), ALL, "stage-0.safetensors: cannot be read|another architect"),
}
POISONS = FOLDERS | CONTENTS
"""How a run folder is changed, by whom it is refused, and in which words; the others read it as if nothing were."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def attempt(read, run, capsys) -> tuple[int, str]:
    """Return the exit code, and the message or what was printed."""
    try:
        read(run)
    except Refusal as refusal:
        return 2, str(refusal)
    except SystemExit as end:
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return end.code, printed.out + printed.err
    return 0, ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", POISONS)
def test_a_poisoned_run_folder(row, original, readers, tmp_path, monkeypatch, capsys):
    """Refused by those that `POISONS` says, in its words; read by the others as if nothing were wrong."""
    poison, refusing, words = POISONS[row]
    run, aim, here = tmp_path / "run", tmp_path / "aim", tmp_path / "here"
    (here / "recipes").mkdir(parents=True)
    for path in (here / "recipes" / "stranger.py", here / "recipes" / "vae.py", here / "evil.py"):
        path.write_text(EVIL)
    monkeypatch.chdir(here)
    aim.mkdir()
    (aim / "chunk-000000.safetensors").write_text("precious")
    before = contents(aim) | contents(here)
    for name, read in readers.items():
        if row in CONTENTS and name in ("sample", "evaluate"):
            continue  # They begin with `load`.
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(original, run)
        shutil.copytree(here / "recipes", run / "recipes")
        poison(run)
        code, message = attempt(read, run, capsys)
        if name in refusing:
            assert code == 2 or name == "verify" and code == 1, (name, message)
            assert re.search(words, message, re.DOTALL), (name, message)
        else:
            assert code == 0, (name, message)
        assert contents(aim) | contents(here) == before, name


def test_the_poison_works(tmp_path, monkeypatch):
    """Or `test_a_poisoned_run_folder` would show nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(FILE_OF_CODE)
    assert (tmp_path / "witness").exists()


def test_verify_opens_no_pipe(original, readers, tmp_path):
    """Of a checkpoint without a manifest it looks for what is usable; opening a pipe would wait for ever."""
    run = shutil.copytree(original, tmp_path / "run")
    (run / STEP / "manifest.json").write_text("{")
    os.mkfifo(run / STEP / "pipe.safetensors")
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            readers["verify"](run)
        except SystemExit as end:
            os._exit(end.code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_parts_of_an_evaluation_that_cannot_be_read(original, readers, tmp_path, capsys, monkeypatch):
    """A message that names the file; the card of the parts is right."""
    from hybrids.evaluation.chunks import Chunks

    run = shutil.copytree(original, tmp_path / "run")
    write = Chunks.write
    monkeypatch.setattr(Chunks, "write", lambda self, number, values: self._path(number).write_text("no tensors"))
    code, message = attempt(readers["evaluate"], run, capsys)
    assert code == 2 and re.search(r"chunk-000000.safetensors: cannot be read .*; remove it", message)
    monkeypatch.setattr(Chunks, "write", write)
    (run / ".evaluation.json.parts/chunk-000000.safetensors").unlink()
    assert attempt(readers["evaluate"], run, capsys)[0] == 0


# Run folders that were moved, copied, or are another user's.


@contextmanager
def another_user():
    """Nobody, where this process is root, whom permissions do not stop; else this user."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared():
    """A folder that every user can read; pytest's own are one user's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def test_a_copy_that_another_user_can_only_read(original, readers, shared, capsys):
    """It loads, samples, is evaluated and verified; results go where --out says, and not there is a refusal."""
    run, mine = shared / "copied", shared / "mine"
    shutil.copytree(original, run)
    mine.mkdir()
    mine.chmod(0o777)
    for path in [run, *run.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) | stat.S_IRGRP | stat.S_IROTH)
    before = contents(run)
    # What only root could read of the project is read before.
    expected = hybrids.load(original)
    attempt(readers["evaluate"], original, capsys)
    with another_user():
        with pytest.raises(PermissionError):
            (run / "mine").touch()
        model = hybrids.load(run)
        readers["verify"](run)
        readers["sample"](run, "--out", mine / "x.png", "--tensor", mine / "x.safetensors")
        readers["evaluate"](run, "--out", mine / "x.json")
        refusals = [attempt(readers[name], run, capsys) for name in ("sample", "evaluate", "resume")]
    for code, message in refusals:
        assert code == 2 and re.search(r"--out .*copied.* cannot be written \(Permission denied", message), message
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert {path.name for path in mine.iterdir()} == {"x.png", "x.safetensors", "x.json"}
    assert contents(run) == before


def test_a_run_that_was_moved_goes_on(original, tmp_path):
    """As it would have where it was: nothing in a run folder depends on its place."""
    stays, moved = (shutil.copytree(original, tmp_path / name) for name in ("stays", "elsewhere"))
    moved = moved.rename(tmp_path / "moved")
    for run in (stays, moved):
        train(run, "--steps", 3, "--resume", "auto")
    a, b = (load_file(run / "checkpoints/step-3/stage-0.safetensors") for run in (stays, moved))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "elsewhere").exists()
