"""The embedded models and two texts: they come with the package and need no network.

    default                            a small Llama, trained by this project
    default-silu, -relu, -relu2, ...   smaller ones, which differ in the activation only
    texts "calibration" and "test"     without a common document: one to find thresholds, the other to score them

An embedded name always means the embedded model, also where the current directory has a folder of that name. Such a
folder is "./default", or a Path, which always means a folder.

(No NumPy here: the command line asks for a model's folder before BLAS is loaded. And no `importlib.resources`, which
would lengthen every start to find the same folder.)
"""

from pathlib import Path

from ..errors import MinillmError

DATA = Path(__file__).parents[1] / "data"


def embedded_models() -> list[str]:
    """The names of the embedded models, "default" first: the folders of minillm/data that hold a config.json."""
    return sorted(path.parent.name for path in DATA.glob("*/config.json"))


def embedded_model(source: object) -> Path | None:
    """The folder of an embedded model; None where ``source`` is not exactly the name of one."""
    return DATA / source if isinstance(source, str) and source in embedded_models() else None


def embedded_text(name: str) -> str:
    """The embedded text "calibration" or "test", documents separated by lines "<|endoftext|>".

    Raises MinillmError for any other name.
    """
    names = sorted(path.stem for path in (DATA / "text").glob("*.txt"))
    if name not in names:
        expected = f"expected one of {', '.join(names)}" if names else f"and {DATA / 'text'} holds no text at all"
        raise MinillmError(f"there is no embedded text {name!r}, {expected}")
    return (DATA / "text" / f"{name}.txt").read_text(encoding="utf-8")
