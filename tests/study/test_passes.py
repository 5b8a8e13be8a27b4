"""Texts token by token: scored and continued as the model itself does it, timed, and compared."""

import time

import numpy as np
import pytest
import tiny

from minillm.study import passes
from minillm.trace import no_tap
from minillm.transformer.evaluation import perplexity
from minillm.transformer.ffn import swiglu
from minillm.transformer.generation import generate
from minillm.transformer.texts import runs

TEXTS = ["a cat ran.", "the sea", "a red ball"]  # a token per letter


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("passes") / "model", "float64")


def test_one_by_one_scores_and_generates_as_the_model_itself_does(whole):
    (text,) = runs(whole, TEXTS[:1])
    guesses, nll = passes.one_by_one(whole, text.ids)
    assert nll.sum() == pytest.approx(perplexity(whole, TEXTS[:1]).nll, rel=1e-12)
    assert guesses == whole.forward(text.ids[:-1]).argmax(axis=1).tolist()
    steps = [step.token for step in generate(whole, text.ids, 6)]
    guesses, nll = passes.one_by_one(whole, text.ids, 6)
    assert guesses[len(text.ids) - 1 :] == steps and len(nll) == len(text.ids) - 1


def test_generation_ends_with_the_sequence(whole, tmp_path):
    first = passes.one_by_one(whole, [1, 5], 1)[0][-1]
    model = tiny.loaded(tmp_path / "ending", eos_token_id=first)
    assert passes.one_by_one(model, [1, 5], 9)[0] == passes.one_by_one(whole, [1, 5], 1)[0]


def test_a_text_is_cut_after_so_many_scored_tokens(whole):
    pieces = runs(whole, TEXTS)
    lengths = [len(piece.ids) - piece.unscored for piece in pieces]
    for tokens in (1, lengths[0], lengths[0] + 1, 10_000):
        cut = passes.cut_after(pieces, tokens)
        assert sum(len(piece.ids) - piece.unscored for piece in cut) == min(tokens, sum(lengths))
        assert all(ours.ids == theirs.ids[: len(ours.ids)] for ours, theirs in zip(cut, pieces, strict=False))


def test_the_stopwatch_counts_the_ffns_seconds_without_what_happens_before_a_pass():
    layers, calls = tiny.model().layers, []

    def ffn(x, layer, position, tap):
        calls.append(layer.index)
        time.sleep(0.002)
        return x

    watch = passes.Stopwatch(ffn, lambda: calls.append("before") or time.sleep(0.02))
    for position in (0, 3):
        for layer in layers:
            watch(np.zeros((3, 8)), layer, position, no_tap)
    assert calls == ["before", 0, 1] * 2 and watch.tokens == 6
    assert watch.seconds >= 0.008 and watch.outside >= 0.04
    assert watch.seconds < 0.04 or watch.outside > 0.08  # the pauses are not in it (unless the machine stood still)


def test_the_result_of_texts_is_their_score_or_their_continuation_and_agrees_with_itself(whole):
    texts = runs(whole, TEXTS)
    scored = passes.run_texts(whole, passes.Reading(texts), lambda number: swiglu)
    expected = perplexity(whole, TEXTS)
    assert scored.nll == pytest.approx(expected.nll, rel=1e-12) and scored.scored == expected.tokens
    assert scored.agreement(scored) == 1 and scored.seconds > 0
    continued = passes.run_texts(whole, passes.Reading(texts, 4), lambda number: swiglu)
    assert continued.guesses == [[step.token for step in generate(whole, text.ids, 4)] for text in texts]
    assert (continued.nll, continued.scored) == (0, 0)


def test_agreement_is_the_share_of_equal_guesses_by_hand():
    mine, theirs = (passes.Result(guesses, 0.0, 0, 0.0) for guesses in ([[1, 2], [3]], [[1, 5, 6], [3]]))
    assert mine.agreement(theirs) == 2 / 4  # a text that ended early here agrees nowhere after its end
