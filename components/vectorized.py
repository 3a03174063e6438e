"""Backbones and discriminators of vectors, on images and sequences."""

from typing import Any

from torch import Tensor, nn

from .layers import check_event

__all__ = ["Vectorized"]


class Vectorized(nn.Module):
    """A network of vectors (B, d) as one of x (B, *shape): what is like x goes in flat, and comes out in x's shape.

    It serves a backbone (x_t, t, cond) as well as a discriminator (x, t, cond, given), whose logits (B,) are left as
    they are: small images need no convolutions. Arguments: network, such as `components.backbones.MLP` or
    `components.discriminators.MLPDiscriminator`; shape, of one x. Raises ValueError for x not (B, *shape).
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shape = network, tuple(shape)

    def forward(self, x: Tensor, *inputs: Any, **given: Any) -> Tensor:
        """What the network returns: x (B, *shape), then what it takes; of that, given and estimate are (B, *shape)."""
        check_event("x", x, self.shape)
        for name in {"given", "estimate"} & given.keys():
            if given[name] is not None:
                check_event(name, given[name], self.shape)
                given[name] = given[name].flatten(1)
        y = self.network(x.flatten(1), *inputs, **given)
        return y if y.ndim == 1 else y.unflatten(1, (-1, *self.shape[1:]))
