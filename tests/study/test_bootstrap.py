"""Intervals: how sure a difference between two methods is, and where no comparison is made."""

import json
import math
from functools import partial

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.study.bootstrap import compare_policies, difference, in_words, paired_bootstrap, with_intervals
from minillm.study.sweep import sweep
from minillm.transformer.evaluation import Evaluation
from minillm.transformer.texts import split_text

STORIES = [f"{story} {number}" for number in range(3) for story in tiny.STORIES]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A small sweep of a tiny model."""
    model = tiny.loaded(tmp_path_factory.mktemp("bootstrap") / "m")
    return partial(sweep, model, *split_text(STORIES), ("mid", "cats"), (0.3, 0.6), context=64)


def scores(rng, documents=60, effect=0.0, noise=0.01):
    """Two methods on the same documents: document difficulty varies far more than the methods differ."""
    tokens = rng.integers(50, 300, documents)
    per_token = rng.normal(2.5, 0.5, documents)
    a = tokens * (per_token + effect + rng.normal(0, noise, documents))
    return a, tokens * per_token, tokens


def test_equal_scores_have_the_interval_zero():
    a, _, tokens = scores(np.random.default_rng(0))
    assert paired_bootstrap(a, a, tokens, np.random.default_rng(1)) == (0.0, 0.0)


def test_a_planted_difference_is_found_and_none_where_there_is_none():
    a, b, tokens = scores(np.random.default_rng(0), effect=0.01)
    low, high = paired_bootstrap(a, b, tokens, np.random.default_rng(1))
    assert 0 < low < (a - b).sum() / tokens.sum() < high < 0.02
    minus = paired_bootstrap(b, a, tokens, np.random.default_rng(1))
    np.testing.assert_allclose(minus, (-high, -low), rtol=1e-12)
    missed = 0
    for seed in range(60):
        low, high = paired_bootstrap(*scores(np.random.default_rng(seed)), np.random.default_rng(1), 400)
        missed += not low <= 0 <= high
    assert missed <= 10  # 5 % of 60 is 3


def test_the_paired_interval_is_far_narrower_than_an_unpaired_one():
    a, b, tokens = scores(np.random.default_rng(0), effect=0.01)
    low, high = paired_bootstrap(a, b, tokens, np.random.default_rng(1))
    rng, unpaired = np.random.default_rng(1), []
    for _ in range(500):
        i, j = rng.integers(len(tokens), size=(2, len(tokens)))
        unpaired.append(a[i].sum() / tokens[i].sum() - b[j].sum() / tokens[j].sum())
    assert high - low < 0.1 * np.subtract(*np.quantile(unpaired, [0.975, 0.025]))


def test_an_interval_takes_weights_levels_and_empty_documents_as_it_should():
    a, b, tokens = scores(np.random.default_rng(0), effect=0.01)
    wide, narrow = (paired_bootstrap(a, b, tokens, np.random.default_rng(1), level=level) for level in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    padded = [np.append(x, 0) for x in (a, b, tokens)]
    assert paired_bootstrap(*padded, np.random.default_rng(1)) == paired_bootstrap(
        a, b, tokens, np.random.default_rng(1)
    )
    # Two documents: the means are those of (0, 0), (0, 1) and (1, 1), tokens counted.
    assert paired_bootstrap([1, 6], [0, 0], [1, 2], np.random.default_rng(1)) == (1.0, 3.0)
    many = paired_bootstrap(*(np.tile(x, 400) for x in (a, b, tokens)), np.random.default_rng(1), 200)
    assert many[1] - many[0] < 0.1 * (wide[1] - wide[0])
    for wrong in (([1.0], [1.0], [3]), ([1.0, 2], [1.0, 2], [3, 0]), ([1.0, 2], [1.0], [3, 3])):
        with pytest.raises(MinillmError, match="expected one number per document|needs two"):
            paired_bootstrap(*wrong, np.random.default_rng(0))


def made(policy, per_token, by="neuron", target=0.5, cut=0.5, model="m", tokens=(100, 150, 120, 90)):
    nll = [n * (per_token + 0.1 * i) for i, n in enumerate(tokens)]
    return {
        "model": model, "policy": policy, "by": by, "target": target, "neuron_sparsity": cut, "read_exact": 1 - cut,
        "nll": sum(nll), "tokens": sum(tokens), "document_nll": nll, "document_tokens": list(tokens),
        "perplexity": math.exp(sum(nll) / sum(tokens)),
    }  # fmt: skip


def test_policies_are_compared_at_equal_neuron_sparsity_or_equal_reads_and_nowhere_else():
    table = [
        made("dense", 2.0, None, None, 0.0), made("mid", 2.1), made("cats", 2.2), made("cett", 2.05),
        made("topk", 2.1), made("teal", 2.5, cut=0.6), made("cats", 9.0, "tensor"), made("mid", 1.0, "tensor"),
        made("mid", 2.3, "reads"), made("dhar", 2.2, "reads"), made("cats", 2.0, target=0.7),
        made("cats", 1.0, model="n"),
    ]  # fmt: skip
    found = compare_policies(table)
    assert [(r["policy"], r["by"], r["verdict"]) for r in found] == [
        ("cats", "neuron", "worse"), ("cett", "neuron", "better"), ("topk", "neuron", "undecided"),
        ("teal", "neuron", "not equal"), ("dhar", "reads", "better"),
    ]  # fmt: skip
    assert all(r["baseline"] == "mid" and r["low"] - 1e-12 <= r["log_ratio"] <= r["high"] + 1e-12 for r in found)
    assert found[0]["log_ratio"] == pytest.approx(0.1) and found[4]["share"] == 0.5
    assert [r["policy"] for r in compare_policies(table, "cats")] == ["mid", "cett", "topk", "teal"]
    with pytest.raises(MinillmError, match="were not scored on the same documents"):
        compare_policies([made("mid", 2.1), made("cats", 2.2, tokens=(1, 2, 3, 4))])


def test_real_rows_are_compared_with_the_difference_that_their_perplexities_have(swept):
    found = swept(by="neuron")
    compared = compare_policies(found)
    assert [r["policy"] for r in compared] == ["cats", "cats"]
    mid, cats = found[1], found[2]
    assert compared[0]["log_ratio"] == pytest.approx(math.log(cats["perplexity"] / mid["perplexity"]), rel=1e-9)


def test_bands_hold_the_perplexity_and_are_nothing_for_the_dense_model(swept):
    rows = swept()
    banded = with_intervals(rows)
    for r in banded:
        assert r["perplexity_low"] <= r["perplexity"] <= r["perplexity_high"]
    assert banded[0]["perplexity_low"] == banded[0]["perplexity_high"] == rows[0]["perplexity"]
    assert banded[1]["perplexity_low"] < banded[1]["perplexity_high"]
    assert "perplexity_low" not in rows[1] and "perplexity_low" not in with_intervals(rows[1:])[0]
    assert json.loads(json.dumps(banded)) == banded


def evaluation(nll, tokens):
    return Evaluation("documents", 64, "1", float(np.sum(nll)), int(np.sum(tokens)), 1, np.array(nll), np.array(tokens))


def test_a_difference_of_perplexities_has_the_interval_of_its_logarithm():
    a, b, tokens = scores(np.random.default_rng(0), effect=0.01)
    ours, theirs = evaluation(a, tokens), evaluation(b, tokens)
    value, low, high = difference(ours, theirs, np.random.default_rng(1))
    limits = paired_bootstrap(a, b, tokens, np.random.default_rng(1))
    assert value == ours.perplexity - theirs.perplexity and low < value < high
    np.testing.assert_allclose([low, high], theirs.perplexity * np.expm1(limits), rtol=1e-12)
    assert difference(ours, ours) == (0, 0, 0)
    with pytest.raises(MinillmError, match="not of the same documents"):
        difference(ours, evaluation(b, tokens + 1))


def test_one_document_has_a_difference_without_an_interval():
    ours, theirs = evaluation([20.0], [10]), evaluation([10.0], [10])
    assert difference(ours, theirs) == (pytest.approx(math.e**2 - math.e), None, None)
    assert in_words(1.25, None, None) == "+1.250"
    assert in_words(1.25, 0.5, 2, "+.1f", " %") == "+1.2 % (+0.5 to +2.0 %)"
