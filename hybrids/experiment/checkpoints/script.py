"""Save and restore a script around `train`, as exactly as a recipe's run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...ema import EMA
from ...game import NotFinite, Player, assert_equal_on_ranks
from ...processes import agree
from ...refusal import Refusal
from . import checkpoint as disk
from . import state

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["restore", "save"]


def save(
    folder: str | os.PathLike[str],
    step: int,
    players: Player | Iterable[Player],
    loader: Any,
    ema: EMA | None = None,
    keep: int = 2,
) -> Path:
    """Write the checkpoint `folder/checkpoints/step-N` of a script around `train`; return its path.

        start = hybrids.restore("runs/mine", players, loader, ema)
        for step, logs in train(players, loader, accelerator, 1000, start):
            ema.update_parameters(model)
            if step % 100 == 0:
                hybrids.save("runs/mine", step, players, loader, ema)

    It holds what the players move and use, their optimizers' states, the random numbers of every rank, the position of
    the loader and the moving average. A stopped and restored script ends with the same bits as one that ran through.
    Not in it: modules that no player moves or uses, and learning rates, which are the script's to set.

    Arguments:
        folder: of this script alone; shared by all ranks.
        step: as `train` yields it.
        players: as `train` got them.
        loader: as `train` got it; it must offer state_dict, of what JSON can hold, and load_state_dict, as
            `data.batches(...)` does.
        ema: the moving average, if there is one.
        keep: how many checkpoints stay, at least 1.
    Every rank calls it.
    Raises:
        ValueError: a loader whose position cannot be saved; checkpoints in `folder` that this script has not restored,
            since a save removes those of later steps.
        NotFinite: a parameter or buffer is not finite.
        CheckpointError: on every rank, where it cannot be written: the earlier checkpoints are then intact.
    """
    players, processes, root = _checked(players, loader), _processes(), Path(folder) / "checkpoints"
    _check_own(root, processes)
    assert_equal_on_ranks(players, processes)
    whole = state.gather({"players": _root(players)}, players, loader, ema, processes.device, progress={})
    for name, tensor in whole.tensors["players"].items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NotFinite(f"step {step}: {name} is not finite; nothing was saved since the last checkpoint")
    return disk.save(root, step, whole, {}, processes, keep)


def restore(
    folder: str | os.PathLike[str], players: Player | Iterable[Player], loader: Any, ema: EMA | None = None
) -> int:
    """Put the newest valid checkpoint of `save` back in place, and return its step: the `start` of `train`.

    It returns 0 and leaves all values as they are where `folder` holds no checkpoint. Players and average are moved to
    the accelerator's device. Call it last before `train`: random numbers drawn in between would differ.

    Arguments as in `save`. Every rank calls it. Raises ValueError (`Refusal`) where no checkpoint is whole, or its
    tensors are not those of these players, with the names and shapes that differ.
    """
    players, processes, root = _checked(players, loader), _processes(), Path(folder) / "checkpoints"
    for module in [*players, ema]:
        if module is not None:
            module.to(processes.device)
    saved = disk.read_newest(root, processes)
    _own.add(root.resolve())
    if saved is None:
        return 0
    state.restore(saved.state, ("players", _root(players)), players, loader, ema, str(saved.folder))
    if saved.world_size == processes.num_processes:
        state.restore_random_numbers(processes.device, saved.state.rank_tensors, saved.state.rank_values)
    else:
        warnings.warn(
            f"{saved.folder} was saved on {saved.world_size} processes, this is {processes.num_processes}: noise is "
            "drawn anew; the run is not bit-exact",
            stacklevel=2,
        )
    return saved.step


_own: set[Path] = set()
"""The folders of checkpoints that this process has restored from, or saved into."""


def _check_own(root: Path, processes: PartialState) -> None:
    """Refuse a folder with checkpoints of another history, on all ranks alike."""
    error = None
    if processes.is_main_process and root.resolve() not in _own and disk.steps_in(root):
        error = (
            f"{root} holds checkpoints that this script has not restored, and a save would remove those of later "
            "steps: call hybrids.restore before training, or give another folder"
        )
    if errors := agree(processes, error):
        raise Refusal(errors)
    _own.add(root.resolve())


def _root(players: list[Player]) -> nn.Module:
    return nn.ModuleDict({player.name: player for player in players})


def _checked(players: Player | Iterable[Player], loader: Any) -> list[Player]:
    players = [players] if isinstance(players, Player) else list(players)
    names = [player.name for player in players]
    if not players or len(set(names)) < len(names):
        raise ValueError(f"players must be at least one, with different names; got {names}")
    if not all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict")):
        raise ValueError(
            f"loader must offer state_dict() and load_state_dict(state), or its position cannot be saved; got a "
            f"{type(loader).__name__}: hybrids.data.Data.from_tensor(x).batches(64) does"
        )
    return players


def _processes() -> PartialState:
    from accelerate import PartialState

    if not PartialState._shared_state:
        raise ValueError("save and restore need to know the processes: make the Accelerator before you call them")
    return PartialState()
