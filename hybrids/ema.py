"""An exponential moving average of a model, which samples better than the model itself."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["EMA"]


class EMA(AveragedModel):
    """θ̄ ← d θ̄ + (1 - d) θ, with warm-up d_n = min(decay, (1 + n)/(10 + n)) at the n-th update, n = 1, 2, …

    It starts as a copy of the model. Parameters are averaged; buffers are copied, since averaging them would forget a
    latent scale. Update it once a step, never once a player. `ema.module` is the averaged model, in eval and frozen.
    Arguments: model; decay in [0, 1); warmup, without which d_n = decay.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1); got {decay}")
        super().__init__(model, multi_avg_fn=self._average, use_buffers=False)
        # AveragedModel overwrites the average at its first update; the copy made here is that first one.
        self.n_averaged += 1
        self.decay, self.warmup = decay, warmup
        self.requires_grad_(False).eval()

    def decay_at(self, n: int) -> float:
        """d_n for n = 1, 2, …"""
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    def _average(self, averaged: Any, current: Any, n: Any) -> None:
        # The counter itself stays on the CPU: reading its copy `n` would wait for the device.
        torch._foreach_lerp_(averaged, current, 1 - self.decay_at(int(self.n_averaged)))

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode, whatever is asked: the average is for sampling."""
        return super().train(False)
