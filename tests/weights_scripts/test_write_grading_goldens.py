"""The goldens of `minillm grade`: PyTorch writes them again."""

import json

import numpy as np
import pytest
from scripts import load_script

from minillm.course.assignment import FUNCTIONS, goldens


@pytest.mark.parity
def test_the_script_writes_the_packaged_goldens_again(tmp_path):
    pytest.importorskip("torch")
    script = load_script("weights_scripts/write_grading_goldens.py")
    assert list(script.FUNCTIONS) == list(FUNCTIONS)
    script.write(tmp_path)
    written, packaged = np.load(tmp_path / "goldens.npz"), goldens()
    assert set(written.files) == set(packaged)
    for name in written.files:
        a, b = written[name], packaged[name]
        assert a.dtype == b.dtype and a.shape == b.shape, name
        size = np.abs(b).max(initial=0) if b.dtype.kind == "f" else 0
        rtol = 1e-12 if b.dtype == np.float64 else 1e-6  # another machine sums in another order
        assert np.array_equal(a, b) or np.abs(a - b).max() <= rtol * size, name
    again = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    manifest = json.loads((script.FOLDER / "manifest.json").read_text(encoding="utf-8"))
    changing = {"made_by", "sha256"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in manifest.items() if k not in changing
    }
