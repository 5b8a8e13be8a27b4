"""The model against plain torch in float64, from committed files: every step of every family, without torch.

And against itself: one pass, chunks, and token by token with a cache give the same numbers.
"""

import numpy as np
import pytest
from golden_cases import CASES, FOLDER, MANIFEST

from minillm.loading.families import FAMILIES
from minillm.transformer.attention import KVCache
from minillm.transformer.generation import generate


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_golden(golden, name):
    result = golden(name).check()
    assert result.first is None, str(result)
    assert [row.status for row in result.rows] == ["ok"] * len(result.rows), str(result)


@pytest.mark.parametrize("name", CASES)
def test_the_golden_holds_every_step_by_name_and_order(golden, name):
    assert list(golden(name).steps) == golden(name).model().config.step_names()
    assert all(value.dtype == np.float64 for value in golden(name).steps.values())


def test_the_goldens_are_of_every_family_and_small():
    fields = [case["config"] for case in MANIFEST["cases"].values()]
    assert {f["model_type"] for f in fields} == {*FAMILIES}
    assert {f.get("tie_word_embeddings", False) for f in fields} == {True, False}
    assert set(MANIFEST["made_by"]) == {"torch", "transformers", "numpy"}
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(CASES)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_the_goldens_pass_their_windows_and_original_contexts(golden):
    """A text shorter than the window, or than the context before scaling, would prove nothing about either."""
    seen = set()
    for name in CASES:
        config, length = golden(name).model().config, len(golden(name).ids)
        seen |= {("window", window < length) for window in config.sliding_windows if window}
        if config.rope.rope_type == "longrope":
            seen.add(("longrope", length > config.rope.original_max_position_embeddings))
        if config.rope.rope_type == "llama3":
            assert length > config.rope.original_max_position_embeddings
            seen.add("llama3")
    assert seen == {("window", True), ("longrope", True), ("longrope", False), "llama3"}


@pytest.mark.parametrize("sizes", [(1,) * 13, (12, 1), (1, 12), (5, 5, 3), (3, 4, 6), (7, 1, 1, 4)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cached_chunks_equal_one_pass(golden, name, sizes):
    case = golden(name)
    model, expected, start = case.model(), case.steps["logits"], 0
    cache = KVCache(model.config, len(case.ids), model.dtype)
    for size in sizes:
        part = model.forward(case.ids[start : start + size], cache)
        error = np.abs(part - expected[start : start + size]).max() / np.abs(expected).max()
        assert error <= 1e-12, f"positions {start} to {start + size}: {error:.1e}"
        start += size
    assert start == cache.length == len(case.ids)


@pytest.mark.parametrize("name", CASES)
def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been(golden, name):
    case = golden(name)
    model = case.model()
    cache = KVCache(model.config, len(case.ids), model.dtype)
    model.forward(case.ids[:7] + [0, 1, 2], cache)
    cache.truncate(7)
    part = model.forward(case.ids[7:], cache)
    expected = case.steps["logits"]
    assert np.abs(part - expected[7:]).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_greedy_generation_takes_the_argmax_of_the_full_pass(golden, name):
    """10 tokens with a cache are those of ten full passes (longrope: with the planned length from the start)."""
    case = golden(name)
    model = case.model()
    prompt = case.ids[:6]
    got = [step.token for step in generate(model, prompt, 10, stop_at_eos=False)]
    longrope = model.config.rope.rope_type == "longrope"
    ids = list(prompt)
    for _ in range(10):
        cache = KVCache(model.config, 16, model.dtype) if longrope else None
        ids.append(int(model.forward(ids, cache)[-1].argmax()))
    assert got == ids[6:]
