"""What all pictures of a report share: its colours, a figure without pyplot, and PNGs that come out the same again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "colour", "figure", "legend", "literal", "marker", "png", "tidy"]

# Okabe and Ito's colours, which colour-blind readers tell apart, without yellow and black; two darker ones besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A51A3", "#7F6A3A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, MUTED, LINE = "#1f2328", "#6b7280", "#e5e7eb"


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its file name, the PNG, and what to say below it and to those who cannot see it."""

    name: str
    png: bytes
    caption: str
    alt: str
    width: int


def colour(i: int) -> str:
    """The colour of the report's i-th recipe, in every chart."""
    return _COLOURS[i % len(_COLOURS)]


def marker(i: int) -> str:
    """Its marker: colour and marker together are its own among 64 recipes."""
    return _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]


def literal(text: str, length: int = 28) -> str:
    """A name as matplotlib shows it as it is: no formula between dollars, no leading underscore that hides it."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def figure(width: float, height: float, whole: bool = False) -> Figure:
    """An empty figure of so many inches on white, which suits light and dark pages as a card.

    whole: its only axes fill it, and nothing is laid out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = None if whole else ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    drawn = Figure(figsize=(width, height), dpi=150, facecolor="white", layout=layout)
    FigureCanvasAgg(drawn)
    return drawn


def tidy(axes: Axes) -> None:
    """Thin lines, small type, a quiet grid, no box."""
    axes.grid(True, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#c4c9d0")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=INK)


def legend(on: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """The names of what is drawn, right of everything, as soon as there is one."""
    if handles:
        on.legend(
            handles, labels, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK, handlelength=1.6
        )


def png(drawn: Figure) -> bytes:
    """The figure as PNG; the same bytes for the same figure."""
    kept = io.BytesIO()
    drawn.savefig(kept, format="png", metadata={"Software": None})
    return kept.getvalue()
