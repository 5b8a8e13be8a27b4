"""The command download: a model from the hub into its cache."""

from __future__ import annotations

import argparse
import json

from ..errors import show
from . import flags
from .shared import say


def add(commands: flags.Commands) -> None:
    """Add the command of this file."""
    download = flags.command(commands, "download", command_download)
    download.add_argument("repository", metavar="ORG/NAME[@REVISION]")
    download.add_argument(
        "--timeout", type=flags.seconds, default=30.0, metavar="SECONDS",
        help="give up when nothing arrives from the hub for so long (default: 30)",
    )  # fmt: skip


def command_download(a: argparse.Namespace) -> int:
    """Fetch a model into the hub's cache."""
    from ..loading.hub import download

    folder = download(a.repository, timeout=a.timeout)
    print(json.dumps({"folder": show(folder), "commit": folder.name}) if a.json else show(folder))
    say(f"commit {folder.name}: pin it as {a.repository.partition('@')[0]}@{folder.name}")
    return 0
