"""The committed goldens as model folders and traces: tiny models of all families, with every step in float64.

weights_scripts/dump_reference.py made them with plain torch; nothing here needs torch.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np

from minillm.divergence import Comparison, compare
from minillm.loading.tensors import save_tensors
from minillm.trace import Trace
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama

FOLDER = Path(__file__).parents[1] / "goldens"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
CASES = list(MANIFEST["cases"])
RTOL = 1e-10  # of a step's largest value; float64 sums differ by about 1e-15 between machines


class Golden:
    """One case: ids, steps {name: float64 array}, and its model folder, written anew below ``folder``."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder / name
        with np.load(FOLDER / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        self.ids = arrays["ids"].tolist()
        self.steps = {key.removeprefix("step:"): value for key, value in arrays.items() if key.startswith("step:")}
        weights = {key.removeprefix("weight:"): value for key, value in arrays.items() if key.startswith("weight:")}
        self.folder.mkdir()
        config = json.dumps(MANIFEST["cases"][name]["config"])
        (self.folder / "config.json").write_text(config, encoding="utf-8")
        save_tensors(self.folder / "model.safetensors", weights)

    def model(self, dtype="float64") -> Llama:
        """The model, loaded from its folder as a published one is."""
        return Llama.from_folder(self.folder, dtype)

    def check(self, model: Llama | None = None, ffn=swiglu) -> Comparison:
        """Every step of a pass in float64 beside the golden's."""
        with Trace() as trace:
            (model or self.model()).forward(self.ids, ffn=ffn, tap=trace)
        return compare(trace, self.steps, RTOL)


def golden_loader(folder: Path):
    """A function from a case's name to its Golden, each made once."""
    return cache(lambda name: Golden(name, folder))
