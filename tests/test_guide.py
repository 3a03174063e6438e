"""Every snippet of docs/guide.md runs, in order."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


def test_the_guide_s_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(snippets) >= 10
    names = {"__name__": "guide"}
    for i, snippet in enumerate(snippets):
        exec(compile(snippet, f"guide.md, snippet {i}", "exec"), names)
    # Each part of the page made what it says.
    for name in ("images", "few", "many", "samples", "between", "again", "edited", "sample"):
        assert names[name].shape[1:] == (1, 8, 8) and names[name].isfinite().all(), name
    assert (names["sample"][..., :4, :] == names["x"][..., :4, :]).all()
