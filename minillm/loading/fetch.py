"""One download from the hub, in a process of its own: python -m minillm.loading.fetch org/name [revision]

huggingface_hub does the work: requests, redirects, resuming, the cache. It may wait for a hub that does not answer, or
for as long as a hub asks it to (a "Retry-After" of a day), and a thread that waits cannot be ended. A process can. So
hub.py starts this one, listens to the lines that it writes to stdout, and ends it when they stop:

    {"sign": "started"}                something arrived: the start, a file that is complete, a piece of a file
    {"waits": "429 Too Many ..."}      what huggingface_hub says when it waits to try again: no sign of life
    {"folder": ...}, {"error": ...}    the end

Progress bars go to stderr, as ever.
"""

import errno
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ..errors import CheckpointError, MinillmError
from ..fields import read_json
from ..foreign import START, foreign_content, foreign_weights
from .checkpoint import INDEX, SINGLE
from .tensors import read_header

# fetched beside the weights; of those, the files that the index names, or the one of a small model
SMALL_FILES = ["config.json", "generation_config.json", "*.safetensors.index.json",
               "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
PIECE = 1 << 20  # bytes that huggingface_hub writes at once, each a sign of life; its own 10 MB may take minutes
UNANNOUNCED = 100_000_000  # bytes at most of a file whose size was not announced
FILE_LIST = "its list of files"
SIGN_EVERY = 0.2  # seconds at least between two signs


def weight_files(folder: Path) -> list[str]:
    """The files that hold the weights, by bare name; checkpoint_tensors refuses all other names of an index."""
    if not (folder / INDEX).exists():
        return [SINGLE]
    listed = read_json(folder / INDEX, CheckpointError).get("weight_map")
    names = {str(name) for name in listed.values()} if isinstance(listed, dict) else ()
    return sorted(name for name in names if re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII))


def fetch(repo: str, revision: str | None) -> Path:
    """Fetch a model into the cache; every file is looked at before the next. Raises CheckpointError in one sentence.

    A file that is not what its name says (a web page in its place) is taken out of the cache again, so that the next
    download asks for it anew.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    wanted = FILE_LIST
    try:
        # The weights come last and from the commit of the first step: a download that was stopped half-way can
        # leave a folder without weights, which nobody loads, but never weights without their tokenizer.
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=SMALL_FILES))
        tell(sign="small files")
        for path in sorted(folder.glob("*.json")):
            check_content(path, repo)
        for wanted in weight_files(folder):
            # Not by snapshot_download: its threads would finish a file of gigabytes before they heed Ctrl-C.
            path = Path(hf_hub_download(repo, wanted, revision=folder.name))
            tell(sign=wanted)
            check_content(path, repo)
    except MinillmError:
        raise
    except Exception as problem:
        raise CheckpointError(f"{repo}: {reason(problem, repo, revision, wanted)}") from None
    return folder


def check_content(path: Path, repo: str) -> None:
    """Raise CheckpointError, and take the file out of the cache, where it is not of the kind that its name says."""
    try:
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.name in ("config.json", INDEX):
            read_json(path, CheckpointError)
        else:  # of tens of megabytes, maybe; it is read where it is needed
            with open(path, "rb") as file:
                start = file.read(START)
            if foreign := foreign_content(start, "a JSON file"):
                raise CheckpointError(f"{path}: {foreign}")
    except CheckpointError as problem:
        commit = path.parent
        for left in (Path(os.path.realpath(path)), path, commit.parents[1] / "trees" / f"{commit.name}.json"):
            with suppress(OSError):
                left.unlink()
        found = str(problem).removeprefix(f"{path}").removeprefix(": ")
        raise CheckpointError(f"{repo}: what the hub sent as {path.name} cannot be used: {found}") from None


def causes(problem: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised for."""
    seen: list[BaseException] = []
    while problem is not None and problem not in seen:
        seen.append(problem)
        yield problem
        problem = problem.__cause__ or problem.__context__


def reason(problem: Exception, repo: str, revision: str | None, wanted: str) -> str:
    """A short reason for an error of huggingface_hub, which was fetching ``wanted``."""
    from huggingface_hub import constants, errors

    chain = list(causes(problem))
    for kind, said in (  # a subclass stands before its base
        (errors.GatedRepoError, "is gated: accept its licence on its web page, then log in with `hf auth login`"),
        (errors.RepositoryNotFoundError, "is not on the hub (or private, and you are not logged in)"),
        (errors.RevisionNotFoundError, f"has no revision {revision!r}, expected a branch, a tag or a commit"),
    ):
        if any(isinstance(each, kind) for each in chain):
            return said
    for each in chain:
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"cannot be written to the cache ({each.strerror})"
        if isinstance(each, errors.EntryNotFoundError) and not isinstance(each, errors.LocalEntryNotFoundError):
            return no_such_file(repo, revision, wanted)
        response = getattr(each, "response", None)
        if getattr(response, "status_code", 0) == 404 and wanted != FILE_LIST:
            return no_such_file(repo, revision, wanted)
        if response is not None and getattr(response, "status_code", 0) >= 400:
            return refused(response.status_code, response.headers.get("Retry-After"))
        if isinstance(each, ValueError) and "JSON" in type(each).__name__:
            return f"the hub sent something that is no JSON, expected {wanted}: is it a web page of the network's?"
    if isinstance(problem, KeyError | TypeError | AttributeError):  # huggingface_hub looked for a field
        return f"the hub sent JSON of another kind, expected {wanted}"
    said = " ".join(f"{type(each).__name__} {each}" for each in chain)
    if isinstance(problem, OverflowError):  # from time.sleep
        return refused(429, "very many")
    if re.search("ConsistencyCheck|Consistency check|IncompleteRead|peer closed|RemoteProtocol", said):
        return f"the hub sent only a part of {wanted}: run the command again, which goes on from there"
    if re.search("Timeout|timed out", said):
        return f"the hub does not answer, expected {wanted}"
    if re.search("ConnectionReset|ReadError|reset by peer|Connection aborted", said):
        return f"the hub broke off the connection, expected {wanted}: run the command again"
    if isinstance(problem, errors.LocalEntryNotFoundError):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return f"{offline}, and the cache holds no complete copy"
    return f"cannot be downloaded ({' '.join(str(problem).split())[:300] or type(problem).__name__})"


def refused(status: int, wait: str | None) -> str:
    """What an answer with a status of 400 or more means."""
    if status == 429:
        when = f"in {wait[:20]} seconds" if wait else "later"
        return f"the hub refuses for now, with status 429 (too many requests): try again {when}"
    if status in (401, 403):
        return f"the hub refuses access, with status {status}: log in with `hf auth login`, or ask its owner"
    if status >= 500:
        return f"the hub answers with an error of its own, status {status}: try again later"
    return f"the hub refuses, with status {status}: is the name right?"


def no_such_file(repo: str, revision: str | None, wanted: str) -> str:
    """That a file is missing on the hub; in place of the weights, what other weights are there."""
    if wanted == FILE_LIST:
        return "has not all files that its own list names: try again later"
    if wanted != SINGLE:
        return f"has no {wanted}, which {INDEX} names"
    from huggingface_hub import list_repo_files

    other = None
    with suppress(Exception):  # this is only to say more
        other = foreign_weights(list_repo_files(repo, revision=revision))
    return f"has no {SINGLE} and no {INDEX}, expected weights in safetensors files" + (f"; it {other}" if other else "")


# ---- the process -----------------------------------------------------------------------------------------------------

_stdout, _last_sign = sys.stdout, 0.0


def tell(**line: str) -> None:
    """Write one line for hub.py."""
    with suppress(ValueError):  # a thread that tells after the end
        print(json.dumps(line), file=_stdout, flush=True)


class Waits(logging.Handler):
    """Tells what huggingface_hub would print when it waits and tries again."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(waits=" ".join(record.getMessage().split())[:300])


def watch_progress() -> None:
    """Have huggingface_hub say when bytes arrive, and when it waits."""
    from huggingface_hub import constants
    from huggingface_hub.utils import tqdm
    from huggingface_hub.utils.logging import get_logger

    constants.DOWNLOAD_CHUNK_SIZE = PIECE
    update = tqdm.update

    def update_and_tell(self: tqdm, n: float = 1) -> bool | None:
        global _last_sign
        arrived = vars(self)["arrived"] = vars(self).get("arrived", self.n) + n
        most = 2 * (self.total or UNANNOUNCED) + PIECE  # twice: some bars count what is fetched and what is written
        if arrived > most:
            raise ValueError(f"the hub sends more than {most:,} bytes, expected {self.total or 'much less'}")
        if n > 0 and time.monotonic() - _last_sign > SIGN_EVERY:
            _last_sign = time.monotonic()
            tell(sign="bytes")
        return update(self, n)

    type.__setattr__(tqdm, "update", update_and_tell)  # every bar counts what arrives, shown or not
    library = get_logger()
    library.handlers, library.propagate = [Waits(logging.WARNING)], False


def end_with_parent() -> None:
    """End this process when its stdin ends: the process that started it is gone, and nobody would read the result."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Fetch argv[1], of the revision argv[2], and tell how it ends."""
    global _stdout
    _stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")  # stdout for these lines alone, whatever a library prints
    os.dup2(2, 1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    watch_progress()
    import_module("huggingface_hub.hf_api")  # takes a while, in which nothing can arrive
    tell(sign="started")
    try:
        tell(folder=str(fetch(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
    except MinillmError as error:
        tell(error=str(error))


if __name__ == "__main__":
    main()
