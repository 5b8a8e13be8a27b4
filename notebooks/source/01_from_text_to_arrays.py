# %% [markdown]
# # 01 · From text to arrays
#
# A model does not know letters or files. Its input is a list of integers, and it multiplies arrays. This notebook
# follows, by hand, the two ways that lead there: from a text to token ids, and from the bytes of a checkpoint to
# matrices.
#
# Afterwards you can
#
# 1. follow a word through the merges of byte-pair encoding, to ids and back, and say where bytes come in;
# 2. read a safetensors file with only `open` and `json`;
# 3. turn bfloat16, the type of nearly every published checkpoint, into `float32` with one shift.

# %%
import json
import re
import tempfile
from pathlib import Path

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.loading.checkpoint import checkpoint_tensors
from minillm.loading.tensors import read_header, save_tensors, to_bfloat16
from minillm.loading.tokenizer import Tokenizer
from minillm.show.display import show
from minillm.show.explain_values import bf16_bits
from minillm.show.labels import token_labels
from minillm.show.map import you_are_here
from minillm.show.primer import file_layout, merges
from minillm.tables import keys_as_headings, text_table

show(you_are_here("loading"))

# %% [markdown]
# ## From text to ids
#
# We load the small model that comes with minillm, and ask its tokenizer for the ids of a sentence. The method is short.

# %%
show_source(Tokenizer.encode)

# %%
model = minillm.load("default")
TEXT = "Once upon a time, Lily saw a 🐸!"

ids = model.tokenizer.encode(TEXT)
print(text_table([{"position": t, "id": i, "token": repr(label)}
                  for t, (i, label) in enumerate(zip(ids, token_labels(model, ids), strict=True))],
                 keys_as_headings({"position": "d", "id": "d", "token": ""})))  # fmt: skip
assert model.tokenizer.decode(ids) == TEXT

# %% [markdown]
# Notice three things. The first id has no text: it is BOS (beginning of sequence), which the tokenizer puts in front of
# every text. Most tokens include the space *before* them. And the frog is not one token but several, and none of them
# can be read alone. We will come back to the frog.
#
# ## What is in tokenizer.json
#
# The tokenizer is a JSON file. Two parts of it matter here: the **vocabulary** (a name for each id) and the **merges**
# (an ordered list of pairs).

# %%
fields = json.loads((model.folder / "tokenizer.json").read_text(encoding="utf-8"))
vocabulary, pairs = fields["model"]["vocab"], fields["model"]["merges"]

special = {token["content"] for token in fields["added_tokens"]}

kinds = {"special": 0, "one byte": 0, "one character": 0, "made by a merge": 0}
for name in vocabulary:
    if name in special:
        kinds["special"] += 1
    elif re.fullmatch(r"<0x[0-9A-F]{2}>", name):
        kinds["one byte"] += 1
    else:
        kinds["one character" if len(name) == 1 else "made by a merge"] += 1
rows = [{"kind": kind, "tokens": count} for kind, count in kinds.items()]
print(text_table(rows, keys_as_headings({"kind": "", "tokens": "d"})))
print("the first merges:", " ".join(f"{a!r}+{b!r}" for a, b in pairs[:6]))

assert sum(kinds.values()) == len(vocabulary) == model.config.vocab_size
assert kinds["one byte"] == 256
assert kinds["made by a merge"] == len(pairs)  # every merge makes exactly one token

# %% [markdown]
# The order of the merges is what the tokenizer learned from its training text. The most frequent pair comes first, then
# the pair that was most frequent after that merge, and so on (Sennrich et al. 2016). A pair's place in the list is its
# rank.
#
# ## Byte-pair encoding, with every merge visible
#
# First the text is cut into words, each with the space before it. No merge ever crosses the border between two words.

# %%
WORDS = re.compile(r" ?[^\s]+|\s+(?!\S)|\s")
assert WORDS.pattern == fields["pre_tokenizer"]["pattern"]["Regex"]  # the very rule of the file

words = WORDS.findall(TEXT)
print(words)
assert "".join(words) == TEXT

# %% [markdown]
# Each word starts as single characters. Then, step by step, the two neighbours with the lowest rank are merged into one
# piece, until no two neighbours are in the list of merges.

# %%
RANK = {tuple(pair): rank for rank, pair in enumerate(pairs)}


def stages(word):
    """The pieces of a word after each merge, from single characters to the tokens: a list of lists."""
    pieces, found = list(word), []
    while True:
        found.append(list(pieces))
        ranks = [RANK.get(pair, len(RANK)) for pair in zip(pieces, pieces[1:], strict=False)]
        if min(ranks, default=len(RANK)) == len(RANK):
            return found
        best = ranks.index(min(ranks))
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]


show(merges(stages(" brother")))

# %% [markdown]
# Read the figure from the top. In each line one pair has been merged into one piece (filled). The last line holds the
# tokens.
#
# These dozen lines of Python are slower than the library that minillm calls. But they give the same tokens, for every
# word of the calibration text that has no rare characters:

# %%
vocabulary_of = {index: name for name, index in vocabulary.items()}
text = minillm.embedded_text("calibration")[:20_000]
different_words = {word for word in WORDS.findall(text) if all(letter in vocabulary for letter in word)}

for word in different_words:
    expected = [vocabulary_of[i] for i in model.tokenizer.encode(word, bos=False)]
    assert stages(word)[-1] == expected, word
print(f"the same pieces for all of {len(different_words)} different words")

# %% [markdown]
# ## Where bytes come in
#
# A vocabulary of this size has no token for a frog. A character without a token of its own is written as its UTF-8
# **bytes**, one token for each byte. So every text can be encoded, and no character is ever unknown.

# %%
frog = model.tokenizer.encode("🐸", bos=False)
print([vocabulary_of[i] for i in frog], "=", "🐸".encode())
assert bytes(int(vocabulary_of[i][3:5], 16) for i in frog) == "🐸".encode()

rows = [{"text": sample, "characters": len(sample), "bytes": len(sample.encode()),
         "tokens": len(model.tokenizer.encode(sample, bos=False))}
        for sample in ("the little girl", "photosynthesis", "naïve café", "猫が好き", "🐸🐸")]  # fmt: skip
print(text_table(rows, keys_as_headings({"characters": "d", "bytes": "d", "tokens": "d", "text": ""})))
assert all(row["tokens"] <= row["bytes"] for row in rows)  # always: a token is at least one byte

# %% [markdown]
# The cost of a text is its number of tokens. A text that is similar to the training text needs few tokens, and another
# text needs many. In the worst case every byte is a token. This is why perplexities of different tokenizers cannot be
# compared, but bits per byte can.
#
# ## A broken round trip
#
# Decoding one token at a time fails as soon as one character needs several tokens. A byte that is not a whole character
# becomes `�`, the replacement character, and the original byte is lost.

# %%
one_by_one = "".join(model.tokenizer.decode([i]) for i in ids)
print("one by one  ", one_by_one)
print("all at once ", model.tokenizer.decode(ids))
assert one_by_one != TEXT and one_by_one.count("\ufffd") == len(frog)

# %% [markdown]
# ### Exercise 01.1: repair the round trip
# difficulty ●●○○○ · 8 minutes
#
# Write the decoder: from the *names* of tokens to text. A name is either the text itself (`" time"`), or a byte,
# written `<0xF0>`. Bytes that follow each other belong together. A byte that is not part of a character becomes
# `\ufffd`. The input is a list of names, the result a string.
#
# <details><summary>Hint</summary>
#
# Do not decode piece by piece. First turn every name into bytes, with `name.encode()` or `bytes([int(name[3:5], 16)])`.
# Then join them and decode once: `.decode("utf-8", errors="replace")`.
#
# </details>


# %% tags=["exercise"]
def text_of(names):
    """The text of token names, bytes among them: ["a", "<0xC3>", "<0xA9>"] -> "aé"."""
    found = b""
    for name in names:
        is_byte = re.fullmatch(r"<0x[0-9A-F]{2}>", name)
        found += bytes([int(name[3:5], 16)]) if is_byte else name.encode()
    return found.decode("utf-8", errors="replace")


# %% tags=["check"]
def text_of_spec(names):
    return model.tokenizer.decode([vocabulary[name] for name in names])


samples = ("the cat", "naïve café", "A 🐸 and a 猫.", "🐸")
encoded = [model.tokenizer.encode(sample, bos=False) for sample in samples]
cases = [([vocabulary_of[i] for i in ids_of_one],) for ids_of_one in encoded]
check("01.1", text_of, text_of_spec, [*cases, (["<0xF0>", "a"],)])

# %% [markdown]
# While a model generates text, the tokens come one at a time. minillm's `TextStream` waits until a character is
# complete, so you never see half of one.

# %%
stream = model.tokenizer.stream()
print([stream.push(i) for i in model.tokenizer.encode("a 🐸!", bos=False)])

# %% [markdown]
# ## From ids to rows
#
# An id is a row number. The embedding is a matrix (V, D), and the text becomes the rows of its ids: (T, D). This is
# where the model begins. From here on there are only numbers.

# %%
rows = model.embed_tokens[ids]
print(f"{len(ids)} ids -> {rows.dtype} {rows.shape}")
assert rows.shape == (len(ids), model.config.hidden_size)

# %% [markdown]
# Where does that matrix come from? From a file.
#
# ## From bytes to arrays
#
# A checkpoint is a folder. The weights are in `model.safetensors`, and we open it with plain Python.

# %%
path = model.folder / "model.safetensors"
raw = path.read_bytes()
files = [{"file": file.name, "bytes": file.stat().st_size} for file in sorted(model.folder.iterdir())]
print(text_table(files, keys_as_headings({"file": "", "bytes": ",d"})))

# %% [markdown]
# The format is short: 8 bytes with the length n of the header (unsigned, little-endian), n bytes of JSON, then the
# arrays.

# %%
n = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8 : 8 + n])
print("the first 8 bytes:", raw[:8].hex(" "), "=", n)
print("the header begins:", raw[8:100].decode())
metadata = header.pop("__metadata__", {})

# config.json says which tensors there must be
assert set(header) == set(model.config.tensor_shapes())

# %% [markdown]
# Each entry of the header gives the number format, the shape, and the first and last position of the numbers, counted
# from the end of the header. Here is the file as a picture.

# %%
start = 8 + n
by_place = sorted(header, key=lambda name: header[name]["data_offsets"])
parts = [(0, 8, f"n = {n:,}"), (8, start, raw[8:76].decode() + " ...")]
for name in (*by_place[:2], by_place[-1]):
    entry = header[name]
    begin, end = entry["data_offsets"]
    parts.append((start + begin, start + end, f"{name}  {entry['dtype']} {entry['shape']}"))
show(file_layout(parts, len(raw)))

# %% [markdown]
# ### Exercise 01.2: where are a tensor's numbers?
# difficulty ●●○○○ · 8 minutes
#
# Given the bytes of a whole safetensors file and the name of a tensor, find where its numbers are: `(begin, end)`,
# counted from the start of the **file**.
#
# <details><summary>Hint</summary>
#
# The offsets of the header count from the first byte after the header, which is byte 8 + n.
#
# </details>


# %% tags=["exercise"]
def locate(data, name):
    """The first byte of a tensor and the one after its last, in the file's bytes -> (begin, end)."""
    n = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + n])[name]["data_offsets"]
    return 8 + n + begin, 8 + n + end


# %% tags=["check"]
def locate_spec(data, name):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.safetensors"
        file.write_bytes(data)
        info = read_header(file)[name]
    return info.offset, info.offset + info.nbytes


two = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 5), np.float32)}
with tempfile.TemporaryDirectory() as folder:
    save_tensors(Path(folder) / "small.safetensors", two)
    small = (Path(folder) / "small.safetensors").read_bytes()
cases = [(small, "a"), (small, "b"), (raw, by_place[0]), (raw, by_place[-1])]
check("01.2", locate, locate_spec, cases)

# %% [markdown]
# minillm's own reader does the same. Most of its lines are checks: the file may be damaged or harmful, so everything is
# checked before any array is made.

# %%
show_source(read_header)

# %% [markdown]
# ## bfloat16: the upper half of a float32
#
# The header says BF16, which NumPy does not know. A `float32` has 1 sign bit, 8 bits of exponent, 23 of fraction. A
# `bfloat16` is its upper 16 bits: the same range, but fewer digits.

# %%
name = by_place[0]
begin, end = (start + byte for byte in header[name]["data_offsets"])
bits = np.frombuffer(raw[begin:end], "<u2").reshape(header[name]["shape"])
value = float(model.embed_tokens[5, 3])
show(bf16_bits(value))

# %% [markdown]
# ### Exercise 01.3: bfloat16 by hand
# difficulty ●●●○○ · 8 minutes
#
# Turn an array of 16-bit patterns (`uint16`, any shape) into the `float32` numbers that they represent: append 16 zero
# bits below each of them, and read the result as `float32`.
#
# <details><summary>Hint</summary>
#
# A `uint16` shifted by 16 bits is zero, so convert it first: `.astype(np.uint32)`. At the end use `.view(np.float32)`,
# which keeps the bits, and not `.astype(np.float32)`, which keeps the number.
#
# </details>


# %% tags=["exercise"]
def widened(bits):
    """The numbers of bfloat16 bit patterns: uint16 (...) -> float32 (...)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


# %% tags=["check"]
def widened_spec(bits):
    result = np.empty(bits.shape, np.float32)
    for at, pattern in np.ndenumerate(bits):
        sign, exponent, fraction = int(pattern) >> 15, int(pattern) >> 7 & 0xFF, int(pattern) & 0x7F
        if exponent == 0:  # zero, and numbers too small for a leading 1
            size = fraction / 128 * 2.0**-126
        elif exponent == 255:
            size = float("nan") if fraction else float("inf")
        else:
            size = (1 + fraction / 128) * 2.0 ** (exponent - 127)
        result[at] = -size if sign else size
    return result


odd = np.array([0x0000, 0x8000, 0x3F80, 0xC000, 0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x7F7F], np.uint16)
easy = np.array([0x3F80, 0x4000, 0x4040], np.uint16)
check("01.3", widened, widened_spec, [(easy,), (odd,), (bits[:20].copy(),)])

# %% [markdown]
# The specification computes the number from sign, exponent and fraction. The loader uses the shift, one piece at a
# time, so that it never holds a second copy of a large file. The conversion is exact: nothing is rounded when a file is
# *read*.

# %%
ours = widened_spec(bits[:20])
assert np.array_equal(ours, model.embed_tokens[:20])
print("the embedding's first rows from the raw bytes: equal to the model's, bit for bit")

# %% [markdown]
# But the numbers were rounded when the file was *written*. Eight significant bits mean a relative error of at most 2⁻⁸,
# which is about two and a half decimal digits. In practice models work well with that precision.

# %%
rng = np.random.default_rng(0)
exact = rng.standard_normal(10_000).astype(np.float32)
stored = widened_spec(to_bfloat16(exact))
error = np.abs(stored - exact) / np.abs(exact)
print(f"largest relative error {error.max():.5f}, bound {2**-8:.5f}")
assert 2**-9 < error.max() <= 2**-8

# %% [markdown]
# ## Change something
#
# Find a text with more tokens than characters. Then find a text of at least ten characters with as few tokens as
# possible. Change `MINE` and run the cell again.

# %%
MINE = "antidisestablishmentarianism"
mine = model.tokenizer.encode(MINE, bos=False)
print(f"{len(MINE)} characters, {len(MINE.encode())} bytes, {len(mine)} tokens:")
print(token_labels(model, mine))
assert model.tokenizer.decode(mine) == MINE

# %% [markdown]
# ## Your own checkpoint
#
# Ask the same questions about any folder: how many tokens do the texts need, and how are the numbers stored? Larger
# vocabularies need fewer tokens. Compare.


# %%
def portrait(model):
    """Print how many tokens a model's tokenizer needs for some texts, and the dtypes of its tensors."""
    rows = []
    for sample in ("the little girl", "photosynthesis", "naïve café", "猫が好き", "🐸🐸"):
        tokens = len(model.tokenizer.encode(sample, bos=False))
        rows.append({"text": sample, "bytes": len(sample.encode()), "tokens": tokens})
    bos = model.tokenizer.bos_ids or "none"
    print(f"{model.name}: {model.config.vocab_size:,} tokens in the vocabulary, BOS {bos}")
    print(text_table(rows, keys_as_headings({"bytes": "d", "tokens": "d", "text": ""})))
    tensors = checkpoint_tensors(model.folder).values()
    for dtype in sorted({tensor.dtype for tensor in tensors}):
        found = [tensor for tensor in tensors if tensor.dtype == dtype]
        print(f"{len(found)} tensors of {dtype}, {sum(tensor.nbytes for tensor in found) / 1e6:,.1f} MB")


portrait(model)

# %%
CHECKPOINT = ""
if CHECKPOINT:
    portrait(minillm.load(CHECKPOINT))

# %% [markdown]
# ## Recap
#
# A text is cut into words and the words into characters; then ranked merges join characters again. A character without
# a token is written in bytes, so decoding must wait for whole characters. The ids select rows of the embedding. Weights
# come from a file that holds a length, a JSON header and numbers. Most are bfloat16, which is `float32` without its
# lower half. All of this is exact: the same bytes always give the same arrays, and the same text always gives the same
# ids.
#
# ## Where to go next
#
# - [02 · One block, one token at a time](02_one_block_one_token_at_a_time.ipynb): what happens to these rows.
# - Papers: byte-pair encoding, Sennrich et al., arXiv 1508.07909, section 3.2; byte fallback and reversible text,
#   Kudo and Richardson (SentencePiece), arXiv 1808.06226, section 3; bfloat16 in training, Kalamkar et al.,
#   arXiv 1905.12322, section 2.
# - Source: [tensors.py](../minillm/loading/tensors.py), whose docstring has the format, and
#   [tokenizer.py](../minillm/loading/tokenizer.py).
