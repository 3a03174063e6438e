"""Numerical precision: autocast switched off, half precision widened."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

__all__ = ["full_precision", "wide", "widest"]


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off, as a `with` block or a decorator: `@full_precision()`.

    Networks may run in bf16; penalties, learned schedules and KL must not. Costs nothing when autocast is off.
    """
    with ExitStack() as stack:
        for device in ("cuda", "cpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def wide(x: Tensor) -> Tensor:
    """Widen half precision to float32; leave float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def widest(t: Tensor | float, device: torch.device | None = None) -> Tensor:
    """Return t as a float64 tensor: in bf16 the first ten of a thousand noise levels would be zero.

    Arguments:
        t: a tensor of any shape, or a Python float, which is converted exactly.
        device: of the result; None: that of t. Apple's MPS has no float64; there, float32.
    """
    if not isinstance(t, Tensor):
        on_mps = device is not None and device.type == "mps"
        return torch.tensor(t, device=device, dtype=torch.float32 if on_mps else torch.float64)
    device = t.device if device is None else device
    return t.to(device, torch.float32 if device.type == "mps" else torch.float64)
