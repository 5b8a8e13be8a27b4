"""A library of patterns: exact limits, nearest keys, files."""

import numpy as np
import pytest
import tiny
from patterns import BITS, check_forms_agree, check_selected_share, random_patterns, rng, texts

from minillm.errors import MinillmError
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.memory import Library, LibrarySettings, nearest, sample_patterns
from minillm.predictors.select import predicted_ffn, sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.trace import Trace
from minillm.transformer.texts import document_hashes


@pytest.fixture(scope="module")
def model(three_layers):
    return three_layers[0]


@pytest.fixture(scope="module")
def thresholds(three_layers):
    return three_layers[1]


def test_what_was_seen_are_the_masks_and_inputs_of_the_cut_model(model, thresholds):
    inputs, patterns = sample_patterns(model, thresholds, texts(1), 10_000, rng())
    ids = model.tokenizer.encode(texts(1)[0])
    with Trace(keep=["*.mlp.norm", "*.mlp.mask"]) as trace:
        model.forward(ids, ffn=sparse_ffn(model, thresholds), tap=trace)
    for layer in range(3):
        assert np.array_equal(inputs[layer], trace[f"blocks.{layer}.mlp.norm"])
        assert np.array_equal(patterns[layer], trace[f"blocks.{layer}.mlp.mask"])


def test_fewer_positions_are_drawn_in_order_from_all_of_the_text(model, thresholds):
    every, _ = sample_patterns(model, thresholds, texts(4), 10_000, rng())
    some, _ = sample_patterns(model, thresholds, texts(4), 20, rng())
    rows = np.sort(rng().choice(every.shape[1], 20, replace=False))
    assert rows[-1] > 0.7 * every.shape[1] and np.array_equal(some, every[:, rows])


def test_thresholds_of_another_policy_are_refused(model):
    with pytest.raises(MinillmError, match="policy dhar, expected mid"):
        Library.fit(model, calibrate(model, texts(2), "dhar", 0.5), texts(2), rng())


def test_the_nearest_patterns_are_those_with_the_fewest_differing_bits():
    keys, library = random_patterns(70, 45), random_patterns(30, 45, seed=1)
    found = nearest(np.packbits(keys, axis=-1), np.packbits(library, axis=-1), 4)
    differing = (keys[:, None] ^ library).sum(axis=-1)
    assert np.array_equal(found, np.argsort(differing, axis=1, kind="stable")[:, :4])


def test_a_library_of_the_text_itself_gives_back_its_own_patterns(tmp_path):
    """One neighbour, cutoffs between the bits: then every mask is the true one, and the sparse model comes out."""
    model = tiny.loaded(tmp_path, "float64", num_hidden_layers=3, intermediate_size=300)
    thresholds = calibrate(model, texts(2), "mid", 0.5)
    predictor = Library.fit(model, thresholds, texts(1), rng(), LibrarySettings(size=10_000, k=1))
    assert len(np.unique(predictor.library[0], axis=0)) == predictor.library.shape[1]  # each key is found once
    predictor.cutoffs = np.array([thresholds.layers[0]["mid"], BITS, BITS])
    ids = model.tokenizer.encode(texts(1)[0])
    found = model.forward(ids, ffn=predicted_ffn(predictor, thresholds))
    assert np.array_equal(found, model.forward(ids, ffn=sparse_ffn(model, thresholds)))
    predictor.library = np.roll(predictor.library, 1, axis=1)
    predictor.library[0] = np.roll(predictor.library[0], -1, axis=0)  # the keys of one position, the rest of another
    assert not np.array_equal(found, model.forward(ids, ffn=predicted_ffn(predictor, thresholds)))


def test_the_whole_library_as_neighbours_is_a_static_mask(model, thresholds):
    predictor = Library.fit(model, thresholds, texts(3), rng(), LibrarySettings(size=20, k=20))
    predictor.predict(0, 0, rng().standard_normal((4, 8)))
    scores = predictor.predict(2, 0, rng().standard_normal((4, 8)))
    assert (scores == scores[0]).all()
    assert np.array_equal(np.argsort(-scores[0], kind="stable"), np.argsort(-predictor.frequency[2], kind="stable"))


def test_rows_without_their_keys_are_refused(model, thresholds):
    predictor = Library.fit(model, thresholds, texts(2), rng(), LibrarySettings(k=1))
    predictor.predict(0, 0, np.ones((3, 8)))
    with pytest.raises(MinillmError, match="layer 1 has 2 rows, layer 0 had 3"):
        predictor.predict(1, 0, np.ones((2, 8)))


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_patterns_are_refused(model, thresholds, k):
    with pytest.raises(MinillmError, match="expected 1 to 10"):
        Library.fit(model, thresholds, texts(3), rng(), LibrarySettings(size=10, k=k))


def test_the_selected_share_is_the_one_asked_for_in_spite_of_tied_votes(model, thresholds):
    train = texts(6)
    for k in (1, 5):
        predictor = Library.fit(model, thresholds, train, rng(), LibrarySettings(k=k))
        check_selected_share(model, predictor, thresholds, train, 0.4)


def test_gathered_and_masked_forms_agree(model, thresholds):
    predictor = Library.fit(model, thresholds, texts(4), rng(), LibrarySettings(k=3))
    check_forms_agree(model, predictor, thresholds)


def test_bytes_count_packed_bits(model, thresholds):
    library = Library.fit(model, thresholds, texts(4), rng(), LibrarySettings(size=32, k=2))
    first = sum(array.nbytes for array in library.first.values())
    assert library.nbytes == 3 * 32 * 6 + 3 * 45 * 4 + first and sorted(library.first)[0] == "gate_bias"
    assert library.multiply_adds(0) == 2 * 45 * 8 + 32 * 45 / 32 and library.multiply_adds(1) == 2 * 45


def test_a_saved_library_comes_back_the_same(model, thresholds, tmp_path):
    train = texts(5)
    predictor = Library.fit(model, thresholds, train, rng(), LibrarySettings(size=30, k=3))
    fit_cutoffs(model, predictor, thresholds, train, 0.5)
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert (back.name, back.shape, back.nbytes) == (predictor.name, predictor.shape, predictor.nbytes)
    assert np.array_equal(back.cutoffs, predictor.cutoffs) and back.trained_on == frozenset(document_hashes(train))
    ids = model.tokenizer.encode(texts(1, seed=8)[0])
    a, b = (model.forward(ids, ffn=predicted_ffn(p, thresholds)) for p in (predictor, back))
    assert np.array_equal(a, b)
