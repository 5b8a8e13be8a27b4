"""The goldens of `minillm grade`: PyTorch writes them again."""

import json

import numpy as np
import pytest
from scripts import load_script

from minillm.course.assignment import FUNCTIONS, goldens

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/write_grading_goldens.py")


def test_the_script_writes_the_packaged_goldens_again(script, tmp_path):
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


def test_the_threshold_of_a_case_is_far_from_every_value_and_cuts_about_half(script):
    *ffn, threshold = script.with_threshold(script.random_ffn(np.random.default_rng(0), 20, 6, 10))
    y, mask = script.results("thresholded_swiglu", [*ffn, threshold])
    assert y.shape == (20, 6) and 0.4 <= mask.mean() <= 0.6
    for factor in (1 - 1e-6, 1 + 1e-6):
        assert np.array_equal(script.results("thresholded_swiglu", [*ffn, factor * threshold])[1], mask)


def test_some_values_of_the_exact_case_equal_its_threshold(script):
    x, gate, up, down = script.exact_ffn(np.random.default_rng(0))
    mid = script.results("swiglu", [x, gate, up, np.eye(5)])[0]
    assert np.array_equal(mid, np.round(mid)) and (np.abs(mid) == 80).any() and (np.abs(mid) > 80).any()


def test_the_results_of_a_float32_case_are_rounded_to_float32(script):
    x, weight = np.float32([[3, 4]]), np.float32([1, 2])
    (y,) = script.results("rms_norm", [x, weight, 0.0])
    assert y.dtype == np.float32 and y == pytest.approx(np.array([[3, 8]]) / 12.5**0.5, rel=1e-7)


def test_a_request_hits_where_it_is_among_the_latest_ones(script):
    requests, latest, expected = script.random_requests(np.random.default_rng(1), 200, 9), [], []
    for neuron in requests.tolist():
        expected.append(neuron in latest[:3])
        latest = [neuron, *(n for n in latest if n != neuron)]
    assert script.results("lru", [requests, 3])[0].tolist() == expected and 0 < sum(expected) < 200
