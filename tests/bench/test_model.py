"""Benchmarks of whole models: that the right things are measured. No test looks at a time itself."""

import math

import numpy as np
import pytest
import tiny

from minillm.bench import model as bench
from minillm.bench.shapes import write_random_model


@pytest.fixture
def no_torch(monkeypatch):
    """As on a machine without torch: the rival is left out, the rest stays."""
    monkeypatch.setattr(bench, "find_spec", lambda name: None)


@pytest.mark.parametrize("family", ["plain", "llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_token_reads_every_weight_once_but_of_the_embedding_only_what_is_also_the_head(family):
    model = tiny.model(family, np.float32)
    arrays = bench.weights_per_token(model)
    counted = sum(array.nbytes for array in arrays)
    tied = model.lm_head is model.embed_tokens
    assert tied == (family in ("qwen2", "phi3"))
    assert counted == 4 * (sum(model.parameters.values()) - (0 if tied else model.embed_tokens.size))
    owners = [model.lm_head, model.norm, *(a for lyr in model.layers for a in vars(lyr).values() if a is not None)]
    assert all(any(np.shares_memory(a, b) for b in owners if isinstance(b, np.ndarray)) for a in arrays)  # no copies


@pytest.mark.parametrize(("what", "unit"), [("decode", "token"), ("perplexity", "text")])
def test_a_result_says_what_was_measured_and_under_what(no_torch, what, unit):
    result = bench.bench(what, "260K", rounds=1)
    assert {k: result[k] for k in ("what", "model", "rounds")} == {"what": what, "model": "random 260K", "rounds": 1}
    keys = {"cpu", "system", "python", "numpy", "blas", "threads"}
    assert set(result["environment"]) == keys and result["environment"]["threads"] == 1
    names = ["minillm", "read probe"] if what == "decode" else ["minillm"]
    assert [row["name"] for row in result["rows"]] == names
    assert all(row["per"] == unit and 0 < row["milliseconds"] < math.inf for row in result["rows"])
    assert result["rows"][0]["ratio"] == 1
    if what == "decode":
        assert (result["megabytes_per_token"], result["new_tokens"]) == (260_032 * 4 / 1e6, 200)
    text = bench.model_text(result)
    assert text.startswith(f"{what}, random 260K, 1 rounds in turns") and "numpy " + np.__version__ in text


def test_a_models_own_folder_is_measured_and_a_short_context_respected(no_torch, tmp_path):
    folder = tiny.folder(tmp_path / "short", max_position_embeddings=16)
    result = bench.bench("decode", source=folder, rounds=1)
    assert result["model"] == "short" and result["new_tokens"] + len(bench.ONE_TOKEN) <= 16
    assert bench.bench("perplexity", source=folder, rounds=1)["rows"][0]["per"] == "text"


def test_tokens_per_second_and_the_share_of_the_limit_are_those_of_the_rows():
    rows = [
        {"name": "minillm", "milliseconds": 4.0, "per": "token", "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0},
        {"name": "read probe", "milliseconds": 3.0, "per": "token", "ratio": 0.75, "ratio_low": 0.7, "ratio_high": 0.8},
    ]
    result = {"what": "decode", "model": "m", "rounds": 3, "new_tokens": 8, "megabytes_per_token": 1.5, "rows": rows}
    text = bench.model_text(result | {"environment": {"threads": 1}})
    assert "250.0 tokens per second, 0.75 of what reading alone allows" in text and "0.70 .. 0.80" in text


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_takes_its_turn_in_a_child_that_ends(tmp_path):
    child = bench.Child(write_random_model(tmp_path, "260K"), 3, 1)
    try:
        assert child.seconds("decode", [1]) > 0 and child.seconds("perplexity", [1, 5, 9, 13]) > 0
        assert child.versions.startswith("torch ")
    finally:
        child.close()
    assert child._process.returncode == 0
