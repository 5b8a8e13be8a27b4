"""The README's table of figures: what the script replaces; tests/test_readme.py measures the figures again."""

import pytest
from scripts import load_script


@pytest.fixture
def script():
    return load_script("weights_scripts/write_readme_table.py")


def test_the_readme_has_one_block_and_it_has_the_columns_of_the_script(script):
    text = script.README.read_text(encoding="utf-8")
    assert text.count(script.BEGIN) == text.count(script.END) == 1
    block = text.split(script.BEGIN)[1].split(script.END)[0]
    assert "| policy |" in block and "perplexity" in block and f"{script.CALIBRATION_DOCUMENTS} training" in block


def test_the_block_alone_is_replaced(script, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(script, "README", readme)
    monkeypatch.setattr(script, "table", lambda *paths: " ".join(path.name for path in paths))
    monkeypatch.setattr("sys.argv", ["write_readme_table.py", "a/model", "b/valid.txt", "c/train.txt"])
    script.main()
    expected = f"before\n{script.BEGIN}\nmodel valid.txt train.txt\n{script.END}\nafter\n"
    assert readme.read_text(encoding="utf-8") == expected
