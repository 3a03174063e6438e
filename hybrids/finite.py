"""Whether an update is finite: decided before it is made, alike on every process."""

import math
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .batch import Batch, check_batch, check_scale, classes_of, complaint, in_range, spans
from .player import Player
from .processes import agree

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["NotFinite", "Watch", "gradient_norm"]

LAG = 8
"""Steps until the host reads what the device decided: by then it has long been decided, so that nothing waits."""


class NotFinite(FloatingPointError):
    """A loss or gradient of some player became NaN or infinite."""


class Watch:
    """Decide before each update whether it is finite, by the norm of the synchronised gradient.

    The norm is the same number on every process: all decide alike, and nothing more is communicated. A loss that is not
    finite makes the gradient NaN by the factor `seed` of its backward pass; on CUDA so does a batch out of range.

    On CPUs the norm is read. On CUDA it goes to a fused Adam or AdamW as `found_inf`, with which an update changes
    neither parameters nor state, and the host reads the decision LAG steps later, on every process in the same step.
    Another optimizer, or `skip` above 0, costs one wait for the device a turn.

    Arguments:
        players: of the game; the labels of its batches are in 0..K-1, K being the `num_classes` of what they move.
        accelerator: of the game.
        skip: how many steps may be skipped before NotFinite is raised.
    """

    def __init__(self, players: Sequence[Player], accelerator: "Accelerator", skip: int) -> None:
        self.accelerator, self.skip = accelerator, skip
        self.classes = classes_of(module for player in players for module in player.moves.modules())
        self.on_cuda = accelerator.device.type == "cuda"
        self.doubt: Tensor | float = 0.0
        self.ranges: list[tuple[Sequence[Tensor], bool]] = []
        self.pending: deque[_Decision] = deque()
        self.fused: dict[str, bool] = {}
        self.skipped: Counter[str] = Counter()
        self.steps: set[int] = set()

    def look(self, micro: Sequence[Batch], first: bool) -> None:
        """Refuse micro-batches out of range: here, or, on CUDA and not in the first step, by `doubt`, NaN for 0."""
        self.doubt, self.ranges = 0.0, []
        for batch in micro:
            if first:
                check_batch(batch, self.classes)
                check_scale(batch)
                continue
            extremes, image = spans(batch, self.classes)
            if self.on_cuda:
                self.doubt = self.doubt + torch.where(in_range(extremes, image, self.classes), 0.0, math.nan)
                self.ranges.append((extremes, image))
            elif not in_range([value.item() for value in extremes], image, self.classes):
                check_batch(batch, self.classes)

    def seed(self, total: Tensor) -> Tensor:
        """Return the gradient with which to start the backward pass of a loss (): 1, or NaN."""
        return total.detach() * 0 + (1 + self.doubt)

    def allows(self, player: Player, norm: Tensor, values: dict[str, Tensor], step: int) -> bool:
        """Return whether a player may update, by its gradient's norm ().

        Arguments:
            player: whose turn it is.
            norm: of its synchronised gradient, ().
            values: the means of its loss, under "", and of its terms, for the message.
            step: from 0.
        Raises:
            NotFinite: on every process, when more than `skip` steps are not finite.
            ValueError: on every process, if the reason is a batch out of range.
        """
        norm = norm + self.doubt  # a loss that is flat has a gradient of 0, whatever the batch
        if self.on_cuda and not self.skip and self._fuses(player):
            player.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.pending.append(_Decision.of(player, norm, values, step, self.ranges))
            while self.pending[0].step <= step - LAG:
                self._read()
            return True
        if math.isfinite(norm.item()):
            return True
        self._refuse(player, values, step, self.ranges)
        return False

    def finish(self) -> None:
        """Read what is left to read."""
        while self.pending:
            self._read()

    def _read(self) -> None:
        decision = self.pending.popleft()
        if not decision.copied.query():
            decision.copied.synchronize()
        if not math.isfinite(decision.norm.item()):
            self._refuse(decision.player, decision.values, decision.step, decision.ranges)

    def _refuse(
        self, player: Player, values: dict[str, Tensor], step: int, ranges: Sequence[tuple[Sequence[Tensor], bool]]
    ) -> None:
        """Count a step that is not finite; raise if it is one too many, with what each process knows of the reason."""
        outside = [text for extremes, image in ranges if (text := complaint(extremes, image, self.classes))]
        if errors := agree(self.accelerator, f"step {step + 1}: {'; '.join(outside)}" if outside else None):
            raise ValueError("\n".join(errors))
        self.steps.add(step)
        self.skipped[player.name] += 1
        if len(self.steps) <= self.skip:
            return
        bad = [
            f"{f'term {key!r}' if key else 'the loss'} is {value.item()}"
            for key, value in values.items()
            if not value.isfinite()
        ]
        reasons = agree(self.accelerator, ", ".join(bad) or None) or ["its loss and terms are finite"]
        allowed = f"; more than the {self.skip} steps that may be skipped" if self.skip else ""
        raise NotFinite(
            f"step {step + 1}: the gradient of player {player.name!r} is not finite: {'; '.join(reasons)}{allowed}. "
            "The update was not made; lower the learning rate, clip gradients, look at the data, or skip some such "
            "steps (skip_nonfinite, --skip-nonfinite)"
        )

    def _fuses(self, player: Player) -> bool:
        """Return whether a player's optimizer takes `found_inf`; say once what it costs where it does not."""
        if player.name not in self.fused:
            self.fused[player.name] = _fused(player.optimizer)
            if not self.fused[player.name]:
                warnings.warn(
                    f"player {player.name!r}: its {type(player.optimizer).__name__} waits for the device in each turn, "
                    "to know that the gradient is finite; torch's Adam and AdamW, foreach and fused left out, do not",
                    stacklevel=2,
                )
        return self.fused[player.name]


def gradient_norm(parameters: Sequence[Tensor], flat: bool = False) -> Tensor:
    """Return the norm () of all gradients of some parameters together; flat: of a copy in one piece.

    A copy of a small network's gradients costs less than a norm of each (of 96 tensors with 144,000 numbers 0.14 ms
    against 0.32 on a CPU; with 575,000 it costs more).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if flat:
        return torch.linalg.vector_norm(torch._C._nn.flatten_dense_tensors(gradients))
    # What nn.utils.get_total_norm does, less its grouping by device, which costs more than a tiny network.
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


class _Decision(NamedTuple):
    """What the host will read of an update: the gradient's norm, on its way to pinned memory."""

    player: Player
    norm: Tensor
    copied: torch.cuda.Event
    values: dict[str, Tensor]
    step: int
    ranges: list[tuple[Sequence[Tensor], bool]]

    @classmethod
    def of(cls, player: Player, norm: Tensor, *rest: Any) -> "_Decision":
        """Start the copy."""
        there = torch.empty((), dtype=norm.dtype, pin_memory=True).copy_(norm, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(player, there, copied, *rest)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    """Switch torch's Adam or AdamW to its fused kernel, unless another was asked for; return whether it is fused."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return False
    for group in optimizer.param_groups:
        if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
            group["fused"] = True
            for p in group["params"]:
                if "step" in (state := optimizer.state.get(p, {})):
                    state["step"] = state["step"].to(p.device, torch.float32)
    return all(group["fused"] for group in optimizer.param_groups)
