"""Run the command line in a process of its own, and read its errors."""

import re
import subprocess
import sys


def process(*arguments: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "minillm", *map(str, arguments)], **pipes)


def one_sentence(err: str) -> str:
    """The one sentence on stderr, without its "minillm: "; notes may stand before it."""
    line = "\n".join(line for line in err.splitlines() if not line.startswith("minillm: note: ")).strip()
    assert line.startswith("minillm: ") and "\n" not in line and "Traceback" not in line, err
    assert not re.search(r"[.!?] [A-Z]", line), err
    return line.removeprefix("minillm: ")
