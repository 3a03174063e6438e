"""Two ranks: the traps that need them, and that two processes train what one would. One launch for all tests here."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from small import GAMES, TINY, examples, game

from components.distributions import Normal
from hybrids import StandardNormal, rate, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(launch, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    launch(Path(__file__).with_name("worker.py"), out)
    return out


@pytest.fixture
def both(folder):
    """What a check of the worker wrote: [rank 0's, rank 1's]."""

    def read(name):
        found = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        for rank, one in enumerate(found):
            assert "error" not in one, f"rank {rank}: {one['error']}"
        return [one["result"] for one in found]

    return read


def test_trap_07_there_are_two_ranks(both):
    """Trap 7: `accelerate launch --cpu --num_processes 2` starts one process. Guard: torchrun, and this test."""
    assert both("world") == [{"size": 2, "rank": rank, "type": "DistributedType.MULTI_CPU"} for rank in (0, 1)]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_trap_08_no_thread_of_a_process_group_outlives_the_training(both):
    """Trap 8: a process that exits while gloo's threads run can abort. `end_training` ends them unless something keeps
    the group, as torch._dynamo does if it is imported after it. Guard: `import hybrids` imports it on several ranks."""
    for names in both("threads"):
        assert names and not [name for name in names if "gloo" in name]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", GAMES)
def test_trap_03_two_ranks_equal_one_process_with_the_doubled_batch(name, k, both):
    """Trap 3: a loss outside the prepared module's forward is not all-reduced: ranks drift apart. Guard: the loss is
    the player's forward. Every gradient of every player, with R1 (trap 18) and two micro-batches (trap 1), is that of
    one process with all examples, and parameters are equal to the bit."""
    players = game(name)
    list(train(players, [examples(16, seed) for seed in range(3)], Accelerator(cpu=True), 3))
    ranks = [found[f"{name}-{k}"] for found in both("gradients")]
    assert ranks[0]["digest"] == ranks[1]["digest"]
    for player in players:
        for found in ranks:
            for expected, got in zip(player.optimizer.seen, found["seen"][player.name], strict=True):
                error = (expected - torch.tensor(got)).norm() / expected.norm()
                assert error < 1e-5, f"{player.name}: off by {error:.1e}"


def test_trap_02_gradients_are_averaged_once_a_step(both):
    """Trap 2: `accumulate()` given anything but the prepared module never skips a synchronisation, without a warning.
    Guard: `no_sync` of the prepared module in all micro-batches but the last."""
    turn = [[name, sync] for name in ("critic", "generator") for sync in (False, False, True)]
    assert both("synchronised") == [turn * 2, turn * 2]


@pytest.mark.parametrize("name", TINY)
def test_recipes_keep_ranks_equal(name, both):
    """After 20 steps with accumulation 2, noise of their own and different data, parameters are equal to the bit."""
    a, b = (found[name] for found in both("recipes"))
    assert a["before"] == b["before"] != a["after"] == b["after"]
    assert a["losses"] != b["losses"], "both ranks saw the same data and noise"
    assert a["assertion"] == b["assertion"] == "nothing"


def test_trap_03_drift_is_found(both):
    """Guard of trap 3, second line: one differing bit stops a run before it is saved."""
    for found in both("drift"):
        assert found.startswith("RuntimeError: player 'critic': its parameters differ between processes")


def test_trap_09_equal_noise_is_warned_of(both):
    """Trap 9: after `set_seed(s)` every rank draws the same noise. Guard: `train` warns, unless each has its own."""
    for found in both("noise"):
        (warning,) = found["plain"]
        assert "every process is about to draw the same noise" in warning and "device_specific=True" in warning
        assert found["own"] == []


def test_trap_09_the_ranks_of_a_run_start_equal_and_draw_different_noise(both):
    """A run's ranks have the same first weights, different noise, different data, and no warning."""
    a, b = both("run_noise")
    assert a["weights"] == b["weights"] and a["noise"] != b["noise"] and a["data"] != b["data"]
    assert a["warnings"] == b["warnings"] == []


def test_trap_17_the_learning_rate_counts_steps_of_the_game(both):
    """Trap 17: a prepared scheduler steps `num_processes` times a step. Guard: a factor keyed to the global step."""
    for found in both("rates"):
        assert found == pytest.approx([0.1 / (step + 1) for step in range(6)])


def test_trap_19_batch_norm_runs_on_two_ranks(both):
    """Trap 19: BatchNorm, two forwards, one backward under DDP: "modified by an inplace operation" (reported, CUDA;
    gloo lets it pass). Guard: one prepared module whose forward is the whole loss, so that DDP copies buffers before
    it, not in between. Without that, the two ranks end with different parameters here."""
    a, b = both("batch_norm")
    assert a == b
    # 4 steps × 3 micro-batches: the critic has two forwards in its own turn and one in the generator's, who has one in
    # each turn.
    assert a["counts"] == [36, 24]


def test_trap_22_two_ranks_save_plain_names(both, folder):
    """Trap 22: DDP's `module.`, the compiler's `_orig_mod.`. Guard: names of the unwrapped modules."""
    from hybrids.experiment.checkpoints.checkpoint import load_manifest

    both("saved")
    manifest = load_manifest(folder / "saved" / "checkpoints" / "step-2")
    assert manifest["world_size"] == 2
    names = [name for part in manifest["tensors"].values() for name in part]
    assert len(names) > 50 and not [name for name in names if "module." in name or "_orig_mod." in name]
    assert "model.generator.last.weight" in names
    assert "critic/model.critic.discriminator.last.linear.bias/exp_avg_sq" in names


def test_trap_26_unused_parameters_are_named_on_both_ranks(both):
    """Trap 26: "Expected to have finished reduction in the prior iteration". Guard: named after the first turn; or
    allowed, and then given zeros on every rank."""
    for found in both("unused"):
        assert found["refused"].startswith(
            "ValueError: player 'half': its loss does not use 2 of the parameters it moves: 1.weight, 1.bias. Move less"
        )
        assert found["allowed"] == "nothing"


def test_trap_29_players_may_move_now_and_then(both):
    """Trap 29: a player with every=3 leaves no rank waiting, and ranks stay equal."""
    a, b = both("every")
    assert a == b and a["seen"] == [
        ["loss/fast", "loss/slow"],
        ["loss/fast"],
        ["loss/fast"],
        ["loss/fast", "loss/slow"],
    ]


def test_trap_31_free_bits_are_of_the_batch_of_all_ranks(both):
    """Trap 31: statistics over the batch, each rank using its own. Guard: the mean that decides is over all ranks."""
    mean = torch.tensor([[0.0, 0.0], [0.0, 1.2], [2.0, 0.0], [2.0, 1.3]], requires_grad=True)
    terms = rate(Normal(mean, torch.ones(4, 2)), mean, StandardNormal(2), free_bits=0.5)
    terms.total.backward()
    found = both("free_bits")
    # A rank's loss is a mean over half the examples.
    torch.testing.assert_close(torch.cat([torch.tensor(one["gradient"]) for one in found]) / 2, mean.grad)
    assert sum(one["total"] for one in found) / 2 == pytest.approx(terms.total.item())
    # And alone each rank would have decided otherwise: rank 0 on the first dimension, rank 0 and 1 alike on the second.
    alone = torch.tensor([[0.0, 0.0], [0.0, 1.2]])
    assert (alone.square().mean(0) / 2 > 0.5).tolist() != (mean.square().mean(0) / 2 > 0.5).tolist()


@pytest.mark.parametrize("what", ["function", "model"])
def test_trap_33_strata_do_not_overlap_over_ranks(what, both):
    """Trap 33: low-discrepancy times drawn per rank overlap. Guard: one offset for all, index rank·B + i; and, since
    rank 0 evaluates alone, no communication outside of training (else this launch would hang)."""
    t = torch.tensor([one[what] for one in both("strata")], dtype=torch.float64).flatten().sort().values
    assert len(t) == 16
    torch.testing.assert_close(t.diff(), torch.full((15,), 1 / 16, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_a_model_is_trained_twice(both):
    """Two loops with fresh accelerators move a model as one loop does, on both ranks."""
    a, b = both("trained_twice")
    assert a == b and a[0] == a[1]


def test_trap_23_a_nan_on_one_rank_stops_both(both, folder):
    """Fault 26: the same decision on every rank, before anything is saved; rank 0 says it, naming player and term."""
    a, b = both("not_finite")
    assert a["exit"] == b["exit"] == "exit 76"
    assert (
        "step 3: the gradient of player 'toy'" in a["stderr"] and "rank 1: the loss is nan, term 'wild'" in a["stderr"]
    )
    assert [path.name for path in (folder / "nan" / "checkpoints").iterdir()] == ["step-2"]
