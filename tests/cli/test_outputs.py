"""What a command would write is refused before it works, where it cannot be written or is something that it reads."""

import os
import shutil

import pytest


@pytest.fixture
def there(here, tmp_path, monkeypatch):
    """A folder of its own with a model, two texts and a link to one."""
    shutil.copytree(here / "m", tmp_path / "m")
    shutil.copy(here / "stories.txt", tmp_path / "a.txt")
    shutil.copy(here / "stories.txt", tmp_path / "a.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        "calibrate -m m --text a.txt -o a.txt",
        "calibrate -m m --text a.txt -o ./m/../a.txt",
        "calibrate -m m --text a.txt -o m/config.json",
        "predict train -m m --text a.txt -o m/model.safetensors",
        "sweep -m m --text a.csv --policy mid -o link.csv",
        "sweep -m m --text a.txt --calibration a.csv --policy mid -o a.csv",
        "sweep -m m --policy mid -o new.png --figure new.png",
        "trace -m m -o m/tokenizer.json",
    ],
)
def test_an_output_that_is_also_an_input_is_refused_and_nothing_changes(run, there, words):
    if "--figure" in words:
        (there / "new.png").write_bytes(b"mine")
    before = contents(there)
    status, out, err = run(*words.split())
    assert (status, out) == (1, "") and "expected another name for the output" in err
    assert contents(there) == before


def test_a_table_may_lie_in_the_models_folder_and_be_continued(run, there):
    words = "sweep -m m --text a.txt --policy mid --sparsity 0.5 -o m/rows.csv".split()
    for _ in range(2):
        status, _, err = run(*words)
        assert status == 0, err


def test_a_new_figure_may_be_drawn_from_rows_that_are_there(run, there):
    pytest.importorskip("matplotlib")
    words = "sweep -m m --text a.txt --policy mid --sparsity 0.5 -o rows.csv".split()
    assert run(*words)[0] == 0
    status, _, err = run(*words, "--figure", "new.png")
    assert status == 0 and (there / "new.png").is_file(), err


@pytest.mark.parametrize("name", ["m", "pipe", "absent/name.json", "x" * 300 + ".json"])
def test_a_name_that_cannot_be_written_is_refused_before_the_work(run, there, name):
    os.mkfifo(there / "pipe")
    before = sorted(os.listdir(there))
    status, out, err = run("calibrate", "-m", "m", "--text", "a.txt", "-o", name)
    assert (status, out) == (1, "") and err.startswith("minillm: ") and "pass" not in err
    assert sorted(os.listdir(there)) == before
