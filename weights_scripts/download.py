"""Fetch a model from the hub into its cache.

    python weights_scripts/download.py org/name

The name may end in @REVISION (a branch, a tag or a commit). Prints the folder, whose name is the commit;
`org/name@commit` always means the same model. The code, and the list of files that are fetched, is in
minillm/loading/hub.py. `minillm download` does the same.
"""

import argparse
import sys

from minillm.errors import MinillmError
from minillm.loading.hub import download


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch a model from the hub into its cache.")
    parser.add_argument("model", metavar="org/name[@revision]", help="the model's name, and a branch, tag or commit")
    model = parser.parse_args().model
    try:
        folder = download(model)
    except MinillmError as problem:
        print(f"download: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{model.partition('@')[0]}@{folder.name}\n{folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
