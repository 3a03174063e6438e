"""docs/ is what the source says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_list_of_components_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("list_components", ROOT / "scripts" / "list_components.py")
    assert spec is not None and spec.loader is not None
    listing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(listing)
    page = listing.page()
    assert page.count("\n| `") > 100
    assert (ROOT / "docs" / "components.md").read_text() == page, "run python scripts/list_components.py"
