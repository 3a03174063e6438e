"""Imports point downwards, recipes stand alone, and importing us loads nothing heavy."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OURS = ("components", "hybrids", "recipes", "scripts", "tests")
HEAVY = ("sklearn", "matplotlib", "timm", "datasets", "torchvision", "accelerate", "yaml", "tensorboard",
          "diffusers", "torchdiffeq", "safetensors", "scipy", "pandas", "PIL")  # fmt: skip


def files(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, anywhere in it."""
    package = [*path.relative_to(REPOSITORY).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            names = {f"{module}.{alias.name}" for alias in node.names}
            # `from . import file` needs the file, and nothing that its folder's __init__ holds.
            alone = all((REPOSITORY / name.replace(".", "/")).with_suffix(".py").is_file() for name in names)
            found.update(names if alone else {module, *names})
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} & set(OURS)


@pytest.mark.parametrize(
    ("folder", "below"),
    [
        ("components", {"components"}),
        ("hybrids", {"components", "hybrids"}),
        ("recipes", {"components", "hybrids"}),
        ("scripts", {"components", "hybrids"}),
    ],
)
def test_imports_point_downwards(folder, below):
    """recipes, scripts → hybrids → components → nothing of ours; no recipe imports a recipe, nothing a script."""
    assert files(folder)
    for path in files(folder):
        assert ours(path) <= below, f"{path.relative_to(REPOSITORY)} imports {ours(path) - below}"
        siblings = {other.stem for other in files(folder)} if folder in ("recipes", "scripts") else set()
        assert not {name.split(".")[0] for name in imported(path)} & siblings, path


def test_the_reader_of_imports_reads_relative_ones(tmp_path, monkeypatch):
    """What the test above rests on."""
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    path = tmp_path / "hybrids" / "data" / "points.py"
    path.parent.mkdir(parents=True)
    path.with_name("file.py").write_text("")
    path.write_text(
        "from . import source\nfrom . import file\nfrom ..game import train\nimport a.b\n"
        "def f():\n    from components import x\n"
    )
    assert imported(path) == {"hybrids.data", "hybrids.data.source", "hybrids.data.file", "hybrids.game",
                              "hybrids.game.train", "a.b", "components", "components.x"}  # fmt: skip


def module_of(path: Path) -> str:
    """The full name of a file's module; a package's is that of its __init__."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(folder: str) -> list[set[str]]:
    """The groups of files that import each other, anywhere in them."""
    modules = {module_of(path): path for path in files(folder)}
    edges = {name: imported(path) & set(modules) - {name} for name, path in modules.items()}

    def reached(start: str) -> set[str]:
        waiting, known = [start], set()
        while waiting:
            new = edges[waiting.pop()] - known
            known |= new
            waiting += new
        return known

    reach = {name: reached(name) for name in modules}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in modules}
    return [set(group) for group in groups if group]


@pytest.mark.parametrize("folder", ["components", "hybrids"])
def test_no_circle_of_imports(folder):
    """A room is read from its lowest file upwards: no two files need each other."""
    assert circles(folder) == []


def test_a_circle_of_imports_is_found(tmp_path, monkeypatch):
    """What the test above rests on."""
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "components").mkdir()
    for name, text in (("a", "from .b import x"), ("b", "from .c import x"), ("c", "from .a import x"), ("d", "")):
        (tmp_path / "components" / f"{name}.py").write_text(text)
    assert circles("components") == [{"components.a", "components.b", "components.c"}]
    (tmp_path / "components" / "c.py").write_text("from .d import x")
    assert circles("components") == []


def test_recipes_are_no_package():
    """Every .py in recipes/ is a runnable recipe; recipes, scripts and tests are no packages."""
    for folder in ("recipes", "scripts", "tests"):
        assert not list((REPOSITORY / folder).rglob("__init__.py")), folder
    for path in files("recipes"):
        assert path.parent.name == "recipes" and "experiment.main(Settings, build)" in path.read_text(), path


def test_no_folder_shadows_datasets():
    assert [path for folder in OURS for path in (REPOSITORY / folder).rglob("datasets*")] == []


def dependencies() -> set[str]:
    """The import names of what pyproject.toml asks for."""
    import re
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values()
                                            for name in extra)]  # fmt: skip
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower().replace("-", "_") for line in required}
    return names | {"yaml", "sklearn", "numpy", "PIL", "components", "hybrids"}


IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
UNIMPORTED = {
    "pytest-xdist": "scripts/test runs the tests in two processes",
    "ruff": "scripts/test checks the style",
    "mypy": "scripts/test checks the types",
    "tensorboard": "torch.utils.tensorboard imports it",
}


def test_what_is_declared_is_imported():
    """Every dependency is imported somewhere, lazily or not, or stands above with its reason."""
    import re
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values()
                                            for name in extra)]  # fmt: skip
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0].lower() for line in required}
    sources = [path for folder in OURS for path in files(folder)]
    used = {name.split(".")[0] for path in sources for name in imported(path)}
    # What a test does without where it is missing.
    used |= {name for path in sources for name in re.findall(r'importorskip\("(\w+)', path.read_text())}
    unused = {name for name in names if IMPORTED_AS.get(name, name).replace("-", "_") not in used}
    assert unused == set(UNIMPORTED)


@pytest.mark.parametrize("folder", ["scripts", "recipes"])
def test_no_script_shadows_a_module(folder):
    """Its folder comes first on sys.path: a `scripts/inspect.py` would break `import torch`."""
    taken = set(sys.stdlib_module_names) | dependencies()
    assert "inspect" in taken and "torch" in taken and "scikit_learn" in taken
    names = {path.stem for path in (REPOSITORY / folder).iterdir()}
    assert names and not names & taken
    # Nor anything else that is installed here.
    for path in files(folder):
        spec = importlib.util.find_spec(path.stem)
        assert spec is None or spec.origin is None or Path(spec.origin).parent == path.parent, path


@pytest.mark.slow
def test_importing_loads_nothing_heavy(tmp_path):
    """Packages are imported where they are used: the parts run where some are missing and a run starts at once."""
    lines = [
        "import sys, components, hybrids, hybrids.data, hybrids.experiment, hybrids.evaluation, hybrids.models",
        "import components.backbones, components.discriminators, components.samplers, components.losses",
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))",
        "from hybrids.experiment import load_recipe",
        f"[load_recipe(name) for name in {[path.stem for path in files('recipes')]!r}]",
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))",
    ]
    lines += [
        # A run, up to its first step: `Readable` is called where training begins.
        "from hybrids.experiment.run import run",
        f"run.Readable = lambda batches: sys.exit(print(sorted(set({HEAVY!r}) & set(sys.modules))))",
        "recipe = load_recipe('vae')",
        "hybrids.experiment.main(recipe.Settings, recipe.build, ['--device', 'cpu', '--out', sys.argv[1]])",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[:2] == ["[]", "[]"] and printed[-1] == str(["accelerate", "safetensors", "yaml"])
