"""Real runs from a bundle folder: the same text as in memory, every byte counted, cold where the system allows it."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.predictors.select import sparse_ffn
from minillm.prefetch import eviction
from minillm.prefetch import replay as replay_module
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.bundle import open_bundle, resident_llama, whole_llama, write_bundle, write_random_bundle
from minillm.prefetch.reader import BundleReader
from minillm.prefetch.system import Unsupported
from minillm.sparsity.calibrate import calibrate
from minillm.study import disk as real
from minillm.study import passes
from minillm.transformer.evaluation import perplexity
from minillm.transformer.generation import generate
from minillm.transformer.texts import Run, runs

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's own counters and limits")
LAYERS, F, D = 2, 12, 8
TEXTS = ["a cat ran.", "the sea", "a red ball"]  # a token per letter


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(group) -> bundle, whole model, resident rest, thresholds; float64."""
    folder, known = tmp_path_factory.mktemp("real"), {}
    tiny.folder(folder / "model")

    def make(group):
        if group not in known:
            bundle = open_bundle(write_bundle(folder / "model", folder / f"g{group}", group))
            whole = whole_llama(bundle, "float64")
            thresholds = calibrate(whole, tiny.STORIES[3:], "mid", 0.5, None, "neuron")
            known[group] = bundle, whole, resident_llama(bundle, "float64"), thresholds
        return known[group]

    make.folder = folder
    return make


def oracle_of(made, group, texts, new=0):
    bundle, whole, model, thresholds = made(group)
    ffn = real.oracle_ffn(whole, bundle, thresholds, 0.5)
    return real.oracle(whole, bundle, ffn, passes.Reading(texts, new)), ffn


# ---- the rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("group", [1, 5])
def test_from_disk_the_text_is_scored_as_in_memory_and_the_bytes_are_those_of_the_bundles(
    made, group, portable, monkeypatch
):
    if portable:
        monkeypatch.delattr(os, "preadv", raising=False)
    bundle, whole, model, _ = made(group)
    texts = runs(whole, TEXTS)
    dense, resident = real.resident_row(whole, passes.Reading(texts))
    oracle, ffn = oracle_of(made, group, texts)
    expected = {"everything": perplexity(whole, TEXTS), "oracle": perplexity(whole, TEXTS, ffn=ffn)}
    assert dense["perplexity"] == pytest.approx(expected["everything"].perplexity, rel=1e-9)
    assert dense["agreement"] == 1 and dense["tokens"] == expected["oracle"].tokens
    assert list(map(len, resident.guesses)) == [len(text.ids) - text.unscored for text in texts]
    sizes = np.minimum(group, F - np.arange(bundle.blocks) * group) * bundle.neuron_bytes
    asked = {"everything": len(oracle.trace) * LAYERS * sizes.sum(), "oracle": (oracle.trace @ sizes).sum()}
    assert asked["oracle"] < asked["everything"]
    for plan in (real.EVERYTHING, oracle):
        for ahead in (False, True):
            row, _ = real.fetched_row(
                model, bundle, passes.Reading(texts), plan._replace(ahead=ahead), resident=resident
            )
            assert row["perplexity"] == pytest.approx(expected[plan.name].perplexity, rel=1e-9)
            assert row["bytes_per_token"] * row["tokens"] == pytest.approx(asked[plan.name])
            assert row["reads"] == pytest.approx(asked[plan.name] / asked["everything"])
            assert row["way"] == plan.name and row["ahead"] == ahead and row["hit_rate"] is None
            assert 0 < row["read_seconds"] < row["ffn_seconds"] and row["tokens_per_second"] > 0
    assert (
        row["agreement"]
        < 1
        <= 1
        / real.fetched_row(model, bundle, passes.Reading(texts), real.EVERYTHING, resident=resident)[0]["agreement"]
    )


@linux
@pytest.mark.parametrize("portable", [False, True])
def test_the_systems_own_count_of_bytes_is_the_same(made, portable, monkeypatch):
    if portable:
        monkeypatch.delattr(os, "preadv", raising=False)
    bundle, whole, model, _ = made(5)
    texts = runs(whole, TEXTS)
    oracle, _ = oracle_of(made, 5, texts)
    plans = [oracle._replace(ahead=ahead) for ahead in (False, True)]
    rows = [real.fetched_row(model, bundle, passes.Reading(texts), plan)[0] for plan in plans]
    assert all(row["system_bytes"] == row["bytes_per_token"] for row in rows) and real.counters_agree(rows)
    assert real.counters_agree([rows[0] | {"system_bytes": rows[0]["bytes_per_token"] + 1}]) is False
    assert real.counters_agree([rows[0] | {"system_bytes": None}]) is None


def test_a_prompt_is_continued_as_the_resident_model_does_it(made):
    bundle, whole, model, thresholds = made(1)
    texts = [Run(whole.tokenizer.encode("the cat"), 0, 0, 0)]
    oracle, ffn = oracle_of(made, 1, texts, 8)
    dense, resident = real.resident_row(whole, passes.Reading(texts, 8))
    assert (
        resident.guesses == [[step.token for step in generate(whole, texts[0].ids, 8)]] and dense["perplexity"] is None
    )
    row, found = real.fetched_row(model, bundle, passes.Reading(texts, 8), oracle, resident=resident)
    assert found.guesses == [[step.token for step in generate(whole, texts[0].ids, 8, ffn=ffn)]]
    same = sum(a == b for a, b in zip(found.guesses[0], resident.guesses[0], strict=False))
    assert row["agreement"] == same / len(resident.guesses[0]) and row["tokens"] == len(texts[0].ids) + 8 - 1
    row, found = real.fetched_row(model, bundle, passes.Reading(texts, 8), real.EVERYTHING, resident=resident)
    assert found.guesses == resident.guesses and row["agreement"] == 1


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("name", ["lru", "window-2", "random", "hot", "belady"])
def test_a_buffer_saves_what_it_hits_and_changes_no_result(made, group, name):
    bundle, whole, model, _ = made(group)
    texts, capacity = runs(whole, TEXTS), bundle.blocks // 2
    oracle, ffn = oracle_of(made, group, texts)
    frequencies = real.block_frequencies(whole, bundle, ffn, texts)
    plain, _ = real.fetched_row(model, bundle, passes.Reading(texts), oracle)
    buffered = real.DiskBuffer(name, capacity, frequencies)
    row, _ = real.fetched_row(model, bundle, passes.Reading(texts), oracle._replace(ahead=True), buffered)
    assert row["perplexity"] == plain["perplexity"] and row["bytes_per_token"] < plain["bytes_per_token"]
    assert (row["preloaded_bytes"] > 0) == (name in ("random", "hot"))
    settings = replay_module.ReplaySettings(hot_frequencies=frequencies)
    rule = eviction.belady(oracle.trace) if name == "belady" else settings.eviction(
        name, capacity, LAYERS, bundle.blocks
    )  # fmt: skip
    buffer = PrefetchBuffer(LAYERS, bundle.blocks, capacity, rule)
    buffer.follow(oracle.trace)
    buffer.run()
    assert row["hit_rate"] == buffer.traffic().hit_rate > 0
    if group == 1:
        missed = buffer.traffic().missed.sum() * bundle.neuron_bytes
        assert row["bytes_per_token"] * row["tokens"] == pytest.approx(missed)


@pytest.mark.parametrize("group", [1, 5])
def test_thresholds_of_another_model_are_warned_of_whatever_the_size_of_the_blocks(made, group):
    bundle, whole, _, thresholds = made(group)
    other = replace(thresholds, model=replace(thresholds.model, name="other", sha256="0" * 64))
    with pytest.warns(UserWarning, match=r"made for another model, other \(00000000\)"):
        real.oracle_ffn(whole, bundle, other, 0.5)


def test_how_often_a_block_is_wanted_is_counted_on_the_calibration_text(made):
    bundle, whole, _, _ = made(5)
    texts = runs(whole, TEXTS)
    oracle, ffn = oracle_of(made, 5, texts)
    shares = real.block_frequencies(whole, bundle, ffn, texts)
    assert shares.shape == (LAYERS, bundle.blocks)
    # the oracle's record has no pass of the last token of each text, which is only a target
    assert np.abs(shares - oracle.trace.mean(axis=0)).max() < 2 * len(texts) / len(oracle.trace)


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("name", ["static", "sign", "shadow-4", "ahead-4", "learned-ahead"])
def test_a_predictor_selects_as_in_memory_early_or_not(made, group, name):
    """The reader asks a predictor about the next layer before its time: what it then says in time must not change."""
    from minillm.predictors.cutoffs import fit_cutoffs
    from minillm.predictors.workshop import Workshop

    bundle, whole, model, thresholds = made(group)
    texts, known = runs(whole, TEXTS), tiny.STORIES[3:] * 2
    known = [f"{story} {i}" for i, story in enumerate(known)]
    predictor = Workshop(whole, thresholds, known[:1], known[1:], None, 2).make(name)
    fit_cutoffs(whole, predictor, thresholds, known[1:], 0.5)
    plan = real.disk_plan_of(predictor, bundle, 0.5)
    plans = [plan._replace(ahead=ahead) for ahead in (False, True)]
    found = [real.fetched_row(model, bundle, passes.Reading(texts), plan)[0] for plan in plans]
    assert found[0]["perplexity"] == found[1]["perplexity"]
    assert found[0]["bytes_per_token"] == found[1]["bytes_per_token"]
    if group == 1:
        expected = perplexity(whole, TEXTS, ffn=sparse_ffn(whole, thresholds, predictor=predictor))
        assert found[0]["perplexity"] == pytest.approx(expected.perplexity, rel=1e-9)
    else:  # two of three blocks of each layer: the shorter last one or not
        assert (
            found[0]["reads"] in (pytest.approx(10 / 12), pytest.approx(7 / 12)) or 7 / 12 < found[0]["reads"] < 10 / 12
        )


class Watched:
    """A Selector around another one, which keeps its answers by (layer, position)."""

    name, calibrated_on, reads = "watched", frozenset(), frozenset()

    def __init__(self, select):
        self.select, self.answers = select, {}

    def __call__(self, x, layer, position, tap):
        answer = self.select(x, layer, position, tap)
        self.answers.setdefault((layer.index, position), []).append(answer)
        return answer


def test_an_early_guess_of_a_predictor_made_to_look_ahead_is_what_it_then_selects(made):
    from minillm.predictors.workshop import Workshop

    bundle, whole, model, thresholds = made(1)
    known = [f"{tiny.STORIES[3]} {i}" for i in range(2)]
    for name in ("ahead-4", "learned-ahead"):
        predictor = Workshop(whole, thresholds, known[:1], known[1:], None, 2).make(name)
        predictor.cutoffs = np.zeros(LAYERS) if name == "learned-ahead" else np.full(LAYERS, 0.1)
        watch = Watched(real.disk_plan_of(predictor, bundle, 0.5).select(0))
        said = watch.answers
        plan = real.DiskPlan(name, lambda number, watch=watch: watch)
        real.fetched_row(model, bundle, passes.Reading(runs(whole, TEXTS[:1])), plan._replace(ahead=True))
        early = {place: answers for place, answers in said.items() if place[0] > 0}
        assert early and all(len(answers) == 2 and np.array_equal(*answers) for answers in early.values())


def test_belady_without_a_trace_and_hot_without_frequencies_are_refused(made):
    bundle, whole, model, _ = made(5)
    texts = runs(whole, TEXTS)
    with pytest.raises(MinillmError, match="belady must know the future, which everything does not"):
        real.fetched_row(model, bundle, passes.Reading(texts), real.EVERYTHING, real.DiskBuffer("belady", 1))
    with pytest.raises(MinillmError, match="frequencies are none"):
        real.fetched_row(model, bundle, passes.Reading(texts), real.EVERYTHING, real.DiskBuffer("hot", 1))


# ---- cold ------------------------------------------------------------------------------------------------------------


@linux
def test_every_token_begins_cold_and_the_disk_gives_at_least_what_is_used(cold_disk, tmp_path):
    fields = {**tiny.LLAMA, "hidden_size": 64, "head_dim": 16, "intermediate_size": 1024}
    bundle = open_bundle(write_random_bundle(fields, tmp_path / "bundle", 32))  # two layers of 768 kB
    with BundleReader(bundle) as reader:
        reader.fetch(0, np.arange(bundle.blocks))
        assert real.drop_page_cache(reader) == 0
    row, _ = real.fetched_row(
        resident_llama(bundle), bundle, passes.Reading([Run([1, 2, 3, 4], 1, 0, 0)]), real.EVERYTHING
    )
    assert row["cached"] == 0 and row["disk_bytes"] >= row["bytes_per_token"] == 2 * 3 * 1024 * 64 * 4


def test_where_the_system_shows_no_cache_nothing_is_claimed(made, monkeypatch):
    bundle, whole, model, _ = made(5)

    def absent(*_):
        raise Unsupported("no such call")

    monkeypatch.setattr(BundleReader, "drop_cache", absent)
    assert (
        0 <= real.fetched_row(model, bundle, passes.Reading([Run([1, 2], 1, 0, 0)]), real.EVERYTHING)[0]["cached"] <= 1
    )
    monkeypatch.setattr(real, "cached_share", absent)
    assert real.fetched_row(model, bundle, passes.Reading([Run([1, 2], 1, 0, 0)]), real.EVERYTHING)[0]["cached"] is None
