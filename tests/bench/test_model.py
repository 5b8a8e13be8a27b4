"""Benchmarks: that the right things are measured and the ratios are right. No test looks at a time itself."""

import math

import numpy as np
import pytest
import tiny

from minillm.bench import model as bench
from minillm.bench import turns as turns_module
from minillm.loading.tokenizer import Tokenizer
from minillm.transformer.model import Llama


@pytest.fixture
def no_torch(monkeypatch):
    """As on a machine without torch: the rival is left out, the rest stays."""
    monkeypatch.setattr(bench, "find_spec", lambda name: None)


def test_the_ratio_is_theirs_over_ours_in_the_same_round_and_the_first_round_does_not_count():
    ours, theirs = iter([99.0, 1.0, 2.0, 4.0]), iter([0.001, 3.0, 2.0, 2.0])
    order = []

    def turn(name, series):
        def seconds():
            order.append(name)
            return next(series)

        return seconds

    first, second = turns_module.in_turns({"ours": turn("o", ours), "theirs": turn("t", theirs)}, 3, "token")
    assert order == ["o", "t"] * 4
    assert first == {"name": "ours", "milliseconds": 2000, "per": "token", "ratio": 1, "ratio_low": 1, "ratio_high": 1}
    assert (second["milliseconds"], second["ratio"]) == (2000, 1.0)  # 3/1, 2/2, 2/4
    assert (second["ratio_low"], second["ratio_high"]) == (0.5, 3.0)


def test_the_spread_is_the_middle_half_of_the_rounds():
    series = iter([0.0, *(float(n) for n in range(1, 9))])
    rows = turns_module.in_turns({"ours": lambda: 1.0, "theirs": lambda: next(series)}, 8, "token")
    assert (rows[1]["ratio_low"], rows[1]["ratio"], rows[1]["ratio_high"]) == (3.0, 4.5, 6.0)


class Counted(np.ndarray):
    """An array that writes down which operation read it."""

    reads: list

    def __array_finalize__(self, source):
        self.name, self.whole = getattr(source, "name", ""), getattr(source, "whole", 0)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        Counted.reads.append((ufunc.__name__, self.name, inputs[0].nbytes))
        return getattr(ufunc, method)(*(np.asarray(i) for i in inputs), **options)

    def __array_function__(self, function, types, arguments, options):
        Counted.reads.append((function.__name__, self.name, arguments[0].nbytes))
        return function(*(np.asarray(a) for a in arguments), **options)


def test_each_reduction_of_the_read_probe_reads_every_array_in_full():
    arrays = []
    for size in (6, 7):  # an odd number of float32 is no whole number of int64
        array = np.arange(size, dtype=np.float32).view(Counted)
        array.name = str(size)
        arrays.append(array)
    Counted.reads = []
    assert bench.read_seconds(arrays) >= 0
    both = [("6", 24), ("7", 28)]
    assert Counted.reads == [(f, *rest) for f in ("dot", "add", "bitwise_or") for rest in both]


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


def test_the_random_model_has_the_published_shape_and_loads(tmp_path):
    model = Llama.from_folder(bench.write_random_model(tmp_path, "260K"))
    assert sum(model.parameters.values()) == 260_032 and model.parameters["head"] == 0  # llama2.c's stories260K
    sizes = {  # the same from the shapes alone, for the large ones
        name: v * d + n * (2 * d * d + 2 * d * d * k // h + 3 * d * f + 2 * d) + d
        for name, ((d, n, h, k, f, v), _) in bench.SHAPES.items()
    }
    assert sizes == {"260K": 260_032, "15M": 15_191_712, "110M": 109_529_856}


@pytest.mark.parametrize("vocabulary", [512, 32000])
def test_the_made_up_tokenizer_has_as_many_tokens_as_a_real_one(tmp_path, vocabulary):
    bench.write_made_up_tokenizer(tmp_path, vocabulary)
    tokenizer = Tokenizer.from_folder(tmp_path, vocabulary)
    tokenizer.decode([vocabulary - 1])
    assert tokenizer.decode(tokenizer.encode("once upon")) == "once upon"


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
    text = bench.as_text(result)
    assert text.startswith(f"{what}, random 260K, 1 rounds in turns") and "numpy " + np.__version__ in text


def test_a_models_own_folder_is_measured_and_a_short_context_respected(no_torch, tmp_path):
    folder = tiny.folder(tmp_path / "short", max_position_embeddings=16)
    result = bench.bench("decode", source=folder, rounds=1)
    assert result["model"] == "short" and result["new_tokens"] + len(bench.PROMPT) <= 16
    assert bench.bench("perplexity", source=folder, rounds=1)["rows"][0]["per"] == "text"


def test_tokens_per_second_and_the_share_of_the_limit_are_those_of_the_rows():
    rows = [
        {"name": "minillm", "milliseconds": 4.0, "per": "token", "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0},
        {"name": "read probe", "milliseconds": 3.0, "per": "token", "ratio": 0.75, "ratio_low": 0.7, "ratio_high": 0.8},
    ]
    result = {"what": "decode", "model": "m", "rounds": 3, "new_tokens": 8, "megabytes_per_token": 1.5, "rows": rows}
    text = bench.as_text(result | {"environment": {"threads": 1}})
    assert "250.0 tokens per second, 0.75 of what reading alone allows" in text and "0.70 .. 0.80" in text


@pytest.mark.slow
@pytest.mark.parity
def test_transformers_takes_its_turn_in_a_child_that_ends(tmp_path):
    child = bench.Child(bench.write_random_model(tmp_path, "260K"), 3, 1)
    try:
        assert child.seconds("decode", [1]) > 0 and child.seconds("perplexity", [1, 5, 9, 13]) > 0
        assert child.versions.startswith("torch ")
    finally:
        child.close()
    assert child._process.returncode == 0
