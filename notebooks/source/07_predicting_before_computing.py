# %% [markdown]
# # 07 · Predicting before computing
#
# Notebook 06 ended in a dilemma: to know which neurons matter, one has to compute them, and then most of their weights
# have been read already. A *predictor* says it beforehand, cheaply and not quite right. How cheap, and how right?
#
# Afterwards you can
#
# 1. measure a predictor by recall, precision, selected share, bytes, and by perplexity with the predictor in the loop;
# 2. name the guesses that any predictor must beat, and the bound that none can pass;
# 3. build one without any training: a poor copy of the layer, of low rank or of few bits.

# %%
import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.predictors.baselines import Chance, PreviousToken, Static
from minillm.predictors.copies import LowRank, Shadow
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.metrics import PredictionMeter
from minillm.predictors.oracle import Oracle
from minillm.predictors.protocol import Predictor
from minillm.predictors.quantise import low_rank, second_moments, unpack
from minillm.predictors.sign import Sign
from minillm.predictors.train import examples
from minillm.show.display import show
from minillm.show.map import you_are_here
from minillm.show.results_predictors import cost_of_predictors, precision_recall
from minillm.study.prediction import ffn_bytes, prediction_rows, predictor_row
from minillm.tables import keys_as_headings, text_table
from minillm.transformer.model import shape_of
from minillm.transformer.ops import silu
from minillm.transformer.texts import as_documents

show(you_are_here("predictors"))

# %% [markdown]
# ## The question, and its true answer
#
# Three texts that share no document: one to make predictors from, one to set them (and the thresholds), one to judge
# them. The truth is the mask of policy `mid`: 30 % of the neurons are *active*, the rest may go.

# %%
model = minillm.load("default")
documents = as_documents(minillm.embedded_text("calibration"))[:8]
training, held = documents[:6], documents[6:]
test = as_documents(minillm.embedded_text("test"))[:3]

FRACTION = 0.3  # of the neurons that a predictor may select
thresholds = minillm.calibrate(model, held, policy="mid", sparsity=1 - FRACTION, by="neuron")
dense = minillm.perplexity(model, test)
print(dense)

# %% [markdown]
# A predictor is anything that gives each neuron a *score* before the layer is computed. The neurons whose score is
# above the layer's cutoff are selected, and only those are computed. This is the whole interface. Of its methods two
# matter here: `predict` before the layer, and `observe` after it.

# %%
show_source(Predictor)

# %% [markdown]
# ## Recall and precision
#
# ### Exercise 07.1: two ways to be wrong
# difficulty ●○○○○ · 5 minutes
#
# Goal: *recall* is the share of the active neurons that were selected; *precision* is the share of the selected
# neurons that are active. `my_recall_precision(selected, active)` takes two bool arrays of one shape and gives the two
# numbers, in this order. Where there is nothing to divide by, the number is 0.
#
# <details><summary>Hint</summary>
# Both have the same numerator, <code>(selected &amp; active).sum()</code>. Dividing by <code>max(1, count)</code> takes
# care of the empty case.
# </details>


# %% tags=["exercise"]
def my_recall_precision(selected: np.ndarray, active: np.ndarray) -> tuple[float, float]:
    """(share of the active that is selected, share of the selected that is active)."""
    both = (selected & active).sum()
    return both / max(1, active.sum()), both / max(1, selected.sum())


# %% tags=["check"]
def recall_precision(selected: np.ndarray, active: np.ndarray) -> tuple[float, float]:
    """The specification: by sets of places."""
    chosen, wanted = set(np.flatnonzero(selected).tolist()), set(np.flatnonzero(active).tolist())
    both = len(chosen & wanted)
    return both / len(wanted) if wanted else 0.0, both / len(chosen) if chosen else 0.0


rng = np.random.default_rng(0)
truth = rng.random((20, 50)) < 0.3
check("07.1", my_recall_precision, recall_precision, [
    (np.array([True, True, False, False]), np.array([True, False, True, True])),
    (rng.random((20, 50)) < 0.5, truth),
    (np.ones((20, 50), bool), truth),  # select all: perfect recall, at a price
    (np.zeros((20, 50), bool), truth),  # select nothing
    (truth, truth),
])  # fmt: skip

# %% [markdown]
# The third case is the first lesson: **recall alone means nothing.** Whoever selects everything finds everything. So we
# fix how much may be selected, the same for all, and only then compare.
#
# ## What must be beaten, and what cannot be
#
# The *oracle* has the true coefficients as scores. It reads everything to know, so it is no method, but a bound. On the
# other side stand three guesses that never look at the token: chance; the neurons that are most often active (static);
# and those that were active at the token before.

# %%
show_source(Oracle.predict, Static.predict, PreviousToken.predict)

# %%
static = Static.fit(model, thresholds, training)  # counts on the training documents
guesses = [Chance(shape_of(model)), static, PreviousToken(static)]

for predictor in guesses:
    fit_cutoffs(model, predictor, thresholds, held, FRACTION)  # each selects 30 % in every layer
oracle = Oracle(model, thresholds)  # its cutoffs are the thresholds

rows = [predictor_row(model, p, thresholds, test, FRACTION, dense) for p in (oracle, *guesses)]
columns = {"predictor": "", "selected": ".1%", "recall": ".1%", "precision": ".1%", "perplexity": ".1f"}
print(f"dense perplexity {dense.perplexity:.1f}")
print(text_table(rows, keys_as_headings(columns)))

row_of = {row["predictor"]: row for row in rows}
assert row_of["oracle"]["recall"] == row_of["oracle"]["precision"] == 1
assert abs(row_of["chance"]["recall"] - FRACTION) < 0.02  # chance finds what it selects
for name in ("static", "previous-token"):
    assert row_of[name]["recall"] > row_of["chance"]["recall"] + 0.02  # better than chance
assert all(row["perplexity"] > 1.5 * row_of["oracle"]["perplexity"] for row in rows[1:])

# %% [markdown]
# The oracle shows that 30 % of the neurons are nearly enough, if they are the right ones. The guesses are worth little
# here, although two of them have a better recall than chance. Does better recall at least mean better perplexity?

# %%
worse = [
    f"{b['predictor']} has more recall than {a['predictor']}, and yet the higher perplexity"
    for a in rows[1:]
    for b in rows[1:]
    if b["recall"] > a["recall"] and b["perplexity"] > a["perplexity"]
]
print("\n".join(worse) or "yes, for these three")

# %% [markdown]
# If the cell above names a pair, do not be surprised. Recall counts neurons, and all neurons alike. But notebook 05
# showed that a few coefficients carry most of the output, and missing one of those is not the same as missing one just
# above the threshold. **Recall is a proxy. What counts is perplexity with the predictor in the loop**, where the error
# of each layer is what the next one has to live with.
#
# ## One layer under the lens
#
# From here on we make predictors from the weights alone. To see what is going on, we first take one layer by itself:
# its inputs `x` on the test text, its true mask, and its coefficients.

# %%
inputs, masks = examples(model, thresholds, test)  # per layer x (n, D) and mask (n, F), cut model
LAYER = 3
layer, x, active = model.layers[LAYER], inputs[LAYER], masks[LAYER]
mid = silu(x @ layer.gate_proj.T) * (x @ layer.up_proj.T)
print(f"layer {LAYER}: x {x.shape}, {active.mean():.1%} of the (token, neuron) pairs are active")


def found(scores: np.ndarray, fraction: float = FRACTION) -> dict[str, float]:
    """Recall, precision and share of mid's energy of the pairs with the highest scores."""
    selected = scores > np.quantile(scores, 1 - fraction)
    both, energy = (selected & active).sum(), (mid[selected] ** 2).sum() / (mid**2).sum()
    return {"recall": both / active.sum(), "precision": both / selected.sum(), "energy": energy}


forms = {"recall": ".1%", "precision": ".1%", "energy": ".2%"}
guessed = [{"scores": p.name} | found(p.predict(LAYER, 0, x)) for p in (oracle, guesses[0], static)]
print(text_table(guessed, keys_as_headings({"scores": ""} | forms)))
assert guessed[0]["energy"] > 0.9

# %% [markdown]
# The column `energy` is the missing piece: how much of the sum of squares of `mid` the selection holds. (The oracle
# selects exactly 30 % here, and on this text a little more or less is active, so even its recall may miss 100 %.)
#
# ## A copy of low rank
#
# A neuron's coefficient is `silu(x . gate) * (x . up)`. A cheap approximation of the two matrices gives an approximate
# coefficient, and its size is the score. First idea: replace `W (F, D)` by a product `A B` of rank `r`, with `A (F, r)`
# and `B (r, D)`. The best such product comes from the singular value decomposition (SVD).
#
# ### Exercise 07.2: low-rank scores
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_low_rank_scores(x, gate_a, gate_b, up_a, up_b)` gives `|silu(x G^T) * (x U^T)|` with `G = gate_a @ gate_b`
# and `U = up_a @ up_b`, as `(T, F)`. Do not build `G` and `U`: go through the `r` numbers in the middle.
#
# <details><summary>Hint</summary>
# $x\,(AB)^T = (x\,B^T)\,A^T$. The brackets decide what it costs: two thin products, and no matrix of the full size.
# </details>


# %% tags=["exercise"]
def my_low_rank_scores(
    x: np.ndarray, gate_a: np.ndarray, gate_b: np.ndarray, up_a: np.ndarray, up_b: np.ndarray
) -> np.ndarray:
    """|silu(x G^T) * (x U^T)|, G = gate_a gate_b, U = up_a up_b: a (F, r), b (r, D) -> (T, F)."""
    gate = silu((x @ gate_b.T) @ gate_a.T)  # (T, F)
    return np.abs(gate * ((x @ up_b.T) @ up_a.T))


# %% tags=["check"]
def low_rank_scores(x, gate_a, gate_b, up_a, up_b):
    """The specification: with the full matrices."""
    return np.abs(silu(x @ (gate_a @ gate_b).T) * (x @ (up_a @ up_b).T))


def factors(f: int, r: int, d: int) -> tuple:
    """x (4, d), and a (f, r), b (r, d) twice."""
    sizes = ((4, d), (f, r), (r, d), (f, r), (r, d))
    return tuple(rng.standard_normal(size) for size in sizes)


check("07.2", my_low_rank_scores, low_rank_scores, [
    factors(6, 2, 5), factors(7, 1, 3), factors(5, 5, 5), factors(300, 8, 100),
])  # fmt: skip

# %% [markdown]
# What is it worth? The factors of both matrices hold `2 r (F + D)` numbers instead of `2 F D`. So beyond a certain rank
# the copy is larger than what it copies.

# %%
L, D, F = shape_of(model)
print(f"F {F}, D {D}: A and B together are as large as W at rank {F * D / (F + D):.0f}\n")

moments = second_moments(model, thresholds, training)  # means of x^T x: the directions that inputs take
H = moments[LAYER]
rows = []
for rank in (4, 8, 16, 32, 64):
    for about, moment in (("W alone", None), ("W and its inputs", H)):
        parts = [*low_rank(layer.gate_proj, rank, moment), *low_rank(layer.up_proj, rank, moment)]
        parts = [part.astype(np.float32) for part in parts]
        share = sum(part.size for part in parts) / (2 * F * D)
        scores = low_rank_scores(x, *parts)
        rows.append({"rank": rank, "SVD of": about, "numbers": share} | found(scores))
print(text_table(rows, keys_as_headings({"rank": "d", "SVD of": "", "numbers": ".0%"} | forms)))

at = {(row["rank"], row["SVD of"]): row["recall"] for row in rows}
assert at[64, "W alone"] > at[4, "W alone"] and at[64, "W and its inputs"] > at[4, "W and its inputs"]
for rank in (16, 32):
    assert at[rank, "W and its inputs"] > at[rank, "W alone"]  # knowing where the inputs lie helps

# %% [markdown]
# These matrices are not of low rank: at a small rank much is missing. It helps to know the inputs,
# because then the rank is spent on directions that occur. But one can also save differently: keep *all* directions, and
# spend fewer bits on each number.
#
# ## A copy of few bits
#
# So the second idea: all the weights, but coarsely. With 4 bits there are 16 values per row, evenly spaced:
# `scale * (code - 7.5)`, with `code` from 0 to 15. Two codes fit into one byte.
#
# ### Exercise 07.3: 4 bits, packed
# difficulty ●●●○○ · 15 minutes
#
# Goal: `my_pack4(weight, scale)` takes `weight (F, D)` with even `D` and `scale (F,)`. Round `weight / scale + 7.5` to
# the nearest whole number from 0 to 15, and pack two neighbours into one byte: the first in the *low* four bits. It
# gives `uint8 (F, D // 2)`.
#
# <details><summary>Hint</summary>
# <code>np.clip(np.round(...), 0, 15).astype(np.uint8)</code> gives the codes. <code>codes[:, 0::2]</code> are the first
# of each pair, and <code>codes[:, 1::2] &lt;&lt; 4</code> are the second ones, moved up by four bits; <code>|</code>
# puts both together.
# </details>


# %% tags=["exercise"]
def my_pack4(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, two to a byte: weight (F, D), scale (F,) -> uint8 (F, D // 2)."""
    codes = np.clip(np.round(weight / scale[:, None] + 7.5), 0, 15).astype(np.uint8)  # (F, D)
    return codes[:, 0::2] | codes[:, 1::2] << 4


# %% tags=["check"]
def pack4(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The specification: weight by weight."""
    packed = np.zeros((len(weight), weight.shape[1] // 2), np.uint8)
    for i, row in enumerate(weight):
        codes = [min(15, max(0, round(float(w) / float(scale[i]) + 7.5))) for w in row]
        packed[i] = [a + 16 * b for a, b in zip(codes[0::2], codes[1::2], strict=True)]
    return packed


gate64 = layer.gate_proj.astype(np.float64)
full_range = np.abs(gate64).max(axis=1) / 7.5  # the largest weight of a row gets an outermost code
check("07.3", my_pack4, pack4, [
    (np.array([[0.5, -0.5], [7.5, -7.5]]), np.ones(2)),
    (np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([0.5])),
    (np.array([[100.0, -100.0]]), np.ones(1)),  # out of range: the outermost codes
    (rng.standard_normal((5, 8)), np.full(5, 0.3)),
    (gate64, full_range),  # the model's gate
])  # fmt: skip

# %%
packed = pack4(gate64[:8], full_range[:8])
back = (unpack(packed, 4, D) - 7.5) * full_range[:8, None]
print(f"8 rows of the gate: {gate64[:8].size * 4:,} bytes in float32, {packed.nbytes:,} packed")
missed = np.abs(back - gate64[:8]) / full_range[:8, None]
print(f"largest error of a weight: {missed.max():.2f} of a step")
assert missed.max() <= 0.5001  # rounding: at most half a step

# %% [markdown]
# A *shadow* is such a copy of gate and up, in all layers. minillm's packs any number of bits, and looks for better
# scales than the full range. Beside it the crudest copy of all, a single bit: the *sign* of each weight of the gate
# (SparseInfer, arXiv 2411.12692), compared with the signs of the inputs.

# %%
show_source(Shadow.predict)

# %%
shadows = {bits: Shadow.fit(model, bits) for bits in (8, 4, 3, 2)}
sign, svd = Sign.fit(model), LowRank.fit(model, 32, moments)
whole, _ = ffn_bytes(model)
rows = [
    {"predictor": p.name, "bytes": p.nbytes / whole} | found(p.predict(LAYER, 0, x))
    for p in (sign, svd, *shadows.values())
]
print("bytes: the predictor's own, as a share of the FFNs' float32 weights")
print(text_table(rows, keys_as_headings({"predictor": "", "bytes": ".1%"} | forms)))

by_recall, by_energy = (sorted(rows, key=lambda row: -row[key]) for key in ("recall", "energy"))
print("\nbest first, by recall: " + ", ".join(row["predictor"] for row in by_recall))
print("best first, by energy: " + ", ".join(row["predictor"] for row in by_energy))

at = {row["predictor"]: row for row in rows}
assert at["shadow 4-bit"]["recall"] > at[svd.name]["recall"] + 0.05  # coarse beats low rank
assert at["shadow 4-bit"]["bytes"] < at[svd.name]["bytes"]  # with fewer bytes
assert at["shadow 8-bit"]["recall"] > at["shadow 4-bit"]["recall"] > at["shadow 2-bit"]["recall"]

# %% [markdown]
# If the two orders differ, you see again what recall hides: a copy may be wrong about many small neurons and right about
# the few large ones.
#
# Now precision against recall, when each of them may select more and more: from few neurons (left) to many (right). The
# oracle's corner is where both are perfect.

# %%
steps = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.95)
candidates = {p.name: p for p in (oracle, shadows[4], shadows[2], svd, sign, static, guesses[0])}
rows = []
for name, predictor in candidates.items():
    scores = predictor.predict(LAYER, 0, x)
    rows += [{"predictor": name} | found(scores, step) for step in steps]
show(precision_recall(rows))

# %% [markdown]
# And is that so in every layer? Recall at the same selected share, by layer.

# %%
rows = []
for i in range(L):
    row = {"layer": i}
    for name in ("shadow 4-bit", "shadow 2-bit", svd.name, "sign", "static"):
        scores = candidates[name].predict(i, 0, inputs[i])
        selected = scores > np.quantile(scores, 1 - FRACTION)
        row[name] = (selected & masks[i]).sum() / masks[i].sum()
    rows.append(row)
print(text_table(rows, keys_as_headings({"layer": "d"} | dict.fromkeys(list(rows[0])[1:], ".0%"))))
assert all(row["shadow 4-bit"] > row[svd.name] for row in rows)

# %% [markdown]
# ## In the loop
#
# Now in earnest: all layers, each predictor with its own mistakes, on text that none of them has seen. `times` counts a
# predictor's increase of perplexity in increases of the oracle; `reads` are the FFN bytes touched per token, the
# predictor's own tables included, as a share of all FFN bytes as they are stored.

# %%
contestants = (sign, svd, shadows[2], shadows[4])
for predictor in contestants:
    fit_cutoffs(model, predictor, thresholds, held, FRACTION)
in_loop = [row_of["oracle"]]
in_loop += [predictor_row(model, p, thresholds, test, FRACTION, dense) for p in contestants]
for row in in_loop:
    row["times"] = row["increase"] / in_loop[0]["increase"]
columns = {"predictor": "", "recall": ".1%", "precision": ".1%", "selected": ".1%", "reads": ".0%"}
print(f"dense perplexity {dense.perplexity:.2f}")
print(text_table(in_loop, keys_as_headings(columns | {"perplexity": ".2f", "times": ".1f"})))

loop = {row["predictor"]: row for row in in_loop}
assert loop["shadow 4-bit"]["perplexity"] < loop[svd.name]["perplexity"]
assert max(row["perplexity"] for row in in_loop) < min(row_of[p.name]["perplexity"] for p in guesses)
assert loop["shadow 4-bit"]["perplexity"] < 1.05 * loop["oracle"]["perplexity"]  # nearly as good

# %% [markdown]
# All of them beat the guesses by far. A shadow of 4 bits comes close to the oracle. It is not free, though: it has to
# be read for every token. That is why `reads` is larger than the selected share, and why the last figure of this
# notebook sets perplexity against *bytes*.
#
# ## More recall, please
#
# A user of PowerInfer trained a predictor with a higher recall than the released one, and then the whole was *slower*
# (issue 124 of that project). With our table the riddle is easy: keep the truth as it is, and let the 2-bit shadow
# select more.

# %%
more = [loop["shadow 2-bit"]]
for fraction in (0.5, 0.7):
    fit_cutoffs(model, shadows[2], thresholds, held, fraction)
    more.append(predictor_row(model, shadows[2], thresholds, test, fraction, dense))
columns = {"selected": ".0%", "recall": ".1%", "precision": ".1%", "reads": ".0%", "perplexity": ".2f"}
print(text_table(more, keys_as_headings(columns)))

assert more[0]["recall"] < more[1]["recall"] < more[2]["recall"]  # recall can be bought
assert more[0]["reads"] < more[1]["reads"] < more[2]["reads"]  # and this is the price
assert more[0]["precision"] > more[1]["precision"] > more[2]["precision"]

# %% [markdown]
# So a recall must never stand alone: the selected share, and the bytes, belong beside it. The fair picture has bytes
# on its axis, everything included.

# %%
curves = [*in_loop[:1], loop["shadow 4-bit"], *more, loop[svd.name]]
for predictor in (Oracle(model), shadows[4], svd):
    fit_cutoffs(model, predictor, thresholds, held, 0.5)
    curves.append(predictor_row(model, predictor, thresholds, test, 0.5, dense))
show(cost_of_predictors(curves, dense.perplexity))

# %% [markdown]
# Read it from left to right: for the same bytes, lower is better. The oracle's curve is where a predictor would be that
# costs nothing and never errs. Which shadow is worth its bytes depends on how the weights are stored: our model keeps
# 16 bits per weight, so 4 bits for two of the three matrices are a good part of it.
#
# ## How it is counted
#
# Recall and precision in the tables of whole models come from a tap that sees both masks of every layer. It counts what
# you counted in exercise 07.1.

# %%
show_source(PredictionMeter.__call__)

# %% [markdown]
# ## Change something
#
# A shadow can also be made with the inputs in mind, as the low-rank copy was: then each row is rounded so that its
# error on *real* inputs is small. Does that pay at 2 bits? At 4? Or try it with another layer.

# %%
BITS = 2

weights = [{"gate": (layer.gate_proj, None, 0.0), "up": (layer.up_proj, None, 0.0)}]  # of one layer
informed = Shadow.of_weights((1, D, F), model.config.hidden_act, weights, BITS, BITS, H[None])
rows = [{"rounding": "plain"} | found(shadows[BITS].predict(LAYER, 0, x)),
        {"rounding": "with inputs"} | found(informed.predict(0, 0, x))]  # fmt: skip
print(text_table(rows, keys_as_headings({"rounding": ""} | forms)))

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here. Half of the neurons, four predictors, a short text.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    names = ("static", "sign", "shadow-4")
    rows = list(prediction_rows(other, documents[:4], test[:1], names, 0.5, context=256))
    columns = {"predictor": "", "recall": ".1%", "precision": ".1%", "reads": ".0%"}
    print(f"dense perplexity {rows[0]['dense']:.2f}")
    print(text_table(rows, keys_as_headings(columns | {"perplexity": ".2f"})))

# %% [markdown]
# ## In one paragraph
#
# A predictor scores neurons before they are computed; a cutoff says how many are selected. Recall, precision and the
# selected share belong together, and none of them replaces perplexity with the predictor in the loop, since the neurons
# that are missed are not all alike. Guesses that do not look at the token fail here. Copies of the layer work, without
# any training: many coarse weights are better than few exact directions, and four bits come close to knowing. The price
# is the copy itself, which every token has to read.
#
# **Go on** with [08 · Learning a predictor](08_learning_a_predictor.ipynb).
#
# **Papers.** Predictors for contextual sparsity: Deja Vu, arXiv 2310.17157, sections 3 and 4. Signs: SparseInfer, arXiv
# 2411.12692. The same neurons as at the token before: LLM in a Flash, arXiv 2312.11514, section 3. Hot neurons:
# PowerInfer, arXiv 2312.12456. Rounding with the inputs in mind: GPTQ, arXiv 2210.17323.
#
# **Source.** `minillm/sparsity/predicted.py`, `minillm/predictors/base.py`, `oracle.py`, `baselines.py`,
# `training_free.py`, `minillm/study/prediction.py`.
