"""What the tests of activation patterns share: texts of a few words, a small model, a file as the paper released it."""

from pathlib import Path

import numpy as np
import tiny

from minillm.sparsity.calibrate import calibrate
from minillm.study.overlap import Reference, reference
from minillm.transformer.model import Llama

WORDS = "the cat sat on a mat and saw the red sea. tom ran home.".split()
RELEASED = (
    '    paragraph90 = """\nOne two. Tail\n  \n"""\n\n'
    'paragraphMain = """One two. End\n"""\nparagraph95="""One two. Ende"""'
)


def texts(count: int, length: int = 25, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) for _ in range(count)]


def small_model(folder: Path) -> Llama:
    """Three layers of 96 neurons: small, but with enough bits that a rate near chance is near."""
    sizes = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 96, "num_attention_heads": 4}
    return tiny.loaded(folder, "float32", **sizes)


def reference_of(model: Llama) -> Reference:
    """The paper's thresholds at 50 %, and the frequencies, from a calibration text."""
    calibration = texts(12, seed=1)
    return reference(model, calibrate(model, calibration, "dhar", 0.5), calibration)
