"""What comes with the package: the embedded models and two texts, at hand without a network.

    default                            a small Llama, trained by this project
    default-silu, -relu, -relu2, ...   its smaller twins, alike but for the activation
    texts "calibration" and "test"     no document in both, so one finds thresholds and the other scores them

An embedded name means the same model wherever it is said: it wins over a folder of that name in the current
directory. Such a folder is "./default", or a Path, which always means a folder.

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
    """The folder of an embedded model; None for whatever is not exactly the name of one."""
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
