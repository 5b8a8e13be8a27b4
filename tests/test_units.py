"""Numbers with units: significant digits, no exponents."""

import math

import pytest

from minillm.units import byte_unit, compact, in_bytes, in_seconds, plain, time_unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567.0, "1,234,567"), (12.345, "12.3"), (0.00012345, "0.000123"), (2.0, "2"), (9.999, "10"), (0, "0"),
        (-0.5, "-0.5"), (1e-9, "0.000000001"), (1e12, "1,000,000,000,000"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_a_number_has_three_digits_or_all_its_whole_ones_and_no_exponent(value, text):
    assert plain(value) == text


def test_only_what_is_nearly_zero_has_an_exponent():
    assert [compact(value) for value in (1.23e-7, -4e-5, 0, 0.0012, 12_345.6, 2e6)] == [
        "1.23e-07", "-4.00e-05", "0", "0.0012", "12,346", "2,000,000"
    ]  # fmt: skip


def test_the_unit_is_that_of_the_largest_number():
    assert byte_unit(2.5e9) == ("GB", 1e9) and byte_unit(999) == ("bytes", 1.0) and byte_unit(0) == ("bytes", 1.0)
    assert time_unit(0.5) == ("ms", 1e-3) and time_unit(3) == ("s", 1.0) and time_unit(0) == ("ns", 1e-9)


@pytest.mark.parametrize(("count", "text"), [(512, "512 bytes"), (1500, "1.5 kB"), (2_345_678, "2.35 MB")])
def test_bytes_have_a_unit(count, text):
    assert in_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(1.5, "1.5 s"), (0.0034, "3.4 ms"), (2.5e-6, "2.5 µs"), (3e-8, "30 ns")])
def test_seconds_have_a_unit(seconds, text):
    assert in_seconds(seconds) == text
