"""Samples, reconstructions and interpolations of a report as a person looks at them."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ...pictures import picture
from .charts import INK, figure, literal, png

__all__ = ["Panel", "draw_panels", "draw_sheet", "even"]


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
        """The pixels as a file."""
        content = io.BytesIO()
        array = (self.pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(content, format="png", optimize=True)
        return content.getvalue()

    @property
    def wide(self) -> bool:
        return self.pixels.shape[2] > 1.5 * self.pixels.shape[1]


def draw_panels(report: Mapping, out: Path) -> list[Panel]:
    """Draw real samples, then samples, reconstructions and interpolations of each recipe's first run that left any."""
    shape = torch.Size(report["shape"])
    real = _tensors(out, report.get("real_samples")).get("samples", torch.empty(0))
    limit = 2.5
    if shape == (2,) and len(real):
        limit = min(6.0, max(1.0, 1.2 * float(real.abs().nan_to_num(0, 0).max())))
    sources = [("Real data", "", {"samples": real})]
    for recipe in report["recipes"]:
        runs = ((run, _tensors(out, run.get("samples"))) for run in recipe["runs"])
        sources += [(recipe["title"], f"seed {run['seed']}", tensors) for run, tensors in runs if tensors][:1]
    return [panel for source in sources for panel in _panels_of(*source, shape, limit)]


def _tensors(out: Path, name: str | None) -> dict[str, Tensor]:
    """Load a file of samples; nothing where there is none."""
    return load_file(out / name) if name and (out / name).is_file() else {}


def _panels_of(title: str, note: str, tensors: Mapping[str, Tensor], shape: torch.Size, limit: float) -> list[Panel]:
    """The panels of one run's tensors, of those that are of the data's shape."""
    drawn, images = [], len(shape) == 3
    # What diverged is drawn as the grey in the middle of the range, and named.
    finite = {name: tensor.nan_to_num(0, 0, 0) for name, tensor in tensors.items()}

    def drawable(x: Tensor | None) -> bool:
        return x is not None and (images or shape == (2,)) and x.shape[1:] == shape and len(x) > 0

    x = tensors.get("samples", torch.empty(0))[: 64 if images else 4000]
    if drawable(x):
        lost = int((~x.flatten(1).isfinite().all(1)).sum())
        notes = ", ".join(filter(None, (note, f"{lost} of {len(x)} diverged" if lost else "")))
        alt = f"{len(x)} {'images' if images else 'points'}: {', '.join(filter(None, (title, notes)))}"
        pixels = picture(finite["samples"][: len(x)]) if images else _cloud(x, limit)
        drawn.append(Panel("samples", title, notes, alt, pixels))
    first, again, between = (finite.get(key) for key in ("originals", "reconstructions", "interpolations"))
    if first is not None and again is not None and drawable(first) and first.shape == again.shape:
        n = min(len(first), 16)
        pixels = picture(torch.cat([first[:n], again[:n]]), columns=n) if images else _paths(
            torch.stack([first[:n], again[:n]], 1), limit)  # fmt: skip
        alt = f"{n} held-out examples and their reconstructions: {title}, {note}"
        drawn.append(Panel("reconstructions", title, note, alt, pixels))
    if between is not None and between.ndim > 2 and drawable(between.flatten(0, 1)):
        pixels = picture(between.flatten(0, 1), columns=between.shape[1]) if images else _paths(between, limit)
        alt = f"{len(between)} interpolations in {between.shape[1]} steps: {title}, {note}"
        drawn.append(Panel("interpolations", title, note, alt, pixels))
    return drawn


def _cloud(x: Tensor, limit: float) -> Tensor:
    """Draw points (N, 2), the smaller the more there are."""
    across, up = x.float().T.tolist()
    size = min(12.0, max(2.5, 8000 / len(x)))
    return _plane(lambda axes: axes.scatter(across, up, s=size, color="#0072B2", alpha=0.45, linewidths=0), limit)


def _paths(x: Tensor, limit: float) -> Tensor:
    """Draw paths (N, T, 2) through the plane, their first point filled."""

    def draw(axes: Axes) -> None:
        for path in x.float():
            axes.plot(*path.T.tolist(), color="#0072B2", linewidth=1, marker="o", markersize=4, markerfacecolor="white")
            axes.plot(*path[0].tolist(), color="#0072B2", marker="o", markersize=4)

    return _plane(draw, limit)


def _plane(draw: Callable[[Axes], object], limit: float) -> Tensor:
    """What `draw(axes)` leaves on the plane from -limit to limit, as (3, H, W) in [0, 1]."""
    drawn = figure(4, 4, whole=True)
    axes = drawn.add_axes((0, 0, 1, 1))
    draw(axes)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_axis_off()
    drawn.canvas.draw()
    pixels = bytearray(drawn.canvas.buffer_rgba())  # type: ignore[attr-defined]
    width, height = drawn.canvas.get_width_height()
    image = torch.frombuffer(pixels, dtype=torch.uint8).view(height, width, 4)
    return image[..., :3].permute(2, 0, 1).float() / 255


def even(n: int, most: int = 5) -> int:
    """Return how many of n to put beside each other, so that no row is much shorter than the others."""
    return -(-n // max(1, -(-n // most)))


def draw_sheet(shown: list[Panel]) -> bytes:
    """Draw panels of a kind beside each other on one sheet, for those who want a file, as PNG."""
    wide = shown[0].wide
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
    return png(drawn)
