"""A whole token: every row, its FFN, its bytes. No test looks at a time itself."""

import json

import numpy as np
import pytest
import tiny

from minillm.bench import token
from minillm.cli.shared import in_lines
from minillm.predictors.copies import Shadow
from minillm.sparsity.selected import SelectedFFN
from minillm.study.blocks import BlockSettings
from minillm.study.choice import ORACLE
from minillm.transformer.attention import KVCache
from minillm.transformer.generation import generate
from minillm.transformer.texts import Sample

PREDICTORS = ["4-bit unpacked", "4-bit packed", "2-bit packed"]
F, D, L = 24, 16, 2


@pytest.fixture
def measured():
    model = tiny.model(dtype=np.float32, hidden_size=D, intermediate_size=F)
    return token.Measured.of(model, 3, (4, 5), np.random.default_rng(0))  # 5: the last block is shorter


def rows_of(measured, sparsity=0.5):
    names = (ORACLE, *measured.predictors)
    return [{"chosen_by": name, "group": group, "sparsity": sparsity} for group in measured.weights for name in names]


def test_every_row_s_ffn_gives_what_the_masked_form_gives_with_the_same_choice(measured):
    model, x = measured.model, np.random.default_rng(1).standard_normal((1, D)).astype(np.float32)
    for row in rows_of(measured):
        select = measured.select(row)
        timed, masked = measured.ffn(row, select), SelectedFFN(select)
        for layer in model.layers:
            np.testing.assert_allclose(timed(x, layer), masked(x, layer), rtol=1e-5, atol=1e-5)
        caches = [KVCache(model.config, 3, model.dtype) for _ in range(2)]
        for id in measured.ids:
            ours, theirs = (model.forward([id], c, f) for c, f in zip(caches, (timed, masked), strict=True))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_oracle_s_mask_is_the_true_one_of_these_ids(measured):
    row = {"chosen_by": ORACLE, "group": 4, "sparsity": 0.5}
    given, seen = measured.select(row), []
    oracle = token.BlockOracle(4, 0.5)

    def both(x, layer, position, tap):
        seen.append(np.array_equal(given(x, layer, position, tap), oracle(x, layer, position, tap)))
        return given(x, layer, position, tap)

    both.reads = both.calibrated_on = frozenset()
    token.decode(measured.model, measured.ids, SelectedFFN(both))
    assert seen == [True] * (L * 3)


def test_a_decoded_token_is_that_of_generate(measured):
    model = measured.model
    ids = [1, *(step.token for step in generate(model, [1], 4, stop_at_eos=False))]
    assert token.decode(model, ids[:-1], token.swiglu) == ids[1:]


def test_bytes_are_those_of_the_one_accounting(measured):
    model = measured.model
    whole = sum(array.nbytes for array in token.weights_per_token(model))
    ffns = 3 * L * D * F * 4
    dense = measured.bytes_of({"chosen_by": "", "group": 1}, token.swiglu)
    assert dense == {"touched": 1, "weight_bytes": whole, "predictor_bytes": 0, "bytes_per_token": whole}
    scales = 2 * L * F * (2 + 2)  # a float16 scale and error for each row
    tables = {ORACLE: 0, "4-bit unpacked": 2 * L * F * D * 4 + scales}
    tables |= {f"{bits}-bit packed": 2 * L * F * D * bits // 8 + scales for bits in (4, 2)}
    for row in rows_of(measured, 0.75):
        found = measured.bytes_of(row, measured.ffn(row, measured.select(row)))
        assert found["predictor_bytes"] == tables[row["chosen_by"]]
        assert found["weight_bytes"] == pytest.approx(whole - ffns + found["touched"] * ffns)
        assert found["bytes_per_token"] == found["weight_bytes"] + found["predictor_bytes"]
        if row["group"] != 5:
            assert found["touched"] == pytest.approx({1: 6, 4: 8}[row["group"]] / F)  # K = 6 neurons, 2 of 6 blocks


def test_a_random_shadow_has_the_tables_of_a_fitted_one():
    for family in ("plain", "llama"):
        model = tiny.model(family)
        fitted = Shadow.fit(model, 4, np.tile(np.eye(8), (2, 1, 1))).tables
        made = token.random_shadow(model, 4, np.random.default_rng(0)).tables
        assert {n: (t.shape, t.dtype) for n, t in made.items()} == {n: (t.shape, t.dtype) for n, t in fitted.items()}


def test_a_result_has_all_rows_with_their_quality_and_its_text_fits(monkeypatch, tmp_path):
    monkeypatch.setitem(token.SHAPES, "260K", token.SHAPES["260K"]._replace(new_tokens=8))
    result = token.bench_token("260K", (0.5, 0.75), (32,), rounds=1)
    model = tiny.loaded(tmp_path / "m", "float32", intermediate_size=64)
    known, test = [story + " It is known." for story in tiny.STORIES * 2], Sample(tiny.STORIES, "documents", 32)
    token.add_quality(result, model, known, test, BlockSettings((32,), 40))
    dense, *rows = result["rows"]
    names = [ORACLE, *PREDICTORS]
    assert [(r["sparsity"], r["method"], r["group"], r["chosen_by"]) for r in rows] == [
        (cut, *way, name) for cut, way in [(0.5, ("tiled", 1)), (0.5, ("blocks", 32)), (0.75, ("tiled", 1))]
        for name in names
    ]  # fmt: skip
    keys = "method group chosen_by sparsity touched weight_bytes predictor_bytes bytes_per_token milliseconds speedup"
    keys = {*keys.split(), "low", "high", "bound", "choosing", "quality"}
    assert all(set(row) == keys for row in result["rows"])
    assert dense["method"] == "dense" and dense["speedup"] == 1 and not dense["bound"] and dense["quality"] == []
    for row in rows:
        assert row["bound"] == (row["chosen_by"] == ORACLE) == (row["choosing"] is None)
        assert row["choosing"] is None or 0 < row["choosing"] < 1
        assert 0 < row["low"] <= row["speedup"] <= row["high"] and row["milliseconds"] > 0
        (cost,) = row["quality"]
        assert set(cost) == {"model", "perplexity", "increase", "increase_low", "increase_high"}
    head = {"what", "model", "rounds", "tokens", "quality", "stored_bytes", "environment", "rows"}
    assert set(result) == head and json.loads(json.dumps(result)) == result
    assert result["quality"][0]["model"] == "m" and result["quality"][0]["documents"] == 4
    text = in_lines(token.token_text(result))
    assert text.count("oracle (bound)") == 4 and "50% of the neurons left out" in text  # 3 rows and the note
    assert all(len(line) <= 100 for line in text.splitlines())
