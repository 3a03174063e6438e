"""Costs of a model: parameters, FLOPs, network evaluations, samples per second. The model is not changed."""

import copy
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..models.model import offered
from ..modes import evaluating, untouched

if TYPE_CHECKING:
    from ..data import Data
    from ..player import Player
    from ..stage import Stage

__all__ = [
    "batch_of",
    "evaluations",
    "evaluations_by_part",
    "flops_per_sample",
    "flops_per_step",
    "memory_per_step",
    "parameters",
    "samples_per_second",
]


def parameters(model: Any) -> int:
    """Return the number of scalar parameters, shared ones counted once, trained or not.

    Raises NotOffered for a model that is no Module and has no `parameters()`.
    """
    return sum(p.numel() for p in offered(model, "parameters")())


# Sampling.


def flops_per_sample(model: Any, n: int, seed: int = 0, **given: Any) -> float:
    """Return the FLOPs of model.sample(n, **given), over n.

    They are counted by FlopCounterMode: matrix products, convolutions and attention, a multiplication and an addition
    being two; elementwise operations count 0.
    Arguments:
        n: samples drawn at once.
        given: further arguments of `sample`, such as sampler and cond.
    """
    with _sampling(model, n) as device, _flops() as counted:
        model.sample(n, generator=torch.Generator(device).manual_seed(seed), **given)
    return counted.get_total_flops() / n


def evaluations(model: Any, n: int, seed: int = 0, **given: Any) -> float:
    """Return the number of network evaluations per sample, the sum of `evaluations_by_part`."""
    return sum(evaluations_by_part(model, n, seed, **given).values())


def evaluations_by_part(model: Any, n: int, seed: int = 0, **given: Any) -> dict[str, float]:
    """Return the number of evaluations of each network in model.sample(n, **given), over n.

    One evaluation is one example in one call, so guidance in one doubled batch counts two. The networks are those of
    the model's `networks()`: a denoiser's backbone (T evaluations for a chain of T steps), a GAN's generator (1), the
    decoder of a VAE or an autoencoder (1); a learned ladder and its last decoder are one network. Latent models have
    the networks of the second stage and the first stage's decoder, whose sizes differ: compare by `flops_per_sample`.
    Raises NotOffered for a model without `networks`.
    """
    networks = offered(model, "networks")()
    counts = dict.fromkeys(networks, 0)

    def hook(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            counts[name] += next(_rows(*args, *kwargs.values()), n)

        return count

    hooks = [network.register_forward_hook(hook(name), with_kwargs=True) for name, network in networks.items()]
    try:
        with _sampling(model, n) as device:
            model.sample(n, generator=torch.Generator(device).manual_seed(seed), **given)
    finally:
        for each in hooks:
            each.remove()
    return {name: count / n for name, count in counts.items()}


def _rows(*given: Any) -> Iterator[int]:
    """Yield the batch size of each tensor among the arguments, those in tuples included."""
    for each in given:
        if isinstance(each, Tensor) and each.ndim:
            yield len(each)
        elif isinstance(each, tuple | list):
            yield from _rows(*each)


def samples_per_second(model: Any, n: int, device: torch.device | str = "cpu", seed: int = 0, **given: Any) -> float:
    """Return the samples per second of model.sample(n, **given), by the wall clock, after one call to warm up.

    Arguments:
        n: samples drawn at once.
        device: must be the device of the model.
    Raises ValueError for another device than the model's.
    """
    expected = torch.device(device)
    with _sampling(model, n) as own:
        if own.type != expected.type:
            raise ValueError(f"device must be that of the model, {own}; got {expected}")
        for _ in range(2):
            generator = torch.Generator(own).manual_seed(seed)
            _wait(own)
            start = time.perf_counter()
            model.sample(n, generator=generator, **given)
            _wait(own)
            seconds = time.perf_counter() - start
    return n / max(seconds, 1e-9)


# Training.


def flops_per_step(stage: "Stage", batch: Batch, step: int = 0) -> float:
    """Return the FLOPs of one step of all players on a batch: each player's loss, forward and backward.

    They are counted as in `flops_per_sample`. Players with `every` > 1 and lazy penalties are averaged over their
    period. Ramps of a loss, such as a critic that starts later, have their values from `step` on. With several
    micro-batches a step, or several processes, this is the cost of one micro-batch on one process. Optimizers are not
    run: their elementwise operations count 0. Parameters, gradients, buffers, modes and random state are restored.

    Arguments:
        stage: of a recipe's `build`.
        batch: as the stage's players take it, such as `batch_of` gives.
        step: first step of the period.
    Raises ValueError, naming the player, for a loss that does not depend on the parameters that the player moves.
    """
    lazy: list[Any] = [module.lazy for module in stage.root().modules() if hasattr(module, "lazy")]
    periods = [player.every for player in stage.players], lazy
    cycle = math.lcm(*periods[0], *periods[1])
    # Steps with the same players and penalties cost the same, so one of each kind is counted.
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for i in range(step, step + cycle):
        kinds.setdefault(tuple(i % period == 0 for period in (*periods[0], *periods[1])), []).append(i)
    return sum(_turn(stage, batch, steps[0]) * len(steps) for steps in kinds.values()) / cycle


def _turn(stage: "Stage", batch: Batch, step: int) -> float:
    with _flops() as counted:
        for player in stage.players:
            if step % player.every == 0:
                _differentiate(stage, player, batch, step)
    return float(counted.get_total_flops())


def _differentiate(stage: "Stage", player: "Player", batch: Batch, step: int) -> None:
    """Run one player's loss forward and backward; drop its gradients."""
    with stage.turn(player):
        total, _ = player(batch, step)
        if not total.requires_grad:
            raise ValueError(f"player {player.name!r}: the loss must depend on the parameters in moves; it does not")
        total.backward()


def memory_per_step(stage: "Stage", batch: Batch, step: int = 0) -> dict[str, int]:
    """Return the bytes that the training of a stage holds at most, by what holds them.

    parameters: with buffers, of the model and all players. gradients: of the player that moves most, since each drops
    its own before the next one's turn. optimizer: the state of all optimizers after their first step. activations: the
    largest sum of the tensors that autograd saves for the backward pass and has not released yet, over all turns; each
    storage once, parameters and buffers excluded. The first three are exact; activations leave out what kernels need
    for themselves and intermediate results that are not saved, and are therefore an estimate from below.
    Parameters, gradients, buffers, modes and random state are restored. Arguments: as of `flops_per_step`.
    """
    root = stage.root()
    saved = _Saved(root)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        for player in stage.players:
            _differentiate(stage, player, batch, step)
    return {
        "parameters": _bytes([*root.parameters(), *root.buffers()]),
        "gradients": max(_bytes(player.parameters_moved()) for player in stage.players),
        "optimizer": sum(_optimizer_bytes(player) for player in stage.players),
        "activations": saved.peak,
    }


class _Saved:
    """Hooks of autograd that follow how many bytes it holds for the backward pass."""

    def __init__(self, root: nn.Module) -> None:
        self.exempt = {_place(t) for t in [*root.parameters(), *root.buffers()]}
        self.holders: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "_Packed":
        place, size = _place(tensor), tensor.untyped_storage().nbytes()
        packed = _Packed(tensor)
        if place not in self.exempt:
            if place not in self.holders:
                self.now += size
                self.peak = max(self.peak, self.now)
            self.holders[place] = self.holders.get(place, 0) + 1
            weakref.finalize(packed, self._release, place, size)
        return packed

    def unpack(self, packed: "_Packed") -> Tensor:
        return packed.tensor

    def _release(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
            del self.holders[place]
            self.now -= size


class _Packed:
    """A saved tensor, whose end of life can be observed."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _optimizer_bytes(player: "Player") -> int:
    """Return the bytes of the optimizer's state after a step, which a copy of it takes."""
    optimizer = copy.deepcopy(player.optimizer)
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return _bytes(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def batch_of(stage: "Stage", data: "Data", batch_size: int, device: torch.device | str = "cpu") -> Batch:
    """Return the first batch for a stage's players: of the data, or of the stage's own batches, such as latents.

    Latents of a stage that is not trained yet have the right shape; the stage's state is restored afterwards. Raises
    ValueError, as `Batches`, where the data set has no or too few examples.
    """
    source: Any = stage.batches
    if callable(source):
        with untouched(stage.root()):
            source = source()
    if source is None:
        source = data
    batches = source.batches(batch_size, device=device, labels=stage.conditional) if hasattr(source, "card") else source
    return next(iter(batches))


@contextmanager
def _sampling(model: Any, n: int) -> Iterator[torch.device]:
    """Put the model in eval mode without gradients, restore it afterwards, and yield its device."""
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    with untouched(model) as device, evaluating(model), torch.no_grad():
        yield device


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops() -> Any:
    """Return a FlopCounterMode without counts by module, whose hooks fail in the double backward of penalties."""
    from torch.utils.flop_counter import FlopCounterMode

    counted: Any = FlopCounterMode(display=False)
    counted.mod_tracker = _NoModuleTracker()
    return counted


class _NoModuleTracker:
    """A module tracker for FlopCounterMode that tracks no module."""

    parents = frozenset({"Global"})

    def __enter__(self) -> "_NoModuleTracker":
        return self

    def __exit__(self, *error: object) -> None:
        pass
