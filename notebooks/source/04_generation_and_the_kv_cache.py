# %% [markdown]
# # 04 · Generation and the KV cache
#
# A model gives probabilities for one next token. To generate text, we run it again and again. A naive loop repeats
# almost all of the work for every token. The *KV cache* stores the part that does not change. In this notebook we build
# this loop, check that the cache does not change the result, count what it saves and what it costs, and sample tokens
# at random.
#
# Afterwards you can
#
# 1. explain prefill and decode, and say what T and S are in each;
# 2. count the work and the bytes of a token, with a cache and without;
# 3. say what temperature, top-k, top-p and min-p do to the next token.

# %%
import textwrap
import time
from dataclasses import replace

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.loading.config import ModelConfig
from minillm.show.display import show
from minillm.show.explain_passes import cache_growth, sampling_bars, work_per_token
from minillm.show.labels import token_labels
from minillm.show.map import you_are_here
from minillm.tables import keys_as_headings, text_table
from minillm.trace import Trace, no_tap
from minillm.transformer.attention import KVCache, causal_mask
from minillm.transformer.generation import generate, next_probabilities
from minillm.transformer.ops import softmax

show(you_are_here("cache"))

# %% [markdown]
# ## One token at a time, each from the start
#
# This is the simplest loop that generates text: run the model on all tokens so far, take the most likely next token,
# and append it. Always taking the most likely token is called *greedy* decoding.

# %%
model = minillm.load("default", dtype="float64")
config = model.config
prompt = model.tokenizer.encode("Once upon a time there was a little dog")


def naive(ids: list[int], count: int) -> list[int]:
    """Greedy text without a cache: every pass computes everything again."""
    ids = list(ids)
    for _ in range(count):
        logits = model.forward(ids)  # (T, V), but only the last row is used
        ids.append(int(logits[-1].argmax()))
    return ids


start, whole = (model.tokenizer.decode(ids) for ids in (prompt, naive(prompt, 30)))
print(f"{start}|{whole[len(start) :]}")  # what follows the bar is the model's

# %% [markdown]
# minillm's `generate` gives the same tokens one by one, each with its text and its probability.

# %%
steps = list(generate(model, prompt, max_new_tokens=30, stop_at_eos=False))
print("|".join(step.text for step in steps))

assert [*prompt, *(step.token for step in steps)] == naive(prompt, 30)
rows = [{"position": step.position, "token": repr(step.text), "probability": np.exp(step.logprob)}
        for step in steps[:6]]  # fmt: skip
print(text_table(rows, keys_as_headings({"position": "d", "token": "", "probability": ".1%"})))

# %% [markdown]
# ## What never changes
#
# Look at the keys and values of the prompt, first in the prompt alone and then in a longer text. They are the same. A
# token never looks ahead, so later tokens cannot change its row of the stream, in any block. This is what makes a cache
# possible.

# %%
longer = [*prompt, *(step.token for step in steps)]
with Trace(keep=["*.rot_k", "*.attn.v"]) as alone:
    model.forward(prompt, tap=alone)
with Trace(keep=["*.rot_k", "*.attn.v"]) as inside:
    model.forward(longer, tap=inside)

for name, value in alone.items():
    assert np.allclose(inside[name][: len(prompt)], value, rtol=1e-10, atol=1e-12), name
print(f"{len(alone)} arrays of keys and values: the first {len(prompt)} rows are the same in both texts")

# %% [markdown]
# So we keep the keys and values of every block, and run only the *new* tokens through the model. Queries need not be
# kept, because a query is used only once, when its token is new. Each block appends its new keys and values to the
# cache, and gets back all keys and values so far.

# %%
show_source(KVCache.append)

# %% [markdown]
# ## Prefill and decode: T new positions look at S
#
# Now we see why there are two letters for lengths. `T` tokens are new in this pass. They attend to `S` positions: those
# in the cache and the new ones. Processing the prompt is called *prefill* (T = S), and generating is called *decode* (T
# = 1).

# %%
cache = KVCache(config, capacity=len(prompt) + 3, dtype=model.dtype)
rows, new = [], prompt
for what in ("prefill", "decode", "decode", "decode"):
    with Trace(keep=["blocks.0.attn.q", "blocks.0.attn.pattern"]) as trace:
        logits = model.forward(new, cache, tap=trace)
    heads, T, S = trace["blocks.0.attn.pattern"].shape
    rows.append({"pass": what, "T": T, "S": S, "queries": str(trace["blocks.0.attn.q"].shape),
                 "pattern": str((heads, T, S)), "cached after it": cache.length})  # fmt: skip
    assert S == cache.length and T == len(new)
    new = [int(logits[-1].argmax())]
columns = {"pass": "", "T": "d", "S": "d", "queries": "", "pattern": "", "cached after it": "d"}
print(text_table(rows, keys_as_headings(columns)))

# %% [markdown]
# ## Cached = uncached = in chunks
#
# The cache is correct only if it makes no difference how a text is cut into passes. We try several ways, and compare
# **all** logits, not only the generated text.


# %%
def in_passes(ids: list[int], sizes: list[int], tap=no_tap) -> np.ndarray:
    """The logits of a text that is processed in passes of these sizes: (len(ids), V)."""
    cache, start, parts = KVCache(config, len(ids), model.dtype), 0, []
    for size in sizes:
        parts.append(model.forward(ids[start : start + size], cache, tap=tap))
        start += size
    return np.concatenate(parts)


text = longer[:24]
n = len(text)
ways = {
    "one pass": [n],
    "one at a time": [1] * n,
    "prefill 10, then one at a time": [10] + [1] * (n - 10),
    "chunks of 5": [5] * (n // 5) + [n % 5],
    "1, 7, rest": [1, 7, n - 8],
}
without = model.forward(text)


def apart(logits: np.ndarray) -> float:
    """The largest difference from the logits without a cache, divided by the largest logit."""
    return float(np.abs(logits - without).max() / np.abs(without).max())


rows = [{"way": way, "passes": len(sizes), "largest difference": apart(in_passes(text, sizes))}
        for way, sizes in ways.items()]  # fmt: skip
print(text_table(rows, keys_as_headings({"way": "", "passes": "d", "largest difference": ".0e"})))
assert all(row["largest difference"] < 1e-12 for row in rows)

# %% [markdown]
# ## What the cache saves: computation
#
# We count multiply-adds, because they do not depend on the machine. Every new token is multiplied by every weight
# matrix once. In attention, every new token uses all S positions twice: once for the scores and once for the weighted
# sum of values (masked positions are computed, too).


# %%
def multiply_adds(config: ModelConfig, new: int, attended: int) -> int:
    """Multiply-adds of one pass with T new and S attended positions; the head is used for the last position only."""
    D, F, d = config.hidden_size, config.intermediate_size, config.head_dim
    H, K = config.num_attention_heads, config.num_key_value_heads
    matrices = 2 * D * H * d + 2 * D * K * d + 3 * D * F
    looking = 2 * attended * H * d
    return config.num_hidden_layers * new * (matrices + looking) + config.vocab_size * D


rows = []
for position in (1, 8, 32, 128, 512):
    cached = multiply_adds(config, 1, position)
    again = multiply_adds(config, position, position)
    millions = {"with cache": cached / 1e6, "without": again / 1e6}
    rows.append({"token": position} | millions | {"ratio": again / cached})
print("million multiply-adds for one more token")
print(text_table(rows, keys_as_headings({"token": "d", "with cache": ".1f", "without": ".1f", "ratio": ".1f"})))

curves = [{"name": name, "positions": row["token"], "multiply_adds": 1e6 * row[name]}
          for row in rows for name in ("with cache", "without")]  # fmt: skip
show(work_per_token(curves))

every_matrix = sum(w.size for layer in model.layers for w in vars(layer).values() if np.ndim(w) == 2)
assert multiply_adds(config, 1, 0) == every_matrix + model.lm_head.size  # no attended positions: each weight once
assert all(row["ratio"] > row["token"] / 2 for row in rows)  # without a cache, it grows with the text

# %% [markdown]
# With a cache, a token costs one multiply-add per weight, plus a small part that grows with the length of the text.
# Without a cache, all of the work for one token grows with the length of the text. And how much time does it save? That
# depends on the machine, so we only print it.

# %%
COUNT = 60

begin = time.perf_counter()
list(generate(model, prompt, COUNT, stop_at_eos=False))
middle = time.perf_counter()
naive(prompt, COUNT)
end = time.perf_counter()
print(f"{COUNT} tokens: without a cache {(end - middle) / (middle - begin):.1f} times as long as with it")

# %% [markdown]
# ## What the cache costs: memory
#
# The cache holds one key and one value of `d` numbers for each position, each key/value head and each block.
#
# ### Exercise 04.1: the bytes of a cache
# difficulty ●○○○○ · 5 minutes
#
# Goal: compute the size of a cache before it is made. `my_cache_bytes(config, positions, bytes_per_number)` gives the
# bytes of all keys and values. You need `config.num_hidden_layers`, `.num_key_value_heads` and `.head_dim`.
#
# <details><summary>Hint</summary>
# The result is a product of six numbers, and one of them is 2.
# </details>


# %% tags=["exercise"]
def my_cache_bytes(config: ModelConfig, positions: int, bytes_per_number: int) -> int:
    """Bytes of the keys and values of that number of positions."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * positions
    return numbers * bytes_per_number


# %% tags=["check"]
def bytes_of_a_real_cache(config, positions, bytes_per_number):
    dtype = {2: np.float16, 4: np.float32, 8: np.float64}[bytes_per_number]
    return KVCache(config, positions, dtype).nbytes


check("04.1", my_cache_bytes, bytes_of_a_real_cache, [
    (config, 1, 4),
    (config, 100, 8),
    (replace(config, num_hidden_layers=3), 7, 2),
    (replace(config, num_key_value_heads=config.num_attention_heads), 50, 4),
    (replace(config, head_dim=64), 50, 4),
])  # fmt: skip

# %% [markdown]
# Now you see why query heads share keys and values. The figure shows the size of this model's cache. It also shows the
# size if every query head had its own key/value head (*multi-head*), and if all shared one (*multi-query*).

# %%
H, K = config.num_attention_heads, config.num_key_value_heads
L, d = config.num_hidden_layers, config.head_dim
names = {H: "multi-head", K: "this model", 1: "multi-query"}
rows = []
for heads in dict.fromkeys((H, K, 1)):
    name = f"{heads} key/value heads ({names[heads]})"
    for positions in range(0, config.max_position_embeddings + 1, 64):
        size = 2 * L * heads * d * positions * 4  # float32
        rows.append({"name": name, "positions": positions, "bytes": size})
show(cache_growth(rows))

# %% [markdown]
# For large models the cache is not small. The next table compares Llama 3 8B (its published config: 32 blocks, 8
# key/value heads, 128 numbers each) with 2 bytes per number and our model with 4.

# %%
shapes = {"this model, float32": (L, K, d, 4), "Llama 3 8B, bfloat16": (32, 8, 128, 2)}
rows = []
for name, (layers, heads, size, width) in shapes.items():
    per_position = 2 * layers * heads * size * width
    at = {f"MB at {positions}": per_position * positions / 1e6 for positions in (512, 8192)}
    rows.append({"model": name, "bytes per position": per_position} | at)
columns = {"model": "", "bytes per position": ",d", "MB at 512": ".1f", "MB at 8192": ",.0f"}
print(text_table(rows, keys_as_headings(columns)))
assert rows[0]["bytes per position"] == KVCache(config, 1, np.float32).nbytes

# %% [markdown]
# ## The mask, when there is a cache
#
# In one pass over a whole text, row `t` of the mask allows positions `0 ... t`: a lower triangle. With a cache, the
# rows are the `T` *new* positions, which are the *last* of the `S` attended ones. So the triangle is at the right end,
# and everything to the left of it is allowed.

# %%
show_source(causal_mask)

# %%
for new, attended in ((5, 5), (2, 5), (1, 5)):
    print(f"T = {new}, S = {attended}")
    for row in causal_mask(new, attended):
        print("   ", " ".join("#" if seen else "." for seen in row))

# %% [markdown]
# ### Exercise 04.2: a mask for a chunk
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_mask(new, attended)` gives the array `(T, S)` of booleans that is printed above, for any
# `attended >= new`.
#
# <details><summary>Hint</summary>
# Which position of the text belongs to row 0? It is <code>attended - new</code>. Make a column with the positions of
# the rows, and a row with all positions. Then compare them with broadcasting.
# </details>


# %% tags=["exercise"]
def my_mask(new: int, attended: int) -> np.ndarray:
    """True where a new position may look: (T, S) booleans; the new positions are the last of the attended."""
    position = np.arange(attended - new, attended)[:, None]  # (T, 1)
    return np.arange(attended)[None, :] <= position  # (T, S)


# %% tags=["check"]
check("04.2", my_mask, causal_mask, [(1, 1), (5, 5), (1, 6), (2, 5), (4, 12)])

# %% [markdown]
# ## Break the mask, and see which tests notice
#
# There are three common mistakes. We insert them with a tap. It keeps the scores (they are recorded before the mask),
# and it replaces the pattern by another one, computed with the wrong mask.


# %%
def with_mask(mask):
    """A tap that masks the scores again, with mask(T, S)."""
    seen = {}

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith("attn.scores"):
            seen["scores"] = value.copy()
        if name.endswith("attn.pattern"):
            return softmax(np.where(mask(*value.shape[1:]), seen["scores"], -np.inf))
        return value

    return tap


masks = {
    "the right one": causal_mask,
    "no mask at all": lambda T, S: np.ones((T, S), bool),
    "one too far": lambda T, S: np.tri(T, S, k=S - T + 1, dtype=bool),
    "counted from the chunk's start": lambda T, S: np.tri(T, S, dtype=bool),
}
tried, rows = ("one pass", "chunks of 5", "one at a time"), []
for name, mask in masks.items():
    errors = {way: apart(in_passes(text, ways[way], with_mask(mask))) for way in tried}
    rows.append({"mask": name} | {way: "wrong" if e > 1e-6 else "right" for way, e in errors.items()})
print(text_table(rows, keys_as_headings({"mask": "", "one pass": "", "chunks of 5": "", "one at a time": ""})))

found = [[row[way] for way in tried] for row in rows]
assert found[0] == ["right"] * 3
assert found[1] == found[2] == ["wrong", "wrong", "right"]
assert found[3] == ["right", "wrong", "wrong"]

# %% [markdown]
# Read the table carefully. A model without any mask is right when it processes one token at a time, because there are
# no later tokens yet. Later tokens must be hidden only where several positions are computed at once. And the last
# mistake passes every test that uses a single pass. **Only tests that cut a text in several ways find all of these
# mistakes.**
#
# ## Going back: truncate
#
# Old rows never change. So we can also *remove* the newest rows and continue in another way. Here one prompt is
# processed once, and several continuations are tried on it.

# %%
show_source(KVCache.truncate)

# %%
start = model.tokenizer.encode("Lily saw a big")
cache = KVCache(config, len(start) + 8, model.dtype)
model.forward(start, cache)

rows = []
for word in (" dog", " box", " tree", " ball"):
    word_ids = model.tokenizer.encode(word, bos=False)
    after = model.forward(word_ids, cache)[-1]
    cache.truncate(len(start))  # forget the word, keep the prompt
    fresh = model.forward([*start, *word_ids])[-1]
    assert np.allclose(after, fresh, rtol=1e-10, atol=1e-10)  # as if the others had never been tried
    best = int(after.argmax())
    then = repr(model.tokenizer.decode([best]))
    rows.append({"Lily saw a big ...": word, "then": then, "probability": softmax(after)[best]})
print(text_table(rows, keys_as_headings({"Lily saw a big ...": "", "then": "", "probability": ".1%"})))

# %% [markdown]
# ## Sampling
#
# Greedy text is always the same, and it tends to repeat itself. Instead we can *sample* the next token at random from
# its probabilities. First the logits are divided by the **temperature**. Below 1, the likely tokens become more likely.
# Above 1, all probabilities become more equal.

# %%
show_source(next_probabilities)

# %%
first_words = "One day, Tom found a"
logits = model.forward(model.tokenizer.encode(first_words))[-1]
vocabulary = token_labels(model, range(config.vocab_size))
bars = {f"temperature {t}": next_probabilities(logits, t) for t in (0.5, 1.0, 1.5)}
show(sampling_bars(vocabulary, bars))

# %%
likeliest = {t: next_probabilities(logits, t).max() for t in (1e-6, 0.5, 1.0, 1.5, 1e6)}
for t, p in likeliest.items():
    print(f"temperature {t:>9g}: the most likely token has {p:.1%}")
assert list(likeliest.values()) == sorted(likeliest.values(), reverse=True)
assert likeliest[1e-6] > 0.999  # towards 0: greedy
assert np.isclose(likeliest[1e6], 1 / config.vocab_size, rtol=1e-3)  # towards infinity: any token

# %% [markdown]
# At temperature 1 there is a long tail: each unlikely token has a small probability, but there are very many of them,
# and one wrong word can spoil a story. So the tail is cut off before sampling. **Top-k** keeps the k most likely
# tokens. **Top-p** keeps the smallest set of most likely tokens whose probabilities add up to at least p. **Min-p**
# keeps the tokens that are at least p times as likely as the most likely one.

# %%
everything = next_probabilities(logits)
settings = {"nothing cut": {}, "top_k = 10": {"top_k": 10}, "top_p = 0.9": {"top_p": 0.9},
            "min_p = 0.1": {"min_p": 0.1}}  # fmt: skip
rows = []
for name, setting in settings.items():
    kept = next_probabilities(logits, **setting) > 0
    last = repr(vocabulary[np.where(kept, everything, 2).argmin()])
    left = {"tokens left": int(kept.sum()), "mass": everything[kept].sum(), "last": last}
    rows.append({"setting": name} | left)
print(text_table(rows, keys_as_headings({"setting": "", "tokens left": "d", "mass": ".1%", "last": ""})))
assert rows[0]["tokens left"] == config.vocab_size and rows[1]["tokens left"] == 10
assert rows[2]["mass"] >= 0.9

# %% [markdown]
# `mass` is the sum of the probabilities that the remaining tokens had before the cut, and `last` is the least likely of
# them. The figure shows the probabilities after the cut: they are divided by their sum, so that they add up to 1 again.

# %%
bars = {name: next_probabilities(logits, **setting) for name, setting in settings.items()}
show(sampling_bars(vocabulary, bars))

# %% [markdown]
# ### Exercise 04.3: top-p
# difficulty ●●●○○ · 15 minutes
#
# Goal: `my_top_p(p, mass)` takes probabilities `p (V,)` and keeps the smallest set of most likely tokens that together
# have at least `mass`. All others become 0, and the rest is divided by its sum. The most likely token always stays.
#
# <details><summary>Hint</summary>
# Sort: <code>order = np.argsort(-p)</code>. For each token in that order, compute the mass <em>before</em> it:
# <code>np.cumsum(p[order]) - p[order]</code>. A token stays if this is less than <code>mass</code>. Work on a copy of
# <code>p</code>.
# </details>


# %% tags=["exercise"]
def my_top_p(p: np.ndarray, mass: float) -> np.ndarray:
    """Keep the most likely tokens that together have that mass, drop the rest: (V,) -> (V,), sum 1."""
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    kept = p.copy()
    kept[order[before >= mass]] = 0
    return kept / kept.sum()


# %% tags=["check"]
def top_p(p, mass):
    """The specification: one token after the other, the most likely first."""
    kept, together = np.zeros(len(p)), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if together < mass or together == 0:
            kept[token] = p[token]
            together += p[token]
    return kept / kept.sum()


rng = np.random.default_rng(0)
assert np.allclose(top_p(everything, 0.9), next_probabilities(np.log(everything), top_p=0.9))  # so does the package
check("04.3", my_top_p, top_p, [
    (np.array([0.1, 0.6, 0.3]), 0.8),
    (np.array([0.25, 0.5, 0.125, 0.125]), 0.75),  # two tokens have exactly that mass
    (np.array([0.1, 0.6, 0.3]), 0.05),  # only the likeliest
    (rng.dirichlet(np.ones(8)), 0.5),
    (rng.dirichlet(np.ones(8)), 0.999),
    (everything, 0.9),  # the next token of our model
])  # fmt: skip

# %% [markdown]
# ## Change something
#
# The same seed gives the same text, so a random result can be repeated. Change the settings. At which temperature does
# the story become nonsense? How high can the temperature be if you also set `min_p`?

# %%
TEMPERATURE, TOP_P, MIN_P = 0.8, 0.95, None


def story(seed: int) -> str:
    """The prompt, a bar, and a sampled continuation."""
    how = {"temperature": TEMPERATURE, "top_p": TOP_P, "min_p": MIN_P}
    steps = generate(model, prompt, 40, **how, rng=np.random.default_rng(seed))
    return model.tokenizer.decode(prompt) + "|" + "".join(step.text for step in steps)


for seed in (1, 2, 3):
    print(textwrap.fill(f"seed {seed}: {story(seed)}", 90, subsequent_indent=" " * 8), "\n")
assert story(1) == story(1)

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here. How large is its cache, and is the result with the cache the same?

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    other_ids = other.tokenizer.encode("Once upon a time there was a little dog")
    other_cache = KVCache(other.config, len(other_ids), other.dtype)
    one_by_one = np.concatenate([other.forward([i], other_cache) for i in other_ids])
    at_once = other.forward(other_ids)
    print(f"{other_cache.nbytes / len(other_ids) / 1e3:.1f} kB per position")
    print(f"largest difference {np.abs(one_by_one - at_once).max() / np.abs(at_once).max():.0e} (float32)")

# %% [markdown]
# ## Recap
#
# Generation is a loop: compute logits, choose a token, append it. A token never looks ahead, so keys and values can be
# kept. Then only the newest token goes through the model (T is 1), and it attends to all S positions. The result does
# not depend on how a text is cut into passes, if the mask counts positions from the start of the text. The computation
# that the cache saves grows with the length of the text, and so does the memory that it needs. With a cache, each new
# token uses every weight once. In a large model, *reading the weights* takes most of the time. The next notebooks ask
# which weights need not be read.
#
# ## What next
#
# [05 · Looking at activations](05_looking_at_activations.ipynb): which neurons are active, and how often.
#
# **Papers.** Grouped queries: arXiv 2305.13245, section 2. Top-p: arXiv 1904.09751, section 3.1. Min-p: arXiv
# 2407.01082, section 3. A cache that is managed in pages: arXiv 2309.06180, section 4.
#
# **Source.** [attention.py](../minillm/transformer/attention.py) (`KVCache`, `causal_mask`),
# [generation.py](../minillm/transformer/generation.py).
