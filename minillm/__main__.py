"""``minillm`` and ``python -m minillm``: the command line, with Ctrl-C understood from the first moment on."""

import sys


def start() -> int:
    """Run the command of sys.argv; returns the exit status. (``main`` is imported here: Ctrl-C may come before it.)"""
    try:
        from .cli.main import main

        return main()
    except KeyboardInterrupt:
        print("\nminillm: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(start())
