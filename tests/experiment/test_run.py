"""A whole run: what it leaves on disk, and that stopping and resuming it changes not a bit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from small import TINY, TWO_STAGES, last_step
from torch import nn

import hybrids
from hybrids import EMA, Player, Terms, experiment
from hybrids.experiment import Stage, load_recipe
from hybrids.experiment.record.logs import Gathered
from hybrids.pictures import save_picture

REPOSITORY = Path(__file__).parents[2]


def arguments(name: str, out: Path, *argv) -> list[str]:
    common = ["--device", "cpu", "--batch-size", "8", "--log-every", "1", "--keep-checkpoints", "9"]
    return [*common, *TINY.get(name, []), "--out", str(out), *map(str, argv)]


def run(name: str, out: Path, *argv) -> None:
    """A tiny run of a recipe in this process."""
    recipe = load_recipe(name)
    experiment.main(recipe.Settings, recipe.build, arguments(name, out, *argv))


def stop_at(monkeypatch, step: int, kind: signal.Signals = signal.SIGTERM) -> None:
    """A signal arrives in a step: here, while its first loss is computed (a step is finished first)."""
    from hybrids.experiment.run import run as module

    inner = module.train

    def train(players, batches, accelerator, steps, start, skip_nonfinite):
        first, sent = players[0], []
        loss, takes_step = first.loss, first.takes_step

        def signalled(x, step):
            # Once: a second signal ends the process at once.
            if step == step_to_stop and not sent:
                sent.append(os.kill(os.getpid(), kind))
            return loss(x, step=step) if takes_step else loss(x)

        step_to_stop, first.takes_step = step - 1, True
        object.__setattr__(first, "loss", signalled)
        return inner(players, batches, accelerator, steps, start, skip_nonfinite)

    monkeypatch.setattr(module, "train", train)


def state(checkpoint: Path) -> dict:
    """Everything in a checkpoint that training goes on from, by name: tensors and JSON."""
    found = {}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            found |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
        elif path.name != "manifest.json":
            found[path.stem] = json.loads(path.read_text())
    found["progress"].pop("seconds")
    return found


def assert_same_state(a: Path, b: Path) -> None:
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    parts = {key.split("/")[0] for key in one}
    assert {"stage-0", "optimizers", "ema", "rank-0", "batches", "progress"} <= parts
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, f"{key} differs"


def lines(out: Path) -> list[dict]:
    """The log without what depends on the clock."""
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if not key.startswith("time/")} for entry in entries]


def same_run(a: Path, b: Path, steps: int, world_size: int = 1) -> None:
    """Two runs ended alike to the bit: checkpoint, log, picture."""
    assert_same_state(a / f"checkpoints/step-{steps}", b / f"checkpoints/step-{steps}")
    assert lines(a) == lines(b)
    names = sorted(path.name for path in (a / "samples").iterdir())
    assert names == sorted(path.name for path in (b / "samples").iterdir())
    for name in names:
        assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes()


# The files of a run.


@pytest.mark.parametrize("name", TINY)
def test_the_run_folder(name, tmp_path, few_digits):
    """config.yaml, metrics.jsonl, tensorboard/, samples/, checkpoints/, summary.json, as the contract lists them; the
    last step always writes a checkpoint and a grid; nothing temporary stays."""
    out = tmp_path / "run"
    run(name, out, "--steps", "5", "--checkpoint-every", "2", "--sample-every", "4", "--log-every", "3")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    events = {path for path in files if re.fullmatch(r"tensorboard/events\.out\.tfevents\..*", path)}
    # A run of two stages has as many steps in each; the end of the first is a checkpoint and a picture too.
    end = last_step(name, 5)
    saved, shown = [n for n in range(1, end + 1) if n % 2 == 0 or n % 5 == 0], [4, 5] if end == 5 else [4, 5, 8, 10]
    reconstructing = {"vae", "hierarchical_vae"} | TWO_STAGES
    reconstructions = {f"samples/reconstructions-{n}.png" for n in shown} if name in reconstructing else set()
    inside = ("manifest.json", "stage-0.safetensors", "optimizers.safetensors", "optimizers.json", "ema.safetensors",
              "ema.json", "batches.json", "progress.json", "rank-0.safetensors", "rank-0.json")  # fmt: skip
    assert len(events) == 1
    second = {f"checkpoints/step-{n}/stage-1.safetensors" for n in saved if n > 5}
    assert files - events - reconstructions - second == {
        ".lock",
        "config.yaml",
        "metrics.jsonl",
        "players.txt",
        "summary.json",
        *(f"samples/step-{n}.png" for n in shown),
        *(f"checkpoints/step-{n}/{file}" for n in saved for file in inside),
    }
    assert reconstructions | second <= files
    assert [line["step"] for line in lines(out)] == [2, 3, 4, 5] + [6, 8, 9, 10] * (end > 5)
    summary = json.loads((out / "summary.json").read_text())
    promised = "steps, seconds, images_per_second, parameters, losses, world_size, seed, recipe"
    assert set(promised.split(", ")) <= summary.keys()
    assert (summary["steps"], summary["world_size"], summary["seed"], summary["recipe"]) == (end, 1, 0, name)
    assert summary["losses"] and all(isinstance(value, float) for value in summary["losses"].values())
    assert summary["images_per_second"] > 0 and summary["seconds"] > 0
    import yaml

    config = yaml.safe_load((out / "config.yaml").read_text())
    recipe = load_recipe(name)
    assert config.keys() == {"recipe", *vars(recipe.Settings())}
    assert (config["recipe"], config["steps"], config["resolution"], config["channels"]) == (name, 5, 8, 1)


def test_the_config_of_a_run_runs_it_again(tmp_path, few_digits):
    """`--config RUN/config.yaml --out ELSEWHERE` is the same run."""
    run("vae", tmp_path / "a", "--steps", "3", "--seed", "5")
    recipe = load_recipe("vae")
    argv = ["--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "b")]
    experiment.main(recipe.Settings, recipe.build, argv)
    same_run(tmp_path / "a", tmp_path / "b", 3)


def test_another_seed_is_another_run(tmp_path, few_digits):
    """And so the comparisons here compare something."""
    run("vae", tmp_path / "a", "--steps", "2")
    run("vae", tmp_path / "b", "--steps", "2", "--seed", "1")
    one, other = (state(tmp_path / run_ / "checkpoints/step-2") for run_ in "ab")
    for part in ("stage-0/", "optimizers/", "ema/", "rank-0/"):
        assert any(not torch.equal(one[key], other[key]) for key in one if key.startswith(part)), part
    assert one["batches"] != other["batches"] and lines(tmp_path / "a") != lines(tmp_path / "b")


# Resume.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra"),
    [(name, "--accumulation 2") for name in TINY]
    + [("vae", ""), ("vae", "--mixed-precision bf16"), ("gan", "--spectral-norm --lazy 2 --loss hinge")],
)
def test_a_resumed_run_is_the_straight_run(name, extra, tmp_path, few_digits):
    """Parameters, optimizers, average, random numbers, data order and logged losses are equal to the bit, for a
    checkpoint in the middle of an epoch (step 2 of 3) and at its end (step 3)."""
    every = ["--steps", "5", "--checkpoint-every", "3", *extra.split()]
    if "--accumulation" in extra:
        every += ["--batch-size", "4"]
    run(name, tmp_path / "straight", *every)
    for step in (2, 3):
        out = tmp_path / f"resumed-{step}"
        with pytest.raises(SystemExit, match="75"), pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step)
            run(name, out, *every)
        assert sorted(path.name for path in (out / "checkpoints").iterdir())[-1] == f"step-{step}"
        # What a process has drawn before it resumes does not matter.
        torch.rand(3), random.random(), numpy.random.rand()
        run(name, out, *every, "--resume", "auto")
        same_run(tmp_path / "straight", out, last_step(name, 5))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_between_two_lines_of_the_log_changes_none(kind, tmp_path, monkeypatch, few_digits):
    """A line is the mean of the steps since the last one, also where a signal came in between."""
    every = ["--steps", "6", "--log-every", "3"]
    run("vae", tmp_path / "straight", *every)
    with pytest.raises(SystemExit, match="75"), monkeypatch.context() as patch:
        stop_at(patch, 5, kind)
        run("vae", tmp_path / "resumed", *every)
    run("vae", tmp_path / "resumed", *every, "--resume", "auto")
    assert [line["step"] for line in lines(tmp_path / "resumed")] == [3, 6]
    same_run(tmp_path / "straight", tmp_path / "resumed", 6)


def test_a_run_goes_on_from_another_run(tmp_path, few_digits):
    """`--resume PATH` with another --out starts there from the checkpoint, and leaves the first run alone."""
    run("vae", tmp_path / "first", "--steps", "4", "--checkpoint-every", "2")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "first").rglob("*")}
    source = tmp_path / "first" / "checkpoints" / "step-2"
    run("vae", tmp_path / "second", "--steps", "4", "--checkpoint-every", "2", "--resume", source)
    assert_same_state(*(tmp_path / name / "checkpoints/step-4" for name in ("first", "second")))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "first").rglob("*")}
    assert [line["step"] for line in lines(tmp_path / "second")] == [3, 4]


def test_a_finished_run_has_nothing_to_do(tmp_path, capsys, few_digits):
    """`--resume auto` of a finished run exits with 0, says so, and touches nothing; more steps go on."""
    out = tmp_path / "run"
    run("vae", out, "--steps", "2")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    capsys.readouterr()
    run("vae", out, "--steps", "2", "--resume", "auto")
    assert f"{out}: the run had finished its 2 steps; nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    run("vae", out, "--steps", "3", "--resume", "auto")
    assert "settings changed since" in (said := capsys.readouterr().out) and "steps: 2 → 3" in said
    assert [line["step"] for line in lines(out)] == [1, 2, 3]


def test_fault_43_a_resume_may_not_change_what_the_weights_mean(tmp_path, capsys, few_digits):
    """A prediction type leaves no trace in a checkpoint's shapes; a learning rate may change, as above the steps."""
    out = tmp_path / "run"
    run("ddpm", out, "--steps", "2", "--width", "8", "--sample-steps", "2")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    words = ["--steps", "3", "--width", "8", "--sample-steps", "2", "--resume", "auto", "--lr", "1e-4"]
    with pytest.raises(SystemExit, match="2"):
        run("ddpm", out, *words, "--prediction", "v_prediction")
    assert "mean something else with other settings (prediction: epsilon → v_prediction)" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    run("ddpm", out, *words)
    assert [line["step"] for line in lines(out)] == [1, 2, 3]


def test_auto_starts_where_nothing_is(tmp_path, capsys, few_digits):
    """Fault 47: `--resume auto` without a checkpoint starts afresh, also in a folder whose run died early."""
    run("vae", tmp_path / "a", "--steps", "2")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("recipe: va")  # cut off
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "loss/vae": 9')
    run("vae", tmp_path / "b", "--steps", "2", "--resume", "auto")
    same_run(tmp_path / "a", tmp_path / "b", 2)
    assert "going on from" not in capsys.readouterr().out


def test_the_log_is_cut_back_on_resume(tmp_path, few_digits):
    """metrics.jsonl loses what was logged after the step that the run goes on from, and half lines."""
    out = tmp_path / "run"
    run("vae", out, "--steps", "5", "--checkpoint-every", "2")
    straight = lines(out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss/vae": 3.0}\n{"step": 7, "lo')
    import shutil

    shutil.rmtree(out / "checkpoints" / "step-5")
    run("vae", out, "--steps", "5", "--checkpoint-every", "2", "--resume", "auto")
    assert lines(out) == straight


def test_a_damaged_checkpoint_is_passed_over(tmp_path, few_digits):
    """`--resume auto` warns, takes the one before, and ends as the straight run did."""
    run("vae", tmp_path / "a", "--steps", "4", "--checkpoint-every", "2")
    run("vae", tmp_path / "b", "--steps", "4", "--checkpoint-every", "2")
    (path,) = (tmp_path / "b/checkpoints/step-4").glob("optimizers.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"checkpoint passed over: .*optimizers\.safetensors.*truncated"):
        run("vae", tmp_path / "b", "--steps", "4", "--checkpoint-every", "2", "--resume", "auto")
    same_run(tmp_path / "a", tmp_path / "b", 4)


def two_stages(settings, data):
    """A stage that trains, then one that starts from what it left."""
    first, second = nn.Linear(64, 4), nn.Linear(4, 4)

    def loss(model, *before):
        def of(x):
            h = x.flatten(1)
            for module in before:
                h = module(h).detach()
            return Terms(a=(model(h) + 0.1 * torch.randn(len(x), 4)).square().sum(1))

        return of

    first.sample = second.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)
    adam = torch.optim.Adam
    return [
        Stage("one", first, [Player(loss(first), [first], optimizer=lambda p: adam(p, 0.1), name="one")], steps=3),
        Stage("two", second, [Player(loss(second, first), [second], optimizer=lambda p: adam(p, 0.1), name="two")]),
    ]


def test_a_run_of_two_stages_resumes_in_either(tmp_path, few_digits):
    """A checkpoint stores its stage: in the first, at its end, in the second."""
    argv = ["--steps", "3", "--resolution", "8", "--checkpoint-every", "1"]

    def go(out, *more):
        experiment.main(experiment.Settings, two_stages, arguments("toy", out, *argv, *more))

    go(tmp_path / "straight")
    assert [sorted(k for k in line if k.count("/") == 1 and k.startswith("loss")) for line in lines(
        tmp_path / "straight")] == 3 * [["loss/one"]] + 3 * [["loss/two"]]  # fmt: skip
    import shutil

    for step in (2, 3, 5):
        out = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "straight", out)
        for later in range(step + 1, 7):
            shutil.rmtree(out / f"checkpoints/step-{later}")
        go(out, "--resume", "auto")
        same_run(tmp_path / "straight", out, 6)


# Bringing a run back.


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_load_brings_back_the_model_of_the_grid(name, tmp_path, few_digits):
    """`hybrids.load(run)` is the average whose samples are the grid's, in eval mode and frozen."""
    out = tmp_path / "run"
    run(name, out, "--steps", "3")
    model = hybrids.load(out)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    x = model.sample(64, generator=torch.Generator().manual_seed(0))
    save_picture(x, tmp_path / "again.png")
    end = last_step(name, 3)
    assert (tmp_path / "again.png").read_bytes() == (out / "samples" / f"step-{end}.png").read_bytes()
    # The trained weights themselves are another model, and an older checkpoint may be named.
    plain = hybrids.load(out / "checkpoints" / f"step-{end}", ema=False)
    assert not torch.equal(plain.sample(64, generator=torch.Generator().manual_seed(0)), x)


def test_load_refuses_what_is_no_run(tmp_path):
    with pytest.raises(experiment.Refusal, match="no valid checkpoint there"):
        hybrids.load(tmp_path)


# Numbers that are none.


def toy(loss):
    """A build of one linear layer with a loss of its own."""

    def build(settings, data):
        layer = nn.Linear(64, 1)
        layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)
        optimizer = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
        return [Stage("toy", layer, [Player(lambda x, step: loss(layer, x, step), [layer], optimizer=optimizer,
                                            name="painter")])]  # fmt: skip

    return build


def painter(x_of_n):
    """A build whose model draws what x_of_n says."""
    plain = toy(lambda layer, x, step: Terms(error=layer(x.flatten(1))[:, 0].square()))

    def build(settings, data):
        (stage,) = plain(settings, data)
        stage.model.sample = x_of_n
        return [stage]

    return build


def test_what_a_model_cannot_draw_does_not_cost_its_training(tmp_path, few_digits):
    """The error is raised once the checkpoint is written, and it is the last that is said."""

    def broken(n, generator=None):
        raise RuntimeError("a latent of another shape")

    argv = arguments("toy", tmp_path / "run", "--steps", "3", "--resolution", "8", "--sample-every", "2")
    with pytest.raises(RuntimeError, match="a latent of another shape"):
        experiment.main(experiment.Settings, painter(broken), argv)
    assert (tmp_path / "run/checkpoints/step-2/manifest.json").is_file()
    argv[argv.index("--sample-every") + 1] = "9"
    with pytest.raises(RuntimeError, match="a latent of another shape"):
        experiment.main(experiment.Settings, painter(broken), [*argv, "--resume", "auto"])
    assert (tmp_path / "run/checkpoints/step-3/manifest.json").is_file()


@pytest.mark.parametrize(
    "build, message",
    [
        (painter(None), "stage 'toy': its model must offer sample(n, generator=); Linear does not"),
        (lambda settings, data: None, "build must return a list of Stage, at least one; got NoneType"),
        (lambda settings, data: [nn.Linear(2, 2)], "build must return a list of Stage, at least one; got ['Linear']"),
    ],
)
def test_a_build_without_stages_to_sample_is_refused(build, message, tmp_path, capsys, few_digits):
    argv = arguments("toy", tmp_path / "run", "--steps", "2", "--resolution", "8")
    with pytest.raises(SystemExit, match="2"):
        experiment.main(experiment.Settings, build, argv)
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_stage_of_data_of_its_own(tmp_path, few_digits):
    """Its batches are the run's size of that data."""
    mine = hybrids.data.Data.from_tensor(torch.ones(24, 1, 8, 8))
    seen = []

    def loss(layer, x, step):
        seen.append(x)
        return Terms(error=layer(x.flatten(1))[:, 0].square())

    def build(settings, data):
        (stage,) = toy(loss)(settings, data)
        return [replace(stage, batches=mine)]

    experiment.main(experiment.Settings, build, arguments("toy", tmp_path / "run", "--steps", "2", "--resolution", "8"))
    assert all(x.shape == (8, 1, 8, 8) and (x == 1).all() for x in seen)
    # Two steps, and twice for the table of players.
    assert len(seen) == 4


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_stops_the_run(log_every, tmp_path, capsys, few_digits):
    """Fault 26: exit code 76, a message that names player, term and step, and nothing is saved."""

    def loss(layer, x, step):
        y = layer(x.flatten(1))[:, 0]
        return Terms(fine=y.square(), wild=y * (float("nan") if step == 2 else 1.0))

    argv = ["--steps", "6", "--resolution", "8", "--log-every", str(log_every), "--checkpoint-every", "6"]
    with pytest.raises(SystemExit) as caught:
        experiment.main(experiment.Settings, toy(loss), arguments("toy", tmp_path / "run", *argv))
    said = capsys.readouterr().err
    assert caught.value.code == 76 and "Traceback" not in said
    assert re.search(r"stopped: step 3: the gradient of player 'painter' is not finite: .* term 'wild' is nan", said)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_nan_before_the_last_checkpoint_keeps_the_one_before(tmp_path, few_digits):
    """What was saved while all was well stays."""

    def loss(layer, x, step):
        return Terms(wild=layer(x.flatten(1))[:, 0] * (float("inf") if step == 4 else 1.0))

    argv = ["--steps", "6", "--resolution", "8", "--log-every", "50", "--checkpoint-every", "2"]
    with pytest.raises(SystemExit, match="76"):
        experiment.main(experiment.Settings, toy(loss), arguments("toy", tmp_path / "run", *argv))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-2", "step-4"]


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path, capsys, few_digits):
    """Fault 27: the loss of that step is finite, its gradient is not."""

    def loss(layer, x, step):
        y = layer(x.flatten(1))[:, 0]
        # 0 × ∞: the slope of the root at 0.
        return Terms(root=(0 * y).sqrt() if step == 3 else y.square())

    argv = ["--steps", "6", "--resolution", "8", "--log-every", "2", "--checkpoint-every", "2"]
    with pytest.raises(SystemExit, match="76"):
        experiment.main(experiment.Settings, toy(loss), arguments("toy", tmp_path / "run", *argv))
    said = capsys.readouterr().err
    assert "stopped: step 4: the gradient of player 'painter' is not finite: its loss and terms are finite" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]


def test_an_update_that_overflows_is_never_saved(tmp_path, capsys, few_digits):
    """The gradient is finite and the updated weights are not."""

    def loss(layer, x, step):
        return Terms(wild=layer(x.flatten(1))[:, 0] * (1e18 if step == 3 else 0.0))

    def build(settings, data):
        (stage,) = toy(loss)(settings, data)
        stage.players[0].optimizer.param_groups[0]["lr"] = 1e30
        return [stage]

    argv = ["--steps", "6", "--resolution", "8", "--checkpoint-every", "4"]
    with pytest.raises(SystemExit, match="76"):
        experiment.main(experiment.Settings, build, arguments("toy", tmp_path / "run", *argv))
    assert re.search(r"stopped: step 4: parameter .*weight of player .painter. is not finite", capsys.readouterr().err)


def test_a_skipped_step_is_counted_and_leaves_the_average_as_it_was(tmp_path, capsys, few_digits, monkeypatch):
    """--skip-nonfinite: the run ends as usual; one step more is a stop."""

    def loss(layer, x, step):
        return Terms(wild=layer(x.flatten(1))[:, 0].square() * (float("nan") if step in (2, 3) else 1.0))

    updates = []
    update = EMA.update_parameters
    monkeypatch.setattr(EMA, "update_parameters", lambda ema, model: (updates.append(1), update(ema, model)))
    argv = ["--steps", "6", "--resolution", "8", "--log-every", "1"]
    run = tmp_path / "run"
    experiment.main(experiment.Settings, toy(loss), arguments("toy", run, *argv, "--skip-nonfinite", "2"))
    assert "2 step(s) skipped, not finite" in capsys.readouterr().out and len(updates) == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped/painter") for line in lines] == [None, None, 1, 2, None, None]
    with pytest.raises(SystemExit, match="76"):
        experiment.main(
            experiment.Settings, toy(loss), arguments("toy", tmp_path / "one", *argv, "--skip-nonfinite", "1")
        )


def test_the_number_of_skipped_steps_is_the_runs_whatever_stops_it(tmp_path, capsys, few_digits):
    """A resume does not begin to count anew: the second step that is not finite is one too many for both."""

    def loss(layer, x, step):
        return Terms(wild=layer(x.flatten(1))[:, 0].square() * (float("nan") if step in (1, 3) else 1.0))

    argv = ["--steps", "6", "--resolution", "8", "--skip-nonfinite", "1", "--checkpoint-every", "3"]
    for more in ([], ["--resume", "auto"]):
        with pytest.raises(SystemExit, match="76"):
            experiment.main(experiment.Settings, toy(loss), arguments("toy", tmp_path / "run", *argv, *more))
        assert "step 4: the gradient of player 'painter' is not finite" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]


def test_logs_of_a_checkpoint_go_on_on_the_device_of_the_run():
    """What a signal saved between two lines is read on the CPU, and joined to the device's."""
    device = torch.device("meta")
    gathered = Gathered()
    gathered.restore({"logs/loss/a": torch.ones(2), "cpu": torch.zeros(1)}, device)
    gathered.add({"loss/a": torch.ones((), device=device)})
    assert torch.stack(gathered.values["loss/a"]).shape == (3,) and list(gathered.values) == ["loss/a"]


def test_no_average_is_an_option(tmp_path, few_digits):
    """`--ema 0` samples from the model itself, saves no average, and resumes."""
    run("vae", tmp_path / "a", "--steps", "4", "--ema", "0", "--checkpoint-every", "2")
    assert not (tmp_path / "a/checkpoints/step-4/ema.safetensors").exists()
    run("vae", tmp_path / "b", "--steps", "4", "--ema", "0", "--checkpoint-every", "2", "--resume",
        tmp_path / "a/checkpoints/step-2")  # fmt: skip
    one, other = (load_file(tmp_path / out / "checkpoints/step-4/stage-0.safetensors") for out in "ab")
    assert all(torch.equal(one[key], other[key]) for key in one)
    x = hybrids.load(tmp_path / "a").sample(64, generator=torch.Generator().manual_seed(0))
    save_picture(x, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a/samples/step-4.png").read_bytes()


# With processes.


@pytest.mark.slow
def test_a_signal_stops_a_run_that_can_be_resumed(tmp_path):
    """SIGTERM: the step is finished, a checkpoint saved, exit code 75; resumed, the run ends as the straight one."""
    command = [sys.executable, "recipes/vae.py", *arguments("vae", tmp_path / "stopped", "--steps", 60)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    log = tmp_path / "stopped" / "metrics.jsonl"
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:  # fmt: skip
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "stopped by a signal, saved; go on with --resume auto" in said
    (saved,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    from hybrids.experiment.checkpoints.checkpoint import verify

    assert 3 <= verify(saved)["step"] < 60
    done = subprocess.run([*command, "--resume", "auto"], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run("vae", tmp_path / "straight", "--steps", 60)
    same_run(tmp_path / "straight", tmp_path / "stopped", 60)


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(launch, tmp_path):
    """Each recipe on two ranks, in one launch: straight, and stopped by a signal to one rank and resumed."""
    launch(REPOSITORY / "tests" / "ranks" / "resume_worker.py", tmp_path, timeout=480)
    straight, stopped = ((tmp_path / f"script-{name}/checkpoints/step-6") for name in ("straight", "stopped"))
    names = sorted(path.name for path in straight.iterdir() if path.name != "manifest.json")
    assert "rank-1.json" in names
    for name in names:
        assert (straight / name).read_bytes() == (stopped / name).read_bytes(), name
    for name in TINY:
        end = last_step(name, 6)
        same_run(tmp_path / f"{name}-straight", tmp_path / f"{name}-resumed", end)
        assert "rank-1/cpu" in state(tmp_path / f"{name}-resumed" / "checkpoints" / f"step-{end}")
        ranks = [load_file(tmp_path / f"{name}-resumed/checkpoints/step-{end}/rank-{r}.safetensors") for r in (0, 1)]
        assert not torch.equal(ranks[0]["cpu"], ranks[1]["cpu"])
    # Fault 41: another number of processes keeps the data order and says what it does not keep.
    source = tmp_path / "vae-straight/checkpoints/step-3"
    with pytest.warns(UserWarning, match="saved on 2 processes, this is 1: the data order is kept.*not bit-exact"):
        run("vae", tmp_path / "alone", "--batch-size", 8, "--accumulation", 2, "--steps", 4, "--resume", source)
    before, after = (state(path)["batches"] for path in (source, tmp_path / "alone/checkpoints/step-4"))
    assert after == {**before, "consumed": before["consumed"] + 16}


def two_processes(script, *argv) -> list[subprocess.Popen]:
    """Start two ranks of a script without a launcher, which would end one when the other ends."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, script, *map(str, argv)],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SIGSTOP", "SIGKILL"])
def test_a_rank_that_is_frozen_or_dead_is_named(kind, tmp_path):
    """The other ends with a message and without a traceback; the checkpoint before is whole."""
    script = REPOSITORY / "tests" / "ranks" / "lost_worker.py"
    waiting, lost = two_processes(script, kind, tmp_path / "run")
    try:
        text, _ = waiting.communicate(timeout=120)
    finally:
        for process in (waiting, lost):
            process.kill()
            process.communicate()
    assert waiting.returncode == 2, text
    named = r"rank 0 waits after step 3: rank 1 \(after step 3\) gives no sign of life: it is frozen or dead"
    assert re.search(rf"refused: stopped: {named}.*saved are intact: go on with --resume auto", text), text
    assert "Traceback" not in text
    if kind == "SIGSTOP":
        assert re.search(rf"waiting for \d+ s of --timeout 8: {named}", text), text
    from hybrids.experiment.checkpoints.checkpoint import verify

    assert verify(tmp_path / "run/checkpoints/step-2")["world_size"] == 2


@pytest.mark.slow
def test_a_bad_batch_of_one_rank_ends_all_in_messages(tmp_path):
    """The rank that has it names it and the step; the other, whom it waits for; the checkpoint before is whole."""
    processes = two_processes(REPOSITORY / "tests" / "ranks" / "lost_worker.py", "NaN", tmp_path / "run")
    try:
        waiting, bad = (process.communicate(timeout=120)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [2, 2], waiting + bad
    assert re.search(r"refused: stage 'toy', step 4: x must be finite; sample 0 .* are from before", bad), bad
    assert re.search(r"refused: stopped: rank 0 waits after step 3: rank 1 \(after step 3\) gives no", waiting), waiting
    assert "Traceback" not in waiting + bad
    from hybrids.experiment.checkpoints.checkpoint import verify

    assert verify(tmp_path / "run/checkpoints/step-2")["world_size"] == 2


def test_a_second_signal_ends_the_process_at_once():
    """Fault 33: the first is noted, and what a launcher passes on at the same time; the second is the system's."""
    from hybrids.experiment.run.signals import Signals

    child = os.fork()
    if not child:
        with Signals() as signals:
            signals.same = 0.2
            for kind in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), kind)
            time.sleep(0.3)
            if signals.received:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT


@pytest.mark.full
def test_kills_at_random_moments_change_nothing():
    """scripts/soak.py, few kills of it, on one process and on two."""
    soak = [sys.executable, REPOSITORY / "scripts" / "soak.py", "--kills", "6"]
    done = subprocess.run(soak, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " on 1: no difference" in done.stdout and " on 2: no difference" in done.stdout
