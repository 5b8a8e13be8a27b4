"""What a choice of neurons or blocks costs: the rows, and that they are scores of the rules that they name."""

import numpy as np
import pytest
import tiny

from minillm.predictors.planes import PackedShadow
from minillm.prefetch.fetched import PredictedBlocks
from minillm.prefetch.reorder import BlockOracle, clustered, energy_shares, recorded_mid
from minillm.sparsity.selected import SelectedFFN
from minillm.study.blocks import BlockSettings
from minillm.study.choice import ORACLE, choice_rows, costs
from minillm.study.prediction import PredictionSettings, workshop_of
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import Sample

KNOWN, TEST = [story + " It is known." for story in tiny.STORIES * 2], [*tiny.STORIES, "A cat, a dog."]


def test_every_chooser_is_scored_at_every_share_and_block_size(tmp_path):
    model, sample = tiny.loaded(tmp_path / "m", "float32"), Sample(TEST, "documents", 32)
    rows = list(choice_rows(model, KNOWN, sample, (0.5, 0.25), BlockSettings((4,), 40)))
    names = [ORACLE, "4-bit unpacked", "4-bit packed", "2-bit packed"]
    found = [(row["sparsity"], row["group"], row["chosen_by"]) for row in rows]
    assert found == [(cut, group, name) for cut in (0.5, 0.25) for group in (1, 4) for name in names]
    dense = perplexity(model, *sample)
    for row in rows:
        assert row["dense_perplexity"] == dense.perplexity
        assert row["increase"] == pytest.approx(row["perplexity"] / dense.perplexity - 1)
        assert row["increase_low"] <= row["increase"] <= row["increase_high"]
    cost = {key: row["perplexity"] for key, row in zip(found, rows, strict=True)}

    oracle = perplexity(model, *sample, ffn=BlockOracle(1, 0.75).ffn())
    assert cost[0.25, 1, ORACLE] == oracle.perplexity
    assert costs(oracle, dense)["increase"] == rows[8]["increase"]  # the first of 0.25
    energies = [energy_shares(*each) for each in zip(recorded_mid(model, KNOWN, 40, 32), model.layers, strict=True)]
    rng = np.random.default_rng(0)
    orders = [clustered(energy, 4, rng, 0.75) for energy in energies]
    shadow = PackedShadow(workshop_of(model, KNOWN, PredictionSettings(), 32).shadow(2))
    selects = {ORACLE: BlockOracle(4, 0.75, orders), "2-bit packed": PredictedBlocks(shadow, 4, 0.75, orders)}
    for name, select in selects.items():
        assert cost[0.25, 4, name] == perplexity(model, *sample, ffn=SelectedFFN(select)).perplexity
