"""How the next token is chosen, and that text comes out whole, once, and never past the context."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minillm.errors import MinillmError
from minillm.loading.config import ModelConfig
from minillm.transformer import generation
from minillm.transformer.attention import KVCache
from minillm.transformer.generation import Step, generate, hidden_in_chunks, next_probabilities
from minillm.transformer.model import Llama

quick = settings(max_examples=50, derandomize=True, deadline=None)
logit_rows = arrays(np.float64, st.integers(1, 9), elements=st.floats(-8, 8), unique=True)
PROMPT = [1, 5, 3]


def tokens(model, prompt=PROMPT, **how) -> list[int]:
    return [step.token for step in generate(model, prompt, **how)]


# ---- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_is_the_largest_logit_of_repeated_full_passes(family):
    # phi3's factors follow the planned length, so the slow way pads its text to that length; causality hides the rest
    model, new, ids = tiny.model(family), 20, list(PROMPT)
    for _ in range(new):
        padded = ids + [0] * (len(PROMPT) + new - len(ids))
        ids.append(int(model.forward(padded)[len(ids) - 1].argmax()))
    assert tokens(model, max_new_tokens=new, stop_at_eos=False) == ids[len(PROMPT) :]


def test_a_long_prompt_goes_through_in_chunks_and_gives_the_same_tokens(monkeypatch):
    model, prompt = tiny.model(), list(range(3, 20))
    whole = tokens(model, prompt, max_new_tokens=5)
    monkeypatch.setattr(hidden_in_chunks, "__defaults__", (*hidden_in_chunks.__defaults__[:-1], 4))
    assert tokens(model, prompt, max_new_tokens=5) == whole
    cache = KVCache(model.config, 17, np.float64)
    chunks = list(hidden_in_chunks(model, prompt, cache))
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 4, 1]
    np.testing.assert_allclose(np.concatenate(chunks), model.hidden(prompt), rtol=1e-11)


def test_a_step_says_where_the_token_stands_and_its_log_probability_under_the_model_itself():
    model = tiny.model()
    how = {"temperature": 0.5, "top_k": 3, "rng": np.random.default_rng(0), "stop_at_eos": False}
    steps, ids = list(generate(model, PROMPT, 6, **how)), list(PROMPT)
    for step in steps:
        logits = model.forward(ids)[-1]
        expected = logits[step.token] - np.log(np.exp(logits).sum())  # neither temperature nor top_k
        assert np.isclose(step.logprob, expected, rtol=1e-12) and step.position == len(ids) and step.text == ""
        ids.append(step.token)
    assert isinstance(steps[0], Step) and len(steps) == 6


def test_the_head_is_computed_for_the_last_position_alone():
    shapes = []

    def tap(name, value):
        if name == "logits":
            shapes.append(value.shape)
        return value

    tokens(tiny.model(), max_new_tokens=3, stop_at_eos=False, tap=tap)
    assert shapes == [(1, 31)] * 3


# ---- the distribution ------------------------------------------------------------------------------------------------


def slow_probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None) -> list[float]:
    """The four rules by hand, over (probability, token) pairs sorted from likely to unlikely."""
    shares = np.exp((np.array(logits) - max(logits)) / temperature)
    pairs = sorted(((float(p), i) for i, p in enumerate(shares / shares.sum())), reverse=True)
    pairs = pairs[:top_k]
    total = sum(p for p, _ in pairs)
    pairs = [(p / total, i) for p, i in pairs]
    if top_p is not None:
        kept, mass = [], 0.0
        for p, i in pairs:
            if kept and mass >= top_p:
                break
            kept.append((p, i))
            mass += p
        pairs = [(p / mass, i) for p, i in kept]
    if min_p is not None:
        pairs = [(p, i) for p, i in pairs if p >= min_p * pairs[0][0]]
        total = sum(p for p, _ in pairs)
        pairs = [(p / total, i) for p, i in pairs]
    found = [0.0] * len(logits)
    for p, i in pairs:
        found[i] = p
    return found


@quick
@given(
    logit_rows,
    st.floats(0.1, 5),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.01, 1),
    st.none() | st.floats(0, 1),
)
def test_the_distribution_follows_the_rules_in_their_order(logits, temperature, top_k, top_p, min_p):
    logits = np.round(logits, 3) + np.arange(len(logits)) * 1e-4  # no ties, and no mass within rounding of top_p
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    found = next_probabilities(logits, **how)
    np.testing.assert_allclose(found, slow_probabilities(logits, **how), rtol=1e-9, atol=1e-15)
    assert np.isclose(found.sum(), 1, rtol=1e-12) and found.argmax() == logits.argmax()


@quick
@given(logit_rows)
def test_the_limits_of_every_rule_are_greedy_or_the_plain_softmax(logits):
    logits = np.round(logits, 3) + np.arange(len(logits)) * 1e-4
    plain, greedy = next_probabilities(logits), np.eye(len(logits))[logits.argmax()]
    np.testing.assert_allclose(plain, np.exp(logits) / np.exp(logits).sum(), rtol=1e-12)
    for how in ({"top_k": len(logits)}, {"top_k": 99}, {"top_p": 1.0}, {"min_p": 0.0}):
        np.testing.assert_allclose(next_probabilities(logits, **how), plain, rtol=1e-14)
    for how in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-9}, {"temperature": 1e-320}):
        np.testing.assert_allclose(next_probabilities(logits, **how), greedy, atol=1e-12)
    np.testing.assert_allclose(next_probabilities(logits, 1e9), np.full(len(logits), 1 / len(logits)), rtol=1e-6)


def test_exact_ties_at_the_edge_of_top_k_all_stay_and_top_p_takes_the_first():
    logits = np.log([0.4, 0.2, 0.2, 0.2])
    assert (next_probabilities(logits, top_k=2) > 0).tolist() == [True] * 4
    assert (next_probabilities(logits, top_p=0.5) > 0).tolist() == [True, True, False, False]
    assert (next_probabilities(logits, top_p=0.3) > 0).tolist() == [True, False, False, False]


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}])
def test_sampling_at_its_limit_gives_the_greedy_text(how):
    model = tiny.model()
    how = {"temperature": 1.0, "rng": np.random.default_rng(1)} | how
    assert tokens(model, max_new_tokens=15, **how) == tokens(model, max_new_tokens=15)


def test_a_seed_reproduces_its_text_and_another_gives_another():
    model = tiny.model()
    texts = [
        tokens(model, max_new_tokens=30, temperature=1.0, stop_at_eos=False, rng=np.random.default_rng(seed))
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_sampled_frequencies_are_the_probabilities():
    # The prompt's first next token, drawn 3,000 times; chi-square over the tokens that are expected often enough.
    model, draws = tiny.model(), 3_000
    how = {"temperature": 1.3, "top_k": 12, "top_p": 0.95, "min_p": 0.02}
    logits = model.forward(PROMPT)[-1]
    rng = np.random.default_rng(0)
    fake = SimpleNamespace(  # the same logits every time, without running the model for each draw
        config=model.config, dtype=model.dtype, nbytes=model.nbytes, has_tokenizer=False, check_ids=model.check_ids,
        hidden=lambda ids, *rest: logits[None], head=lambda hidden, tap: hidden,
    )  # fmt: skip
    drawn = [next(generate(fake, PROMPT, 1, rng=rng, **how)).token for _ in range(draws)]
    p = next_probabilities(logits, **how)
    counts = np.bincount(drawn, minlength=31)
    assert not counts[p == 0].any() and 5 < np.count_nonzero(p) < 13
    chi2 = ((counts - draws * p)[p > 0] ** 2 / (draws * p[p > 0])).sum()
    free = np.count_nonzero(p) - 1
    assert chi2 < free + 4 * np.sqrt(2 * free)


# ---- where it ends ---------------------------------------------------------------------------------------------------


def with_eos(model: Llama, eos: int) -> Llama:
    fields = {**tiny.LLAMA, "eos_token_id": [30, eos]}
    return Llama(ModelConfig.from_dict(fields), tiny.weights(model.config))


def test_it_stops_at_an_end_token_which_is_the_last_step():
    model = tiny.model()
    free = tokens(model, max_new_tokens=20, stop_at_eos=False)
    eos = free[7]
    stopping = with_eos(model, eos)
    assert tokens(stopping, max_new_tokens=20) == free[: free.index(eos) + 1]
    assert tokens(stopping, max_new_tokens=20, stop_at_eos=False) == free


def test_more_than_the_context_is_refused_at_the_call_and_just_the_context_is_not():
    model = tiny.model(max_position_embeddings=8)
    assert len(tokens(model, max_new_tokens=5, stop_at_eos=False)) == 5
    with pytest.raises(MinillmError, match="prompt has 3 tokens and 6 more.*holds 8: ask for at most 5"):
        generate(model, PROMPT, 6)  # not even iterated over
    with pytest.raises(MinillmError, match="ask for at most 0"):
        generate(model, [1] * 9, 1)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": 1.0}, "pass rng="),
    ],
)
def test_settings_out_of_range_are_refused_at_the_call(how, said):
    with pytest.raises(MinillmError, match=said):
        generate(tiny.model(), PROMPT, **{"max_new_tokens": 2} | how)


@pytest.mark.parametrize("prompt", [[], [31], [-1], [[1, 2]], [[1], [2, 3]], [1.5], ["a"]])
def test_a_prompt_that_is_no_list_of_ids_is_refused_at_the_call(prompt):
    with pytest.raises(MinillmError, match="token id"):
        generate(tiny.model(), prompt, 2)


# ---- text ------------------------------------------------------------------------------------------------------------


class Scripted:
    """A model that "predicts" given tokens one after another: what matters here is the text that comes out."""

    def __init__(self, model: Llama, script: list[int]):
        self.model, self.script, self.drawn = model, script, 0
        self.config, self.dtype, self.tokenizer, self.has_tokenizer = model.config, model.dtype, model.tokenizer, True
        self.nbytes, self.check_ids = model.nbytes, model.check_ids

    def hidden(self, ids, cache, *rest):
        self.drawn += 1
        return np.eye(self.config.vocab_size)[[self.script[self.drawn - 1]]]

    def head(self, hidden, tap):
        return hidden


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Llama:
    return tiny.loaded(tmp_path_factory.mktemp("spoken") / "model")


def says(model: Llama, prompt: str, text: str) -> tuple[list[str], str]:
    """The pieces that are printed while ``text`` is generated after ``prompt``, and what decoding at the end gives."""
    start = model.tokenizer.encode(prompt)
    ids = model.tokenizer.encode(prompt + text)
    assert ids[: len(start)] == start
    steps = list(generate(Scripted(model, ids[len(start) :]), start, len(ids) - len(start), stop_at_eos=False))
    return [step.text for step in steps], model.tokenizer.decode(ids)[len(model.tokenizer.decode(start)) :]


@quick
@given(st.text(st.sampled_from("abt .éß猫😀\n"), min_size=1, max_size=12))
def test_the_streamed_pieces_add_up_to_the_decoded_text_and_hold_no_half_character(spoken, text):
    pieces, expected = says(spoken, "the cat", text)
    assert "".join(pieces) == expected == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_four_bytes_is_printed_when_its_last_byte_has_come(spoken):
    pieces, _ = says(spoken, "a", "😀b")
    assert pieces == ["", "", "", "😀", "b"]


def test_a_half_character_at_the_very_end_is_flushed_with_the_last_step(spoken):
    tokenizer = spoken.tokenizer
    start = tokenizer.encode("a")
    half = tokenizer.encode("a😀")[len(start) :][:2]
    for script, how in (
        (half, {"max_new_tokens": 2}),
        ([*half, 2], {"max_new_tokens": 9}),  # cut off by the end token
    ):
        pieces = [step.text for step in generate(Scripted(spoken, script), start, **how)]
        assert "".join(pieces[:-1]) == "" and set(pieces[-1]) == {"\ufffd"}
        assert pieces[-1] == tokenizer.decode([*start, *script])[1:]


def test_a_model_with_a_tokenizer_prints_what_its_ids_spell(spoken):
    def letters_alone(name, value):  # any letters are a text, any bytes are not
        return np.where(np.arange(tiny.VOCABULARY) < 259, -np.inf, value) if name == "logits" else value

    start = spoken.tokenizer.encode("the cat")
    how = {"temperature": 1.5, "rng": np.random.default_rng(0), "tap": letters_alone}
    steps = list(generate(spoken, start, 40, **how))
    whole = spoken.tokenizer.decode([*start, *(step.token for step in steps)])
    assert "the cat" + "".join(step.text for step in steps) == whole and len(whole) > 40


def test_no_pass_of_a_long_prompt_is_longer_than_a_chunk():
    length = 2 * generation.CHUNK + 1
    model, sizes = tiny.model(max_position_embeddings=length, num_hidden_layers=1), []

    def tap(name, value):
        if name == "embed":
            sizes.append(len(value))
        return value

    tokens(model, [3] * (length - 1), max_new_tokens=1, tap=tap)
    assert sizes == [generation.CHUNK] * 2
