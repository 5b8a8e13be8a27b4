"""Natural sparsity: the shares are those of the traced activations, and what is exact is exact."""

import numpy as np
import pytest
import tiny

from minillm.study.natural import natural_sparsity
from minillm.trace import Trace
from minillm.transformer.texts import runs


def gates(model, step):
    """Every value of a step of layer 1, (tokens, F), over all that the protocol reads."""
    found = []
    for run in runs(model, tiny.STORIES, "documents", 16):
        with Trace(keep=f"blocks.1.mlp.{step}") as trace:
            model.forward(run.ids, tap=trace)
        found.append(trace[f"blocks.1.mlp.{step}"])
    return np.concatenate(found)


@pytest.mark.parametrize("act", ["silu", "relu", "relu2", "gelu"])
def test_the_shares_are_those_of_the_traced_activations(tmp_path, act):
    model = tiny.loaded(tmp_path, hidden_act=act)
    rows = natural_sparsity(model, tiny.STORIES, 16)
    gate, mid = gates(model, "gate"), gates(model, "mid")
    r = np.sqrt((gate**2).mean(axis=1))
    assert [row["layer"] for row in rows] == [0, 1] and rows[1]["tokens"] == len(gate)
    assert rows[1]["gate_zeros"] == (gate == 0).mean() and rows[1]["mid_zeros"] == (mid == 0).mean()
    for percent in (1, 10):
        near = np.mean([abs(row) <= percent / 100 * size for row, size in zip(gate, r, strict=True)])
        assert rows[1][f"gate_below_{percent}_percent"] == pytest.approx(near, abs=1e-12)


def test_relu_cuts_what_is_not_positive_and_silu_nothing(tmp_path):
    relu, silu = (tiny.loaded(tmp_path / act, hidden_act=act) for act in ("relu", "silu"))
    (_, row), (_, smooth) = natural_sparsity(relu, tiny.STORIES, 16), natural_sparsity(silu, tiny.STORIES, 16)
    assert row["gate_zeros"] == row["mid_zeros"] == (gates(relu, "gate_pre") <= 0).mean() > 0.3
    assert smooth["gate_zeros"] == smooth["mid_zeros"] == 0 < smooth["gate_below_10_percent"]
    assert row["gate_zeros"] <= row["gate_below_1_percent"] <= row["gate_below_10_percent"]


def test_a_layer_that_is_all_zero_is_all_zero_and_all_near(tmp_path):
    model = tiny.model(hidden_act="relu", vocab_size=tiny.VOCABULARY)
    model.folder = tiny.folder(tmp_path)  # for its tokenizer
    model.layers[0].gate_proj[:] = 0
    row = natural_sparsity(model, tiny.STORIES)[0]
    assert row["gate_zeros"] == row["gate_below_1_percent"] == row["mid_zeros"] == 1
