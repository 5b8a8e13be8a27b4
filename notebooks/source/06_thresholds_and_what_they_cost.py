# %% [markdown]
# # 06 · Thresholds and what they cost
#
# Notebook 05 found many small activations, but no zeros. Now we make zeros: every value below a threshold is cut. Where
# does the threshold come from, what is saved, and what does it cost?
#
# Afterwards you can
#
# 1. turn "cut half" into one number per layer, and write the cut feed-forward network (FFN) yourself;
# 2. read a sparsity figure: which array was cut, what was achieved, how many neurons that is, and how many weights
#    need not be read;
# 3. compare two methods fairly, and say why the result depends on what is held equal.

# %%
import warnings
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.show.display import show
from minillm.show.map import you_are_here
from minillm.show.results_cuts import PUBLISHED, beside_the_paper, cost_of_cuts
from minillm.show.stepper import threshold_slider
from minillm.sparsity.allocate import cett_curve
from minillm.sparsity.magnitudes import sample_values
from minillm.sparsity.masked import masked_swiglu
from minillm.sparsity.policies import POLICIES, Policy
from minillm.sparsity.spec import SparsityMeter, in_words
from minillm.study.bootstrap import compare_policies, difference
from minillm.study.sweep import sweep
from minillm.tables import keys_as_headings, text_table
from minillm.transformer.ffn import swiglu
from minillm.transformer.ops import silu
from minillm.transformer.texts import as_documents, runs

show(you_are_here("sparsity"))

# %% [markdown]
# ## A policy is one line
#
# All methods of this family do the same: they compare an array with a threshold, and set small values to zero. They
# differ in *which* array they compare. In minillm such a rule is called a *policy*.

# %%
rows = [{"policy": p.name, "keeps": in_words(p.tensors, p.comparison)} for p in POLICIES.values()]
print(text_table(rows, keys_as_headings({"policy": "", "keeps": ""})))

# %% [markdown]
# We use three of them. `dhar` is the rule of the paper that this project is about (arXiv 2412.12178). It cuts three
# arrays: the gate before its activation, `up`, and the FFN's output. `cats` compares the activated gate, and `mid`
# compares the product of gate and up. (`in_gate` and `in_up` are the FFN's input; `neuron_norm` is `|mid|` times the
# length of the neuron's output vector.)

# %%
show_source(Policy.kept)

# %%
show_source(masked_swiglu)

# %% [markdown]
# The function computes everything and then sets values to zero. It saves no work, but it is easy to check: with all
# thresholds at zero it gives the dense result, bit for bit.

# %%
model = minillm.load("default")
layer = model.layers[3]
x = np.random.default_rng(0).standard_normal((5, model.config.hidden_size), np.float32)
for policy in (POLICIES["dhar"], POLICIES["cats"], POLICIES["mid"]):
    uncut = masked_swiglu(x, layer, policy=policy, thresholds=dict.fromkeys(policy.tensors, 0.0))
    assert np.array_equal(uncut, swiglu(x, layer))
print("thresholds of zero: equal to the dense FFN, bit for bit")

# %% [markdown]
# ### Exercise 06.1: write the cut yourself
# difficulty ●●○○○ · 10 minutes
#
# Goal: write SwiGLU with the rule of CATS. A neuron is kept where `|silu(gate)| > threshold`. All other neurons add
# nothing. `my_thresholded_swiglu(x, w_gate, w_up, w_down, threshold)` takes `x (T, D)`, `w_gate` and `w_up (F, D)`,
# `w_down (D, F)` and a number, and gives `(T, D)`.
#
# <details><summary>Hint</summary>
# Weights are stored as (out, in), so a product is <code>x @ w.T</code>. Then
# <code>np.where(np.abs(gate) &gt; threshold, gate * up, 0)</code> is the cut.
# </details>


# %% tags=["exercise"]
def my_thresholded_swiglu(
    x: np.ndarray, w_gate: np.ndarray, w_up: np.ndarray, w_down: np.ndarray, threshold: float
) -> np.ndarray:
    """SwiGLU without the neurons whose |silu(gate)| is not above the threshold: x (T, D) -> (T, D)."""
    gate = silu(x @ w_gate.T)  # (T, F)
    mid = np.where(np.abs(gate) > threshold, gate * (x @ w_up.T), 0)  # (T, F)
    return mid @ w_down.T


# %% tags=["check"]
def cut_by_the_package(x, w_gate, w_up, w_down, threshold):
    """The specification: the package's own masked FFN with policy cats."""
    weights = {"gate_proj": w_gate, "up_proj": w_up, "down_proj": w_down}
    given = SimpleNamespace(**weights, gate_bias=None, up_bias=None, down_bias=None, act=silu)
    return masked_swiglu(x, given, policy=POLICIES["cats"], thresholds={"gate": threshold})


rng = np.random.default_rng(1)
small = (rng.standard_normal((3, 4)), *rng.standard_normal((2, 6, 4)), rng.standard_normal((4, 6)))
tie = (np.eye(2), np.diag([40.0, 41.0]), np.ones((2, 2)), np.eye(2))  # silu(40) is 40, to the last digit
ours = (x, layer.gate_proj, layer.up_proj, layer.down_proj)
check("06.1", my_thresholded_swiglu, cut_by_the_package, [
    (*small, 0.0),  # nothing is cut
    (*small, 0.2),
    (*small, 100.0),  # everything is cut
    (*tie, 40.0),  # a value that equals the threshold is not above it
    (*ours, 0.2),  # a layer of the model
    (*ours, 0.5),
], rtol=1e-5)  # fmt: skip

# %% [markdown]
# ## Try it
#
# Here is one threshold on `|mid|` for all layers. Move the slider. What happens to the mask, to the FFN's output, and
# to the story?

# %%
threshold_slider(model, "Once upon a time, there was a", layer=3)

# %% [markdown]
# ## Where the threshold comes from
#
# Layers have different scales, so one number for all layers is a poor choice. The paper uses a *share* instead: in each
# layer, cut the smallest half (or 30 %, or ...) of the magnitudes on a calibration text. The threshold is then a
# quantile.
#
# ### Exercise 06.2: the threshold of a share
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_threshold(values, sparsity)` gives the quantile of `|values|` at `sparsity` (any shape; between two values
# it is interpolated linearly, as `np.quantile` does). For a sparsity of 0 the threshold is 0, so that *nothing* is cut.
#
# <details><summary>Hint</summary>
# <code>np.quantile(np.abs(values), 0)</code> is the smallest magnitude, and not 0. A rule that keeps only values
# <i>above</i> the threshold would then cut this value.
# </details>


# %% tags=["exercise"]
def my_threshold(values: np.ndarray, sparsity: float) -> float:
    """The magnitude below which this share of the values lies; 0 for a share of 0: any shape -> a number."""
    if sparsity == 0:
        return 0.0
    return float(np.quantile(np.abs(values), sparsity))


# %% tags=["check"]
def threshold_of(values: np.ndarray, sparsity: float) -> float:
    """The specification: sort the magnitudes, then interpolate linearly between two of them."""
    if sparsity == 0:
        return 0.0
    ordered = sorted(abs(v) for v in values.ravel().tolist())
    place = sparsity * (len(ordered) - 1)
    below = int(place)
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


values = rng.standard_normal((40, 30))
check("06.2", my_threshold, threshold_of, [
    (np.array([1.0, -2.0, 3.0, -4.0, 5.0]), 0.5),
    (np.array([1.0, -2.0, 3.0, -4.0, 5.0]), 0.3),
    (values, 0.5),
    (values, 0.9),
    (values, 0.0),  # nothing may be cut
])  # fmt: skip

# %% [markdown]
# Now the whole model. From the start we use two texts: **thresholds are computed on one text and tested on the other.**
# `minillm.calibrate` does what you have just written, for every layer in one pass. We check one layer by hand.

# %%
calibration = as_documents(minillm.embedded_text("calibration"))[:3]
test = as_documents(minillm.embedded_text("test"))[:5]
thresholds = minillm.calibrate(model, calibration, policy="cats", sparsity=0.5)
print(text_table([{"layer": i, "|gate| >": found["gate"]} for i, found in enumerate(thresholds.layers)],
                 keys_as_headings({"layer": "d", "|gate| >": ".3f"})))  # fmt: skip

gates = sample_values(model, runs(model, calibration), ("gate",))
assert np.isclose(thresholds.layers[3]["gate"], threshold_of(gates[3]["gate"], 0.5), rtol=1e-6)

lowest = silu(np.linspace(-5, 0, 10_001)).min()
below_zero = np.mean([np.mean(layer_gates["gate"] < 0) for layer_gates in gates])
print(f"\nSiLU is never below {lowest:.3f}; {below_zero:.0%} of all gates are negative")
assert all(found["gate"] < -lowest for found in thresholds.layers)

# %% [markdown]
# These numbers are similar, and the last line says why. Most gates are negative, and there SiLU has only values in the
# narrow range between its lowest value and 0. A threshold in this range decides about many neurons by tiny differences.
# This is a weakness of using the gate alone.
#
# ## What does "50 %" mean?
#
# It depends on the policy, so a percentage alone says little. Every `Thresholds` object carries a description, and a
# `SparsityMeter` counts what a cut model really does. Here each of the three policies cuts 50 %, each in its own sense.

# %%
spec = minillm.calibrate(model, calibration[:2], policy="dhar", sparsity=0.5).spec
print(str(spec).replace("; ", "\n  "))

# %%
dhar = sweep(model, calibration, test, ["dhar"], (0.3, 0.35, 0.4, 0.45, 0.5))  # shares of each array
cats = sweep(model, calibration, test, ["cats"], (0.3, 0.5, 0.7))
mid = sweep(model, calibration, test, ["mid"], (0.3, 0.5, 0.7, 0.95))

half = [row for row in (*dhar, *cats, *mid) if row["target"] == 0.5]
columns = {  # key of a row: (heading, format)
    "policy": ("policy", ""), "target": ("target", ".0%"), "achieved": ("achieved", ".1%"),
    "neuron_sparsity": ("neurons cut", ".1%"), "read_gate": ("read of gate", ".0%"), "read_up": ("of up", ".0%"),
    "read_down": ("of down", ".0%"), "perplexity": ("perplexity", ".2f"),
}  # fmt: skip
print(f"dense perplexity {dhar[0]['perplexity']:.2f}")
print(text_table(half, columns))

row_of = {row["policy"]: row for row in half}
assert all(abs(row["achieved"] - 0.5) < 0.05 for row in half)  # each cuts half of what it looks at
assert row_of["dhar"]["neuron_sparsity"] > 0.6  # but the paper's rule far more than half of the neurons
assert all(abs(row_of[p]["neuron_sparsity"] - 0.5) < 0.05 for p in ("cats", "mid"))

# %% [markdown]
# This table counts in two ways.
#
# * **Neuron sparsity**: the share of (token, neuron) pairs that add nothing. `dhar` cuts a neuron if its gate *or* its
#   up is small. These two halves overlap only in part, so more than half of the neurons are cut.
# * **Weight reads**: the share of the rows of gate and up, and of the columns of down, that must be read from memory.
#   `mid` knows its mask only after gate *and* up are computed, so it reads both in full. `cats` and `dhar` read the
#   gate in full, and then only the rows of `up` that are still needed.

# %%
for row in half:
    assert row["read_gate"] == 1  # all three read the whole gate
    assert (row["read_up"] == 1) == (row["policy"] == "mid")
assert row_of["dhar"]["read_down"] < row_of["dhar"]["read_up"] < 1
print("all three read the whole gate; mid alone reads the whole of up")

# %% [markdown]
# ## The paper's figure 8
#
# The paper cuts 30 to 50 % of each array and reports perplexity on WikiText-2. We do the same with our model on our
# test text. Perplexities of different models and texts cannot be compared, so every curve shows the *increase*.

# %%
show(beside_the_paper(dhar))

# %%
ends = {name: (heights[0], heights[-1]) for name, heights in PUBLISHED.items()}  # perplexity at 0 % and at 50 %
ends["default (here)"] = dhar[0]["perplexity"], dhar[-1]["perplexity"]
increase = {name: cut / dense - 1 for name, (dense, cut) in ends.items()}
print("perplexity, dense and with 50 % of each array cut (published values: read off the figure)")
rows = [{"model": name, "dense": ends[name][0], "cut": ends[name][1], "increase": increase[name]} for name in ends]
print(text_table(rows, keys_as_headings({"model": "", "dense": ".2f", "cut": ".2f", "increase": "+.0%"})))
smaller = [name for name in PUBLISHED if increase["default (here)"] < increase[name]]
print(f"\nour small model loses less than: {', '.join(smaller) or 'none of them'}")

assert dhar[-1]["perplexity"] > 1.01 * dhar[1]["perplexity"]  # 50 % costs more than 30 %
assert sum(increase[name] > 0.5 for name in PUBLISHED) == 1  # expensive for one of the three

# %% [markdown]
# It has been reported that large models tolerate more sparsity than small ones (arXiv 2509.00454). The line above shows
# our result, for one small model on simple stories. The figure shows that "50 %" has a cost for every model, and for
# one of the three published ones the cost is high. And remember that these "50 %" are far more than half of the
# neurons.
#
# ## The same runs, two axes
#
# Now we plot all runs of the three policies together, first against neuron sparsity.

# %%
show(cost_of_cuts([*dhar, *cats[1:], *mid[1:]]))

# %% [markdown]
# And now the *same runs* against the share of the weights that are read per token.

# %%
show(cost_of_cuts([*dhar, *cats[1:], *mid[1:]], "read_exact"))

# %% [markdown]
# The order of the curves is not the same in the two figures. In the second one `mid` stops early, because it saves only
# columns of `down`, at most a third of the weights. For a fair comparison one quantity must be equal. `by="neuron"`
# searches for thresholds that give all policies the same neuron sparsity. `by="reads"` searches for thresholds that
# leave the same share of the weights unread.

# %%
by_neuron = sweep(model, calibration, test, ("dhar", "cats", "mid"), (0.7,), by="neuron")
by_reads = sweep(model, calibration, test, ("dhar", "cats", "mid"), (0.32,), by="reads")
costs = {"neuron_sparsity": ("neurons cut", ".1%"), "read_exact": ("weights read", ".1%")}
costs |= {"perplexity": ("perplexity", ".2f"), "vs_dense": ("vs dense", ".3f")}
print(text_table([*by_neuron, *by_reads[1:]], keys_as_headings({"by": "", "policy": ""}) | costs))

# %%
verdicts = compare_policies([*by_neuron, *by_reads], baseline="mid")
columns = keys_as_headings({"by": "", "policy": "", "baseline": ""}) | {"log_ratio": ("log ratio", "+.3f")}
columns |= keys_as_headings({"low": "+.3f", "high": "+.3f", "verdict": ""})
print("ln(perplexity / that of mid), and its 95 % interval over documents")
print(text_table(verdicts, columns))

found = {(row["by"], row["policy"]): row for row in verdicts}
for by in ("neuron", "reads"):
    undecided = [row["policy"] for row in verdicts if row["by"] == by and row["low"] <= 0 <= row["high"]]
    print(f"\nby {by}, undecided against mid: {', '.join(undecided) or 'none'}", end="")
print()

assert all(found["neuron", policy]["high"] > 0 for policy in ("dhar", "cats"))  # neither is surely better than mid
assert found["neuron", "cats"]["low"] > 0  # and cats is surely worse
assert all(found["reads", policy]["high"] < 0 for policy in ("dhar", "cats"))  # here both are surely better

# %% [markdown]
# The logarithm is below 0 where a policy has a lower perplexity than `mid`. The interval comes from resampling the
# documents (bootstrap), with the same documents for both policies. **If it contains 0, these documents do not decide
# which policy is better.** With so few documents the intervals are wide.
#
# At equal neuron sparsity `cats` is worse than `mid`, which uses more information; whether `dhar` is worse, the table
# says. At equal weight reads **the order is reversed**: `mid` is worse than both, because it must read gate and up to
# get its information. Neither result is wrong; they answer different questions. The solution is to know the mask
# *without* reading these weights. This is what a predictor is for (notebook 07).
#
# ## Another text
#
# Do thresholds from one text fit another text? Below are three shares that should all be one half: on the calibration
# text, on the test text, and on the test text in the *cut* model, where the earlier layers have changed each layer's
# input.

# %%
mid_half = minillm.calibrate(model, calibration, policy="mid", sparsity=0.5)
ffn = minillm.sparse_ffn(model, mid_half)
meter = SparsityMeter()
score = minillm.perplexity(model, test, ffn=ffn, tap=meter)
seen, unseen = (sample_values(model, runs(model, text), ("mid",)) for text in (calibration, test))
cut_shares, rows = meter.report().layer_sparsity, []
for i, found in enumerate(mid_half.layers):
    rows.append({
        "layer": i,
        "calibration text": np.mean(np.abs(seen[i]["mid"]) <= found["mid"]),
        "test text": np.mean(np.abs(unseen[i]["mid"]) <= found["mid"]),
        "test text, cut model": cut_shares[i],
    })  # fmt: skip
print(text_table(rows, keys_as_headings({"layer": "d"} | dict.fromkeys(list(rows[0])[1:], ".1%"))))

assert all(abs(row["calibration text"] - 0.5) < 0.001 for row in rows)
assert all(abs(row[key] - 0.5) < 0.05 for row in rows for key in ("test text", "test text, cut model"))

# %% [markdown]
# On the calibration text the target is met exactly, and on the other two almost. What happens if we test on the same
# text that the thresholds come from, as some published pipelines do? minillm warns, because thresholds carry the hashes
# of their documents.

# %%
with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    minillm.perplexity(model, calibration[:1], ffn=ffn)
print("warning:", notes[0].message)

from_test = minillm.calibrate(model, test, policy="mid", sparsity=0.5)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    same_text = minillm.perplexity(model, test, ffn=minillm.sparse_ffn(model, from_test))
print(f"perplexity of the test text, dense {dhar[0]['perplexity']:.3f}, with thresholds")
print(f"  from the calibration text  {score.perplexity:.3f}")
print(f"  from the test text itself  {same_text.perplexity:.3f}")
assert abs(np.log(same_text.perplexity / score.perplexity)) < 0.02

# %% [markdown]
# Here it makes little difference, because one number per layer can hardly memorise a text. A trained predictor can
# (notebook 08). So we always keep the texts separate.
#
# ## Choosing by the output error: CETT
#
# A share is a simple target: it cuts the same share of every layer, whatever the effect is. CETT (arXiv 2411.02335)
# measures how much of the FFN's *output* is lost. Neuron $j$ adds $n_j = m_j\,d_j$, where $d_j$ is its column of
# `down`. Leave out all neurons with $\lVert n_j\rVert < t$. The loss is the length of the sum of their $n_j$, divided
# by the length of the whole output. CETT is the mean of this loss over the tokens.
#
# ### Exercise 06.3: CETT
# difficulty ●●●○○ · 15 minutes
#
# Goal: `my_cett(mid, w_down, threshold)` takes `mid (T, F)`, `w_down (D, F)` and a number, and gives one number.
#
# <details><summary>Hint</summary>
# The length of $n_j$ is $|m_j|$ times the norm of column $j$: <code>np.abs(mid) * np.linalg.norm(w_down,
# axis=0)</code>. Set the coefficients of the kept neurons to 0; then one product with <code>w_down.T</code> gives all
# the lost sums.
# </details>


# %% tags=["exercise"]
def my_cett(mid: np.ndarray, w_down: np.ndarray, threshold: float) -> float:
    """The share of the output that is lost when short contributions are left out: mid (T, F) -> a number."""
    length = np.abs(mid) * np.linalg.norm(w_down, axis=0)  # (T, F)
    lost = np.where(length < threshold, mid, 0) @ w_down.T  # (T, D)
    return float(np.mean(np.linalg.norm(lost, axis=-1) / np.linalg.norm(mid @ w_down.T, axis=-1)))


# %% tags=["check"]
def cett(mid: np.ndarray, w_down: np.ndarray, threshold: float) -> float:
    """The specification: token by token, neuron by neuron."""
    shares = []
    for row in mid:
        lost, whole = np.zeros(len(w_down)), np.zeros(len(w_down))
        for m, column in zip(row, w_down.T, strict=True):
            whole += m * column
            if np.linalg.norm(m * column) < threshold:
                lost += m * column
        shares.append(np.linalg.norm(lost) / np.linalg.norm(whole))
    return float(np.mean(shares))


some_mid, down = unseen[3]["mid"][:40].astype(np.float64), layer.down_proj.astype(np.float64)
check("06.3", my_cett, cett, [
    (np.array([[3.0, 1.0]]), np.eye(2), 2.0),
    (np.array([[3.0, 1.0]]), np.eye(2), 1.0),  # a length that equals the threshold is kept
    (np.array([[1.0, 1.0, 3.0]]), np.array([[1.0, -1.0, 0.0], [0.0, 0.1, 1.0]]), 1.5),  # what is lost may cancel
    (rng.standard_normal((4, 6)), rng.standard_normal((5, 6)), 0.0),  # nothing is lost
    (rng.standard_normal((4, 6)), rng.standard_normal((5, 6)), 1.5),
    (some_mid, down, 0.2),  # a layer of the model
])  # fmt: skip

# %% [markdown]
# The package computes it for a whole grid of thresholds at once, and agrees.

# %%
grid, curve = cett_curve(some_mid, layer)
for place in (50, 200, 800):
    assert np.isclose(curve[place], cett(some_mid, down, grid[place]), rtol=1e-9)
    print(f"threshold {grid[place]:.3f}: CETT {curve[place]:.1%}")

# %% [markdown]
# Now each layer may lose the same share of its output. The number of neurons that are cut is then different in each
# layer.

# %%
by_cett = minillm.calibrate(model, calibration[:1], policy="cett", sparsity=0.2, by="cett")
meter = SparsityMeter()
minillm.perplexity(model, test[:3], ffn=minillm.sparse_ffn(model, by_cett), tap=meter)
cut = meter.report().layer_sparsity
print(f"CETT {by_cett.spec.target:.0%} in every layer; neurons cut, by layer")
rows = [{"layer": i, "cut": share} for i, share in enumerate(cut)]
print(text_table(rows, keys_as_headings({"layer": "d", "cut": ".0%"})))
assert max(cut) - min(cut) > 0.05

# %% [markdown]
# ## Which tokens?
#
# There is one more question behind a percentage: is *every* token cut? For example, TEAL's released evaluation leaves
# the first half of each prompt dense. Other methods cut only while new text is generated. The same threshold then costs
# less, and the "50 %" is true only for some of the tokens.
#
# ### Exercise 06.4: cut from a position on
# difficulty ●●●○○ · 10 minutes
#
# Goal: write an FFN that is dense at positions before `start` and cut from there on. `my_cut_from(x, layer, position,
# ffn, start)` takes `x (T, D)` whose first row is at `position`, and `ffn(x, layer, position)` for the cut part; for
# the dense part use `swiglu(x, layer)`. It gives `(T, D)`.
#
# <details><summary>Hint</summary>
# Row <code>i</code> is at <code>position + i</code>, so the first <code>max(0, start - position)</code> rows are dense
# (or all rows, if there are fewer). Join both parts with <code>np.concatenate</code>; a part may be empty.
# </details>


# %% tags=["exercise"]
def my_cut_from(x: np.ndarray, layer, position: int, ffn, start: int) -> np.ndarray:
    """Dense for the rows at positions before ``start``, ``ffn`` for all others: x (T, D) -> (T, D)."""
    dense = min(len(x), max(0, start - position))
    parts = [swiglu(x[:dense], layer), ffn(x[dense:], layer, position + dense)]
    return np.concatenate(parts)


# %% tags=["check"]
def cut_from(x: np.ndarray, layer, position: int, ffn, start: int) -> np.ndarray:
    """The specification: row by row."""
    found = []
    for i in range(len(x)):
        row, here = x[i : i + 1], position + i
        found.append(swiglu(row, layer) if here < start else ffn(row, layer, here))
    return np.concatenate(found)


def by_position(x, layer, position):
    """An FFN whose result tells at which position each row was."""
    return x * (position + np.arange(len(x))[:, None])


check("06.4", my_cut_from, cut_from, [
    (x, layer, 0, ffn, 2),
    (x, layer, 0, ffn, 0),  # all cut
    (x, layer, 0, ffn, 99),  # none cut
    (x, layer, 10, ffn, 12),  # a later piece of a text
    (x, layer, 10, ffn, 3),
    (x, layer, 10, by_position, 12),  # the cut part must know where it begins
], rtol=1e-5)  # fmt: skip

# %% [markdown]
# We use the same thresholds (`cats`, 70 % of the gate) with three token scopes: every token; from the middle of each
# text on, similar to TEAL; and only the last part, as if the rest were a long prompt. To be fast, we compute all rows
# cut and all rows dense, and then take the dense rows for the beginning.

# %%
by_gate = minillm.calibrate(model, calibration, policy="cats", sparsity=0.7)
cut_ffn = minillm.sparse_ffn(model, by_gate)
lengths = np.array([len(piece.ids) for piece in runs(model, test)])


def from_position(start: int):
    """A FeedForward that is dense before ``start``."""

    def mixed(x, layer, position=0, tap=None):
        later = (np.arange(position, position + len(x)) >= start)[:, None]  # (T, 1)
        return np.where(later, cut_ffn(x, layer, position), swiglu(x, layer))

    return mixed


dense_score = minillm.perplexity(model, test)
rows, in_order = [], []
for name, start in (("every token", 0), ("from the middle on", 150), ("the last part only", 240)):
    found = minillm.perplexity(model, test, ffn=from_position(start))
    share = np.maximum(0, lengths - start).sum() / lengths.sum()
    cost, low, high = difference(found, dense_score)
    rows.append({"cut": name, "tokens cut": share, "perplexity": found.perplexity,
                 "over dense": cost, "low": low, "high": high})  # fmt: skip
    in_order.append(found)
print(f"the same thresholds, the same percentage; dense perplexity {dense_score.perplexity:.2f}")
forms = {"cut": "", "tokens cut": ".0%", "perplexity": ".2f"} | dict.fromkeys(("over dense", "low", "high"), "+.2f")
print(text_table(rows, keys_as_headings(forms)))

for more, fewer in pairwise(in_order):
    assert difference(more, fewer)[1] > 0  # fewer cut tokens cost less: the whole interval says so

# %% [markdown]
# So two sparsity numbers can be compared only if their token scopes are the same. In minillm the scope is part of every
# description. It is always "every token, prompt and continuation alike".
#
# ## Change something
#
# Does each layer really need its own threshold? Give each layer the threshold of another one, and see. (Then try
# something else: change one layer only, or use the thresholds of another text.)

# %%
turned = replace(by_gate, layers=by_gate.layers[::-1])  # the first layer gets the last one's threshold
for name, found in (("their own", by_gate), ("reversed", turned)):
    meter = SparsityMeter()
    result = minillm.perplexity(model, test[:3], ffn=minillm.sparse_ffn(model, found), tap=meter)
    by_layer = meter.report().layer_sparsity
    cut = f"{np.mean(by_layer):.0%} ({min(by_layer):.0%} to {max(by_layer):.0%} by layer)"
    print(f"thresholds {name:<13} neurons cut {cut}, perplexity {result.perplexity:.2f}")
print(f"dense{minillm.perplexity(model, test[:3]).perplexity:>84.2f}")

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here. The cell applies the paper's rule at two levels, on our short texts. For a
# real model, use a real text.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    rows = sweep(other, calibration[:2], test[:2], ("dhar",), (0.3, 0.5), context=256)
    print(text_table(rows, keys_as_headings({"policy": "", "target": ".0%"}) | costs))
    show(beside_the_paper(rows))

# %% [markdown]
# ## In one paragraph
#
# A policy compares an array with a threshold and cuts the values below it. The threshold is a quantile of the array's
# magnitudes on a calibration text, one per layer. "50 %" of an array is not 50 % of the neurons, and not 50 % of the
# weights. At equal neuron sparsity no policy here is surely better than `mid`, which uses the most information. At
# equal weight reads it is worst, because it must read gate and up for this information. A difference is a result only
# with its interval. The thresholds fit another text of the same kind almost as well. And a sparsity number must come
# with its array, its tokens, its target, and the value that was achieved.
#
# **Go on** with [07 · Predicting before computing](07_predicting_before_computing.ipynb).
#
# **Papers.** The rule and figure 8: Dhar et al., arXiv 2412.12178, equations 3 to 7. CATS: arXiv 2404.08763. CETT:
# Sparsing Law, arXiv 2411.02335, section 3. TEAL: arXiv 2408.14690, section 4. Tolerance and size: arXiv 2509.00454.
#
# **Source.** `minillm/sparsity/policies.py`, `masked.py`, `calibrate.py`, `spec.py`, `allocate.py`,
# `minillm/study/sweep.py`.
