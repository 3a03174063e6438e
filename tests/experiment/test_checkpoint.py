"""Checkpoints: what is saved comes back; what is damaged, cut off or foreign is refused; nothing valid is lost."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybrids.experiment.checkpoints.checkpoint import (
    FORMAT,
    CheckpointError,
    OtherFormat,
    _render,
    _seal,
    newest,
    read,
    read_newest,
    save,
    verify,
)
from hybrids.experiment.checkpoints.run_folder import claim, lock
from hybrids.experiment.checkpoints.state import State, compare
from hybrids.files import append_line, parse_tensors
from hybrids.processes import agree, decide_on_main
from hybrids.refusal import Refusal

REPOSITORY = Path(__file__).parents[2]
FILES = ["model.safetensors", "model.json", "game.json", "rank-0.safetensors", "rank-0.json", "manifest.json"]


@pytest.fixture
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


@pytest.fixture
def put(accelerator, tmp_path):
    """Save a small checkpoint of a step under RUN/checkpoints."""

    def put(step: int, keep: int = 9, root: Path = tmp_path / "checkpoints", **changed) -> Path:
        card = changed.pop("card", {"recipe": "toy"})
        state = State(
            tensors={"model": {"w": torch.full((2, 3), float(step)), "b": torch.zeros(3)}},
            values={"model": {"decay": 0.1}, "game": {"turns": [1, 2]}},
            rank_tensors={"rng": torch.get_rng_state()},
            rank_values={"position": step},
        )
        return save(root, step, replace(state, **changed), card, accelerator, keep)

    return put


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def reseal(folder: Path, **changed) -> None:
    """Write another manifest as one who knows the format would."""
    body = {**json.loads((folder / "manifest.json").read_text()), **changed}
    body.pop("seal")
    (folder / "manifest.json").write_text(_render({**body, "seal": _seal(body)}))


# What is saved comes back.


def test_a_checkpoint_has_its_files_and_nothing_else(put):
    folder = put(7)
    assert folder.name == "step-7" and names(folder) == sorted(FILES) and names(folder.parent) == ["step-7"]
    manifest = verify(folder)
    assert (manifest["format"], manifest["step"], manifest["world_size"]) == (FORMAT, 7, 1)
    assert manifest["tensors"]["model.safetensors"] == {"b": [[3], "F32"], "w": [[2, 3], "F32"]}
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # as the umask says, tensors too


def test_tensors_and_states_come_back_bit_for_bit(put):
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tied = torch.nn.Linear(4, 4)
    tensors = {
        "transposed": base.T,
        "strided": base[::2, 1:3],
        "view": base[2:],
        "same": base,
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "empty too": torch.zeros(0, 3),
        "bits": torch.tensor([True, False]),
        "half": base.bfloat16(),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "whole": torch.tensor(2**62),
        "expanded": torch.ones(1).expand(3, 2),
        "a.weight": tied.weight,
        "b.weight": tied.weight,
    }
    state = {"third": 1 / 3, "huge": 2**100, "none": None, "text": "ü", "list": [1, [2.5]]}
    folder = put(3, tensors={"odd": tensors}, values={"odd": state}, rank_tensors={}, rank_values=None)
    got = read(folder, rank=0)
    assert (got.step, got.card, got.world_size) == (3, {"recipe": "toy"}, 1)
    assert got.state.values == {"odd": state} and got.state.rank_values is None and got.state.rank_tensors == {}
    for name, tensor in tensors.items():
        back = got.state.tensors["odd"][name]
        assert back.shape == tensor.shape and back.dtype == tensor.dtype and back.device.type == "cpu", name
        as_bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
        assert not tensor.numel() or torch.equal(back.reshape(-1).view(torch.uint8), as_bytes), name
    got.state.tensors["odd"]["same"].zero_()  # writable, and no view of its neighbours
    assert got.state.tensors["odd"]["view"].abs().sum() > 0


def test_the_generator_s_state_comes_back(put):
    got = read(put(1), rank=0)
    state = got.state.rank_tensors["rng"].clone()
    torch.set_rng_state(state)
    first = torch.rand(3)
    torch.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))


def test_the_rank_s_parts_are_none_for_another_world(put):
    folder = put(1)
    assert read(folder, rank=0, world_size=1).state.rank_values == {"position": 1}
    for got in (read(folder, rank=0, world_size=2), read(folder, rank=1)):
        assert got.state.rank_tensors is None and got.state.rank_values is None and got.state.tensors["model"]


def test_a_state_that_json_would_change_is_refused(put):
    with pytest.raises(CheckpointError, match=r"game.json: keys must be text, as JSON has no others; got 1"):
        put(1, values={"game": {"a": [{1: "one"}]}})
    with pytest.raises(CheckpointError, match="TypeError: card: keys must be text"):
        put(1, card={1: 2})


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "rank-0", "manifest", ""])
def test_a_part_s_name_stays_in_its_folder(put, tmp_path, name):
    with pytest.raises(CheckpointError, match="must be a plain file name"):
        put(1, values={name: {}})
    assert not (tmp_path / "checkpoints").exists()


# Damage.


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_named_and_the_one_before_is_used(put, name, damage):
    before, folder = put(1), put(2)
    path = folder / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "truncate":
        path.write_bytes(content[:middle])
    elif damage == "flip":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=f"step-2/{name}: "):
        verify(folder)
    with pytest.raises(CheckpointError, match=f"step-2/{name}: "):
        read(folder, rank=0)
    with pytest.warns(UserWarning, match=f"passed over: .*step-2/{name}: ") as caught:
        assert newest(folder.parent) == before
    assert len(caught) == 1


def test_damage_is_described(put):
    folder = put(1)
    for name, change, words in (
        ("model.json", lambda c: c[:-1], r"has 13 bytes, expected 14 \(truncated\?\)"),
        ("game.json", lambda c: c.replace(b"2", b"3"), r"SHA-256 is \w{12}\.\.\., expected \w{12}\.\.\. \(corrupted\)"),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(change(kept))
        with pytest.raises(CheckpointError, match=words):
            verify(folder)
        (folder / name).write_bytes(kept)
    verify(folder)


def test_every_byte_of_the_manifest_is_covered(put):
    folder = put(1)
    path = folder / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="manifest.json"):
            verify(folder)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/../../secret.json", "..", "c:\\x.json"])
def test_a_path_out_of_the_folder_is_never_followed(put, tmp_path, monkeypatch, name):
    folder = put(1)
    entry = {"size": 2, "sha256": "0" * 64}
    reseal(folder, files={name: entry})
    opened = []
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self.name) or real_open(self, *a, **k))
    for function in (verify, lambda f: read(f, 0)):
        with pytest.raises(CheckpointError, match="is no plain file name in its folder") as caught:
            function(folder)
        assert repr(name) in str(caught.value) and "manifest.json" in str(caught.value)
    assert set(opened) <= {"manifest.json"}


class Poison:
    """A pickle of it touches a file where it is loaded."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (Path(self.witness),))


def test_a_poisoned_pickle_is_never_executed(put, tmp_path):
    witness = tmp_path / "witness"
    poison = pickle.dumps(Poison(witness))
    pickle.loads(poison)
    assert witness.exists()  # the poison works
    witness.unlink()
    for name in ("custom_checkpoint_0.pkl", "extra.safetensors"):  # beside: ignored
        folder = put(1)
        (folder / name).write_bytes(poison)
        assert newest(folder.parent) == folder and set(read(folder, 0).state.tensors) == {"model"}
    for name in FILES:  # instead: refused
        folder = put(1)
        (folder / name).write_bytes(poison)
        with pytest.raises(CheckpointError, match=name):
            read(folder, 0)
    folder = put(1)  # instead, by one who can write a manifest: unreadable, and still not executed
    (folder / "model.safetensors").write_bytes(poison)
    entry = {"size": len(poison), "sha256": hashlib.sha256(poison).hexdigest()}
    reseal(folder, files={**json.loads((folder / "manifest.json").read_text())["files"], "model.safetensors": entry})
    verify(folder)
    with pytest.raises(CheckpointError, match="model.safetensors: cannot be read"):
        read(folder, 0)
    assert not witness.exists()


def test_a_newer_format_is_refused_and_not_passed_over(put):
    put(1)
    folder = put(2)
    reseal(folder, format=FORMAT + 1)
    with pytest.raises(OtherFormat, match=f"is of format {FORMAT + 1}, this hybrids reads format {FORMAT}; update"):
        verify(folder)
    with pytest.raises(OtherFormat):
        newest(folder.parent)


def test_an_older_format_is_refused_and_not_passed_over(put):
    """Passed over, its run would be started over in the same folder."""
    folder = put(1)
    reseal(folder, format=FORMAT - 1)
    older = f"is of format {FORMAT - 1}, this hybrids reads format {FORMAT}; an older hybrids wrote it"
    with pytest.raises(OtherFormat, match=older):
        verify(folder)
    with pytest.raises(OtherFormat, match=older):
        newest(folder.parent)


@pytest.mark.parametrize("changed", [{"step": "x"}, {"card": None}, {"files": {"a.json": {"size": 1}}}])
def test_a_manifest_that_lacks_entries_is_refused(put, changed):
    folder = put(1)
    reseal(folder, **changed)
    with pytest.raises(CheckpointError, match=f"manifest.json: is no manifest of format {FORMAT}: entries are missing"):
        read(folder, 0)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read"),
        ("[]", "states no format"),
        ('{"format": "x"}', "states no format"),
        ('{"format": 0}', f"is of format 0, this hybrids reads format {FORMAT}; an older hybrids wrote it"),
        (f'{{"format": {FORMAT}}}', "entries are missing"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_manifest_that_is_none_is_refused(put, text, words):
    folder = put(1)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        verify(folder)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"nope: there is no such checkpoint folder \(looked for /"):
        verify(tmp_path / "nope")
    assert newest(tmp_path / "nope") is None


def test_leftovers_are_ignored_in_silence(put, recwarn):
    folder = put(1)
    shutil.copytree(folder, folder.with_name(".step-9.tmp"))
    (folder.parent / "step-x").mkdir()
    assert newest(folder.parent) == folder
    assert not recwarn.list


def test_a_leftover_is_in_nobody_s_way(put, tmp_path):
    (tmp_path / "checkpoints" / ".step-1.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-1.tmp" / "junk.json").touch()
    folder = put(1)
    assert names(folder) == sorted(FILES) and names(folder.parent) == ["step-1"]


def test_the_old_one_counts_where_a_kill_came_between_the_two_renames(put):
    folder = put(1)
    aside = folder.rename(folder.with_name(".step-1.old"))
    assert newest(folder.parent) == aside
    assert newest(put(1).parent) == folder and names(folder.parent) == ["step-1"]
    aside = folder.rename(folder.with_name(".step-1.old"))
    put(2)
    assert names(aside.parent) == [".step-1.old", "step-2"], "it is a checkpoint that stays, not a leftover"


def test_the_newest_is_by_number(put):
    put(9)
    assert newest(put(10).parent).name == "step-10"


# Order of writing, replacing and removing.


def test_keep_one_writes_first_and_deletes_after(put, monkeypatch):
    first = put(1)
    present = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (rename(a, b), present.append((Path(b).name, names(first.parent)))))
    put(2, keep=1)
    assert present[0] == ("step-2", ["step-1", "step-2"])
    assert names(first.parent) == ["step-2"]


def test_old_ones_are_hidden_before_they_are_removed(put, monkeypatch):
    put(1), put(3)

    def busy(path, **_):
        (path / "manifest.json").unlink()
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="were not all removed: .*busy"):
        patch.setattr(shutil, "rmtree", busy)
        folder = put(2, keep=1)
    assert names(folder.parent) == [".step-1.gone", ".step-3.gone", "step-2"]
    assert newest(folder.parent) == folder  # and no warning
    assert names(put(4, keep=1).parent) == ["step-4"]


def test_the_newest_are_kept(put):
    for step in (1, 2, 9, 10):
        folder = put(step, keep=2)
    assert names(folder.parent) == ["step-10", "step-9"]


def test_later_steps_go_once_the_run_has_gone_back(put):
    put(1), put(20)
    folder = put(10, keep=3)
    assert names(folder.parent) == ["step-1", "step-10"] and newest(folder.parent) == folder


def test_a_step_is_saved_again(put):
    put(5)
    folder = put(5, keep=1, values={"second": {}})
    assert read(folder, 0).state.values == {"second": {}} and names(folder.parent) == ["step-5"]


def test_a_save_that_fails_leaves_all_as_it_was(put, monkeypatch):
    first = put(1)
    kept = {path.name: path.read_bytes() for path in first.iterdir()}

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    for place in ("write_tensors", "write_json", "write_text", "_manifest", "flush", "_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(f"hybrids.experiment.checkpoints.checkpoint.{place}", lambda path, *_, **__: full(path))
            for step in (1, 2):
                with pytest.raises(CheckpointError, match=r"was not saved \(OSError: .*No space left.*MiB are free"):
                    put(step, keep=1)
                assert names(first.parent) == ["step-1"], place
                assert {path.name: path.read_bytes() for path in first.iterdir()} == kept
    put(2, keep=1)  # and the next one succeeds


def test_a_failed_replacement_is_undone(put, monkeypatch):
    first = put(1)
    rename = os.rename

    def fail(a, b):
        if str(a).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        rename(a, b)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        put(1)
    assert names(first.parent) == ["step-1"] and verify(first)


def test_a_save_below_a_file_is_refused(put, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="was not saved"):
        put(1, root=tmp_path / "file" / "checkpoints")


def run_script(tmp_path: Path, body: str, *argv: str) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, resource, signal, sys, warnings
        from pathlib import Path
        import torch
        from accelerate import Accelerator
        from dataclasses import replace
        from hybrids.experiment.checkpoints.checkpoint import *
        from hybrids.experiment.checkpoints.run_folder import claim
        from hybrids.experiment.checkpoints.state import State
        accelerator = Accelerator(cpu=True)
        root = Path(sys.argv[1])
        def put(step, keep=9, **changed):
            state = State({"model": {"w": torch.zeros(3000)}}, {"game": {"t": step}},
                          {"rng": torch.zeros(2000)}, {"rank": accelerator.process_index})
            return save(root, step, replace(state, **changed), {}, accelerator, keep)
        """)
        + textwrap.dedent(body)
    )
    return subprocess.run([sys.executable, script, *argv], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_one(tmp_path):
    got = run_script(
        tmp_path,
        """
        first = put(1)
        failed = 0
        for limit in (0, 1, 100, 4096, 9000, 12000):  # the largest file has some 12100 bytes
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                put(2, keep=1)
            except CheckpointError as error:
                failed += "File too large" in str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert os.listdir(root) == ["step-1"], os.listdir(root)
            assert newest(root) == first
        assert failed == 6, failed
        put(2, keep=1)
        assert os.listdir(root) == ["step-2"]
        """,
        str(tmp_path / "checkpoints"),
    )
    assert got.returncode == 0, got.stderr


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_each_stage_leaves_a_valid_one(tmp_path, again):
    """Of a save of a new step, and of one over the only step there is, in a child killed before its n-th call."""
    got = run_script(
        tmp_path,
        f"""
        step = 1 if {again} else 2
        def child(n):
            calls = 0
            def counted(function):
                def call(*args, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls == n:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs)
                return call
            for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
                setattr(os, name, counted(getattr(os, name)))
            put(step, keep=1, values={{"game": {{"t": "second"}}}})
            os._exit(0)
        put(1)
        seen, killed = set(), 0
        for n in range(1, 200):
            pid = os.fork()
            if not pid:
                child(n)
            _, status = os.waitpid(pid, 0)
            found = newest(root)
            assert found is not None, (n, os.listdir(root))
            second = read(found, 0).state.values["game"]["t"] == "second"
            seen.add(second)
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0 and second and os.listdir(root) == [f"step-{{step}}"]
                break
            killed += 1
            put(1, keep=1)
        assert seen == {{True, False}} and killed > 10, (seen, killed)
        """,
        str(tmp_path / "checkpoints"),
    )
    assert got.returncode == 0, got.stderr
    assert "passed over" not in got.stderr


@pytest.mark.slow
def test_the_failure_of_one_rank_is_every_rank_s(tmp_path):
    (tmp_path / "script.py").write_text("")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    body = """
        rank = accelerator.process_index
        put(1)
        try:
            put(2, rank_values={1: 2} if rank == 1 else {})
        except CheckpointError as error:
            assert "rank 1: TypeError" in str(error) and "rank 0" not in str(error), error
        else:
            raise SystemExit("saved")
        accelerator.wait_for_everyone()
        assert os.listdir(root) == ["step-1"]
        got = read(root / "step-1", rank, 2)
        assert got.state.rank_values == {"rank": rank} and got.world_size == 2
        accelerator.wait_for_everyone()
        from hybrids.processes import decide_on_main
        from hybrids.refusal import Refusal
        assert decide_on_main(accelerator, lambda: newest(root)) == root / "step-1"
        assert decide_on_main(accelerator, lambda: None) is None
        try:
            decide_on_main(accelerator, lambda: claim(root.parent, "never"))
        except Refusal as refusal:
            assert "holds another run" in str(refusal)
        else:
            raise SystemExit("claimed")
        (root / f"done-{rank}").touch()
        accelerator.end_training()
    """
    run_script(tmp_path, body, "/nonexistent")  # writes the script
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = tmp_path / "run" / "checkpoints"
    command = [*launcher, str(tmp_path / "script.py"), str(root)]
    got = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert got.returncode == 0, got.stderr
    assert names(root) == ["done-0", "done-1", "step-1"]
    with pytest.raises(CheckpointError, match=r"rank-1.json: is missing"):
        (root / "step-1" / "rank-1.json").unlink()
        verify(root / "step-1")


def test_one_process_agrees_with_itself(accelerator):
    assert agree(accelerator, None) == [] and agree(accelerator, "full") == ["full"]
    assert decide_on_main(accelerator, lambda: Path("x")) == Path("x")


# Another architecture.


def test_tensors_are_compared_by_name_and_shape():
    expected = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(1), "d": torch.zeros(())}
    compare(expected, dict(expected), "step-1/model")
    found = {"b": torch.zeros(3, 2), **{f"x{n}": torch.zeros(n) for n in range(5)}}
    with pytest.raises(Refusal) as caught:
        compare(expected, found, "step-1/model")
    assert str(caught.value) == (
        "step-1/model: is of another architecture: missing a (2,), c (1,), d (); unexpected x0 (0,), x1 (1,), x2 (2,), "
        "and 2 more; other shape b: expected (2, 3), got (3, 2); build the networks with the settings that it was "
        "saved with"
    )


# The run folder.


def test_never_claims_what_is_free(tmp_path):
    assert claim(tmp_path / "new" / "run", "never") is None and (tmp_path / "new" / "run").is_dir()
    (tmp_path / "notes.txt").touch()
    with lock(tmp_path):
        assert claim(tmp_path, "never") is None
    assert names(tmp_path) == [".lock", "new", "notes.txt"]


@pytest.mark.parametrize("mark", ["config.yaml", "checkpoints"])
def test_never_refuses_a_folder_that_holds_a_run(put, tmp_path, mark):
    if mark == "checkpoints":
        put(1)
    else:
        (tmp_path / mark).touch()
    with pytest.raises(Refusal, match=r"--out .*: holds another run; --resume auto .* --overwrite"):
        claim(tmp_path, "never")


def test_overwrite_removes_the_run_and_nothing_else(put, tmp_path):
    put(1)
    own = ["config.yaml", "metrics.jsonl", "summary.json", "samples/step-5.png", "tensorboard/a/events.out.tfevents.1"]
    own += [".config.yaml.tmp", "checkpoints/.step-3.tmp"]
    theirs = ["notes.txt", "checkpoints/best.safetensors", "mine/config.yaml", ".hidden"]
    for name in own + theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "checkpoints" / "step-8").symlink_to(tmp_path / "elsewhere")
    with lock(tmp_path):
        assert claim(tmp_path, "never", overwrite=True) is None
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*theirs, ".lock", "elsewhere/kept"}
    assert not (tmp_path / "samples").exists() and not (tmp_path / "tensorboard").exists()


def test_auto_goes_on_or_starts(put, tmp_path):
    assert claim(tmp_path, "auto") is None
    (tmp_path / ".config.yaml.tmp").touch()  # died while it wrote its settings
    assert claim(tmp_path, "auto") is None
    (tmp_path / "config.yaml").touch()  # ... before its first checkpoint
    assert claim(tmp_path, "auto") is None
    first, second = put(1), put(2)
    root = claim(tmp_path, "auto")
    assert read_newest(root).folder == second
    (second / "game.json").unlink()
    with pytest.warns(UserWarning, match="passed over"):
        assert read_newest(root).folder == first
    with pytest.raises(Refusal, match="--overwrite with --resume auto"):
        claim(tmp_path, "auto", overwrite=True)
    (first / "game.json").unlink()
    with pytest.raises(CheckpointError, match=r"none .* is whole \(.*step-2/game.json.*step-1/game.json.*verify.py"):
        read_newest(root)
    reseal(second, format=FORMAT + 1)
    with pytest.raises(OtherFormat):
        read_newest(root)


def test_a_path_is_a_checkpoint_or_a_run(put, tmp_path):
    first, second = put(1), put(2)
    other = tmp_path / "other"
    assert claim(other, str(first)) == first
    assert claim(other, str(tmp_path)) == claim(other, str(tmp_path / "checkpoints")) == second.parent
    assert claim(tmp_path, str(first)) == first  # going back in one's own folder
    (second / "game.json").unlink()
    with pytest.raises(CheckpointError, match="step-2/game.json: is missing"):
        read_newest(claim(other, str(second)))
    (other / "config.yaml").touch()
    with pytest.raises(Refusal, match="holds another run"):
        claim(other, str(first))
    with pytest.raises(CheckpointError, match="step-2/game.json: is missing"):
        claim(other, str(second), overwrite=True)
    assert (other / "config.yaml").exists()  # nothing is removed for a checkpoint that is not whole
    (second / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="step-2/manifest.json: is missing"):
        read_newest(claim(tmp_path, str(second)))
    assert claim(other, str(first), overwrite=True) == first and not (other / "config.yaml").exists()
    with pytest.raises(Refusal, match="would remove that checkpoint"):
        claim(tmp_path, str(first), overwrite=True)
    assert first.exists()


@pytest.mark.parametrize("where", ["nope", "", "latest"])
def test_a_path_with_nothing_there_is_refused_before_the_folder_is_made(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"--resume .*: no checkpoint there \(looked in /.*expected never, auto"):
        claim(tmp_path / "out", where)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        for use in (claim, lambda f: lock(f).__enter__()):
            with pytest.raises(
                Refusal, match=r"--out .*: cannot be written \(.*; give a folder that can|cannot be wri"
            ):
                use(folder)

    def read_only(path, flags):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("hybrids.experiment.checkpoints.run_folder.no_follow", read_only)
    with pytest.raises(Refusal, match="cannot be written .Read-only file system; /"):
        claim(tmp_path / "run")


def test_a_second_holder_is_refused_while_the_first_lives(tmp_path):
    with lock(tmp_path):
        with pytest.raises(Refusal, match=f"is in use by process {os.getpid()} on "), lock(tmp_path):
            pass
        with pytest.raises(Refusal), lock(tmp_path):  # the refusal has not released it
            pass
    with lock(tmp_path):
        pass


def test_only_the_main_process_locks(tmp_path, monkeypatch):
    with lock(tmp_path):
        with pytest.raises(Refusal, match="is in use"), lock(tmp_path):
            pass
        monkeypatch.setenv("RANK", "1")
        with lock(tmp_path):
            entered = True
    assert entered


@pytest.mark.slow
def test_the_kernel_releases_the_lock_of_a_killed_process(tmp_path):
    code = (
        "import sys\nfrom hybrids.experiment.checkpoints.run_folder import lock\n"
        f"with lock({str(tmp_path)!r}):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refusal, match=f"is in use by process {holder.pid} on "), lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with lock(tmp_path):
        pass


def test_a_child_that_outlives_its_process_does_not_hold_the_lock(tmp_path):
    """Data workers are forked; killed, their run must not keep its folder locked through them."""
    release, hold = os.pipe()
    ready, report = os.pipe()
    with lock(tmp_path):
        child = os.fork()
        if not child:
            os.close(hold)
            os.write(report, b"1")
            os.read(release, 1)  # until the other end is closed
            os._exit(0)
        os.read(ready, 1)
        with pytest.raises(Refusal, match="is in use"), lock(tmp_path):
            pass
    try:
        with lock(tmp_path):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it lives, and the lock is free
    finally:
        os.close(hold), os.waitpid(child, 0)
        for end in (release, ready, report):
            os.close(end)


def test_a_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "aim").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "aim")
    with (
        pytest.raises(Refusal, match=r"\.lock is a symbolic link to .*aim, and a run writes through none"),
        lock(tmp_path),
    ):
        pass
    assert (tmp_path / "aim").read_text() == "mine"


# Tensors in a file.


def as_file(header: bytes, data: bytes = b"") -> torch.Tensor:
    return torch.frombuffer(bytearray(len(header).to_bytes(8, "little") + header + data), dtype=torch.uint8)


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(0, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.uint8),
        torch.full((16,), 255, dtype=torch.uint8),
        as_file(b"[]"),
        as_file(b"{"),
        as_file(b'{"a": 3}'),
        as_file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(8)),
        as_file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', bytes(8)),
        as_file(b'{"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}', bytes(8)),
        as_file(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', bytes(8)),
        as_file(b'{"a": {"dtype": "P8", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    ],
)
def test_bytes_that_are_no_tensor_file_are_refused(content):
    with pytest.raises(ValueError):
        parse_tensors(content)


def test_a_tensor_that_begins_anywhere_is_read():
    """Other libraries do not pad the header."""
    header = b'{"a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}, "__metadata__": {}}'
    for padding in range(4):
        data = torch.tensor([1.5, -2.0]).numpy().tobytes()
        got = parse_tensors(as_file(header + b" " * padding, data))
        assert torch.equal(got["a"], torch.tensor([[1.5], [-2.0]])) and got.keys() == {"a"}


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\x00"])
def test_json_that_cannot_be_read_is_refused_by_name(put, text):
    """Also where the manifest vouches for it."""
    folder = put(1)
    (folder / "game.json").write_text(text)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    entry = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    reseal(folder, files={**files, "game.json": entry})
    with pytest.raises(CheckpointError, match="game.json: cannot be read"):
        read(folder, 0)


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
    """A disk that fills up in the middle of a line leaves the lines before it whole."""
    path = tmp_path / "log"
    append_line(path, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, hard))
    try:
        with pytest.raises(OSError, match="No space left"):
            append_line(path, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "first\n"
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"


# What scripts/verify.py prints.


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_the_report_of_a_run(tmp_path, capsys, monkeypatch):
    """What each checkpoint holds, what is damaged, what is usable and how; and the ways that it names work."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import verify as script

    import hybrids
    from hybrids import experiment
    from hybrids.experiment import load_recipe

    def printed(path, code):
        with pytest.raises(SystemExit) as caught:
            script.main([str(path)])
            raise SystemExit(0)
        assert caught.value.code == code
        return capsys.readouterr().out

    recipe, out = load_recipe("vae"), tmp_path / "run"
    words = "--device cpu --batch-size 8 --width 8 --latent 4 --steps 2 --checkpoint-every 1 --resolution 8 --out"
    experiment.main(recipe.Settings, recipe.build, [*words.split(), str(out)])
    capsys.readouterr()
    one, two = (out / "checkpoints" / f"step-{n}" for n in (1, 2))
    text = printed(out, 0)
    assert "step-2: format 2, step 2 of recipe vae, 1 process(es)" in text and "DAMAGED" not in text
    assert text.count("all of it is whole") == 2 and f"the newest whole one: {two}" in text
    plain, average = hybrids.load(two, ema=False).state_dict(), hybrids.load(two).state_dict()

    flip(two / "optimizers.safetensors")
    text = printed(out, 1)
    assert "optimizers.safetensors: its SHA-256 is" in text and f"the newest whole one: {one}" in text
    assert f"usable: the weights and their average: hybrids.load({str(two)!r})" in text
    again = hybrids.load(two).state_dict()
    assert all(torch.equal(again[name], average[name]) for name in average)

    flip(two / "ema.safetensors")
    assert f"usable: the weights: hybrids.load({str(two)!r}, ema=False)" in printed(two, 1)
    again = hybrids.load(two, ema=False).state_dict()
    assert all(torch.equal(again[name], plain[name]) for name in plain)

    (two / "progress.json").unlink()
    assert f"usable: safetensors.torch.load_file('{two}/stage-0.safetensors')" in printed(two, 1)
    flip(one / "manifest.json")
    text = printed(out, 1)
    assert "manifest.json: was changed after it was written" in text or "manifest.json: cannot be read" in text
    assert f"perhaps usable, though unverified: safetensors.torch.load_file('{one}/ema.safetensors')" in text
    assert "no checkpoint is whole" in text
    with pytest.raises(SystemExit, match="2"):
        script.main([str(tmp_path / "nothing")])
    assert "no checkpoint there" in capsys.readouterr().err
