"""Sparse FFNs in memory: that the right things are measured, cold. No test looks at a time itself."""

import json
import math
import os

import numpy as np
import pytest

from minillm.bench import sparse as bench_sparse
from minillm.bench.shapes import config_at
from minillm.bench.sparse import bench_ffn, ffn_text, for_kernels
from minillm.cli import main as cli
from minillm.errors import MinillmError
from minillm.prefetch.clock import ffn_share

pytestmark = pytest.mark.usefixtures("small")
D, F = SHAPE = 16, 64


def test_rows_for_every_way_group_and_sparsity_beside_the_dense_one():
    result = bench_ffn(SHAPE, (0.5, 0.9), (4, 16), rounds=1)
    dense, *rows = result["rows"]
    assert dense["method"] == "dense" and dense["speedup"] == dense["low"] == dense["high"] == dense["whole_token"] == 1
    found = [(row["method"], row["group"], row["sparsity"], row["touched"]) for row in rows]
    assert found == [
        ("gather", 1, 0.5, 0.5), ("tiled", 1, 0.5, 0.5), ("blocks", 4, 0.5, 0.5), ("routed", 4, 0.5, 0.5),
        ("blocks", 16, 0.5, 0.5), ("routed", 16, 0.5, 0.5),
        ("gather", 1, 0.9, 6 / 64), ("tiled", 1, 0.9, 6 / 64),  # a tenth of 4 or 16 blocks cannot be had
    ]  # fmt: skip
    share = ffn_share(config_at(SHAPE))
    for row in rows:
        assert 0 < row["low"] <= row["speedup"] <= row["high"] < math.inf and row["milliseconds"] > 0
        assert row["whole_token"] == pytest.approx(1 / (1 - share + share / row["speedup"]))
    assert result["shape"] == "16 x 64" and result["layers"] == 2 and 0 < result["own_time"] < 1.5
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result)) and "blas" in result["environment"]
    text = ffn_text(result)
    assert text.startswith("ffn, random 16 x 64, 2 layers, 1 rounds in turns") and "blocks of 16" in text
    assert "whole token" in text and "head of 32,000 x 16" in text and f"FFN's are {share:.0%}" in text


def test_each_call_gets_other_neurons_as_many_as_the_sparsity_leaves(monkeypatch):
    seen = {}

    def watched(name, kernel):
        def call(x, weights, chosen):
            seen.setdefault(name, []).append((weights, chosen, x))
            return kernel(x, weights, chosen)

        return call

    for name in ("gather", "tiled_gather", "block_views"):
        monkeypatch.setattr(bench_sparse, name, watched(name, getattr(bench_sparse, name)))
    bench_ffn(SHAPE, (0.5,), (4,), rounds=3)
    assert len(seen) == 3
    for name, calls in seen.items():
        count, kept = (16, 8) if name == "block_views" else (F, 32)
        assert len(calls) == 2 * 4  # two layers, three rounds and one for warming up
        assert len({chosen.tobytes() for _, chosen, _ in calls}) == 8
        for _, chosen, x in calls:
            assert len(np.unique(chosen)) == kept and (np.diff(chosen) > 0).all() and 0 <= chosen.min()
            assert chosen.max() < count and x.dtype == np.float32
        arrays = [getattr(weights, "rows", getattr(weights, "gate", None)) for weights, _, _ in calls]
        assert not np.shares_memory(arrays[0], arrays[1]) and np.shares_memory(arrays[0], arrays[2])


def test_before_each_turn_more_than_the_caches_hold_is_read(monkeypatch):
    reads, real = [], np.bitwise_or.reduce

    class Counting:
        reduce = staticmethod(lambda array: reads.append(array.nbytes) or real(array))

    monkeypatch.setattr(np, "bitwise_or", Counting)
    result = bench_ffn(SHAPE, (0.5,), (4,), rounds=2, cache=10_000)
    assert reads == [20_000] * 3 * len(result["rows"]) and result["cache"] == 10_000


def test_what_kernels_choose_would_take_is_marked(monkeypatch):
    monkeypatch.setattr(bench_sparse, "choose", lambda shape, density, group: "blocks" if group > 1 else "tiled")
    result = bench_ffn(SHAPE, (0.5,), (4,), rounds=1)
    assert [row.get("chosen") for row in result["rows"]] == [None, False, True, True, False]
    marked = [line for line in ffn_text(result).splitlines() if line.endswith("*")]
    assert len(marked) == 2 and "tiled" in marked[0] and "blocks of 4" in marked[1]


def test_the_line_for_the_kernels_table_is_that_of_its_two_densities():
    def row(method, group, sparsity, speedup, touched=None):
        touched = 1 - sparsity if touched is None else touched
        return {"method": method, "group": group, "sparsity": sparsity, "touched": touched, "speedup": speedup}

    rows = [row("gather", 1, s, 0.4 / (1 - s)) for s in (0.5, 0.7, 0.9)]
    rows += [row("tiled", 1, 0.5, 1.0), row("tiled", 1, 0.9, 6.0)]
    rows += [row("blocks", g, s, w / (1 - s)) for g, w in ((8, 0.6), (32, 0.8), (128, 0.9)) for s in (0.5, 0.9)]
    rows += [row("blocks", 16, 0.5, 1.2), row("blocks", 16, 0.9, 6.0, 0.12)]  # of few blocks a few too many
    found = for_kernels(rows, 138_412_032)
    assert found["megabytes"] == 138
    assert found["measured"] == {"gather": (0.8, 4.0), "tiled": (1.0, 6.0), "blocks": (1.6, 8.0)}
    assert found["small_blocks"] == {8: 0.75, 16: 0.82, 32: 1.0}  # (1.2 / 1.6 + 7.2 / 8) / 2
    assert for_kernels([r for r in rows if r["group"] != 32], 1) == {} == for_kernels(rows[:3], 1)


def test_a_shape_for_which_there_is_no_memory_is_refused_before_it_is_made():
    if not os.path.exists("/proc/meminfo"):
        pytest.skip("this system does not say how much memory is free")
    with pytest.raises(MinillmError, match="MB of memory are free, expected"):
        bench_ffn((16 << 20, 1 << 20), rounds=1)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(capsys, words) -> tuple[int, str, str]:
    status = cli.main(words.split())
    return status, *capsys.readouterr()


def test_the_command_measures_a_shape_and_prints_a_table_or_json(capsys):
    status, out, _ = run(capsys, "bench ffn --shape 16 64 --groups 4 --sparsity 0.5 --rounds 1")
    assert status == 0 and out.startswith("ffn, random 16 x 64") and "threads 1" in out
    found = json.loads(run(capsys, "bench ffn --shape 16 64 --groups 4 --sparsity 0.5 --rounds 1 --json")[1])
    assert [row["method"] for row in found["rows"]] == ["dense", "gather", "tiled", "blocks", "routed"]
    assert found["rows"][1].keys() >= {"method", "group", "sparsity", "speedup", "low", "high", "whole_token"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ffn --shape 2B", "shape '2B' is unknown"),
        ("disk --shape 16", "expected a name, or a hidden and an intermediate size"),
        ("ffn --shape 16 x", "expected a name, or a hidden and an intermediate size"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(capsys, words, said):
    status, out, err = run(capsys, f"bench {words} --rounds 1")
    assert status == 1 and said in err and not out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ffn -m default", "-m default"), ("ffn --layers 3", "--layers"), ("decode --groups 4", "--groups"),
        ("decode --shape 1B", "'1B'"), ("decode --shape 16 64", "'16'"),
    ],
)  # fmt: skip
def test_a_flag_or_a_shape_that_an_action_does_not_have_is_wrong_usage(capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        run(capsys, f"bench {words} --rounds 1")
    assert caught.value.code == 2 and said in capsys.readouterr().err
