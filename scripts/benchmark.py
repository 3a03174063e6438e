"""What the framework costs: a step of `train` against a bare loop, a step of a sampler against diffusers', its import
and the start of a recipe against torch's, its data against PNGs, its checkpoints against plain reading and writing.

    python scripts/benchmark.py [overhead | sampling | import | start | data | checkpoints | metrics]

Machines are shared and noisy, so both sides alternate in seven rounds of one run and the medians are compared; the two
training loops also take turns step by step inside a round. `metrics`, which `all` leaves out, has no other side: the
seconds and the memory that the metrics of 10,000 samples of 32 × 32 take.
"""

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from components.backbones import UNet
from components.denoisers import Denoiser
from components.samplers import Sampler
from components.schedules import BetaSchedule
from hybrids import Player, Terms, train
from hybrids.finite import Watch, gradient_norm

ROUNDS = 7


class AtHalf(nn.Module):
    """A backbone at t = 0.5."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """(B, *event) to the same."""
        return self.backbone(x, torch.tensor(0.5, device=x.device))


def bare(model: nn.Module, x: Tensor) -> Iterator[object]:
    """The loop that everybody writes; each `next` is a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    while True:
        loss = (model(x) - x).square().flatten(1).sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def ours(model: nn.Module, x: Tensor) -> Iterator[object]:
    """The same by `train`, with its logs and the gradient's norm; each `next` is a step."""
    from accelerate import Accelerator

    player = Player(lambda x: Terms(error=(model(x) - x).square().flatten(1).sum(1)), moves=[model])
    return train(player, [x], Accelerator(), sys.maxsize)


def checking(model: nn.Module, x: Tensor) -> Iterator[object]:
    """The bare loop with the checks alone that `train` makes in each step: range of the batch, finite gradient."""
    from accelerate import Accelerator

    player = Player(lambda x: Terms(error=(model(x) - x).square().flatten(1).sum(1)), moves=[model])
    watch, turn = Watch([player], Accelerator(), 0), 0
    while True:
        watch.look([x], first=False)
        loss = (model(x) - x).square().flatten(1).sum(1).mean()
        loss.backward(gradient=watch.seed(loss))
        if watch.allows(player, gradient_norm(list(model.parameters())), {}, turn):
            player.optimizer.step()
        player.optimizer.zero_grad()
        turn += 1
        yield


def one_round(
    model: nn.Module, x: Tensor, steps: int, second: Callable[[nn.Module, Tensor], Iterator[object]]
) -> tuple[float, float]:
    """Milliseconds a step of both loops, which take turns step by step: what else the machine does hits both alike."""
    loops = (bare(model, x), second(model, x))
    spent = [0.0, 0.0]
    for step in range(steps + 1):
        for i in (step % 2, 1 - step % 2):
            _wait(x)
            start = time.perf_counter()
            next(loops[i])
            _wait(x)
            # The first step makes the optimizer's state.
            spent[i] += (time.perf_counter() - start) * (step > 0)
    return 1000 * spent[0] / steps, 1000 * spent[1] / steps


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def rounds(first: Callable[[], float], second: Callable[[], float]) -> Iterator[tuple[float, float]]:
    """Both in turn, ROUNDS times, after one unmeasured round."""
    first(), second()
    for _ in range(ROUNDS):
        yield first(), second()


def overhead() -> None:
    """Where Python is all there is, where the networks are, and where the parameters are."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"a step of train against a bare loop, {device}, {torch.get_num_threads()} thread(s)")
    small = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)).to(device)
    wide = 1024 if device == "cpu" else 8192
    large = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(wide, wide), nn.SiLU())]).to(device)
    unet = AtHalf(UNet((1, 8, 8), 32, blocks=1)).to(device)
    cases: list[tuple[str, nn.Module, tuple[int, ...], int]] = [
        ("tiny MLP", small, (32, 8), 500),
        ("U-Net", unet, (64, 1, 8, 8), 60),
        # All parameters and little arithmetic: here reading the gradient once, for its norm, shows.
        ("wide MLP", large, (128, wide), 60),
    ]
    for name, model, shape, steps in cases:
        x = torch.randn(shape, device=device).clamp(-1, 1)
        for what, loop in (("ours", ours), ("checks", checking)):
            pairs = [one_round(model, x, steps, loop) for _ in range(1 + ROUNDS)][1:]
            base = statistics.median(a for a, _ in pairs)
            more = statistics.median(b - a for a, b in pairs)
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"  {name:8}  bare {base:8.3f} ms   {what:6} {more:+7.3f} ms   ratio {ratio:.3f}")


class Null(nn.Module):
    """A backbone that costs nothing: what is left is the sampler."""

    def forward(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        """x_t itself."""
        return x_t


def sampling() -> None:
    """A sampler's own cost a step, its plan included, against diffusers' schedulers of the same formulas."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    steps, x, null = 50, torch.randn(4, 3, 32, 32), Null()
    denoiser = Denoiser(null, BetaSchedule())

    def theirs(scheduler: Any) -> float:
        scheduler.set_timesteps(steps)
        y, start = x, time.perf_counter()
        with torch.no_grad():
            for t in scheduler.timesteps:
                y = scheduler.step(null(y, t), t, y).prev_sample
        return 1000 * (time.perf_counter() - start) / steps

    def ours(method: str) -> float:
        sampler, start = Sampler(method, steps), time.perf_counter()
        sampler(denoiser, x)
        return 1000 * (time.perf_counter() - start) / steps

    print(f"a sampler's step with a null network against diffusers', {torch.get_num_threads()} thread(s)")
    cases = {
        "ddim": partial(DDIMScheduler, clip_sample=False, timestep_spacing="trailing"),
        "dpm_solver_pp": partial(DPMSolverMultistepScheduler, timestep_spacing="trailing"),
    }
    for method, scheduler in cases.items():
        pairs = [pair for _ in range(5) for pair in rounds(lambda: theirs(scheduler()), partial(ours, method))]  # noqa: B023
        base, own = (statistics.median(side) for side in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"  {method:13}  diffusers {base:.3f} ms   ours {own:.3f} ms   ratio {ratio:.3f}")


def importing() -> None:
    """In fresh processes."""

    pairs = list(rounds(partial(_process, "import torch"), partial(_process, "import hybrids, components")))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"import hybrids, components against import torch: ratio {ratio:.3f}")
    print(f"  (torch {statistics.median(a for a, _ in pairs):.2f} s)")


def start() -> None:
    """From a recipe's command to the end of its first step, in fresh processes.

    A torch optimizer imports torch._dynamo when it is made, whoever makes it: the second ratio leaves that out.
    """
    torch_alone = "import torch, accelerate"
    with_optimizer = f"{torch_alone}; torch.optim.AdamW([torch.zeros(1, requires_grad=True)])"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vae", "ddpm"):
            first_step = f"""
import os
from hybrids.experiment import load_recipe, main
from hybrids.experiment.run import run
inner = run.train
def train(*given):
    next(inner(*given))
    os._exit(0)
run.train = train
recipe = load_recipe({name!r})
main(recipe.Settings, recipe.build, ["--device", "cpu", "--overwrite", "--out", {folder!r}])
"""
            sides = (torch_alone, with_optimizer, first_step)
            times = [[_process(side) for side in sides] for _ in range(1 + ROUNDS)][1:]
            ratios = [statistics.median(last / row[i] for *row, last in times) for i in (0, 1)]
            print(
                f"the first step of {name}.py after {statistics.median(row[-1] for row in times):.2f} s: "
                f"{ratios[0]:.2f} × {torch_alone}, {ratios[1]:.2f} × that with an optimizer made"
            )


def _process(code: str) -> float:
    """Seconds of a fresh process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def data() -> None:
    """Batches of decoded images in memory against rows of PNG bytes through a transform, in one process."""
    from PIL import Image
    from torchvision import transforms

    from hybrids.data import shapes

    for resolution in (32, 64):
        examples = shapes(resolution, 1000, 64)
        assert examples.x is not None
        rows = []
        for image in examples.x:
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
            rows.append(file.getvalue())
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

        def decoded(rows: list[bytes] = rows, transform: Callable[..., Tensor] = transform) -> Iterator[Tensor]:
            while True:
                index = torch.randint(len(rows), (64,)).tolist()
                yield torch.stack([transform(Image.open(io.BytesIO(rows[i])).convert("RGB")) for i in index])

        pairs = list(rounds(partial(_seconds, iter(examples.batches(64))), partial(_seconds, decoded())))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"batches in memory against PNG rows, {resolution} × {resolution}: {ratio:.0f} times as fast")


def _seconds(batches: Iterator[Tensor], count: int = 20) -> float:
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - start


def checkpoints(megabytes: int = 256) -> None:
    """A save against writing the same bytes with fsync; reading against safetensors and SHA-256 of the same file."""
    import hashlib
    import os
    import tempfile
    from pathlib import Path

    from accelerate import Accelerator
    from safetensors.torch import load_file

    from hybrids.experiment.checkpoints.checkpoint import read, read_newest, save
    from hybrids.experiment.checkpoints.state import State

    accelerator = Accelerator()
    # Of a model with a moving average and Adam.
    shares = {"stage-0": 1, "ema": 1, "optimizers": 2}
    tensors = {
        part: {str(i): torch.randn(2**18) for i in range(megabytes * share // 4)} for part, share in shares.items()
    }
    state = State(tensors, {"progress": {}}, {}, {})
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        raw = b"".join(tensor.numpy().tobytes() for part in tensors.values() for tensor in part.values())

        def timed(action: Callable[[], object]) -> float:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start

        def write() -> None:
            with (root / "plain").open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())

        def plain() -> None:
            for part in tensors:
                load_file(folder / f"{part}.safetensors")
                with (folder / f"{part}.safetensors").open("rb") as file:
                    hashlib.file_digest(file, "sha256")

        folder = save(root, 1, state, {}, accelerator, 9)
        for name, ours, theirs in (
            ("a save against writing and fsync", lambda: save(root, 1, state, {}, accelerator, 1), write),
            ("verified reading against load_file and SHA-256", lambda: read(folder, 0), plain),
            ("the newest of a folder, as --resume auto", lambda: read_newest(root, accelerator), plain),
        ):
            pairs = list(rounds(partial(timed, theirs), partial(timed, ours)))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"{name}: ratio {ratio:.2f} ({statistics.median(a for a, _ in pairs):.2f} s plainly)")
        print(f"memory of reading against the file: ratio {_peak(folder) / len(raw):.2f}")


def _peak(folder: object) -> float:
    """The growth of a fresh process's peak memory, in bytes, while it reads a checkpoint (Linux)."""
    code = (
        "import re, sys; from hybrids.experiment.checkpoints.checkpoint import read\n"
        "kilobytes = lambda key: int(re.search(key + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = kilobytes('VmRSS'); state = read(sys.argv[1], 0); print(1024 * (kilobytes('VmHWM') - before))"
    )
    got = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    return int(got.stdout)


def metrics() -> None:
    """Of 10,000 images against as many real ones, in the features of a classifier, trained now, and in pixels."""
    import resource

    from hybrids.data import shapes
    from hybrids.evaluation import measure
    from hybrids.evaluation.sample_metrics import SAMPLE_METRICS

    known, drawn = shapes(32, 20_000, 1000), shapes(32, 10_000, 10, seed=1)
    assert drawn.x is not None
    x = drawn.decode(drawn.x)
    # Those of points, of digits, and of weights that are not at hand.
    elsewhere = {"fid", "kid", "wasserstein", "high_quality", "log_density", "confidence", "modes", "kl"}
    names = [name for name in SAMPLE_METRICS if name not in elsewhere]
    scale = 1024**3 if sys.platform == "darwin" else 1024**2
    for features in ("pixels", "auto"):
        wall, cpu = time.perf_counter(), time.process_time()
        measure(nn.Identity(), known, torch.device("cpu"), metrics=names, x=x, features=features)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
        words = "a classifier's features" if features == "auto" else features
        print(f"{len(names)} metrics of {len(x)} samples, {words}: {wall:.0f} s, {cpu:.0f} CPU s, peak {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the framework costs.")
    parser.add_argument(
        "what",
        nargs="?",
        choices=["overhead", "sampling", "import", "start", "data", "checkpoints", "metrics", "all"],
        default="all",
    )
    chosen = parser.parse_args().what
    if chosen in ("overhead", "all"):
        overhead()
    if chosen in ("sampling", "all"):
        sampling()
    if chosen in ("import", "all"):
        importing()
    if chosen in ("start", "all"):
        start()
    if chosen in ("data", "all"):
        data()
    if chosen in ("checkpoints", "all"):
        checkpoints()
    if chosen == "metrics":
        metrics()


if __name__ == "__main__":
    main()
