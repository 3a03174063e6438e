"""Things of a user's own, named on a command line: FILE.py, or FILE.py:NAME. Only what the user names is ever run."""

import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["is_own", "load_module", "own"]


def load_module(path: str | os.PathLike[str]) -> ModuleType:
    """Run a Python file and return its module; the folder of the file is not put on sys.path.

    Raises ValueError where the file is not there, or is no Python file.
    """
    path = Path(path).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"expected a Python file; got {path}, which {'is none' if path.is_file() else 'is not there'}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"hybrids_own_{digest}_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name while they are made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def is_own(text: str) -> bool:
    """Whether a text is FILE.py:NAME."""
    return bool(re.search(r"\.py:[A-Za-z_]\w*$", text))


def own(text: str) -> Any:
    """Return what FILE.py:NAME names. Raises ValueError where the file, or the name in it, is not there."""
    path, _, name = text.rpartition(":")
    module = load_module(path)
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name}; got {text!r}")
    return getattr(module, name)
