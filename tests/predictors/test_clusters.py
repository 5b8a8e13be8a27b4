"""Clusters of patterns: exact limits, distances, balance, files."""

import numpy as np
import pytest
from patterns import BITS, check_forms_agree, check_selected_share, metrics, random_patterns, rng, texts

from minillm.errors import MinillmError
from minillm.predictors.baselines import Static
from minillm.predictors.clusters import Clusters, ClusterSettings, balanced, cluster, distances, spread
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.files import load_predictor, save_predictor
from minillm.predictors.select import predicted_ffn, sparse_ffn
from minillm.sparsity.policies import largest
from minillm.trace import Trace
from minillm.transformer.texts import document_hashes


@pytest.fixture(scope="module")
def model(three_layers):
    return three_layers[0]


@pytest.fixture(scope="module")
def thresholds(three_layers):
    return three_layers[1]


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
    centroids, labels = cluster(patterns, ClusterSettings(1, density), rng())
    assert np.array_equal(centroids[0], largest(patterns.mean(axis=0), round(density * 40)))
    assert not labels.any()


def test_one_cluster_predicts_as_the_static_mask_does(model, thresholds):
    train = texts(6)
    predictor = Clusters.fit(model, thresholds, train, rng(), ClusterSettings(count=1, size=10_000))
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
    predictor = Clusters.fit(model, thresholds, documents, rng(), ClusterSettings(**sizes))
    predictor.cutoffs = np.full(3, BITS)
    for document in documents:
        ids = model.tokenizer.encode(document)
        found = model.forward(ids, ffn=predicted_ffn(predictor, thresholds))
        assert np.array_equal(found, model.forward(ids, ffn=sparse_ffn(model, thresholds)))


def test_the_asymmetric_distance_recalls_no_less_than_hamming_at_the_same_centroids():
    patterns = random_patterns(300, density=0.4)
    for density, strictly in ((0.5, False), (None, True)):
        centroids, _ = cluster(random_patterns(200, density=0.4, seed=1), ClusterSettings(16, density), rng())
        kept = {
            kind: (patterns & centroids[distances(patterns, centroids, kind).argmin(axis=1)]).sum()
            for kind in ("missed", "hamming")
        }
        if strictly:
            assert kept["missed"] > kept["hamming"]
        else:
            assert kept["missed"] == kept["hamming"]  # equal densities: the two rank alike


def test_centroids_have_the_density_that_is_forced_on_them():
    centroids, labels = cluster(random_patterns(90), ClusterSettings(7, 0.3), rng())
    assert (centroids.sum(axis=1) == 12).all() and sorted(np.bincount(labels)) == [12] + [13] * 6


def test_clusters_find_planted_groups():
    groups = random_patterns(4, 200)
    truth = np.repeat(np.arange(4), 25)
    noisy = groups[truth] ^ (rng(2).random((100, 200)) < 0.05)
    centroids, labels = cluster(noisy, ClusterSettings(4, None), rng())
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
        Clusters.fit(model, thresholds, texts(2), rng(), ClusterSettings(**{"count": 2, "size": 10, **changes}))


def test_an_input_goes_to_the_cluster_with_the_nearest_mean_input(model, thresholds):
    predictor = Clusters.fit(model, thresholds, texts(5), rng(), ClusterSettings(count=6))
    x = rng().standard_normal((9, 8))
    away = np.linalg.norm(x[:, None] - predictor.means[1], axis=-1)
    assert np.array_equal(predictor.assigned(1, x), away.argmin(axis=1))


def test_no_assignment_recalls_more_than_the_one_by_the_true_pattern(model, thresholds):
    train, test = texts(8), texts(3, seed=7)
    by_pattern, by_input = (
        Clusters.fit(model, thresholds, train, rng(), ClusterSettings(count=12, assign=assign))
        for assign in ("pattern", "input")
    )
    by_pattern.cutoffs = by_input.cutoffs = np.full(3, BITS)
    assert np.array_equal(by_pattern.centroids, by_input.centroids)
    assert metrics(model, by_pattern, thresholds, test)["recall"] > metrics(model, by_input, thresholds, test)["recall"]


def test_pooled_layers_share_one_table(model, thresholds):
    predictor = Clusters.fit(model, thresholds, texts(4), rng(), ClusterSettings(count=6, pooled=True))
    assert predictor.centroids.shape == (1, 6, 6) and predictor.means.shape == (1, 6, 8)
    bits = np.unpackbits(predictor.centroids[0], axis=-1, count=45)
    scores = predictor.predict(2, 0, rng().standard_normal((5, 8)))
    assert {tuple(row) for row in (scores > BITS).astype(np.uint8)} <= {tuple(row) for row in bits}
    assert predictor.name == "clusters 6 pooled"


def test_clusters_that_need_the_true_pattern_are_no_file(model, thresholds, tmp_path):
    predictor = Clusters.fit(model, thresholds, texts(3), rng(), ClusterSettings(count=3, assign="pattern"))
    with pytest.raises(MinillmError, match="true pattern needs the model's own weights"):
        save_predictor(tmp_path / "p.safetensors", predictor)
    assert predictor.multiply_adds(0) == 2 * 45 * 8 + 3 * 45 / 32 and predictor.means is None


def test_the_selected_share_is_the_one_asked_for_in_spite_of_tied_votes(model, thresholds):
    train = texts(6)
    predictor = Clusters.fit(model, thresholds, train, rng(), ClusterSettings(count=5))
    check_selected_share(model, predictor, thresholds, train, 0.4)


def test_gathered_and_masked_forms_agree(model, thresholds):
    predictor = Clusters.fit(model, thresholds, texts(4), rng(), ClusterSettings(count=4))
    check_forms_agree(model, predictor, thresholds)


def test_bytes_count_packed_bits(model, thresholds):
    clusters = Clusters.fit(model, thresholds, texts(4), rng(), ClusterSettings(count=4))
    assert clusters.nbytes == 3 * 4 * 6 + 3 * 45 * 4 + 3 * 4 * 8 * 4
    assert clusters.multiply_adds(1) == 4 * 8


@pytest.mark.parametrize("pooled", [False, True])
def test_saved_clusters_come_back_the_same(model, thresholds, tmp_path, pooled):
    train = texts(5)
    predictor = Clusters.fit(model, thresholds, train, rng(), ClusterSettings(count=5, pooled=pooled))
    fit_cutoffs(model, predictor, thresholds, train, 0.5)
    save_predictor(tmp_path / "p.safetensors", predictor)
    back = load_predictor(tmp_path / "p.safetensors")
    assert (back.name, back.shape, back.nbytes) == (predictor.name, predictor.shape, predictor.nbytes)
    assert np.array_equal(back.cutoffs, predictor.cutoffs) and back.trained_on == frozenset(document_hashes(train))
    ids = model.tokenizer.encode(texts(1, seed=8)[0])
    a, b = (model.forward(ids, ffn=predicted_ffn(p, thresholds)) for p in (predictor, back))
    assert np.array_equal(a, b)
