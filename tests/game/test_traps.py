"""What breaks silently when several networks train under Accelerate, on one process; `tests/ranks` has the rest.

Each test is named by its row in the list of traps, and was seen to fail with its guard taken out.
"""

import ast
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from small import TINY, Recorder, cut, examples, game, linear, tiny
from torch import nn

from components.backbones import MLP
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator
from components.losses import low_discrepancy
from components.schedules import BetaSchedule, CosineSchedule, LearnedSchedule, LogSNRLinearSchedule
from hybrids import EMA, GAN, VAE, Critic, Diffusion, Player, StandardNormal, Terms, experiment, rate, train
from hybrids.data import Data, load_data
from hybrids.experiment import load_recipe
from hybrids.experiment.checkpoints.state import load_optimizers, load_weights, optimizers, weights
from hybrids.refusal import Refusal

REPOSITORY = Path(__file__).parents[2]
SOURCES = [path for folder in ("components", "hybrids", "recipes", "scripts")
           for path in sorted((REPOSITORY / folder).rglob("*.py"))]  # fmt: skip


def accelerator(k=1, **options):
    return Accelerator(cpu=True, gradient_accumulation_steps=k, **options)


def calls(path: Path) -> set[str]:
    """The names of all functions and methods that a file calls."""
    nodes = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes}


def run(name: str, out: Path, *argv: str, steps: int = 4) -> None:
    """A tiny run of a recipe in this process."""
    recipe = load_recipe(name)
    common = ["--device", "cpu", "--batch-size", "8", "--steps", str(steps), "--log-every", "1", "--out", str(out)]
    experiment.main(recipe.Settings, recipe.build, [*common, *TINY[name], *argv])


def test_trap_01_each_player_runs_all_micro_batches_before_the_next_moves():
    """Trap 1: two `accumulate()` in one iteration stepped one player never and the other twice; one `accumulate` for
    all let A move before B's last micro-batch, so that B's gradient was 6% off. Guard: a turn is k micro-batches."""
    whole, parts = game("gan"), game("gan")
    turns = []
    for player in parts:
        inner = player.loss

        def loss(batch, step, player=player, inner=inner):
            turns.append(player.name)
            return inner(batch, step=step) if player.name == "critic" else inner(batch)

        object.__setattr__(player, "loss", loss)
        player.takes_step = True
    batches = [examples(8, seed) for seed in range(19)]
    list(train(whole, batches, accelerator(), 19))
    list(train(parts, [part for batch in batches for part in cut(batch, 4)], accelerator(2), 19))
    assert turns == 19 * ["critic", "critic", "generator", "generator"]
    for a, b in zip(whole, parts):
        assert len(b.optimizer.seen) == 19
        error = (a.optimizer.seen[0] - b.optimizer.seen[0]).norm() / a.optimizer.seen[0].norm()
        assert error < 1e-5, f"{a.name}: its first gradient is off by {error:.1%}"


def test_trap_01_accumulate_is_never_used():
    """Trap 1 and 2: `accumulate()` counts on its own, and given another module it accumulates nothing."""
    assert [path.name for path in SOURCES if "accumulate" in calls(path)] == []


def test_trap_04_the_generator_s_turn_leaves_no_gradient_in_the_critic():
    """Trap 4: the generator's backward fills the discriminator's gradients, and its next step takes them along.
    Guard: the others are frozen in a turn."""
    critic, generator = game("gan")
    inner = generator.loss
    totals = []

    def loss(batch):
        terms = inner(batch)
        totals.append(terms.total)
        return terms

    object.__setattr__(generator, "loss", loss)
    alone = game("gan")[0]
    for _ in train([generator, critic], [examples(8)], accelerator(), 1):
        assert all(p.grad is None for p in critic.parameters())
    # After the generator's turn the critic's gradient is that of its own loss, to the bit.
    fake = generator.moves[0]
    alone_loss = alone.moves[0].tell(examples(8)["x"], fake(examples(8)["z"]).mean, step=0).total
    grads = torch.autograd.grad(alone_loss, list(alone.moves.parameters()))
    torch.testing.assert_close(critic.optimizer.seen[0], torch.cat([g.flatten() for g in grads]))
    assert len(totals) == 1


def test_trap_05_fakes_are_detached_by_the_critic():
    """Trap 5: fakes that are not detached in the discriminator's turn train the generator to be found out (a public
    script's update had cosine -0.04 to the intended one). Guard: `tell` detaches real and fake."""
    generator = nn.Linear(2, 4)
    critic = Critic(MLPDiscriminator(4, 8, 1), r1=1.0, r2=1.0)
    x, z = torch.randn(8, 4, requires_grad=True), torch.randn(8, 2)
    critic.tell(x, generator(z), step=0).total.backward()
    assert all(p.grad is None for p in generator.parameters()) and x.grad is None
    assert all(p.grad is not None for p in critic.parameters())


def test_trap_05_a_gan_draws_its_fakes_without_a_graph(monkeypatch):
    """Trap 5, a second time: the graph of the fake is not even built in the critic's turn."""
    (critic, generator), seen = game("gan"), []
    gan = GAN(generator.moves[0], critic.moves[0], 2)
    inner = gan.critic.tell
    monkeypatch.setattr(gan.critic, "tell", lambda x, fake, **o: seen.append(fake.requires_grad) or inner(x, fake, **o))
    gan.judge(examples(8)["x"], step=0)
    assert seen == [False]


@pytest.mark.parametrize("ending", ["done", "nothing to do", "stopped"])
def test_trap_08_a_run_ends_with_a_barrier_and_end_training(ending, monkeypatch, tmp_path, few_digits):
    """Trap 8: ending without a barrier, 1 to 2 of 8 gloo runs aborted. Guard: both, in this order, however it ends."""
    from hybrids.experiment.run.signals import Signals

    if ending == "nothing to do":
        run("vae", tmp_path / "run", steps=2)
    if ending == "stopped":
        monkeypatch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", True))
    told = []
    for name in ("wait_for_everyone", "end_training", "gather", "reduce", "backward"):
        inner = getattr(Accelerator, name)

        def tell(self, *args, inner=inner, name=name, **options):
            told.append(name)
            return inner(self, *args, **options)

        monkeypatch.setattr(Accelerator, name, tell)
    if ending == "stopped":
        with pytest.raises(SystemExit, match="75"):
            run("vae", tmp_path / "run", steps=2)
    else:
        run("vae", tmp_path / "run", "--resume", "auto", steps=2)
    assert told[-2:] == ["wait_for_everyone", "end_training"]


# Row 10: the order of the data.


def stream(batches, n):
    """The first examples (their numbers) of n batches."""
    return [[int(v) for v in batch[:, 0]] for _, batch in zip(range(n), batches)]


def numbers(n=20):
    return Data("numbers", (1,), x=torch.arange(float(n))[:, None])


def test_trap_10_the_order_is_of_seed_and_epoch():
    """Trap 10: after `load_state` at an epoch's boundary the first epoch's order was replayed. Guard: the order is a
    function of (seed, epoch), the position a count of samples."""
    data = numbers()
    whole = stream(data.batches(4, seed=3), 15)
    epochs = [sum(whole[i : i + 5], []) for i in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert stream(data.batches(4, seed=4), 5) != whole[:5]
    for position in (5, 7, 10):  # an epoch's end, its middle, two epochs
        before = data.batches(4, seed=3)
        stream(before, position)
        after = data.batches(4, seed=3)
        after.load_state_dict(before.state_dict())
        assert stream(after, 15 - position) == whole[position:]


def test_trap_10_the_position_survives_a_change_of_world_size():
    """Two processes read what one would, each its half, and the position means the same to both."""
    data = numbers()
    whole = sum(stream(data.batches(2, seed=1), 20), [])
    ranks = [data.batches(2, 1, rank, 2) for rank in (0, 1)]
    first = [stream(batches, 3) for batches in ranks]
    assert sum([a + b for a, b in zip(*first)], []) == whole[:12]
    assert ranks[0].state_dict() == ranks[1].state_dict() == {"consumed": 12, "seed": 1}
    alone = data.batches(4, 1)
    alone.load_state_dict(ranks[1].state_dict())
    assert sum(stream(alone, 7), []) == whole[12:40]


def test_trap_10_batches_that_straddle_epochs_drop_nothing():
    """With a batch that does not divide the data set each example still comes once an epoch."""
    whole = sum(stream(numbers(10).batches(3, seed=0), 10), [])
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == 3 * [list(range(10))]


def test_trap_10_another_seed_s_position_is_refused():
    batches = numbers().batches(4, seed=1)
    with pytest.raises(ValueError, match="the data order was of seed 2; got --seed 1"):
        batches.load_state_dict({"consumed": 4, "seed": 2})


# Row 11: names, not positions.


def twins(order):
    """Two players of equal shapes, trained differently, registered in an order."""
    players = []
    for name in sorted(order):
        torch.manual_seed(ord(name))
        layer = nn.Linear(2, 2)
        players.append(Player(lambda x, m=layer: Terms(a=m(x).square().sum(1)), [layer], name=name,
                              optimizer=partial(torch.optim.Adam, lr=0.1)))  # fmt: skip
    players.sort(key=lambda player: order.index(player.name))
    return nn.ModuleDict({player.name: player for player in players}), players


def test_trap_11_what_is_saved_goes_back_by_name():
    """Trap 11: models saved by position; a swapped order loaded A's weights into B, in silence. Guard: names."""
    root, players = twins("ab")
    list(train(players, [torch.ones(4, 2)], accelerator(), 3))
    saved, (tensors, rest) = weights(root), optimizers(root, players)
    assert not torch.equal(saved["a.moves.0.weight"], saved["b.moves.0.weight"])
    other_root, others = twins("ba")
    assert list(weights(other_root)) != list(saved)
    load_weights(other_root, saved, "here")
    load_optimizers(other_root, others, tensors, rest)
    for a in players:
        (b,) = [player for player in others if player.name == a.name]
        for p, q in zip(a.moves.parameters(), b.moves.parameters()):
            assert torch.equal(p, q)
            state, other = a.optimizer.state[p], b.optimizer.state[q]
            assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def test_trap_11_other_names_are_refused():
    """Equal shapes under other names are another architecture."""
    root, players = twins("ab")
    list(train(players, [torch.ones(4, 2)], accelerator(), 1))
    renamed, others = twins("ac")
    with pytest.raises(Refusal, match=r"here: is of another architecture: missing c\.moves\.0\.weight \(2, 2\)"):
        load_weights(renamed, weights(root), "here")
    with pytest.raises(Refusal, match=r"optimizer state of b/b\.moves\.0\.bias \(and 1 more\) fits no player here"):
        load_optimizers(renamed, others, *optimizers(root, players))


# Row 14: no pickle.


class Poison:
    """Unpickled, it leaves a witness."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_trap_14_a_resumed_run_unpickles_nothing(tmp_path, monkeypatch, few_digits):
    """Trap 14: a poisoned `custom_checkpoint_0.pkl` ran code on load. Guard: no pickle at all, to write or to read."""
    out, witness = tmp_path / "run", tmp_path / "witness"

    def refuse(*args, **options):
        raise AssertionError("something was pickled")

    load_data("digits", 8)  # imports scikit-learn, which imports what builds on pickle
    with monkeypatch.context() as patch:
        for name in ("dump", "dumps", "load", "loads"):
            patch.setattr(pickle, name, refuse)
        patch.setattr(torch, "load", refuse)
        patch.setattr(torch, "save", refuse)
        run("vae", out, "--checkpoint-every", "2", steps=2)
    for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin", "model.pt"):
        with (out / "checkpoints" / "step-2" / name).open("wb") as file:
            pickle.dump(Poison(witness), file)
    run("vae", out, "--resume", "auto", steps=4)
    assert not witness.exists() and (out / "checkpoints" / "step-4").is_dir()
    with (out / "checkpoints" / "step-2" / "model.pt").open("rb") as file:
        pickle.load(file)
    assert witness.exists()  # the poison was real


def test_trap_14_no_source_imports_pickle():
    """Nor does anything call `torch.load`, `torch.save` or Accelerate's `save_state` and `load_state`."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}, path
        assert not calls(path) & {"save_state", "load_state", "register_for_checkpointing"}, path
        attributes = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        assert not attributes & {"torch.load", "torch.save"}, path


def test_trap_16_nothing_gathers_for_metrics():
    """Trap 16: `gather_for_metrics` on generated images cut 8 to 2 at the loader's end. Guard: `gather` and slice."""
    assert SOURCES and [path.name for path in SOURCES if "gather_for_metrics" in path.read_text()] == []


# Rows 18 and 20: discriminators under penalties.


class Quadratic(nn.Module):
    """D(x) = ½ xᵀ A x + b·x, whose gradient in x is A x + b for a symmetric A."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.diag(torch.tensor([1.0, 2.0, 3.0]))), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return 0.5 * ((x @ self.a) * x).sum(1) + x @ self.b


def test_trap_18_the_penalty_has_the_gradient_of_the_paper():
    """Trap 18: R1 = γ/2 E‖∇D‖² reaches the discriminator's weights through `autograd.grad` within the player's
    forward, in every micro-batch. Guard: create_graph, x made to require a gradient after it was detached."""
    critic = Critic(Quadratic(), r1=2.0, r2=3.0)
    seen = []

    def judge(batch, step):
        terms = critic.tell(batch["x"], batch["epsilon"], step=step)
        seen.append({name: value[1].mean().item() for name, value in terms.items()})
        return Terms({name: terms[name] for name in ("r1", "r2")})

    player = Player(judge, [critic], optimizer=Recorder, name="critic")
    batch = {key: value[:, :3] for key, value in examples(8).items() if value.ndim == 2}
    list(train(player, cut(batch, 4), accelerator(2), 1))
    a, b = torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.ones(3)
    expected = torch.zeros(12)
    for gamma, x in ((2.0, batch["x"]), (3.0, batch["epsilon"])):
        slope = x @ a + b
        # d/dA ½γ ‖½(A + Aᵀ)x + b‖² = ½γ (slope xᵀ + x slopeᵀ); d/db = γ slope.
        outer = torch.einsum("bi,bj->ij", slope, x) / len(x)
        expected += torch.cat([(0.5 * gamma * (outer + outer.T)).flatten(), gamma * slope.mean(0)])
    torch.testing.assert_close(player.optimizer.seen[0], expected)
    torch.testing.assert_close(
        torch.tensor(sum(s["r1"] for s in seen) / 2), (batch["x"] @ a + b).square().sum(1).mean()
    )


def test_trap_18_the_penalty_is_computed_in_full_precision():
    """Under bf16 the discriminator with a penalty, and the penalty, are those of float32 to the bit."""
    torch.manual_seed(0)
    critic = Critic(MLPDiscriminator(4, 16, 2), r1=1.0, r2=1.0, lazy=2)
    x, fake = examples(16)["x"], examples(16, 1)["x"]
    plain = critic.tell(x, fake, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, lazy = critic.tell(x, fake, step=0), critic.tell(x, fake, step=1)
    for name in ("r1", "r2", "adversarial"):
        assert torch.equal(plain[name][1], cast[name][1]) and cast[name][1].dtype == torch.float32
    # A step without penalty runs in bf16: the guard is no more than it must be.
    assert set(lazy) == {"adversarial", "logits/real", "logits/fake"}
    assert not torch.equal(plain["adversarial"][1], lazy["adversarial"][1])


def test_trap_20_spectral_norm_allows_two_forwards_before_a_backward():
    """Trap 20: spectral norm that changes its buffers in place fails on the second forward: D(real), D(fake), then
    backward. Guard: torch's parametrization, which clones them."""
    critic = Critic(MLPDiscriminator(4, 8, 2, spectral_norm=True), r1=1.0)
    generator = nn.Linear(2, 4)
    players = [
        Player(lambda b: critic.tell(b["x"], generator(b["z"]), step=0), [critic], optimizer=Recorder, name="critic"),
        Player(lambda b: critic.fool(generator(b["z"])), [generator], optimizer=Recorder, name="generator"),
    ]
    list(train(players, [examples(8)], accelerator(2), 3))
    assert all(len(player.optimizer.seen) == 3 for player in players)


# Row 21: the moving average.


def test_trap_21_the_average_copies_buffers():
    """Trap 21: an average that ignores buffers samples noise; one that averages them made a latent scale of 0.2 0.998.
    Guard: buffers are copied."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("scale", torch.ones(()))
    ema = EMA(model, 0.999)
    model.scale.fill_(0.2)
    for _ in range(3):
        model(torch.randn(8, 2))
        ema.update_parameters(model)
    for (name, buffer), own in zip(model.named_buffers(), ema.module.buffers(), strict=True):
        assert torch.equal(buffer, own), name


def test_trap_21_the_average_is_the_formula_with_its_warm_up():
    """θ̄ ← d_n θ̄ + (1 - d_n) θ with d_n = min(decay, (1 + n)/(10 + n)), n = 1, 2, …, from a copy of the model."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(4.0)
    ema, plain = EMA(model, 0.9), EMA(model, 0.9, warmup=False)
    average, steady = 4.0, 4.0
    for n in range(1, 100):
        with torch.no_grad():
            model.weight.fill_(float(n))
        ema.update_parameters(model)
        plain.update_parameters(model)
        d = min(0.9, (1 + n) / (10 + n))
        average, steady = d * average + (1 - d) * n, 0.9 * steady + 0.1 * n
        assert ema.module.weight.item() == pytest.approx(average, rel=1e-5)
        assert plain.module.weight.item() == pytest.approx(steady, rel=1e-5)
    assert not ema.module.training and not ema.train().module.training
    assert not any(p.requires_grad for p in ema.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_trap_21_a_run_updates_it_once_a_step_and_never_puts_it_into_the_model(name, tmp_path, monkeypatch, few_digits):
    """Trap 21: averages updated on the discriminator's turn, or left in place after sampling. Guard: one update a step;
    sampling uses a model of its own, so that a run that samples ends as one that does not."""
    updates = []
    inner = EMA.update_parameters
    monkeypatch.setattr(EMA, "update_parameters", lambda self, model: updates.append(1) or inner(self, model))
    from safetensors.torch import load_file

    run(name, tmp_path / "quiet", steps=3)
    # --steps holds for each stage.
    last = max(int(path.name.split("-")[1]) for path in (tmp_path / "quiet/checkpoints").iterdir())
    assert len(updates) == last and last % 3 == 0
    weights = f"checkpoints/step-{last}/stage-{last // 3 - 1}.safetensors"
    # The classifier of samples takes seconds to train, the levels of a diffusion model to sum.
    monkeypatch.setattr("hybrids.evaluation.agreement", lambda *given: {"confidence": 0.0, "classes": 0.0})
    evaluating = ["--evaluate-every", "2"] if name != "ddpm" else []
    run(name, tmp_path / "busy", "--sample-every", "1", *evaluating, steps=3)
    quiet, busy = (load_file(tmp_path / out / weights) for out in ("quiet", "busy"))
    assert quiet.keys() == busy.keys() and all(torch.equal(quiet[key], busy[key]) for key in quiet)
    average = load_file(tmp_path / f"busy/checkpoints/step-{last}/ema.safetensors")
    assert any(not torch.equal(average[key], busy[f"model.{key}"]) for key in average)


@pytest.mark.slow
def test_trap_22_names_know_nothing_of_wrappers(tmp_path, few_digits):
    """Trap 22: `module.` and `_orig_mod.` in saved names keep checkpoints from crossing modes. Guard: unwrapped names,
    also of a network that `torch.compile` wrapped."""
    root, players = twins("ab")
    compiled = torch.compile(players[0].moves[0])
    player = Player(players[0].loss, [compiled], optimizer=partial(torch.optim.Adam, lr=0.1), name="a")
    wrapped = nn.ModuleDict({"a": player, "b": players[1]})
    list(train([player, players[1]], [torch.ones(4, 2)], accelerator(mixed_precision="bf16"), 1))
    assert weights(wrapped).keys() == weights(root).keys()
    assert {key.split("/")[1] for key in optimizers(wrapped, [player])[0]} == {"a.moves.0.weight", "a.moves.0.bias"}
    load_weights(wrapped, weights(root), "here")
    run("gan", tmp_path / "run", "--mixed-precision", "bf16", "--spectral-norm", steps=1)
    from hybrids.experiment.checkpoints.checkpoint import load_manifest

    saved = load_manifest(tmp_path / "run" / "checkpoints" / "step-1")["tensors"]
    names = [name for part in saved.values() for name in part]
    assert names and not [name for name in names if "module." in name or "_orig_mod." in name]


# Row 27: schedules.


@pytest.mark.parametrize(
    "schedule",
    [BetaSchedule(name) for name in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")]
    + [CosineSchedule(20.0, -20.0), LogSNRLinearSchedule(), LearnedSchedule()],
    ids=lambda s: getattr(s, "name", type(s).__name__),
)
def test_trap_27_schedules_are_computed_in_float64(schedule):
    """Trap 27: in bf16 the first 10 of 1000 levels had no noise, and 190 were distinct. Guard: float64 throughout, and
    one cast where the coefficients meet x."""
    t = torch.arange(1, 1001, dtype=torch.float32) / 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alpha, sigma = schedule.alpha_sigma(t)
        log_snr = schedule.log_snr(t)
        assert all(c.dtype == torch.float64 for c in (alpha, sigma, log_snr, schedule.slope(t), *schedule.step(0.5, t)))
    assert sigma.unique().numel() == log_snr.unique().numel() == 1000 and (sigma > 0).all()
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.alpha_sigma(t)[1], sigma, rtol=0, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_trap_27_half_precision_data_meets_exact_noise(prediction):
    """A batch in bf16 under autocast is noised as in float32: the network gets x_t = α x + σ ε, each level its own."""
    seen = []

    class Backbone(MLP):
        def forward(self, x_t, t, cond=None):
            seen.append((x_t.detach(), t.detach()))
            return super().forward(x_t, t, cond)

    torch.manual_seed(0)
    model = Diffusion(Denoiser(Backbone(4, 8, 1), BetaSchedule("linear"), prediction), 4, timesteps=1000)
    x = examples(64)["x"].bfloat16()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model.loss(x)
    torch.manual_seed(1)
    model.loss(x.float())
    (half, t), (single, same) = seen
    assert half.dtype == torch.float32 and torch.equal(half, single) and torch.equal(t, same)
    assert t.unique().numel() == 64 and terms["simple"][1].dtype == torch.float32


# Row 28: every term of every recipe has a gradient.

VARIANTS = {
    "vae": [{}, {"free_bits": 1e-4, "beta": 4.0}, {"likelihood": "categorical"}, {"likelihood": "bernoulli"},
            {"likelihood": "normal"}, {"flat": True}],
    "gan": [{"loss": loss, "lazy": lazy} for loss in ("relativistic", "hinge", "non_saturating") for lazy in (1, 4)]
    + [{"spectral_norm": True}],
    "ddpm": [{"prediction": p, "variance": v} for p in ("epsilon", "sample", "v_prediction")
             for v in ("small", "large", "learned_range")],
    "adversarial_diffusion": [{"loss": loss, "latent": latent} for loss in ("non_saturating", "relativistic")
                              for latent in (0, 4)],
    "latent_diffusion": [{}, {"bottleneck": "vq"}, {"bottleneck": "fsq"}, {"perceptual": 1.0}],
    "variational_diffusion": [{"learn_endpoints": True}, {"learn_endpoints": True, "flat": True}],
}  # fmt: skip


@pytest.mark.parametrize("data_name", ["digits", "25-gaussians"])
@pytest.mark.parametrize("name", TINY)
def test_trap_28_every_term_has_a_gradient(name, data_name):
    """Trap 28: a perceptual loss under `no_grad`, so that no gradient reached the decoder, and nobody noticed. Guard:
    every term with a weight reaches something that its player moves."""
    recipe = load_recipe(name)
    data = load_data(data_name, 8 if data_name == "digits" else None)
    # The likelihoods of grey levels are refused on points.
    variants = VARIANTS.get(name, [{}])
    if data_name != "digits":
        of_images = {"bottleneck", "perceptual", "learn_endpoints", "flat"}
        variants = [v for v in variants if v.get("likelihood") in (None, "normal") and not of_images & v.keys()]
    if data_name != "digits" and name == "latent_diffusion":
        variants = [{"critic": 0.0}]
    for options in variants:
        for player in tiny(recipe, data, **options):
            x = data.decode(data.x[:8])
            terms = player.loss(x, step=0) if player.takes_step else player.loss(x)
            charged = {key: weight * values for key, (weight, values) in terms.items() if weight != 0}
            assert charged
            for key, values in charged.items():
                assert values.requires_grad, f"{options}: {player.name}/{key} has no gradient"
                found = torch.autograd.grad(values.sum(), player.parameters_moved(), retain_graph=True,
                                            allow_unused=True)  # fmt: skip
                reached = sum(float(g.abs().sum()) for g in found if g is not None)
                assert reached > 0, f"{options}: {player.name}/{key} reaches nothing"


def test_trap_28_a_measurement_has_none():
    """A term of weight 0 is measured, never differentiated."""
    y = torch.ones(3, requires_grad=True)
    terms = Terms(a=y, seen=(0.0, y * 5))
    assert not terms["seen"][1].requires_grad and terms.total.item() == 1.0


# Row 29: players that do not move in every step.


def test_trap_29_only_the_player_whose_turn_it_is_steps():
    """Trap 29: with `set_to_none` and players run every k steps, the optimizer's state advanced on stale gradients.
    Guard: an optimizer steps in its player's turn only, and gradients are gone after it."""
    torch.manual_seed(0)
    slow_layer, fast_layer = nn.Linear(2, 1), nn.Linear(2, 1)
    adam = partial(torch.optim.Adam, lr=0.1)
    players = [
        Player(lambda x: Terms(a=slow_layer(x)[:, 0].square()), [slow_layer], optimizer=adam, every=3, name="slow"),
        Player(lambda x: Terms(b=(fast_layer(x) + slow_layer(x))[:, 0].square()), [fast_layer], optimizer=adam,
               name="fast"),
    ]  # fmt: skip
    before = None
    for n, _ in train(players, [torch.ones(4, 2)], accelerator(), 7):
        slow, fast = (p.optimizer.state[p.parameters_moved()[0]] for p in players)
        assert slow["step"] == 1 + (n - 1) // 3 and fast["step"] == n
        assert all(p.grad is None for player in players for p in player.parameters())
        state = torch.cat([slow["exp_avg"].flatten(), slow_layer.weight.flatten()]).detach()
        assert (n - 1) % 3 == 0 or torch.equal(state, before)
        before = state


def test_trap_29_stale_gradients_from_before_are_not_taken_along():
    """What a script left in `.grad` before the game is not part of the first step."""
    clean, dirty = (linear(optimizer=Recorder) for _ in range(2))
    for p in dirty[1].parameters():
        p.grad = torch.full_like(p, 100.0)
    for player, _ in (clean, dirty):
        list(train(player, [torch.ones(4, 2)], accelerator(), 1))
    assert torch.equal(clean[0].optimizer.seen[0], dirty[0].optimizer.seen[0])


# Row 31 on one process: free bits are of the batch.


def test_trap_31_free_bits_are_of_the_batch_not_of_the_example():
    """Σ_j max(free_bits, E_batch KL_j): a dimension whose mean is above is charged in full, one below not at all, and
    has no gradient. On two ranks, where the batch is that of both, see tests/ranks."""
    from components.distributions import Normal

    mean = torch.tensor([[0.0, 0.1], [2.0, 0.1]], requires_grad=True)
    q = Normal(mean, torch.ones(2, 2))
    terms = rate(q, mean, StandardNormal(2), free_bits=0.5)
    # KL = ½ mean²: dimension 0 has 0 and 2, mean 1 > 0.5; dimension 1 has 0.005 < 0.5.
    assert terms.total.item() == pytest.approx(1.0 + 0.5)
    terms.total.backward()
    torch.testing.assert_close(mean.grad, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


# Row 32: what must not run under autocast.


def test_trap_32_a_rate_switches_autocast_off():
    """Trap 32: a whole loss under autocast computes KL, log p and penalties in bf16. Guard: `rate` and penalties
    switch it off; terms are float32 or wider."""
    seen = []

    class Prior(nn.Module):
        def nll(self, z, cond=None):
            seen.append(torch.is_autocast_enabled("cpu"))
            return Terms(nll=(z @ torch.eye(2)).square().sum(1))

        def sample(self, n, cond=None, generator=None):
            raise NotImplementedError

    from components.distributions import Normal

    q = Normal(torch.randn(4, 2), torch.ones(4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = rate(q, q.mean, Prior())
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False] and terms["prior.nll"][1].dtype == torch.float32
    assert torch.equal(terms["prior.nll"][1], q.mean.square().sum(1))


@pytest.mark.parametrize("name", TINY)
def test_trap_32_terms_are_wide_under_autocast(name):
    """Every term of a recipe in bf16 is float32, and its total too."""
    recipe = load_recipe(name)
    data = load_data("digits", 8)
    x = data.decode(data.x[:4])
    for player in tiny(recipe, data):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = player.loss(x, step=0) if player.takes_step else player.loss(x)
            assert terms.total.dtype == torch.float32
        assert {values.dtype for _, values in terms.values()} == {torch.float32}
    assert Terms(a=torch.ones(3, dtype=torch.bfloat16))["a"][1].dtype == torch.float32


def test_trap_32_the_bound_of_a_vae_is_that_of_its_networks_outputs():
    """Given the networks' outputs, autocast changes not a bit of the ELBO."""
    vae: VAE = game("vae")[0].moves[0]
    x = examples(8)["x"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, z, p = vae(x)
        cast = vae.nelbo(x, q, z, p)
    plain = vae.nelbo(x, q, z, p)
    assert all(torch.equal(cast[key][1], plain[key][1]) for key in plain)


def test_trap_33_strata_cover_the_batch_evenly():
    """Trap 33: low-discrepancy times: one in each of N strata, each of them uniform. Over ranks, see tests/ranks."""
    torch.manual_seed(0)
    t = torch.stack([low_discrepancy(8) for _ in range(400)])
    assert t.dtype == torch.float64 and t.min() >= 0 and t.max() < 1
    torch.testing.assert_close(t.sort(1).values.diff(), torch.full((400, 7), 1 / 8, dtype=torch.float64))
    assert (t[:, 0].mean() - 0.5).abs() < 4 / (12 * 400) ** 0.5
