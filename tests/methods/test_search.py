"""The search: children keep the count, the best never gets worse, a known best is found, and what it is worth."""

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import search
from minillm.methods.base import fit
from minillm.methods.saved import save_variant
from minillm.methods.search import Settings, crossed, evolve, grown, moved, swapped
from minillm.methods.structured import CORRECTIONS
from minillm.transformer.documents import split_documents

TEXT = [f"{story} And {i} more." for i in range(2) for story in tiny.STORIES]
IDS = [1, 5, 3, 9, 30]
SHORT = Settings(population=6, parents=2, generations=3, tokens=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("search") / "m", intermediate_size=20)


def candidate(rng, widths=(10, 4, 16, 18), neurons=20) -> np.ndarray:
    """Masks of some widths (L, F)."""
    return np.array([rng.permutation(np.arange(neurons) < width) for width in widths])


# ---- children --------------------------------------------------------------------------------------------------------
def test_a_mutation_keeps_every_width_and_most_of_every_layer():
    rng = np.random.default_rng(0)
    masks, different = candidate(rng), 0
    before = masks.copy()
    for alpha in (0.8, 0.5, 1.0):
        for _ in range(200):
            child = swapped(masks, rng, alpha)
            assert np.array_equal(child.sum(axis=1), masks.sum(axis=1))
            assert ((child & masks).sum(axis=1) >= np.ceil(alpha * masks.sum(axis=1) - 1e-9)).all()
            different += not np.array_equal(child, masks)
    assert different > 300 and np.array_equal(masks, before)


def test_moves_and_crossings_keep_the_sum_and_no_layer_ends_empty():
    rng = np.random.default_rng(1)
    scores, a, b = rng.random((4, 20)), candidate(rng), candidate(rng, (18, 16, 4, 10))
    widths = set()
    for _ in range(300):
        for child in (moved(a, scores, rng, 5), crossed(a, b, scores, rng)):
            assert child.sum() == a.sum() == 48 and child.sum(axis=1).min() >= 2
            widths.add(tuple(child.sum(axis=1)))
    assert len(widths) > 50


def test_a_crossing_takes_layers_of_both_parents_and_repairs_few():
    rng = np.random.default_rng(3)
    scores, a, b = rng.random((4, 20)), candidate(rng), candidate(rng, (18, 16, 4, 10))
    taken = set()
    for _ in range(100):
        child = crossed(a, b, scores, rng)
        of = tuple("a" if np.array_equal(c, x) else "b" if np.array_equal(c, y) else "new"
                   for c, x, y in zip(child, a, b, strict=True))  # fmt: skip
        taken.add(of)
    assert any({"a", "b"} <= set(of) for of in taken) and len(taken) > 8
    thin, other = candidate(rng, (2, 2, 1, 1)), candidate(rng, (1, 1, 2, 2))  # no layer has anything to spare
    assert {int(crossed(thin, other, scores, rng).sum()) for _ in range(50)} == {6}


def test_the_least_important_go_and_the_most_important_come():
    mask, scores = np.array([True, True, False, False, True]), np.array([3.0, 1, 5, 4, 2])
    assert grown(mask, scores, -2).tolist() == [True, False, False, False, False]
    assert grown(mask, scores, 1).tolist() == [True, True, True, False, True]
    assert grown(mask, scores, 0).tolist() == mask.tolist() and mask.sum() == 3


# ---- the search ------------------------------------------------------------------------------------------------------
def test_the_best_never_gets_worse_and_a_known_best_is_found():
    """Fitness counts the neurons that differ from a goal which only moves and swaps together can reach."""
    rng = np.random.default_rng(2)
    start, goal = candidate(rng, (10, 10, 10)), candidate(rng, (4, 10, 16))
    scores = goal + 0.1 * rng.random(goal.shape)

    def fitness(masks):
        assert masks.sum() == 30
        return int((masks ^ goal).sum())

    settings = Settings(population=20, parents=5, generations=40)
    found = evolve(start, scores, fitness, settings)
    assert len(found.history) == 41 and found.history == sorted(found.history, reverse=True)
    assert found.history[-1] == fitness(found.masks) < fitness(start) / 4
    again = evolve(start, scores, fitness, settings)
    assert again.history == found.history and np.array_equal(again.masks, found.masks)
    assert evolve(start, scores, fitness, settings._replace(seed=1)).history != found.history


def test_a_population_needs_more_than_its_parents():
    with pytest.raises(MinillmError, match="20 parents of 20 candidates, expected fewer parents"):
        evolve(np.ones((1, 2), bool), np.ones((1, 2)), lambda masks: 0.0, Settings(parents=20))


# ---- a whole model ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reformed", [False, True])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_result_is_a_smaller_dense_model(model, tmp_path, reformed, correction):
    made = search.fit(model, TEXT, 0.5, settings=SHORT._replace(reformed=reformed), correction=correction)
    widths = [len(layer.gate_proj) for layer in made.model.layers]
    assert sum(widths) == 20 and made.removed == made.spec.achieved == 0.5 and made.spec.policy == "search"
    assert made.reads["down_proj"].exact == 2 * 8 * 20 and made.reads["down_proj"].dense == 2 * 8 * 40
    again = minillm.load(save_variant(tmp_path / "out", made, model, {}), dtype="float64")  # the narrow layer is padded
    assert again.config.intermediate_size == max(widths)
    expected = made.model.forward(IDS)
    assert np.abs(again.forward(IDS) - expected).max() < 1e-6 * np.abs(expected).max()


def test_target_0_is_the_dense_model_and_an_unknown_correction_is_refused(model):
    made = search.fit(model, TEXT, 0.0, settings=SHORT)
    assert np.array_equal(made.model.forward(IDS), model.forward(IDS)) and made.spec.achieved == 0
    with pytest.raises(MinillmError, match="score is 'size', expected one of norm, mid, importance"):
        search.fit(model, TEXT, 0.5, settings=SHORT._replace(score="size"))
    with pytest.raises(MinillmError, match="correction is 'OBS', expected one of none, least squares, ADMM"):
        search.fit(model, TEXT, 0.5, correction="OBS")


def test_it_is_no_worse_than_where_it_started_on_its_own_text(model):
    found = search.search(model, TEXT, 0.5, settings=SHORT)
    start = minillm.perplexity(fit("neurons-importance-mask", model, TEXT, 0.5).model, TEXT).perplexity
    assert found.history[0] <= start * (1 + 1e-9)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("correction", "expected"), [("none", 57), ("least squares", 50)])
def test_perplexities_are_those_of_an_independent_search(shared, correction, expected):
    """Its figures are rounded, and a search ends where its seed takes it: within half of one and one percent."""
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))
        for part in ("train", "valid")
    )
    made = search.fit(model, train[:100], 0.5, context=512, settings=Settings(score="mid"), correction=correction)
    assert minillm.perplexity(made.model, test, context=512).perplexity == pytest.approx(
        expected, abs=0.5 + 0.01 * expected
    )


@pytest.mark.shared
@pytest.mark.slow
def test_searched_widths_are_better_than_equal_ones_on_other_texts(shared):
    model = minillm.load(shared / "models" / "tinystories-656k")
    train, test = (
        split_documents((shared / "text" / f"tinystories-{part}.txt").read_text(encoding="utf-8"))[:100]
        for part in ("train", "valid")
    )

    def score(name: str) -> float:
        return minillm.perplexity(fit(name, model, train, 0.5, 512).model, test, context=512).perplexity

    assert score("search-mask") < 0.9 * score("neurons-importance-mask")
    assert score("search") < score("neurons-importance")
