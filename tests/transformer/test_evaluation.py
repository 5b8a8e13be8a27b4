"""Both protocols down to the token, exact scores of known models, and memory that does not grow with the vocabulary."""

import copy
import math
import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
from hypothesis import settings

from minillm.errors import MinillmError
from minillm.predictors.select import sparse_ffn
from minillm.sparsity.calibrate import calibrate
from minillm.transformer.evaluation import HEAD_ROWS, Evaluation, divergence, perplexity, token_nll
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama
from minillm.transformer.ops import log_softmax
from minillm.transformer.texts import default_context, runs

quick = settings(max_examples=40, derandomize=True, deadline=None)
TEXT = "\n<|endoftext|>\n".join(tiny.STORIES) + "\n<|endoftext|>\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("evaluated") / "model")


def uniform(model: Llama) -> Llama:
    """The same model with a head of zeros: every token is as likely as every other."""
    changed = copy.copy(model)
    changed.lm_head = np.zeros_like(model.lm_head)
    return changed


def naive_nll(model: Llama, ids: list[int], ffn=swiglu) -> np.ndarray:
    scores = log_softmax(model.forward(ids, ffn=ffn))
    return np.array([-scores[t, ids[t + 1]] for t in range(len(ids) - 1)])


def plain_ids(model: Llama, text: str) -> list[int]:
    return model.tokenizer.encode(text, bos=False)


# ---- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["documents", "stream"])
@pytest.mark.parametrize("context", [2, 7, 64])
def test_a_uniform_model_scores_exactly_its_vocabulary_size(model, protocol, context):
    result = perplexity(uniform(model), TEXT, protocol, context)
    assert math.isclose(result.perplexity, tiny.VOCABULARY, rel_tol=1e-12)
    assert math.isclose(result.bits_per_byte, result.tokens * math.log2(tiny.VOCABULARY) / result.bytes, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 3, 256])
def test_token_nll_is_minus_the_log_softmax_of_the_next_token(monkeypatch, dtype, rows):
    monkeypatch.setattr("minillm.transformer.evaluation.HEAD_ROWS", rows)
    model, ids = tiny.model(dtype=dtype), [1, 5, 3, 9, 30, 2, 2, 8]
    found = token_nll(model, ids)
    assert found.dtype == np.float64 and found.shape == (7,)
    np.testing.assert_allclose(found, naive_nll(model, ids), rtol=1e-12 if dtype == np.float64 else 1e-5)


def test_a_long_run_goes_through_in_chunks_and_scores_the_same():
    model = tiny.model(max_position_embeddings=700, num_hidden_layers=1)
    ids = np.random.default_rng(0).integers(0, 31, 700).tolist()  # several chunks, the last one short
    np.testing.assert_allclose(token_nll(model, ids), naive_nll(model, ids), rtol=1e-10)


def test_the_head_never_makes_an_array_of_all_positions_and_the_whole_vocabulary():
    vocab, length = 20_000, 1_000
    model = tiny.model(
        dtype=np.float32, vocab_size=vocab, max_position_embeddings=length, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, vocab, length).tolist()
    tracemalloc.start()
    token_nll(model, ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * HEAD_ROWS * vocab * 4 < length * vocab * 4 / 2


def test_logits_that_are_far_apart_neither_overflow_nor_lose_the_score():
    model = tiny.model(dtype=np.float32)
    model.lm_head = model.lm_head * np.float32(1e4)
    with np.errstate(over="raise", invalid="raise"):
        scores = token_nll(model, [1, 5, 3, 9])
    assert np.isfinite(scores).all() and scores.max() > 1e3


def test_scores_that_are_not_finite_are_an_error(model):
    broken = uniform(model)
    broken.lm_head = np.full_like(model.lm_head, np.nan)
    with pytest.raises(MinillmError, match="no numbers"):
        perplexity(broken, TEXT)


# ---- protocol documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [2, 5, 11, 128])
def test_documents_are_cut_into_runs_of_context_less_one_behind_a_bos_and_every_id_is_scored_once(model, context):
    pieces = runs(model, TEXT, "documents", context)
    for i, story in enumerate(tiny.STORIES):
        ids = plain_ids(model, story)
        own = [piece for piece in pieces if piece.document == i]
        assert all(piece.ids[0] == 1 and piece.unscored == 1 and len(piece.ids) <= context for piece in own)
        assert all(len(piece.ids) == context for piece in own[:-1])
        assert [index for piece in own for index in piece.ids[1:]] == ids
        assert sum(piece.bytes for piece in own) == len(story.encode())
    result = perplexity(model, TEXT, context=context)
    assert result.tokens == sum(len(plain_ids(model, story)) for story in tiny.STORIES)
    assert result.bytes == sum(len(story.encode()) for story in tiny.STORIES)
    assert math.isclose(result.nll, sum(naive_nll(model, piece.ids).sum() for piece in pieces), rel_tol=1e-12)


def test_the_figures_per_document_add_up_to_the_total(model):
    result = perplexity(model, TEXT, context=9)
    assert len(result.document_nll) == len(tiny.STORIES)
    assert math.isclose(result.document_nll.sum(), result.nll) and result.document_tokens.sum() == result.tokens
    for i, story in enumerate(tiny.STORIES):
        alone = perplexity(model, [story], context=9)
        assert math.isclose(alone.nll, result.document_nll[i]) and alone.tokens == result.document_tokens[i]


def test_a_list_of_documents_is_stripped_and_scores_as_the_text_with_separators(model):
    padded = [f"\n  {story}\t" for story in tiny.STORIES]
    assert perplexity(model, padded, context=9).nll == perplexity(model, TEXT, context=9).nll


# ---- protocol stream -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [3, 9, 64])
def test_a_stream_is_cut_into_windows_with_one_bos_an_unscored_first_token_and_a_dropped_tail(model, context):
    text = "".join(story + "\n\n" for story in tiny.STORIES)  # the separator lines have become blank lines
    ids = [1, *plain_ids(model, text)]
    pieces = runs(model, TEXT, "stream", context)
    assert [piece.ids for piece in pieces] == [ids[i : i + context] for i in range(0, len(ids) - context + 1, context)]
    result = perplexity(model, TEXT, "stream", context)
    assert result.tokens == len(pieces) * (context - 1) and len(ids) % context != 0
    assert math.isclose(result.nll, sum(naive_nll(model, piece.ids).sum() for piece in pieces), rel_tol=1e-12)
    # what was not scored: each window's first token, and the tail
    text_of = model.tokenizer.encode_with_bytes(text)[1]
    scored = [size for i, size in enumerate([0, *text_of][: len(pieces) * context]) if i % context]
    assert result.bytes == sum(scored)


def test_the_two_protocols_give_different_figures_and_say_which_they_are(model):
    results = [perplexity(model, TEXT, protocol, 16) for protocol in ("documents", "stream")]
    assert results[0].perplexity != results[1].perplexity
    for result in results:
        assert f"protocol {result.protocol}, context 16, BOS 1 from the tokenizer" in str(result)
        assert f"{result.perplexity:.4f}" in str(result) and f"{result.bits_per_byte:.4f} bits/byte" in str(result)


# ---- what surrounds a protocol ---------------------------------------------------------------------------------------


def test_without_bos_and_eos_nothing_can_be_scored(tmp_path):
    model = tiny.loaded(tmp_path / "model", bos=False, bos_token_id=None, eos_token_id=None)
    with pytest.raises(MinillmError, match="BOS or EOS"):
        perplexity(model, TEXT)


def test_the_default_context_is_the_models_own_but_at_most_2048(model):
    assert default_context(model) == perplexity(model, TEXT).context == 128
    assert default_context(tiny.model(max_position_embeddings=5_000)) == 2048


@pytest.mark.parametrize(
    ("text", "protocol", "context", "said"),
    [
        ("", "documents", 16, "empty"),
        ("\n<|endoftext|>\n \n", "documents", 16, "empty"),
        ([], "documents", 16, "empty"),
        (["", " "], "documents", 16, "empty"),
        ("", "stream", 16, "has 1 tokens"),
        ("a", "windows", 16, "protocol 'windows' is unknown, expected one of documents, stream"),
        ("a", "documents", 1, "context is 1, expected 2 to 128"),
        ("a", "stream", 129, "context is 129, expected 2 to 128"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(model, text, protocol, context, said):
    with pytest.raises(MinillmError, match=said):
        perplexity(model, text, protocol, context)


def test_scoring_the_calibration_text_warns_and_other_text_does_not(model):
    ffn = sparse_ffn(model, calibrate(model, tiny.STORIES[:2], "cats", 0.3))
    with pytest.warns(UserWarning, match="1 of the documents scored are among those the thresholds were calibrated on"):
        perplexity(model, tiny.STORIES[1:], ffn=ffn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perplexity(model, tiny.STORIES[2:], ffn=ffn)
        perplexity(model, tiny.STORIES)


def test_ffn_and_tap_reach_every_pass(model):
    seen, first = [], []

    def ffn(x, layer, position, tap):
        first.append(position)
        return swiglu(x, layer, position, tap) * 0

    def tap(name, value):
        seen.append(name)
        return value

    cut = perplexity(model, TEXT, context=9, ffn=ffn, tap=tap)
    pieces = runs(model, TEXT, context=9)
    assert seen.count("embed") == len(pieces) and first == [0] * len(pieces) * 2
    assert cut.nll != perplexity(model, TEXT, context=9).nll


# ---- divergence ------------------------------------------------------------------------------------------------------


def test_the_dense_model_does_not_differ_from_itself(model):
    assert divergence(model, TEXT, swiglu, context=16) == (0.0, 1.0)


@pytest.mark.parametrize("protocol", ["documents", "stream"])
def test_divergence_is_the_mean_kl_from_dense_to_cut_and_the_share_of_equal_choices(model, protocol, monkeypatch):
    monkeypatch.setattr("minillm.transformer.evaluation.HEAD_ROWS", 3)
    ffn = sparse_ffn(model, calibrate(model, TEXT, "mid", 0.6))
    kl, same = [], []
    for piece in runs(model, TEXT, protocol, 16):
        dense, cut = (model.forward(piece.ids[:-1], ffn=f) for f in (swiglu, ffn))
        p, q = (np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in (dense, cut))
        kl += (p * np.log(p / q)).sum(axis=-1).tolist()
        same += (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()
    found = divergence(model, TEXT, ffn, protocol, 16)
    np.testing.assert_allclose(found, (np.mean(kl), np.mean(same)), rtol=1e-10)
    assert found[0] > 0 and 0 < found[1] < 1


def test_an_evaluation_computes_its_figures_from_sums():
    result = Evaluation("documents", 8, "1", math.log(2) * 30, 10, 15, np.zeros(1), np.zeros(1))
    assert math.isclose(result.perplexity, 8) and math.isclose(result.bits_per_byte, 2)
    assert math.isclose(replace(result, nll=0.0).perplexity, 1)
