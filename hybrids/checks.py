"""What the game refuses before it starts, and how ranks are held to be equal."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .player import Batch, Player

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "assert_equal_on_ranks",
    "check_batch",
    "check_batches",
    "check_game",
    "warn_of_equal_noise",
    "warn_of_unmoved",
]


def check_batch(batch: Batch) -> None:
    """Refuse what no model expects: integers, NaN, images that are not in [-1, 1]; warn of images in [0, 1]."""
    x = batch if isinstance(batch, Tensor) else batch.get("x")
    if x is None:
        raise ValueError(f"a batch that is a mapping must have x; got {sorted(batch)}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor (B, *event); got a {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, images in [-1, 1]; got {x.dtype}: scale with x / 127.5 - 1")
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"x must be finite; sample {int(bad.nonzero()[0])} of the batch has NaN or infinite values")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        return
    if x.abs().max() > 1 + 1e-3:
        worst = int(x.abs().flatten(1).amax(1).argmax())
        raise ValueError(
            f"images must be in [-1, 1]; sample {worst} of the batch spans {x[worst].min():g} to {x[worst].max():g}"
        )
    # One image may be bright all over, and one value throughout tells nothing of its scale.
    if len(x) > 1 and 0 <= x.min() < x.max():
        warnings.warn(
            "images must be in [-1, 1]; those of the batch are all in [0, 1]: scale with 2 * x - 1, unless they are "
            "so bright",
            stacklevel=2,
        )


def check_batches(batches: Iterable[Batch]) -> None:
    """Refuse what holds examples and gives no batches of them (raises TypeError)."""
    if isinstance(batches, Tensor) or not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        data = "Data.from_tensor(x)" if isinstance(batches, Tensor) else "data"
        raise TypeError(
            f"batches must be an iterable of batches, such as {data}.batches(64); got a {type(batches).__name__}"
        )


def check_game(players: Sequence[Player], accelerator: "Accelerator", steps: int, start: int) -> None:
    """Refuse a game that cannot be played as it is meant to be."""
    from accelerate.utils import DistributedType

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
    if accelerator.mixed_precision == "fp16":
        raise ValueError(
            "mixed precision fp16 is refused: its one gradient scaler is shared by all optimizers, and clipping one "
            "player's gradients rescales another's; use bf16, or no"
        )
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise ValueError(f"the game runs on one process or under DDP; got {accelerator.distributed_type}")
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


def assert_equal_on_ranks(players: Iterable[Player], accelerator: "Accelerator") -> None:
    """Raise RuntimeError, naming the player, if what it moves is not bit-equal on every process."""
    for player in players:
        sums = torch.stack([p.detach().double().sum() for p in player.parameters_moved()])
        gathered: Any = accelerator.gather(sums.unsqueeze(0))
        if not torch.equal(gathered, gathered[:1].expand_as(gathered)):
            raise RuntimeError(
                f"player {player.name!r}: its parameters differ between processes; was a loss computed outside "
                "Player.forward?"
            )
