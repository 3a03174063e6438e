"""What a run must remember to go on as if it had never stopped, gathered into one value and put back; all by name."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...ema import EMA
from ...game import Player
from ...refusal import Refusal

__all__ = ["State", "gather", "load_optimizers", "load_weights", "optimizers", "part", "random_numbers", "restore",
           "restore_random_numbers", "weights"]  # fmt: skip


@dataclass(frozen=True)
class State:
    """Everything that training goes on from, as tensors and as what JSON can hold.

    Arguments:
        tensors: part → name → tensor, alike on all ranks: one part of weights for each root (all stages so far),
            `optimizers`, and `ema`, the average's weights, where there is one.
        values: part → value, alike on all ranks: `progress`, `batches` (the position in the data), `optimizers`,
            `ema` (its number of updates).
        rank_tensors: this rank's random number generators, and the logs since the last line; None where a checkpoint
            holds none for this rank.
        rank_values: this rank's remaining random number state and position in the data, or None.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]
    rank_tensors: Mapping[str, Tensor] | None
    rank_values: Mapping[str, Any] | None


def gather(
    roots: Mapping[str, nn.Module],
    players: Sequence[Player],
    batches: Any,
    ema: EMA | None,
    device: torch.device,
    progress: Mapping[str, Any],
    logs: Mapping[str, Tensor] | None = None,
) -> State:
    """Return the state of training after a step.

    Arguments:
        roots: part → module with everything to save by name; what the players move is in the last.
        players: whose optimizers are saved.
        batches: with a state_dict that JSON can hold.
        ema: the moving average, if any.
        device: whose random number generator is saved beside the CPU's.
        progress: of the run, what JSON can hold.
        logs: of this rank since the last line.
    """
    *_, root = roots.values()
    optimizer_tensors, optimizer_values = optimizers(root, players)
    averages = {} if ema is None else {"ema": weights(ema.module)}
    rank_tensors, rank_values = random_numbers(device)
    position = batches.state_dict()
    return State(
        tensors={**{name: weights(one) for name, one in roots.items()}, "optimizers": optimizer_tensors, **averages},
        values={
            "progress": progress,
            "batches": position,
            "optimizers": optimizer_values,
            "ema": {"updates": 1 if ema is None else int(ema.n_averaged)},
        },
        rank_tensors={**rank_tensors, **(logs or {})},
        rank_values={**rank_values, "batches": position},
    )


def restore(
    state: State,
    root: tuple[str, nn.Module],
    players: Sequence[Player],
    batches: Any,
    ema: EMA | None,
    where: str,
) -> None:
    """Put weights, optimizers, moving average and position in the data back; random numbers come last, by themselves.

    Arguments: root, the part and the module of `gather`'s last root; where, how messages call it.
    Raises Refusal for tensors that are not those expected.
    """
    name, module = root
    load_weights(module, part(state.tensors, name, where), where)
    saved, values = part(state.tensors, "optimizers", where), part(state.values, "optimizers", where)
    load_optimizers(module, players, saved, values, where)
    if ema is not None and "ema" in state.tensors:
        load_weights(ema.module, state.tensors["ema"], f"{where}, the moving average")
        ema.n_averaged.fill_(part(state.values, "ema", where)["updates"])
    elif ema is not None:
        # A run without an average goes on with one: its first update then copies the model.
        ema.n_averaged.fill_(0)
    own = (state.rank_values or {}).get("batches")
    batches.load_state_dict(part(state.values, "batches", where) if own is None else own)


def part(parts: Mapping[str, Any], name: str, where: str) -> Any:
    """Return a part of a state. Raises Refusal where it has no such part."""
    if name not in parts:
        raise Refusal(f"{where}: the checkpoint has no {name!r}, only {', '.join(sorted(parts)) or 'nothing'}")
    return parts[name]


def weights(root: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; one that has several names, by its first.

    Wrappers leave no trace in names, so that a checkpoint fits with `torch.compile` and without.
    """
    named: set[int] = set()
    tensors = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        if id(tensor) not in named:
            named.add(id(tensor))
            tensors[_plain(name)] = tensor.detach()
    return tensors


@torch.no_grad()
def load_weights(root: nn.Module, saved: Mapping[str, Tensor], where: str) -> None:
    """Copy saved weights in place. Raises Refusal, with the names and shapes that differ, before any is copied."""
    own = weights(root)
    compare(own, saved, where)
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _names(root: nn.Module) -> dict[int, str]:
    return {id(p): _plain(name) for name, p in root.named_parameters()}


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def optimizers(root: nn.Module, players: Iterable[Player]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return every player's optimizer state as (tensors, the rest), under PLAYER/PARAMETER/KEY.

    Hyper-parameters are not saved: the settings give them, and the learning rate may be changed on resume.
    """
    names, tensors, rest = _names(root), {}, {}
    for player in players:
        for p, state in player.optimizer.state.items():
            for key, value in state.items():
                where = f"{player.name}/{names[id(p)]}/{key}"
                if isinstance(value, Tensor):
                    tensors[where] = value.detach()
                else:
                    rest[where] = value
    return tensors, rest


def load_optimizers(
    root: nn.Module,
    players: Iterable[Player],
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    where: str = "the saved state",
) -> None:
    """Put back what `optimizers` returned; where, how messages call it.

    Raises Refusal if a saved state belongs to no parameter, or is not what Adam or AdamW has of one.
    """
    by_place: dict[str, dict[str, Any]] = {}
    for path, value in [*tensors.items(), *rest.items()]:
        place, _, key = path.rpartition("/")
        # A tensor that was read is a view of its whole file, which an optimizer would keep.
        by_place.setdefault(place, {})[key] = value.clone() if isinstance(value, Tensor) else value
    names = _names(root)
    for player in players:
        moved = player.parameters_moved()
        index = {f"{player.name}/{names[id(p)]}": i for i, p in enumerate(moved)}
        state = player.optimizer.state_dict()
        state["state"] = {i: by_place.pop(place) for place, i in index.items() if place in by_place}
        if type(player.optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            amsgrad = player.optimizer.defaults["amsgrad"]
            for i, values in state["state"].items():
                _check_adam(values, moved[i], amsgrad, f"{where}, optimizer, {player.name}/{names[id(moved[i])]}")
        player.optimizer.load_state_dict(state)
    if by_place:
        raise Refusal(
            f"{where}: optimizer state of {sorted(by_place)[0]} (and {len(by_place) - 1} more) fits no player here"
        )


def _check_adam(state: Mapping[str, Tensor], p: Tensor, amsgrad: bool, where: str) -> None:
    """Refuse a parameter's state that Adam would only find unusable in the first step."""
    moments = ["exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * amsgrad]
    compare({"step": torch.empty(()), **dict.fromkeys(moments, p)}, state, where)


def random_numbers(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of this process's random number generators: torch's, NumPy's, Python's."""
    import numpy

    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    version, internal, gauss = random.getstate()
    _, keys, *rest = numpy.random.get_state()
    return tensors, {
        "python": [version, list(internal), gauss],
        "numpy": [[int(key) for key in keys], int(rest[0]), int(rest[1]), float(rest[2])],
    }


def restore_random_numbers(
    device: torch.device, tensors: Mapping[str, Tensor] | None, rest: Mapping[str, Any] | None
) -> bool:
    """Restore what `random_numbers` returned; return False, with a warning, if there is nothing to restore from."""
    import numpy

    tensors, rest = tensors or {}, rest or {}
    if not {"cpu", device.type} & {"cpu", "cuda"} <= tensors.keys() or not {"python", "numpy"} <= rest.keys():
        warnings.warn(
            "the checkpoint has no random number state for this process: the run goes on, not bit-exactly",
            stacklevel=2,
        )
        return False
    # Views of a file's bytes, whose alignment torch's generators do not promise to accept.
    torch.set_rng_state(tensors["cpu"].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"].clone(), device)
    version, internal, gauss = rest["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *more = rest["numpy"]
    numpy.random.set_state(("MT19937", numpy.array(keys, dtype=numpy.uint32), *more))
    return True


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not those expected, by name and shape; the first few that differ are named."""

    def listed(title: str, lines: list[str]) -> list[str]:
        more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
        return [f"{title} {', '.join(lines[:3])}{more}"] if lines else []

    def shape(tensor: Tensor) -> str:
        return str(tuple(tensor.shape))

    both = [name for name in expected if name in given and expected[name].shape != given[name].shape]
    differences = [
        *listed("missing", [f"{name} {shape(expected[name])}" for name in expected if name not in given]),
        *listed("unexpected", [f"{name} {shape(given[name])}" for name in given if name not in expected]),
        *listed("other shape", [f"{n}: expected {shape(expected[n])}, got {shape(given[n])}" for n in both]),
    ]
    if differences:
        remedy = "build the networks with the settings that it was saved with"
        raise Refusal(f"{where}: is of another architecture: {'; '.join(differences)}; {remedy}")
