"""The game: one loop that trains one player or many."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .batch import Batch, as_batch, check_batches, to_device
from .checks import assert_equal_on_ranks, check_all_used, check_game, warn_of_equal_noise, warn_of_unmoved
from .finite import NotFinite, Watch, gradient_norm
from .player import Player, warmup_cosine

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["NotFinite", "Player", "assert_equal_on_ranks", "frozen", "train", "warmup_cosine"]


def train(
    players: Player | Iterable[Player],
    batches: Iterable[Batch],
    accelerator: "Accelerator",
    steps: int,
    start: int = 0,
    skip_nonfinite: int = 0,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Play the game: in each step k micro-batches are gathered and every player in order runs all of them, then moves.

    k is the accelerator's `gradient_accumulation_steps`. In a player's turn the others are frozen; in between, every
    parameter's own `requires_grad` holds. `train` is a generator: a script does between steps what it likes.

    Nothing is updated by a gradient that is not finite: it is decided alike on every process, before the update. Every
    batch is checked. On CPUs both are known at once. On CUDA the device decides, and the host learns of it eight steps
    later, without a wait, if the optimizer is torch's Adam or AdamW, which become fused there.

    Arguments:
        players: in the order of their turns.
        batches: tensors, mappings with x and cond, or pairs (`as_batch`), started over when they end.
        accelerator: of one process, or of several under DDP.
        steps: the step to stop at.
        start: the steps already done.
        skip_nonfinite: how many steps whose loss or gradient is not finite may be skipped: each leaves the player's
            parameters and its optimizer's state as they were, though not what a forward pass changes, such as
            BatchNorm's statistics. Above 0 it costs a wait for the device in each turn.
    Returns:
        An iterator of (steps done so far, logs), one a step. Logs are tensors () still on the device (reading one waits
        for it): loss/PLAYER, loss/PLAYER/TERM, lr/PLAYER, measurements under their own name, and grad_norm/PLAYER
        before clipping; of a turn that was skipped only skipped/PLAYER, how many have been so far.
    Raises:
        ValueError, TypeError: at the call, for settings that cannot work; in a step, for a batch with NaN, images
            outside [-1, 1], labels outside 0..K-1, K being the num_classes of what players move. It warns in a
            player's first turn of parameters that its loss reaches and no player moves.
        NotFinite: on every process, when more than skip_nonfinite steps are not finite, naming player, term and step.
    """
    players = [players] if isinstance(players, Player) else list(players)
    check_game(players, accelerator, steps, start, skip_nonfinite)
    check_batches(batches)
    return _play(players, batches, accelerator, steps, start, Watch(players, accelerator, skip_nonfinite))


def _play(
    players: list[Player], batches: Iterable[Batch], accelerator: "Accelerator", steps: int, start: int, watch: Watch
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Run the loop of `train`: a generator by itself, so that `train` refuses when it is called."""
    stream = _endless(batches)
    with prepared(players, accelerator, steps, watch) as turns:
        for step in range(start, steps):
            micro = _gather(stream, accelerator)
            watch.look(micro, first=step == start)
            logs: dict[str, Tensor] = {}
            for turn in turns:
                if step % turn.player.every == 0:
                    with frozen(turn.others):
                        values = turn.backward(micro, step)
                    norm = turn.clip()
                    logs |= turn.step(norm, values, step)
            try:
                yield step + 1, logs
            except GeneratorExit:
                watch.finish()
                raise
        watch.finish()


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Keep gradients from these parameters; afterwards each has the `requires_grad` that it had before."""
    thawed = [p for p in parameters if p.requires_grad]
    for p in thawed:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in thawed:
            p.requires_grad = True


class Turn:
    """One player's turn: its prepared module, its optimizer, and the parameters of all others."""

    def __init__(
        self, player: Player, others: list[nn.Parameter], accelerator: "Accelerator", steps: int, watch: Watch
    ) -> None:
        self.player, self.others, self.accelerator, self.steps, self.watch = player, others, accelerator, steps, watch
        self.prepared = accelerator.prepare_model(player)
        self.parameters = player.parameters_moved()
        small = sum(p.numel() for p in self.parameters) < 2**18
        self.flat = player.clip is None and small and accelerator.device.type == "cpu"
        self.checked = False
        player.optimizer.zero_grad(set_to_none=True)

    def backward(self, micro: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """Run all micro-batches, leave their mean gradient on the parameters, return the means of loss and terms."""
        runs, last = [], len(micro) - 1
        for i, batch in enumerate(micro):
            # Gradients are averaged over ranks once, on the last micro-batch.
            with self.accelerator.no_sync(self.prepared) if i < last else nullcontext():
                total, means = self.prepared(batch, step)
                if not total.requires_grad:
                    raise ValueError(f"player {self.player.name!r}: its loss does not depend on what it moves")
                if not self.checked and i == 0 and self.accelerator.is_main_process:
                    warn_of_unmoved(self.player, total)
                self.accelerator.backward(total, gradient=self.watch.seed(total))
            runs.append({"": total.detach(), **means})
        if not self.checked:
            check_all_used(self.player)
            self.checked = True
        return runs[0] if last == 0 else {key: torch.stack([run[key] for run in runs]).mean() for key in runs[0]}

    def clip(self) -> Tensor:
        """Clip the gradient; return its norm before."""
        norm = gradient_norm(self.parameters, self.flat)
        if self.player.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.player.clip, norm)
        return norm

    def step(self, norm: Tensor, values: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Update the parameters at this step's learning rate, if the gradient is finite; return the logs."""
        player, optimizer = self.player, self.player.optimizer
        finite = self.watch.allows(player, norm, values, step)
        if finite:
            if player.lr is not None:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * player.lr(step, self.steps)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not finite:
            return {f"skipped/{player.name}": torch.tensor(float(self.watch.skipped[player.name]))}
        logs = {_tag(player.name, key): value for key, value in values.items()}
        lr = torch.tensor(optimizer.param_groups[0]["lr"])
        return {**logs, f"grad_norm/{player.name}": norm, f"lr/{player.name}": lr}


def _tag(player: str, term: str) -> str:
    # A measurement that names its own place, such as logits/real, keeps it.
    return term if "/" in term else f"loss/{player}/{term}" if term else f"loss/{player}"


@contextmanager
def prepared(players: Sequence[Player], accelerator: "Accelerator", steps: int, watch: Watch) -> Iterator[list[Turn]]:
    """Prepare every player's turn, freeze what players only use; afterwards modes and `requires_grad` are as before."""
    used = [module for player in players for root in player.uses for module in root.modules()]
    modes = [(module, module.training) for module in used]
    everybody = list({id(p): p for player in players for p in player.moves.parameters()}.values())
    turns: list[Turn] = []
    with frozen([p for player in players for p in player.uses.parameters()]):
        try:
            for player in players:
                player.uses.eval()
                own = {id(p) for p in player.parameters_moved()}
                turns.append(Turn(player, [p for p in everybody if id(p) not in own], accelerator, steps, watch))
            warn_of_equal_noise(accelerator)
            yield turns
            # Leaving while another rank still communicates aborts it (gloo).
            accelerator.wait_for_everyone()
        finally:
            for turn in turns:
                _release(turn, accelerator)
            for module, training in modes:
                module.training = training


def _release(turn: Turn, accelerator: "Accelerator") -> None:
    """Undo what `prepare_model` left on the player, so that another loop can prepare it afresh."""
    accelerator.unwrap_model(turn.prepared, keep_fp32_wrapper=False)
    # On CPUs the accelerator notes the player, elsewhere its wrapper.
    accelerator._models[:] = [model for model in accelerator._models if model not in (turn.prepared, turn.player)]
    turn.player.__dict__.pop("_is_accelerate_prepared", None)
    turn.player.optimizer.__dict__.pop("found_inf", None)


def _gather(stream: Iterator[Batch], accelerator: "Accelerator") -> list[Batch]:
    """Return the next step's micro-batches, on the device."""
    number = accelerator.gradient_accumulation_steps
    return [to_device(as_batch(next(stream)), accelerator.device) for _ in range(number)]


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches ended and gave nothing when started over; expected an iterable, not an iterator")
