"""prefetch replay, table and blocks on a tiny model, and the figures of simulate."""

import json

import pytest
import tiny
from speeds import SPEEDS

from minillm.cli import main as cli
from minillm.study.buffers import ALL, OWN


def test_replay_has_a_row_for_each_way_keeper_and_capacity_with_its_baselines(files, run, tmp_path):
    how = ("-m", files / "model", "--text", files / "text.txt", "--capacity", "0.25,0.5,1", "--keepers", "lru,belady")
    out = tmp_path / "rows.json"
    status, printed, _ = run("prefetch", "replay", *how, "--predictor", "static", "-o", out)
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert status == 0 and len(rows) == 2 * 3 * 2 and "its being known early saves" in printed
    assert {row["predictor"] for row in rows} == {"policy's own mask", "static"}
    for row in rows:
        assert row["belady"] >= row["lru"] - 1e-12 and {"random", "bytes_per_token", "stall_share"} <= set(row)
    dropped = run("prefetch", "replay", *how, "--miss", "drop", "--json")
    assert dropped[0] == 0 and {row["keeper"] for row in json.loads(dropped[1])} == {"lru"}


def test_simulate_and_replay_draw_what_they_found_and_table_says_that_it_does_not(files, run, tmp_path):
    pytest.importorskip("matplotlib")
    model = ("-m", files / "model", "--text", files / "text.txt")
    how = (*model, "--capacity", "0.25,0.5", "--tokens", 40)
    status, _, said = run("prefetch", "simulate", *model, "-n", 2, "--figure", tmp_path / "bars.svg")
    assert status == 0 and "Timeline of 3 layers and 1 tokens" in said and (tmp_path / "bars.svg").stat().st_size > 1000
    status, _, said = run("prefetch", "replay", *how, "--predictor", "static", "--figure", tmp_path / "hits.png")
    assert status == 0 and "Hit rate against the buffer's capacity" in said and "fetched per token" in said
    assert (tmp_path / "hits.png").stat().st_size > 1000
    status, _, said = run("prefetch", "table", *how, "--figure", tmp_path / "none.png")
    assert status == 2 and "(of simulate, replay, blocks, tuned)" in said
    status, _, said = run("prefetch", "simulate", *model, "--figure", tmp_path / "bars.gif")
    assert status == 1 and "the name ends in .gif, expected .png or .svg" in said


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    tiny.folder(folder / "model")
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(tiny.STORIES * 4), encoding="utf-8")
    (folder / "speed.json").write_text(json.dumps({"rows": SPEEDS}), encoding="utf-8")
    return folder


def test_table_is_printed_and_written(measured, capsys, tmp_path):
    how = ["prefetch", "table", "-m", measured / "model", "--text", measured / "text.txt", "--capacity", "0,0.5,1"]
    how += ["--predictor", "shadow-4,previous-token", "-o", tmp_path / "rows.json"]
    assert cli.main([str(word) for word in how]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(rows) == 3 * 4 + 3 * 2 and "knowing which neurons are needed" in printed and "laptop NVMe" in printed
    assert {row["way"] for row in rows} == {ALL, OWN, "shadow 4-bit", f"{OWN}, guess: previous-token"}


def test_blocks_are_printed_written_and_drawn(measured, capsys, tmp_path):
    how = ["prefetch", "blocks", "-m", measured / "model", "--text", measured / "text.txt", "--groups", "1,4"]
    how += ["--sparsity", "0.5", "--speed", measured / "speed.json", "-o", tmp_path / "rows.csv"]
    assert cli.main([str(word) for word in [*how, "--figure", tmp_path / "page.png"]]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8").count("\n") == 7 and (tmp_path / "page.png").is_file()
    assert "Bound for at most +10% of perplexity" in printed and "minillm bench ffn" in printed
    assert cli.main([str(word) for word in [*how, "--json"]]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 6


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("table --sparsity 0.3,0.5", "found '0.3,0.5', expected a share"),
        ("table --keeper lru", "--keeper lru (of simulate)"),
        ("simulate --keepers lru,lfu", "(of replay, real)"),
        ("simulate --capacity 0.3,0.5", "found '0.3,0.5', expected one share"),
        ("simulate --text a --calibration b", "not allowed with argument"),
        ("blocks --device x", "(of simulate, replay, table)"),
        ("blocks --thresholds x", "(of simulate, replay, table, real)"),
        ("replay --speed x", "(of blocks, tuned)"),
        ("real --device x folder", "(of simulate, replay, table)"),
    ],
)
def test_what_an_action_has_no_use_for_is_wrong_usage(words, sentence, run):
    status, _, said = run("prefetch", *words.split())
    assert status == 2 and sentence in said and "minillm prefetch" in said


def test_defaults_in_the_help_are_those_of_the_studies(run):
    from minillm.prefetch.replay import EVICTIONS, SHARES
    from minillm.study.blocks import GROUPS, SPARSITIES
    from minillm.study.buffers import TABLE_PREDICTORS

    def joined(values) -> str:
        return "".join(f"(default: {','.join(map(str, values))})".split())

    pages = {action: "".join(run("prefetch", action, "--help")[1].split()) for action in ("replay", "table", "blocks")}
    shares = [f"{share:g}" for share in SHARES]
    assert (
        joined(EVICTIONS) in pages["replay"] and joined(shares) in pages["replay"] and joined(shares) in pages["table"]
    )
    assert joined(TABLE_PREDICTORS) in pages["table"]
    assert joined(SPARSITIES) in pages["blocks"] and joined(GROUPS) in pages["blocks"]


def test_replay_counts_the_bytes_that_the_checkpoint_stores(files, run):
    how = ("-m", files / "model", "--text", files / "text.txt", "--capacity", "0", "--keepers", "lru", "--json")
    rows = [json.loads(run("prefetch", "replay", *how, "--dtype", dtype)[1])[0] for dtype in ("float32", "float64")]
    assert rows[0]["dense_bytes"] == rows[1]["dense_bytes"] and rows[0]["neuron_bytes"] == rows[1]["neuron_bytes"]
