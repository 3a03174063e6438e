"""A stage: the part of a run that trains some players, and the model that it leaves behind."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .data import Batches, Data
from .game import NotFinite, Player, frozen
from .modes import untouched
from .refusal import Refusal

__all__ = ["Stage", "check_finite", "check_moved", "checked", "unmoved"]


@dataclass
class Stage:
    """What `build(settings, data)` returns a list of.

    Arguments:
        name: what logs and messages call it.
        model: what samples, is averaged (EMA), saved, and brought back by `load`. It must offer
            `sample(n, generator=)`, with `cond=` too where the stage is conditional.
        players: who trains it, in order of turns.
        batches: its own, or the Data that they are of, or a function that makes either once the stages before are
            trained, such as `LatentModel.cache`; it is called again on resume. None: the run's own.
        steps: its length; None: `--steps`.
        conditional: whether batches carry labels as cond, and samples are drawn by label.
        still: parameters of the model that nobody shall move, so that the others can be checked.
    """

    name: str
    model: nn.Module
    players: list[Player]
    batches: Batches | Data | Callable[[], Batches | Data] | None = None
    steps: int | None = None
    still: tuple[nn.Module, ...] = field(default=())
    conditional: bool = False

    def root(self) -> nn.Module:
        """Everything the stage saves, once, by name."""
        return nn.ModuleDict(
            {"model": self.model, "players": nn.ModuleDict({player.name: player for player in self.players})}
        )

    @contextmanager
    def turn(self, player: Player) -> Iterator[None]:
        """Put everything in the state of a player's turn: training mode, what it uses in eval mode, all others frozen.

        Afterwards gradients, buffers, modes, `requires_grad` and torch's random numbers are as they were.
        """
        root, own = self.root(), {id(p) for p in player.parameters_moved()}
        others = [p for each in self.players for p in each.parameters() if id(p) not in own]
        with untouched(root), torch.enable_grad(), frozen(others):
            root.train()
            for each in self.players:
                each.uses.eval()
            yield


def unmoved(stage: Stage) -> list[str]:
    """The names of the model's parameters that require a gradient and that no player moves."""
    known: set[Tensor] = {p for player in stage.players for p in player.parameters_moved()}
    known.update(p for module in stage.still for p in module.parameters())
    return [name for name, p in stage.model.named_parameters() if p.requires_grad and p not in known]


def checked(stages: object) -> list[Stage]:
    """What `build` returned, if it is stages whose models can be sampled. Raises ValueError."""
    if not isinstance(stages, list | tuple) or not stages or not all(isinstance(stage, Stage) for stage in stages):
        got = [type(one).__name__ for one in stages] if isinstance(stages, list | tuple) else type(stages).__name__
        raise ValueError(f"build must return a list of Stage, at least one; got {got}")
    for stage in stages:
        if not isinstance(stage.model, nn.Module):
            raise ValueError(f"stage {stage.name!r}: its model must be a nn.Module; got {type(stage.model).__name__}")
        if not callable(getattr(stage.model, "sample", None)):
            name = type(stage.model).__name__
            raise ValueError(f"stage {stage.name!r}: its model must offer sample(n, generator=); {name} does not")
    return list(stages)


def check_moved(stages: Sequence[Stage]) -> None:
    """Refuse a stage with a parameter that would stay as it was drawn (raises Refusal, with its name)."""
    errors = [
        f"stage {stage.name!r}: no player moves {', '.join(names[:3])} ({len(names)} parameter(s) in all): let one "
        "move it, name its module in still=(...) of the stage, or set its requires_grad to False"
        for stage in stages
        if (names := unmoved(stage))
    ]
    if errors:
        raise Refusal(errors)


def check_finite(stage: Stage, step: int) -> None:
    """Raise NotFinite, with the player's name, before parameters that an update made infinite are saved.

    All ranks come to the same answer, since their parameters are equal.
    """
    for player in stage.players:
        parameters = player.parameters_moved()
        norms = torch.stack(torch._foreach_norm([p.detach() for p in parameters]))
        if not norms.isfinite().all():
            bad = {id(p) for p, norm in zip(parameters, norms.tolist()) if not math.isfinite(norm)}
            names = [name for name, p in player.moves.named_parameters() if id(p) in bad]
            raise NotFinite(
                f"step {step}: parameter {names[0]} of player {player.name!r} is not finite ({len(names)} "
                "such in all); nothing was saved since; lower the learning rate, or clip gradients"
            )
