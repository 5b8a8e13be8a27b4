"""Recording: what is recorded is the masks of the pass, needed and guessed."""

import numpy as np
import pytest
import tiny
from traces import guesser

from minillm.errors import MinillmError
from minillm.predictors.oracle import Oracle
from minillm.predictors.select import Predicted, sparse_ffn
from minillm.prefetch.record import Recorder, frequencies, record
from minillm.sparsity.calibrate import calibrate
from minillm.sparsity.selected import SelectedFFN
from minillm.sparsity.sparse import policy_selector
from minillm.trace import Trace
from minillm.transformer.evaluation import perplexity
from minillm.transformer.generation import generate
from minillm.transformer.texts import runs


def test_the_record_is_the_masks_of_the_pass(small):
    model, thresholds = small
    ffn = sparse_ffn(model, thresholds)
    recorder, ids = Recorder.of(model), model.tokenizer.encode("the cat sat.")
    with Trace(keep="*.mlp.mask") as trace:
        model.forward(ids, ffn=ffn, tap=lambda name, value: recorder(name, trace(name, value)))
    expected = np.stack([trace[f"blocks.{i}.mlp.mask"] for i in range(2)], axis=1)
    assert np.array_equal(recorder.needed, expected) and recorder.guessed is None


def test_a_generation_is_recorded_prompt_and_tokens_alike(small):
    model, thresholds = small
    ffn = sparse_ffn(model, thresholds)
    recorder, ids = Recorder.of(model), model.tokenizer.encode("a dog")
    steps = list(generate(model, ids, 5, ffn=ffn, tap=recorder, stop_at_eos=False))
    whole = Recorder.of(model)
    model.forward([*ids, *(step.token for step in steps[:-1])], ffn=ffn, tap=whole)
    assert np.array_equal(recorder.needed, whole.needed) and len(whole.needed) == len(ids) + 4


def test_in_the_role_of_a_prefetcher_a_predictor_changes_nothing_but_the_guesses(small):
    model, thresholds = small
    oracle = perplexity(model, tiny.STORIES[2:], ffn=sparse_ffn(model, thresholds, predictor=Oracle(model, thresholds)))
    alone = Recorder.of(model)
    perplexity(model, tiny.STORIES[2:], ffn=sparse_ffn(model, thresholds), tap=alone)
    guess = Predicted(guesser(model), thresholds)
    ffn, recorder = SelectedFFN(policy_selector(model, thresholds), guess=guess), Recorder.of(model)
    found = perplexity(model, tiny.STORIES[2:], ffn=ffn, tap=recorder)
    assert found.nll == oracle.nll and np.array_equal(recorder.needed, alone.needed)
    first = {0, next(t for t in range(1, 99) if not recorder.guessed[t].any())}  # of each text: no token before
    for t in range(1, len(recorder.needed)):
        if t not in first:
            assert np.array_equal(recorder.guessed[t], recorder.needed[t - 1])


@pytest.mark.parametrize("same", [False, True])
def test_the_guess_is_recorded_beside_the_mask_and_once_where_it_is_the_selector_itself(small, same):
    model, thresholds = small
    select = Predicted(guesser(model), thresholds)
    recorder = Recorder.of(model)
    ffn = SelectedFFN(select, guess=select if same else None)
    model.forward(model.tokenizer.encode("a dog saw the sea."), ffn=ffn, tap=recorder)
    assert (recorder.guessed is None) == (not same)
    assert not same or np.array_equal(recorder.guessed, recorder.needed)


def test_a_pass_without_masks_and_a_policy_that_cuts_inputs_are_refused(small):
    model, _ = small
    recorder = Recorder(2, 12)
    model.forward([1, 2], tap=recorder)
    with pytest.raises(MinillmError, match="no mask"):
        recorder.needed  # noqa: B018
    with pytest.raises(MinillmError, match="whole neurons"):
        policy_selector(model, calibrate(model, tiny.STORIES[:2], "teal", 0.5))


def test_several_texts_are_joined_and_frequencies_are_shares_of_their_tokens(small):
    model, thresholds = small
    ffn, pieces = sparse_ffn(model, thresholds), runs(model, tiny.STORIES[:2])
    apart = [record(model, ffn, [piece]).needed for piece in pieces]
    whole = record(model, ffn, pieces).needed
    assert np.array_equal(whole, np.concatenate(apart)) and len(whole) == sum(len(piece.ids) for piece in pieces)
    counted = sum(part.sum(axis=0) for part in apart)
    np.testing.assert_allclose(frequencies(whole), counted / len(whole), rtol=1e-15)
