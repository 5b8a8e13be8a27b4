"""org/name[@revision] -> a local folder, through huggingface_hub and its cache.

Two steps, kept apart: ``download`` uses the network, ``resolve`` never does. So nothing is downloaded by a command
that only loads a model, and a run without a network behaves as one with it.

Of a repository only the configuration, the tokenizer and safetensors files are fetched: never pickled weights, never
code. minillm reads no environment variables, but huggingface_hub does: HF_ENDPOINT (another hub), HF_HOME (where the
cache is), HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_DISABLE_TELEMETRY. It is imported only when a name has to be looked up.
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import IO

from ..errors import CheckpointError
from .checkpoint import checkpoint_tensors
from .embedded import embedded_model, embedded_models

TIMEOUT = 30.0  # seconds without a sign of life after which a download is given up
START = 60.0  # seconds for the process that downloads to start, on a slow disk
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)


def resolve(source: str | Path) -> Path:
    """The folder of a model: an embedded one by its name, an existing folder, or "org/name[@revision]" from the cache.

    An embedded name wins over a folder of that name in the current directory, which is "./default" (or a Path).
    revision: a branch, a tag or a commit; without one, the main branch as it was when last downloaded.
    Never uses the network. Raises CheckpointError where there is none of the three.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"the model is of type {type(source).__name__}, expected a name or the path of a folder")
    if embedded := embedded_model(source):
        return embedded
    if os.path.isdir(source):  # which, unlike Path.is_dir, answers for every name, and False for ""
        return Path(source)
    name = _NAME.fullmatch(source) if isinstance(source, str) else None
    if os.path.isfile(source) or not name:
        found = "is a file" if os.path.isfile(source) else "does not exist"
        shipped = f"an embedded model ({', '.join(embedded_models()) or 'of which none is installed'})"
        expected = f"expected a folder, {shipped} or a model's name on the hub, org/name"
        raise CheckpointError(f"{str(source)!r}: {found}, {expected}")
    from huggingface_hub import snapshot_download

    from .fetch import SMALL_FILES, weight_files

    try:
        folder = snapshot_download(
            name["repo"], revision=name["revision"], allow_patterns=SMALL_FILES, local_files_only=True
        )
        missing = not all((Path(folder) / file).exists() for file in weight_files(Path(folder)))
        found = "only in part in the cache" if missing else ""
    except CheckpointError:
        raise
    except Exception as problem:
        found = "only in part in the cache" if "Incomplete" in type(problem).__name__ else "not in the cache"
    if found:
        raise CheckpointError(f"{source}: is no folder, and {found} of the hub: run `minillm download {source}` first")
    return Path(folder)


def download(repo: str, revision: str | None = None, *, progress: bool = True, timeout: float = TIMEOUT) -> Path:
    """Fetch "org/name[@revision]" into the hub's cache and return its folder, whose name is the commit.

    Files that the cache already holds are not fetched again: to resume a broken download, repeat it. Without a
    network, a complete copy in the cache is returned. progress: bars on stderr. timeout: seconds without a sign of
    life of the hub after which it is given up; a large file takes as long as it needs.
    Raises CheckpointError, in one sentence, for every failure.
    """
    import subprocess  # here: the first token of a local model does not wait for what only a download needs

    name = _NAME.fullmatch(repo)
    if not name or (revision and name["revision"]):
        raise CheckpointError(f"{repo!r} is no name of a model on the hub, expected org/name or org/name@revision")
    revision = revision or name["revision"]
    if not 0 < timeout < 1e6:
        raise CheckpointError(f"the timeout is {timeout}, expected a number of seconds above 0")
    package = str(Path(__file__).parents[2])
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])}
    if not progress:
        variables["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    command = [sys.executable, "-P", "-m", f"{__package__}.fetch", name["repo"], *([revision] if revision else [])]
    # Its stdin says nothing, and ends when this process does. Ctrl-C is this process's affair alone: a new session.
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            folder = Path(_end_of(process.stdout, name["repo"], timeout))
        finally:  # also after Ctrl-C
            process.kill()
    checkpoint_tensors(folder)  # refuses now, not at the first load, what is not a checkpoint
    return folder


def _end_of(output: IO[bytes], repo: str, timeout: float) -> str:
    """The folder that a process of fetch.py says it has fetched, read from its output.

    Raises CheckpointError for its error, and where no sign of life comes for ``timeout`` seconds.
    """
    import json
    import queue
    import threading

    lines: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        for line in output:
            if line.endswith(b"\n"):  # else the process was killed while it wrote
                lines.put(line)
        lines.put(b"{}")  # the end of the process

    threading.Thread(target=listen, daemon=True).start()
    waits, deadline = "", time.monotonic() + START + timeout
    while True:
        try:
            line = json.loads(lines.get(timeout=max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            raise CheckpointError(f"{repo}: {_silence(timeout, waits)}") from None
        if "folder" in line:
            return line["folder"]
        if "error" in line or not line:
            raise CheckpointError(line.get("error", f"{repo}: the process that downloads has ended without a word"))
        waits = f"{waits} {line.get('waits', '')}".strip()[-1_000:]
        if "sign" in line:
            waits, deadline = "", time.monotonic() + timeout


def _silence(timeout: float, waits: str) -> str:
    """Why a download was given up, from what huggingface_hub last said about waiting."""
    given_up = f"given up after {timeout:g} seconds (--timeout)"
    if "Rate limited" in waits or "429" in waits:
        wait = re.search(r"Waiting ([\d.]+)", waits)
        asked = f"asks to wait {wait[1]} seconds" if wait else "refuses for now"
        return f"the hub {asked}, with status 429 (too many requests): {given_up}"
    if status := re.search(r"\b5\d\d\b", waits):
        return f"the hub answers with an error of its own, status {status[0]}: {given_up}"
    return f"the hub sent nothing more: {given_up}" + (f"; the last words were {waits[-200:]!r}" if waits else "")
