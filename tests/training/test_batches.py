"""What a batch is made of: documents between BOS and EOS, as many tokens as asked for, drawn by seed and step alone."""

import numpy as np
import pytest
import tiny

from minillm.errors import MinillmError
from minillm.training.batches import batches_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("model"), "float32")


def test_a_text_is_a_document_between_bos_and_eos(model):
    batches = batches_of(model, ["a cat", "a dog sat"])
    encoded = [model.tokenizer.encode(text) for text in ("a cat", "a dog sat")]
    assert [text.tolist() for text in batches.texts] == [[*ids, 2] for ids in encoded]
    assert all(ids[0] == 1 for ids in encoded)
    assert len(batches.documents_sha256) == 2


def test_a_document_longer_than_the_context_is_cut_and_ends_once(model):
    texts = batches_of(model, ["a cat sat on the mat", "a dog"], context=6).texts
    ids = model.tokenizer.encode("a cat sat on the mat")[1:]
    pieces = [[1, *ids[a : a + 5]] for a in range(0, len(ids), 5)]
    pieces[-1].append(2)
    assert [text.tolist() for text in texts[: len(pieces)]] == pieces
    assert max(map(len, texts)) <= 7  # six inputs and the last target
    assert texts[-1][-1] == 2


def test_a_batch_has_exactly_its_tokens_and_depends_on_seed_and_step_alone(model):
    batches, again = (batches_of(model, tiny.STORIES, 50, seed=3) for _ in range(2))
    for step in (0, 1, 7):
        texts = batches.of_step(step)
        assert sum(len(text) - 1 for text in texts) == 50 and min(map(len, texts)) >= 2
        assert all(np.array_equal(a, b) for a, b in zip(texts, again.of_step(step), strict=True))

    def drawn(batches, step):
        return [text.tolist() for text in batches.of_step(step)]

    assert drawn(batches, 0) != drawn(batches, 1) != drawn(batches_of(model, tiny.STORIES, 50, seed=4), 1)


def test_the_digest_tells_text_size_and_seed_apart(model):
    made = [(tiny.STORIES, 50, 0), (tiny.STORIES[1:], 50, 0), (tiny.STORIES, 51, 0), (tiny.STORIES, 50, 1)]
    digests = [batches_of(model, *each).digest for each in made]
    assert len(set(digests)) == 4 and digests[0] == batches_of(model, *made[0]).digest


def test_an_empty_text_and_numbers_out_of_range_are_refused(model):
    for documents, tokens, seed, what in (("", 9, 0, "empty"), ("a", 0, 0, "batch is 0"), ("a", 9, -1, "seed is -1")):
        with pytest.raises(MinillmError, match=what):
            batches_of(model, documents, tokens, seed)
