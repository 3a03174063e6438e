"""Augmentations of image batches on their device: differentiable ones for critics, plain ones for data."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

__all__ = ["DiffAugment", "Kind", "horizontal_flip", "random_crop"]

Kind = Literal["color", "translation", "cutout"]


class DiffAugment(nn.Module):
    """Random color, translation and cutout of each image, differentiable in x: (B, C, H, W) in [-1, 1] to the same.

    With u uniform in [0, 1), drawn for each image and each kind, and s the strength:

        color        x + s (u - ½), then m_c + (1 + s (2u - 1)) (x - m_c) with m_c the mean over channels at each pixel,
                     then m + (1 + s (u - ½)) (x - m) with m the mean over the image
        translation  by up to round(s H/8) and round(s W/8) pixels, zeros coming in
        cutout       of a box of round(s H/2) by round(s W/2) pixels, wherever its centre falls in the image, to zero

    For a critic with little data: with `Critic(augment=...)` it is applied to real and fake examples, and the
    generator's gradient passes through it. Strength 0 is the identity, 1 the paper's. Zhao et al. 2020, arXiv
    2006.10738.

    Arguments:
        kinds: applied in the order color, translation, cutout.
        strength: s in [0, 1].
    Raises:
        ValueError: a kind is unknown, or strength is out of range.
    """

    def __init__(self, kinds: Sequence[Kind] = ("color", "translation", "cutout"), strength: float = 1.0) -> None:
        super().__init__()
        _check(kinds, strength)
        self.kinds, self.strength = tuple(kinds), strength

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return x (B, C, H, W) augmented; the generator, on x's device, makes it repeatable. Raises ValueError."""
        _check_images(x)
        if "color" in self.kinds:
            x = self._color(x, generator)
        if "translation" in self.kinds:
            x = self._translation(x, generator)
        return self._cutout(x, generator) if "cutout" in self.kinds else x

    def _color(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        x = x + self.strength * (_uniform(x, generator) - 0.5)
        x = x + self.strength * (2 * _uniform(x, generator) - 1) * (x - x.mean(1, keepdim=True))
        return x + self.strength * (_uniform(x, generator) - 0.5) * (x - x.mean((1, 2, 3), keepdim=True))

    def _translation(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        down, right = (round(self.strength * side / 8) for side in x.shape[2:])
        return _translated(
            x,
            _integers(x, 2 * down + 1, generator) - down,
            _integers(x, 2 * right + 1, generator) - right,
        )

    def _cutout(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        height, width = x.shape[2:]
        high, wide = round(self.strength * height / 2), round(self.strength * width / 2)
        # a box of even side has its centre between two pixels: one more place for it
        top = _integers(x, height + 1 - high % 2, generator) - high // 2
        left = _integers(x, width + 1 - wide % 2, generator) - wide // 2
        rows, columns = _grid(x)
        cut = (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)
        return x.masked_fill(cut, 0.0)


def horizontal_flip(x: Tensor, p: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with probability p: (B, C, H, W) to the same.

    Arguments:
        x: (B, C, H, W).
        p: in [0, 1].
        generator: on x's device.
    Raises:
        ValueError: x is not (B, C, H, W), or p is out of range.
    """
    _check_images(x)
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1]; got {p}")
    return torch.where(_uniform(x, generator) < p, x.flip(3), x)


def random_crop(x: Tensor, padding: int, fill: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Pad each image on all sides, then cut it to its size at a random position: (B, C, H, W) to the same.

    That is, move it by up to `padding` pixels each way.

    Arguments:
        x: (B, C, H, W).
        padding: pixels on each side, at least 0.
        fill: value of the padding.
        generator: on x's device.
    Raises:
        ValueError: x is not (B, C, H, W), or padding is negative.
    """
    _check_images(x)
    if padding < 0:
        raise ValueError(f"padding must not be negative; got {padding}")
    down, right = (_integers(x, 2 * padding + 1, generator) - padding for _ in range(2))
    return _translated(x, down, right, fill)


def _check(kinds: Sequence[Kind], strength: float) -> None:
    """Raise ValueError for invalid arguments of DiffAugment."""
    if not set(kinds) <= set(get_args(Kind)):
        raise ValueError(f"kinds must be some of {', '.join(get_args(Kind))}; got {tuple(kinds)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1]; got {strength}")


def _check_images(x: Tensor) -> None:
    """Raise ValueError unless x is (B, C, H, W)."""
    if x.ndim != 4:
        raise ValueError(f"x must be (B, C, H, W); got shape {tuple(x.shape)}")


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of x's rows (1, 1, H, 1) and columns (1, 1, 1, W)."""
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
    return rearrange(rows, "h -> 1 1 h 1"), rearrange(columns, "w -> 1 1 1 w")


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw (B, 1, 1, 1) uniform in [0, 1), of x's dtype and device."""
    return torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device, dtype=x.dtype)


def _integers(x: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw (B, 1, 1, 1) uniform in 0 ... count - 1."""
    return torch.randint(count, (len(x), 1, 1, 1), generator=generator, device=x.device)


def _translated(x: Tensor, down: Tensor, right: Tensor, fill: float = 0.0) -> Tensor:
    """Return x translated by integer numbers of pixels (B, 1, 1, 1), with `fill` outside the image."""
    _, channels, height, width = x.shape
    rows, columns = _grid(x)
    rows, columns = rows - down, columns - right
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = x.gather(2, rows.clamp(0, height - 1).expand(-1, channels, -1, width))
    moved = moved.gather(3, columns.clamp(0, width - 1).expand(-1, channels, height, -1))
    return torch.where(inside, moved, fill)
