"""Measuring in turns: ratios within a round, their spread, and the probe that reads. No test looks at a time itself."""

import numpy as np

from minillm.bench import turns as turns_module
from minillm.bench.turns import environment, in_turns, largest_cache, over, read_seconds, speeds


def test_the_ratio_is_theirs_over_ours_in_the_same_round_and_the_first_round_does_not_count():
    ours, theirs = iter([99.0, 1.0, 2.0, 4.0]), iter([0.001, 3.0, 2.0, 2.0])
    order = []

    def turn(name, series):
        def seconds():
            order.append(name)
            return next(series)

        return seconds

    first, second = in_turns({"ours": turn("o", ours), "theirs": turn("t", theirs)}, 3, "token")
    assert order == ["o", "t"] * 4
    assert first == {"name": "ours", "milliseconds": 2000, "per": "token", "ratio": 1, "ratio_low": 1, "ratio_high": 1}
    assert (second["milliseconds"], second["ratio"]) == (2000, 1.0)  # 3/1, 2/2, 2/4
    assert (second["ratio_low"], second["ratio_high"]) == (0.5, 3.0)


def test_the_spread_is_the_middle_half_of_the_rounds():
    series = iter([0.0, *(float(n) for n in range(1, 9))])
    rows = in_turns({"ours": lambda: 1.0, "theirs": lambda: next(series)}, 8, "token")
    assert (rows[1]["ratio_low"], rows[1]["ratio"], rows[1]["ratio_high"]) == (3.0, 4.5, 6.0)


def test_a_speed_up_is_the_inverse_of_a_ratio_of_times_and_its_spread_turns_round():
    found = speeds(over([1.0, 2.0, 4.0, 1.0, 2.0], [4.0] * 5))
    assert found == {"speedup": 2.0, "low": 2.0, "high": 4.0}


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
    assert read_seconds(arrays) >= 0
    both = [("6", 24), ("7", 28)]
    assert Counted.reads == [(f, *rest) for f in ("dot", "add", "bitwise_or") for rest in both]


def test_the_largest_cache_is_read_from_the_systems_files_or_a_stated_guess(tmp_path, monkeypatch):
    for index, size in enumerate(["48K", "2M", "unknown", "1536K"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(turns_module, "Path", lambda _: tmp_path)
    assert largest_cache() == 2 << 20
    monkeypatch.setattr(turns_module, "Path", lambda _: tmp_path / "absent")
    assert largest_cache() == turns_module.UNKNOWN_CACHE


def test_the_environment_names_what_a_time_depends_on():
    found = environment(3)
    assert set(found) == {"cpu", "system", "python", "numpy", "blas", "threads"}
    assert (found["numpy"], found["threads"]) == (np.__version__, 3)
