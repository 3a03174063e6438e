"""The table itself: every row of it is tested, or waits for its model."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = range(1, 43)


def checks():
    """(file, function, rows that it checks) of every test of a statement."""
    for path in sorted(HERE.glob("test_*_theory.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
                mine = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "row"]
                if mine:
                    yield path.name, node, {call.args[0].value for call in mine}


def test_every_row_is_tested_in_one_file_or_pending(pending):
    homes = {}
    for name, _, rows in checks():
        for number in rows:
            homes.setdefault(number, set()).add(name)
    assert sorted([*homes, *pending]) == list(ROWS)
    assert {number: files for number, files in homes.items() if len(files) > 1} == {}


def test_every_test_of_a_row_says_its_statement_and_every_row_its_source():
    """The first sentence is the statement; in one test of each row at least a name and a year follow."""
    sourced = set()
    for name, node, rows in checks():
        said = " ".join((ast.get_docstring(node) or "").split())
        statement, _, rest = said.partition(". ")
        assert len(statement) > 15, f"{name}: {node.name} has no statement; got {said!r}"
        if re.search(r"[A-Z]\w+ (& \w+ )?\d{4}", rest):
            sourced |= rows
    assert {number for _, _, rows in checks() for number in rows} == sourced


@pytest.mark.parametrize("got, given", [
    (1.0, {"expected": 2.0, "tolerance": 0.5}), (float("nan"), {"expected": 1.0, "tolerance": 9.0}),
    (1.0, {"expected": 2.0, "relative": 0.4}), (1.0, {"expected": 2.0, "standard_error": 0.2}),
    (float("inf"), {"expected": 1.0, "tolerance": 9.0}), (2.0, {"at_most": 1.0}), (1.0, {"at_least": 2.0}),
    (float("nan"), {"at_most": 1.0}), ([1.0, 3.0], {"expected": 1.0, "tolerance": 1.0}),
    (2.2, {"expected": 2.2 + 1e-8, "tolerance": 1e-9}),
])  # fmt: skip
def test_what_does_not_fit_fails(checked, got, given):
    check, lines = checked
    with pytest.raises(AssertionError, match="row 1, "):
        check(1, got, **given)
    assert lines[-1].verdict == "NO"


@pytest.mark.parametrize("got, given", [
    (1.0, {"expected": 2.0, "tolerance": 1.0}), (1.0, {"expected": 2.0, "relative": 0.5}),
    (1.0, {"expected": 2.0, "standard_error": 0.25}), (float("inf"), {"expected": float("inf"), "tolerance": 0.0}),
    (1.0, {"at_most": 1.0}), (1.5, {"at_most": 1.0, "tolerance": 0.5}), (1.0, {"at_least": 1.0}),
    (0.5, {"at_least": 1.0, "standard_error": 0.125}), ([1.0, 3.0], {"expected": 2.0, "tolerance": 1.0}),
])  # fmt: skip
def test_what_fits_passes(checked, got, given):
    check, lines = checked
    assert check(1, got, **given) is got and lines[-1].verdict == "yes"


@pytest.mark.parametrize("given", [{}, {"expected": 1.0}, {"expected": 1.0, "at_most": 1.0, "tolerance": 1.0},
                                   {"expected": 1.0, "tolerance": 1.0, "relative": 1.0}])  # fmt: skip
def test_a_check_without_one_bound_and_one_tolerance_is_refused(checked, given):
    with pytest.raises(ValueError, match="give one of expected, at_most and at_least, and one tolerance"):
        checked[0](1, 1.0, **given)


def test_the_table_shows_what_was_found_and_what_is_pending(checked, show, pending):
    check, lines = checked
    check(7, 1.25, 1.0, 0.5, words="a number")
    said = show(lines)
    assert re.search(r"a number +1 +1\.25 +0\.5  yes", said)
    assert all(re.search(rf"^ *{number}  ", said, re.MULTILINE) for number in pending) and "pending" in said
