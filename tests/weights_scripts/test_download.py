"""The download script prints what to call the model, or one sentence; tests/loading/test_hub.py downloads with it."""

from pathlib import Path

import pytest
from scripts import load_script


@pytest.fixture
def script():
    return load_script("weights_scripts/download.py")


def test_it_prints_the_name_with_the_commit_and_the_folder(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "download", lambda name: Path("cache") / "0123abc")
    monkeypatch.setattr("sys.argv", ["download.py", "org/name@main"])
    assert script.main() == 0
    assert capsys.readouterr().out.splitlines() == ["org/name@0123abc", str(Path("cache") / "0123abc")]


def test_a_name_that_is_none_is_refused_with_one_sentence(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["download.py", "../../etc"])
    assert script.main() == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("download: ") and err.count("\n") == 1 and "expected org/name" in err
