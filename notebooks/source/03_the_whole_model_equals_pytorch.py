# %% [markdown]
# # 03 · The whole model equals PyTorch
#
# A language model with a bug usually does not crash. It writes text that is a little worse than it should be, and the
# bug may stay unnoticed for a long time. In this notebook we put the whole model together. Then we learn to find bugs:
# we compare every step of two implementations, and look for the *first* step that differs.
#
# Afterwards you can
#
# 1. build the model from its blocks, and say what a tied head is;
# 2. compare two implementations step by step, and say how close is close enough;
# 3. find a planted bug from the first step that differs.

# %%
import cmath
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.divergence import compare
from minillm.loading.checkpoint import load_weights
from minillm.loading.config import ModelConfig
from minillm.show.display import show
from minillm.show.explain_passes import error_per_step
from minillm.show.labels import token_labels
from minillm.show.map import you_are_here
from minillm.steps import step_names
from minillm.tables import keys_as_headings, text_table
from minillm.trace import Trace
from minillm.transformer.blocks import Positions, block
from minillm.transformer.linear import linear
from minillm.transformer.model import Llama
from minillm.transformer.ops import rms_norm, softmax
from minillm.transformer.rope import rope_table, rotate_halves, rotate_interleaved

show(you_are_here())

# %% [markdown]
# ## From ids to logits
#
# The whole model is short. Look up a row for each token, run the blocks one after the other, normalise once more, and
# compute a score for every token of the vocabulary.

# %%
show_source(Llama.embed, Llama.stream, Llama.hidden, Llama.last_norm, Llama.head, Llama.forward)

# %%
model = minillm.load("default", dtype="float64")
config = model.config
ids = model.tokenizer.encode("Tom gave Lily a red ball.")
cos, sin = rope_table(config.rope, len(ids), model.dtype)

h = model.embed_tokens[ids]  # (T, D)
for layer in model.layers:
    h = block(h, layer, Positions(0, ((cos, sin),)), minillm.swiglu, lambda name, value: value)
logits = linear(rms_norm(h, model.norm, config.rms_norm_eps), model.lm_head)  # (T, V)

assert np.array_equal(logits, model.forward(ids))
best = np.argsort(-logits[-1])[:5]
rows = [{"next token": repr(model.tokenizer.decode([i])), "probability": softmax(logits[-1])[i]}
        for i in best]  # fmt: skip
print("Tom gave Lily a red ball. ...")
print(text_table(rows, keys_as_headings({"next token": "", "probability": ".1%"})))

# %% [markdown]
# The last matrix, the *head*, has one row per token of the vocabulary, exactly like the embedding. Small models often
# save this matrix: they use the embedding matrix as the head (a *tied* head). A token is then a likely next token when
# its embedding points in the same direction as the last row of the stream.

# %%
print("tied, says the config:", config.tie_word_embeddings)
assert (model.lm_head is model.embed_tokens) == config.tie_word_embeddings

sizes = {name: math.prod(shape) for name, shape in config.tensor_shapes().items()}
parts = {"embedding (and tied head)": "embed_tokens", "attention": "self_attn",
         "feed-forward": "mlp", "norms": "norm"}  # fmt: skip
rows = [{"part": part, "parameters": sum(size for name, size in sizes.items() if key in name)}
        for part, key in parts.items()]  # fmt: skip
rows = [row | {"share": row["parameters"] / sum(sizes.values())} for row in rows]
print(text_table(rows, keys_as_headings({"part": "", "parameters": ",d", "share": ".1%"})))

# %% [markdown]
# ### Exercise 03.1: count the parameters
# difficulty ●●○○○ · 10 minutes
#
# Goal: compute the size of the model from `config.json` alone. `my_parameters(config)` gives the number of weights of a
# Llama (no biases). Use `config.vocab_size`, `.hidden_size`, `.intermediate_size`, `.num_hidden_layers`,
# `.num_attention_heads`, `.num_key_value_heads`, `.head_dim`, `.tie_word_embeddings`.
#
# <details><summary>Hint</summary>
# One block has two norms of D, queries H·d by D, keys and values K·d by D each, the output D by H·d, and three FFN
# matrices of F by D. Then there is the embedding V by D, once or twice, and one last norm.
# </details>


# %% tags=["exercise"]
def my_parameters(config: ModelConfig) -> int:
    """Number of weights of a Llama without biases."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    one_block = 2 * D + (2 * queries + 2 * keys) * D + 3 * F * D
    return config.num_hidden_layers * one_block + D + V * D * (1 if config.tie_word_embeddings else 2)


# %% tags=["check"]
def parameters_in_the_file(config):
    return sum(math.prod(shape) for shape in config.tensor_shapes().values())


check("03.1", my_parameters, parameters_in_the_file, [
    (config,),
    (replace(config, tie_word_embeddings=False),),
    (replace(config, num_key_value_heads=1),),
    (replace(config, head_dim=2 * config.head_dim),),  # the heads together need not be as wide as the hidden state
    (replace(config, num_hidden_layers=2, intermediate_size=100),),
    (replace(config, vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
             num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False),),  # Llama 3 8B
])  # fmt: skip

# %% [markdown]
# ## A second opinion: the same model without NumPy
#
# Is our model right? We cannot tell from the text that it writes. We need a second implementation that shares no code
# with the first. So here is Llama again in plain Python: no arrays, only lists and loops. It is slow, but every step
# can be checked by hand. First come the small functions, each for one token.


# %%
def matrix(rows, x):
    """Each row of a matrix times the vector x."""
    return [math.fsum(w * value for w, value in zip(row, x, strict=True)) for row in rows]


def added(x, y):
    return [a + b for a, b in zip(x, y, strict=True)]


def norm(x, weight, eps):
    root = math.sqrt(math.fsum(value * value for value in x) / len(x) + eps)
    return [w * value / root for w, value in zip(weight, x, strict=True)]


def turn(x, position, theta):
    """RoPE of one head: the pair (j, j + d/2) is a complex number, and rotating it is a multiplication."""
    half = len(x) // 2
    angles = [position * theta ** (-j / half) for j in range(half)]
    turned = [complex(x[j], x[j + half]) * cmath.rect(1, angle) for j, angle in enumerate(angles)]
    return [z.real for z in turned] + [z.imag for z in turned]


def look(q, keys, values):
    """One head of one token: its attention weights for the tokens so far, and the weighted sum of their values."""
    scores = [matrix([k], q)[0] / math.sqrt(len(q)) for k in keys]
    powers = [math.exp(score - max(scores)) for score in scores]
    shares = [power / math.fsum(powers) for power in powers]
    return shares, [math.fsum(s * v[n] for s, v in zip(shares, values, strict=True)) for n in range(len(q))]


# %% [markdown]
# Now the model. It reads one token after the other. A token looks only at the keys that exist already, so no mask is
# needed. `keep` stores every intermediate result under the name that the package uses.


# %%
def plain_llama(config, weights, ids) -> dict[str, np.ndarray]:
    """Every step of a forward pass, with lists and loops. For a Llama without biases."""
    W = {name.removesuffix(".weight"): array.tolist() for name, array in weights.items()}
    eps, theta, d = config.rms_norm_eps, config.rope.theta, config.head_dim
    H, group = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    steps = {name: [] for name in step_names(config.num_hidden_layers)}

    def keep(name, value):
        steps[name].append(value)
        return value

    def in_heads(row):
        return [row[i : i + d] for i in range(0, len(row), d)]

    stream = [keep("embed", W["model.embed_tokens"][i]) for i in ids]
    for i in range(config.num_hidden_layers):
        block, here = f"model.layers.{i}.", f"blocks.{i}."
        attn, mlp = block + "self_attn.", block + "mlp."
        keys, values = [[] for _ in range(H)], [[] for _ in range(H)]
        for t, h in enumerate(stream):
            keep(here + "resid_pre", h)
            x = keep(here + "attn.norm", norm(h, W[block + "input_layernorm"], eps))
            q = keep(here + "attn.q", in_heads(matrix(W[attn + "q_proj"], x)))
            k = keep(here + "attn.k", in_heads(matrix(W[attn + "k_proj"], x)))
            v = keep(here + "attn.v", in_heads(matrix(W[attn + "v_proj"], x)))
            q = keep(here + "attn.rot_q", [turn(head, t, theta) for head in q])
            k = keep(here + "attn.rot_k", [turn(head, t, theta) for head in k])
            seen = []
            for head in range(H):
                keys[head].append(k[head // group])
                values[head].append(v[head // group])
                seen.append(look(q[head], keys[head], values[head]))
            unseen = [0.0] * (len(ids) - t - 1)
            keep(here + "attn.pattern", [shares + unseen for shares, _ in seen])
            z = keep(here + "attn.z", [mix for _, mix in seen])
            out = keep(here + "attn.out", matrix(W[attn + "o_proj"], sum(z, [])))
            h = keep(here + "resid_mid", added(h, out))

            x = keep(here + "mlp.norm", norm(h, W[block + "post_attention_layernorm"], eps))
            gate_pre = keep(here + "mlp.gate_pre", matrix(W[mlp + "gate_proj"], x))
            gate = keep(here + "mlp.gate", [g / (1 + math.exp(-g)) for g in gate_pre])
            up = keep(here + "mlp.up", matrix(W[mlp + "up_proj"], x))
            mid = keep(here + "mlp.mid", [a * b for a, b in zip(gate, up, strict=True)])
            out = keep(here + "mlp.out", matrix(W[mlp + "down_proj"], mid))
            stream[t] = keep(here + "resid_post", added(h, out))
    for h in stream:
        x = keep("final_norm", norm(h, W["model.norm"], eps))
        keep("logits", matrix(W.get("lm_head", W["model.embed_tokens"]), x))

    arrays = {name: np.array(values) for name, values in steps.items() if values}  # no attn.scores
    return {name: a.transpose(1, 0, 2) if name.endswith("pattern") else a for name, a in arrays.items()}


weights = load_weights(model.folder, config, np.float64)
plain = plain_llama(config, weights, ids)
print(f"{len(plain)} steps computed with Python numbers alone")

# %% [markdown]
# Now the tool of this notebook. `compare` goes through two traces in the order of execution. For each step it divides
# the largest difference by the largest value. It names the first step for which this is larger than the tolerance.

# %%
with Trace() as healthy:
    model.forward(ids, tap=healthy)

result = compare(healthy, plain)
print(str(result).splitlines()[-1], f"(tolerance {result.tolerance:g})")
assert result.first is None and len(plain) == len(healthy) - config.num_hidden_layers  # all but the scores
show(error_per_step(result))

# %% [markdown]
# The two agree to about the last digit of a `float64`. They do not agree *exactly*, and that is fine. They add the same
# numbers in another order, and each addition rounds.

# %%
a, b, c = 0.1, 0.2, 0.3
print("0.1 + 0.2 + 0.3 from the left: ", repr((a + b) + c))
print("0.1 + 0.2 + 0.3 from the right:", repr(a + (b + c)))
assert (a + b) + c != a + (b + c)

# %% [markdown]
# ## How close is close enough?
#
# It depends on the precision of the numbers. The same model in `float32` has fewer digits, so the same comparison finds
# larger differences:

# %%
with Trace() as again:
    model.forward(ids, tap=again)
with Trace() as single:
    minillm.load("default", dtype="float32").forward(ids, tap=single)


def largest(ours, theirs) -> float:
    """The largest relative difference over all steps that both have."""
    return max(row.relative for row in compare(ours, theirs).rows if row.status != "missing")


ladder = [
    ("the same code, run twice", largest(again, healthy), 0.0),
    ("float64, other order of sums", largest(healthy, plain), 1e-10),
    ("float32 against float64", largest(single, healthy), 1e-5),
]
ladder = [dict(zip(("what", "largest difference", "we ask for"), rung, strict=True)) for rung in ladder]
print(text_table(ladder, keys_as_headings({"what": "", "largest difference": ".0e", "we ask for": ".0e"})))
for rung in ladder:
    assert rung["largest difference"] <= rung["we ask for"]
print()
for dtype in (np.float64, np.float32):
    print(f"one rounding of a {dtype.__name__}: {np.finfo(dtype).eps:.0e}")

# %%
show(error_per_step(compare(single, healthy)))

# %% [markdown]
# Why do we use `float64` at all, if the model runs in `float32`? Because rounding can hide a mistake. Below, the `eps`
# of every norm is wrong, first by very little, then by more and more. Which comparison notices it?

# %%
rows = []
for factor in (1.0, 1.0001, 1.1, 100.0):
    wrong = replace(config, rms_norm_eps=config.rms_norm_eps * factor)
    row = {"eps times": factor}
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-10)):
        with Trace() as trace:
            Llama(wrong, {name: a.astype(dtype) for name, a in weights.items()}).forward(ids, tap=trace)
        row[dtype] = compare(trace, healthy, tolerance).first or "nothing found"
    rows.append(row)
print(text_table(rows, keys_as_headings({"eps times": "g", "float32": "", "float64": ""})))
assert rows[0]["float64"] == rows[1]["float32"] == "nothing found"
assert all(row["float64"] == "blocks.0.attn.norm" for row in rows[1:])

# %% [markdown]
# So the rule: look for mistakes in `float64`, where a difference above the tolerance means a mistake in the
# mathematics. Then check once that `float32` is as close as rounding allows.
#
# ## And PyTorch?
#
# The project keeps files of every step of small random models, computed by PyTorch in `float64`. You do not need
# PyTorch to read them. We load a model's weights from such a file, run minillm, and compare.

# %%
places = [Path.cwd(), *Path.cwd().parents, *Path(minillm.__file__).parents]
found = [place / "tests" / "goldens" for place in places if (place / "tests" / "goldens").is_dir()]

if not found:
    print("the files of the project's tests are not here: open this notebook in a checkout of the repository")
else:
    manifest = json.loads((found[0] / "manifest.json").read_text(encoding="utf-8"))
    with np.load(found[0] / "llama.npz") as file:
        arrays = {key: file[key] for key in file.files}
    by_torch = {key[5:]: a for key, a in arrays.items() if key.startswith("step:")}
    tiny_weights = {key[7:]: a.astype(float) for key, a in arrays.items() if key.startswith("weight:")}
    tiny = Llama(ModelConfig.from_dict(manifest["cases"]["llama"]["config"]), tiny_weights)
    with Trace() as trace:
        tiny.forward(arrays["ids"], tap=trace)
    against_torch = compare(trace, by_torch)
    print("PyTorch", manifest["made_by"]["torch"], "·", str(against_torch).splitlines()[-1])
    assert against_torch.first is None and list(by_torch) == list(trace)

# %% [markdown]
# If PyTorch and transformers are installed, the next cell runs the model of this notebook with them, in `float32`. The
# hidden states after each block and the logits must agree.

# %%
if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
    print("PyTorch and transformers are not installed: skipped")
else:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            model.folder, dtype=torch.float32, attn_implementation="eager"
        )(torch.tensor([ids]), output_hidden_states=True)
    between = [f"blocks.{i}.resid_post" for i in range(config.num_hidden_layers - 1)]
    names = ["embed", *between, "final_norm"]
    reference = {name: h[0].numpy() for name, h in zip(names, theirs.hidden_states, strict=True)}
    reference["logits"] = theirs.logits[0].numpy()
    published = compare({name: single[name] for name in reference}, reference)
    print(published)
    assert published.first is None
    assert np.array_equal(reference["logits"].argmax(-1), logits.argmax(-1))  # the same next tokens

# %% [markdown]
# ## Four models with a bug
#
# Now we look for bugs. The next cell makes four copies of our model and puts one mistake into each: a wrong `eps` in
# the norms, the wrong pairs in RoPE, a mask that is off by one, a head that should be tied but is not. We call the
# copies *patients*: A, B, C and D, in no particular order. **Run the cell, but do not read it yet.**


# %% tags=["folded"]
def copy_of_the_model(edits=None, changes=None, other_weights=None):
    """A function ids -> Trace of a model with edited steps, a changed config, or other weights."""
    copy = Llama(replace(config, **changes or {}), weights | (other_weights or {}), model.folder)

    def forward(ids) -> Trace:
        with Trace(edits=edits) as trace:
            copy.forward(ids, tap=trace)
        return trace

    return forward


def wrong_pairs(turned):
    """Undo the rotation of halves, and rotate neighbours instead."""
    cos, sin = rope_table(config.rope, len(turned), turned.dtype)
    return rotate_interleaved(rotate_halves(turned, cos, -sin), cos, sin)


def mask_off_by_one():
    """Edits that remember the scores and mask them again, with one future position left visible."""
    seen = {}

    def remember(scores):
        seen["scores"] = scores
        return scores

    def mask_again(pattern):
        T, S = pattern.shape[1:]
        return softmax(np.where(np.tri(T, S, k=1, dtype=bool), seen["scores"], -np.inf))

    return {"blocks.*.attn.scores": remember, "blocks.*.attn.pattern": mask_again}


embedding = weights["model.embed_tokens.weight"]
another_head = np.random.default_rng(4).permutation(embedding)  # its rows in disorder
patients = {
    "A": copy_of_the_model(mask_off_by_one()),
    "B": copy_of_the_model(changes={"rms_norm_eps": config.rms_norm_eps / 10}),
    "C": copy_of_the_model(other_weights={"lm_head.weight": another_head}),
    "D": copy_of_the_model({"blocks.*.attn.rot_[qk]": wrong_pairs}),
}
assert compare(patients["A"](ids), plain).first == "blocks.0.attn.pattern"
assert compare(patients["B"](ids), plain).first == "blocks.0.attn.norm"
assert compare(patients["C"](ids), plain).first == "logits"
assert compare(patients["D"](ids), plain).first == "blocks.0.attn.rot_q"

# %% [markdown]
# First, do what most people do: let the models write, and read the text. Would you have known which of them have a bug?
# And would you know *where* to look in the code?


# %%
def continuation(forward, ids: list[int], count: int) -> str:
    """Greedy text, one full pass per token."""
    written = list(ids)
    for _ in range(count):
        written.append(int(forward(written)["logits"][-1].argmax()))
    return model.tokenizer.decode(written)[len(model.tokenizer.decode(ids)) :]


rows = [{"model": "healthy", "writes": continuation(copy_of_the_model(), ids, 16)}]
rows += [{"model": name, "writes": continuation(patient, ids, 16)} for name, patient in patients.items()]
printed = [row | {"writes": repr(row["writes"])} for row in rows]
print(text_table(printed, keys_as_headings({"model": "", "writes": ""})))

same = sum(row["writes"] == rows[0]["writes"] for row in rows[1:])
print(f"\n{same} of the 4 patients write, word for word, what the healthy model writes")

# %% [markdown]
# ### Exercise 03.2: the core of `compare`
# difficulty ●●○○○ · 10 minutes
#
# Goal: write this tool yourself. `my_first_difference(ours, theirs, tolerance)` takes two mappings from step names to
# arrays of equal shapes. It goes through the names in the order of `ours` and skips those that `theirs` does not have.
# It gives the name of the first step with `max|ours - theirs| / max|theirs| > tolerance`, or `None` where all agree.
#
# <details><summary>Hint</summary>
# Write a loop over <code>ours.items()</code> with an early <code>return</code> where a step differs. After the loop,
# <code>return None</code>.
# </details>


# %% tags=["exercise"]
def my_first_difference(ours: dict, theirs: dict, tolerance: float) -> str | None:
    """The first step of ours that is not within the tolerance of theirs, or None."""
    for name, value in ours.items():
        if name in theirs:
            difference = np.abs(value - theirs[name]).max()
            if difference / np.abs(theirs[name]).max() > tolerance:
                return name
    return None


# %% tags=["check"]
def first_by_the_package(ours, theirs, tolerance):
    return compare(ours, theirs, tolerance).first


small = {"x": np.array([1.0, 2.0]), "y": np.array([[3.0], [100.0]]), "z": np.array([0.5])}
check("03.2", my_first_difference, first_by_the_package, [
    (small, small, 1e-10),  # all agree
    (small, small | {"z": np.array([0.6])}, 1e-10),  # the last one
    (small, small | {"z": np.array([0.4])}, 1e-10),  # and in the other direction
    (small, small | {"y": np.array([[3.1], [100.0]])}, 1e-2),  # small beside the largest value
    (small, small | {"y": np.array([[3.1], [100.0]])}, 1e-4),  # and not small enough
    ({"x": np.array([1.0, -4.0])}, {"x": np.array([1.0, -2.0])}, 1.0),  # as large as the tolerance, and not above it
    (small, {"z": np.array([0.6]), "y": np.array([[9.0], [1.0]])}, 1e-10),  # another order, one is missing
    (dict(healthy), plain, 1e-10),  # our model and the plain one: all agree
    (dict(single), plain, 1e-10),  # float32 cannot
])  # fmt: skip

# %% [markdown]
# ### Exercise 03.3: four diagnoses
# difficulty ●●●○○ · 10 minutes
#
# Goal: find the first wrong step of each patient. `plain` is the reference. `my_diagnosis(patient)` takes `"A"`, `"B"`,
# `"C"` or `"D"` and gives the name of a step, for example `"blocks.3.mlp.gate"`. Then decide which of the four mistakes
# it must be, and which line of the source you would open.
#
# <details><summary>Hint</summary>
# <code>print(compare(patients["A"](ids), plain))</code> shows all rows, and its last lines show what you need. The
# answer may be as simple as <code>return {"A": "...", "B": "...", "C": "...", "D": "..."}[patient]</code>.
# </details>


# %% tags=["exercise"]
def my_diagnosis(patient: str) -> str:
    """The first step of a patient that differs from the healthy model's."""
    answers = {
        "A": "blocks.0.attn.pattern",  # the scores agree, the shares do not: the mask
        "B": "blocks.0.attn.norm",  # the very first norm: eps
        "C": "logits",  # everything agrees but the last product: the head
        "D": "blocks.0.attn.rot_q",  # q agrees, the turned q does not: RoPE
    }
    return answers[patient]


# %% tags=["check"]
def diagnosis_by_the_package(patient):
    return compare(patients[patient](ids), plain).first


check("03.3", my_diagnosis, diagnosis_by_the_package, [("A",), ("B",), ("C",), ("D",)])

# %% [markdown]
# ## What the curve of a bug looks like
#
# Now look at the figure of one patient. All steps before the mistake differ only by rounding. At one step the error
# jumps up. The steps after it are wrong, too, but only because they were computed from wrong values. **Always repair
# the first wrong step.**

# %%
show(error_per_step(compare(patients["A"](ids), plain)))

# %% [markdown]
# ## Change something
#
# A test is only as good as its text. Here are the four patients on a text of one token, of two tokens, and on our
# sentence. Try other texts. With a single token there is no rotation (the angle at position 0 is zero) and no later
# token to look at, so two of the mistakes have no effect.

# %%
lengths = (1, 2, len(ids))
rows = []
for name, patient in patients.items():
    row = {"patient": name}
    for length in lengths:
        with Trace() as right:
            model.forward(ids[:length], tap=right)
        row[f"{length} tokens"] = compare(patient(ids[:length]), right).first or "nothing found"
    rows.append(row)
print(text_table(rows, keys_as_headings({"patient": ""} | {f"{length} tokens": "" for length in lengths})))

blind = [row["patient"] for row in rows if row["1 tokens"] == "nothing found"]
assert len(blind) == 2 and all(row["2 tokens"] == row[f"{len(ids)} tokens"] for row in rows)

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face Llama folder here. Choose a small model, because plain Python is slow. For a large
# model, use fewer tokens, or the project's script `weights_scripts/dump_reference.py`, which uses PyTorch.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT, dtype="float64")
    other_ids = other.tokenizer.encode("Tom gave Lily a red ball.")[:4]
    print("tokens:", token_labels(other, other_ids))
    with Trace() as ours:
        other.forward(other_ids, tap=ours)
    other_weights = load_weights(other.folder, other.config, np.float64)
    theirs = plain_llama(other.config, other_weights, other_ids)
    print(str(compare(ours, theirs)).splitlines()[-1])
    show(error_per_step(compare(ours, theirs)))

# %% [markdown]
# ## Recap
#
# A model is an embedding, blocks, a norm and a head; the head may be the embedding again. To know whether an
# implementation is right, compare it with a second one: every step in `float64`, in the order of execution, on a text
# of more than one token. Differences at rounding level come from the order of additions. The mistake is at the first
# step whose difference is far above rounding level.
#
# ## What next
#
# [04 · Generation and the KV cache](04_generation_and_the_kv_cache.ipynb): from logits to text.
#
# **Papers.** Llama: arXiv 2302.13971, section 2.2. Tied embeddings: Press and Wolf 2017, arXiv 1608.05859, section 3.
# Rounding: Goldberg 1991, "What every computer scientist should know about floating-point arithmetic".
#
# **Source.** [divergence.py](../minillm/divergence.py) (`compare`), [model.py](../minillm/transformer/model.py),
# [torch_reference.py](../weights_scripts/torch_reference.py) (the same pass in PyTorch), and
# [test_planted_bugs.py](../tests/transformer/test_planted_bugs.py): many more mistakes, each found at its step.
