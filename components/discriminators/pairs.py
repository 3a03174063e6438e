"""Discriminators of pairs (x_s, x_t), for denoising diffusion GANs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..layers import Features
from ..precision import wide, widest
from ..schedules import Schedule, over

__all__ = ["NoiseOfPair"]


class NoiseOfPair(nn.Module):
    """D(x_s, x_t, t) of pairs, with x_t given as the noise that leads to it from x_s: ε = (x_t - α_{t|s} x_s)/σ_{t|s}.

    (x_s, x_t) ↔ (x_s, ε) is one-to-one at each t, so the optimal D and the value of the game are those of the pair
    (Xiao et al. 2021, arXiv 2112.07804, eq. 4 and 5). But a real pair's ε is N(0, I) and independent of x_s, for any
    data: if a generator's x_s vary too little around their mean, or belong to another example, ε shows it directly,
    while from x_t the network would first have to learn a denoiser. docs/connections.md has measurements.

    `layers` are the discriminator's hidden layers.

    Arguments:
        discriminator: of (x, given) and its further inputs, such as t and cond.
        schedule: the noising process.
        timesteps: T, where t = i/T and s = (i - 1)/T; at least 1.
    Raises:
        ValueError: timesteps is below 1.
    """

    def __init__(self, discriminator: nn.Module, schedule: Schedule, timesteps: int) -> None:
        super().__init__()
        if timesteps < 1:
            raise ValueError(f"timesteps must be at least 1; got {timesteps}")
        self.discriminator, self.schedule, self.timesteps = discriminator, schedule, timesteps
        self.layers: tuple[str, ...] = tuple(getattr(discriminator, "layers", ()))

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        cond: Tensor | None = None,
        given: Tensor | None = None,
        hidden: Sequence[str] = (),
    ) -> Tensor | tuple[Tensor, Features]:
        """Return the discriminator's logits; with `hidden`, (logits, features by name).

        Arguments:
            x: x_s (B, *event).
            t: (B,) or (), passed on; it may be None for T = 1 only.
            cond: passed on where it is not None.
            given: x_t (B, *event).
            hidden: names out of `layers`.
        Raises:
            ValueError: given is missing, or t is for T > 1.
        """
        if given is None:
            raise ValueError("given must be x_t, of which the pair's noise is computed; got None")
        if t is None and self.timesteps > 1:
            raise ValueError(f"t must be given where timesteps = {self.timesteps} > 1; got None")
        noise = self.noise(x, given, widest(1.0, x.device) if t is None else t)
        optional: dict[str, Any] = {name: value for name, value in (("t", t), ("cond", cond)) if value is not None}
        if hidden:
            optional["hidden"] = hidden
        return self.discriminator(x, given=noise, **optional)

    def noise(self, x_s: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ε = (x_t - α_{t|s} x_s)/σ_{t|s} (B, *event), differentiable in x_s; of a real pair N(0, I)."""
        s = ((widest(t) * self.timesteps).round() - 1) / self.timesteps
        ratio, variance = self.schedule.step(s, t)
        x_s, x_t = wide(x_s), wide(x_t)
        return (x_t - over(ratio, x_s) * x_s) / over(variance.sqrt(), x_s)
