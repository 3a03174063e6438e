"""Samples as a person looks at them: a grid of images, a scatter of points or a histogram of numbers."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .files import write_whole

__all__ = ["COLUMNS", "labels_shown", "picture", "save_picture"]

COLUMNS = 16
"""As many classes are shown at most."""
MOST_PIXELS = 4000
"""Of a picture's sides."""
LIMIT = 2.5
"""Axes of data of unit scale reach from -LIMIT to LIMIT."""


def labels_shown(classes: int, rows: int = 8) -> Tensor:
    """Return labels of a grid with a column a class, the first `COLUMNS` of them: (rows × columns,) int64."""
    return torch.arange(min(classes, COLUMNS)).repeat(rows)


def picture(
    x: Tensor,
    limit: float = LIMIT,
    columns: int | None = None,
    mean: tuple[float, ...] = (),
    scale: tuple[float, ...] = (),
) -> Tensor:
    """Draw samples as (3, H, W) in [0, 1], of at most MOST_PIXELS a side.

    - Images (B, C, H, W) in [-1, 1]: a grid. One channel is grey and three are red, green and blue; of any other number
      each channel is a grey tile, an image's channels from left to right (four are not taken for RGB and alpha). A grid
      that would be too large is shrunk by averaging; what is left of its rows then is cut off.
    - Numbers (B, 1): a histogram.
    - Points (B, D): a scatter of the first two dimensions, which the axes name where there are more.

    Arguments:
        limit: of the axes, mean ± limit · scale; where they are given, or fewer than half of the samples lie within,
            the axes have numbers, and in the latter case they span the middle 98% of the samples.
        columns: images in a row; by default as many as make the grid about square.
        mean, scale: of the data's dimensions, as of `Data`; 0 and 1 by default. x is in the data's own values.
    """
    x = x.detach().cpu()
    # In float64: vectors far from 0 differ by less than float32 resolves.
    return _grid(x.float(), columns) if x.ndim == 4 else _plot(x.double().flatten(1), limit, mean, scale)


def save_picture(x: Tensor, path: Path, columns: int | None = None, **how: Any) -> Tensor:
    """Write `picture(x)` as a PNG, whole or not at all, and return it."""
    from torchvision.utils import save_image

    drawn = picture(x, columns=columns, **how)
    write_whole(path, lambda temporary: save_image(drawn, temporary, format="png"))
    return drawn


def _grid(x: Tensor, columns: int | None) -> Tensor:
    from torchvision.utils import make_grid

    x = (x.clamp(-1, 1) + 1) / 2
    # Screens are large, digits are not.
    zoom = max(1, 64 // max(x.shape[2:]))
    if x.shape[1] not in (1, 3):
        # Channels side by side, a grey line between them.
        x = rearrange(F.pad(x, (0, 1), value=0.5), "b c h w -> b 1 h (c w)")[..., :-1]
    height, width = x.shape[2:]
    columns = columns or max(1, round(math.sqrt(len(x) * height / width)))
    rows = math.ceil(len(x) / columns)
    most = (max(1, MOST_PIXELS // rows - 3), max(1, MOST_PIXELS // columns - 3))
    if height * zoom > most[0] or width * zoom > most[1]:
        share = min(most[0] / height, most[1] / width, 1.0)
        size = (max(1, int(height * share)), max(1, int(width * share)))
        x = F.interpolate(x, size=size, mode="area")
    else:
        x = x.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return make_grid(x, nrow=columns, padding=2, pad_value=1.0)[:, :MOST_PIXELS, :MOST_PIXELS]


def _plot(x: Tensor, limit: float, mean: tuple[float, ...], scale: tuple[float, ...]) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, d = x[:, :2], x.shape[1]
    n = shown.shape[1]
    center, spread = x.new_tensor(mean[:n] or [0.0] * n), x.new_tensor(scale[:n] or [1.0] * n)
    low, high = center - limit * spread, center + limit * spread
    finite = shown[shown.isfinite().all(1)]
    inside = ((finite >= low) & (finite <= high)).all(1)
    follow = len(finite) > 0 and inside.double().mean() < 0.5
    if follow:
        low, high = finite.quantile(x.new_tensor([0.01, 0.99]), dim=0)
        margin = 0.1 * (high - low) + 1e-6 * high.abs() + 1e-12
        low, high = low - margin, high + margin
    figure = Figure(figsize=(6, 6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    numbered = follow or bool(scale) or d != 2
    axes = figure.add_axes((0.15, 0.12, 0.82, 0.85) if numbered else (0, 0, 1, 1))
    (left, right), *other = zip(low.tolist(), high.tolist())
    axes.set_xlim(left, right)
    if n == 1:
        if len(finite):  # a density of nothing would be 0/0
            axes.hist(finite[:, 0].numpy(), bins=80, range=(left, right), density=True)
        axes.set(xlabel="x", ylabel="density")
    else:
        axes.scatter(finite[:, 0].numpy(), finite[:, 1].numpy(), s=1, alpha=0.5, linewidths=0)
        axes.set_ylim(*other[0])
        if d > 2:
            axes.set(xlabel=f"dimension 0 of {d}", ylabel=f"dimension 1 of {d}")
    if not numbered:
        axes.set(xticks=[], yticks=[])
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return pixels.view(600, 600, 4)[..., :3].permute(2, 0, 1).float() / 255
