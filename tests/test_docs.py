"""docs/ is what the source says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
THEORY = ROOT / "docs" / "theory.md"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_list_of_components_is_up_to_date() -> None:
    page = script("list_components").page()
    assert page.count("\n| `") > 100
    assert (ROOT / "docs" / "components.md").read_text() == page, "run python scripts/list_components.py"


def checking(number: int) -> set[str]:
    """The files of tests/theory that check a row."""
    files = (ROOT / "tests" / "theory").glob("test_*_theory.py")
    return {path.name for path in files if re.search(rf"\brow\(\s*{number},", path.read_text())}


def test_the_theory_s_table_has_every_row_and_links_its_test() -> None:
    """A row with a link says what breaks it; one without is pending, and nothing checks it."""
    lines = re.findall(
        r"^\| (?:\[(\d+)\]\(\S*?([^/]*)\)|(\d+)) \|.*\| (.*?) \| (.*?) ?\|$", THEORY.read_text(), re.MULTILINE
    )
    assert [int(linked or plain) for linked, _, plain, *_ in lines] == list(range(1, 43))
    for linked, file, plain, measured, breaks in lines:
        assert checking(int(linked or plain)) == ({file} if linked else set())
        assert (bool(breaks), measured == "pending") == (bool(linked), bool(plain))


def test_the_theory_s_links_lead_somewhere() -> None:
    """Links to rows lead to the file that checks them; pictures are there, and small."""
    page = THEORY.read_text()
    for number, target in re.findall(r"\[(\d+)\]\(([^)\s]+)\)", page):
        assert checking(int(number)) == {Path(target).name}, f"row {number}"
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page) if not link.startswith("http")]
    assert len(links) > 60 and all((THEORY.parent / link).exists() for link in links)
    pictures = re.findall(r"!\[.*\]\(([^)\s]+)\)", page)
    assert {Path(picture).stem for picture in pictures} == set(script("theory_figures").FIGURES)
    assert all((THEORY.parent / picture).stat().st_size < 80_000 for picture in pictures)


@pytest.mark.slow
def test_the_theory_s_pictures_are_drawn(tmp_path: Path) -> None:
    for name, draw in script("theory_figures").FIGURES.items():
        draw(tmp_path / f"{name}.png")
        assert 10_000 < (tmp_path / f"{name}.png").stat().st_size < 80_000
