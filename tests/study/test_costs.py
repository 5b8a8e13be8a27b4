"""The cost tables of the report: which rows they hold, and that methods get a table only where they are asked for."""

import pytest
import tiny

from minillm.errors import MinillmError
from minillm.methods.base import fit
from minillm.study.costs import COMPARED_POLICIES, HALF, TARGETS, WEIGHT_TARGETS, cost_rows, method_rows
from minillm.study.score import score_variant
from minillm.transformer.evaluation import perplexity

KNOWN, SCORED = [f"{story} And then." for story in tiny.STORIES], tiny.STORIES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("costs") / "m", hidden_size=16, intermediate_size=24)


def test_each_group_has_the_dense_row_and_its_policies_at_its_targets(model):
    done = []
    cuts, half = cost_rows(model, KNOWN, SCORED, perplexity(model, SCORED), done.append)
    for by, targets in TARGETS.items():
        names = ("dhar",) if by == "tensor" else COMPARED_POLICIES
        order = [(row["policy"], row["by"], row["target"]) for row in cuts[by]]
        assert order == [("dense", None, None), *((name, by, target) for target in targets for name in names)]
    assert list(half) == ["mid", "dhar"] and len(done) == sum(len(rows) - 1 for rows in cuts.values())
    [row] = [row for row in cuts["neuron"] if (row["policy"], row["target"]) == ("mid", HALF)]
    assert row["nll"] == perplexity(model, SCORED, ffn=half["mid"]).nll


def test_methods_get_rows_by_weights_removed_and_nothing_without_one(model):
    dense = perplexity(model, SCORED)
    assert method_rows(model, KNOWN, SCORED, dense, (), pytest.fail) == {}
    done = []
    [(by, rows)] = method_rows(model, KNOWN, SCORED, dense, ("wanda", "magnitude"), done.append).items()
    names = [(name, target) for target in WEIGHT_TARGETS for name in ("wanda", "magnitude")]
    assert by == "weights" and [(row["policy"], row["target"]) for row in rows] == [("dense", None), *names]
    assert rows[3] == score_variant(fit("wanda", model, KNOWN, WEIGHT_TARGETS[1]), SCORED, dense)
    assert len(done) == len(names)
    with pytest.raises(MinillmError, match=r"expected 0\.5: .*2 of 4 weights"):
        method_rows(model, KNOWN, SCORED, dense, ("wanda-2:4",), done.append)
