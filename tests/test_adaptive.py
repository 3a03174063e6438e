"""The adaptive weight of an adversarial loss."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from components.decoders import MLPDecoder, NormalHead
from hybrids import Player, Terms, adaptive, train


def losses(scale=1.0):
    """A decoder, and two losses of what it makes."""
    torch.manual_seed(0)
    decoder = MLPDecoder(3, 5, NormalHead(1.0), 16, 1).double()
    z, x, direction = (torch.randn(7, k, dtype=torch.float64) for k in (3, 5, 5))
    mean = decoder(z).mean
    return decoder, (mean - x).square().sum(1).mean(), scale * (mean * direction).sin().sum(1).mean()


def test_it_does_not_know_the_units_of_the_losses():
    """Both losses over d, as recipes have them, are both gradients over d: the same λ but for the 1e-4."""
    decoder, rec, adv = losses()
    torch.testing.assert_close(
        adaptive(rec / 64, adv / 64, decoder.last), adaptive(rec, adv, decoder.last), rtol=2e-2, atol=0
    )


def test_it_is_clamped():
    """‖∇rec‖/(‖∇adv‖ + 1e-4) goes to 1e4 at most, before the weight."""
    decoder, rec, adv = losses(1e-9)
    assert adaptive(1e3 * rec, adv, decoder.last, 0.5).item() == 0.5e4


def test_where_gradients_are_off_it_is_zero():
    decoder, rec, adv = losses()
    with torch.no_grad():
        assert adaptive(rec, adv, decoder.last).item() == 0.0


def test_it_leaves_no_gradient():
    decoder, rec, adv = losses()
    adaptive(rec, adv, decoder.last)
    assert all(p.grad is None for p in decoder.parameters())


def test_what_is_refused():
    decoder, rec, adv = losses()
    with pytest.raises(ValueError, match="layer with a weight, such as decoder.last; got SiLU"):
        adaptive(rec, adv, nn.SiLU())
    with pytest.raises(ValueError, match="the adversarial loss does not depend on the weight of Linear"):
        adaptive(rec, torch.ones((), requires_grad=True), decoder.last)


def test_inside_a_player_it_trains():
    """`autograd.grad` in a player's forward, then the backward of everything: every parameter moves."""
    decoder, _, _ = losses()
    decoder.float()

    def loss(z):
        mean = decoder(z).mean
        rec, adv = mean.square().sum(1), mean.sin().sum(1)
        return Terms(rec=rec, adv=(adaptive(rec.mean(), adv.mean(), decoder.last), adv))

    before = [p.clone() for p in decoder.parameters()]
    list(train(Player(loss, [decoder]), [torch.randn(8, 3)], Accelerator(cpu=True), 2))
    assert all(not torch.equal(p, q) for p, q in zip(decoder.parameters(), before))


WORKER = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from test_adaptive import weights_of_three_steps

a = Accelerator(cpu=True)
assert a.num_processes == 2
found = weights_of_three_steps(a, a.process_index, 2)
Path(sys.argv[1], f"{a.process_index}.json").write_text(json.dumps(found))
a.wait_for_everyone()
a.end_training()
"""


def weights_of_three_steps(accelerator, rank, size):
    """λ of three steps of SGD on this rank's share of a batch, in a player."""
    decoder, _, _ = losses()
    decoder.float()
    seen = []

    def loss(batch):
        mean = decoder(batch["z"]).mean
        rec, adv = (mean - batch["x"]).square().sum(1), (3 * mean).sin().sum(1)
        seen.append(adaptive(rec.mean(), adv.mean(), decoder.last))
        return Terms(rec=rec, adv=(seen[-1], adv))

    generator = torch.Generator().manual_seed(4)
    whole = [{k: torch.randn(8, n, generator=generator) for k, n in (("z", 3), ("x", 5))} for _ in range(3)]
    own = [{k: v.chunk(size)[rank] for k, v in batch.items()} for batch in whole]
    player = Player(loss, [decoder], optimizer=lambda p: torch.optim.SGD(p, 0.01))
    list(train(player, own, accelerator, 3))
    return [value.item() for value in seen]


@pytest.mark.slow
def test_trap_31_ranks_share_one_weight(launch, tmp_path):
    """Trap 31: gradients are averaged before their norms, so both ranks have the λ that one process has with all of the
    batch; each with its own gradients would differ."""
    import json
    from pathlib import Path

    script = tmp_path / "worker.py"
    # The repository too: without it the folder tests/components would pass for the package.
    places = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    script.write_text(f"import sys\nsys.path[:0] = {places}\n{WORKER}")
    launch(script, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = weights_of_three_steps(Accelerator(cpu=True), 0, 1)
    assert first == pytest.approx(alone, rel=1e-4)
    assert weights_of_three_steps(Accelerator(cpu=True), 1, 2) != pytest.approx(alone, rel=1e-2)
