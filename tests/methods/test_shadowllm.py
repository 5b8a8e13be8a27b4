"""ShadowLLM: the criteria and Taylor's check, networks, ranks, masks, and the rows."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.cli.predict import CRITERIA as NAMED
from minillm.errors import MinillmError
from minillm.methods.shadowllm import (
    CRITERIA,
    WAYS,
    Prompted,
    Shadows,
    answer_loss,
    answer_nll,
    importance,
    look_at,
    mask_of,
    prompted,
    rows_of,
    spearman,
    verdict,
)
from minillm.sparsity.selected import SelectedFFN, StaticSet
from minillm.training.backward import Saved, backward
from minillm.transformer.model import shape_of

IDS = np.array([1, 5, 3, 9, 30, 4, 4, 2, 7])
TEXT = Prompted(IDS, 4)


def test_to_first_order_the_loss_changes_by_what_taylor_says():
    """(L(m (1 - e)) - L(m (1 + e))) / 2e = - sum_t m_t . dL / dm_t, for the neurons of one layer together."""
    model, e, name = tiny.model(), 1e-4, "blocks.1.mlp.mid"
    saved = Saved()
    model.forward(IDS[:-1], tap=saved)
    d = backward(model, IDS[:-1], lambda z: answer_loss(z, TEXT), saved).steps[name]

    def loss(factor):
        z = model.forward(IDS[:-1], tap=lambda step, value: value * factor if step == name else value)
        return answer_loss(z, TEXT).value

    assert (loss(1 - e) - loss(1 + e)) / (2 * e) == pytest.approx(-(saved[name] * d).sum(), abs=1e-8)


def test_the_loss_is_that_of_the_continuation_alone():
    model = tiny.model()
    z = model.forward(IDS[:-1])
    value, d = answer_loss(z, TEXT)
    assert not d[:3].any() and d[3:].all(axis=1).any()
    assert value == pytest.approx(answer_nll(model, TEXT))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [("l2", [5**0.5, 5.0]), ("grad", [2**0.5, 5**0.5]), ("plainact", [3.0, 10.0]), ("taylor", [1.0, 2.0]),
     ("fisher", [5.0, 52.0])],
)  # fmt: skip
def test_criteria_by_hand(criterion, expected):
    mid, d = np.array([[1.0, 3.0], [2.0, 4.0]]), np.array([[1.0, 2.0], [-1.0, -1.0]])
    if criterion in ("l2", "grad"):
        expected[1] = {"l2": 5.0, "grad": 5**0.5}[criterion]
    np.testing.assert_allclose(importance(mid, d, criterion), expected)


def test_what_a_sequence_shows():
    model = tiny.model()
    seen = look_at(model, TEXT)
    assert set(seen.criteria) == set(CRITERIA) == set(NAMED)
    assert all(values.shape == (2, 12) for values in seen.criteria.values())
    saved = Saved()
    model.forward(IDS[:-1], tap=saved)
    assert np.array_equal(seen.context[1], saved["blocks.1.attn.out"][3])  # the last token of the prompt
    assert np.array_equal(seen.answer[0], saved["blocks.0.attn.out"][-1])
    d = backward(model, IDS[:-1], lambda z: answer_loss(z, TEXT), saved)
    by_hand = np.abs(model.layers[1].gate_proj * d.weights["model.layers.1.mlp.gate_proj.weight"]).sum(axis=1)
    assert np.array_equal(seen.criteria["weights"][1], by_hand)


def test_an_unknown_criterion():
    with pytest.raises(MinillmError, match="criterion 'snip' is unknown, expected one of l2, "):
        importance(np.ones((2, 2)), np.ones((2, 2)), "snip")


def test_spearman():
    assert spearman(np.array([1.0, 5.0, 9.0]), np.array([2.0, 3.0, 100.0])) == pytest.approx(1)
    assert spearman(np.array([1.0, 5.0, 9.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(0.8660254)  # tied ranks
    assert spearman(np.ones(3), np.arange(3.0)) == 0


def test_masks_of_layers_and_of_the_model():
    scores = np.array([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 10.0]])
    assert mask_of(scores, 0.5, whole=False).tolist() == [[True, True, False, False], [False, False, True, True]]
    assert mask_of(scores, 0.5, whole=True).tolist() == [[True, True, True, False], [False, False, False, True]]


def test_a_mask_of_all_neurons_is_the_dense_model():
    model = tiny.model()
    everything = SelectedFFN(StaticSet(np.ones((2, 12), bool)))
    assert answer_nll(model, TEXT, everything) == answer_nll(model, TEXT)


def test_prompts_are_whole_pieces_of_documents(tmp_path):
    model = tiny.loaded(tmp_path / "m")
    texts = prompted(model, tiny.STORIES, 5, 4)
    assert texts and all(len(ids) == 9 and prompt == 5 for ids, prompt in texts)


def test_one_network_for_all_layers_works_less_than_one_for_each():
    rng, shape = np.random.default_rng(0), (2, 8, 12)
    model = tiny.model()
    seen = [look_at(model, Prompted(rng.integers(3, 30, 9), 4)) for _ in range(6)]
    one, each = (Shadows.fit(shape, seen, "plainact", 5, per_layer=flag) for flag in (False, True))
    assert one.multiply_adds == 5 * (8 + 24) < each.multiply_adds == 2 * 5 * (8 + 12)
    assert one.scores(seen[0]).shape == each.scores(seen[0]).shape == (2, 12)


def test_networks_learn_what_the_context_says():
    """Two kinds of sequences with different neurons: the network tells them apart, and the released input differs."""
    rng, model = np.random.default_rng(0), tiny.model()
    seen = []
    for i in range(80):
        one = look_at(model, TEXT)
        context = rng.standard_normal((2, 8)) * 0.1 + (3 * np.eye(8)[i % 2])
        target = np.zeros((2, 12))
        target[:, 6 * (i % 2) : 6 * (i % 2) + 6] = 1
        seen.append(one._replace(criteria={"l2": target}, context=context, answer=rng.standard_normal((2, 8))))
    made = Shadows.fit((2, 8, 12), seen, "l2", 16)
    guess = made.scores(seen[1])
    assert guess[:, 6:].min() > guess[:, :6].max()
    blind = Shadows.fit((2, 8, 12), seen, "l2", 16, sees_answer=True)
    assert not np.allclose(blind.scores(seen[1]), guess)


def test_rows_and_verdict(tmp_path):
    model = tiny.loaded(tmp_path / "m", "float32")
    texts = prompted(model, tiny.STORIES * 3, 5, 4)
    rows = list(rows_of(model, texts[:8], texts[-2:], 0.5, ("l2", "plainact"), hidden=4))
    assert [(row["criterion"], row["from"]) for row in rows] == [
        (criterion, way) for criterion in ("l2", "plainact") for way in ("oracle", "static", *WAYS)
    ]
    assert all(row["spearman"] == pytest.approx(1) for row in rows if row["from"] == "oracle")
    assert shape_of(model) == (2, 8, 12) and len(verdict(rows)) == 5
    with pytest.raises(MinillmError, match="1 training and 2 test sequences"):
        list(rows_of(model, texts[:1], texts[:2]))


@pytest.mark.slow
def test_the_most_predictable_criterion_is_not_the_best_one():
    """On the default model: l2 is the most predictable, plainact the better one over the whole model, not per layer."""
    model = minillm.load("default")
    training, test = (prompted(model, minillm.embedded_text(name), 32, 32) for name in ("calibration", "test"))
    rows = list(rows_of(model, training[:150], test[:30], 0.5, ("l2", "plainact", "taylor")))
    by = {(row["criterion"], row["from"]): row for row in rows}
    order = [by[name, "layer 0"]["spearman"] for name in ("l2", "plainact", "taylor")]
    assert order == sorted(order, reverse=True) and order[0] > order[2] + 0.2
    assert by["plainact", "oracle"]["global"] < by["l2", "oracle"]["global"]
    assert by["plainact", "oracle"]["local"] > by["l2", "oracle"]["local"] + 0.1
    for name in ("l2", "plainact", "taylor"):
        assert by[name, "layer 0"]["spearman"] < by[name, "static"]["spearman"] + 0.02  # no gain over the mean
