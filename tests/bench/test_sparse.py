"""Benchmarks of sparse FFNs: that the right things are measured, cold, and that nothing is left behind. No test looks
at a time itself."""

import json
import math
import os
import sys
import tempfile

import numpy as np
import pytest

from minillm.bench import disk as disk_module
from minillm.bench import sparse as bench_sparse
from minillm.bench.disk import bench_disk
from minillm.bench.model import SHAPES
from minillm.bench.sparse import as_text, bench_ffn, config_at, for_kernels, speeds
from minillm.bench.turns import over
from minillm.cli import main as cli
from minillm.errors import MinillmError
from minillm.prefetch.clock import LARGE, ffn_share
from minillm.prefetch.fetched import FetchedFFN
from minillm.prefetch.system import Unsupported

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a cache that can be emptied and shown")
D, F = SHAPE = 16, 64


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Little memory, and a folder for temporary files that can be looked into."""
    monkeypatch.setattr(bench_sparse, "TURN", 1)
    monkeypatch.setattr(bench_sparse, "largest_cache", lambda: 4096)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture
def disk(small, cold_disk):
    """A folder whose files leave the system's cache when they are told to."""
    return small


# ---- shapes and shares -----------------------------------------------------------------------------------------------


def test_the_ffns_share_of_a_token_at_the_published_shapes():
    found = {name: round(ffn_share(config_at(name)), 2) for name in ("15M", "110M", "1B")}
    assert found == {"15M": 0.26, "110M": 0.52, "1B": 0.74}


def test_a_shape_of_ones_own_is_the_large_one_with_other_sizes():
    config = config_at(SHAPE)
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (16, 64, 22)
    attention, ffn = 22 * (2 * 16 * 16 + 2 * 2 * 16), 22 * 3 * 16 * 64
    assert ffn_share(config) == ffn / (ffn + attention + 32000 * 16)
    assert config_at((2048, 5632)) is LARGE and config_at("1B") is LARGE
    for wrong in ("2B", (8, 64), (24, 64), (16, 0)):
        with pytest.raises(MinillmError, match="expected"):
            config_at(wrong)
    assert all(config_at(name).hidden_size == sizes[0][0] for name, sizes in SHAPES.items())


def test_a_speed_up_is_the_inverse_of_a_ratio_of_times_and_its_spread_turns_round():
    found = speeds(over([1.0, 2.0, 4.0, 1.0, 2.0], [4.0] * 5))
    assert found == {"speedup": 2.0, "low": 2.0, "high": 4.0}


# ---- in memory -------------------------------------------------------------------------------------------------------


def test_rows_for_every_way_group_and_sparsity_beside_the_dense_one():
    result = bench_ffn(SHAPE, (0.5, 0.9), (4, 16), rounds=1)
    dense, *rows = result["rows"]
    assert dense["method"] == "dense" and dense["speedup"] == dense["low"] == dense["high"] == dense["whole_token"] == 1
    found = [(row["method"], row["group"], row["sparsity"], row["touched"]) for row in rows]
    assert found == [
        ("gather", 1, 0.5, 0.5), ("tiled", 1, 0.5, 0.5), ("blocks", 4, 0.5, 0.5), ("blocks", 16, 0.5, 0.5),
        ("gather", 1, 0.9, 6 / 64), ("tiled", 1, 0.9, 6 / 64),  # a tenth of 4 or 16 blocks cannot be had
    ]  # fmt: skip
    share = ffn_share(config_at(SHAPE))
    for row in rows:
        assert 0 < row["low"] <= row["speedup"] <= row["high"] < math.inf and row["milliseconds"] > 0
        assert row["whole_token"] == pytest.approx(1 / (1 - share + share / row["speedup"]))
    assert result["shape"] == "16 x 64" and result["layers"] == 2 and 0 < result["own_time"] < 1.5
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result)) and "blas" in result["environment"]
    text = as_text(result)
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
    assert [row.get("chosen") for row in result["rows"]] == [None, False, True, True]
    marked = [line for line in as_text(result).splitlines() if line.endswith("*")]
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


# ---- from disk -------------------------------------------------------------------------------------------------------


@linux
def test_every_way_from_a_cold_disk_with_its_bytes_and_no_file_left(disk):
    result = bench_disk(SHAPE, (0.5, 0.75), (16, 1), rounds=2, layers=3)
    rows, neuron = result["rows"], 3 * D * 4
    plan = [("everything", 16, 0.0), ("blocks", 16, 0.5), ("blocks", 16, 0.75), ("blocks", 1, 0.5), ("blocks", 1, 0.75)]
    assert [(r["method"], r["group"], r["sparsity"], r["announced"]) for r in rows] == [
        (*line, announced) for line in plan for announced in ("no", "when reached", "a layer ahead")
    ]
    for row in rows:
        assert row["bytes_per_token"] == 3 * F * neuron * (1 - row["sparsity"]) <= row["disk_bytes"]
        assert 0 < row["low"] <= row["speedup"] <= row["high"]
    assert rows[0]["speedup"] == rows[2]["over_announced"] == 1
    times = [row["milliseconds"] * 22 for row in rows]
    rest = result["rest_milliseconds"]
    expected = [(times[0] + rest) / (times[0] / row["speedup"] + rest) for row in rows]
    assert [row["whole_token"] for row in rows] == pytest.approx(expected)
    weights = 22 * (2 * D * D + 2 * D * D / 8) + 32000 * D
    assert rest == pytest.approx(weights * 4 / result["read_gigabytes_per_second"] / 1e6)
    assert len(result["cached"]) == 3 and all(len(shares) == len(rows) for shares in result["cached"])
    assert max(map(max, result["cached"])) <= disk_module.COLD
    assert not list(disk.iterdir())
    text = as_text(result)
    assert text.startswith("disk, random 16 x 64, 3 layers, 2 rounds in turns") and "a layer ahead" in text
    assert "cold: largest share" in text and json.dumps(result)


@linux
def test_what_is_announced_and_when(disk, monkeypatch):
    from minillm.prefetch.reader import BundleReader

    calls = []
    announce, read = BundleReader._announce, BundleReader._read_at
    monkeypatch.setattr(BundleReader, "_announce", lambda r, *a: calls.append(("announce", a[0])) or announce(r, *a))
    monkeypatch.setattr(BundleReader, "_read_at", lambda r, *a: calls.append(("read", a[0])) or read(r, *a))
    bench_disk(SHAPE, (), (16,), rounds=1, layers=2)
    one = ("read", 0), ("read", 1)
    reached = ("announce", 0), ("read", 0), ("announce", 1), ("read", 1)
    ahead = ("announce", 1), *reached
    assert calls == [*one, *reached, *ahead] * 2


@linux
def test_a_round_that_is_not_cold_is_an_error_and_the_folder_is_removed(disk, monkeypatch):
    monkeypatch.setattr(disk_module, "made_cold", lambda reader: 0.5)
    with pytest.raises(MinillmError, match="50% of a file stays in the system's cache, expected none"):
        bench_disk(SHAPE, rounds=1)
    monkeypatch.setattr(disk_module, "made_cold", lambda reader: None)
    with pytest.raises(Unsupported, match="expected Linux"):
        bench_disk(SHAPE, rounds=1)
    assert not list(disk.iterdir())


@linux
def test_a_turn_that_needs_a_second_try_to_be_cold_gets_it(disk, monkeypatch):
    shares = iter([0.5, 0.0])
    monkeypatch.setattr(disk_module, "made_cold", lambda reader: next(shares))
    assert disk_module.cold_or_error(None) == 0.0


def test_ctrl_c_leaves_no_folder(small, monkeypatch):
    monkeypatch.setattr(disk_module, "made_cold", lambda reader: 0.0)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    present = []

    def interrupt(*_):
        present.extend(path.name for path in small.glob("*/*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(FetchedFFN, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench_disk(SHAPE, rounds=1)
    assert sorted(present) == ["blocks-of-1", "blocks-of-32"] and not list(small.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(small, monkeypatch):
    usage = disk_module.shutil.disk_usage(small)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(MinillmError, match=r"0 MB are free, expected .* MB \(--layers, --shape and --groups decide\)"):
        bench_disk(SHAPE, rounds=1)
    assert not list(small.iterdir())


# ---- the command -----------------------------------------------------------------------------------------------------


def run(capsys, words) -> tuple[int, str, str]:
    status = cli.main(words.split())
    return status, *capsys.readouterr()


def test_the_command_measures_a_shape_and_prints_a_table_or_json(capsys):
    status, out, _ = run(capsys, "bench ffn --shape 16 64 --groups 4 --sparsity 0.5 --rounds 1")
    assert status == 0 and out.startswith("ffn, random 16 x 64") and "threads 1" in out
    found = json.loads(run(capsys, "bench ffn --shape 16 64 --groups 4 --sparsity 0.5 --rounds 1 --json")[1])
    assert [row["method"] for row in found["rows"]] == ["dense", "gather", "tiled", "blocks"]
    assert found["rows"][1].keys() >= {"method", "group", "sparsity", "speedup", "low", "high", "whole_token"}


@linux
def test_the_command_measures_a_disk(capsys, disk):
    words = "bench disk --shape 16 64 --groups 16 --sparsity 0.5 --rounds 1 --layers 2 --json"
    found = json.loads(run(capsys, words)[1])
    assert found["layers"] == 2 and len(found["rows"]) == 6 and not list(disk.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ffn -m default", "expected no --model"),
        ("ffn --layers 3", "bench ffn has no use for --layers"),
        ("decode --groups 4", "bench decode has no use for --groups"),
        ("decode --shape 1B", "--shape is 1B, expected one of 260K, 15M, 110M"),
        ("decode --shape 16 64", "--shape is 16 64"),
        ("ffn --shape 2B", "shape '2B' is unknown"),
        ("disk --shape 16", "expected a name, or a hidden and an intermediate size"),
        ("ffn --shape 16 x", "expected a name, or a hidden and an intermediate size"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(capsys, words, said):
    status, out, err = run(capsys, f"bench {words} --rounds 1")
    assert status == 1 and said in err and not out
