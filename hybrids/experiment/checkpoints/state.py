"""What a run must remember to go on as if it had never stopped: weights, optimizers, random numbers; all by name."""

import random
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...game import Player
from ...refusal import Refusal

__all__ = ["load_optimizers", "load_weights", "optimizers", "random_numbers", "restore_random_numbers", "weights"]


def weights(root: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; one that has several names, by its first.

    Wrappers leave no trace in names, so that a checkpoint fits with `torch.compile` and without.
    """
    seen: set[int] = set()
    found = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[_plain(name)] = tensor.detach()
    return found


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
    """Every player's optimizer state as (tensors, the rest), under PLAYER/PARAMETER/KEY.

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
    root: nn.Module, players: Iterable[Player], tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> None:
    """The inverse of `optimizers`. Raises Refusal if a saved state belongs to no parameter."""
    by_place: dict[str, dict[str, Any]] = {}
    for where, value in [*tensors.items(), *rest.items()]:
        place, _, key = where.rpartition("/")
        by_place.setdefault(place, {})[key] = value
    names = _names(root)
    for player in players:
        moved = player.parameters_moved()
        index = {f"{player.name}/{names[id(p)]}": i for i, p in enumerate(moved)}
        state = player.optimizer.state_dict()
        state["state"] = {i: by_place.pop(place) for place, i in index.items() if place in by_place}
        player.optimizer.load_state_dict(state)
    if by_place:
        raise Refusal(f"optimizer state of {sorted(by_place)[0]} (and {len(by_place) - 1} more) fits no player here")


def random_numbers(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of this process's random number generators: torch's, NumPy's, Python's."""
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
    """Restore what `random_numbers` gave; False, with a warning, if there is nothing to restore from."""
    import numpy

    if tensors is None or rest is None or "cpu" not in tensors or (device.type == "cuda" and "cuda" not in tensors):
        warnings.warn(
            "the checkpoint has no random number state for this process: the run goes on, not bit-exactly",
            stacklevel=2,
        )
        return False
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, internal, gauss = rest["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *more = rest["numpy"]
    numpy.random.set_state(("MT19937", numpy.array(keys, dtype=numpy.uint32), *more))
    return True


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not those expected, by name and shape; the first few that differ are named."""

    def listed(title: str, lines: list[str]) -> list[str]:
        more = f", and {len(lines) - 3} more" if len(lines) > 3 else ""
        return [f"{title} {', '.join(lines[:3])}{more}"] if lines else []

    def shape(tensor: Tensor) -> str:
        return str(tuple(tensor.shape))

    both = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    differences = [
        *listed("missing", [f"{name} {shape(expected[name])}" for name in expected if name not in found]),
        *listed("unexpected", [f"{name} {shape(found[name])}" for name in found if name not in expected]),
        *listed("other shape", [f"{n}: expected {shape(expected[n])}, got {shape(found[n])}" for n in both]),
    ]
    if differences:
        remedy = "build the networks with the settings that it was saved with"
        raise Refusal(f"{where}: is of another architecture: {'; '.join(differences)}; {remedy}")
