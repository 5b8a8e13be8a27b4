"""The predictability experiment: crops, scopes, counts per scope, and its controls."""

import warnings

import numpy as np
import pytest
import tiny
from edited import reference_of, small_model, texts

from minillm.errors import MinillmError
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.policies import largest
from minillm.study import edits as module
from minillm.study.edits import crop, predictability, published, scopes, shared_prefix
from minillm.study.overlap import Overlap, Reference, patterns, reference
from minillm.study.variants import Pair, made_pairs, released_pairs, scatter
from minillm.transformer.model import Llama


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return small_model(tmp_path_factory.mktemp("patterns") / "model")


@pytest.fixture(scope="module")
def known(model) -> Reference:
    return reference_of(model)


def match(measured, scope: str, variant: str) -> float:
    rows = measured.rows(by_layer=False)
    return next(row["match"] for row in rows if (row["scope"], row["variant"]) == (scope, variant))


# ---- crops and scopes ------------------------------------------------------------------------------------------------


def test_a_crop_puts_the_first_edit_at_its_middle_and_gives_equal_lengths():
    a = list(range(100))
    b = a[:60] + [999] * 70
    left, right = crop(a, b, 20)
    assert left == a[50:70] and right == b[50:70] and shared_prefix(left, right) == 10
    assert [len(x) for x in crop(a, b, 1000)] == [100, 100]  # the longer one is cut
    left, right = crop(a, a[:95] + [999] * 5, 20)
    assert left == a[80:] and shared_prefix(left, right) == 15  # moved left, to stay full
    left, _ = crop(a, [999, *a[1:]], 20)
    assert left == a[:20]


def test_scopes_cover_what_they_say():
    a, b = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 9, 3, 4, 6, 7, 8]
    found = {scope: [x.tolist() for x in rows] for scope, rows in scopes(a, b).items()}
    assert found["prefix"] == [[0, 1]] * 2
    assert found["after"] == [[2, 3, 4, 5, 6, 7]] * 2
    assert found["changed"] == [[2, 3, 4]] * 2
    assert found["unchanged"] == [[5, 6, 7]] * 2
    assert found["aligned"] == [[2, 3, 5, 6, 7], [3, 4, 5, 6, 7]]
    assert found["window"] == [list(range(8))] * 2


# ---- the experiment --------------------------------------------------------------------------------------------------


def test_the_unrelated_rate_is_that_of_positions_drawn_at_random(model, known):
    ids = [model.tokenizer.encode(text) for text in texts(12, seed=1)]
    found = np.concatenate([patterns(model, text, known.thresholds) for text in ids], axis=1)  # (L, T, F)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(found.shape[1], size=3000) for _ in range(2))
    pair = Pair("t", "v", ids[0], ids[1])
    rows = [row for row in predictability(model, known, [pair]).rows() if row["scope"] == "window"]
    for layer, row in enumerate(rows):
        drawn = Overlap.of(found[layer, a], found[layer, b])
        assert row["unrelated_match"] == pytest.approx(drawn.match, abs=0.01)


def test_the_shared_prefix_matches_exactly_on_every_layer_and_position(model, known):
    documents = texts(3, 60, seed=2)  # longer than the context, so that they are cropped
    pairs = made_pairs(model, documents, np.random.default_rng(0))
    rows = [row for row in predictability(model, known, pairs, 100).rows(by_text=True) if row["scope"] == "prefix"]
    assert len(rows) == 3 * 8 * 3
    assert all(row["match"] == row["recall"] == row["iou"] == 1.0 for row in rows)


def test_an_off_by_one_in_the_crop_is_seen_at_the_prefix(model, known, monkeypatch):
    a = model.tokenizer.encode(" ".join(texts(2, 60)), bos=False)
    b = [*a[:100], *a[20:]]

    def shifted(original, variant, size):
        start = 100 - size // 2
        return original[start : start + size], variant[start + 1 : start + 1 + size]

    pair = Pair("t", "v", a, b)
    assert match(predictability(model, known, [pair], 64), "prefix", "v") == 1.0
    monkeypatch.setattr(module, "crop", shifted)
    rows = predictability(model, known, [pair], 64).rows(by_layer=False)
    prefix = next(row for row in rows if row["scope"] == "prefix")
    assert prefix["positions"] < 31  # the shared prefix of 32 tokens and the BOS is gone
    monkeypatch.setattr(module, "shared_prefix", lambda *_: 31)  # and where its length is believed, its rate tells
    assert match(predictability(model, known, [pair], 64), "prefix", "v") < 0.9


def test_a_model_that_sees_ahead_does_not_match_on_the_prefix(model, known, monkeypatch):
    real = Llama.hidden

    def sees_ahead(self, ids, *rest):
        return real(self, [ids[-1], *ids[1:]], *rest)

    a = model.tokenizer.encode(texts(1)[0], bos=False)
    b = [*a[:-9], *[a[3]] * 9]
    monkeypatch.setattr(Llama, "hidden", sees_ahead)
    assert a[-1] != b[-1]
    assert match(predictability(model, known, [Pair("t", "v", a, b)]), "prefix", "v") < 1


def test_random_weights_give_the_published_picture_without_any_predictability():
    """Prefix 1, changed positions near chance, the whole sequence s + (1 - s) of that (methods' control)."""
    model = _random_model()
    rng = np.random.default_rng(3)
    a, donor = (rng.integers(3, 500, 200).tolist() for _ in range(2))
    found = {}
    for percent in (95, 70):
        keep = 2 * percent
        found[percent] = Pair("t", f"tail {percent} %", a, a[:keep] + donor[keep:])
    found[0] = Pair("t", "scattered", a, scatter(a, 0.1, rng))
    measured = predictability(model, _random_reference(model, rng), found.values(), 256)
    for percent in (95, 70):
        name = f"tail {percent} %"
        assert match(measured, "prefix", name) == 1.0
        assert 0.48 < match(measured, "changed", name) < 0.6
        whole = percent / 100 + (1 - percent / 100) * match(measured, "after", name)
        assert match(measured, "window", name) == pytest.approx(whole, abs=0.01)
    assert 0.48 < match(measured, "changed", "scattered") < 0.65 < 0.75 < match(measured, "unchanged", "scattered") < 1


class _NoText:
    """What bos_ids asks of a tokenizer, for a model without one."""

    bos_ids = (1,)


def _random_model() -> Llama:
    sizes = tiny.config("plain", vocab_size=500, hidden_size=32, intermediate_size=128, num_hidden_layers=4,
                        max_position_embeddings=256)  # fmt: skip
    model = Llama(sizes, tiny.weights(sizes, std=0.2))
    model.__dict__["tokenizer"] = _NoText()
    return model


def _random_reference(model: Llama, rng: np.random.Generator) -> Reference:
    """Thresholds and frequencies from random ids: ``reference`` wants a text."""
    from minillm.sparsity.magnitudes import Magnitudes
    from minillm.sparsity.spec import SparsitySpec
    from minillm.sparsity.thresholds import Thresholds

    ids = rng.integers(3, 500, 250)
    magnitudes = Magnitudes(model, ["gate_pre"], len(ids))
    model.forward(ids, tap=magnitudes)
    layers = tuple(magnitudes.thresholds(["gate_pre"], 0.5))
    thresholds = Thresholds("dhar", "tensor", 0.5, layers, SparsitySpec("dhar", ("gate_pre",), ">=", "tensor", 0.5))
    frequency = patterns(model, ids, thresholds).mean(axis=1)
    return Reference(thresholds, frequency, np.array([largest(f, 64) for f in frequency]))


def test_aligned_positions_are_compared_where_difflib_found_them(model, known):
    """A token is put in: by index everything after it differs, two steps apart nothing is compared with itself."""
    a = model.tokenizer.encode(texts(1)[0], bos=False)
    b = [*a[:20], 40, 41, *a[20:]]
    before, after = (patterns(model, [1, *ids], known.thresholds)[2] for ids in (a, b[: len(a)]))
    rows = [row for row in predictability(model, known, [Pair("t", "v", a, b)]).rows() if row["layer"] == 2]
    found = {row["scope"]: row for row in rows}
    left, right = scopes([1, *a], [1, *b[: len(a)]])["aligned"]
    assert len(left) > 40 and (right != left).all()
    assert found["aligned"]["match"] == (before[left] == after[right]).mean() > found["changed"]["match"] + 0.1
    assert found["aligned"]["recall"] == (before[left] & after[right]).sum() / after[right].sum()


def test_pooled_rows_add_the_counts_of_texts_and_layers(model, known):
    pairs = made_pairs(model, texts(2), np.random.default_rng(0))
    measured = predictability(model, known, pairs)
    by_text, pooled = measured.rows(by_text=True), measured.rows(by_layer=False)
    for row in pooled:
        parts = [r for r in by_text if (r["variant"], r["scope"]) == (row["variant"], row["scope"])]
        assert row["positions"] * 3 == sum(part["positions"] for part in parts)
        weighted = sum(part["positions"] * part["match"] for part in parts) / sum(part["positions"] for part in parts)
        assert row["match"] == pytest.approx(weighted)
    assert {row["layer"] for row in by_text} == {0, 1, 2}


def test_the_whole_text_is_the_prefix_and_the_rest_by_their_lengths(model, known):
    a = model.tokenizer.encode(" ".join(texts(2, 60)), bos=False)
    pair = Pair("t", "v", a, [*a[:90], *a[:200]])
    rows = predictability(model, known, [pair], 64).rows(by_layer=False)
    after = next(row for row in rows if row["scope"] == "after")
    assert after["shared"] == 90 / 290
    assert after["whole_text"] == pytest.approx(90 / 290 + 200 / 290 * after["match"])


def test_the_published_rates_stand_beside_chance(model, known):
    pairs = made_pairs(model, texts(2), np.random.default_rng(0))
    rows = published(predictability(model, known, pairs))
    assert [row["similarity"] for row in rows] == ["95 %", "90 %", "85 %", "80 %", "75 %", "70 %"]
    assert rows[0]["text 4"] == "100.00%" and rows[5]["text 4"] == "53.83% .. 53.93%"
    assert [row["whole text at chance"] for row in (rows[0], rows[5])] == [0.975, 0.85]
    assert all(row["our prefix"] == 1.0 and row["our after"] < row["our whole text"] < 1 for row in rows)


@pytest.mark.parametrize("context", [2, 129])
def test_a_window_without_room_or_beyond_the_model_is_refused(model, known, context):
    with pytest.raises(MinillmError, match="expected 3 to 128"):
        predictability(model, known, [Pair("t", "v", [5, 6, 7], [5, 6, 8])], context)


def test_a_variant_that_is_the_same_text_is_left_out_and_without_any_other_there_is_nothing_to_compare(model, known):
    same, other = Pair("t", "v", [5, 6], [5, 6]), Pair("t", "w", [5, 6], [5, 7])
    longer = Pair("t", "x", [5, 6], [5, 6, 7])  # as far as both go, the same
    with pytest.warns(UserWarning, match="v of t is the same text"):
        rows = predictability(model, known, [same, other, longer]).rows()
    assert {row["variant"] for row in rows} == {"w"}
    for pairs in ([], [same, longer]):
        with pytest.raises(MinillmError, match="no text to compare"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictability(model, known, pairs)


@pytest.mark.shared
def test_on_a_released_text_a_real_model_matches_on_the_prefix_and_falls_below_a_static_mask_after(shared):
    model = Llama.from_folder(shared / "models" / "tinystories-656k")
    stories = (shared / "text" / "tinystories-train.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:8]
    known = reference(model, calibrate(model, stories, "dhar", 0.5), stories)
    pairs = released_pairs(model, shared / "paper" / "perturbation" / "paragraph8.txt")
    for row in predictability(model, known, pairs[-1:], 256).rows():
        if row["scope"] == "prefix":
            assert row["match"] == 1.0
        if row["scope"] == "changed":
            assert 0.48 < row["match"] < row["static_match"] < 0.65
