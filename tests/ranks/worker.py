"""What two ranks do, in one launch: every function below runs in turn, and what it returns is written for its rank.

Started by `test_ranks.py` through `torch.distributed.run`; the tests judge what is written.
"""

import contextlib
import gc
import hashlib
import io
import json
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "game"))

from small import GAMES, TINY, cut, examples, game, linear, tiny  # noqa: E402

from components.distributions import Normal
from components.losses import low_discrepancy
from hybrids import Critic, Player, StandardNormal, Terms, experiment, rate, train  # noqa: E402
from hybrids.data import load_data  # noqa: E402
from hybrids.experiment import load_recipe  # noqa: E402
from hybrids.game import assert_equal_on_ranks  # noqa: E402

SGD = partial(torch.optim.SGD, lr=0.1)
OUT = Path(sys.argv[1])


def rank() -> int:
    return dist.get_rank()


def fresh(k=1, **options) -> Accelerator:
    """An accelerator with settings of its own, on the process group that is there."""
    from accelerate.state import AcceleratorState, GradientState

    # PartialState, which holds the process group, stays.
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=k, **options)


def own(batch, k=1):
    """This rank's half of a batch, in k pieces."""
    n = len(batch["x"]) // 2
    return cut({key: value[rank() * n : (rank() + 1) * n] for key, value in batch.items()}, n // k)


def digest(players) -> str:
    """A hash of every bit that the players move."""
    found = hashlib.sha256()
    for player in players:
        for p in player.parameters_moved():
            found.update(p.detach().numpy().tobytes())
    return found.hexdigest()


def message(action) -> str:
    """What an action is refused with."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def world():
    a = fresh()
    return {"size": a.num_processes, "rank": a.process_index, "type": str(a.distributed_type)}


def gradients():
    """The gradients of three steps of every game, with one and with two micro-batches."""
    found = {}
    for name in GAMES:
        for k in (1, 2):
            players = game(name)
            batches = [part for seed in range(3) for part in own(examples(16, seed), k)]
            list(train(players, batches, fresh(k), 3))
            found[f"{name}-{k}"] = {
                "seen": {player.name: [g.tolist() for g in player.optimizer.seen] for player in players},
                "digest": digest(players),
            }
    return found


def synchronised():
    """Whether DDP was about to average gradients, for every forward of two steps with three micro-batches."""
    from torch.nn.parallel import DistributedDataParallel

    seen, inner = [], DistributedDataParallel.forward

    def forward(self, *args, **options):
        seen.append((self.module.name, self.require_backward_grad_sync))
        return inner(self, *args, **options)

    DistributedDataParallel.forward = forward
    try:
        list(train(game("gan"), [p for seed in range(2) for p in own(examples(12, seed), 3)], fresh(3), 2))
    finally:
        DistributedDataParallel.forward = inner
    return seen


def recipes():
    """Hashes after 20 steps with accumulation 2 of each recipe, with noise of each rank's own."""
    found = {}
    for name in TINY:
        data = load_data("digits", 8)
        players = tiny(load_recipe(name), data, steps=20)
        before = digest(players)
        set_seed(1 + rank())
        batches = data.batches(4, 0, rank(), 2)
        losses = [logs[f"loss/{players[0].name}"].item()
                  for _, logs in train(players, batches, fresh(2), 20)]  # fmt: skip
        message_ = message(lambda players=players: assert_equal_on_ranks(players, fresh()))
        found[name] = {"before": before, "after": digest(players), "losses": losses, "assertion": message_}
    return found


def drift():
    """What `assert_equal_on_ranks` says of one bit that differs on rank 1."""
    player, layer = linear("critic")
    if rank() == 1:
        with torch.no_grad():
            layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    return message(lambda: assert_equal_on_ranks([player], fresh()))


def noise():
    """Whether `train` warns of equal noise, after a plain seed and after one of each rank's own."""
    found = {}
    for name, options in (("plain", {}), ("own", {"device_specific": True})):
        player, _ = linear()
        a = fresh()
        set_seed(0, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(train(player, [torch.ones(4, 2)], a, 1))
        found[name] = [str(w.message) for w in caught if "noise" in str(w.message)]
    return found


def run_noise():
    """In a whole run: the first weights, and the noise and data of the last step."""
    from hybrids.experiment import Stage

    seen = {}

    def build(settings, data):
        layer = nn.Linear(64, 4)
        seen["weights"] = layer.weight.flatten()[:4].tolist()

        def loss(x):
            seen["noise"] = torch.randn(4).tolist()
            seen["data"] = x.flatten(1).sum(1).tolist()
            return Terms(a=layer(x.flatten(1)).square().sum(1))

        layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)
        return [Stage("toy", layer, [Player(loss, [layer], optimizer=SGD, name="toy")])]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(build, "toy", "--steps", "2")
    seen["warnings"] = [str(w.message) for w in caught if "noise" in str(w.message)]
    return seen


def run(build, name, *argv, settings=None):
    """A whole run in this process group, which it does not end."""
    fresh()
    common = ["--device", "cpu", "--batch-size", "4", "--resolution", "8", "--log-every", "1"]
    inner, Accelerator.end_training = Accelerator.end_training, lambda self: None
    try:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(False)
        GradientState._reset_state()
        with contextlib.redirect_stdout(io.StringIO()):
            experiment.main(settings or experiment.Settings, build, [*common, "--out", str(OUT / name), *argv])
    finally:
        Accelerator.end_training = inner


def saved():
    """A checkpoint of a recipe with several players, buffers and wrappers."""
    recipe = load_recipe("gan")
    argv = ["--width", "8", "--latent", "4", "--steps", "2", "--spectral-norm", "--mixed-precision", "bf16"]
    run(recipe.build, "saved", *argv, settings=recipe.Settings)


def rates():
    """Learning rates of six steps."""
    player, _ = linear(lr=lambda step, steps: 1.0 / (step + 1))
    return [logs["lr/player"].item() for _, logs in train(player, [torch.ones(2, 2)], fresh(2), 6)]


def batch_norm():
    """BatchNorm in both players, two forwards of the critic before its backward, three micro-batches."""
    torch.manual_seed(0)
    critic = Critic(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)))
    generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    players = [
        Player(lambda b: critic.tell(b["x"], generator(b["z"])), [critic], optimizer=SGD, name="critic"),
        Player(lambda b: critic.fool(generator(b["z"])), [generator], optimizer=SGD, name="generator"),
    ]
    list(train(players, own(examples(24), 3), fresh(3), 4))
    counts = [int(m.num_batches_tracked) for m in (critic.discriminator[1], generator[1])]
    return {"digest": digest(players), "counts": counts}


def trained_twice():
    """One model through two loops, each with an accelerator of its own, and through one."""
    once, twice = game("gan"), game("gan")
    batches = [part for seed in range(4) for part in own(examples(8, seed))]
    list(train(once, batches, fresh(), 4))
    for half in (batches[:2], batches[2:]):
        a = fresh()
        list(train(twice, half, a, 2))
        assert a._models == []
    return [digest(once), digest(twice)]


def free_bits():
    """Gradients of free bits where each rank alone would decide otherwise than both do."""
    mean = torch.tensor([[[0.0, 0.0], [0.0, 1.2]], [[2.0, 0.0], [2.0, 1.3]]])[rank()].requires_grad_()
    terms = rate(Normal(mean, torch.ones(2, 2)), mean, StandardNormal(2), free_bits=0.5)
    terms.total.backward()
    return {"total": terms.total.item(), "gradient": mean.grad.tolist()}


def strata():
    """Times in training, which all ranks share, and in evaluation, which rank 0 does alone."""
    torch.manual_seed(rank())
    from components.backbones import MLP
    from components.denoisers import Denoiser
    from components.schedules import LogSNRLinearSchedule
    from hybrids import Diffusion

    seen = []

    class Backbone(MLP):
        def forward(self, x_t, t, cond=None):
            seen.append(t.tolist())
            return super().forward(x_t, t, cond)

    model = Diffusion(Denoiser(Backbone(2, 8, 1), LogSNRLinearSchedule()), 2)
    model.loss(torch.zeros(8, 2))
    if rank() == 0:
        model.eval().loss(torch.zeros(8, 2))
    return {"function": low_discrepancy(8, across_ranks=True).tolist(), "model": seen[0]}


def unused():
    """Parameters that a loss does not use, refused and allowed."""
    used, idle = nn.Linear(2, 1), nn.Linear(2, 2)

    def player(**options):
        return Player(lambda x: Terms(a=used(x)[:, 0]), [used, idle], optimizer=SGD, name="half", **options)

    refused = message(lambda: list(train(player(), [torch.ones(4, 2)], fresh(), 3)))
    allowed = message(lambda: list(train(player(allow_unused=True), [torch.ones(4, 2)], fresh(2), 3)))
    return {"refused": refused, "allowed": allowed}


def every():
    """A player that moves in every third step only."""
    slow, _ = linear("slow", every=3)
    fast, _ = linear("fast")
    seen = [sorted(tag for tag in logs if tag.startswith("loss/") and tag.count("/") == 1)
            for _, logs in train([slow, fast], [torch.full((4, 2), 1.0 + rank())], fresh(2), 4)]  # fmt: skip
    return {"seen": seen, "digest": digest([slow, fast])}


def not_finite():
    """A loss that is NaN on rank 1 only."""
    from hybrids.experiment import Stage

    def build(settings, data):
        layer = nn.Linear(64, 1)

        def loss(x, step):
            y = layer(x.flatten(1))[:, 0].square()
            return Terms(wild=y * float("nan") if step == 2 and rank() == 1 else y)

        layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)
        return [Stage("toy", layer, [Player(loss, [layer], optimizer=SGD, name="toy")])]

    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        said = message_of_exit(lambda: run(build, "nan", "--steps", "4", "--log-every", "2", "--checkpoint-every", "2"))
    return {"exit": said, "stderr": stderr.getvalue()}


def message_of_exit(action) -> str:
    try:
        action()
    except SystemExit as error:
        return f"exit {error.code}"
    return "nothing"


CHECKS = [world, gradients, synchronised, recipes, drift, noise, run_noise, saved, rates, batch_norm, trained_twice,
          free_bits, strata, unused, every, not_finite]  # fmt: skip


def main():
    accelerator, own = fresh(), rank()
    for check in CHECKS:
        try:
            result = {"result": check()}
        except Exception:
            result = {"error": traceback.format_exc()}
        (OUT / f"{check.__name__}-{rank()}.json").write_text(json.dumps(result))
        # An error of one rank would leave the other waiting: the next check starts together or not at all.
        failed = torch.tensor([float("error" in result)])
        dist.all_reduce(failed)
        if failed > 0 and "error" not in result:
            print(f"rank {rank()}: {check.__name__} failed on the other rank", file=sys.stderr)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    del accelerator
    gc.collect()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    (OUT / f"threads-{own}.json").write_text(json.dumps({"result": names}))


if __name__ == "__main__":
    main()
