"""The report of a comparison as people read it: a page, a table and pictures, out of report.json and saved samples."""

from collections.abc import Mapping
from pathlib import Path

from ...files import write_whole

__all__ = ["KINDS", "write_report"]

KINDS = ("samples.png", "reconstructions.png", "interpolations.png", "axes.png", "sampling.png", "training.png",
         "coverage-sharpness.png")  # fmt: skip
"""The pictures that a report may have; one that was written before and can no longer be drawn is removed."""


def write_report(report: Mapping, out: Path) -> Path:
    """Write OUT/report.html, OUT/table.csv and OUT/figures/*.png; return the page's path.

    Arguments: report, what report.json holds (format 1); out, the report folder, where the samples are that it names.
    The same report and samples give the same bytes. A recipe that failed, a metric that is missing or not finite, a
    run without curve or samples leave a note or a gap, never an error.

    Raises `ValueError` for another format.
    """
    if report.get("format") != 1:
        raise ValueError(f"report must be of format 1; got {report.get('format')!r}")
    from .charts import charts
    from .columns import columns
    from .comma import comma_separated
    from .page import page
    from .panels import panels, sheets

    found, made = columns(report), panels(report, out)
    drawn = charts(report, found)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name in KINDS:
        (figures / name).unlink(missing_ok=True)
    for picture in (*sheets(made), *drawn):
        write_whole(figures / picture.name, picture.png)
    write_whole(out / "table.csv", comma_separated(report).encode())
    write_whole(out / "report.html", page(report, found, drawn, made).encode())
    return out / "report.html"
