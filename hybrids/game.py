"""The game: one loop that trains one player or many."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from components.conditions import ClassEmbedding

from .batch import Batch, as_batch, check_batch, check_batches, check_labels, check_scale, to_device
from .checks import (
    assert_equal_on_ranks,
    check_game,
    warn_of_equal_noise,
    warn_of_unmoved,
)
from .player import Player, warmup_cosine

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Player", "assert_equal_on_ranks", "frozen", "train", "warmup_cosine"]

NORM_EVERY = 10
"""Turns between gradient norms that are only logged: one more pass over the gradients is 4% of a wide MLP's step."""


class Turn:
    """One player's turn, ready to be taken: its prepared module, and everybody else's parameters."""

    def __init__(self, player: Player, others: list[nn.Parameter], accelerator: "Accelerator", steps: int) -> None:
        self.player, self.others, self.accelerator, self.steps = player, others, accelerator, steps
        self.prepared = accelerator.prepare_model(player)
        self.parameters = player.parameters_moved()
        self.checked = False

    def take(self, batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """Run all micro-batches, then clip, step and zero; returns the logs, on the device."""
        player, optimizer = self.player, self.player.optimizer
        last = len(batches) - 1
        runs = []
        with frozen(self.others):
            for i, batch in enumerate(batches):
                # Gradients are averaged over ranks once, on the last micro-batch.
                with self.accelerator.no_sync(self.prepared) if i < last else nullcontext():
                    total, means = self.prepared(batch, step)
                    if not total.requires_grad:
                        raise ValueError(f"player {player.name!r}: its loss does not depend on what it moves")
                    if not self.checked and i == 0 and self.accelerator.is_main_process:
                        warn_of_unmoved(player, total)
                    self.accelerator.backward(total)
                runs.append({"": total.detach(), **means})
        if not self.checked:
            self._check_all_used()
        norm = self._clip(step)
        if player.lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * player.lr(step, self.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return self._logs(runs, norm)

    def _clip(self, step: int) -> Tensor | None:
        if self.player.clip is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.player.clip)
        if step // self.player.every % NORM_EVERY:
            return None
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # What nn.utils.get_total_norm does, less its grouping by device, which costs more than a tiny network.
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def _check_all_used(self) -> None:
        unused = {id(p) for p in self.parameters if p.grad is None}
        if unused:
            names = [name for name, p in self.player.moves.named_parameters() if id(p) in unused]
            raise ValueError(
                f"player {self.player.name!r}: its loss does not use {len(names)} of the parameters it moves: "
                f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}. Move less, or say allow_unused=True"
            )
        self.checked = True

    def _logs(self, runs: list[dict[str, Tensor]], norm: Tensor | None) -> dict[str, Tensor]:
        name = self.player.name
        logs = {}
        for key in runs[0]:
            # A measurement that names its own place, such as logits/real, keeps it.
            tag = key if "/" in key else f"loss/{name}/{key}" if key else f"loss/{name}"
            logs[tag] = runs[0][key] if len(runs) == 1 else torch.stack([run[key] for run in runs]).mean()
        if norm is not None:
            logs[f"grad_norm/{name}"] = norm
        logs[f"lr/{name}"] = torch.tensor(self.player.optimizer.param_groups[0]["lr"])
        return logs


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient reaches these inside; afterwards each has the `requires_grad` it had before."""
    thawed = [p for p in parameters if p.requires_grad]
    for p in thawed:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in thawed:
            p.requires_grad = True


def train(
    players: Player | Iterable[Player],
    batches: Iterable[Batch],
    accelerator: "Accelerator",
    steps: int,
    start: int = 0,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Play the game: in each step k micro-batches are gathered and every player in order runs all of them, then moves.

    k is the accelerator's `gradient_accumulation_steps`. Yields (steps done so far, logs) after each step, so that a
    script does between steps what it likes. Logs are tensors still on the device (reading one waits for it):
    loss/PLAYER, loss/PLAYER/TERM, lr/PLAYER, measurements under their own name, and grad_norm/PLAYER before clipping
    (where nothing is clipped, in every tenth turn).
    In a player's turn the others are frozen; in between, every parameter's own `requires_grad` holds.

    Arguments: players, in order of turns; batches, tensors, mappings or pairs (`as_batch`), started over when they end;
    steps, the step to stop at; start, the steps already done.
    Raises ValueError or TypeError before the first step for settings that cannot work, and warns in a player's first
    turn of parameters that its loss reaches and no player moves.
    """
    players = [players] if isinstance(players, Player) else list(players)
    check_game(players, accelerator, steps, start)
    check_batches(batches)
    return _play(players, batches, accelerator, steps, start)


def _play(
    players: list[Player], batches: Iterable[Batch], accelerator: "Accelerator", steps: int, start: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    used = [module for player in players for root in player.uses for module in root.modules()]
    modes = [(module, module.training) for module in used]
    everybody = list({id(p): p for player in players for p in player.moves.parameters()}.values())
    borrowed = [p for player in players for p in player.uses.parameters()]
    stream = _endless(batches)
    classes = _classes(players)
    turns = []
    with frozen(borrowed):
        try:
            for player in players:
                player.uses.eval()
                own = {id(p) for p in player.parameters_moved()}
                turns.append(Turn(player, [p for p in everybody if id(p) not in own], accelerator, steps))
                player.optimizer.zero_grad(set_to_none=True)
            warn_of_equal_noise(accelerator)
            for step in range(start, steps):
                given = [as_batch(next(stream)) for _ in range(accelerator.gradient_accumulation_steps)]
                micro = [to_device(batch, accelerator.device) for batch in given]
                if step == start:
                    for batch in micro:
                        check_batch(batch)
                        check_scale(batch)
                for batch in given:
                    check_labels(batch, classes, wait=step == start)
                logs: dict[str, Tensor] = {}
                for turn in turns:
                    if step % turn.player.every == 0:
                        logs.update(turn.take(micro, step))
                yield step + 1, logs
            # Leaving while another rank still communicates aborts it (gloo).
            accelerator.wait_for_everyone()
        finally:
            for turn in turns:
                _release(turn, accelerator)
            for module, training in modes:
                module.training = training


def _classes(players: list[Player]) -> int | None:
    """Return how many classes the networks that the players move can tell apart; None where none takes labels."""
    embeddings = (m for player in players for m in player.moves.modules() if isinstance(m, ClassEmbedding))
    return min((m.num_classes for m in embeddings if m.num_classes is not None), default=None)


def _release(turn: Turn, accelerator: "Accelerator") -> None:
    """Undo what `prepare_model` left on the player, so that another loop can prepare it afresh."""
    accelerator.unwrap_model(turn.prepared, keep_fp32_wrapper=False)
    # On CPUs the accelerator notes the player, elsewhere its wrapper.
    accelerator._models[:] = [model for model in accelerator._models if model not in (turn.prepared, turn.player)]
    turn.player.__dict__.pop("_is_accelerate_prepared", None)


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches ended and gave nothing when started over; expected an iterable, not an iterator")
