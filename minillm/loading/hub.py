"""org/name[@revision] -> a local folder, through huggingface_hub and its cache.

Two steps, kept apart: ``download`` uses the network, ``resolve`` never does. So nothing is downloaded by a command
that only loads a model, and a run without a network behaves as one with it.

Of a repository only the configuration, the tokenizer and safetensors files are fetched: never pickled weights, never
code. minillm reads no environment variables, but huggingface_hub does: HF_ENDPOINT (another hub), HF_HOME (where the
cache is), HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_DISABLE_TELEMETRY. It is imported only when a name has to be looked up.
"""

import errno
import os
import re
from pathlib import Path

from ..errors import CheckpointError
from .checkpoint import INDEX, SINGLE, checkpoint_tensors
from .embedded import embedded_model, embedded_models
from .fields import read_json

# fetched beside the weights; of those, the files that the index names, or the one of a small model
SMALL_FILES = ["config.json", "generation_config.json", "*.safetensors.index.json",
               "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)


def resolve(source: str | Path) -> Path:
    """The folder of a model: an embedded one by its name, an existing folder, or "org/name[@revision]" from the cache.

    An embedded name wins over a folder of that name in the current directory, which is "./default" (or a Path).
    revision: a branch, a tag or a commit; without one, the main branch as it was when last downloaded.
    Never uses the network. Raises CheckpointError where there is none of the three.
    """
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

    try:
        folder = snapshot_download(
            name["repo"], revision=name["revision"], allow_patterns=SMALL_FILES, local_files_only=True
        )
        missing = not all((Path(folder) / file).exists() for file in _weight_files(Path(folder)))
        found = "only in part in the cache" if missing else ""
    except CheckpointError:
        raise
    except Exception as problem:
        found = "only in part in the cache" if "Incomplete" in type(problem).__name__ else "not in the cache"
    if found:
        raise CheckpointError(f"{source}: is no folder, and {found} of the hub: run `minillm download {source}` first")
    return Path(folder)


def download(repo: str, revision: str | None = None, *, progress: bool = True) -> Path:
    """Fetch "org/name[@revision]" into the hub's cache and return its folder, whose name is the commit.

    Files that the cache already holds are not fetched again: to resume a broken download, repeat it. Without a
    network, a complete copy in the cache is returned. progress: bars on stderr.
    Raises CheckpointError, in one sentence, for every failure.
    """
    name = _NAME.fullmatch(repo)
    if not name or (revision and name["revision"]):
        raise CheckpointError(f"{repo!r} is no name of a model on the hub, expected org/name or org/name@revision")
    revision = revision or name["revision"]
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not progress and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        # The weights come last and from the commit of the first step: a download that was stopped half-way can
        # leave a folder without weights, which nobody loads, but never weights without their tokenizer.
        folder = Path(snapshot_download(name["repo"], revision=revision, allow_patterns=SMALL_FILES))
        for file in _weight_files(folder):
            # Not by snapshot_download: its threads would finish a file of gigabytes before they heed Ctrl-C.
            hf_hub_download(name["repo"], file, revision=folder.name)
    except CheckpointError:
        raise
    except Exception as problem:
        raise CheckpointError(f"{repo}: {_reason(problem, revision)}") from None
    finally:
        if quiet:
            enable_progress_bars()
    checkpoint_tensors(folder)  # refuses now, not at the first load, what is not a checkpoint
    return folder


def _weight_files(folder: Path) -> list[str]:
    """The files that hold the weights, by bare name; checkpoint_tensors refuses all other names of an index."""
    if not (folder / INDEX).exists():
        return [SINGLE]
    listed = read_json(folder / INDEX, CheckpointError).get("weight_map")
    names = {str(name) for name in listed.values()} if isinstance(listed, dict) else ()
    return sorted(name for name in names if re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII))


def _reason(problem: Exception, revision: str | None) -> str:
    """A short reason for an error of huggingface_hub. (In the list, a subclass stands before its base.)"""
    from huggingface_hub import errors

    for kind, reason in (
        (errors.GatedRepoError, "is gated: accept its licence on its web page, then log in with `hf auth login`"),
        (errors.RepositoryNotFoundError, "is not on the hub (or private, and you are not logged in)"),
        (errors.RevisionNotFoundError, f"has no revision {revision!r}, expected a branch, a tag or a commit"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached, and the cache holds no complete copy"),
        (errors.EntryNotFoundError, f"has no {SINGLE} and no {INDEX}, expected weights in safetensors files"),
    ):
        if isinstance(problem, kind):
            return reason
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot be written to the cache ({problem.strerror})"
    return f"cannot be downloaded ({' '.join(str(problem).split())[:300] or type(problem).__name__})"
