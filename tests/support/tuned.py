"""Folders as `minillm tune --block` leaves them, as far as prefetch tuned reads them: one file of made-up figures."""

import json
from pathlib import Path

WAYS = ("cut, oracle", "cut, router", "tuned, oracle", "tuned, router")
DENSE, CONTROL = 10.0, 8.0


def about(group: int, sparsity: float, scores=(11.0, 13.0, 8.4, 8.8), control=True, **others) -> dict:
    """The fields of training.json."""
    models = [("dense", DENSE), *([("dense, trained", CONTROL)] * control), *zip(WAYS, scores, strict=False)]
    rows = [{"model": name, "perplexity": score, "neurons cut": 0.5} for name, score in models]
    began = {"name": "small", "shape": [2, 8, 24], "sha256": "a" * 64}
    curve = [{"step": n, "tokens": 50 * n, "seconds": 45.0 * n, "loss": 1.0, "norm": 1.0, "rate": 0.1} for n in (1, 2)]
    found = {"format": "minillm-trained", "version": 1, "began_with": began, "block": group, "sparsity": sparsity}
    return found | {"scores": rows, "curve": curve} | others


def write(folder: Path, fields: dict) -> Path:
    """A folder with this training.json."""
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
