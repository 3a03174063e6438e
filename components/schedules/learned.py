"""A schedule that is learned with the model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..precision import full_precision, widest
from .base import Schedule, Time, check_ends

__all__ = ["LearnedSchedule"]


class LearnedSchedule(Schedule):
    """A monotone network between two endpoints: λ_t = λ_0 + (λ_1 - λ_0) n(t), n(0) = 0, n(1) = 1.

    n is g normalized, g(t) = t + Σ_k w_k sigmoid(v_k t + b_k) with w, v > 0. Kingma 2021, 2107.00630, appendix H.
    In expectation the bound does not depend on n, so its gradient there is noise. Within `minimizing_variance` the
    gradient that reaches n is instead that of the estimator's variance; the endpoints get the bound's own.

    Arguments:
        log_snr_max, log_snr_min: the endpoints.
        learn_endpoints: off by default, since on continuous latents λ_0 would run away.
        width: the number of sigmoids.
    """

    def __init__(
        self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, learn_endpoints: bool = False, width: int = 64
    ) -> None:
        super().__init__()
        check_ends(log_snr_max, log_snr_min, finite=True)
        self.endpoints = nn.Parameter(torch.tensor([log_snr_max, log_snr_min]), requires_grad=learn_endpoints)
        # Sigmoids centred all over [0, 1], each too small at first to bend the line by much.
        self.log_weight = nn.Parameter(torch.full((width,), math.log(0.1 / width)))
        self.log_steepness = nn.Parameter(torch.full((width,), math.log(10.0)))
        self.bias = nn.Parameter(-10.0 * torch.linspace(0, 1, width))
        self._factors: list[Tensor] | None = None

    @contextmanager
    def minimizing_variance(self) -> Iterator[list[Tensor]]:
        """Inside, evaluate the schedule at the times t (B,) of a batch and append to the list its losses L (B,).

        In the backward pass the gradient of each n(t_i) and n'(t_i) is multiplied by 2 L_i / mean(L), which turns
        ∇L_i into ∇L_i² up to a constant: E[L²] - E[L]² falls, since E[L] does not depend on n. Kingma 2021,
        2107.00630, appendix I.2.
        """
        losses: list[Tensor] = []
        self._factors = losses
        try:
            yield losses
        finally:
            self._factors = None

    def _hooked(self, value: Tensor) -> Tensor:
        losses = self._factors
        if losses is not None and value.requires_grad and value.ndim:

            def scaled(gradient: Tensor) -> Tensor:
                if not losses:
                    return gradient
                loss = losses[0].detach().to(gradient)
                return gradient * 2 * loss / loss.mean()

            value.register_hook(scaled)
        return value

    def _shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(t) and dg/dt, each like t."""
        weight, steepness = self.log_weight.double().exp(), self.log_steepness.double().exp()
        bump = torch.sigmoid(t.unsqueeze(-1) * steepness + self.bias.double())
        return t + (weight * bump).sum(-1), 1 + (weight * steepness * bump * (1 - bump)).sum(-1)

    @full_precision()
    def _normalized(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return n(t) and dn/dt."""
        t = widest(t, self.bias.device)
        value, derivative = self._shape(t)
        (start, end), _ = self._shape(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        return self._hooked((value - start) / (end - start)), self._hooked(derivative / (end - start))

    def log_snr(self, t: Time) -> Tensor:
        """Return λ_0 + (λ_1 - λ_0) n(t)."""
        first, last = self.endpoints.double()
        return first + (last - first) * self._normalized(t)[0]

    def slope(self, t: Time) -> Tensor:
        """Return (λ_1 - λ_0) dn/dt."""
        first, last = self.endpoints.double()
        return (last - first) * self._normalized(t)[1]

    @torch.no_grad()
    def time(self, log_snr: Tensor | float) -> Tensor:
        """Return the inverse of `log_snr`, by bisection to 1e-15; it has no gradient."""
        target = widest(log_snr, self.bias.device)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(52):  # each halves the bracket; 52 are all that float64 can tell apart
            middle = (low + high) / 2
            above = self.log_snr(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2
