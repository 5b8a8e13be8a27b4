"""Sweeps: how a text is divided, what a row holds, and that it holds what the parts say by themselves."""

import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.study.sweep import first_tokens, row, score_cut, split_text, sweep

STORIES = [f"{story} {number}" for number in range(3) for story in tiny.STORIES]
TEXT = "\n<|endoftext|>\n".join(STORIES)
KEYS = """model policy by target achieved level neuron_sparsity tensor_sparsity read_gate read_up read_down read_exact
read_known_mask union_density union_window perplexity vs_dense bits_per_byte nll tokens bytes protocol context bos
dtype spec""".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("sweep") / "m")


def test_a_text_is_divided_at_40_percent_of_its_documents():
    calibration, test = split_text(TEXT)
    assert (len(calibration), calibration + test) == (5, STORIES)  # 0.4 * 12 = 4.8
    assert split_text(STORIES) == (calibration, test)  # a list of documents is the same
    assert split_text(["a", "b"]) == (["a"], ["b"])
    assert [len(part) for part in split_text([str(i) for i in range(10)], 0.7)] == [7, 3]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aaaa\nbb\ncccc\ndd", ("aaaa\nbb", "cccc\ndd")),  # 40 % of 15 is 6: the line end at 7 is nearer than that at 4
        ("aaaa\nbbbbbbbbbb", ("aaaa", "bbbbbbbbbb")),  # 40 % of 15 is 6: the only line end is before it
        ("aaaaaaaaaa\nbbbb", ("aaaaaaaaaa", "bbbb")),  # and here after it
        ("abcdefghij", ("abcd", "efghij")),  # no line end: at the character
        ("漢字" * 5, ("漢字漢字", "漢字" * 3)),  # characters, not bytes
    ],
)
def test_a_single_document_is_cut_at_the_line_end_nearest_to_40_percent(text, parts):
    assert split_text(text) == ([parts[0]], [parts[1]])


@pytest.mark.parametrize("text", ["", "a", "\n<|endoftext|>\n", [], ["a"]])
def test_a_text_too_short_to_divide_is_refused(text):
    with pytest.raises(MinillmError, match=r"the text holds \d document\(s\), too few"):
        split_text(text)


@pytest.mark.parametrize("context", [None, 8])
def test_first_tokens_keeps_just_as_many_documents_as_hold_them(model, context):
    counts = [len(model.tokenizer.encode(story, bos=False)) for story in STORIES]
    for wanted in (1, counts[0] - 1, counts[0], counts[0] + 1, sum(counts[:4]), sum(counts[:4]) + 1, sum(counts) - 1):
        kept = first_tokens(model, STORIES, wanted, context)
        assert kept == STORIES[: len(kept)]
        assert sum(counts[: len(kept)]) >= wanted > sum(counts[: len(kept) - 1])
    assert first_tokens(model, STORIES, sum(counts) + 1, context) == STORIES  # there are no more


def test_rows_come_dense_first_then_by_sparsity_and_policy_with_all_keys(model):
    calibration, test = split_text(TEXT)
    rows = list(sweep(model, calibration, test, ("mid", "dhar"), (0.3, 0.6), context=64))
    assert [(r["policy"], r["target"]) for r in rows] == [
        ("dense", None), ("mid", 0.3), ("dhar", 0.3), ("mid", 0.6), ("dhar", 0.6)
    ]  # fmt: skip
    assert all(list(r) == KEYS for r in rows)
    dense = rows[0]
    assert (dense["neuron_sparsity"], dense["read_exact"], dense["read_known_mask"], dense["vs_dense"]) == (0, 1, 1, 1)
    assert dense["by"] is dense["achieved"] is dense["level"] is dense["union_density"] is None
    for key in ("tokens", "bytes", "protocol", "context", "bos", "dtype", "model"):
        assert len({r[key] for r in rows}) == 1  # what must be equal for rows to be compared
    assert all(r["vs_dense"] == r["perplexity"] / dense["perplexity"] for r in rows)


@pytest.mark.parametrize("protocol", ["documents", "stream"])
def test_a_row_is_what_calibrate_and_perplexity_say_when_called_directly(model, protocol):
    calibration, test = split_text(TEXT)
    dense, cut = sweep(model, calibration, test, ("dhar",), (0.5,), "neuron", protocol, 32)
    direct = minillm.perplexity(model, test, protocol, 32)
    assert (dense["nll"], dense["tokens"], dense["bytes"]) == (direct.nll, direct.tokens, direct.bytes)
    thresholds = minillm.calibrate(model, calibration, "dhar", 0.5, 32, by="neuron")
    meter = minillm.SparsityMeter()
    direct = minillm.perplexity(model, test, protocol, 32, minillm.sparse_ffn(model, thresholds), meter)
    report = meter.report()
    assert (cut["nll"], cut["perplexity"], cut["bits_per_byte"]) == (
        direct.nll, direct.perplexity, direct.bits_per_byte
    )  # fmt: skip
    assert cut["neuron_sparsity"] == cut["achieved"] == report.neuron_sparsity  # on the text scored
    assert cut["level"] == thresholds.level
    assert (cut["read_gate"], cut["read_up"], cut["read_down"]) == report.read_exact
    assert 1 == cut["read_gate"] > cut["read_up"] > cut["read_down"]
    assert cut["read_exact"] == sum(report.read_exact) / 3
    assert f"target 0.500, achieved {report.neuron_sparsity:.3f}" in cut["spec"]


def test_what_is_achieved_is_that_of_the_text_scored_and_not_of_the_calibration_text(model):
    calibration, test = STORIES[:2], ["zzz zzz zzz. zzz qqq."]
    thresholds = minillm.calibrate(model, calibration, "mid", 0.5)
    dense = minillm.perplexity(model, test)
    found = score_cut(model, test, thresholds, dense)
    assert thresholds.spec.achieved == pytest.approx(0.5, abs=0.02)
    assert found["achieved"] == found["neuron_sparsity"]
    assert found["achieved"] != thresholds.spec.achieved
    assert row(model, dense, dense)["spec"] == "dense: nothing is cut"


def test_sweeping_shares_one_calibration_pass_between_policies_and_changes_nothing(model):
    calibration, test = split_text(TEXT)
    together = list(sweep(model, calibration, test, ("dhar", "cats", "mid"), (0.4,)))[1:]
    alone = [list(sweep(model, calibration, test, (policy,), (0.4,)))[1] for policy in ("dhar", "cats", "mid")]
    assert together == alone


def test_an_unknown_policy_is_refused_before_anything_is_scored(model):
    with pytest.raises(MinillmError, match="policy 'nothing' is unknown"):
        next(sweep(model, STORIES[:1], STORIES[1:], ("mid", "nothing"), (0.5,)))
