"""Sparse FFNs from disk: that every turn is cold, and that nothing is left behind. No test looks at a time itself."""

import json
import os
import sys

import pytest

from minillm.bench import disk as disk_module
from minillm.bench.disk import bench_disk, disk_text
from minillm.cli import main as cli
from minillm.errors import MinillmError
from minillm.prefetch.fetched import FetchedFFN
from minillm.prefetch.system import Unsupported

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a cache that can be emptied and shown")
pytestmark = pytest.mark.usefixtures("small")
D, F = SHAPE = 16, 64


@pytest.mark.slow
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
    text = disk_text(result)
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


@pytest.mark.slow
@linux
def test_a_round_that_is_not_cold_is_an_error_and_the_folder_is_removed(disk, monkeypatch):
    monkeypatch.setattr(disk_module, "drop_page_cache", lambda reader: 0.5)
    with pytest.raises(MinillmError, match="50% of a file stays in the system's cache, expected none"):
        bench_disk(SHAPE, rounds=1)
    monkeypatch.setattr(disk_module, "drop_page_cache", lambda reader: None)
    with pytest.raises(Unsupported, match="expected Linux"):
        bench_disk(SHAPE, rounds=1)
    assert not list(disk.iterdir())


@linux
def test_a_turn_that_needs_a_second_try_to_be_cold_gets_it(disk, monkeypatch):
    shares = iter([0.5, 0.0])
    monkeypatch.setattr(disk_module, "drop_page_cache", lambda reader: next(shares))
    assert disk_module.cold_or_error(None) == 0.0


def test_ctrl_c_leaves_no_folder(small, monkeypatch):
    monkeypatch.setattr(disk_module, "drop_page_cache", lambda reader: 0.0)
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


@linux
def test_the_command_measures_a_disk(capsys, disk):
    words = "bench disk --shape 16 64 --groups 16 --sparsity 0.5 --rounds 1 --layers 2 --json"
    found = json.loads(run(capsys, words)[1])
    assert found["layers"] == 2 and len(found["rows"]) == 6 and not list(disk.iterdir())
