# %% [markdown]
# # 07 · Predicting before computing
#
# Notebook 06 ended with a problem: to know which neurons matter, we have to compute them, and then most of their
# weights have already been read. A *predictor* says it in advance, at a low cost but with errors. How low is the cost,
# and how many errors are there?
#
# Afterwards you can
#
# 1. measure a predictor by recall, precision, selected share, bytes, and by perplexity with the predictor in the loop;
# 2. name the baselines that any predictor must beat, and the oracle, which is the upper bound;
# 3. build a predictor without training: a small, inexact copy of the layer, of low rank or with few bits.

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
from minillm.study.bootstrap import difference, in_words
from minillm.study.prediction import beside_oracle, difference_in_words, ffn_bytes, prediction_rows, predictor_row
from minillm.study.score import evaluation_of
from minillm.tables import keys_as_headings, text_table
from minillm.transformer.model import shape_of
from minillm.transformer.ops import silu
from minillm.transformer.texts import Sample, as_documents

show(you_are_here("predictors"))

# %% [markdown]
# ## The question, and its true answer
#
# We use three texts that share no document: one to fit predictors, one to set their cutoffs (and the thresholds), and
# one to test them. The truth is the mask of policy `mid`: 30 % of the neurons are *active*, and the others may be cut.

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
# A predictor gives each neuron a *score* before the layer is computed. The neurons whose score is above the layer's
# cutoff are selected, and only those are computed. Two methods of the interface matter here: `predict` is called before
# the layer, and `observe` after it.

# %%
show_source(Predictor)

# %% [markdown]
# ## Recall and precision
#
# ### Exercise 07.1: recall and precision
# difficulty ●○○○○ · 5 minutes
#
# Goal: *recall* is the share of the active neurons that were selected; *precision* is the share of the selected neurons
# that are active. `my_recall_precision(selected, active)` takes two bool arrays of one shape and gives the two numbers,
# in this order. Where the divisor is zero, the result is 0.
#
# <details><summary>Hint</summary>
# Both have the same numerator, <code>(selected &amp; active).sum()</code>. Dividing by <code>max(1, count)</code>
# handles the empty case.
# </details>


# %% tags=["exercise"]
def my_recall_precision(selected: np.ndarray, active: np.ndarray) -> tuple[float, float]:
    """(share of the active neurons that are selected, share of the selected neurons that are active)."""
    both = (selected & active).sum()
    return both / max(1, active.sum()), both / max(1, selected.sum())


# %% tags=["check"]
def recall_precision(selected: np.ndarray, active: np.ndarray) -> tuple[float, float]:
    """The specification: with sets of positions."""
    chosen, wanted = set(np.flatnonzero(selected).tolist()), set(np.flatnonzero(active).tolist())
    both = len(chosen & wanted)
    return both / len(wanted) if wanted else 0.0, both / len(chosen) if chosen else 0.0


rng = np.random.default_rng(0)
truth = rng.random((20, 50)) < 0.3
check("07.1", my_recall_precision, recall_precision, [
    (np.array([True, True, False, False]), np.array([True, False, True, True])),
    (rng.random((20, 50)) < 0.5, truth),
    (np.ones((20, 50), bool), truth),  # select all: perfect recall, but no saving
    (np.zeros((20, 50), bool), truth),  # select nothing
    (truth, np.zeros((20, 50), bool)),  # nothing is active
    (truth, truth),
])  # fmt: skip

# %% [markdown]
# The third case shows something important: **recall alone means nothing.** A predictor that selects every neuron has a
# recall of one. So we give all predictors the same selected share, and only then compare them.
#
# ## Baselines and the upper bound
#
# The *oracle* uses the true coefficients as scores. It has to read everything to know them, so it is not a method but
# an upper bound. The three baselines do not look at the current token: random selection (chance), the neurons that are
# most often active (static), and the neurons that were active at the previous token.

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
# The oracle shows that 30 % of the neurons are nearly enough, if they are the right ones. The baselines do badly here,
# although two of them have a better recall than chance. Does better recall at least mean better perplexity?

# %%
score_of = {row["predictor"]: evaluation_of(row) for row in rows[1:]}
for a in rows[1:]:
    for b in rows[1:]:
        if b["recall"] > a["recall"]:
            more = difference(
                score_of[b["predictor"]], score_of[a["predictor"]]
            )  # with its 95 % interval over documents
            print(f"{b['predictor']} has a higher recall than {a['predictor']}; its perplexity minus that one's is "
                  f"{in_words(*more, '+.0f')}")  # fmt: skip

# %% [markdown]
# A difference below 0 means yes. If its interval contains 0, these documents do not decide it: a higher recall alone
# promises nothing. The reason is that recall counts all neurons equally. But notebook 05 showed that a few coefficients
# make up most of the output. Missing one of those is worse than missing a neuron just above the threshold. **Recall is
# a proxy. What counts is perplexity with the predictor in the loop**, where the error of each layer changes the input
# of the next one.
#
# ## One layer in detail
#
# From here on we make predictors from the weights, without training. First we look at one layer by itself: its inputs
# `x` on the test text, its true mask, and its coefficients.

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
# The column `energy` adds what recall does not show: the share of the sum of squares of `mid` that the selection holds.
# (The oracle selects exactly 30 % here. On this text a little more or less may be active, so even its recall may be
# below 100 %.)
#
# ## A copy of low rank
#
# A neuron's coefficient is `silu(x . gate) * (x . up)`. An approximation of the two matrices gives an approximate
# coefficient, and its size is the score. The first idea is to replace `W (F, D)` by a product `A B` of rank `r`, with
# `A (F, r)` and `B (r, D)`. The best such product comes from the singular value decomposition (SVD).
#
# ### Exercise 07.2: low-rank scores
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_low_rank_scores(x, gate_a, gate_b, up_a, up_b)` gives `|silu(x G^T) * (x U^T)|` with `G = gate_a @ gate_b`
# and `U = up_a @ up_b`, as `(T, F)`. Do not compute `G` and `U`; compute the `r` numbers in the middle first.
#
# <details><summary>Hint</summary>
# $x\,(AB)^T = (x\,B^T)\,A^T$. The brackets decide the cost: there are two small products, and no matrix of the full
# size.
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
# How good is it? The factors of both matrices hold `2 r (F + D)` numbers instead of `2 F D`. So above a certain rank
# the copy is larger than the original.

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
# These matrices do not have low rank: at a small rank much is lost. To know the inputs raises recall, because then the
# rank is used for directions that really occur; compare the column `energy` yourself. But we can also save in another
# way: keep *all* directions, and use fewer bits for each number.
#
# ## A copy with few bits
#
# The second idea is to keep all the weights, but with a low precision. With 4 bits there are 16 evenly spaced values
# per row: `scale * (code - 7.5)`, with `code` from 0 to 15. Two codes fit into one byte.
#
# ### Exercise 07.3: 4 bits, packed
# difficulty ●●●○○ · 15 minutes
#
# Goal: `my_pack4(weight, scale)` takes `weight (F, D)` with even `D` and `scale (F,)`. Round `weight / scale + 7.5` to
# the nearest integer from 0 to 15, and pack two neighbours into one byte, with the first in the *low* four bits. The
# result is `uint8 (F, D // 2)`. A value halfway between two integers may go to either of them.
#
# <details><summary>Hint</summary>
# <code>np.clip(np.round(...), 0, 15).astype(np.uint8)</code> gives the codes. <code>codes[:, 0::2]</code> are the first
# of each pair, and <code>codes[:, 1::2] &lt;&lt; 4</code> are the second ones, shifted up by four bits; <code>|</code>
# combines both.
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
full_range = np.abs(gate64).max(axis=1) / 7.49  # the largest weight of a row gets an outermost code
assert not np.any((gate64 / full_range[:, None]) % 1 == 0)  # no weight lies halfway between two codes
check("07.3", my_pack4, pack4, [
    (np.array([[0.5, -0.5], [7.5, -7.5]]), np.ones(2)),
    (np.array([[1.1, 2.1, 3.1, 4.1]]), np.array([0.5])),
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
# A *shadow* is such a copy of gate and up, in all layers. minillm's version packs any number of bits, and searches for
# better scales than the full range. We compare it with the smallest copy of all, which has a single bit: the *sign* of
# each weight of the gate (SparseInfer, arXiv 2411.12692), compared with the signs of the inputs.

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
print(f"bytes: the predictor's own, as a share of the FFNs' {whole:,} bytes in float32")
print(text_table(rows, keys_as_headings({"predictor": "", "bytes": ".1%"} | forms)))

by_recall, by_energy = (sorted(rows, key=lambda row: -row[key]) for key in ("recall", "energy"))
print("\nbest first, by recall: " + ", ".join(row["predictor"] for row in by_recall))
print("best first, by energy: " + ", ".join(row["predictor"] for row in by_energy))

at = {row["predictor"]: row for row in rows}
assert at["shadow 4-bit"]["recall"] > at[svd.name]["recall"] + 0.05  # few bits are better than low rank
assert at["shadow 4-bit"]["bytes"] < at[svd.name]["bytes"]  # with fewer bytes
assert at["shadow 8-bit"]["recall"] > at["shadow 4-bit"]["recall"] > at["shadow 2-bit"]["recall"]

# %% [markdown]
# If the two orders differ, you see again what recall does not show: a copy may be wrong for many small neurons and
# right for the few large ones.
#
# Now we plot precision against recall, while each predictor selects more and more neurons: from few (left) to many
# (right). In the upper right corner, both are perfect.

# %%
steps = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.95)
candidates = {p.name: p for p in (oracle, shadows[4], shadows[2], svd, sign, static, guesses[0])}
rows = []
for name, predictor in candidates.items():
    scores = predictor.predict(LAYER, 0, x)
    rows += [{"predictor": name} | found(scores, step) for step in steps]
show(precision_recall(rows))

# %% [markdown]
# Is this the same in every layer? Here is the recall at the same selected share, by layer.

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
# Now the real test: all layers, each predictor with its own errors, on text that none of them has seen. `over oracle`
# is the perplexity minus the oracle's, and `low` and `high` are its 95 % interval over the documents. `times` is the
# increase over the dense model, divided by the oracle's increase. Such a quotient is given only where the oracle's
# increase is clearly above zero; otherwise it would be noise divided by noise. `reads` is the number of FFN bytes read
# per token, the predictor's own tables included, as a share of all stored FFN bytes.

# %%
contestants = (sign, svd, shadows[2], shadows[4])
for predictor in contestants:
    fit_cutoffs(model, predictor, thresholds, held, FRACTION)
in_loop = [row_of["oracle"]]
in_loop += [predictor_row(model, p, thresholds, test, FRACTION, dense) for p in contestants]
in_loop = [beside_oracle(row, in_loop[0]) for row in in_loop]
columns = {"predictor": "", "recall": ".1%", "precision": ".1%", "selected": ".1%", "reads": ".0%"}
judged = keys_as_headings(columns | {"perplexity": ".2f"}) | {"over_oracle": ("over oracle", "+.2f")}
judged |= {"over_oracle_low": ("low", "+.2f"), "over_oracle_high": ("high", "+.2f"), "times_oracle": ("times", ".1f")}
print(f"dense: perplexity {dense.perplexity:.2f}, {in_loop[0]['dense_bytes']:,} bytes of FFN weights, as stored")
print(text_table(in_loop, judged))
print(f"the oracle's increase over dense: {difference_in_words(in_loop[0], 'increase')}")

loop = {row["predictor"]: row for row in in_loop}
assert loop["shadow 4-bit"]["perplexity"] < loop[svd.name]["perplexity"]
assert max(row["perplexity"] for row in in_loop) < min(row_of[p.name]["perplexity"] for p in guesses)
assert loop["shadow 4-bit"]["over_oracle_high"] < 0.05 * loop["oracle"]["perplexity"]  # nearly as good
assert all(loop[name]["over_oracle_low"] > 0 for name in ("sign", svd.name, "shadow 2-bit"))  # surely worse than it

# %% [markdown]
# All of them are far better than the baselines. A shadow with 4 bits comes close to the oracle: look whether its
# interval contains 0, for then these documents do not tell the two apart. But it is not free: it has to be read for
# every token. So `reads` is larger than the selected share, and the last figure of this notebook shows perplexity
# against *bytes*.
#
# ## The price of recall
#
# A user of PowerInfer trained a predictor with a higher recall than the released one, and then the system was *slower*
# (issue 124 of that project). Our table can explain it: keep the truth as it is, and let the 2-bit shadow select more
# neurons.

# %%
more = [loop["shadow 2-bit"]]
for fraction in (0.5, 0.7):
    fit_cutoffs(model, shadows[2], thresholds, held, fraction)
    more.append(predictor_row(model, shadows[2], thresholds, test, fraction, dense))
columns = {"selected": ".0%", "recall": ".1%", "precision": ".1%", "reads": ".0%", "perplexity": ".2f"}
print(f"dense: perplexity {dense.perplexity:.2f}, and reads are 100 %")
print(text_table(more, keys_as_headings(columns)))

assert more[0]["recall"] < more[1]["recall"] < more[2]["recall"]  # selecting more raises recall
assert more[0]["reads"] < more[1]["reads"] < more[2]["reads"]  # but it also raises reads
assert more[0]["precision"] > more[1]["precision"] > more[2]["precision"]

# %% [markdown]
# So recall should never be reported alone, but always with the selected share and the bytes. A fair figure has all
# bytes on its axis, the predictor's own included.

# %%
curves = [*in_loop[:1], loop["shadow 4-bit"], *more, loop[svd.name]]
for predictor in (Oracle(model), shadows[4], svd):
    fit_cutoffs(model, predictor, thresholds, held, 0.5)
    curves.append(predictor_row(model, predictor, thresholds, test, 0.5, dense))
show(cost_of_predictors(curves, dense.perplexity))

# %% [markdown]
# For the same bytes, lower is better. The oracle's curve shows a perfect predictor that costs nothing. Which shadow is
# worth its bytes depends on how the weights are stored. Our model stores 16 bits per weight, so 4 bits for two of the
# three matrices are a considerable part of it.
#
# ## How it is counted
#
# For whole models, recall and precision come from a tap that gets both masks of every layer. It counts what you counted
# in exercise 07.1.

# %%
show_source(PredictionMeter.__call__)

# %% [markdown]
# ## Change something
#
# A shadow can also use the inputs, as the low-rank copy did: then each row is rounded so that its error on *real*
# inputs is small. Does this help at 2 bits? At 4 bits? You can also try another layer.

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
# Put the path of a Hugging Face folder here. The cell selects half of the neurons, on a short text, with several
# predictors.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    names = ("static", "sign", "shadow-4")
    rows = list(prediction_rows(other, documents[:4], Sample(test[:1], context=256), names))
    columns = {"predictor": "", "recall": ".1%", "precision": ".1%", "reads": ".0%"}
    print(f"dense perplexity {rows[0]['dense']:.2f}")
    print(text_table(rows, keys_as_headings(columns | {"perplexity": ".2f"})))

# %% [markdown]
# ## In one paragraph
#
# A predictor gives scores to neurons before they are computed, and a cutoff decides how many are selected. Recall,
# precision and the selected share belong together. None of them replaces perplexity with the predictor in the loop,
# because some missed neurons matter more than others. Baselines that do not look at the token fail here. Copies of the
# layer work without any training. All weights at a low precision are better than a few exact directions, and four bits
# come close to the oracle. The price is the copy itself, which must be read for every token.
#
# **Go on** with [08 · Learning a predictor](08_learning_a_predictor.ipynb).
#
# **Papers.** Predictors for contextual sparsity: Deja Vu, arXiv 2310.17157, sections 3 and 4. Signs: SparseInfer, arXiv
# 2411.12692. The same neurons as at the token before: LLM in a Flash, arXiv 2312.11514, section 3. Hot neurons:
# PowerInfer, arXiv 2312.12456. Rounding that takes the inputs into account: GPTQ, arXiv 2210.17323.
#
# **Source.** `minillm/predictors/protocol.py`, `select.py`, `oracle.py`, `baselines.py`, `quantise.py`, `sign.py`,
# `copies.py`, `minillm/study/prediction.py`.
