"""The scripts of weights_scripts/ as modules: they lie in no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "weights_scripts"


def load_script(name: str) -> ModuleType:
    """weights_scripts/{name}.py, run as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
