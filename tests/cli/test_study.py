"""patterns and report on a tiny model."""

import json

import pytest
import reports
from edited import RELEASED, small_model, texts
from reports import TEST, TRAINING

from minillm.cli import main as cli
from minillm.study import summary as report
from minillm.transformer.model import Llama


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return small_model(tmp_path_factory.mktemp("patterns") / "model")


def test_patterns_prints_tables_and_writes_rows(tmp_path, model, capsys):
    (tmp_path / "calibration.txt").write_text("\n<|endoftext|>\n".join(texts(6, seed=5)), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(texts(2)), encoding="utf-8")
    common = ["patterns", "-m", str(model.folder), "--calibration", str(tmp_path / "calibration.txt")]
    assert cli.main([*common, "--text", str(tmp_path / "text.txt"), "-o", str(tmp_path / "rows.json")]) == 0
    printed = capsys.readouterr().out
    assert "unrelated" in printed and "Table II as published" in printed
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {row["text"] for row in rows} == {"document 0", "document 1"} and {row["layer"] for row in rows} == {0, 1, 2}

    (tmp_path / "released.txt").write_text(RELEASED, encoding="utf-8")
    assert cli.main([*common, "--released", str(tmp_path / "released.txt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"model", "pooled", "layers", "published"} and len(result["published"]) == 6

    (tmp_path / "edited.txt").write_text(texts(1)[0] + " tom", encoding="utf-8")
    (tmp_path / "one.txt").write_text(texts(1)[0] + " cat", encoding="utf-8")
    variant = ["--text", str(tmp_path / "one.txt"), "--variant", str(tmp_path / "edited.txt"), "--json"]
    assert cli.main([*common, *variant]) == 0
    assert {row["variant"] for row in json.loads(capsys.readouterr().out)["pooled"]} == {"edited"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--variant", "v.txt"], "--variant came without"), (["--released", "r", "--text", "t"], "both given")],
)
def test_flags_of_patterns_that_do_not_go_together_are_refused(flags, says, capsys):
    assert cli.main(["patterns", *flags]) == 1
    assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder():
    return reports.folder()


@pytest.mark.slow
def test_report_writes_the_page_and_its_rows_even_of_a_single_document(folder, tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_text("\n".join(TRAINING + TEST), encoding="utf-8")
    assert cli.main(["report", "-m", str(folder), "--text", str(text), "--tokens", "60", "-o", str(out), "--json",
                     "--method", "magnitude"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(out) and found["cuts"]["neuron"][1]["policy"] == "dhar" and found["timelines"]
    html = out.read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>") and html.rstrip().endswith("</html>") and str(text) in html
    assert found["compared"] == {} and "no intervals" in html
    assert {row["policy"] for row in found["cuts"]["weights"]} == {
        "dense",
        "magnitude",
    } and "--method magnitude" in html
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["page.html", "text.txt"]
    assert cli.main(["report", "-m", str(folder), "-o", str(tmp_path / "page.txt")]) == 1
    assert "expected .html" in capsys.readouterr().err


def test_report_and_its_chapter_have_the_same_defaults():
    given = cli.parser().parse_args(["report", "-o", "page.html"])
    assert (given.tokens, given.prompt) == (report.TOKENS, report.PROMPT)
