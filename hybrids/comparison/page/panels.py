"""Samples, reconstructions and interpolations of a report as a person looks at them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...pictures import picture
from .drawing import INK, Picture, figure, literal, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "even", "panels", "sheets"]

_SHOWN = {"image": 64, "points": 4000}


@dataclass(frozen=True)
class Panel:
    """What one recipe drew, as (3, H, W) in [0, 1]; of `kind` samples, reconstructions or interpolations."""

    kind: str
    title: str
    note: str
    alt: str
    pixels: Tensor

    @property
    def png(self) -> bytes:
        """As a file."""
        from PIL import Image

        kept = io.BytesIO()
        array = (self.pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(kept, format="png", optimize=True)
        return kept.getvalue()


def _tensors(out: Path, name: str | None) -> dict[str, Tensor]:
    """A file of samples, or nothing where there is none."""
    from safetensors.torch import load_file

    return load_file(out / name) if name and (out / name).is_file() else {}


def _drawable(x: Tensor, shape: torch.Size) -> bool:
    return (x.ndim == 4 or (x.ndim == 2 and x.shape[1] == 2)) and x.shape[1:] == shape and len(x) > 0


def _pairs(originals: Tensor, reconstructions: Tensor, limit: float) -> Tensor:
    """Images above their reconstructions; of points, a line from each to its reconstruction."""
    n = min(len(originals), len(reconstructions), 16)
    if originals.ndim == 4:
        return picture(torch.cat([originals[:n], reconstructions[:n]]), columns=n)
    return _paths(torch.stack([originals[:n], reconstructions[:n]], 1), limit)


def _steps(x: Tensor, limit: float) -> Tensor:
    """A row of images for each interpolation; of points, a path for each."""
    return picture(x.flatten(0, 1), columns=x.shape[1]) if x.ndim == 5 else _paths(x, limit)


def _cloud(x: Tensor, limit: float) -> Tensor:
    """Points (N, 2), the smaller the more there are."""
    drawn = figure(4, 4, whole=True)
    axes = drawn.add_axes((0, 0, 1, 1))
    size = min(12.0, max(2.5, 8000 / len(x)))
    across, up = x.float().T.tolist()
    axes.scatter(across, up, s=size, color="#0072B2", alpha=0.45, linewidths=0)
    return _framed(drawn, axes, limit)


def _paths(x: Tensor, limit: float) -> Tensor:
    """Paths (N, T, 2) through the plane, their first point filled."""
    drawn = figure(4, 4, whole=True)
    axes = drawn.add_axes((0, 0, 1, 1))
    for path in x.float():
        axes.plot(*path.T.tolist(), color="#0072B2", linewidth=1, marker="o", markersize=4, markerfacecolor="white")
        axes.plot(*path[0].tolist(), color="#0072B2", marker="o", markersize=4)
    return _framed(drawn, axes, limit)


def _framed(drawn: Figure, axes: Axes, limit: float) -> Tensor:
    """The plane from -limit to limit as (3, H, W) in [0, 1]."""
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_axis_off()
    drawn.canvas.draw()
    pixels = bytearray(drawn.canvas.buffer_rgba())  # type: ignore[attr-defined]
    width, height = drawn.canvas.get_width_height()
    image = torch.frombuffer(pixels, dtype=torch.uint8).view(height, width, 4)
    return image[..., :3].permute(2, 0, 1).float() / 255


def panels(report: Mapping, out: Path) -> list[Panel]:
    """Real samples first, then those of each recipe's first run that left any; its reconstructions, interpolations."""
    shape = torch.Size(report["shape"])
    real = _tensors(out, report.get("real_samples")).get("samples", torch.empty(0))
    limit = 2.5
    if shape == (2,) and len(real):
        limit = min(6.0, max(1.0, 1.2 * float(real.abs().nan_to_num(0, 0).max())))
    sources = [("Real data", "", {"samples": real})]
    for recipe in report["recipes"]:
        for run in recipe["runs"]:
            tensors = _tensors(out, run.get("samples"))
            if tensors:
                sources.append((recipe["title"], f"seed {run['seed']}", tensors))
                break
    made = []
    for title, note, tensors in sources:
        x = tensors.get("samples", torch.empty(0))[: _SHOWN["image" if len(shape) == 3 else "points"]]
        if _drawable(x, shape):
            lost = int((~x.flatten(1).isfinite().all(1)).sum())
            # What diverged is shown as the grey in the middle of the range, and said.
            told = ", ".join(filter(None, (note, f"{lost} of {len(x)} diverged" if lost else "")))
            what = f"{len(x)} {'images' if x.ndim == 4 else 'points'}: {title}{', ' if told else ''}{told}"
            pixels = picture(x.nan_to_num(0, 0, 0)) if x.ndim == 4 else _cloud(x, limit)
            made.append(Panel("samples", title, told, what, pixels))
        first, again, between = (tensors.get(key) for key in ("originals", "reconstructions", "interpolations"))
        if first is not None and again is not None and _drawable(first, shape) and first.shape == again.shape:
            pixels = _pairs(first.nan_to_num(0, 0, 0), again.nan_to_num(0, 0, 0), limit)
            alt = f"{min(16, len(first))} held-out examples and their reconstructions: {title}, {note}"
            made.append(Panel("reconstructions", title, note, alt, pixels))
        if between is not None and between.ndim > 2 and _drawable(between.flatten(0, 1), shape):
            alt = f"{len(between)} interpolations in {between.shape[1]} steps: {title}, {note}"
            made.append(Panel("interpolations", title, note, alt, _steps(between.nan_to_num(0, 0, 0), limit)))
    return made


def even(n: int, most: int = 5) -> int:
    """How many of n are beside each other, so that no row is much shorter than the others."""
    rows = max(1, -(-n // most))
    return -(-n // rows)


def sheets(made: list[Panel]) -> list[Picture]:
    """Panels of a kind beside each other on one sheet, for those who want a file."""
    kinds = dict.fromkeys(panel.kind for panel in made)
    return [_sheet(kind, [panel for panel in made if panel.kind == kind]) for kind in kinds]


def _sheet(kind: str, shown: list[Panel]) -> Picture:
    wide = shown[0].pixels.shape[2] > 1.5 * shown[0].pixels.shape[1]
    across = min(len(shown), 2) if wide else even(len(shown))
    down = -(-len(shown) // across)
    side = 5.5 if wide else 2.75
    aspect = max(panel.pixels.shape[1] / panel.pixels.shape[2] for panel in shown)
    drawn = figure(side * across, down * (side * aspect + 0.35))
    for i, panel in enumerate(shown):
        axes = drawn.add_subplot(down, across, i + 1)
        axes.imshow(panel.pixels.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axes.set_axis_off()
        title = panel.title + (f" ({panel.note})" if panel.note else "")
        axes.set_title(literal(title, 48 if wide else 30), size=9, color=INK, loc="left", pad=4)
    alt = f"{kind.capitalize()} beside each other: {', '.join(panel.title for panel in shown)}"
    return Picture(f"{kind}.png", png(drawn), kind.capitalize(), alt, round(drawn.get_figwidth() * 100))
