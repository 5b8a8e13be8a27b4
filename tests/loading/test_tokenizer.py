"""Text to ids and back: small tokenizers trained here, hostile files, a published one."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import minillm
from minillm.errors import TokenizerError
from minillm.loading.tokenizer import Tokenizer

CORPUS = ["Once upon a time there was a little cat, and the cat sat on the mat. The end!", "Zoë ate 猫 and 😀."] * 20
BOS = [("<s>", 1)]
TEXTS = [
    "Once upon a time", "", " ", "  two  spaces ", "a\nb\tc\r\n", "😀😃 🇩🇪", "\U0001f469\u200d\U0001f467",
    "漢字かな交じり文。", "e\u0301 a\u0308o\u0308u\u0308", "नमस्ते", "مرحبا", "\x00\x01", "\ufffd",
    "Ġ as a letter", "<s> </s> <unk> <0x41>", "𝕳𝖊𝖑𝖑𝖔",
]  # fmt: skip


def byte_level() -> dict:
    """As GPT-2, Llama 3 and Qwen have it: every byte is a character of a private alphabet."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=BOS)
    return json.loads(raw.to_str())


def byte_fallback() -> dict:
    """As Llama 1, 2 and Mistral have it: ▁ for a space, one in front of the text, and a token for each byte."""
    trained = RawTokenizer(models.BPE(unk_token="<unk>"))
    prepare = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = prepare
    trained.train_from_iterator(CORPUS[::2], trainers.BpeTrainer(vocab_size=90, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocab, merges = {name: index for index, name in enumerate(names)}, [tuple(m) for m in learnt["merges"]]
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = prepare
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(back)
    raw.add_special_tokens(names[:3])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=BOS)
    return json.loads(raw.to_str())


def words() -> dict:
    """Plain pieces without bytes: a Metaspace Unigram model, as T5 has it; what it does not know is <unk>."""
    raw = RawTokenizer(models.Unigram())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    ))  # fmt: skip
    return json.loads(raw.to_str())


FILES = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "words": words()}


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
@settings(max_examples=150, deadline=None, derandomize=True)
@given(new=st.lists(st.integers(0, 10**6), max_size=30))
def test_a_stream_of_any_ids_neither_fails_nor_prints_half_a_character_before_its_end(tokenizers, name, new):
    tokenizer = tokenizers[name]
    known = sorted(tokenizer._ids)
    new = [known[i % len(known)] for i in new]
    stream = tokenizer.stream([1])
    pushed = [stream.push(token) for token in new]
    assert not any(piece.endswith("\ufffd") for piece in pushed)
    whole, said = tokenizer.decode([1, *new]), "".join(pushed) + stream.flush()
    # Of bytes in a row, a single wrong one makes the decoder give up all, also a character that was printed by then.
    assert len(said) == len(whole) or ("\ufffd" in whole and len(said) < len(whole))


@pytest.mark.parametrize("name", ["byte_level", "default"])  # with a space in front, offsets say nothing certain
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("abt .é猫😀\n"), max_size=12))
def test_each_token_stands_for_the_bytes_up_to_its_end(tokenizers, name, text):
    """Wherever the ids so far spell whole characters, the counts so far are the bytes of these characters."""
    tokenizer = tokenizers.get(name) or minillm.load(name).tokenizer
    ids, sizes = tokenizer.encode_with_bytes(text)
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


@pytest.mark.parametrize("bad", [-1, 999, 2**40, "a", 1.5, None, [1]])
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
    "an id of 2^32 - 1": (lambda f: f["model"]["vocab"].update(b=2**32 - 1), "expected at most 999"),
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
    assert "expected at most 1000" in refused(tmp_path, FILES["byte_level"])


def test_an_id_beyond_the_models_vocabulary_is_refused(tmp_path):
    size = max(FILES["byte_level"]["model"]["vocab"].values()) + 1
    write(tmp_path, FILES["byte_level"])
    Tokenizer.from_folder(tmp_path, size)
    assert f"expected at most {size - 2}" in refused(tmp_path, FILES["byte_level"], size - 1)


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
