# %% [markdown]
# # 05 · Looking at activations
#
# Before we cut anything, we look at the numbers. Which numbers inside the feed-forward network (FFN) are small, how
# small are they, and small compared with what? In this notebook we only look; nothing is cut yet.
#
# Afterwards you can
#
# 1. describe the four arrays of the FFN (`gate_pre`, `gate`, `up`, `mid`), layer by layer, and say which one has
#    heavy tails and why;
# 2. distinguish *natural* sparsity (exact zeros) from values that are only small;
# 3. say what can mislead you: differences between layers, the first token, and assumptions that were not tested.

# %%
from statistics import NormalDist

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.show.display import show
from minillm.show.explain_values import activation_ridges, neuron_raster
from minillm.show.labels import token_labels
from minillm.show.map import you_are_here
from minillm.show.results_distributions import natural_by_layer
from minillm.sparsity.magnitudes import sample_values
from minillm.study.distributions import normal_below, weight_magnitudes
from minillm.study.natural import natural_sparsity
from minillm.tables import keys_as_headings, text_table
from minillm.trace import Trace
from minillm.transformer.ffn import swiglu
from minillm.transformer.texts import as_documents, runs

show(you_are_here("mlp.mid"))

# %% [markdown]
# ## Four arrays, each with a name
#
# We are inside the FFN. Each of its `F` neurons computes two products with the token's row. One of them goes through an
# activation function, and the two are multiplied. The result, `mid`, is the neuron's *coefficient*: how much of the
# neuron's output vector is added for this token. A neuron whose `mid` is zero adds nothing.

# %%
show_source(swiglu)

# %%
model = minillm.load("default")
text = "Once upon a time, a little girl named Lily found a red ball in the park."
sentence = model.tokenizer.encode(text)
with Trace(keep="blocks.3.mlp.*") as trace:
    model.forward(sentence, tap=trace)
trace.show()

# %% [markdown]
# The last column counts exact zeros. None of these steps has any. So in this kind of model no work can be skipped for
# free. Everything that follows is about *small* values.

# %%
for step in ("gate_pre", "gate", "up", "mid"):
    assert np.all(trace[f"blocks.3.mlp.{step}"] != 0)
print("no exact zero in any of the four")

# %% [markdown]
# ## A few documents, all layers
#
# One sentence is not enough for a measurement. We let the model read some stories and keep the four arrays of every
# layer. (They are kept by a tap, a function that the model's source calls with each intermediate result; see notebook
# 02.)

# %%
documents = as_documents(minillm.embedded_text("calibration"))[:8]
pieces = runs(model, documents)  # token ids, with BOS, the token of the beginning, in front
layers = sample_values(model, pieces, ("gate_pre", "gate", "up", "mid"))
first = np.concatenate([np.arange(len(piece.ids)) == 0 for piece in pieces])  # True at each BOS

shape = layers[0]["mid"].shape
print(f"{len(documents)} documents, {len(first):,} tokens, {len(layers)} layers, mid of each {shape}")

# %% [markdown]
# ## The shape of each distribution
#
# First we look at the products with the two matrices, before the activation function. Each layer has one curve.

# %%
show(activation_ridges([layer["gate_pre"][~first].ravel() for layer in layers], "gate_pre"))

# %%
show(activation_ridges([layer["up"][~first].ravel() for layer in layers], "up"))

# %% [markdown]
# Both look like normal distributions. But the gate's distribution is not centred at zero: in some layers most of the
# values are negative, and SiLU makes them small. `up` is centred.

# %%
negative = [float((layer["gate_pre"][~first] < 0).mean()) for layer in layers]
positive_up = [float((layer["up"][~first] > 0).mean()) for layer in layers]
pairs = enumerate(zip(negative, positive_up, strict=True))
rows = [{"layer": i, "gate_pre < 0": n, "up > 0": p} for i, (n, p) in pairs]
print(text_table(rows, keys_as_headings({"layer": "d", "gate_pre < 0": ".0%", "up > 0": ".0%"})))

assert max(negative) > 0.55  # in some layer clearly more than half
assert all(abs(p - 0.5) < 0.1 for p in positive_up)  # up: about half and half, in every layer

# %% [markdown]
# Now the results: the gate after the activation, and the product of gate and up.

# %%
show(activation_ridges([layer["gate"][~first].ravel() for layer in layers], "gate"))

# %%
show(activation_ridges([layer["mid"][~first].ravel() for layer in layers], "mid"))

# %% [markdown]
# The gate has a sharp limit on the left: SiLU is never below about -0.28. And `mid` has a narrow peak at zero and two
# long, thin tails. Now we measure how heavy these tails are.
#
# ### Exercise 05.1: how heavy are the tails?
# difficulty ●●○○○ · 10 minutes
#
# Goal: compute the *kurtosis*, the mean fourth power of the deviations from the mean, divided by the square of their
# mean square. It is 3 for every normal distribution. A few very large values make it large. `my_kurtosis(values)` takes
# an array of any shape and gives one number.
#
# <details><summary>Hint</summary>
# Subtract the mean once. Then take the mean of the fourth powers and the mean of the squares: <code>(d**4).mean() /
# (d**2).mean()**2</code>.
# </details>


# %% tags=["exercise"]
def my_kurtosis(values: np.ndarray) -> float:
    """Mean fourth power over squared mean square of the deviations: values of any shape -> a number."""
    deviation = values - values.mean()
    return (deviation**4).mean() / (deviation**2).mean() ** 2


# %% tags=["check"]
def kurtosis(values: np.ndarray) -> float:
    """The specification: sums over all values, one by one."""
    numbers = values.ravel().tolist()
    mean = sum(numbers) / len(numbers)
    second = sum((a - mean) ** 2 for a in numbers) / len(numbers)
    fourth = sum((a - mean) ** 4 for a in numbers) / len(numbers)
    return fourth / second**2


rng = np.random.default_rng(0)
normal, other_normal = rng.standard_normal((2, 20_000))
check("05.1", my_kurtosis, kurtosis, [
    (normal,),
    (normal + 10,),  # the mean must not matter
    (3 * normal,),  # nor the scale
    (np.array([[1.0, 2.0], [3.0, 100.0]]),),
    (layers[0]["mid"][:50].astype(np.float64),),
])  # fmt: skip

# %% [markdown]
# The product of two independent normal numbers has a kurtosis of 9. Multiplying makes tails heavy: most products are
# small, and a few, with two large factors, are very large. This is one reason for the heavy tails of `mid`. The other
# is SiLU, which has already made most gates small.

# %%
print(f"normal {kurtosis(normal):.1f}, product of two normals {kurtosis(normal * other_normal):.1f}\n")

steps = ("gate_pre", "gate", "up", "mid")
tails = {step: [kurtosis(layer[step][~first][::16]) for layer in layers] for step in steps}
rows = [{"layer": i} | {step: tails[step][i] for step in steps} for i in range(len(layers))]
print(text_table(rows, keys_as_headings({"layer": "d"} | dict.fromkeys(steps, ".1f"))))

assert np.median(tails["mid"]) > 5 * np.median(tails["up"])  # mid's tails are far heavier than up's
assert min(tails["mid"]) > 9  # and heavier than a product of normals, in every layer

# %% [markdown]
# ## Few neurons hold nearly everything
#
# A heavy tail means that a few large values dominate the sum. The FFN's output is a sum over neurons. So the real
# question is: if we take only the largest coefficients of each token, how much of the energy (the sum of squares) do
# they hold?
#
# ### Exercise 05.2: the share of the largest
# difficulty ●●○○○ · 10 minutes
#
# Goal: for each token take the `round(share * F)` neurons with the largest `|mid|`. Which share of the token's sum of
# squares do they hold? `my_energy_share(mid, share)` takes `mid (T, F)` and gives the mean over the tokens.
#
# <details><summary>Hint</summary>
# Sort the squares along the last axis. The largest ones are then at the end: <code>[:, F - count:]</code> (and not
# <code>[:, -count:]</code>, which for a count of 0 is everything).
# </details>


# %% tags=["exercise"]
def my_energy_share(mid: np.ndarray, share: float) -> float:
    """The share of each token's sum of squares in its largest values: mid (T, F) -> the mean over tokens."""
    squares = np.sort(mid**2, axis=-1)
    count = round(share * mid.shape[-1])
    return (squares[:, mid.shape[-1] - count :].sum(axis=-1) / squares.sum(axis=-1)).mean()


# %% tags=["check"]
def energy_share(mid: np.ndarray, share: float) -> float:
    """The specification: token by token."""
    found = []
    for row in mid:
        largest_first = sorted((float(m) ** 2 for m in row), reverse=True)
        found.append(sum(largest_first[: round(share * len(row))]) / sum(largest_first))
    return sum(found) / len(found)


check("05.2", my_energy_share, energy_share, [
    (np.array([[3.0, 0.0, -4.0, 0.0]]), 0.25),  # 16 of 25
    (np.ones((2, 10)), 0.3),  # all equal: the share of the neurons
    (np.array([[3.0, 0.0, -4.0, 0.0]]), 0.4),  # 1.6 neurons: two
    (np.array([[3.0, 0.0, -4.0, 0.0]]), 0.3),  # 1.2 neurons: one
    (rng.standard_normal((5, 40)), 0.1),
    (rng.standard_normal((5, 40)), 0.0),  # no neuron
    (layers[2]["mid"][:20].astype(np.float64), 0.1),
])  # fmt: skip

# %%
shares = (0.05, 0.1, 0.25, 0.5)
rows = [
    {"layer": i} | {f"top {s:.0%}": energy_share(layer["mid"][~first][::16], s) for s in shares}
    for i, layer in enumerate(layers)
]
print("share of mid's energy in the largest neurons of each token")
print(text_table(rows, keys_as_headings({"layer": "d"} | {f"top {s:.0%}": ".1%" for s in shares})))

assert all(row["top 10%"] > 0.5 for row in rows)  # a tenth holds more than half, in every layer
assert all(row["top 50%"] > 0.95 for row in rows)  # and the smaller half holds almost nothing

# %% [markdown]
# This is the idea of activation sparsity: most neurons could be left out, if we knew which ones. The layers differ, so
# we will use one threshold per layer.
#
# ## Weights are different
#
# Could we remove small *weights* instead, once and for all tokens? We count the values below 10 % of the root mean
# square, for the matrices and for `mid` (there, of the token's own root mean square). We compare with a normal
# distribution.

# %%
near = 0.1
weights = weight_magnitudes(model)
rows = [{"what": "a normal distribution", "exactly 0": 0.0, "near 0": normal_below(near)}]
for matrix in ("gate_proj", "up_proj", "down_proj"):
    found = [row for row in weights if row["matrix"] == matrix]
    rows.append({"what": f"weights of {matrix}", "exactly 0": np.mean([row["zeros"] for row in found]),
                 "near 0": np.mean([row["below_10_percent"] for row in found])})  # fmt: skip
for step in ("up", "mid"):
    near_zero = []
    for layer in layers:
        rms = np.sqrt(np.mean(layer[step] ** 2, axis=-1, keepdims=True))  # (T, 1)
        near_zero.append(np.mean(np.abs(layer[step]) <= near * rms))
    exact = np.mean([np.mean(layer[step] == 0) for layer in layers])
    rows.append({"what": f"activations {step}", "exactly 0": exact, "near 0": np.mean(near_zero)})
print(text_table(rows, keys_as_headings({"what": "", "exactly 0": ".1%", "near 0": ".1%"})))

by = {row["what"]: row["near 0"] for row in rows}
for matrix in ("gate_proj", "up_proj", "down_proj"):
    assert abs(by[f"weights of {matrix}"] - normal_below(near)) < 0.03
assert by["activations mid"] > 2 * normal_below(near)

# %% [markdown]
# The weights are very close to normal, so they have no more small values than a normal distribution has. The paper
# argues in the same order: there are no zeros in the weights, no zeros in the activations, but many activations are
# close to zero (arXiv 2412.12178, section 3).
#
# ## Natural sparsity depends on the activation function
#
# With another activation function the result is different. minillm contains four small models that were trained in the
# same way and differ only in this function. The figure shows the exact zeros of the gate, by layer:

# %%
twins = ("default-relu", "default-relu2", "default-silu", "default-gelu")
natural = {name: natural_sparsity(minillm.load(name), documents[:4]) for name in twins}
show(natural_by_layer(natural))

# %%
columns = {"gate_zeros": ("exactly 0", ".1%"), "gate_below_1_percent": ("below 1 %", ".1%")}
columns |= {"gate_below_10_percent": ("below 10 %", ".1%")}
rows = [{"model": name} | {key: np.mean([row[key] for row in by_layer]) for key in columns}
        for name, by_layer in natural.items()]  # fmt: skip
print("share of gate activations, mean over layers (below: of the token's own root mean square)")
print(text_table(rows, {"model": ("model", "")} | columns))

zeros = {row["model"]: row["gate_zeros"] for row in rows}
assert min(zeros["default-relu"], zeros["default-relu2"]) > 0.2  # many exact zeros
assert max(zeros["default-silu"], zeros["default-gelu"]) < 0.01  # practically none

# %% [markdown]
# ReLU sets every negative gate to exactly zero, and after training many gates are negative. SiLU and GELU only make
# them small. But most published models today use SiLU. So we must *make* zeros with a threshold, and we must ask what
# that costs. This is the topic of notebook 06.
#
# ## The first token is different
#
# Every text begins with a token that has no text, BOS. We compare its coefficients with those of all other tokens.

# %%


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


rows = []
for i, layer in enumerate(layers):
    mid, rest = layer["mid"], layer["mid"][~first]
    rows.append({
        "layer": i, "rms of BOS": rms(mid[first]), "rms of the others": rms(rest),
        "rms, all / others": rms(mid) / rms(rest),
        "median, all / others": np.median(np.abs(mid)) / np.median(np.abs(rest)),
    })  # fmt: skip
forms = {"layer": "d", "rms of BOS": ".2f", "rms of the others": ".2f"}
print(text_table(rows, keys_as_headings(forms | {"rms, all / others": ".3f", "median, all / others": ".3f"})))

strangest = max(rows, key=lambda row: row["rms of BOS"] / row["rms of the others"])
squares = np.square(layers[strangest["layer"]]["mid"], dtype=np.float64).sum(axis=-1)  # (T,)
print(f"\nlargest difference in layer {strangest['layer']}: BOS is {first.mean():.1%} of the tokens", end=" ")
print(f"and has {squares[first].sum() / squares.sum():.0%} of the energy")
assert strangest["rms of BOS"] > 1.5 * strangest["rms of the others"]
assert all(abs(row["median, all / others"] - 1) < 0.02 for row in rows)

# %% [markdown]
# One token in hundreds can hold a very large part of a layer's energy. So a number that is computed from squares, or
# from the largest value, may depend mostly on BOS. The median is hardly affected. This is one reason why thresholds are
# *quantiles*, and why the figures above leave BOS out. Here is the layer with the largest difference again, with BOS,
# on our sentence. Each line is a token, and each dark point is a neuron whose `|mid|` is above the layer's median.

# %%
tokens = token_labels(model, sentence)
with Trace(keep="blocks.*.mlp.mid") as trace:
    model.forward(sentence, tap=trace)
shown = strangest["layer"]
median = float(np.median(np.abs(layers[shown]["mid"])))
show(neuron_raster(np.abs(trace[f"blocks.{shown}.mlp.mid"]) > median, tokens))

# %% [markdown]
# ## Which neurons? It depends on the token
#
# If the same neurons were always active, we could simply remove the others. So for each neuron we ask how often it is
# above the median. For each token we ask how many of its active neurons were also active at the token before. Two
# independent random halves would share half of their neurons.

# %%
rows = []
for i, layer in enumerate(layers):
    size = np.abs(layer["mid"])
    active = size > np.median(size)  # (T, F)
    frequencies = active[~first].mean(axis=0)  # (F,) how often each neuron is active
    neighbours = ~first[1:] & ~first[:-1]  # not across two documents
    both = (active[1:] & active[:-1])[neighbours].sum() / active[1:][neighbours].sum()
    per_token = active[~first].mean(axis=1)
    rows.append({
        "layer": i, "rarest neuron": frequencies.min(), "most frequent": frequencies.max(),
        "shared with token before": both,
        "fewest in a token": per_token.min(), "most in a token": per_token.max(),
    })  # fmt: skip
print(text_table(rows, keys_as_headings({"layer": "d"} | dict.fromkeys(list(rows[0])[1:], ".0%"))))

assert all(row["most frequent"] > 0.55 for row in rows)  # some neurons are active more often than others
assert all(0.4 < row["shared with token before"] < 0.8 for row in rows)  # but no fixed set
assert all(row["most in a token"] - row["fewest in a token"] > 0.1 for row in rows)  # unequal shares

# %% [markdown]
# Some neurons are active more often than others, but there is no fixed set. The important neurons change from token to
# token, so they must be *predicted* (notebook 07). And with one threshold per layer, different tokens keep very
# different numbers of neurons.
#
# ## Testing an assumption
#
# Quantiles need many values. It would be easier to assume a shape of the distribution. TEAL (arXiv 2408.14690) assumes
# that the distribution is symmetric about zero. Then half of the values that are cut lie below zero and half above. So
# the threshold for a sparsity $s$ is the quantile at $0.5 + s/2$ of the values *with their sign*.
#
# ### Exercise 05.3: the symmetric threshold
# difficulty ●○○○○ · 5 minutes
#
# Goal: `my_symmetric_threshold(values, sparsity)` gives the quantile of the signed values at `0.5 + sparsity / 2`
# (values of any shape; between two values it is interpolated linearly, as `np.quantile` does).
#
# <details><summary>Hint</summary>
# <code>np.quantile</code> takes an array of any shape when no axis is given.
# </details>


# %% tags=["exercise"]
def my_symmetric_threshold(values: np.ndarray, sparsity: float) -> float:
    """The threshold that cuts this share if the values are symmetric about 0: any shape -> a number."""
    level = 0.5 + sparsity / 2
    return float(np.quantile(values, level))


# %% tags=["check"]
def symmetric_threshold(values: np.ndarray, sparsity: float) -> float:
    """The specification: sort the values, then interpolate linearly between the two at that place."""
    ordered = sorted(values.ravel().tolist())
    place = (0.5 + sparsity / 2) * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


check("05.3", my_symmetric_threshold, symmetric_threshold, [
    (np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), 0.5),
    (np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), 0.3),
    (normal.reshape(100, 200), 0.5),
    (normal - 1, 0.5),  # not symmetric about 0: the rule does not notice
    (layers[0]["gate_pre"][:50].astype(np.float64), 0.7),
])  # fmt: skip

# %% [markdown]
# Now the test. We ask for one half and count what is really cut. We compute the threshold in three ways: from the
# quantile of the magnitudes, with the symmetric rule, and from a normal distribution with the same standard deviation.

# %%
target, found = 0.5, []
for step in ("gate_pre", "up", "mid"):
    for i, layer in enumerate(layers):
        values = layer[step][~first]
        thresholds = {
            "quantile of |values|": np.quantile(np.abs(values), target),
            "symmetric": np.quantile(values, 0.5 + target / 2),
            "normal": NormalDist(0, float(values.std())).inv_cdf(0.5 + target / 2),
        }
        cut = {name: float(np.mean(np.abs(values) <= t)) for name, t in thresholds.items()}
        found.append({"step": step, "layer": i} | cut)

rows = []
for step in ("gate_pre", "up", "mid"):
    for name in thresholds:
        cuts = [row[name] for row in found if row["step"] == step]
        ends = {"least cut": min(cuts), "most cut": max(cuts)}
        rows.append({"step": step, "threshold from": name} | ends)
print(f"target {target:.0%} in every layer; what is really cut, over the layers")
print(text_table(rows, keys_as_headings({"step": "", "threshold from": "", "least cut": ".0%", "most cut": ".0%"})))

# %%


def worst(step: str, way: str) -> float:
    """The largest distance from the target in any layer."""
    return max(abs(row[way] - target) for row in found if row["step"] == step)


assert all(worst(step, "quantile of |values|") < 0.001 for step in ("gate_pre", "up", "mid"))
assert max(worst("up", "symmetric"), worst("mid", "symmetric")) < 0.05  # the rule is right
assert worst("gate_pre", "symmetric") > 0.1  # the gate is not centred at 0: the rule is wrong
assert min(row["normal"] for row in found if row["step"] == "mid") > 0.65  # far more than half

# %% [markdown]
# An assumption about the shape can be right or badly wrong, and there is no warning. The symmetric rule is good for
# `up` and `mid`, and far wrong for the gate. The normal rule on `mid` promises one half and cuts far more, because a
# few very large values make the standard deviation large. So there is a rule for the rest of this course: **write down
# the target and what was achieved.**
#
# ## Change something
#
# Choose another step or another text. Do the layers look the same when the text is not a story?

# %%
STEP, TEXT = "mid", "int main(void) { return 0; } // 12 + 30 = 42; x[i] += y[i] * 0.5;"

strange = sample_values(model, runs(model, [TEXT]), (STEP,))
rows = [{"layer": i, "stories": rms(a[STEP][~first]), "this text": rms(b[STEP][1:])}
        for i, (a, b) in enumerate(zip(layers, strange, strict=True))]  # fmt: skip
print(f"root mean square of {STEP}, BOS left out")
print(text_table(rows, keys_as_headings({"layer": "d", "stories": ".2f", "this text": ".2f"})))

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here, and see the same measurements for it: tails, concentration, the first
# token.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    other_pieces = runs(other, documents[:2], context=256)
    other_first = np.concatenate([np.arange(len(piece.ids)) == 0 for piece in other_pieces])[:400]
    rows = []
    for i, layer in enumerate(sample_values(other, other_pieces, ("mid",), tokens=400)):
        bos, mid = layer["mid"][other_first], layer["mid"][~other_first].astype(np.float64)
        fourth = np.mean((mid - mid.mean()) ** 4) / mid.var() ** 2
        squares = np.sort(mid**2, axis=-1)
        top = squares[:, -mid.shape[-1] // 10 :].sum(axis=-1) / squares.sum(axis=-1)
        rows.append({"layer": i, "kurtosis": fourth, "energy of top 10%": top.mean(),
                     "rms of BOS": rms(bos), "rms of the others": rms(mid)})  # fmt: skip
    forms = {"layer": "d", "kurtosis": ".1f", "energy of top 10%": ".1%", "rms of BOS": ".2f"}
    print(text_table(rows, keys_as_headings(forms | {"rms of the others": ".2f"})))

# %% [markdown]
# ## In one paragraph
#
# A SwiGLU model has no zeros to skip, neither in its weights nor in its activations. Its weights are nearly normal. So
# are the two products before the activation, but the gate's distribution is not centred at zero. The coefficient `mid`
# is different. It is the product of the activated gate and `up`, and its tails are so heavy that a tenth of the neurons
# holds most of each token's energy. Which neurons these are depends on the layer and the token. The first token is an
# outlier that changes means, but not quantiles. A threshold from an assumed shape may cut far more, or far less, than
# it promises.
#
# **Go on** with [06 · Thresholds and what they cost](06_thresholds_and_what_they_cost.ipynb).
#
# **Papers.** The elimination argument: Dhar et al., arXiv 2412.12178, section 3 and figures 2 to 7. Zeros with ReLU:
# Mirzadeh et al., arXiv 2310.04564. The symmetric threshold: TEAL, arXiv 2408.14690, section 4. Gated units: arXiv
# 2002.05202.
#
# **Source.** `minillm/transformer/ffn.py`, `minillm/sparsity/magnitudes.py` (`sample_values`),
# `minillm/study/distributions.py`, `natural.py`.
