"""Libraries of patterns and clusters of them: exact limits, distances, balance, files."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.baselines import Static
from minillm.predictors.clusters import Clusters, balanced, cluster, distances, spread
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.memory import Library, nearest, seen
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.select import predicted_ffn, sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.policies import largest
from minillm.trace import Trace
from minillm.transformer.evaluation import perplexity
from minillm.transformer.texts import document_hashes

WORDS = "the cat sat on a mat and saw the red sea. tom ran home.".split()
BITS = 0.75  # a cutoff between a set bit (1 and more) and a bit that is not (below one half)


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library") / "model"
    return tiny.loaded(folder, "float64", num_hidden_layers=3, intermediate_size=45, mlp_bias=True)


@pytest.fixture(scope="module")
def thresholds(model):
    return calibrate(model, texts(6), "mid", 0.5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_patterns(count: int, width: int = 40, density: float = 0.5, seed: int = 0) -> np.ndarray:
    return rng(seed).random((count, width)) < density


def metrics(model, predictor, thresholds, documents) -> dict[str, float]:
    meter = PredictionMeter()
    perplexity(model, documents, ffn=predicted_ffn(predictor, thresholds), tap=meter)
    return meter.report()


# ---- what is stored --------------------------------------------------------------------------------------------------


def test_what_was_seen_are_the_masks_and_inputs_of_the_cut_model(model, thresholds):
    inputs, patterns = seen(model, thresholds, texts(1), 10_000, rng())
    ids = model.tokenizer.encode(texts(1)[0])
    with Trace(keep=["*.mlp.norm", "*.mlp.mask"]) as trace:
        model.forward(ids, ffn=sparse_ffn(model, thresholds), tap=trace)
    for layer in range(3):
        assert np.array_equal(inputs[layer], trace[f"blocks.{layer}.mlp.norm"])
        assert np.array_equal(patterns[layer], trace[f"blocks.{layer}.mlp.mask"])


def test_fewer_positions_are_drawn_in_order_from_all_of_the_text(model, thresholds):
    every, _ = seen(model, thresholds, texts(4), 10_000, rng())
    some, _ = seen(model, thresholds, texts(4), 20, rng())
    rows = np.sort(rng().choice(every.shape[1], 20, replace=False))
    assert rows[-1] > 0.7 * every.shape[1] and np.array_equal(some, every[:, rows])


def test_thresholds_of_another_policy_are_refused(model):
    with pytest.raises(MinillmError, match="policy dhar, a predictor's truth is mid"):
        Library.fit(model, calibrate(model, texts(2), "dhar", 0.5), texts(2), rng())


def test_the_nearest_patterns_are_those_with_the_fewest_differing_bits():
    keys, library = random_patterns(70, 45), random_patterns(30, 45, seed=1)
    found = nearest(np.packbits(keys, axis=-1), np.packbits(library, axis=-1), 4)
    differing = (keys[:, None] ^ library).sum(axis=-1)
    assert np.array_equal(found, np.argsort(differing, axis=1, kind="stable")[:, :4])


# ---- the library -----------------------------------------------------------------------------------------------------


def test_a_library_of_the_text_itself_gives_back_its_own_patterns(tmp_path):
    """One neighbour, cutoffs between the bits: then every mask is the true one, and the sparse model comes out."""
    model = tiny.loaded(tmp_path, "float64", num_hidden_layers=3, intermediate_size=300)
    thresholds = calibrate(model, texts(2), "mid", 0.5)
    predictor = Library.fit(model, thresholds, texts(1), rng(), size=10_000, k=1)
    assert len(np.unique(predictor.library[0], axis=0)) == predictor.library.shape[1]  # each key is found once
    predictor.cutoffs = np.array([thresholds.layers[0]["mid"], BITS, BITS])
    ids = model.tokenizer.encode(texts(1)[0])
    found = model.forward(ids, ffn=predicted_ffn(predictor, thresholds))
    assert np.array_equal(found, model.forward(ids, ffn=sparse_ffn(model, thresholds)))
    predictor.library = np.roll(predictor.library, 1, axis=1)
    predictor.library[0] = np.roll(predictor.library[0], -1, axis=0)  # the keys of one position, the rest of another
    assert not np.array_equal(found, model.forward(ids, ffn=predicted_ffn(predictor, thresholds)))


def test_the_whole_library_as_neighbours_is_a_static_mask(model, thresholds):
    predictor = Library.fit(model, thresholds, texts(3), rng(), size=20, k=20)
    predictor.predict(0, 0, rng().standard_normal((4, 8)))
    scores = predictor.predict(2, 0, rng().standard_normal((4, 8)))
    assert (scores == scores[0]).all()
    assert np.array_equal(np.argsort(-scores[0], kind="stable"), np.argsort(-predictor.frequency[2], kind="stable"))


def test_the_selected_share_is_the_one_asked_for_in_spite_of_tied_votes(model, thresholds):
    train = texts(6)
    for predictor in (
        Library.fit(model, thresholds, train, rng(), k=1),
        Library.fit(model, thresholds, train, rng(), k=5),
        Clusters.fit(model, thresholds, train, rng(), count=5),
    ):
        fit_cutoffs(model, predictor, thresholds, train, 0.4)
        meter = PredictionMeter()
        for text in train:
            model.forward(model.tokenizer.encode(text), ffn=predicted_ffn(predictor, thresholds), tap=meter)
        assert meter.report()["selected"] == pytest.approx(0.4, abs=0.005)


def test_gathered_and_masked_forms_agree(model, thresholds):
    for predictor in (
        Library.fit(model, thresholds, texts(4), rng(), k=3),
        Clusters.fit(model, thresholds, texts(4), rng(), count=4),
    ):
        predictor.cutoffs = np.full(3, 0.6)
        ids = model.tokenizer.encode(texts(1, seed=9)[0])
        a, b = (model.forward(ids, ffn=predicted_ffn(predictor, thresholds, form)) for form in ("masked", "gathered"))
        assert np.allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(a).max())


def test_rows_without_their_keys_are_refused(model, thresholds):
    predictor = Library.fit(model, thresholds, texts(2), rng(), k=1)
    predictor.predict(0, 0, np.ones((3, 8)))
    with pytest.raises(MinillmError, match="layer 1 has 2 rows, layer 0 had 3"):
        predictor.predict(1, 0, np.ones((2, 8)))


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_patterns_are_refused(model, thresholds, k):
    with pytest.raises(MinillmError, match="expected 1 to 10"):
        Library.fit(model, thresholds, texts(3), rng(), size=10, k=k)


# ---- clusters --------------------------------------------------------------------------------------------------------


def test_distances_count_the_bits_that_the_centroid_misses():
    b, c = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    assert distances(b, c).tolist() == [[1 + 2 / 5, 0 + 2 / 5, 0]]
    assert distances(b, c, "hamming").tolist() == [[3, 2, 0]]
    with pytest.raises(MinillmError, match="expected missed or hamming"):
        distances(b, c, "cosine")


def test_balanced_labels_differ_in_size_by_at_most_one_and_earlier_clusters_choose_first():
    distance = rng().random((23, 5))
    labels = balanced(distance)
    assert sorted(np.bincount(labels)) == [4, 4, 5, 5, 5]
    assert set(np.flatnonzero(labels == 0)) == set(np.argsort(distance[:, 0])[:5])


def test_the_first_centroid_is_the_densest_and_no_pattern_is_taken_twice():
    patterns = random_patterns(12)
    chosen = spread(np.concatenate([patterns, patterns]), 24, rng())
    assert chosen[0] == patterns.sum(axis=1).argmax() and sorted(chosen) == list(range(24))
    dense = np.concatenate([random_patterns(10, density=0.8), random_patterns(10, density=0.3)])
    assert (spread(dense, 6, rng())[1:] >= 10).all()  # at least 40 % zeros, while there are such


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_one_cluster_is_the_static_mask_of_that_density(density):
    patterns = random_patterns(60) & (rng(1).random(40) < 0.9)
    centroids, labels = cluster(patterns, 1, density, rng())
    assert np.array_equal(centroids[0], largest(patterns.mean(axis=0), round(density * 40)))
    assert not labels.any()


def test_one_cluster_predicts_as_the_static_mask_does(model, thresholds):
    train = texts(6)
    predictor = Clusters.fit(model, thresholds, train, rng(), count=1, size=10_000)
    predictor.cutoffs = np.full(3, BITS)
    static = Static.fit(model, thresholds, train)
    assert np.allclose(static.shares, predictor.frequency)
    with Trace(keep="*.mlp.mask") as trace:
        ids = model.tokenizer.encode(texts(1, seed=5)[0])
        model.forward(ids, ffn=predicted_ffn(predictor, thresholds), tap=trace)
    for layer, name in enumerate(trace):
        assert (trace[name] == largest(static.shares[layer], round(0.5 * 45))).all()


def test_as_many_clusters_as_patterns_give_the_enforced_sparsity_exactly(model, thresholds):
    documents = texts(3)
    total = sum(len(model.tokenizer.encode(text)) for text in documents)
    sizes = {"count": total, "size": total, "density": None, "assign": "pattern"}
    predictor = Clusters.fit(model, thresholds, documents, rng(), **sizes)
    predictor.cutoffs = np.full(3, BITS)
    for document in documents:
        ids = model.tokenizer.encode(document)
        found = model.forward(ids, ffn=predicted_ffn(predictor, thresholds))
        assert np.array_equal(found, model.forward(ids, ffn=sparse_ffn(model, thresholds)))


def test_the_asymmetric_distance_recalls_no_less_than_hamming_at_the_same_centroids():
    patterns = random_patterns(300, density=0.4)
    for density, strictly in ((0.5, False), (None, True)):
        centroids, _ = cluster(random_patterns(200, density=0.4, seed=1), 16, density, rng())
        kept = {
            kind: (patterns & centroids[distances(patterns, centroids, kind).argmin(axis=1)]).sum()
            for kind in ("missed", "hamming")
        }
        if strictly:
            assert kept["missed"] > kept["hamming"]
        else:
            assert kept["missed"] == kept["hamming"]  # equal densities: the two rank alike


def test_centroids_have_the_density_that_is_forced_on_them():
    centroids, labels = cluster(random_patterns(90), 7, 0.3, rng())
    assert (centroids.sum(axis=1) == 12).all() and sorted(np.bincount(labels)) == [12] + [13] * 6


def test_clusters_find_planted_groups():
    groups = random_patterns(4, 200)
    truth = np.repeat(np.arange(4), 25)
    noisy = groups[truth] ^ (rng(2).random((100, 200)) < 0.05)
    centroids, labels = cluster(noisy, 4, None, rng())
    assert all(len(set(labels[truth == g])) == 1 for g in range(4))
    assert np.array_equal(centroids[labels[::25]], groups)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 0}, "0 clusters were asked for, expected 1 to"),
        ({"count": 11}, "11 clusters were asked for, expected 1 to 10"),
        ({"density": 0}, "density is 0, expected a share above 0"),
        ({"assign": "oracle"}, "assign is 'oracle', expected input or pattern"),
    ],
)
def test_settings_out_of_range_are_refused(model, thresholds, changes, says):
    with pytest.raises(MinillmError, match=says):
        Clusters.fit(model, thresholds, texts(2), rng(), **{"count": 2, "size": 10, **changes})


def test_an_input_goes_to_the_cluster_with_the_nearest_mean_input(model, thresholds):
    predictor = Clusters.fit(model, thresholds, texts(5), rng(), count=6)
    x = rng().standard_normal((9, 8))
    away = np.linalg.norm(x[:, None] - predictor.means[1], axis=-1)
    assert np.array_equal(predictor.assigned(1, x), away.argmin(axis=1))


def test_no_assignment_recalls_more_than_the_one_by_the_true_pattern(model, thresholds):
    train, test = texts(8), texts(3, seed=7)
    by_pattern, by_input = (
        Clusters.fit(model, thresholds, train, rng(), count=12, assign=assign) for assign in ("pattern", "input")
    )
    by_pattern.cutoffs = by_input.cutoffs = np.full(3, BITS)
    assert np.array_equal(by_pattern.centroids, by_input.centroids)
    assert metrics(model, by_pattern, thresholds, test)["recall"] > metrics(model, by_input, thresholds, test)["recall"]


def test_pooled_layers_share_one_table(model, thresholds):
    predictor = Clusters.fit(model, thresholds, texts(4), rng(), count=6, pooled=True)
    assert predictor.centroids.shape == (1, 6, 6) and predictor.means.shape == (1, 6, 8)
    bits = np.unpackbits(predictor.centroids[0], axis=-1, count=45)
    scores = predictor.predict(2, 0, rng().standard_normal((5, 8)))
    assert {tuple(row) for row in (scores > BITS).astype(np.uint8)} <= {tuple(row) for row in bits}
    assert predictor.name == "clusters 6 pooled"


# ---- bytes and files -------------------------------------------------------------------------------------------------


def test_bytes_count_packed_bits(model, thresholds):
    library = Library.fit(model, thresholds, texts(4), rng(), size=32, k=2)
    first = sum(array.nbytes for array in library.first.values())
    assert library.nbytes == 3 * 32 * 6 + 3 * 45 * 4 + first and sorted(library.first)[0] == "gate_bias"
    clusters = Clusters.fit(model, thresholds, texts(4), rng(), count=4)
    assert clusters.nbytes == 3 * 4 * 6 + 3 * 45 * 4 + 3 * 4 * 8 * 4
    assert clusters.multiply_adds(1) == 4 * 8
    assert library.multiply_adds(0) == 2 * 45 * 8 + 32 * 45 / 32 and library.multiply_adds(1) == 2 * 45


@pytest.mark.parametrize("kind", ["library", "clusters", "pooled"])
def test_a_saved_predictor_comes_back_the_same(model, thresholds, tmp_path, kind):
    train = texts(5)
    if kind == "library":
        predictor = Library.fit(model, thresholds, train, rng(), size=30, k=3)
    else:
        predictor = Clusters.fit(model, thresholds, train, rng(), count=5, pooled=kind == "pooled")
    fit_cutoffs(model, predictor, thresholds, train, 0.5)
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert (back.name, back.shape, back.nbytes) == (predictor.name, predictor.shape, predictor.nbytes)
    assert np.array_equal(back.cutoffs, predictor.cutoffs) and back.trained_on == frozenset(document_hashes(train))
    ids = model.tokenizer.encode(texts(1, seed=8)[0])
    a, b = (model.forward(ids, ffn=predicted_ffn(p, thresholds)) for p in (predictor, back))
    assert np.array_equal(a, b)


def test_clusters_that_need_the_true_pattern_are_no_file(model, thresholds, tmp_path):
    predictor = Clusters.fit(model, thresholds, texts(3), rng(), count=3, assign="pattern")
    with pytest.raises(MinillmError, match="true pattern needs the model's own weights"):
        save_predictor(tmp_path / "p.safetensors", predictor)
    assert predictor.multiply_adds(0) == 2 * 45 * 8 + 3 * 45 / 32 and predictor.means is None


@pytest.mark.parametrize("changes", [{"k": 0}, {"k": 31}, {"act": "tanh"}])
def test_a_library_whose_parts_do_not_fit_is_refused(model, thresholds, changes):
    predictor = Library.fit(model, thresholds, texts(4), rng(), size=30, k=3)
    with pytest.raises(ValueError, match="expected"):
        Library.from_arrays(predictor.arrays(), predictor.settings() | changes)
    with pytest.raises(ValueError, match="do not fit"):
        Library.from_arrays(predictor.arrays() | {"frequency": predictor.frequency[:2]}, predictor.settings())


def test_clusters_whose_parts_do_not_fit_are_refused(model, thresholds):
    predictor = Clusters.fit(model, thresholds, texts(3), rng(), count=3)
    for name, array in (("centroids", predictor.centroids[:2]), ("means", predictor.means[:, :2])):
        with pytest.raises(ValueError, match=name):
            Clusters.from_arrays(predictor.arrays() | {name: array}, predictor.settings())
