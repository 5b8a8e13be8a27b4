"""The public names: all there, importable at no cost, and the version said once."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tiny

import minillm

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_listed():
    assert {"load", "generate", "perplexity", "calibrate", "sparse_ffn", "Trace", "compare"} <= set(minillm.__all__)
    assert len(set(minillm.__all__)) == len(minillm.__all__)
    for name in minillm.__all__:
        assert callable(getattr(minillm, name)) and name in dir(minillm), name
        assert getattr(minillm, name).__doc__, name
    everything = {}
    exec("from minillm import *", everything)
    assert set(minillm.__all__) <= set(everything)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        minillm.nothing  # noqa: B018
    assert not hasattr(minillm, "numpy")


def test_importing_minillm_and_asking_for_its_version_loads_no_numpy():
    script = "import sys, minillm; dir(minillm); minillm.__version__; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_version_is_that_of_the_package_and_the_types_are_marked(capsys):
    from minillm.cli.main import main

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert minillm.__version__ == project["version"]
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"minillm {minillm.__version__}\n"
    assert (Path(minillm.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("dtype", ["float16", "nothing", None, "int8"])
def test_load_takes_float32_and_float64_and_refuses_the_rest(tmp_path, dtype):
    folder = tiny.folder(tmp_path)
    assert minillm.load(folder).dtype == "float32" and minillm.load(str(folder), "float64").dtype == "float64"
    with pytest.raises(minillm.MinillmError, match="expected float32 or float64"):
        minillm.load(folder, dtype)


def test_the_docstrings_example_runs(tmp_path, capsys):
    """The code in minillm's own docstring, with a tiny model and text."""
    code = "\n".join(line[4:] for line in minillm.__doc__.split("command line\n\n")[1].splitlines())
    code = code.replace('load("default")', f"load({tiny.folder(tmp_path).as_posix()!r})")
    texts = {"calibration": "A cat. The sea.", "test": "A dog saw the sea."}
    exec(re.sub(r'minillm\.embedded_text\("(\w+)"\)', lambda call: repr(texts[call[1]]), code), {})
    assert "perplexity" in capsys.readouterr().out
