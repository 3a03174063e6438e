"""Samples as a person looks at them: a grid of images, or a scatter of points."""

from pathlib import Path

import torch
from torch import Tensor

from .files import write_whole

__all__ = ["COLUMNS", "labels_shown", "picture", "save_picture"]

COLUMNS = 16
"""As many classes are shown at most."""


def labels_shown(classes: int, rows: int = 8) -> Tensor:
    """Labels of a grid with a column a class, the first `COLUMNS` of them: (rows × columns,) int64."""
    return torch.arange(min(classes, COLUMNS)).repeat(rows)


def picture(x: Tensor, limit: float = 2.5, columns: int | None = None) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as a grid, points (B, 2) as a scatter: (3, H, W) in [0, 1].

    Arguments: limit, of the scatter's axes; columns, of the grid, by default as many as rows.
    """
    return _grid(x, columns or max(1, round(len(x) ** 0.5))) if x.ndim == 4 else _scatter(x, limit)


def save_picture(x: Tensor, path: Path, limit: float = 2.5, columns: int | None = None) -> Tensor:
    """Write `picture(x)` as a PNG, whole or not at all, and return it."""
    from torchvision.utils import save_image

    drawn = picture(x, limit, columns)
    write_whole(path, lambda temporary: save_image(drawn, temporary, format="png"))
    return drawn


def _grid(x: Tensor, columns: int) -> Tensor:
    from torchvision.utils import make_grid

    x = x.detach().float().cpu().clamp(-1, 1)
    if x.shape[1] not in (1, 3):
        x = x[:, :1]
    # Screens are large, digits are not.
    zoom = max(1, 64 // x.shape[-1])
    x = x.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return make_grid((x + 1) / 2, nrow=columns, padding=2, pad_value=1.0)


def _scatter(x: Tensor, limit: float) -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    points = x.detach().float().cpu()[:, :2]
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=1, alpha=0.5, linewidths=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return pixels.view(600, 600, 4)[..., :3].permute(2, 0, 1).float() / 255
