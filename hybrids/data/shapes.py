"""Colour images of one drawn shape each, with the factors that they were drawn from."""

import math

import torch
from torch import Tensor

from .source import Data

__all__ = ["FACTORS", "KINDS", "draw", "shapes"]

KINDS = ("circle", "ring", "triangle", "square", "star")
FACTORS = ("kind", "hue", "size", "x", "y", "rotation")

# Tips, and the distance of the corners between them from the centre; a circle and a ring have none.
_TIPS = torch.tensor([1.0, 1.0, 3.0, 4.0, 5.0])
_INNER = torch.tensor([1.0, 1.0, math.cos(math.pi / 3), math.cos(math.pi / 4), 0.45])
BACKGROUND = 25 / 255


def draw(factors: Tensor, resolution: int = 32) -> Tensor:
    """Antialiased images (N, 3, R, R) uint8 of factors (N, 6).

    kind: index in KINDS; hue in [0, 1); size: circumradius, and x, y: centre, in units of the image's side; rotation in
    radians.
    """
    kind, hue, size, x, y, rotation = factors[:, :, None, None].unbind(1)
    centres = (torch.arange(resolution) + 0.5) / resolution
    right, down = (centres - x) / size, (centres[:, None] - y) / size
    # The signed distance to the outline, in units of the size.
    radius = torch.hypot(right, down)
    distance = _edge(radius, torch.atan2(down, right) - rotation, kind.long())
    distance = torch.where(kind == 0, radius - 1, distance)
    distance = torch.where(kind == 1, (radius - 0.75).abs() - 0.25, distance)
    # The share of a pixel that a straight edge at this distance covers, were it parallel to the pixel's side.
    cover = (0.5 - distance * size * resolution).clamp(0, 1).unsqueeze(1)
    image = BACKGROUND + cover * (_colour(hue.flatten())[:, :, None, None] - BACKGROUND)
    return (image * 255).round().to(torch.uint8)


def _edge(radius: Tensor, angle: Tensor, kind: Tensor) -> Tensor:
    """Signed distance to the line from the nearest tip to the corner beside it."""
    half, inner = math.pi / _TIPS[kind], _INNER[kind]
    # Fold the plane onto the half sector of one tip, which lies at (1, 0).
    folded = (torch.remainder(angle + half, 2 * half) - half).abs()
    corner_x, corner_y = inner * half.cos(), inner * half.sin()
    length = torch.hypot(1 - corner_x, corner_y).clamp_min(1e-6)
    return (corner_y * (radius * folded.cos() - 1) + (1 - corner_x) * radius * folded.sin()) / length


def _colour(hue: Tensor) -> Tensor:
    """(N,) in [0, 1) → (N, 3): HSV of saturation 0.8 and value 1."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    return 1 - 0.8 * torch.minimum(k, 4 - k).clamp(0, 1)


def _factors(n: int, generator: torch.Generator) -> Tensor:
    """(n, 6): everything uniform; the whole shape within the image; rotations that look different."""
    kind = torch.randint(len(KINDS), (n,), generator=generator)
    hue, size, x, y, rotation = torch.rand(5, n, generator=generator)
    size = 0.15 + 0.2 * size
    turn = torch.where(kind < 2, 0.0, 2 * math.pi / _TIPS[kind])
    return torch.stack([kind, hue, size, size + (1 - 2 * size) * x, size + (1 - 2 * size) * y, turn * rotation], 1)


def shapes(resolution: int = 32, examples: int = 10_000, held_out: int = 1000, seed: int = 0) -> Data:
    """Drawn shapes of five kinds; the label is the kind, all factors are in `Data.factors`.

    Raises ValueError for a resolution below 8, where the kinds look alike.
    """
    if resolution < 8:
        raise ValueError(f"--data shapes needs --resolution 8 or more; got {resolution}")
    factors = _factors(examples + held_out, torch.Generator().manual_seed(seed))
    # In parts of about 4 M pixels, for memory.
    x = torch.cat([draw(part, resolution) for part in factors.split(max(1, 2**22 // resolution**2))])
    kinds = factors[:, 0].long()
    return Data(
        "shapes",
        (3, resolution, resolution),
        len(KINDS),
        256,
        x[:examples],
        kinds[:examples],
        x[examples:],
        kinds[examples:],
        class_names=KINDS,
        factors=factors[:examples],
        held_out_factors=factors[examples:],
        factor_names=FACTORS,
    )
