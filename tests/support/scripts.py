"""Scripts of the repository as modules: they lie in no package."""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_script(path: str | Path) -> ModuleType:
    """The script at that path, counted from the repository's root, run as a module.

    As for ``python SCRIPT``, the script's folder is the first place where modules are searched, so that it finds the
    modules beside it. It is compiled here and no import writes bytecode: a __pycache__ beside the script would appear
    while another process of the test suite checks that a notebook leaves no file behind.
    """
    file = ROOT / path
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    folder, writes_no_bytecode = str(file.parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    try:
        exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = writes_no_bytecode
    return module
