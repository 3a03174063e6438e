"""Change a model's mode, or draw random numbers, for a while: afterwards all is as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["device_of", "evaluating", "own_random_numbers", "untouched"]


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Put modules in eval mode; afterwards each of their submodules is in the mode that it was in.

    What is no Module, such as a model of one's own without parameters, has no mode and is left alone.
    """
    modes = [(m, m.training) for module in modules if isinstance(module, nn.Module) for m in module.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def own_random_numbers(device: torch.device | str = "cpu", seed: int | None = None) -> Iterator[None]:
    """Draw from the CPU and the device inside; afterwards the random state of both is what it was.

    Arguments: seed, of both, or None: they go on from where they are.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def device_of(module: Any) -> torch.device:
    """The device of a module: of its first parameter, or else buffer; the CPU if it has none, or is no Module."""
    if not isinstance(module, nn.Module):
        return torch.device("cpu")
    return next((t.device for some in (module.parameters(), module.buffers()) for t in some), torch.device("cpu"))


@contextmanager
def untouched(module: Any) -> Iterator[torch.device]:
    """Leave a module as it was: afterwards its gradients, buffers, modes and plain settings are those it had.

    So are torch's random numbers, of the CPU and of its device, which is yielded. Parameters are not looked after.
    """
    device = device_of(module)
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    plain = [(vars(m), {k: v for k, v in vars(m).items() if isinstance(v, bool | int | float)}) for m in modules]
    buffers = [(m._buffers, k, b, b.clone()) for m in modules for k, b in m._buffers.items() if b is not None]
    gradients = [(p, p.grad) for m in modules for p in m.parameters(recurse=False)]
    for p, _ in gradients:
        p.grad = None
    with own_random_numbers(device):
        try:
            yield device
        finally:
            for settings, values in plain:
                settings.update(values)
            with torch.no_grad():
                for held, name, buffer, before in buffers:
                    held[name] = buffer
                    buffer.copy_(before)
            for p, gradient in gradients:
                p.grad = gradient
