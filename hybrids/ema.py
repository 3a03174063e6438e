"""An exponential moving average of a model, which samples better than the model itself."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from components.precision import wide

__all__ = ["EMA"]


class EMA(nn.Module):
    """θ̄ ← d θ̄ + (1 - d) θ, with warm-up d_n = min(decay, (1 + n)/(10 + n)) at the n-th update, n = 1, 2, …

    It starts as a copy of the model, in float32 where the model is in half precision: there (1 - d) θ would be rounded
    away. Parameters are averaged; buffers are copied, since averaging them would forget a latent scale. Update it once
    a step, never once a player. `ema.module` is the averaged model, in eval and frozen.

    Arguments:
        model: of any device and types.
        decay: in [0, 1).
        warmup: False: d_n = decay.
    Raises ValueError for another decay.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1); got {decay}")
        self.decay, self.warmup = decay, warmup
        self.module = deepcopy(model)
        for value in (*self.module.parameters(), *self.module.buffers()):
            if value.dtype != (wider := wide(value.detach())).dtype:
                value.data = wider
        # The n of the next update. It stays on the CPU: to read it from a device would wait for that.
        self.register_buffer("n_averaged", torch.tensor(1))
        self.requires_grad_(False).eval()

    def decay_at(self, n: int) -> float:
        """Return d_n for n = 1, 2, …"""
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model's parameters, and copy its buffers."""
        averaged: list[Tensor] = list(self.module.parameters())
        current = [p.to(q) for p, q in zip(model.parameters(), averaged, strict=True)]
        if averaged:
            torch._foreach_lerp_(averaged, current, 1 - self.decay_at(int(self.n_averaged)))
        for copy, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            copy.copy_(buffer)
        self.n_averaged += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the averaged model returns."""
        return self.module(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> "EMA":
        n = self.n_averaged
        super()._apply(*args, **kwargs)
        self.n_averaged = n
        return self

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode, whatever is asked: the average is for sampling."""
        return super().train(False)
