# %% [markdown]
# # 08 · Learning a predictor
#
# Notebook 07 made predictors from the weights. Deja Vu (arXiv 2310.17157) *trains* them: two low-rank matrices per
# layer learn from examples which neurons will be active. We train such a predictor in NumPy, with gradients written by
# hand. Then we test it in the same way as the others.
#
# Afterwards you can
#
# 1. write the loss of a yes-or-no prediction and its gradient, and check the gradient with finite differences;
# 2. train with Adam, and say what to do when most answers are "no";
# 3. make a fair test: split by document, compare at the same selected share, and measure perplexity.

# %%
import time

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.optim import Adam
from minillm.predictors.baselines import PreviousToken, Static
from minillm.predictors.copies import Shadow
from minillm.predictors.cutoffs import fit_cutoffs
from minillm.predictors.learned import logits
from minillm.predictors.oracle import Oracle
from minillm.predictors.train import (
    Schedule,
    cross_entropy,
    examples,
    initial_weights,
    loss_and_gradients,
    train,
    train_layer,
)
from minillm.show.display import show
from minillm.show.explain_passes import training_curve
from minillm.show.map import you_are_here
from minillm.show.results_predictors import cost_of_predictors
from minillm.sparsity.policies import largest
from minillm.study.bootstrap import difference, in_words, paired_bootstrap
from minillm.study.prediction import predictor_row
from minillm.study.score import evaluation_of
from minillm.tables import keys_as_headings, text_table
from minillm.transformer.texts import as_documents, runs

show(you_are_here("mlp.scores"))

# %% [markdown]
# ## Examples
#
# An example is a pair: the input of a layer at one token, and the mask of policy `mid` at that token. Both come from
# the *cut* model, because the predictor will be used in the cut model. As in notebook 07, 30 % of the neurons are
# active.

# %%
model = minillm.load("default")
documents = as_documents(minillm.embedded_text("calibration"))
training, held, fresh = documents[:12], documents[12:15], documents[15:25]
test = as_documents(minillm.embedded_text("test"))[:3]

FRACTION = 0.3
thresholds = minillm.calibrate(model, held, policy="mid", sparsity=1 - FRACTION, by="neuron")
inputs, masks = examples(model, thresholds, training)  # per layer x (n, D) and mask (n, F)
inputs_held, masks_held = examples(model, thresholds, held)

LAYER = 3
x, y, x_held, y_held = inputs[LAYER], masks[LAYER], inputs_held[LAYER], masks_held[LAYER]
D, F = x.shape[1], y.shape[1]
print(f"layer {LAYER}: x {x.shape}, y {y.shape}, {y.mean():.1%} of the answers are yes")

# %% [markdown]
# ## The model and its loss
#
# For each neuron the predictor computes a number $z$, which is large for "yes": $z = xAB + c$, with matrices $A$ and
# $B$ of rank $r$. The probability is $p = 1/(1 + e^{-z})$, and the loss is the *binary cross entropy* (BCE): $-\ln p$
# where the answer is yes, and $-\ln(1-p)$, multiplied by a weight $w_0$, where it is no. The loss is the mean over all
# tokens and neurons.

# %%
show_source(cross_entropy)
show_source(loss_and_gradients)

# %%


def bce(z: np.ndarray, y: np.ndarray, negative: float = 1.0) -> float:
    """The mean weighted cross entropy, as in the formula: z, y (T, F) -> a number."""
    p = 1 / (1 + np.exp(-z))
    return float(np.mean(np.where(y, -np.log(p), -negative * np.log(1 - p))))


rng = np.random.default_rng(0)
small = {name: rng.standard_normal(size) for name, size in (("A", (5, 2)), ("B", (2, 4)), ("c", 4))}
some_x, some_y = rng.standard_normal((6, 5)), rng.random((6, 4)) < 0.3
loss, gradients = loss_and_gradients(small, some_x, some_y, negative=0.4)
assert np.isclose(loss, bce(logits(small, some_x), some_y, 0.4), rtol=1e-12)
print(f"loss {loss:.4f}, by the package and by the formula")

# %% [markdown]
# ### Exercise 08.1: the gradient of the loss
# difficulty ●●●○○ · 15 minutes
#
# Goal: compute the derivative of the loss with respect to each $z$. `my_bce_gradient(z, y, negative)` takes `z (T, F)`,
# `y (T, F)` bool and the weight $w_0$ of the answer "no", and gives the derivatives `(T, F)`. (The loss is a mean over
# *all* entries.)
#
# <details><summary>Hint</summary>
# The derivative of $-\ln p$ with respect to $z$ is $p - 1$, and that of $-\ln(1-p)$ is $p$. Both are $p - y$. Then
# multiply by the weight, and divide by the number of entries.
# </details>


# %% tags=["exercise"]
def my_bce_gradient(z: np.ndarray, y: np.ndarray, negative: float) -> np.ndarray:
    """d loss / d z of the weighted binary cross entropy: z (T, F), y (T, F) bool -> (T, F)."""
    p = 1 / (1 + np.exp(-z))
    return np.where(y, 1.0, negative) * (p - y) / z.size


# %% tags=["check"]
def by_differences(z: np.ndarray, y: np.ndarray, negative: float) -> np.ndarray:
    """The specification: move each z a little up and down, and measure the change of the loss."""
    found, step = np.zeros_like(z), 1e-5
    for place in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[place] += step
        down[place] -= step
        found[place] = (bce(up, y, negative) - bce(down, y, negative)) / (2 * step)
    return found


check("08.1", my_bce_gradient, by_differences, [
    (np.array([[0.0]]), np.array([[True]]), 1.0),
    (np.array([[0.0, 2.0]]), np.array([[False, True]]), 1.0),
    (rng.standard_normal((3, 4)), rng.random((3, 4)) < 0.5, 1.0),
    (rng.standard_normal((3, 4)), rng.random((3, 4)) < 0.5, 0.3),  # weighted
    (np.array([[8.0, -8.0]]), np.array([[False, False]]), 0.5),  # surely wrong, surely right
], rtol=1e-5)  # fmt: skip

# %% [markdown]
# ## The gradient check
#
# The gradients of $A$, $B$ and $c$ follow from it with a few products and sums; the source above has them in three
# lines. With a gradient that is wrong by a factor, the loss may still go down, so training alone does not show the
# mistake. Finite differences do show it. This is one of the most useful tests in machine learning, and it needs
# `float64`.

# %%
worst = {}
for name, value in small.items():
    for place in np.ndindex(value.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = {key: array.copy() for key, array in small.items()}
            moved[name][place] += step
            ends.append(loss_and_gradients(moved, some_x, some_y, negative=0.4)[0])
        numeric = (ends[0] - ends[1]) / 2e-5
        worst[name] = max(worst.get(name, 0.0), abs(numeric - gradients[name][place]))
largest_entry = max(np.abs(g).max() for g in gradients.values())
for name, error in worst.items():
    print(f"gradient of {name}: off by at most {error / largest_entry:.0e} of the largest entry")
    assert error < 1e-6 * largest_entry

# %% [markdown]
# ## Adam
#
# Plain gradient descent takes steps that are proportional to the gradient. Adam (arXiv 1412.6980) divides a running
# mean of the gradient by the root of a running mean of its squares. So the steps of all parameters have a similar size:
#
# $$m \leftarrow m + (1-\beta_1)(g - m),\quad v \leftarrow v + (1-\beta_2)(g^2 - v),\quad
# p \leftarrow p - \eta\,\frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \epsilon}$$
#
# ### Exercise 08.2: one step of Adam
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_adam_step(p, g, m, v, t, lr)` gives the new `(p, m, v)`. All arrays have one shape, `t` counts steps from 1,
# and $\beta_1 = 0.9$, $\beta_2 = 0.999$, $\epsilon = 10^{-8}$. Do not change the arguments.
#
# <details><summary>Hint</summary>
# First compute the new <code>m</code> and <code>v</code>, then use them for <code>p</code>. The divisions by
# $1 - \beta^t$ correct for the fact that both averages start at zero.
# </details>


# %% tags=["exercise"]
def my_adam_step(
    p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, lr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The new p, m and v after step t (from 1) with gradient g: arrays of one shape."""
    m = m + (1 - 0.9) * (g - m)
    v = v + (1 - 0.999) * (g * g - v)
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p - lr * step, m, v


# %% tags=["check"]
def adam_step(p, g, m, v, t, lr):
    """The specification: the package's Adam, started at step t."""
    adam = Adam({"p": p.copy()}, lr)
    adam.m["p"], adam.v["p"], adam.t = m.copy(), v.copy(), t - 1
    adam.step({"p": g})
    return adam.parameters["p"], adam.m["p"], adam.v["p"]


zeros = np.zeros((2, 3))
check("08.2", my_adam_step, adam_step, [
    (zeros, np.ones((2, 3)), zeros, zeros, 1, 0.1),  # the first step has the length lr
    (zeros, 1000 * np.ones((2, 3)), zeros, zeros, 1, 0.1),  # however large the gradient is
    (zeros, 1e-8 * np.ones((2, 3)), zeros, zeros, 1, 0.1),  # but not however small: epsilon
    (*rng.standard_normal((3, 4)), rng.random(4), 5, 0.01),
    (*rng.standard_normal((3, 4)), rng.random(4), 1000, 0.01),
])  # fmt: skip

# %% [markdown]
# ## Most answers are no
#
# Before training, here is a warning about a common measure. How good is a predictor that always says no?

# %%
guess = {"always no": np.zeros_like(y_held), "always yes": np.ones_like(y_held),
         "a coin": rng.random(y_held.shape) < FRACTION}  # fmt: skip
rows = []
for name, answer in guess.items():
    recall = (answer & y_held).sum() / y_held.sum()
    rows.append({"answer": name, "accuracy": (answer == y_held).mean(), "recall": recall})
print(text_table(rows, keys_as_headings({"answer": "", "accuracy": ".0%", "recall": ".0%"})))
assert rows[0]["accuracy"] > 0.6 and rows[0]["recall"] == 0  # accurate, but useless

# %% [markdown]
# *Accuracy* rewards saying no. The loss has the same problem. So the package gives "no" a smaller weight, about the
# share of active neurons; then both answers count in a similar way. What does the weight change? We train one layer
# twice, with the package's own training loop, which is shown below. Then we look at the neurons with $p > 1/2$, and at
# the best 30 % of the scores.

# %%
rows = []
for name, negative in (("the same weight", 1.0), ("weight of no = share of yes", float(y.mean()))):
    p = initial_weights(x, y, 16, np.random.default_rng(0))
    train_layer(p, (x, y, None), (x_held, y_held, None), Schedule(6, negative), np.random.default_rng(0))
    z = logits(p, x_held)
    best = z > np.quantile(z, 1 - FRACTION)
    yes, of_all = z > 0, y_held.sum()
    rows.append({"trained with": name, "p > 1/2": yes.mean(),
                 "recall of those": (y_held & yes).sum() / of_all,
                 "recall of the best 30 %": (y_held & best).sum() / of_all})  # fmt: skip
print(text_table(rows, keys_as_headings({"trained with": ""} | dict.fromkeys(list(rows[0])[1:], ".1%"))))

assert rows[1]["p > 1/2"] > rows[0]["p > 1/2"] + 0.1  # the weight moves the probabilities
best_of, yes_of = ([row[key] for row in rows] for key in ("recall of the best 30 %", "p > 1/2"))
assert abs(best_of[1] - best_of[0]) < 0.3 * (yes_of[1] - yes_of[0])  # the order changes much less

# %% [markdown]
# The weight changes *how often* the predictor says yes. It changes the order of the neurons much less, and we use only
# the order, because the cutoff is a quantile. The recall at $p > 1/2$ would be very different in the two cases.
#
# ## Learning and overfitting
#
# Now we train a large predictor (full rank) on few documents, for many epochs. Compare the two curves.

# %%
count = 700  # tokens, about three documents
few, others, negative = (x[:count], y[:count], None), (x_held, y_held, None), float(y.mean())
p, curve = initial_weights(*few[:2], D, np.random.default_rng(0)), []


def watch(loss: float) -> None:
    known = loss_and_gradients(p, *few, negative)[0]
    curve.append({"epoch": len(curve) + 1, "training documents": known, "held-out documents": loss})


train_layer(p, few, others, Schedule(30, negative, patience=30), np.random.default_rng(0), watch)
show(training_curve(curve))

# %%
lowest = min(curve, key=lambda row: row["held-out documents"])
known, unknown = ([row[f"{which} documents"] for row in curve] for which in ("training", "held-out"))
print(f"held-out loss: lowest after epoch {lowest['epoch']}, {min(unknown):.3f}")
print(f"at the end: held-out {unknown[-1]:.3f}, training {known[-1]:.3f}")
assert known[-1] < unknown[-1] - 0.02  # it knows its own documents better
assert known[-1] < known[0]

# %% [markdown]
# On its training documents the predictor gets better and better. On other documents it stops improving, or gets worse:
# it overfits. So the package's training loop keeps the parameters of the epoch that was best on held-out documents, and
# stops after three epochs without improvement (early stopping).

# %%
show_source(initial_weights)
show_source(train_layer)

# %% [markdown]
# But this works only if the held-out text is really *another* text.
#
# ### Exercise 08.3: split by document
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_split(document, share)` takes, for each token, the number of its document `(n,)`, and gives a bool array
# `(n,)`: True for the tokens of the last documents, those with the largest numbers. How many documents these are is
# `share` times the number of all *documents* (rounded, at least one). No document may be on both sides.
#
# <details><summary>Hint</summary>
# <code>np.unique(document)</code> gives the numbers in order; <code>np.isin(document, those)</code> marks their tokens.
# </details>


# %% tags=["exercise"]
def my_split(document: np.ndarray, share: float) -> np.ndarray:
    """True where a token belongs to the last ``share`` of the documents: document (n,) -> bool (n,)."""
    numbers = np.unique(document)
    count = max(1, round(share * len(numbers)))
    return np.isin(document, numbers[-count:])


# %% tags=["check"]
def split_by_document(document: np.ndarray, share: float) -> np.ndarray:
    """The specification: document by document."""
    numbers = sorted(set(document.tolist()))
    count = max(1, round(share * len(numbers)))
    kept_back = numbers[len(numbers) - count :]
    return np.array([number in kept_back for number in document.tolist()])


check("08.3", my_split, split_by_document, [
    (np.array([0, 0, 1, 1, 1, 2, 3]), 0.25),
    (np.array([0, 0, 1, 1, 1, 2, 3]), 0.5),
    (np.array([5, 5, 2, 9, 9, 2, 2]), 0.34),  # numbers in any order
    (np.array([9, 9, 2, 5, 5]), 0.34),
    (np.array([0, 0, 1, 1, 1, 2, 3]), 0.4),  # 1.6 documents: two
    (np.array([0, 0, 0, 1, 1]), 0.1),  # at least one
])  # fmt: skip

# %% [markdown]
# What goes wrong if we split by *token* instead, and hold out a random quarter of the tokens? Then each held-out token
# has neighbours in the training set: the same story, the same names, nearly the same input. We train on eight
# documents, once without a random quarter of the tokens, and once without the last two documents. Then we test both
# predictors on **the same tokens**, which neither was trained on, and on ten new documents.

# %%
inputs_fresh, masks_fresh = examples(model, thresholds, fresh)
x_fresh, y_fresh = inputs_fresh[LAYER], masks_fresh[LAYER]
document = np.concatenate([np.full(len(piece.ids), piece.document) for piece in runs(model, training)])
first = document < 8
xs, ys, numbers = x[first], y[first], document[first]
negative = float(ys.mean()) + 0.005


def token_losses(p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The mean loss of each token: x (n, D), y (n, F) -> (n,)."""
    chance = 1 / (1 + np.exp(-logits(p, x)))
    return np.where(y, -np.log(chance), -negative * np.log(1 - chance)).mean(axis=1)


rows = []
by_token = np.random.default_rng(0).random(len(xs)) < 0.25
by_document = split_by_document(numbers, 0.25)
for how, away in (("by token", by_token), ("by document", by_document)):
    start = initial_weights(xs, ys, D, np.random.default_rng(0))
    parts = [(xs[part], ys[part], None) for part in (~away, away)]  # for training, and for early stopping
    p = train_layer(start, *parts, Schedule(20), np.random.default_rng(0))
    judged = {"the same tokens": (xs[by_token & by_document], ys[by_token & by_document]),
              "fresh documents": (x_fresh, y_fresh)}  # fmt: skip
    rows.append({"split": how} | {on: token_losses(p, *pair) for on, pair in judged.items()})
print(f"mean loss; the same tokens: {(by_token & by_document).sum()}")
means = [{"split": row["split"]} | {on: row[on].mean() for on in judged} for row in rows]
print(text_table(means, keys_as_headings({"split": "", "the same tokens": ".4f", "fresh documents": ".4f"})))

of_fresh = np.concatenate([np.full(len(piece.ids), piece.document) for piece in runs(model, fresh)])
units = {"the same tokens": np.arange(len(rows[0]["the same tokens"])), "fresh documents": of_fresh}  # drawn anew
leak = {}
for on, unit in units.items():
    sums = [np.bincount(unit, weights=row[on]) for row in rows]
    leak[on] = paired_bootstrap(*sums, np.bincount(unit), np.random.default_rng(0))
    print(f"{on}: loss by token minus loss by document, 95 % interval {leak[on][0]:+.4f} to {leak[on][1]:+.4f}")

assert leak["the same tokens"][1] < 0  # the split by token looks better
assert max(np.abs(leak["fresh documents"])) < 0.005  # but on new documents the predictor is not better, or hardly

# %% [markdown]
# On new documents the two predictors are about equally good. On the same held-out tokens, the predictor that has seen
# their neighbours looks better, and the interval says that this is no accident. So a split by token gives a result that
# is too good. This is called leakage, and it happens easily: a random shuffle is enough. minillm's `train` refuses
# held-out documents that are among the training documents, and a predictor stores the hashes of the documents that it
# was made from.
#
# ## One cutoff, or the same number for each token?
#
# Scores are not yet a selection. Should each token get the neurons above one cutoff, or always its best $k$? (A user
# asked this about Deja Vu, issue 22.) We compare both for the oracle's scores and for our last predictor's, with the
# same total number of selected neurons.

# %%
z = logits(p, x_fresh)
layer = model.layers[LAYER]
mid = np.abs(layer.act(x_fresh @ layer.gate_proj.T) * (x_fresh @ layer.up_proj.T))
k = round(FRACTION * F)
rows = []
for name, scores in (("oracle", mid), ("learned", z)):
    above = scores > np.quantile(scores, 1 - k / F)
    ways = {"one cutoff": above, "top k per token": largest(scores, k)}
    for how, chosen in ways.items():
        rows.append({"scores": name, "selection": how, "selected": chosen.mean(),
                     "recall": (chosen & y_fresh).sum() / y_fresh.sum(),
                     "fewest": chosen.sum(axis=1).min(), "most": chosen.sum(axis=1).max()})  # fmt: skip
forms = {"selected": ".1%", "recall": ".1%", "fewest": "d", "most": "d"}
print(text_table(rows, keys_as_headings({"scores": "", "selection": ""} | forms)))
counts = y_fresh.sum(axis=1)
print(f"\ntruly active neurons per token: {counts.min()} to {counts.max()}, mean {counts.mean():.0f}")

recall = {(row["scores"], row["selection"]): row["recall"] for row in rows}
assert recall["oracle", "one cutoff"] > recall["oracle", "top k per token"]
assert counts.max() > 1.5 * counts.min()  # tokens need very different numbers

# %% [markdown]
# Tokens need very different numbers of neurons. The same `k` for all tokens is too small for some and too large for
# others, even with perfect scores. On the other hand, it makes the work per token constant, which is easier for some
# hardware. minillm uses a cutoff.
#
# ## All layers, end to end
#
# Now the package trains all layers, on twelve documents, with three others for early stopping. How long does it take?

# %%
began = time.perf_counter()
learned = train(model, thresholds, training, held, rank=32, epochs=6, rng=np.random.default_rng(0))
print(f"{learned.name}: {learned.nbytes:,} bytes, trained in {time.perf_counter() - began:.0f} seconds")

# %% [markdown]
# We compare it with the two baselines that it must beat, and with the 2-bit shadow of notebook 07, which needs no
# training.

# %%
shadow = Shadow.fit(model, 2)
static = Static.fit(model, thresholds, training)
dense = minillm.perplexity(model, test)

rows = [predictor_row(model, Oracle(model, thresholds), thresholds, test, FRACTION, dense)]
for predictor in (static, PreviousToken(static), learned, shadow):
    fit_cutoffs(model, predictor, thresholds, held, FRACTION)
    rows.append(predictor_row(model, predictor, thresholds, test, FRACTION, dense))
columns = keys_as_headings({"predictor": "", "recall": ".1%", "precision": ".1%", "selected": ".1%"})
columns |= {"own_share_float32": ("own size", ".1%"), "perplexity": ("perplexity", ".2f")}
print(f"dense: perplexity {dense.perplexity:.2f}, {rows[0]['dense_bytes']:,} bytes of FFN weights as stored")
print("own size: as a share of the FFNs in float32")
print(text_table(rows, columns))

row_of = {row["predictor"]: row for row in rows}
ours, shadows_own = row_of[learned.name], row_of[shadow.name]
for name in ("static", "previous-token"):  # the whole interval is below 0, so it surely beats them
    assert difference(evaluation_of(ours), evaluation_of(row_of[name]))[2] < 0
assert all(ours["recall"] > row_of[p]["recall"] for p in ("static", "previous-token"))

# %%
over, low, high = difference(evaluation_of(ours), evaluation_of(shadows_own))
answer = "undecided" if low <= 0 <= high else "worse" if low > 0 else "better"
print(f"perplexity, learned minus the 2-bit shadow: {in_words(over, low, high, '+.1f')}, so {answer}")

# %% [markdown]
# The learned predictor beats the baselines. Whether it also beats a low-precision copy of the layer is printed above.
# For SwiGLU there is a reason to doubt it. Deja Vu was made for ReLU networks, where a neuron is active when *one*
# product is positive. Here a product of two factors must be large, and `up` may have either sign. A score that is
# linear in `x` cannot be large for both signs. Let us measure how the score, and how the true mask, depends on the two
# factors.

# %%


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The mean, over neurons, of the correlation over tokens: two arrays (T, F) -> a number."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    sizes = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0) + 1e-12)
    return float(np.mean((a * b).sum(axis=0) / sizes))


def recall_of(scores: np.ndarray, truth: np.ndarray) -> float:
    """Recall of the highest scores, when FRACTION of all neurons are selected."""
    return (truth & (scores > np.quantile(scores, 1 - FRACTION))).sum() / truth.sum()


rows_by_layer = []
for i, layer in enumerate(model.layers):
    gate_pre, up = inputs_fresh[i] @ layer.gate_proj.T, np.abs(inputs_fresh[i] @ layer.up_proj.T)
    score, mask = learned.predict(i, 0, inputs_fresh[i]), masks_fresh[i]
    rows_by_layer.append({
        "layer": i,
        "mask, gate": correlation(mask, gate_pre), "score, gate": correlation(score, gate_pre),
        "mask, |up|": correlation(mask, up), "score, |up|": correlation(score, up),
        "recall by score": recall_of(score, mask), "by |up| alone": recall_of(up, mask),
    })  # fmt: skip
print("correlation of the true mask, and of the learned score, with the gate and with |up|; recall")
forms = dict.fromkeys(("mask, gate", "score, gate", "mask, |up|", "score, |up|"), ".2f")
forms |= dict.fromkeys(("recall by score", "by |up| alone"), ".0%")
print(text_table(rows_by_layer, keys_as_headings({"layer": "d"} | forms)))

missing = np.mean([row["mask, |up|"] - row["score, |up|"] for row in rows_by_layer])
assert missing > 0.1  # the mask depends on |up| more than the score does
won = sum(row["by |up| alone"] > row["recall by score"] for row in rows_by_layer)
print(f"\n|up| alone, without the gate, has a higher recall in {won} of {len(rows_by_layer)} layers")

# %% [markdown]
# The score has learned the part of the gate (compare the first two columns). The mask also depends on `|up|`, and the
# score has learned less of this part. A shadow has a low precision, but it multiplies both factors.
#
# The last figure shows perplexity against bytes per token, as in notebook 07.

# %%
curves = [row for row in rows if row["predictor"] not in ("static", "previous-token")]
for predictor in (Oracle(model), learned, shadow):
    fit_cutoffs(model, predictor, thresholds, held, 0.5)
    curves.append(predictor_row(model, predictor, thresholds, test, 0.5, dense))
show(cost_of_predictors(curves, dense.perplexity))

# %% [markdown]
# ## Change something
#
# Try more documents, another rank, or more epochs. Learned predictors need much data. This cell can also train on
# documents that were not used yet: set `MORE` to a number of documents (up to 30) and compare with the table above. With
# the target "mid" the predictor learns how large each `|mid|` is, and not the mask. Does its recall rise? And does its
# perplexity fall? The two need not agree.

# %%
MORE, RANK, TARGET = 0, 32, "mask"

if MORE:
    again = train(model, thresholds, training + documents[25 : 25 + MORE], held, rank=RANK, epochs=8, target=TARGET)
    fit_cutoffs(model, again, thresholds, held, FRACTION)
    row = predictor_row(model, again, thresholds, test, FRACTION, dense)
    print(text_table([ours, row], columns))

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here. The cell trains a small predictor on four documents. This is enough to see
# that it works, but not enough to judge it.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    marks = minillm.calibrate(other, held[:1], policy="mid", sparsity=0.5, context=256)
    guess = Static.fit(other, marks, training[:4], 256)
    trained = train(other, marks, training[:4], held[:1], rank=16, context=256)
    base = minillm.perplexity(other, test[:1], context=256)
    rows = []
    for predictor in (guess, trained):
        fit_cutoffs(other, predictor, marks, held[:1], 0.5, context=256)
        rows.append(predictor_row(other, predictor, marks, test[:1], 0.5, base))
    print(f"dense perplexity {base.perplexity:.2f}")
    print(text_table(rows, columns))

# %% [markdown]
# ## In one paragraph
#
# A learned predictor is a logistic regression with a low-rank weight matrix, one per layer. Its gradient is a few lines
# of code, and finite differences check it. Most answers are no, so accuracy is not a useful measure. A weight in the
# loss changes the probabilities more than the order. The predictor overfits its training documents, and a split by
# token hides that. With one cutoff per layer, each token can get a different number of neurons. In the loop the learned
# predictor beats the baselines. But a linear score cannot be large for both signs of `up`, while a low-precision copy
# of the layer can.
#
# **Go on** with [09 · The prefetch buffer](09_the_prefetch_buffer.ipynb).
#
# **Papers.** Deja Vu: arXiv 2310.17157, sections 3 and 4, and issue 22 of its code (threshold or top-k). Adam: arXiv
# 1412.6980, algorithm 1. Cosine schedule: arXiv 1608.03983, equation 5. A predictor across the whole network:
# ShadowLLM, arXiv 2406.16635.
#
# **Source.** `minillm/optim.py`, `minillm/predictors/learned.py`, `train.py`, `cutoffs.py`,
# `minillm/study/prediction.py`.
