"""``python -m minillm`` is the command ``minillm``."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
