# %% [markdown]
# # 02 · One block, one token at a time
#
# A transformer repeats the same kind of block many times. If you know what happens inside one block, you know the
# model. In this notebook we stop after every step of the first block, look at the numbers, and compute them again
# ourselves.
#
# Afterwards you can
#
# 1. name the steps of a block in order, and say the shape after each;
# 2. compute RMSNorm, rotary positions, attention and SwiGLU yourself, and check your results;
# 3. say what a *neuron* of the feed-forward network is, which is what all later notebooks are about.

# %%
import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.loading.config import RopeConfig
from minillm.show.display import show
from minillm.show.explain_values import attention_pattern, rope_fan
from minillm.show.labels import token_labels
from minillm.show.map import you_are_here
from minillm.steps import step_info
from minillm.tables import keys_as_headings, text_table
from minillm.trace import Trace
from minillm.transformer.attention import attend, attention
from minillm.transformer.blocks import block
from minillm.transformer.ffn import swiglu
from minillm.transformer.ops import rms_norm, silu, softmax
from minillm.transformer.rope import rope_frequencies, rope_table, rotate_halves

show(you_are_here("transformer"))

# %% [markdown]
# ## One prompt, and every intermediate result
#
# We use one short sentence in the whole notebook. The model is loaded in `float64`. Then two ways of computing the same
# value agree to many digits, and rounding cannot hide a real mistake.

# %%
model = minillm.load("default", dtype="float64")
ids = model.tokenizer.encode("Tom gave Lily a red ball.")
tokens = token_labels(model, ids)
rows = [{"position": p, "id": ids[p], "token": repr(tokens[p])} for p in range(len(ids))]
print(text_table(rows, keys_as_headings({"position": "d", "id": "d", "token": ""})))

# %% [markdown]
# Token 0 has no text of its own (`#1` is its id); every text begins with it. How can we see every step? The model's
# source calls `tap(name, value)` at each intermediate result, and a `Trace` keeps a copy of each value.

# %%
with Trace(keep=["embed", "blocks.0.*"]) as trace:
    logits = model.forward(ids, tap=trace)

assert np.array_equal(logits, model.forward(ids))  # looking changes nothing, not one bit
trace.show()

# %% [markdown]
# This table is the whole lesson. From top to bottom it lists the steps in the order in which they are computed. The
# letters in `dims` mean the same everywhere in minillm. The next cell says what they are here, and checks every single
# shape.

# %%
config = model.config
T, D, F = len(ids), config.hidden_size, config.intermediate_size
H, K, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
letters = {
    "T": (T, "new tokens in this pass"),
    "S": (T, "positions they may look at"),
    "D": (D, "numbers per token (hidden size)"),
    "H": (H, "query heads"),
    "K": (K, "key/value heads"),
    "d": (d, "numbers per head"),
    "F": (F, "neurons of the FFN"),
}
rows = [{"letter": a, "here": size, "meaning": what} for a, (size, what) in letters.items()]
print(text_table(rows, keys_as_headings({"letter": "", "here": "d", "meaning": ""})))

for name, value in trace.items():
    assert value.shape == tuple(letters[a][0] for a in step_info(name).dims.split()), name

# %% [markdown]
# Every step can explain itself: its equation, its dimensions, its name in Hugging Face's code, and the line of
# minillm's source that computes it.

# %%
print(trace.explain("blocks.0.resid_mid"))

# %% [markdown]
# ## The residual stream: every step adds to it
#
# Each token has one row of `D` numbers, the *residual stream*. Attention and the feed-forward network (FFN) never
# replace this row. Each of them reads a normalised copy, computes a result, and **adds** it to the row.

# %%
show_source(block)

# %% [markdown]
# So three of the steps are only additions or copies. We check that, bit for bit.

# %%
step = {name.removeprefix("blocks.0."): value for name, value in trace.items()}

assert np.array_equal(step["resid_pre"], model.embed_tokens[ids])  # the first block reads the embeddings
assert np.array_equal(step["resid_mid"], step["resid_pre"] + step["attn.out"])
assert np.array_equal(step["resid_post"], step["resid_mid"] + step["mlp.out"])

t = T // 2  # the token that we follow: its row of the stream, before and after
print(f"we follow token {t}, {tokens[t]!r}; the first numbers of its row")
for name in ("resid_pre", "attn.out", "resid_mid", "mlp.out", "resid_post"):
    print(f"  {name:<12}", np.array2string(step[name][t, :6], precision=3, suppress_small=True))

# %% [markdown]
# ## RMSNorm: the same size for every token
#
# The rows of the stream have different sizes. RMSNorm divides each row by its root mean square. Then it multiplies each
# of the `D` numbers by a learned weight.

# %%
show(you_are_here("attn.norm"))

# %%
show_source(rms_norm)

# %%
layer = model.layers[0]
h = step["resid_pre"]
x = rms_norm(h, layer.input_layernorm, layer.eps)
assert np.array_equal(x, step["attn.norm"])
plain = rms_norm(h, np.ones(D), layer.eps)  # without the learned weight


def rms(row: np.ndarray) -> float:
    """Root mean square of a row."""
    return float(np.sqrt(np.mean(row**2)))


rows = [{"token": repr(tokens[p]), "before": rms(h[p]), "normed": rms(plain[p]), "times weight": rms(x[p])}
        for p in range(T)]  # fmt: skip
print(text_table(rows, keys_as_headings({"token": "", "before": ".3f", "normed": ".3f", "times weight": ".3f"})))

# %% [markdown]
# Why is there a small number `eps` inside the root? Without it, a row of zeros would be divided by zero. For ordinary
# rows `eps` changes almost nothing: when the row is multiplied by 1000, the result stays the same. For a very small row
# it does matter.

# %%
row = h[t]
big, small = (rms_norm(scale * row, np.ones(D), layer.eps) for scale in (1000, 1e-6))
print("root mean square after the norm")
print(f"  the row                 {rms(plain[t]):.6f}")
print(f"  the row times 1000      {rms(big):.6f}")
print(f"  the row over a million  {rms(small):.6f}")
assert np.isclose(rms(big), 1) and rms(small) < 0.01
assert np.array_equal(rms_norm(np.zeros(D), np.ones(D), layer.eps), np.zeros(D))

# %% [markdown]
# ### Exercise 02.1: RMSNorm
# difficulty ●○○○○ · 5 minutes
#
# Goal: compute the norm from its equation, $y_i = w_i\, x_i / \sqrt{\tfrac{1}{n}\sum_j x_j^2 + \varepsilon}$.
# `my_rms_norm(x, weight, eps)` takes rows `x (..., n)` and `weight (n,)`, and gives `(..., n)`.
#
# <details><summary>Hint</summary>
# The mean is over the last axis only: <code>axis=-1, keepdims=True</code> keeps the axis so that the division
# broadcasts. And <code>eps</code> goes inside the root.
# </details>


# %% tags=["exercise"]
def my_rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Scale each row to root mean square 1, then multiply by the weight: x (..., n), weight (n,) -> (..., n)."""
    mean_square = (x**2).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * weight


# %% tags=["check"]
weight = layer.input_layernorm
check("02.1", my_rms_norm, rms_norm, [
    (h[t], weight, layer.eps),  # one row
    (h, weight, layer.eps),  # all rows
    (h.reshape(T, H, -1), np.ones(D // H), layer.eps),  # one more axis
    (h * 1e-3, weight, layer.eps),  # so small that eps matters
    (h.astype(np.float32), weight.astype(np.float32), 1e-5),  # float32 stays float32
])  # fmt: skip

# %% [markdown]
# ## Queries, keys, values: three products of the same row
#
# Each token has a *query* (what it looks for), a *key* (what it can be found by) and a *value* (what it gives to the
# tokens that look at it). Each of the three is one matrix product, split into heads of `d` numbers.

# %%
q = (x @ layer.q_proj.T).reshape(T, H, d)
k = (x @ layer.k_proj.T).reshape(T, K, d)
v = (x @ layer.v_proj.T).reshape(T, K, d)
for name, mine in (("q", q), ("k", k), ("v", v)):
    assert np.allclose(mine, step[f"attn.{name}"], rtol=1e-12, atol=1e-12)
    print(f"{name}: x {x.shape} @ weight.T  ->  {mine.shape}")

# %% [markdown]
# There are more query heads than key/value heads: neighbouring query heads share one key head and one value head
# (*grouped-query attention*). So fewer keys and values have to be stored while text is generated. Notebook 04 counts
# the bytes.

# %%
group = H // K
rows = [{"query head": head, "reads key/value head": head // group} for head in range(H)]
print(text_table(rows, keys_as_headings({"query head": "d", "reads key/value head": "d"})))

# %% [markdown]
# ## RoPE: a position is an angle
#
# So far nothing depends on the *position* of a token. RoPE (rotary position embedding) takes the `d` numbers of a head
# as `d/2` points in the plane and rotates each point. At position $p$, pair $j$ is rotated by the angle
# $p\,\theta^{-2j/d}$. From position to position the first pair rotates fast and the last one hardly moves, like the
# hands of a clock.

# %%
cos, sin = rope_table(config.rope, config.max_position_embeddings, model.dtype)
show(rope_fan(cos, sin))

# %%
turns = rope_frequencies(config.rope, T, np.float64) / (2 * np.pi)  # turns per position
pairs = (0, 1, 2, 3, d // 4, d // 2 - 1)
rows = [{"pair": f"({j}, {j + d // 2})", "positions for one full turn": 1 / turns[j]} for j in pairs]
print(text_table(rows, keys_as_headings({"pair": "", "positions for one full turn": ",.0f"})))

# %% [markdown]
# Which two numbers make a pair? In Hugging Face's files, number $j$ and number $j + d/2$. The paper pairs neighbours
# instead. Mixing up the two is a famous bug; you will look for it in notebook 03.

# %%
show_source(rotate_halves)

# %% [markdown]
# **On paper, for d = 4.** There are two pairs, $(x_0, x_2)$ and $(x_1, x_3)$, with the frequencies $f_0 = 1$ and $f_1 =
# \theta^{-1/2}$. Write $c_j = \cos(p f_j)$ and $s_j = \sin(p f_j)$. Rotating a point $(a, b)$ by an angle gives $(a c -
# b s,\; b c + a s)$, so
#
# $$
# R(p)\,x =
# \begin{pmatrix} c_0 & 0 & -s_0 & 0 \\ 0 & c_1 & 0 & -s_1 \\ s_0 & 0 & c_0 & 0 \\ 0 & s_1 & 0 & c_1 \end{pmatrix}
# \begin{pmatrix} x_0 \\ x_1 \\ x_2 \\ x_3 \end{pmatrix}
# $$
#
# Take a pencil and derive the second row before you go on. Then the cell below builds the matrix and compares.


# %%
def rotation_matrix(position: int, theta: float) -> np.ndarray:
    """R(p) for d = 4, exactly as written above."""
    (c0, s0), (c1, s1) = ((np.cos(position * f), np.sin(position * f)) for f in (1.0, theta**-0.5))
    return np.array([[c0, 0, -s0, 0], [0, c1, 0, -s1], [s0, 0, c0, 0], [0, s1, 0, c1]])


four = RopeConfig("default", theta=10000.0, rotary_dim=4)
cos4, sin4 = rope_table(four, 8, np.float64)
points = np.random.default_rng(0).standard_normal((8, 1, 4))  # 8 positions, 1 head
by_matrix = np.stack([rotation_matrix(p, 10000.0) @ points[p, 0] for p in range(8)])
assert np.allclose(rotate_halves(points, cos4, sin4)[:, 0], by_matrix, rtol=0, atol=1e-14)
print(np.array2string(rotation_matrix(3, 10000.0), precision=3, suppress_small=True))

# %% [markdown]
# **The property that makes it useful.** A rotation keeps lengths, and rotating back by $p$ and then forward by $s$ is
# the same as rotating by $s - p$. So $R(p)q \cdot R(s)k = q \cdot R(s-p)k$: the product of a query at $p$ with a key at
# $s$ depends only on the distance between them. We take a real query and a real key of our sentence and put them at
# different positions.

# %%
one_q, one_k = q[t, 0], k[t - 1, 0]


def put(x: np.ndarray, position: int) -> np.ndarray:
    """A head's vector as it would be at another position: (d,) -> (d,)."""
    return rotate_halves(x[None, None], cos[[position]], sin[[position]])[0, 0]


starts, rows = (0, 100, 400), []
for far in (0, 1, 2, 5, 10, 50):
    products = {f"key at {s}": float(put(one_q, s + far) @ put(one_k, s)) for s in starts}
    rows.append({"distance": far} | products)
print(text_table(rows, keys_as_headings({"distance": "d", **{f"key at {s}": ".6f" for s in starts}})))

for row in rows:  # along a row nothing changes; down a column it does
    assert np.ptp([row[f"key at {s}"] for s in starts]) < 1e-10
assert np.ptp([row["key at 0"] for row in rows]) > 1e-3

# %% [markdown]
# ### Exercise 02.2: RoPE for any d
# difficulty ●●●○○ · 15 minutes
#
# Goal: rotate one head's vector. `my_rope(x, position, theta)` takes `x (d,)` with even `d`, a position and the base
# `theta`, and gives the rotated vector `(d,)`. Pairs are `(j, j + d/2)`, and pair `j` is rotated by `position * theta
# ** (-2 * j / d)`.
#
# <details><summary>Hint</summary>
# Split the vector: <code>a, b = x[:d // 2], x[d // 2:]</code>. All angles at once are <code>position * theta ** (-2 *
# np.arange(d // 2) / d)</code>. Rotate the pairs, and join the halves again with <code>np.concatenate</code>. Start
# with d = 4 and the matrix above.
# </details>


# %% tags=["exercise"]
def my_rope(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Rotate the pairs (j, j + d/2) of one head's vector: x (d,) -> (d,)."""
    d = len(x)
    angle = position * theta ** (-2 * np.arange(d // 2) / d)
    a, b = x[: d // 2], x[d // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


# %% tags=["check"]
def rope_by_the_package(x, position, theta):
    cos, sin = rope_table(RopeConfig("default", theta, rotary_dim=len(x)), position + 1, x.dtype)
    return rotate_halves(x[None, None], cos[-1:], sin[-1:])[0, 0]


rng = np.random.default_rng(1)
check("02.2", my_rope, rope_by_the_package, [
    (rng.standard_normal(4), 0, 10000.0),  # position 0: no rotation
    (rng.standard_normal(4), 3, 10000.0),  # the matrix above
    (rng.standard_normal(6), 11, 100.0),  # another d, another base
    (q[t, 0], t, config.rope.theta),  # a real query of our sentence
    (q[t, 0], 500, config.rope.theta),  # far into a text
])  # fmt: skip

# %% [markdown]
# ## Scores and pattern: which token looks at which
#
# The score of a query and a key is their product, divided by $\sqrt d$. A token must not look at the tokens after it,
# so their scores are removed (the *causal mask*). Softmax turns the other scores into weights that add up to one: the
# *pattern*.

# %%
show(you_are_here("attn.pattern"))

# %%
rot_q, rot_k = step["attn.rot_q"], step["attn.rot_k"]
head = 0
scores = rot_q[:, head] @ rot_k[:, head // group].T / np.sqrt(d)  # (T, S)
assert np.allclose(scores, step["attn.scores"][head], rtol=1e-12, atol=1e-12)

not_later = np.tri(T, dtype=bool)  # (T, S), True on and below the diagonal
pattern = softmax(np.where(not_later, scores, -np.inf))
assert np.allclose(pattern, step["attn.pattern"][head], rtol=1e-12, atol=1e-12)

print(f"head {head}: the token {tokens[t]!r} at position {t} looks at")
rows = [{"position": s, "token": repr(tokens[s]), "score": scores[t, s], "pattern": pattern[t, s]}
        for s in range(T)]  # fmt: skip
print(text_table(rows, keys_as_headings({"position": "d", "token": "", "score": ".2f", "pattern": ".1%"})))

# %% [markdown]
# The table shows scores of later tokens, because the scores are recorded before the mask. But the weight of a later
# token in the pattern is exactly zero. Each head has its own pattern. In the figure, each row is a token that looks,
# and each column is a token that is looked at. The upper right corner is the future.

# %%
show(attention_pattern(step["attn.pattern"], tokens))

# %%
assert np.allclose(step["attn.pattern"].sum(axis=-1), 1)
assert not step["attn.pattern"][:, ~not_later].any()  # no token looks ahead
assert np.array_equal(step["attn.pattern"][:, 0, 0], np.ones(H))  # the first token has only itself

# %% [markdown]
# Deeper blocks have learned other patterns. Change the number below and look at some of them.

# %%
BLOCK = config.num_hidden_layers // 2

with Trace(keep=f"blocks.{BLOCK}.attn.pattern") as deeper:
    model.forward(ids, tap=deeper)
show(attention_pattern(deeper[f"blocks.{BLOCK}.attn.pattern"], tokens))

# %% [markdown]
# With its pattern as weights, each head computes a weighted sum of the values. The result `z` has `d` numbers per head.
# The last matrix, `o_proj`, combines the heads and gives a row of `D` numbers, which is added to the stream.

# %%
z = [step["attn.pattern"][i] @ step["attn.v"][:, i // group] for i in range(H)]  # H times (T, d)
z = np.stack(z, axis=1)  # (T, H, d)
assert np.allclose(z, step["attn.z"], rtol=1e-12, atol=1e-12)
assert np.allclose(z.reshape(T, H * d) @ layer.o_proj.T, step["attn.out"], rtol=1e-12, atol=1e-12)
show_source(attend, attention)

# %% [markdown]
# minillm's own version computes all heads at once, and it can continue from a cache. Otherwise it does the same.

# %% [markdown]
# ## Change something
#
# A tap may also return *another* value, and the model continues with it. Here we switch off one head of this block at a
# time (its `z` becomes zero) and see how the prediction of the next word changes.


# %%
def switch_off(head: int):
    """An edit that sets one head's z to zero."""

    def edit(z: np.ndarray) -> np.ndarray:
        z[:, head] = 0
        return z

    return edit


best = int(logits[-1].argmax())
rows = [{"silent head": "none", "probability": softmax(logits[-1])[best]}]
for i in range(H):
    with Trace(keep="logits", edits={"blocks.0.attn.z": switch_off(i)}) as changed:
        model.forward(ids, tap=changed)
    rows.append({"silent head": str(i), "probability": softmax(changed["logits"][-1])[best]})
print(f"probability that {model.tokenizer.decode([best])!r} comes next")
print(text_table(rows, keys_as_headings({"silent head": "", "probability": ".1%"})))
assert len({row["probability"] for row in rows}) == H + 1  # every head has an effect

# %% [markdown]
# ## SwiGLU: a sum over neurons
#
# The second half of the block works on each token alone. It is a sum over `F` *neurons*. Neuron $j$ has three vectors
# of `D` numbers: row $j$ of the gate matrix, row $j$ of the up matrix, and column $j$ of the down matrix:
#
# $$ y = \sum_{j=1}^{F} \underbrace{\mathrm{silu}(x \cdot \mathrm{gate}_j)\,(x \cdot \mathrm{up}_j)}_{\mathrm{mid}_j}
# \;\mathrm{down}_j $$

# %%
show(you_are_here("mlp.mid"))

# %%
show_source(swiglu)

# %% [markdown]
# The gate decides whether the neuron is active: SiLU keeps large positive numbers almost unchanged and moves negative
# ones close to zero. `up` sets the sign and the strength. Their product, `mid`, is the coefficient of the neuron's
# column in the sum. Here are the neurons that add most for our token.

# %%
x_mlp = step["mlp.norm"][t]
gate_pre = layer.gate_proj @ x_mlp  # (F,)
gate, up = silu(gate_pre), layer.up_proj @ x_mlp  # (F,)
mid = gate * up  # (F,)
assert np.allclose(mid, step["mlp.mid"][t], rtol=1e-12, atol=1e-12)

loud = np.abs(mid) * np.linalg.norm(layer.down_proj, axis=0)  # the length of what each neuron adds
order = np.argsort(-loud)
rows = [{"neuron": j, "gate_pre": gate_pre[j], "gate": gate[j], "up": up[j], "mid": mid[j], "adds": loud[j]}
        for j in [*order[:5], *order[-2:]]]  # fmt: skip
print(f"neurons for {tokens[t]!r}: the five that add most and the two that add least")
columns = {"neuron": "d"} | dict.fromkeys(("gate_pre", "gate", "up", "mid", "adds"), ".3f")
print(text_table(rows, keys_as_headings(columns)))

# %% [markdown]
# Adding up the columns one by one gives the same result as the matrix product. But now we can choose the order. If we
# begin with the neurons that add most, how many do we need to come close? The error is the length of the missing part,
# divided by the length of the full output.

# %%
full = step["mlp.out"][t]
columns = layer.down_proj.T * mid[:, None]  # (F, D): what each neuron adds
assert np.allclose(columns.sum(axis=0), full, rtol=1e-12, atol=1e-12)

rows = []
for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
    count = round(share * F)
    rest = full - columns[order[:count]].sum(axis=0)
    missing = np.linalg.norm(rest) / np.linalg.norm(full)
    rows.append({"neurons": count, "of all": share, "missing": missing})
print(text_table(rows, keys_as_headings({"neurons": "d", "of all": ".0%", "missing": ".1%"})))
assert rows[-1]["missing"] < 1e-12 and rows[3]["missing"] < rows[0]["missing"] < 1

# %% [markdown]
# Remember this table. When a neuron is left out, its three vectors need not be read from memory. How many neurons can
# be left out? How can we know in advance which ones? What does it cost in quality? These are the questions of the rest
# of this course.
#
# ### Exercise 02.3: SwiGLU
# difficulty ●●○○○ · 10 minutes
#
# Goal: the feed-forward network. `my_swiglu(x, gate, up, down)` takes `x (T, D)`, `gate` and `up` `(F, D)` and
# `down (D, F)`, and gives `(T, D)`. `silu(a) = a / (1 + exp(-a))` is imported above; write it yourself if you like.
#
# <details><summary>Hint</summary>
# The matrices are stored as (out, in), so each product is <code>x @ matrix.T</code>. You need three products, one SiLU
# and one elementwise multiplication.
# </details>


# %% tags=["exercise"]
def my_swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The gated feed-forward network: x (T, D), gate and up (F, D), down (D, F) -> (T, D)."""
    mid = silu(x @ gate.T) * (x @ up.T)  # (T, F)
    return mid @ down.T


# %% tags=["check"]
def swiglu_by_neurons(x, gate, up, down):
    """The sum over neurons from above, one neuron and one token at a time."""
    y = np.zeros((len(x), len(down)))
    for t in range(len(x)):
        for j in range(len(gate)):
            a = gate[j] @ x[t]
            y[t] += a / (1 + np.exp(-a)) * (up[j] @ x[t]) * down[:, j]
    return y


rng = np.random.default_rng(3)
check("02.3", my_swiglu, swiglu_by_neurons, [
    (rng.standard_normal((1, 4)), *rng.standard_normal((2, 6, 4)), rng.standard_normal((4, 6))),
    (rng.standard_normal((3, 4)), *rng.standard_normal((2, 7, 4)), rng.standard_normal((4, 7))),
    (step["mlp.norm"], layer.gate_proj, layer.up_proj, layer.down_proj),  # our sentence, this block
])  # fmt: skip

# %% [markdown]
# ## The whole block in six lines
#
# Here are all the steps again, with the functions that you have seen. The result equals what the model computed.

# %%
cos, sin = rope_table(config.rope, T, model.dtype)
h = step["resid_pre"]
x = rms_norm(h, layer.input_layernorm, layer.eps)
h = h + attention(x, layer, cos, sin)
x = rms_norm(h, layer.post_attention_layernorm, layer.eps)
h = h + swiglu(x, layer)
assert np.array_equal(h, step["resid_post"])
print("resid_post", h.shape, "equals the model's, bit for bit")

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here (Llama, Mistral, Qwen2, Qwen3 or Phi-3), and look at its first block.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    other_ids = other.tokenizer.encode("Tom gave Lily a red ball.")
    with Trace(keep="blocks.0.*") as other_trace:
        other.forward(other_ids, tap=other_trace)
    other_trace.show()
    other_tokens = token_labels(other, other_ids)
    show(attention_pattern(other_trace["blocks.0.attn.pattern"][:4], other_tokens))  # its first four heads

# %% [markdown]
# ## Recap
#
# Every token has a row in the residual stream. A block reads a normalised copy of it twice and adds to it twice.
# Attention is the only step in which tokens exchange information. Queries are compared with keys; both are rotated by
# their position, so only the distance matters. The future is masked, and the pattern gives the weights for a sum of
# values. The feed-forward network works on each token alone. It is a sum over neurons, each with a coefficient `mid`.
# Most of the course is about the question which of these coefficients matter.
#
# ## What next
#
# [03 · The whole model equals PyTorch](03_the_whole_model_equals_pytorch.ipynb): all blocks together, and how to find a
# mistake in them. With `minillm grade` you can test your own attention, and six more functions, written in one file.
#
# **Papers.** RMSNorm: arXiv 1910.07467, section 4. RoPE: arXiv 2104.09864, section 3.2. Attention: arXiv 1706.03762,
# section 3.2. Grouped queries: arXiv 2305.13245, section 2.2. SwiGLU: arXiv 2002.05202, section 2.
#
# **Source.** [trace.py](../minillm/trace.py), and in the chapter transformer [ops.py](../minillm/transformer/ops.py),
# [rope.py](../minillm/transformer/rope.py), [attention.py](../minillm/transformer/attention.py),
# [ffn.py](../minillm/transformer/ffn.py), [model.py](../minillm/transformer/model.py).
