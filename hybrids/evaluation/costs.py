"""What a model costs: parameters, FLOPs, network evaluations, samples a second, memory. The model stays as it is."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..game import frozen
from ..models.model import offered
from ..modes import evaluating, untouched

if TYPE_CHECKING:
    from ..data import Data
    from ..stage import Stage

__all__ = [
    "batch_of",
    "evaluations",
    "evaluations_by_part",
    "flops_per_sample",
    "flops_per_step",
    "parameters",
    "peak_memory",
    "rate",
]


def parameters(model: Any) -> int:
    """Return how many numbers its parameters are, shared ones once, trained or not.

    Raises NotOffered for a model that is no Module and has no `parameters()`.
    """
    return sum(p.numel() for p in offered(model, "parameters")())


# Sampling.


def flops_per_sample(model: Any, n: int, seed: int = 0, **given: Any) -> float:
    """FLOPs of model.sample(n, **given), over n.

    As FlopCounterMode counts them: matrix products, convolutions and attention, a multiplication and an addition being
    two; what works element by element is free. Arguments: given, what else `sample` takes: sampler, cond.
    """
    with _sampling(model, n) as device, _flops() as counted:
        model.sample(n, generator=torch.Generator(device).manual_seed(seed), **given)
    return counted.get_total_flops() / n


def evaluations(model: Any, n: int, seed: int = 0, **given: Any) -> float:
    """Network evaluations a sample, those of all parts together: see `evaluations_by_part`."""
    return sum(evaluations_by_part(model, n, seed, **given).values())


def evaluations_by_part(model: Any, n: int, seed: int = 0, **given: Any) -> dict[str, float]:
    """Examples that go through the model's outermost networks in model.sample(n, **given), over n.

    One evaluation is one example in one call, so that guidance in one doubled batch is two. The networks are those that
    the model's `networks()` names: a denoiser's backbone (T evaluations of a chain of T steps), a GAN's generator (1),
    the decoder of a VAE or an autoencoder (1); a learned ladder is one network with its last decoder. Latent models
    have those of the second stage and the first stage's decoder, which is smaller or larger than the second stage's
    network: `flops_per_sample` compares. Raises NotOffered for a model that names none.
    """
    networks = offered(model, "networks")()
    seen = dict.fromkeys(networks, 0)

    def hook(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            seen[name] += next(_rows(*args, *kwargs.values()), n)

        return count

    hooks = [network.register_forward_hook(hook(name), with_kwargs=True) for name, network in networks.items()]
    try:
        with _sampling(model, n) as device:
            model.sample(n, generator=torch.Generator(device).manual_seed(seed), **given)
    finally:
        for each in hooks:
            each.remove()
    return {name: count / n for name, count in seen.items()}


def _rows(*given: Any) -> Iterator[int]:
    """Yield how many rows each tensor among the arguments has, those in tuples included."""
    for each in given:
        if isinstance(each, Tensor) and each.ndim:
            yield len(each)
        elif isinstance(each, tuple | list):
            yield from _rows(*each)


def rate(model: Any, n: int, device: torch.device | str = "cpu", seed: int = 0, **given: Any) -> float:
    """Samples a second of model.sample(n, **given), n at once, after one call to warm up; by the wall clock.

    Arguments: device, where the model is. Raises ValueError if it is elsewhere.
    """
    wanted = torch.device(device)
    with _sampling(model, n) as place:
        if place.type != wanted.type:
            raise ValueError(f"device must be where the model is, {place}; got {wanted}")
        for _ in range(2):
            generator = torch.Generator(place).manual_seed(seed)
            _wait(place)
            began = time.perf_counter()
            model.sample(n, generator=generator, **given)
            _wait(place)
            seconds = time.perf_counter() - began
    return n / max(seconds, 1e-9)


def peak_memory(work: Callable[[], object], device: torch.device | str = "cpu") -> float | None:
    """Bytes that tensors held at most on a CUDA device while `work` was done, those there before included.

    None on CPUs: torch keeps no count there, and the process's own maximum is of all that it ever did.
    The device's earlier maximum is forgotten.
    """
    place = torch.device(device)
    if place.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(place)
    work()
    _wait(place)
    return float(torch.cuda.max_memory_allocated(place))


# Training.


def flops_per_step(stage: "Stage", batch: Batch, step: int = 0) -> float:
    """FLOPs of one turn of the whole game on a batch: every player's loss, forward and backward. Counted as samples'.

    What some steps only have is averaged over: a player that moves every so many, and lazy penalties. Ramps of the
    loss, such as a critic that starts later, are as they are from `step` on. With several micro-batches a step, or
    processes, it is the cost of each of theirs. Optimizers are not run, and cost nothing as FLOPs are counted.
    Everything is afterwards as it was: parameters, gradients, buffers, modes and random numbers.
    Arguments: stage, of `build`; batch, of those that its players take, such as `batch_of`.
    Raises ValueError, naming the player, for a loss that does not depend on what it moves.
    """
    root = stage.root()
    lazy: list[Any] = [module.lazy for module in root.modules() if hasattr(module, "lazy")]
    periods = [player.every for player in stage.players], lazy
    cycle = math.lcm(*periods[0], *periods[1])
    # Steps are of few kinds, and one of each is played.
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for i in range(step, step + cycle):
        kinds.setdefault(tuple(i % period == 0 for period in (*periods[0], *periods[1])), []).append(i)
    return sum(_turn(stage, root, batch, steps[0]) * len(steps) for steps in kinds.values()) / cycle


def _turn(stage: "Stage", root: nn.Module, batch: Batch, step: int) -> float:
    everybody = list({id(p): p for player in stage.players for p in player.moves.parameters()}.values())
    with untouched(root), torch.enable_grad(), _flops() as counted:
        root.train()
        for player in stage.players:
            player.uses.eval()
        for player in stage.players:
            if step % player.every:
                continue
            own = {id(p) for p in player.parameters_moved()}
            borrowed = list(player.uses.parameters())
            with frozen([p for p in everybody if id(p) not in own] + borrowed):
                total, _ = player(batch, step)
                if not total.requires_grad:
                    raise ValueError(f"player {player.name!r}: its loss does not depend on what it moves")
                total.backward()
            for p in everybody:
                p.grad = None
    return float(counted.get_total_flops())


def batch_of(stage: "Stage", data: "Data", batch_size: int, device: torch.device | str = "cpu") -> Batch:
    """The first batch that a stage's players take: of the data, or of what the stage makes of it, such as latents.

    A stage that is not trained yet makes such as its untrained model gives, of the right shape, and forgets that it
    did. Raises ValueError, as `Batches`, where the data set has no examples or too few.
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
    """The model in eval mode and without gradients; its device."""
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    with untouched(model) as device, evaluating(model), torch.no_grad():
        yield device


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops() -> Any:
    """FlopCounterMode of the whole, not of each module: the hooks of its tracker refuse penalties' double backward."""
    from torch.utils.flop_counter import FlopCounterMode

    counted: Any = FlopCounterMode(display=False)
    counted.mod_tracker = _Whole()
    return counted


class _Whole:
    """A tracker of modules that tracks none."""

    parents = frozenset({"Global"})

    def __enter__(self) -> "_Whole":
        return self

    def __exit__(self, *error: object) -> None:
        pass
