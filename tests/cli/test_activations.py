"""activations: three tables of two models, the same rows as JSON, a figure."""

import json

import pytest
import tiny

from minillm.cli import main as cli


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> list[str]:
    here = tmp_path_factory.mktemp("activations")
    (here / "text.txt").write_text("\n<|endoftext|>\n".join(3 * tiny.STORIES + [""]), encoding="utf-8")
    for act in ("silu", "relu2"):
        tiny.folder(here / act, hidden_act=act)
    return ["activations", "-m", str(here / "silu"), "-m", str(here / "relu2"), "--text", str(here / "text.txt")]


def test_three_tables_and_the_same_rows_as_json(common, capsys):
    assert cli.main([*common, "--by", "neuron", "--sparsity", "0.7"]) == 0
    printed = capsys.readouterr().out
    assert "exact zeros" in printed and "learned rank 2" in printed and "reuse_16" in printed
    assert cli.main([*common, "--by", "neuron", "--sparsity", "0.7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["affinity"]] == ["silu", "relu2"]
    assert [row["fraction"] for row in found["predictivity"]] == pytest.approx([0.3] * len(found["predictivity"]))
    zeros = [row["zeros"] for row in found["tradeoff"] if row["policy"] == "dense"]
    assert zeros[0] == 0 and zeros[1] > 0.3


def test_a_figure_of_another_kind_is_refused_before_the_work(common, capsys):
    assert cli.main([*common, "--figure", "a.jpg"]) == 1
    assert "expected .png or .svg" in capsys.readouterr().err
