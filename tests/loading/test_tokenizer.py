"""Text to ids and back: small tokenizers trained here, hostile files, a published one."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import BOS, CORPUS, FILES
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import processors

import minillm
from minillm.errors import TokenizerError
from minillm.loading.tokenizer import HELD, KEPT, Tokenizer

TEXTS = [
    "Once upon a time", "", " ", "  two  spaces ", "a\nb\tc\r\n", "😀😃 🇩🇪", "\U0001f469\u200d\U0001f467",
    "漢字かな交じり文。", "e\u0301 a\u0308o\u0308u\u0308", "नमस्ते", "مرحبا", "\x00\x01", "\ufffd",
    "Ġ as a letter", "<s> </s> <unk> <0x41>", "𝕳𝖊𝖑𝖑𝖔",
]  # fmt: skip


def write(folder, fields) -> None:
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    (folder / "tokenizer.json").write_bytes(data)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    made = {}
    for name, fields in FILES.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder, fields)
        made[name] = Tokenizer.from_folder(folder, 1000)
    return made


def refused(folder, fields, vocab_size=1000) -> str:
    write(folder, fields)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(folder, vocab_size)
    sentence = str(caught.value)
    assert sentence.startswith(str(folder / "tokenizer.json")) and "\n" not in sentence
    return sentence


def streamed(tokenizer, prompt: list[int], new: list[int]) -> str:
    stream = tokenizer.stream(prompt)
    return "".join([*(stream.push(token) for token in new), stream.flush()])


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_ids(tokenizers, name, text):
    ids = tokenizers[name].encode(text)
    assert ids[0] == 1 and tokenizers[name].bos_ids == (1,) and ids[1:] == tokenizers[name].encode(text, bos=False)
    assert tokenizers[name].decode(ids) == text


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])), cut=st.integers(0, 40))
def test_any_text_comes_back_and_streams_as_it_decodes(tokenizers, name, text, cut):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    cut = min(cut, len(text))
    prompt = tokenizer.encode(text[:cut])
    new = tokenizer.encode(text[cut:], bos=False)
    before = tokenizer.decode(prompt)
    assert streamed(tokenizer, prompt, new) == tokenizer.decode(prompt + new)[len(before) :]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(new=st.lists(st.integers(0, 450) | st.integers(0, 260), max_size=60))
def test_a_stream_of_any_ids_gives_out_what_they_decode_to_and_holds_back_a_few_bytes_at_most(tokenizers, name, new):
    tokenizer = tokenizers[name]
    stream, said = tokenizer.stream([1]), ""
    for i, token in enumerate(new):
        said += stream.push(token)
        if name != "byte_fallback":
            so_far = tokenizer.decode(new[: i + 1])
            assert so_far.startswith(said) and so_far[len(said) :].strip("\ufffd") == ""
            assert len(so_far) - len(said) < HELD
    said, whole = said + stream.flush(), tokenizer.decode(new)
    if name == "byte_fallback" and "\ufffd" in whole:
        # Of bytes in a row, a single wrong one makes the decoder give up all, also characters printed by then.
        assert len(said) <= len(whole)
    else:
        assert said == whole


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_bytes_that_are_no_character_come_out_soon_and_the_text_after_them_is_whole(tokenizers, name):
    tokenizer = tokenizers[name]
    lone = tokenizer.encode("\u00ff", bos=False)[-1]  # the second byte of two
    stream = tokenizer.stream(tokenizer.encode("a"))
    for count in range(1, 100):
        stream.push(lone)
        assert stream._done == len(stream._text) - 1 or count < HELD
        assert len(stream._window) <= 2 * KEPT + 1
    assert set(stream.flush()) == {"\ufffd"} and stream.flush() == ""
    said = [stream.push(token) for token in tokenizer.encode(" the cat \U0001f984", bos=False)]
    assert "".join([*said, stream.flush()]).endswith("the cat \U0001f984")


@pytest.mark.parametrize("name", FILES)
def test_ids_without_text_are_neither_kept_nor_decoded_again(tokenizers, name, monkeypatch):
    tokenizer, decoded = tokenizers[name], []
    stream = tokenizer.stream(tokenizer.encode("the cat"))
    real = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded.append(len(list(ids))) or real(self, ids))
    assert {stream.push(token) for token in [1, 0, 999] * 500} == {""} and not decoded
    assert stream.push(tokenizer.encode("the cat sat on the mat", bos=False)[-1]) != ""


def test_a_long_prompt_is_decoded_a_few_times_only_whatever_follows(tokenizers, monkeypatch):
    tokenizer, decoded = tokenizers["byte_level"], []
    lone = tokenizer.encode("\u00ff", bos=False)[-1]
    stream, real = tokenizer.stream(tokenizer.encode("the cat sat " * 500)), Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded.append(len(ids)) or real(self, ids))
    for _ in range(200):
        stream.push(lone)
    assert sum(size > 2 * KEPT + 1 for size in decoded) <= HELD


@pytest.mark.parametrize("name", ["byte_level", "default"])  # with a space in front, offsets say nothing certain
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("abt .é猫😀\n"), max_size=12))
def test_each_token_stands_for_the_bytes_up_to_its_end(tokenizers, name, text):
    """Wherever the ids so far spell whole characters, the counts so far are the bytes of these characters."""
    tokenizer = tokenizers.get(name) or minillm.load(name).tokenizer
    ids, sizes = (array.tolist() for array in tokenizer.encode_with_bytes(text))
    assert ids == tokenizer.encode(text, bos=False) and len(sizes) == len(ids) and sum(sizes) == len(text.encode())
    for i in range(1, len(ids)):
        spelled = tokenizer.decode(ids[:i])
        if "\ufffd" not in spelled and len(spelled) < len(text):
            assert sum(sizes[:i]) == len(spelled.encode()), (i, sizes)


@pytest.mark.parametrize("name", FILES)
def test_words_that_continue_a_prompt_keep_their_space(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode("the cat sat on the mat")
    for cut in range(len(ids)):
        before, after = tokenizer.decode(ids[:cut]), streamed(tokenizer, ids[:cut], ids[cut:])
        assert before + after == "the cat sat on the mat"


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_an_emoji_is_printed_whole_and_only_when_its_last_byte_has_come(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode("🦄🦄", bos=False)
    stream = tokenizer.stream(tokenizer.encode("a"))
    pushed = [stream.push(token) for token in ids]
    assert [piece for piece in pushed if piece.strip()] == ["🦄", "🦄"] and pushed[-1] == "🦄"
    assert stream.push(ids[-4]) == "" and set(stream.flush()) == {"\ufffd"} and stream.flush() == ""


def test_special_tokens_are_plain_text_in_and_nothing_out(tokenizers):
    for name in ("byte_level", "byte_fallback"):
        ids = tokenizers[name].encode("a<s></s>b", bos=False)
        assert not {0, 1, 2} & set(ids)
        assert tokenizers[name].decode([1, *ids, 2]) == "a<s></s>b"
        assert streamed(tokenizers[name], [1], [*ids, 2, 2, *ids]) == tokenizers[name].decode([1, *ids, 2, 2, *ids])


def test_a_trailing_eos_of_the_post_processor_is_left_out(tmp_path):
    fields = copy.deepcopy(FILES["byte_level"])
    raw = RawTokenizer.from_str(json.dumps(fields))
    raw.post_processor = processors.TemplateProcessing(single="<s> <s> $A </s>", special_tokens=[*BOS, ("</s>", 2)])
    write(tmp_path, raw.to_str().encode())
    tokenizer = Tokenizer.from_folder(tmp_path, 1000)
    plain = raw.encode("the cat", add_special_tokens=False).ids
    assert (tokenizer.bos_ids, tokenizer.encode("the cat")) == ((1, 1), [1, 1, *plain])
    assert tokenizer.encode("") == [1, 1]


def test_no_post_processor_means_no_bos(tmp_path):
    write(tmp_path, FILES["byte_level"] | {"post_processor": None})
    tokenizer = Tokenizer.from_folder(tmp_path, 1000)
    assert tokenizer.bos_ids == () and tokenizer.encode("") == []


def test_truncation_padding_and_dropout_of_the_file_are_switched_off(tmp_path, tokenizers):
    fields = copy.deepcopy(FILES["byte_level"])
    fields["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    fields["padding"] = {"strategy": {"Fixed": 90}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    fields["model"]["dropout"] = 0.9
    write(tmp_path, fields)
    assert Tokenizer.from_folder(tmp_path, 1000).encode(CORPUS[0]) == tokenizers["byte_level"].encode(CORPUS[0])


BAD_TEXTS = [(b"a", "bytes"), (None, "NoneType"), ("a\ud800b", "lone surrogate at character 1")]


@pytest.mark.parametrize("text, found", BAD_TEXTS)
def test_what_is_not_text_is_refused(tokenizers, text, found):
    with pytest.raises(TokenizerError, match=found):
        tokenizers["byte_level"].encode(text)


@pytest.mark.parametrize("bad", [-1, 1000, 2**40, "a", 1.5, None, [1], True])
def test_ids_that_no_token_has_are_refused(tokenizers, bad):
    tokenizer = tokenizers["byte_level"]
    with pytest.raises(TokenizerError, match="no token has the id"):
        tokenizer.decode([5, bad])
    stream = tokenizer.stream([1])
    with pytest.raises(TokenizerError, match="no token has the id"):
        stream.push(bad)
    assert stream.push(tokenizer.encode("a")[-1]) == "a"


def test_a_missing_file_says_which_was_expected(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: does not exist, expected"):
        Tokenizer.from_folder(tmp_path, 10)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"only a tokenizer\.model"):
        Tokenizer.from_folder(tmp_path, 10)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BROKEN = {  # name: (a change of the byte_level file, a part of the sentence)
    "wrong version": (lambda f: f.update(version="2.0"), "version"),
    "no model": (lambda f: f.pop("model"), "can read"),
    "unknown model": (lambda f: f["model"].update(type="Magic"), "can read"),
    "merge of unknown tokens": (lambda f: f["model"]["merges"].append(["zz", "qq"]), "zz"),
    "bad regex": (lambda f: f.update(pre_tokenizer=SPLIT | {"pattern": {"Regex": "("}}), "can read"),
    "two tokens with one id": (lambda f: f["model"]["vocab"].update(a=f["model"]["vocab"]["b"]), "both have the id"),
    "an id of 2^32": (lambda f: f["model"]["vocab"].update(b=2**32), "can read"),
    "a negative id": (lambda f: f["model"]["vocab"].update(b=-1), "can read"),
    "empty vocabulary": (
        lambda f: (f["model"].update(vocab={}, merges=[]), f.update(added_tokens=[], post_processor=None)),
        "the vocabulary is empty",
    ),
    "an added token with an id of its own": (
        lambda f: f["added_tokens"].append(f["added_tokens"][0] | {"id": 900, "content": "<new>"}),
        "declares the id 900",
    ),
    "declared ids under an escaped key": (None, "declares the id None"),
    "an added token with another token's id": (lambda f: f["added_tokens"][0].update(id=77), "declares the id 77"),
    "no pre_tokenizer": (lambda f: f.update(pre_tokenizer=None), "ByteLevel pre_tokenizer"),
    "no pre_tokenizer and no decoder": (lambda f: f.update(pre_tokenizer=None, decoder=None), "loses spaces"),
    "no pre_tokenizer, with an unknown token": (
        lambda f: (f.update(pre_tokenizer=None), f["model"].update(unk_token="<unk>")),
        "ByteLevel pre_tokenizer",
    ),
    "no decoder": (lambda f: f.update(decoder=None), "loses characters"),
    "a normalizer that empties the text": (
        lambda f: f.update(normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": ""}),
        "loses",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, name):
    change, part = BROKEN[name]
    fields = copy.deepcopy(FILES["byte_level"])
    if change:
        change(fields)
    else:
        fields = json.dumps(fields).replace("added_tokens", "added\\u005ftokens").encode()
    assert part in refused(tmp_path, fields)


@pytest.mark.parametrize("data, part", [
    (b"", "EOF"), (b"{", "EOF"), (b"[]", "sequence"), (b"{}", "Model missing"), (b'"a"', "string"),
    (b"\xff\xfe", "line 1"), (b'{"a": ' * 50_000, "line 1"), (b"\xef\xbb\xbf{}", "line 1"),
])  # fmt: skip
def test_what_is_no_json_object_is_refused(tmp_path, data, part):
    assert part in refused(tmp_path, data)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path, FILES["byte_level"])
    try:
        (tmp_path / "model" / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(TokenizerError, match="out of its folder"):
        Tokenizer.from_folder(tmp_path / "model", 1000)


def test_a_file_beyond_the_size_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.loading.tokenizer.TOKENIZER_LIMIT", 1000)
    assert "expected at most 1,000" in refused(tmp_path, FILES["byte_level"])


@pytest.mark.parametrize("far", [0, 2**32 - 1])
def test_tokens_beyond_the_models_vocabulary_are_refused_only_in_a_text_that_holds_one(tmp_path, far):
    fields = copy.deepcopy(FILES["byte_level"])
    size = max(fields["model"]["vocab"].values())  # one row too few for the last token
    if far:
        fields["model"]["vocab"]["Z"] = far
    last = next(name for name, index in fields["model"]["vocab"].items() if index == (far or size))
    write(tmp_path, fields)
    tokenizer = Tokenizer.from_folder(tmp_path, size)
    assert tokenizer.decode(tokenizer.encode("the x.")) == "the x."
    with pytest.raises(TokenizerError, match=f"the id {far or size}, expected at most {size - 1}"):
        tokenizer.encode("the " + last.replace("\u0120", " "))
    with pytest.raises(TokenizerError, match=f"no token has the id {far or size}"):
        tokenizer.decode([far or size])


def test_an_added_token_beyond_the_vocabulary_changes_nothing_for_other_texts(tmp_path, tokenizers):
    raw = RawTokenizer.from_str(json.dumps(FILES["byte_level"]))
    size = raw.get_vocab_size()
    raw.add_special_tokens(["[PAD]"])
    raw.add_tokens(["[WORD]"])
    write(tmp_path, raw.to_str().encode())
    tokenizer = Tokenizer.from_folder(tmp_path, size)
    assert tokenizer.encode("the [PAD]") == tokenizers["byte_level"].encode("the [PAD]")
    with pytest.raises(TokenizerError, match=f"WORD.*the id {size + 1}, expected at most {size - 1}"):
        tokenizer.encode("a [WORD]")


def test_a_bos_beyond_the_vocabulary_is_refused_at_once(tmp_path):
    fields = copy.deepcopy(FILES["byte_level"])
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] != "<s>"]
    raw = RawTokenizer.from_str(json.dumps(fields))
    size = raw.get_vocab_size()
    raw.add_special_tokens(["<start>"])
    raw.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", size)])
    assert f"the id {size}, expected at most {size - 1}" in refused(tmp_path, raw.to_str().encode(), size)


def test_rows_that_fill_up_a_vocabulary_decode_to_nothing(tokenizers):
    tokenizer = tokenizers["byte_level"]  # fewer than 400 tokens, of a model with 1000 rows
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode([400, *ids, np.int64(999), 700]) == "the cat"
    assert streamed(tokenizer, [1], [999, *ids, 999, *ids]) == "the catthe cat"


def test_a_catastrophic_regex_is_a_tokenizer_error_though_the_library_panics(tmp_path):
    fields = FILES["byte_level"] | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        SPLIT | {"pattern": {"Regex": "(x+x+)+y"}}, FILES["byte_level"]["pre_tokenizer"]]}}  # fmt: skip
    write(tmp_path, fields)
    tokenizer = Tokenizer.from_folder(tmp_path, 1000)
    with pytest.raises(TokenizerError, match="cannot encode the text"):
        tokenizer.encode("x" * 60)


@pytest.mark.shared
def test_a_published_tokenizer_round_trips_and_streams_stories(shared):
    tokenizer = Tokenizer.from_folder(shared / "models" / "tinystories-656k", 2048)
    assert tokenizer.bos_ids == (1,)
    stories = (shared / "text" / "tinystories-valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:20]
    for text in [story for story in stories if story.isascii()]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        for cut in (0, 1, len(ids) // 2):
            assert tokenizer.decode(ids[:cut]) + streamed(tokenizer, ids[:cut], ids[cut:]) == text
    assert not {1, 2} & set(tokenizer.encode("<|start_story|><|end_story|>", bos=False))
