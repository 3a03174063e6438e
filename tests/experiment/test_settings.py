"""Settings: precedence, conversion, refusals all at once, help, and the round trip through a run's config.yaml."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from hybrids.experiment.settings import Settings, parse, setting, to_yaml
from hybrids.experiment.settings.fields import settings_of
from hybrids.refusal import Refusal, refusing


@dataclass
class Toy(Settings):
    """Settings of the toy."""

    steps: int = 200
    lr: float = setting(1e-3, "Learning rate.", above=0)
    multipliers: tuple[int, ...] = setting((1, 2), "Width multipliers.", at_least=1)
    betas: tuple[float, float] = setting((0.9, 0.99), "Adam's.", at_least=0, below=1)
    levels: list[int] = setting([3], "A mutable default.")
    teacher: Path | None = setting(None, "Run folder.")
    folders: tuple[Path, ...] = setting((), "More of them.")
    patch: int = setting(2, "Patch size.", choices=(1, 2, 4))
    kind: Literal["a", "b", 3] = setting("a", "A choice.")
    flip: bool = setting(True, "Flip.")

    def check(self) -> list[str]:
        errors = super().check()
        if self.resolution is not None and self.resolution % self.patch:
            errors.append(f"--resolution {self.resolution}: is not divisible by --patch {self.patch}")
        return errors


def toy(*argv: str) -> Toy:
    return parse(Toy, list(argv), "toy")


def refused(*argv: str) -> list[str]:
    with pytest.raises(Refusal) as caught:
        toy(*argv)
    assert str(caught.value).splitlines() == caught.value.errors  # one a line
    return caught.value.errors


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "given.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_then_file_then_command_line(config):
    file = config("steps: 5\nbatch-size: 7\n")
    got = toy("--batch-size", "9", "--config", file)
    assert (got.steps, got.batch_size, got.lr, got.seed) == (5, 9, 1e-3, 0)


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--batch-size", "8"], "batch_size", 8),
        (["--batch-size=8"], "batch_size", 8),
        (["--batch_size", "8"], "batch_size", 8),
        (["--batch-size", "4", "--batch-size", "8"], "batch_size", 8),
        (["--lr", "1e-4"], "lr", 1e-4),
        (["--lr", "1"], "lr", 1.0),
        (["--deterministic"], "deterministic", True),
        (["--deterministic", "false"], "deterministic", False),
        (["--no-flip"], "flip", False),
        (["--flip", "--no-flip"], "flip", False),
        (["--resolution", "none"], "resolution", None),
        (["--resolution", "16"], "resolution", 16),
        (["--mixed-precision", "bf16"], "mixed_precision", "bf16"),
        (["--kind", "3"], "kind", 3),
        (["--multipliers", "1", "2", "2"], "multipliers", (1, 2, 2)),
        (["--multipliers=4"], "multipliers", (4,)),
        (["--multipliers", "none"], "multipliers", ()),
        (["--betas", "0", "0.5"], "betas", (0.0, 0.5)),
        (["--levels", "1", "2"], "levels", [1, 2]),
        (["--out", "a/b"], "out", Path("a/b")),
        (["--out", "none"], "out", None),
        (["--out=~/b"], "out", Path.home() / "b"),
        (["--data", "hub:me/mine"], "data", "hub:me/mine"),
        (["--teacher=--odd"], "teacher", Path("--odd")),
    ],
)
def test_the_command_line_converts(argv, name, value):
    got = getattr(toy(*argv), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("lr: 1e-4", "lr", 1e-4),  # YAML 1.1 reads a text here
        ("lr: 1", "lr", 1.0),
        ("mixed_precision: no", "mixed_precision", "no"),  # ... and false here
        ("deterministic: yes", "deterministic", True),
        ("resolution: null", "resolution", None),
        ("multipliers: [1, 2]", "multipliers", (1, 2)),
        ("multipliers: []", "multipliers", ()),
        ("out: a/b", "out", Path("a/b")),
        ("batch-size: '3'", "batch_size", 3),
    ],
)
def test_a_file_converts(config, text, name, value):
    got = getattr(toy("--config", config(text)), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--steps", "abc"], "--steps: expected a whole number, at least 1; got 'abc'"),
        (["--steps", "0"], "--steps: expected a whole number, at least 1; got '0'"),
        (["--steps", "1.5"], "--steps: expected a whole number, at least 1; got '1.5'"),
        (["--steps=none"], "--steps: expected a whole number, at least 1; got 'none'"),
        (["--steps", str(2**63)], "--steps: expected a whole number, at least 1; got '9223372036854775808'"),
        (["--lr", "0"], "--lr: expected a finite number, above 0; got '0'"),
        (["--lr", "nan"], "--lr: expected a finite number, above 0; got 'nan'"),
        (["--lr", "inf"], "--lr: expected a finite number, above 0; got 'inf'"),
        (["--lr", "1e999"], "--lr: expected a finite number, above 0; got '1e999'"),
        (["--ema", "1"], "--ema: expected a finite number, at least 0 and below 1; got '1'"),
        (["--ema", "-1"], "--ema: expected a finite number, at least 0 and below 1; got '-1'"),
        (["--seed", "4294967296"], "at most 4294967295"),
        (["--resolution", "0"], "--resolution: expected a whole number, at least 1, or none; got '0'"),
        (["--patch", "3"], "--patch: expected a whole number, one of 1, 2, 4; got '3'"),
        (["--kind", "c"], "--kind: expected one of a, b, 3; got 'c'"),
        (["--flip", "maybe"], "--flip: expected true or false; got 'maybe'"),
        (["--multipliers", "1", "0"], "--multipliers: expected whole numbers, each at least 1; got '1 0'"),
        (["--betas", "1"], "--betas: expected 2 finite numbers, each at least 0 and below 1; got '1'"),
        (["--out="], "--out: expected a path, or none; got ''"),
        (["--out", "~nosuchuser/run"], "--out: expected a path, or none; got '~nosuchuser/run'"),
        (["--steps"], "--steps: a value is missing; expected a whole number"),
        (["--multipliers", "--flip"], "--multipliers: a value is missing"),
        (["--config"], "--config: a value is missing"),
        (["--no-flip", "x"], "'x' after --no-flip: one value too many"),
        (["--steps", "3", "4"], "'4' after --steps: one value too many"),
        (["stray", "--steps", "3"], "'stray': a value without a setting"),
        (["--batch-sise", "8"], "--batch-sise: no such setting; did you mean --batch-size?"),
        (["--step", "8"], "--step: no such setting; did you mean --steps?"),  # no abbreviations
        (["--no-steps"], "--no-steps: no such setting; did you mean --steps?"),
        (["--qqq", "8"], "--qqq: no such setting; --help lists them all"),
        (["--max_train_steps", "8"], "here it is --steps"),
        (["--train_batch_size=8"], "here it is --batch-size"),
        (["--gradient_accumulation_steps", "8"], "here it is --accumulation"),
        (["--output_dir", "x"], "here it is --out"),
        (["--resume_from_checkpoint", "latest"], "here it is --resume (`latest` is `auto` here)"),
        (["--checkpointing_steps", "8"], "here it is --checkpoint-every"),
        (["--checkpoints_total_limit", "8"], "here it is --keep-checkpoints"),
        (["--use_ema"], "here it is --ema (its decay; 0 keeps no average)"),
        (["--learning-rate", "1"], "here it is --lr"),
        (["--mixed-precision", "fp16"], "expected one of no, bf16; got 'fp16': fp16 needs a gradient scaler"),
        (["--resume", "auto", "--overwrite"], "--overwrite with --resume auto"),
        (["--resolution", "15"], "--resolution 15: is not divisible by --patch 2"),
    ],
)
def test_the_command_line_is_refused(argv, message):
    errors = refused(*argv)
    assert len(errors) == 1 and message in errors[0], errors


@pytest.mark.parametrize(
    "text, message",
    [
        ("steps: true", "given.yaml: steps: expected a whole number, at least 1; got True"),
        ("steps: 2.0", "given.yaml: steps: expected a whole number, at least 1; got 2.0"),
        ("steps:", "given.yaml: steps: expected a whole number, at least 1; got nothing"),
        ("lr: .nan", "given.yaml: lr: expected a finite number, above 0; got nan"),
        ("lr: 1" + "0" * 400, "given.yaml: lr: expected a finite number, above 0; got 1000"),
        ("flip: 1", "given.yaml: flip: expected true or false; got 1"),
        ("multipliers: 2", "given.yaml: multipliers: expected whole numbers, each at least 1; got 2"),
        ("data: 5", "given.yaml: data: expected text; got 5: put it in quotes"),
        ("out: 2026-01-01", "put it in quotes"),
        ("mixed_precision: fp16", "fp16 needs a gradient scaler"),
        ("batch_sise: 8", "given.yaml: batch_sise: no such setting; did you mean batch_size?"),
        ("max_train_steps: 8", "given.yaml: max_train_steps: no such setting; here it is steps"),
        ("1: 8", "given.yaml: 1: no such setting"),
        ("recipe: gan", "given.yaml: recipe: is 'gan', but this recipe is 'toy'"),
        ("- 1", "given.yaml: holds a list; expected a mapping"),
        ("", "given.yaml: holds nothing; expected a mapping"),
        ("a: [", "given.yaml: is not YAML: "),
        ("[" * 5000, "given.yaml: is not YAML: "),
        ("!!python/object/apply:os.system ['true']", "given.yaml: is not YAML: could not determine a constructor"),
    ],
)
def test_a_file_is_refused(config, text, message):
    errors = refused("--config", config(text))
    assert len(errors) == 1 and message in errors[0], errors


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "nope.yaml: no such file (looked for /" in refused("--config", "nope.yaml")[0]
    assert "cannot be read (Is a directory)" in refused("--config", str(tmp_path))[0]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    assert "is not YAML" in refused("--config", str(tmp_path / "binary"))[0]


def test_a_bomb_of_aliases_is_refused_in_a_short_message(config):
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    (error,) = [e for e in refused("--config", config("\n".join([*levels, "data: *l11"]))) if ": data:" in e]
    assert len(error) < 5000


def test_all_errors_at_once(config):
    file = config("stepz: 3\nlr: -1\nrecipe: gan\n")
    errors = refused("--config", file, "--seed", "--resume=auto", "--overwrite", "--foo", "--batch-size", "x")
    for part in ("stepz", "lr", "recipe", "--seed", "--foo", "--batch-size", "--overwrite"):
        assert any(part in error for error in errors), part
    assert len(errors) == 7


def test_a_check_that_rests_on_a_refused_value_is_left_out():
    assert len(refused("--resolution", "15", "--patch", "3")) == 1
    assert len(refused("--resolution", "15", "--steps", "0")) == 2


def test_the_config_of_a_run_reads_back(tmp_path):
    before = toy(
        "--folders",
        "a/b",
        "c",
        "--multipliers",
        "1",
        "2",
        "--out",
        "runs/ü: x",
        "--lr",
        "1e-05",
        "--kind",
        "3",
        "--data",
        "5",
        "--no-flip",
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(before, "toy"))
    assert path.read_text().startswith("recipe: toy\n") and "!!" not in path.read_text()
    assert toy("--config", str(path)) == before
    path.write_text(to_yaml(Toy(), "toy"))
    assert toy("--config", str(path)) == Toy()


def test_help_lists_own_settings_first_and_exits_with_0(capsys):
    with pytest.raises(SystemExit) as caught:
        toy("--steps", "0", "--help")
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert out.startswith("toy: Settings: precedence, conversion")  # this module's first line
    assert (
        out.index("settings of toy") < out.index("--lr") < out.index("settings of every recipe") < out.index("--seed")
    )
    assert "--lr  a finite number, above 0  [0.001]\n      Learning rate." in out
    assert "--steps  a whole number, at least 1  [200]" in out
    assert "--flip, --no-flip  [true]" in out and "--multipliers  whole numbers, each at least 1  [1 2]" in out
    assert "example:\n  python recipes/toy.py" in out


def test_a_mutable_default_is_each_instance_s_own():
    toy().levels.append(9)
    assert toy().levels == [3]


def test_a_changed_default_keeps_the_rule_of_its_base():
    assert settings_of(Toy)["steps"].default == 200
    assert settings_of(Toy)["steps"].rule == settings_of(Settings)["steps"].rule


def test_definitions_that_python_would_ignore_are_errors():
    @dataclass
    class Bare(Settings):
        steps = 5  # no annotation: dataclass keeps the base's default

    class Undecorated(Settings):
        extra: int = 5

    @dataclass(kw_only=True)
    class Required(Settings):
        extra: int

    for cls, words in ((Bare, "no annotation"), (Undecorated, "@dataclass"), (Required, "needs a default")):
        with pytest.raises(TypeError, match=words):
            parse(cls, [], "toy")


@pytest.mark.parametrize("rank, printed", [(None, True), ("0", True), ("1", False)])
def test_refusing_prints_on_the_main_process_and_exits_with_2(capsys, monkeypatch, rank, printed):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    @refusing()
    def main() -> None:
        raise Refusal(["one", "two"])

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == ("refused: one\nrefused: two\n" if printed else "")


def test_refusing_lets_other_errors_through():
    with pytest.raises(KeyError), refusing():
        raise KeyError("a defect of ours keeps its traceback")


def test_a_script_is_refused_without_a_traceback(monkeypatch, capsys):
    """Its own command line is read where none is given."""
    monkeypatch.setattr(sys, "argv", ["toy.py", "--steps", "0", "--sed", "1"])
    with pytest.raises(SystemExit, match="^2$"), refusing():
        parse(Settings, None, "toy")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("refused: ") == 2 and "Traceback" not in printed.err
