"""What the game refuses before it starts, and how ranks are held to be equal."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .launch import check_accelerator
from .player import Player

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

__all__ = ["assert_equal_on_ranks", "check_all_used", "check_game", "warn_of_equal_noise", "warn_of_unmoved"]


def check_game(
    players: Sequence[Player], accelerator: "Accelerator", steps: int, start: int, skip_nonfinite: int = 0
) -> None:
    """Refuse a game that cannot be played as it is meant to be (raises ValueError, TypeError)."""
    if not players:
        raise ValueError("players must hold at least one Player; got none")
    for player in players:
        if not isinstance(player, Player):
            raise TypeError(f"players must be Player objects; got {type(player).__name__}")
    names = [player.name for player in players]
    if len(set(names)) < len(names):
        raise ValueError(f"players must have different names; got {names}")
    if not 0 <= start <= steps or steps < 1:
        raise ValueError(f"0 <= start <= steps and steps >= 1 must hold; got start {start} and steps {steps}")
    if skip_nonfinite < 0:
        raise ValueError(f"skip_nonfinite must be at least 0, a number of steps; got {skip_nonfinite}")
    check_accelerator(accelerator)
    _check_shared(players)


def _check_shared(players: Sequence[Player]) -> None:
    """A parameter moved by two players is meant if both list the module that holds it, and an accident otherwise."""
    owners: dict[int, tuple[Player, nn.Module]] = {}
    for player in players:
        for module in player.moves:
            for name, p in module.named_parameters():
                other, holder = owners.setdefault(id(p), (player, module)) if p.requires_grad else (player, module)
                if other is not player and holder is not module:
                    raise ValueError(
                        f"players {other.name!r} and {player.name!r} both move {name} (shape {tuple(p.shape)}); if "
                        "that is meant, list the very module that they share in the moves of both"
                    )
    for player in players:
        for name, p in player.uses.named_parameters():
            if id(p) in owners:
                raise ValueError(
                    f"player {player.name!r} uses {name} (shape {tuple(p.shape)}), which player "
                    f"{owners[id(p)][0].name!r} moves; what another player moves is frozen in this one's turn anyway: "
                    "drop it from uses"
                )


def warn_of_equal_noise(accelerator: "Accelerator") -> None:
    """After a plain `set_seed` every rank would draw the same noise and timesteps."""
    if accelerator.num_processes == 1:
        return
    state = torch.cuda.get_rng_state() if accelerator.device.type == "cuda" else torch.get_rng_state()
    weights = torch.arange(1, len(state) + 1, dtype=torch.int64)
    prints = accelerator.gather((state.long() * weights).sum().view(1).to(accelerator.device))
    if len(set(prints.tolist())) < accelerator.num_processes:
        warnings.warn(
            "every process is about to draw the same noise; seed with accelerate.utils.set_seed(seed, "
            "device_specific=True) (DDP makes the parameters equal by itself)",
            stacklevel=2,
        )


def check_all_used(player: Player) -> None:
    """Refuse, after a backward pass, a player whose loss leaves some of what it moves without a gradient."""
    unused = {id(p) for p in player.parameters_moved() if p.grad is None}
    if unused:
        names = [name for name, p in player.moves.named_parameters() if id(p) in unused]
        raise ValueError(
            f"player {player.name!r}: its loss does not use {len(names)} of the parameters it moves: "
            f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}. Move less, or say allow_unused=True"
        )


def warn_of_unmoved(player: Player, total: Tensor) -> None:
    """Warn of parameters that a player's loss reaches and nobody moves: they would stay as they were drawn.

    In the player's turn, when what the others move is frozen, and so not reached.
    """
    moved = {id(p) for p in player.parameters_moved()}
    unmoved = {id(p): p for p in _leaves(total) if isinstance(p, nn.Parameter) and id(p) not in moved}
    if not unmoved:
        return
    owner = getattr(player.loss, "__self__", player.loss)
    known = owner.named_parameters() if isinstance(owner, nn.Module) else ()
    names = [name for name, p in known if id(p) in unmoved] or [f"of shape {tuple(p.shape)}" for p in unmoved.values()]
    warnings.warn(
        f"player {player.name!r}: its loss reaches {len(unmoved)} parameters that no player moves: "
        f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}. Let one move them, list their module in uses, or "
        "set requires_grad to False",
        stacklevel=2,
    )


def _leaves(total: Tensor) -> Iterator[Tensor]:
    """The tensors that backward would leave a gradient in."""
    waiting: list[Any] = [total.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def assert_equal_on_ranks(players: Iterable[Player], accelerator: "Accelerator | PartialState") -> None:
    """Raise RuntimeError, naming the player, if what it moves is not bit-equal on every process."""
    from accelerate.utils import gather

    if accelerator.num_processes == 1:
        return
    for player in players:
        sums = torch.stack([p.detach().double().sum() for p in player.parameters_moved()])
        gathered: Any = gather(sums.unsqueeze(0))
        if not torch.equal(gathered, gathered[:1].expand_as(gathered)):
            raise RuntimeError(
                f"player {player.name!r}: its parameters differ between processes; was a loss computed outside "
                "Player.forward?"
            )
