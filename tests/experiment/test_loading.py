"""What `load` and the scripts may run: the project's recipes, and files that the user names."""

import pytest

from hybrids.experiment import Refusal, load_recipe


def test_nothing_of_the_current_folder_is_run(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "stranger.py").write_text("raise SystemError('was run')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="'stranger' is not in .*give its file with --recipe FILE"):
        load_recipe("stranger")
    with pytest.raises(SystemError, match="was run"):
        load_recipe("stranger", "recipes/stranger.py")


@pytest.mark.parametrize(
    ("name", "file", "why"),
    [
        ("../evil", None, "must be a plain name"),
        ("mine", "mine.py", "has no file mine.py"),
        ("mine", __file__.replace(".py", ".txt"), "has no file"),
    ],
)
def test_what_is_no_recipe_is_refused(name, file, why):
    with pytest.raises(Refusal, match=why):
        load_recipe(name, file)
