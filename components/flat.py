"""Networks of vectors, on images: what they read is flattened, what they return has the images' shape again."""

import torch
from torch import Tensor, nn

from .decoders import MLPDecoder
from .distributions import Distribution
from .encoders import MLPEncoder
from .heads import Head

__all__ = ["Flattened", "ShapedHead", "flat_pair"]


class Flattened(nn.Module):
    """An encoder of vectors as one of anything: x (B, *event) goes to it as (B, d).

    Arguments: encoder, such as `components.encoders.MLPEncoder`, whose `latent` this has too.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = encoder.latent

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Distribution:
        """q(z|x): x (B, *event), cond (B,) long or None."""
        return self.encoder(x.flatten(1), cond)


class ShapedHead(Head):
    """A head over (B, C, H, W) for a decoder of vectors: raw (B, factor C H W) to the distribution of another head.

    Arguments: head, of which this has the factor and the levels; shape (C, H, W) of one event.
    Raises ValueError for raw features of another number.
    """

    def __init__(self, head: Head, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head, self.shape, self.factor = head, tuple(shape), head.factor
        self.levels: int | None = getattr(head, "levels", None)
        self.dimensions = torch.Size(shape).numel()

    def forward(self, raw: Tensor) -> Distribution:
        expected = self.factor * self.dimensions
        if raw.shape[1:] != (expected,):
            raise ValueError(f"raw must be (B, {expected}) for {self.factor} × {self.shape}; got {tuple(raw.shape)}")
        return self.head(raw.unflatten(1, (self.factor * self.shape[0], *self.shape[1:])))


def flat_pair(
    shape: tuple[int, ...], latent: int, head: Head, width: int = 256, depth: int = 3
) -> tuple[Flattened, MLPDecoder]:
    """An encoder and a decoder of residual MLPs for x (B, *shape), with vectors z (B, latent) between them.

    Arguments: head, over (B, *shape); width and depth, of both.
    """
    d = torch.Size(shape).numel()
    encoder = Flattened(MLPEncoder(d, latent, width, depth))
    return encoder, MLPDecoder(latent, d, ShapedHead(head, shape), width, depth)
