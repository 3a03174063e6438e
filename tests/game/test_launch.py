"""What Accelerate was launched with is honoured, or refused by name."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from small import linear

from hybrids import train
from hybrids.experiment import Refusal, Settings, parse
from hybrids.launch import check_environment, launched

REFUSED = [
    ({"ACCELERATE_USE_FSDP": "true"}, "FSDP is refused"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is refused"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is refused"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor, context or sequence parallelism is refused"),
    ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed precision fp8 is refused: .*; use bf16, or no"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "mixed precision fp16 is refused: its one gradient scaler"),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo backend inductor is refused"),
    (
        {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
        ".* started one, .*: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N SCRIPT",
    ),
]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No launcher's environment; Accelerator itself leaves ACCELERATE_USE_… behind."""
    for name in list(os.environ):
        if name.startswith("ACCELERATE_") or name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(("environment", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_nobody_would_do_is_refused_by_name(environment, message, monkeypatch):
    """Traps 6, 25, 34, 47: by `train`, and by a recipe before it makes anything."""
    player, _ = linear()
    accelerator = Accelerator(cpu=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        train(player, [torch.zeros(4, 2)], accelerator, 1)
    with pytest.raises(Refusal, match=f"launch: {message}"):
        launched(Settings())


def test_what_asks_for_nothing_passes(monkeypatch):
    """`accelerate launch` always says no precision and no dynamo; torchrun says how many processes there are."""
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "no",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    check_environment()
    settings = Settings(accumulation=3)
    assert launched(settings) == settings


def test_a_script_s_own_accelerator_may_not_undo_what_was_launched(monkeypatch):
    """Trap 48: Accelerator(mixed_precision="no") overrides the launcher's bf16."""
    player, _ = linear()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "no")
    with pytest.raises(ValueError, match="asks for bf16 .*, the script's Accelerator has no; expected the same"):
        train(player, [torch.zeros(4, 2)], accelerator, 1)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "bf16")
    assert len(list(train(player, [torch.zeros(4, 2)], accelerator, 1))) == 1


def test_a_dynamo_plugin_of_a_script_is_refused(monkeypatch):
    player, _ = linear()
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator.state.dynamo_plugin, "backend", DynamoBackend.EAGER)
    with pytest.raises(ValueError, match="dynamo backend EAGER is refused: .* net.compile"):
        train(player, [torch.zeros(4, 2)], accelerator, 1)


def settings(*argv):
    return parse(Settings, [*map(str, argv)], "toy")


def test_precedence(monkeypatch, tmp_path):
    """What is typed, --config, what was launched, the default; what is typed may not differ from what was launched."""
    assert launched(settings()).mixed_precision == "no" and launched(settings()).accumulation == 1
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    taken = launched(settings("--seed", 3))
    assert (taken.mixed_precision, taken.accumulation, taken.seed) == ("bf16", 4, 3)
    config = tmp_path / "given.yaml"
    config.write_text("mixed_precision: 'no'\naccumulation: 2\n")
    taken = launched(settings("--config", config))
    assert (taken.mixed_precision, taken.accumulation) == ("no", 2)
    # Accelerate, which reads the environment, is told so.
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
    assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "2"
    by_hand = replace(settings(), accumulation=3)
    with pytest.raises(Refusal, match="accumulation 3: launched with 2"):
        launched(by_hand)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    launched(settings("--accumulation", 4, "--mixed-precision", "bf16"))
    with pytest.raises(Refusal) as caught:
        launched(settings("--accumulation", 2, "--mixed-precision", "no"))
    assert caught.value.errors == [
        "--mixed-precision no: launched with bf16 (ACCELERATE_MIXED_PRECISION); expected the same: drop one",
        "--accumulation 2: launched with 4 (ACCELERATE_GRADIENT_ACCUMULATION_STEPS); expected the same: drop one",
    ]
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "many")
    with pytest.raises(Refusal, match="launch: .*'many'"):
        launched(settings())


@pytest.mark.parametrize("config", [{"distributed_type": "MULTI_CPU", "num_processes": 2}, {"num_processes": 1}])
@pytest.mark.slow
def test_accelerate_launch(config, tmp_path, monkeypatch):
    """Two processes on CPUs are one of `accelerate launch`, and refused; bf16 and accumulation reach a recipe."""
    root = Path(__file__).parents[2]
    lines = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "'NO'", "mixed_precision": "bf16",
             "use_cpu": "true", "num_machines": 1, "machine_rank": 0, **config}  # fmt: skip
    (tmp_path / "given.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "given.yaml")]
    recipe = [
        str(root / "recipes" / "vae.py"),
        "--steps",
        "1",
        "--width",
        "8",
        "--latent",
        "4",
        "--out",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    done = subprocess.run([*command, *recipe], env=environment, capture_output=True, text=True, timeout=300)
    if config["num_processes"] == 2:
        assert done.returncode != 0 and "torchrun --nproc_per_node N SCRIPT" in done.stderr
        assert not (tmp_path / "run").exists()
    else:
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "run" / "config.yaml").read_text()
        assert "mixed_precision: bf16" in text and "accumulation: 2" in text
