"""The README tells the truth, command by command."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("    #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def short(command: str, out: Path) -> list[str]:
    """The command with this Python, two steps, and its run folder below `out`."""
    words = shlex.split(command.replace("runs/", f"{out}/"))
    if "--metrics" in words:
        words += ["frechet", "recall", "high_frequency", "--samples", "16"]
    if "scripts/compare.py" in words:
        few = "--recipes vae --images 128 --samples 32 --curve-samples 16 --metrics frechet --out"
        words[words.index("--seconds") :] = [*few.split(), str(out / "comparison")]
    if "recipes/" not in command:
        return words
    if "--help" not in command:
        words += ["--steps", "2", "--device", "cpu"]
    if "ddpm" in command and "--help" not in command:
        words += ["--sample-steps", "2"]
    if "--evaluate-every" in words:
        words[words.index("--evaluate-every") + 1] = "2"
    return words if "--out" in words else [*words, "--out", str(out / re.sub(r"\W+", "-", command))]


def run(words: list[str], **environment: str) -> str:
    words = [sys.executable if word == ".venv/bin/python" else word for word in words]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_hybrid_shown_is_the_script() -> None:
    assert f"```python\n{(ROOT / 'scripts' / 'hybrid.py').read_text()}```" in README


def test_the_hybrid_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = (ROOT / "scripts" / "hybrid.py").read_text()
    assert code.count("steps=1000") == 1 and code.count("% 100") == 1
    names: dict[str, object] = {}
    exec(compile(code.replace("steps=1000", "steps=2").replace("% 100", "% 2"), "hybrid.py", "exec"), names)
    logs = names["logs"]
    assert {"loss/vae/prior.diffusion", "loss/vae/adversarial", "loss/critic/adversarial"} <= set(logs)
    assert all(value.isfinite() for value in logs.values())
    assert "'lr/vae': 0.0001" in capsys.readouterr().out


def test_every_recipe_is_in_the_table() -> None:
    for path in (ROOT / "recipes").glob("*.py"):
        assert f"| `{path.name}` |" in README


@pytest.mark.slow
def test_commands_run(tmp_path: Path) -> None:
    """In their order, since some sample from the run of an earlier one."""
    ran = 0
    for command in COMMANDS:
        words = short(command, tmp_path)
        if not words or words[0] in ("./scripts/demo", "./scripts/test", "pip") or "tensorboard" in words[0]:
            continue
        if words[0] == "accelerate":
            # Four GPUs are not to be had here; the launcher is.
            words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *words[4:]]
            run(words)
        elif words[0].startswith("ACCELERATE_USE_CPU"):
            out = run([sys.executable, "-m", "torch.distributed.run", *words[2:]], ACCELERATE_USE_CPU="true")
            assert "2 process(es)" in out
        else:
            assert words[0] == ".venv/bin/python", f"not tested: {command}"
            run(words)
        ran += 1
    assert ran >= 8
