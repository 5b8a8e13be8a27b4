"""A fingerprint is checked against the model that is used, and read back field by field."""

import warnings
from dataclasses import replace

import pytest

from minillm.errors import ThresholdsError
from minillm.identity import Fingerprint, read_fingerprint


def test_a_file_of_another_model_is_named_beside_the_one_it_is_used_with():
    ours, theirs = Fingerprint("ours", (2, 8, 16), "a" * 64), Fingerprint("theirs", (2, 8, 16), "b" * 64)
    with pytest.warns(UserWarning, match=r"t\.json .* another model, theirs \(bbbbbbbb\), .* with ours \(aaaaaaaa\)"):
        theirs.check(ours, "t.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.check(replace(ours, name="a copy in another folder"), "t.json")
    with pytest.raises(ThresholdsError, match=r"theirs \(3 layers.*ours \(2 layers"):
        replace(theirs, shape=(3, 8, 16)).check(ours, "t.json", ThresholdsError)


def test_a_fingerprint_is_read_back_field_by_field():
    ours = Fingerprint("ours", (2, 8, 16), "a" * 64)
    assert read_fingerprint(ours.asdict(), "t.json", ThresholdsError) == ours
    assert read_fingerprint(None, "t.json", ThresholdsError) is None
    for key, bad in (
        ("name", 3), ("name", "x" * 999), ("shape", [2, 8]), ("shape", [2, 8, True]), ("shape", "2 8"),
        ("sha256", "A" * 64), ("sha256", "a"), ("sha256", None), ("more", 1),
    ):  # fmt: skip
        with pytest.raises(ThresholdsError, match=r"t\.json: model is"):
            read_fingerprint(ours.asdict() | {key: bad}, "t.json", ThresholdsError)
    for bad in ([], "x", 0, {}):
        with pytest.raises(ThresholdsError, match=r"t\.json: model is"):
            read_fingerprint(bad, "t.json", ThresholdsError)
