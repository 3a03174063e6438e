"""The theory table: what each statement says to expect, what was found, and how near that had to be."""

import re
import textwrap
from dataclasses import dataclass
from itertools import groupby

import pytest
import torch

PENDING = {
    34: "The consistency function of Gaussian data is the ODE's end point (comes with consistency models)",
    37: "With an exact Gaussian latent score the cross-entropy is its closed form (comes with the joint latent bound)",
}
"""Rows whose model comes later."""


@dataclass(frozen=True)
class Line:
    """One number of a row: words say which, where a row has several."""

    row: int
    statement: str
    words: str
    expected: str
    got: str
    tolerance: str
    verdict: str


LINES = pytest.StashKey[list[Line]]()


@pytest.fixture
def row(request):
    """Check one number of a row of the theory table, and record it: see `checking`."""
    return checking(request.function.__doc__, request.config.stash.setdefault(LINES, []))


@pytest.fixture
def checked():
    """The same, and lines of its own, which no table shows."""
    lines = []
    return checking("Statement. Source.", lines), lines


@pytest.fixture
def pending():
    """The rows that wait for their model, by number."""
    return PENDING


@pytest.fixture
def show():
    """What prints the table."""
    return table


def checking(doc, lines):
    """A function that checks numbers of a test whose docstring is doc, and appends a line for each."""
    statement = re.split(r"\.(?:\s|$)", " ".join((doc or "").split()), maxsplit=1)[0]

    def check(
        number,
        got,
        expected=None,
        tolerance=None,
        *,
        relative=None,
        standard_error=None,
        at_most=None,
        at_least=None,
        words="",
    ):
        """|got - expected| <= tolerance, or got <= at_most + tolerance, or got >= at_least - tolerance.

        The tolerance is given, or relative × |expected|, or 4 × standard_error (of a Monte Carlo mean); for the
        inequalities it is 0 if nothing is said. All may be tensors that broadcast: the element that fits worst is
        recorded. A row may be checked several times; words say what each number is. Returns got.
        """
        bounds = {"": expected, "<= ": at_most, ">= ": at_least}
        signs = [name for name, value in bounds.items() if value is not None]
        given = [value for value in (tolerance, relative, standard_error) if value is not None]
        if len(signs) != 1 or len(given) > 1 or (expected is not None and not given):
            raise ValueError("give one of expected, at_most and at_least, and one tolerance")
        sign = signs[0]
        found, bound = torch.broadcast_tensors(_double(got), _double(bounds[sign]))
        allowed = torch.zeros(())
        if tolerance is not None:
            allowed = _double(tolerance)
        elif relative is not None:
            allowed = relative * bound.abs()
        elif standard_error is not None:
            allowed = 4 * _double(standard_error)
        allowed = allowed.expand(found.shape)
        off = bound - found if at_least is not None else found - bound
        # inf - inf is no difference.
        off = (off.abs() if expected is not None else off).masked_fill(found == bound, 0.0)
        # NaN is the largest of all to argmax, and no comparison holds for it.
        worst = int((off - allowed).flatten().argmax())
        one, wanted, distance, room = (values.flatten()[worst].item() for values in (found, bound, off, allowed))
        ok = distance <= room
        near = "" if not given else f"{room:.2g}" if standard_error is None else f"4 × {room / 4:.2g}"
        verdict = "yes" if ok else "NO"
        lines.append(Line(number, statement, words, sign + _number(wanted), _number(one), near, verdict))
        assert ok, f"row {number}, {statement}: {words} got {one!r}, expected {sign}{wanted!r} ± {near or 0}"
        return got

    return check


def _double(value):
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=torch.float64)
    return value.detach().to("cpu", torch.float64)


def _number(value):
    return f"{value:.2g}" if abs(value) < 1e-9 else f"{value:.7g}"


def table(lines, width=72):
    """The rows in their order, pending ones among them: row, statement, expected, got, tolerance, ok."""
    form = f"{{:>3}}  {{:<{width}}}  {{:>13}}  {{:>13}}  {{:>12}}  {{}}"
    out = [form.format("row", "statement", "expected", "got", "tolerance", "ok")]
    waiting = [Line(number, text, "", "", "", "", "pending") for number, text in PENDING.items()]
    in_order = sorted([*lines, *waiting], key=lambda line: line.row)
    for (number, statement), group in groupby(in_order, key=lambda line: (line.row, line.statement)):
        some = list(group)
        heading = textwrap.wrap(statement, width, subsequent_indent="  ")
        alone = len(some) == 1 and not some[0].words
        labels = heading[-1:] if alone else [f"    {textwrap.shorten(line.words, width - 4)}" for line in some]
        for i, part in enumerate(heading[:-1] if alone else heading):
            out.append(form.format(number if i == 0 else "", part, "", "", "", "").rstrip())
        for label, line in zip(labels, some):
            shown = number if alone and len(heading) == 1 else ""
            out.append(form.format(shown, label, line.expected, line.got, line.tolerance, line.verdict).rstrip())
    return "\n".join(out)


def pytest_addoption(parser):
    parser.addoption("--theory-table", action="store_true", help="print what each row of the theory expected and got")


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("theory_table", default=False):
        terminalreporter.section("theory")
        terminalreporter.write_line(table(config.stash.get(LINES, [])))
