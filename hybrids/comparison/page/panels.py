"""Images of samples, reconstructions and interpolations for a report."""

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
from .charts import INK, literal, new_figure, png

__all__ = ["Panel", "even", "render_panels", "render_sheet"]


@dataclass(frozen=True)
class Panel:
    """An image of one recipe's results, (3, H, W) in [0, 1]; kind is samples, reconstructions or interpolations."""

    kind: str
    title: str
    note: str
    alt: str
    pixels: Tensor

    @property
    def png(self) -> bytes:
        """The image as a PNG file."""
        content = io.BytesIO()
        array = (self.pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(content, format="png", optimize=True)
        return content.getvalue()

    @property
    def wide(self) -> bool:
        return self.pixels.shape[2] > 1.5 * self.pixels.shape[1]


def render_panels(report: Mapping, out: Path) -> list[Panel]:
    """Render real samples, then samples, reconstructions and interpolations of each recipe's first run with samples."""
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
    """Load a file of samples; an empty dictionary where there is none."""
    return load_file(out / name) if name and (out / name).is_file() else {}


def _panels_of(title: str, note: str, tensors: Mapping[str, Tensor], shape: torch.Size, limit: float) -> list[Panel]:
    """Render those of a run's tensors that have the data's shape."""
    panels, images = [], len(shape) == 3
    # Values that are not finite are rendered as 0, the middle grey, and counted in the notes.
    finite = {name: tensor.nan_to_num(0, 0, 0) for name, tensor in tensors.items()}

    def drawable(x: Tensor | None) -> bool:
        return x is not None and (images or shape == (2,)) and x.shape[1:] == shape and len(x) > 0

    x = tensors.get("samples", torch.empty(0))[: 64 if images else 4000]
    if drawable(x):
        lost = int((~x.flatten(1).isfinite().all(1)).sum())
        notes = ", ".join(filter(None, (note, f"{lost} of {len(x)} diverged" if lost else "")))
        alt = f"{len(x)} {'images' if images else 'points'}: {', '.join(filter(None, (title, notes)))}"
        pixels = picture(finite["samples"][: len(x)]) if images else _cloud(x, limit)
        panels.append(Panel("samples", title, notes, alt, pixels))
    first, again, between = (finite.get(key) for key in ("originals", "reconstructions", "interpolations"))
    if first is not None and again is not None and drawable(first) and first.shape == again.shape:
        n = min(len(first), 16)
        pixels = picture(torch.cat([first[:n], again[:n]]), columns=n) if images else _paths(
            torch.stack([first[:n], again[:n]], 1), limit)  # fmt: skip
        alt = f"{n} held-out examples and their reconstructions: {title}, {note}"
        panels.append(Panel("reconstructions", title, note, alt, pixels))
    if between is not None and between.ndim > 2 and drawable(between.flatten(0, 1)):
        pixels = picture(between.flatten(0, 1), columns=between.shape[1]) if images else _paths(between, limit)
        alt = f"{len(between)} interpolations in {between.shape[1]} steps: {title}, {note}"
        panels.append(Panel("interpolations", title, note, alt, pixels))
    return panels


def _cloud(x: Tensor, limit: float) -> Tensor:
    """Render points (N, 2), smaller ones where there are more."""
    across, up = x.float().T.tolist()
    size = min(12.0, max(2.5, 8000 / len(x)))
    return _plane(lambda axes: axes.scatter(across, up, s=size, color="#0072B2", alpha=0.45, linewidths=0), limit)


def _paths(x: Tensor, limit: float) -> Tensor:
    """Render paths (N, T, 2) in the plane, the first point of each filled."""

    def plot(axes: Axes) -> None:
        for path in x.float():
            axes.plot(*path.T.tolist(), color="#0072B2", linewidth=1, marker="o", markersize=4, markerfacecolor="white")
            axes.plot(*path[0].tolist(), color="#0072B2", marker="o", markersize=4)

    return _plane(plot, limit)


def _plane(plot: Callable[[Axes], object], limit: float) -> Tensor:
    """Render `plot(axes)` on the plane from -limit to limit, as (3, H, W) in [0, 1]."""
    fig = new_figure(4, 4, whole=True)
    axes = fig.add_axes((0, 0, 1, 1))
    plot(axes)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_axis_off()
    fig.canvas.draw()
    pixels = bytearray(fig.canvas.buffer_rgba())  # type: ignore[attr-defined]
    width, height = fig.canvas.get_width_height()
    image = torch.frombuffer(pixels, dtype=torch.uint8).view(height, width, 4)
    return image[..., :3].permute(2, 0, 1).float() / 255


def even(n: int, most: int = 5) -> int:
    """Return the number of columns, at most `most`, that divides n panels into rows of nearly equal length."""
    return -(-n // max(1, -(-n // most)))


def render_sheet(shown: list[Panel]) -> bytes:
    """Render panels of one kind side by side, as PNG."""
    wide = shown[0].wide
    across = min(len(shown), 2) if wide else even(len(shown))
    down = -(-len(shown) // across)
    side = 5.5 if wide else 2.75
    aspect = max(panel.pixels.shape[1] / panel.pixels.shape[2] for panel in shown)
    fig = new_figure(side * across, down * (side * aspect + 0.35))
    for i, panel in enumerate(shown):
        axes = fig.add_subplot(down, across, i + 1)
        axes.imshow(panel.pixels.permute(1, 2, 0).numpy(), interpolation="antialiased")
        axes.set_axis_off()
        title = panel.title + (f" ({panel.note})" if panel.note else "")
        axes.set_title(literal(title, 48 if wide else 30), size=9, color=INK, loc="left", pad=4)
    return png(fig)
