"""Write docs/components.md: every public part, its signature, its paper and its test, from the docstrings.

python scripts/list_components.py [--check]
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import components

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "components.md"
HEAD = """# The parts

Every public part of `components`, made by `scripts/list_components.py` from the docstrings; the suite holds it equal.
A paper is an arXiv number. A test is the file that holds the part to its statement.
"""


def modules() -> list[ModuleType]:
    """The modules of `components`, a folder counting as one."""
    names = [info.name for info in pkgutil.iter_modules(components.__path__)]
    return [importlib.import_module(f"components.{name}") for name in sorted(names)]


def signature(part: Callable[..., Any]) -> str:
    """`(argument=default, …)`, without types, which the source says better."""
    words = []
    for p in inspect.signature(part).parameters.values():
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = "" if p.default is p.empty else f"={_short(p.default)}"
        words.append(f"{star}{p.name}{default}")
    return f"({', '.join(words)})"


def _short(value: Any) -> str:
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def values(module: ModuleType) -> dict[str, str]:
    """The docstrings of a module's constants: strings that follow an assignment."""
    body = ast.parse(inspect.getsource(module)).body
    return {
        first.targets[0].id: second.value.value
        for first, second in pairwise(body)
        if isinstance(first, ast.Assign) and isinstance(first.targets[0], ast.Name)
        and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
    }  # fmt: skip


def sentence(text: str) -> str:
    """The first sentence of a docstring."""
    first = text.split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[a-z)\]]) ?[.:](?: |$)", first)[0].rstrip(".")


def papers(text: str) -> str:
    """The arXiv numbers that a docstring cites, in their order."""
    found = re.findall(r"\b\d{4}\.\d{4,5}\b", text)
    return ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in dict.fromkeys(found))


def tests(name: str) -> str:
    """The test file that speaks of the part most."""
    counts = {
        path: len(re.findall(rf"\b{re.escape(name)}\b", path.read_text()))
        for path in (ROOT / "tests").rglob("*.py")
        if path.parent.name != "evaluation"
    }
    best = max(sorted(counts), key=lambda path: (counts[path], path.name.startswith("test_")))
    if not counts[best]:
        return ""
    return f"[{best.stem}](../{best.relative_to(ROOT).as_posix()})"


def page() -> str:
    """The whole page."""
    blocks = [HEAD]
    for module in modules():
        constants = values(module)
        rows = []
        for name in sorted(getattr(module, "__all__", []), key=str.lower):
            part = getattr(module, name)
            documented = inspect.isclass(part) or inspect.isfunction(part)
            if not documented and name not in constants:
                continue
            text = inspect.getdoc(part) or "" if documented else constants[name]
            about, call = (cell.replace("|", "\\|") for cell in (sentence(text), signature(part) if documented else ""))
            rows.append(f"| `{name}{call}` | {about} | {papers(text)} | {tests(name)} |")
        if rows:
            title = module.__name__.removeprefix("components.")
            about = (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
            table = "\n".join(["| part | what it is | paper | test |", "|---|---|---|---|", *rows])
            blocks.append(f"## {title}\n\n{about}\n\n{table}\n")
    return "\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/components.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    arguments = parser.parse_args()
    text = page()
    if arguments.check:
        sys.exit(0 if PAGE.exists() and PAGE.read_text() == text else 1)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    print(f"{PAGE}: {text.count(chr(10) + '| `')} parts")


if __name__ == "__main__":
    main()
