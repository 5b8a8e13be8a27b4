"""Scripts of the repository as modules: they lie in no package."""

from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_script(path: str | Path) -> ModuleType:
    """The script at that path, counted from the repository's root, run as a module.

    It is compiled here and not by an import, which would write a __pycache__ beside the script while another process
    of the test suite checks that a notebook leaves no file behind.
    """
    file = ROOT / path
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
    return module
