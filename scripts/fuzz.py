"""Run random command lines of all recipes, at most two steps each, and report how each ended.

    python scripts/fuzz.py [--number 500] [--seed 0] [--show]

Settings are drawn valid, at their limits, and invalid; data are built-in sets, and files and folders that are good,
odd or broken. Each command line runs in a forked child of this process and must end in one of three ways: trained
(exit code 0), refused with a message (2), or stopped because a number was not finite (76). Anything else (a
traceback, another exit code, no end within the time limit) counts as crashed, is printed with the words to repeat it,
and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import numpy
import torch
from PIL import Image

from hybrids.experiment import load_recipe, main
from hybrids.experiment.settings import settings_of

RECIPES = sorted(path.stem for path in (Path(__file__).parents[1] / "recipes").glob("*.py"))
ENDS = {0: "trained", 2: "refused", 76: "not finite"}
# What every run imports: once here, not in each child.
IMPORTED = ("accelerate", "sklearn.datasets", "tensorboard", "torch._dynamo", "torch.utils.tensorboard", "torchdiffeq")
LIMIT = 120
"""Seconds that one command line may take."""

SMALL: dict[str, list[str]] = {
    "width": ["8", "16"],
    "latent": ["2", "4", "16"],
    "blocks": ["1", "2"],
    "levels": ["1", "2", "3"],
    "timesteps": ["2", "4", "8"],
    "codes": ["2", "8"],
    "sample_steps": ["1", "2"],
}
"""Values that keep a command line quick, by setting: every one has them, and some have another value after them."""
OTHERS: dict[str, list[str]] = {
    "resolution": ["8", "9", "12", "16", "28"],
    "channels": ["1", "2", "3", "4"],
    "batch_size": ["1", "2", "8", "16"],
    "accumulation": ["1", "2", "3"],
    "crop_padding": ["0", "1", "3"],
    "workers": ["0", "1"],
    "lr": ["1e-6", "1e-3", "1e6", "1e30"],
    "timesteps": ["1", "3", "10", "1000"],
    "sample_steps": ["1", "5", "20"],
    "latent": ["1", "3", "64"],
    "width": ["9", "24", "1000000000"],
}

WRONG = ["-1", "0", "nan", "inf", "1e400", "abc", "", "none", "true", "1.5", "é", "--", "999999999999999999999",
         "9" * 5000, "1000000000000", "\udcff", "~nosuchuser", "\n"]  # fmt: skip
POINTS = ("25-gaussians", "8-gaussians", "swiss-roll", "checkerboard")
OF_IMAGES = {"resolution", "channels", "horizontal_flip", "crop_padding", "flat", "perceptual", "critic", "bottleneck"}
NEVER = {"out", "resume", "overwrite", "data", "steps", "device", "text_encoder", "deterministic"}


def values_of(setting: Any, draw: random.Random) -> list[str]:
    """Return the words for one setting: most often valid ones."""
    if draw.random() < 0.08:
        return [draw.choice(WRONG)]
    if words := OTHERS.get(setting.name):
        return [draw.choice(words)]
    if setting.is_bool:
        return []
    for kind in (setting.kind, *get_args(setting.kind)):
        if get_origin(kind) is Literal:
            return [str(draw.choice(get_args(kind)))]
    rule = setting.rule
    low = next((bound for bound in (rule.at_least, rule.above) if bound is not None), 0)
    high = next((bound for bound in (rule.at_most, rule.below) if bound is not None), low + 4)
    if int in (setting.kind, *get_args(setting.kind)):
        return [str(draw.randint(int(low), int(min(high, low + 4))))]
    return [f"{draw.choice([low, high, draw.uniform(low, high)]):g}"]


def command_line(module: ModuleType, data: list[str], draw: random.Random) -> list[str]:
    words = ["--data", draw.choice(data), "--steps", draw.choice(["1", "2"]), "--device", "cpu", "--batch-size", "8"]
    points = words[1] in POINTS or words[1].endswith(("vectors.npz", "one.npz", "constant.npz"))
    settings = settings_of(module.Settings)
    for name in [name for name in SMALL if name in settings]:
        words += [settings[name].flag, draw.choice(SMALL[name])]
    for name, setting in settings.items():
        share = 0.01 if points and name in OF_IMAGES else 0.04 if name in SMALL else 0.06
        if name not in NEVER and draw.random() < share:
            flag = setting.flag if not setting.is_bool or draw.random() < 0.7 else f"--no-{setting.flag[2:]}"
            words += [flag, *values_of(setting, draw)]
    if draw.random() < 0.04:
        words += [draw.choice(["--widht", "--epochs", "--learning_rate", "stray"]), "3"]
    return words


def make_data(folder: Path) -> list[str]:
    """Write files and folders of data, good, odd and broken; return what `--data` may be."""
    rng = numpy.random.default_rng(0)

    def image(path: Path, shape: tuple[int, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=numpy.uint8)).save(path)

    def array(name: str, **arrays: Any) -> str:
        numpy.savez(folder / name, **arrays)
        return str(folder / name)

    for kind in ("cat", "dog", ".hidden"):
        for i in range(10):
            image(folder / "classes" / kind / f"{i}.png", (12, 17, 3))
    for split in ("train", "val"):
        for i in range(8):
            image(folder / "split" / split / "cat" / f"{i}.png", (9, 9))
    for i in range(12):
        image(folder / "numbers" / str(i + 1) / "a.png", (16, 16, 4))
    image(folder / "broken" / "good.png", (16, 16, 3))
    (folder / "broken" / "cut.png").write_bytes((folder / "broken" / "good.png").read_bytes()[:60])
    (folder / "broken" / "empty.jpg").touch()
    (folder / "nothing").mkdir()
    (folder / "text.npy").write_text("not an array")
    numpy.save(folder / "objects.npy", numpy.array([{}, None], dtype=object), allow_pickle=True)
    made = [
        array("oblong.npz", x=rng.integers(0, 256, (20, 1, 10, 24), dtype=numpy.uint8)),
        array("channels.npz", x=rng.integers(0, 256, (20, 5, 16, 16), dtype=numpy.uint8)),
        array("vectors.npz", x=rng.normal(size=(50, 3)) * 1000 + 5000),
        array("one.npz", x=rng.normal(size=(50, 1))),
        array("constant.npz", x=numpy.ones((50, 4))),
        array("nan.npz", x=numpy.full((50, 2), numpy.nan)),
        array(
            "gaps.npz", x=rng.integers(0, 256, (20, 1, 16, 16), dtype=numpy.uint8), labels=rng.integers(0, 2, 20) * 500
        ),
        array("ones.npz", x=rng.integers(0, 256, (20, 1, 16, 16), dtype=numpy.uint8), labels=rng.integers(1, 11, 20)),
        array("fewer.npz", x=rng.integers(0, 256, (20, 1, 16, 16), dtype=numpy.uint8), labels=numpy.zeros(7)),
        array("deep.npz", x=rng.integers(0, 4096, (20, 1, 16, 16), dtype=numpy.uint16)),
        array("few.npz", x=rng.integers(0, 256, (3, 1, 16, 16), dtype=numpy.uint8)),
        array("names.npz", images=rng.integers(0, 256, (20, 1, 16, 16), dtype=numpy.uint8)),
    ]
    folders = [str(folder / name) for name in ("classes", "split", "numbers", "broken", "nothing", "missing")]
    odd = [str(folder / "text.npy"), str(folder / "objects.npy"), "digts", "hub:../..", "~nosuchuser/x", "/dev/null"]
    return [*4 * ["digits", "digits", "shapes", *POINTS], *made, *made, *folders, *odd]


def forked(work: Callable[[], None], output: Path) -> int:
    """Run `work` in a forked child whose output goes to a file; return its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            signal.alarm(LIMIT)
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)  # data workers of a child that died
    except ProcessLookupError:
        pass
    return os.waitstatus_to_exitcode(status)


def run() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--number", type=int, default=500, help="command lines to run")
    parser.add_argument("--seed", type=int, default=0, help="of the random command lines")
    parser.add_argument("--show", action="store_true", help="print each command line and the message it ended with")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for package in IMPORTED:
        importlib.import_module(package)
    modules = {name: load_recipe(name) for name in RECIPES}
    draw, ends, crashed, began = random.Random(given.seed), Counter[str](), [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder)
        os.chdir(folder)
        for i in range(given.number):
            recipe = draw.choice(RECIPES)
            module = modules[recipe]
            words = command_line(module, data, draw)
            out = folder / "out"
            argv = [*words, "--out", str(out)]
            code = forked(lambda m=module, a=argv: main(m.Settings, m.build, a), folder / "output")
            text = (folder / "output").read_text(errors="replace")
            end = ENDS.get(code, "crashed")
            if "Traceback (most recent call last)" in text or end == "refused" and "refused: " not in text:
                end = "crashed"
            ends[end] += 1
            shutil.rmtree(out, ignore_errors=True)
            last = text.strip().splitlines()[-1:] or [""]
            if given.show:
                print(f"{i} {end} {code}: {recipe} {shlex.join(words)}\n    {last[0][:300]}", flush=True)
            if end == "crashed":
                crashed.append((i, code, recipe, words, text))
    seconds = time.monotonic() - began
    print(
        f"{given.number} command lines, seed {given.seed}, {seconds:.0f} s: "
        + ", ".join(f"{n} {end}" for end, n in ends.most_common())
    )
    for i, code, recipe, words, text in crashed:
        print(
            f"\n{i}: exit code {code}: recipes/{recipe}.py {shlex.join(words)}\n" + "\n".join(text.splitlines()[-12:])
        )
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(run())
