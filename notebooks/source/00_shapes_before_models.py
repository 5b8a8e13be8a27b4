# %% [markdown]
# # 00 · Shapes before models
#
# A transformer in NumPy is short. The hard part is not the mathematics but the shapes: which axis is which, what is
# repeated, what is a view, and why everything became `float64`. When you can read shapes, you can read the rest of this
# course.
#
# Afterwards you can
#
# 1. predict the shape of any expression with broadcasting or `einsum` before you run it;
# 2. say whether a result is a view or a copy, and why that matters;
# 3. find the place where a `float32` computation leaks into `float64`.

# %%
import math

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.show.display import show
from minillm.show.map import you_are_here
from minillm.show.primer import broadcasting
from minillm.tables import keys_as_headings, text_table
from minillm.transformer import ops
from minillm.transformer.linear import linear
from minillm.transformer.ops import silu

show(you_are_here())

# %% [markdown]
# You will see this map in every notebook. No box is filled yet, because this notebook is about the small letters in the
# boxes. They have the same meaning in the whole course.
#
# | letter | what it counts |
# |---|---|
# | T | new tokens, one row each |
# | S | tokens that can be looked at (S ≥ T) |
# | D | numbers per token, the *hidden size* |
# | H, K | query heads, key/value heads |
# | d | numbers per head |
# | F | neurons of the feed-forward network |
# | V | tokens in the vocabulary |
#
# ## Read: one function, one line of mathematics
#
# This function does most of a model's work. Read its docstring first: the equation, then the shapes of what goes in and
# what comes out.

# %%
show_source(linear)

# %% [markdown]
# The weight is stored as (out, in), as in every Hugging Face checkpoint, so we write `x @ w.T`. The two inner axes must
# have the same length, and they disappear. The outer axes stay.

# %%
T, D, F = 5, 8, 12
rng = np.random.default_rng(0)
x = rng.standard_normal((T, D))
weight = rng.standard_normal((F, D))

y = linear(x, weight)
print(f"{x.shape} @ {weight.T.shape} -> {y.shape}")
assert y.shape == (T, F)

by_hand = sum(x[2, j] * weight[7, j] for j in range(D))
assert np.allclose(y[2, 7], by_hand)  # one number of it

# %% [markdown]
# ## Broadcasting: which array is repeated?
#
# NumPy compares the two shapes **aligned at the right**. Two sizes fit when they are equal, or when one of them is 1
# (or missing). An axis of size 1 is repeated, but the copies are not stored.

# %%
column = np.array([[0], [10], [20]])  # (3, 1)
row = np.array([0, 1, 2, 3])  # (4,)
assert (column + row).shape == (3, 4)
show(broadcasting(column, row))

# %% [markdown]
# There is a simple way to predict the shape of a result. Write both shapes one below the other, fill the shorter one
# with ones at its left, and take the larger number of each pair. The next cell lets NumPy do it. Cover the last column
# and predict it first.

# %%
lefts = (5, 8), (5, 8), (4, 5, 6), (5, 1), (4, 1, 5), (5, 8)
rights = (8,), (5, 1), (5, 6), (6,), (3, 5), (5,)
lines = []
for left, right in zip(lefts, rights, strict=True):
    try:
        result = str(np.broadcast_shapes(left, right))
    except ValueError:
        result = "does not fit"
    lines.append({"one": str(left), "other": str(right), "together": result})
print(text_table(lines, keys_as_headings({"one": "", "other": "", "together": ""})))

# %% [markdown]
# The last pair is a common mistake: one number per token, `(T,)`, is combined with rows of D numbers. It must become
# `(T, 1)` first. That is what `[:, None]` and `keepdims=True` are for.

# %%
per_token = x.max(axis=1)  # (T,)
assert per_token[:, None].shape == x.max(axis=1, keepdims=True).shape == (T, 1)
assert (x - per_token[:, None]).shape == (T, D)

# %% [markdown]
# Now it is your turn. Each puzzle has a *specification*: slow loops that say exactly what is wanted. Write the same
# **without any loop**. The check compares both on several shapes. It tells you what differs, and it looks at the shapes
# first.

# %% [markdown]
# ### Exercise 00.1: all products
# difficulty ●○○○○ · 3 minutes
#
# Multiply each number of `a` (n,) by each number of `b` (m,). The result has one row for each number of `a`: (n, m).
#
# <details><summary>Hint</summary>
#
# A column times a row. `a[:, None]` is a column.
#
# </details>


# %% tags=["exercise"]
def outer(a, b):
    """Every product: a (n,), b (m,) -> (n, m)."""
    return a[:, None] * b


# %% tags=["check"]
def outer_spec(a, b):
    result = np.empty((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            result[i, j] = a[i] * b[j]
    return result


sizes = ((2, 3), (4, 4), (1, 5))
check("00.1", outer, outer_spec, [(rng.standard_normal(n), rng.standard_normal(m)) for n, m in sizes])

# %% [markdown]
# ### Exercise 00.2: centre each token
# difficulty ●○○○○ · 3 minutes
#
# Subtract from each row of `x` (T, D) its own mean. (LayerNorm begins like this; Llama's RMSNorm leaves it out.)
#
# <details><summary>Hint</summary>
#
# `x.mean(axis=-1)` is (T,). Which axis has to stay, and which argument keeps it?
#
# </details>


# %% tags=["exercise"]
def centred(x):
    """Rows with mean zero: x (T, D) -> (T, D)."""
    return x - x.mean(axis=-1, keepdims=True)


# %% tags=["check"]
def centred_spec(x):
    result = np.empty_like(x)
    for t in range(len(x)):
        result[t] = x[t] - sum(x[t]) / len(x[t])
    return result


sizes = ((3, 5), (4, 4), (1, 2))
check("00.2", centred, centred_spec, [(rng.standard_normal(size),) for size in sizes])

# %% [markdown]
# The second case of that check was square on purpose. Without `keepdims`, the shapes (4, 4) and (4,) *fit*: there is no
# error, and the means are subtracted along the wrong axis. Square test arrays hide shape errors. Always test with two
# different sizes.
#
# ### Exercise 00.3: one-hot rows
# difficulty ●●○○○ · 4 minutes
#
# Give each id of `ids` (T,) a row of V numbers: 1 at its own place, 0 elsewhere, as `float32`. (Multiplied by the
# embedding matrix, such a row selects one token's vector. In practice the row is looked up instead, with the same
# result.)
#
# <details><summary>Hint</summary>
#
# A comparison broadcasts like a sum: `ids[:, None] == np.arange(V)`. Then turn the truth values into numbers with
# `.astype(np.float32)`.
#
# </details>


# %% tags=["exercise"]
def one_hot(ids, V):
    """Rows of zeros with a single one: ids (T,) -> float32 (T, V)."""
    return (ids[:, None] == np.arange(V)).astype(np.float32)


# %% tags=["check"]
def one_hot_spec(ids, V):
    result = np.zeros((len(ids), V), np.float32)
    for t in range(len(ids)):
        result[t, ids[t]] = 1
    return result


cases = [(np.array([2, 0, 3]), 4), (np.array([5, 5]), 7), (np.array([0]), 1)]
check("00.3", one_hot, one_hot_spec, cases)

# %% [markdown]
# ### Exercise 00.4: the score of the next token
# difficulty ●●○○○ · 4 minutes
#
# For each token t there is a row of `scores` (T, V), and the id `ids[t]` of the token that really came next. Select
# `scores[t, ids[t]]` for every t: (T,). Perplexity is computed from these numbers alone.
#
# <details><summary>Hint</summary>
#
# Two index arrays of the same length are used *in pairs*: `scores[rows, columns]` takes the first row with the first
# column, and so on. Which rows do you need?
#
# </details>


# %% tags=["exercise"]
def chosen(scores, ids):
    """The score of each row's own id: scores (T, V), ids (T,) -> (T,)."""
    return scores[np.arange(len(ids)), ids]


# %% tags=["check"]
def chosen_spec(scores, ids):
    result = np.empty(len(ids))
    for t in range(len(ids)):
        result[t] = scores[t, ids[t]]
    return result


sizes = ((3, 5), (4, 4))
cases = [(rng.standard_normal((T, V)), rng.integers(V, size=T)) for T, V in sizes]
check("00.4", chosen, chosen_spec, cases)

# %% [markdown]
# ## Einsum: name the axes
#
# `einsum` makes the letters part of the program. A letter on both sides of the arrow stays. A letter that is missing on
# the right side is summed over. This one rule covers products, sums, transposes and everything that attention needs.

# %%
T, S, H, d = 3, 5, 2, 4
a, b = rng.standard_normal((T, D)), rng.standard_normal((S, D))
q, k = rng.standard_normal((T, H, d)), rng.standard_normal((S, H, d))

examples = {
    "td,sd->ts": (a, b),  # every row with every row: D is summed over
    "td,td->t": (a, a),  # each row with itself
    "td->dt": (a,),  # a transpose
    "td->": (a,),  # a sum over everything
    "thd,shd->hts": (q, k),  # the same as the first, for each head by itself
}
rows = []
for how, given in examples.items():
    shapes, result = "  ".join(str(one.shape) for one in given), np.einsum(how, *given)
    rows.append({"einsum": how, "in": shapes, "out": str(result.shape)})
print(text_table(rows, keys_as_headings({"einsum": "", "in": "", "out": ""})))
assert np.allclose(np.einsum("td,sd->ts", a, b), a @ b.T)

# %% [markdown]
# ### Exercise 00.5: attention scores
# difficulty ●●○○○ · 5 minutes
#
# Attention begins with a score for each head h, each new token t and each token s: the product of query `q[t, h]` and
# key `k[s, h]`, divided by √d. From `q` (T, H, d) and `k` (S, H, d) make (H, T, S).
#
# <details><summary>Hint</summary>
#
# Look at the last line of the table above. `q.shape[-1]` is d.
#
# </details>


# %% tags=["exercise"]
def scores(q, k):
    """Scaled products per head: q (T, H, d), k (S, H, d) -> (H, T, S)."""
    return np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])


# %% tags=["check"]
def scores_spec(q, k):
    T, H, d = q.shape
    result = np.zeros((H, T, len(k)))
    for h in range(H):
        for t in range(T):
            for s in range(len(k)):
                result[h, t, s] = sum(q[t, h, i] * k[s, h, i] for i in range(d)) / d**0.5
    return result


sizes = ((2, 3, 4, 5), (3, 3, 3, 3), (1, 6, 2, 4))  # T, S, H, d
cases = [(rng.standard_normal((T, H, d)), rng.standard_normal((S, H, d))) for T, S, H, d in sizes]
check("00.5", scores, scores_spec, cases)

# %% [markdown]
# ## Views: two names for the same memory
#
# `transpose` never copies the numbers, and `reshape` avoids it where it can. They only change the order in which the
# same memory is read. So they cost almost nothing. But it also means that writing into one array changes the other.

# %%
flat = np.arange(6)
table = flat.reshape(2, 3)
table[0, 0] = 100
assert flat[0] == 100  # the same memory

turned = table.T
assert np.shares_memory(turned, flat)
assert not np.shares_memory(turned.reshape(6), flat)  # this one had to copy
print("as stored     ", flat)
print("turned, flat  ", turned.reshape(6))

# %% [markdown]
# So `reshape(3, 2)` and `.T` give the same shape, but different arrays. `reshape` never changes the order of the
# numbers; it only puts the line breaks in other places. Mixing up the two is the most common mistake with heads.
#
# ### Exercise 00.6: split into heads
# difficulty ●●●○○ · 6 minutes
#
# A row of `x` (T, H·d) holds the numbers of head 0, then those of head 1, and so on. Give each head its own table:
# (H, T, d), with `result[h, t, i] = x[t, h·d + i]`.
#
# <details><summary>Hint</summary>
#
# First put the line breaks in the right places, without changing the order: (T, H, d). Then swap two axes.
#
# </details>


# %% tags=["exercise"]
def split_heads(x, H):
    """One table per head: x (T, H d) -> (H, T, d)."""
    return x.reshape(len(x), H, -1).transpose(1, 0, 2)


# %% tags=["check"]
def split_heads_spec(x, H):
    T, d = len(x), x.shape[1] // H
    result = np.empty((H, T, d))
    for h in range(H):
        for t in range(T):
            for i in range(d):
                result[h, t, i] = x[t, h * d + i]
    return result


sizes = ((3, 2, 4), (2, 2, 2))  # T, H, d
cases = [(rng.standard_normal((T, H * d)), H) for T, H, d in sizes]
check("00.6", split_heads, split_heads_spec, cases)

# %% [markdown]
# ### Exercise 00.7: repeat the keys
# difficulty ●●●○○ · 6 minutes
#
# Llama has fewer key heads than query heads: query head h uses key head `h // (H / K)`. The simplest way is to repeat
# each key head. From `k` (K, S, d) make (H, S, d).
#
# <details><summary>Hint</summary>
#
# `np.repeat(..., axis=0)` repeats each head in place: 0 0 1 1. `np.tile` would give 0 1 0 1, which has the same shape.
# With that mistake the model still produces text, but the text is nonsense.
#
# </details>


# %% tags=["exercise"]
def repeat_kv(k, H):
    """Each key head, repeated once for each query head that uses it: k (K, S, d) -> (H, S, d)."""
    return np.repeat(k, H // len(k), axis=0)


# %% tags=["check"]
def repeat_kv_spec(k, H):
    K = len(k)
    result = np.empty((H, *k.shape[1:]))
    for h in range(H):
        result[h] = k[h // (H // K)]
    return result


sizes = ((2, 4), (2, 6), (1, 3), (3, 3))  # K, H
check("00.7", repeat_kv, repeat_kv_spec, [(rng.standard_normal((K, 3, 4)), H) for K, H in sizes])

# %% [markdown]
# ### Exercise 00.8: the causal mask
# difficulty ●●●○○ · 6 minutes
#
# There are S tokens, and the **last** T of them are new. Each new token may look at itself and at all tokens before it.
# Make the mask (T, S) that is `True` where new token t may look at token s.
#
# <details><summary>Hint</summary>
#
# Row t does not belong to token t, but to token S - T + t. Write the positions of the new tokens as a column; then the
# mask is one comparison. (A mask whose rows start at position 0 is right for a whole text, but wrong as soon as there
# is a cache.)
#
# </details>


# %% tags=["exercise"]
def causal_mask(T, S):
    """True where new token t may look at token s -> bool (T, S)."""
    return np.arange(S) <= np.arange(S - T, S)[:, None]


# %% tags=["check"]
def causal_mask_spec(T, S):
    result = np.zeros((T, S), bool)
    for t in range(T):
        for s in range(S):
            result[t, s] = s <= S - T + t
    return result


check("00.8", causal_mask, causal_mask_spec, [(4, 4), (2, 5), (1, 3), (1, 1)])

# %% [markdown]
# ## Numbers that are too large
#
# The largest `float32` number is about 3·10³⁸, and `exp` reaches it quickly. A softmax is mathematically a number
# between 0 and 1. But computed naively it may become `inf / inf`.

# %%
with np.errstate(over="ignore", invalid="ignore"):
    large = np.array([10.0, 100.0, 101.0], np.float32)
    naive = np.exp(large) / np.exp(large).sum()
print(naive)
assert np.isnan(naive).any()

# %% [markdown]
# ### Exercise 00.9: a softmax that cannot overflow
# difficulty ●●○○○ · 5 minutes
#
# Compute the softmax of each row: `exp(x_i) / Σ exp(x_j)`. It does not change when the same number is subtracted from a
# whole row. Choose that number so that no exponential is larger than 1. The softmax is over the last axis; there may be
# several axes before it.
#
# <details><summary>Hint</summary>
#
# Subtract the row's maximum. You need `axis=-1, keepdims=True` twice.
#
# </details>


# %% tags=["exercise"]
def softmax(x):
    """Softmax over the last axis: x (..., n) -> (..., n), in the dtype of x."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# %% tags=["check"]
far_apart = np.array([[1000.0, 1001.0], [-1000.0, -1001.0]])  # rows of very different size
examples = rng.standard_normal((3, 5)), rng.standard_normal((2, 3, 4)), np.full((2, 4), 1000.0), large, far_apart
check("00.9", softmax, ops.softmax, [(x,) for x in examples])

# %% [markdown]
# This time the specification was the package's own function: what you wrote is what runs in the model.
#
# ## dtype: where does float64 come from?
#
# A `float32` array combined with a Python number stays `float32`. Combined with a `float64` *array* (or a NumPy
# `float64` number) it becomes `float64`. One such array makes everything after it twice as large and half as fast.

# %%
x32 = np.ones(3, np.float32)
expressions = {
    "x32 * 2.0": x32 * 2.0,
    "x32 / math.sqrt(8)": x32 / math.sqrt(8),
    "x32 / np.sqrt(8)": x32 / np.sqrt(8),
    "x32 / np.sqrt(x32)": x32 / np.sqrt(x32),
    "x32 + np.arange(3)": x32 + np.arange(3),
    "x32 * np.linspace(0, 1, 3)": x32 * np.linspace(0, 1, 3),
    "silu(x32)": silu(x32),
}
print(text_table([{"expression": how, "dtype": str(v.dtype)} for how, v in expressions.items()],
                 keys_as_headings({"expression": "", "dtype": ""})))  # fmt: skip
assert [how for how, v in expressions.items() if v.dtype == np.float64] == [
    "x32 / np.sqrt(8)", "x32 + np.arange(3)", "x32 * np.linspace(0, 1, 3)",
]  # fmt: skip

# %% [markdown]
# The third line surprises most people. `np.sqrt(8)` is a NumPy number of type `float64`, and it acts like an array.
# `math.sqrt(8)` is a plain Python number, and it does not change the dtype.
#
# ### Exercise 00.10: fix the float64 leak
# difficulty ●●●○○ · 6 minutes
#
# The function in the next cell rotates pairs of numbers by an angle that grows with the position, as Llama does with
# its queries. Its numbers are right, but for `float32` input the result is `float64`. Write the same function so that
# the result has the dtype of `x`, and everything with as many numbers as `x` is computed in this dtype, too: a `float64`
# result that is converted at the end has already cost the memory and the time. (The check notices it by the last digit.)
# The angles, their sines and their cosines must still be computed in `float64`.


# %%
def leaky(x):
    """Rotate row t by t radians: x (T, 2) -> (T, 2)."""
    angle = np.arange(len(x)) / 1.0
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return x * cos + np.stack([-x[:, 1], x[:, 0]], axis=1) * sin


print(leaky(np.ones((2, 2), np.float32)).dtype)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which array is the first `float64` one, and how far may it stay `float64`? Convert the two tables once, when they are
# finished: `.astype(x.dtype)`.
#
# </details>


# %% tags=["exercise"]
def rotated(x):
    """Rotate row t by t radians: x (T, 2) -> (T, 2), in the dtype of x."""
    angle = np.arange(len(x)) / 1.0
    cos, sin = (table(angle)[:, None].astype(x.dtype) for table in (np.cos, np.sin))
    return x * cos + np.stack([-x[:, 1], x[:, 0]], axis=1) * sin


# %% tags=["check"]
def rotated_spec(x):
    result = np.empty_like(x)
    for t in range(len(x)):
        cos, sin = x.dtype.type(np.cos(float(t))), x.dtype.type(np.sin(float(t)))
        result[t] = x[t, 0] * cos - x[t, 1] * sin, x[t, 1] * cos + x[t, 0] * sin
    return result


# Products with these numbers are exact. So every way to compute them in float32 gives the same, to the last digit.
exact = np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
kinds = ((4, np.float32), (60, np.float32), (3, np.float64))
cases = [(rng.choice(exact, (T, 2)).astype(kind),) for T, kind in kinds]
check("00.10", rotated, rotated_spec, cases, rtol=1e-9)

# %% [markdown]
# ## Change something
#
# Here is `centred` again, with the mistake from above. Change `n` and see when NumPy notices, and when it does not.
# Then repair it by changing as few characters as possible.

# %%
n = 4
square = rng.standard_normal((4, n))
try:
    wrong = square - square.mean(axis=-1)  # the axis is gone
    print("it fits, and the row means are", wrong.mean(axis=-1).round(2))
except ValueError as error:
    print("NumPy noticed:", error)

# %% [markdown]
# ## Your own checkpoint
#
# With these letters you can read the list of weights of a real model. The function below prints the shapes of one
# layer, and checks that arrays of T rows fit them. To see another model, put a Hugging Face folder (or a downloaded
# `org/name`) between the quotation marks.


# %%
def shapes_of(model, T=3):
    """Print one layer's matrices with their letters, and check their shapes."""
    c, layer = model.config, model.layers[0]
    D, F, d = c.hidden_size, c.intermediate_size, c.head_dim
    H, K = c.num_attention_heads, c.num_key_value_heads
    rows = [
        ("q_proj", layer.q_proj, "H d, D", (H * d, D)), ("k_proj", layer.k_proj, "K d, D", (K * d, D)),
        ("v_proj", layer.v_proj, "K d, D", (K * d, D)), ("o_proj", layer.o_proj, "D, H d", (D, H * d)),
        ("gate_proj", layer.gate_proj, "F, D", (F, D)), ("up_proj", layer.up_proj, "F, D", (F, D)),
        ("down_proj", layer.down_proj, "D, F", (D, F)),
    ]  # fmt: skip
    for name, matrix, _, shape in rows:
        assert matrix.shape == shape, name
        assert linear(np.zeros((T, shape[1]), matrix.dtype), matrix).shape == (T, shape[0])
    print(f"{model.name}: D {D}, F {F}, H {H}, K {K}, d {d}, L {c.num_hidden_layers}, {model.dtype}")
    table = [{"matrix": name, "letters": letters, "shape": str(matrix.shape), "weights": matrix.size}
             for name, matrix, letters, _ in rows]  # fmt: skip
    print(text_table(table, keys_as_headings({"matrix": "", "letters": "", "shape": "", "weights": ",d"})))


shapes_of(minillm.load("default"))

# %%
CHECKPOINT = ""
if CHECKPOINT:
    shapes_of(minillm.load(CHECKPOINT))

# %% [markdown]
# ## Recap
#
# Broadcasting aligns shapes at the right and repeats axes of size 1. `einsum` sums over the letters that are missing at
# the right of its arrow. `reshape` keeps the order of the numbers and `transpose` changes it, and both avoid copies
# where they can. `float64` spreads through arrays and NumPy numbers, never through Python numbers. A shape error that
# raises is easy to fix. The dangerous ones are shapes that fit by accident: this is why every function here is checked
# on different sizes.
#
# ## Where to go next
#
# - [01 · From text to arrays](01_from_text_to_arrays.ipynb): where the ids and the weights come from. [The
#   map](map.ipynb) shows the whole course.
# - Read `causal_mask` in [attention.py](../minillm/transformer/attention.py) and `softmax` in
#   [ops.py](../minillm/transformer/ops.py): you have just written both.
# - NumPy's own pages on [broadcasting](https://numpy.org/doc/stable/user/basics.broadcasting.html) and
#   [einsum](https://numpy.org/doc/stable/reference/generated/numpy.einsum.html).
# - More puzzles of this kind: Sasha Rush's Tensor Puzzles, where the idea of loop specifications comes from.
