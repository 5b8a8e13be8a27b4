"""Wanda: a matrix by hand, counts in every row, its control; what it costs on real models is in study/test_claims."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.methods import wanda
from minillm.methods.base import INPUTS, MATRIX_SETS, fit
from minillm.methods.wanda import removed_weights, scores
from minillm.transformer.layer import FFN_MATRICES
from minillm.transformer.model import Llama

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]


def model_of(family, folder) -> Llama:
    """A tiny model of a family with a tokenizer; Phi-3's files hold fused matrices, which loading splits."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(), encoding="utf-8")
    sizes = tiny.config(family, vocab_size=tiny.VOCABULARY, max_position_embeddings=128)
    return Llama(sizes, tiny.weights(sizes), folder)


@pytest.fixture(params=["plain", *tiny.FAMILIES])
def model(request, tmp_path):
    return model_of(request.param, tmp_path / "m")


# ---- the rule --------------------------------------------------------------------------------------------------------
def test_a_matrix_by_hand():
    matrix = np.array([[4.0, -3.0, 2.0, 1.0], [-1.0, 1.0, 1.0, -1.0]])
    norms = np.array([0.1, 1.0, 1.0, 5.0])
    assert np.array_equal(scores(matrix, norms), [[0.4, 3, 2, 5], [0.1, 1, 1, 5]])
    gone = removed_weights(scores(matrix, norms), 0.5)
    assert gone.tolist() == [[True, False, True, False], [True, True, False, False]]  # of equal scores the first goes
    control = removed_weights(scores(matrix, 1.0), 0.5)
    assert control.tolist() == [[False, False, True, True], [True, True, False, False]]


def prunes_by_inputs() -> bool:
    """Whether pruned() weights columns: o_proj of a layer whose z and output have the same width, so both could be."""
    layer = tiny.model(num_attention_heads=2, num_key_value_heads=2).layers[0]  # H d = D = 8
    norms = np.arange(1.0, 9) ** 2
    by_input = np.abs(layer.o_proj) * norms
    expected = layer.o_proj * (by_input >= np.sort(by_input, axis=1)[:, 4:5])
    return np.array_equal(wanda.pruned(layer, {"o_proj": norms}, 0.5, None).o_proj, expected)


def test_the_norm_is_that_of_the_input_and_the_norm_of_the_output_would_be_seen(monkeypatch):
    assert prunes_by_inputs()
    monkeypatch.setattr(wanda, "scores", lambda matrix, norms: np.abs(matrix) * norms[:, None])
    assert not prunes_by_inputs()


def test_two_of_four_stay_in_every_group():
    values = np.random.default_rng(0).random((5, 16))
    gone = removed_weights(values, 0.5, (2, 4)).reshape(5, 4, 4)
    assert (gone.sum(axis=2) == 2).all()
    groups = values.reshape(5, 4, 4)
    assert (np.where(gone, groups, 0).max(axis=2) < np.where(gone, 9, groups).min(axis=2)).all()
    assert not np.array_equal(gone.reshape(5, 16), removed_weights(values, 0.5))
    assert np.array_equal(removed_weights(values, 0.5, (8, 16)), removed_weights(values, 0.5))
    with pytest.raises(MinillmError, match="16 inputs, expected a multiple of 3 for 1:3"):
        removed_weights(values, 2 / 3, (1, 3))


@pytest.mark.parametrize(("target", "inputs", "count"), [(0.29, 100, 29), (0.3, 10, 3), (0.5, 7, 3), (0.99, 8, 7)])
def test_the_count_of_a_row_is_the_floor_of_its_share(target, inputs, count):
    gone = removed_weights(np.random.default_rng(0).random((4, inputs)), target)
    assert (gone.sum(axis=1) == count).all()


# ---- a whole model, every family -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["wanda", "wanda-all", "magnitude", "magnitude-all"])
def test_every_row_loses_its_share_and_everything_else_is_the_same_array(model, name):
    before = [{key: np.copy(getattr(layer, key)) for key in INPUTS} for layer in model.layers]
    made = fit(name, model, TEXT, 0.4)
    pruned = MATRIX_SETS["all" if name.endswith("all") else "ffn"]
    for old, copies, new in zip(model.layers, before, made.model.layers, strict=True):
        for key, value in vars(new).items():
            if key not in pruned:
                assert value is getattr(old, key)
                continue
            kept = value != 0
            assert (kept.sum(axis=1) == value.shape[1] - int(0.4 * value.shape[1])).all()
            assert np.array_equal(value[kept], copies[key][kept])  # what stays is not updated
        for key, copied in copies.items():
            assert np.array_equal(getattr(old, key), copied)  # the original is untouched
    assert made.model.lm_head is model.lm_head and made.model.embed_tokens is model.embed_tokens
    sizes = {key: made.model.layers[0].__dict__[key] for key in pruned}
    removed = sum(len(m) * int(0.4 * m.shape[1]) for m in sizes.values()) / sum(m.size for m in sizes.values())
    assert made.spec.achieved == pytest.approx(removed, abs=1e-12)


@pytest.mark.parametrize("name", ["wanda", "magnitude-all"])
def test_target_0_changes_no_logit(model, name):
    made = fit(name, model, TEXT, 0.0)
    ids = model.tokenizer.encode("The cat sat.")
    assert np.array_equal(made.model.forward(ids), model.forward(ids))
    assert made.spec.achieved == 0 and all(read.exact == read.dense for read in made.reads.values())


def test_with_equal_norms_it_is_its_control(model, monkeypatch):
    control = fit("magnitude-all", model, TEXT, 0.5).model
    different = fit("wanda-all", model, TEXT, 0.5).model
    monkeypatch.setattr(wanda, "squares", lambda x: np.full(x.shape[1], 7.0))
    same = fit("wanda-all", model, TEXT, 0.5).model

    def equal(a, b):
        return all(
            np.array_equal(getattr(x, n), getattr(y, n))
            for x, y in zip(a.layers, b.layers, strict=True)
            for n in INPUTS
        )

    assert equal(same, control) and not equal(different, control)


def test_an_input_that_is_never_active_loses_its_weights_first(tmp_path):
    model = model_of("plain", tmp_path / "m")
    layer = model.layers[0]
    norm = layer.post_attention_layernorm.copy()
    norm[3] = 0  # input 3 of gate and up is always 0
    model.layers[0] = replace(layer, post_attention_layernorm=norm)
    made = fit("wanda", model, TEXT, 1 / 8).model.layers[0]
    assert not made.gate_proj[:, 3].any() and np.count_nonzero(made.gate_proj) == 12 * 7


def test_a_pattern_takes_no_other_target_and_matrices_no_other_name(tmp_path):
    model = model_of("plain", tmp_path / "m")
    with pytest.raises(MinillmError, match=r"target is 0\.3, expected 0\.5: the pattern keeps 2 of 4 weights"):
        fit("wanda-2:4", model, TEXT, 0.3)
    with pytest.raises(MinillmError, match="matrices is 'attention', expected one of ffn, all"):
        wanda.fit(model, TEXT, 0.5, matrices="attention")
    made = fit("magnitude-2:4", model, TEXT, 0.5).model.layers[1]
    assert all((np.count_nonzero(getattr(made, n).reshape(-1, 4), axis=1) == 2).all() for n in FFN_MATRICES)
