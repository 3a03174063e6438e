"""A recipe shows its algorithm first: docstring, players and losses on one screen, then networks, settings, main."""

import ast
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
SCREEN = 45


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_algorithm_is_on_the_first_screen(path):
    """The docstring has the steps of the algorithm and its source; `players` ends within 45 lines."""
    tree = ast.parse(path.read_text())
    title, blank, *box = (ast.get_docstring(tree) or "").splitlines()
    assert title.endswith(".") and not blank and 2 <= len(box) <= 7
    assert "minimize" in "".join(box)
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert names[:2] == ["players", "networks"] and names[-2:] == ["Settings", "build"]
    assert tree.body[-1].test.left.id == "__name__"
    (players,) = [node for node in tree.body if getattr(node, "name", "") == "players"]
    assert players.end_lineno <= SCREEN
