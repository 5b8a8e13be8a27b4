"""What a choice of neurons or blocks costs: the rows, and that they are scores of the rules that they name."""

import tiny

from minillm.prefetch.reorder import BlockOracle
from minillm.study.blocks import BlockSettings
from minillm.study.choice import ORACLE, choice_rows, costs
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import Sample

KNOWN, TEST = [story + " It is known." for story in tiny.STORIES * 2], [*tiny.STORIES, "A cat, a dog."]


def test_every_chooser_is_scored_at_every_share_and_block_size(tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32")
    sample = Sample(TEST, "documents", 32)
    rows = list(choice_rows(model, KNOWN, sample, (0.5, 0.25), BlockSettings((4,), 40)))
    names = [ORACLE, "4-bit unpacked", "4-bit packed", "2-bit packed"]
    found = [(row["sparsity"], row["group"], row["chosen_by"]) for row in rows]
    assert found == [(cut, group, name) for cut in (0.5, 0.25) for group in (1, 4) for name in names]
    dense = perplexity(model, *sample)
    for row in rows:
        assert row["dense_perplexity"] == dense.perplexity
        assert row["increase"] == row["perplexity"] / dense.perplexity - 1 or row["increase"] != 0
        assert row["increase_low"] <= row["increase"] <= row["increase_high"]
    oracle = perplexity(model, *sample, ffn=BlockOracle(1, 0.5).ffn())
    assert rows[0]["perplexity"] == oracle.perplexity
    assert costs(oracle, dense)["increase"] == rows[0]["increase"]
