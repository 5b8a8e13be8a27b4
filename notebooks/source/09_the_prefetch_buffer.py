# %% [markdown]
# # 09 · The prefetch buffer
#
# For each token most neurons need not be loaded, if a predictor says which ones are needed (notebooks 07 and 08). Now
# the weights are in a *slow* memory: a disk, or the main memory of a computer with a GPU. A small *fast* memory, the
# buffer, holds some of them. Which neurons should it keep?
#
# Afterwards you can
#
# 1. follow one token through a buffer, event by event: hit, miss, keep, evict, prefetch, waste;
# 2. judge an eviction policy by comparing it with LRU, with a random set, and with the optimum;
# 3. say how many bytes and how much time prediction saves, and from which buffer size on it no longer matters.

# %%
from itertools import combinations

import numpy as np

import minillm
from minillm.course.check import check
from minillm.course.notebook import show_source
from minillm.predictors.workshop import Workshop
from minillm.prefetch.buffer import PrefetchBuffer
from minillm.prefetch.clock import DEVICES, Device, simulate, work_of
from minillm.prefetch.eviction import belady, lru
from minillm.prefetch.feedforward import BufferedFFN
from minillm.prefetch.record import Recorder, frequencies
from minillm.prefetch.replay import ReplaySettings, enough, kept_history, replay, traffic_of
from minillm.prefetch.traffic import EVENT_COLUMNS, event_rows
from minillm.show.display import show
from minillm.show.explain_values import neuron_raster
from minillm.show.labels import token_labels
from minillm.show.map import you_are_here
from minillm.show.results_buffer import bytes_by_capacity, gantt, hit_rate_by_capacity
from minillm.show.stepper import buffer_stepper
from minillm.sparsity.sparse import policy_selector
from minillm.study.buffers import ALL, OWN, buffer_rows, plans_of, when_it_matters
from minillm.tables import keys_as_headings, text_table
from minillm.transformer.texts import Sample, as_documents
from minillm.units import in_bytes, in_seconds

show(you_are_here("prefetch"))

# %% [markdown]
# ## One token, by hand
#
# Take one layer with eight neurons, and a fast memory with room for three. There are four tokens, and each needs two or
# three neurons. `follow` gives the buffer this script, and `step()` advances it by one event.

# %%
needs = [[0, 1, 2], [1, 2, 5], [5, 6], [0, 1]]
trace = np.zeros((4, 1, 8), bool)  # (tokens, layers, neurons)
for t, neurons in enumerate(needs):
    trace[t, 0, neurons] = True

buffer = PrefetchBuffer(layers=1, neurons=8, capacity=3, eviction="lru")
buffer.follow(trace)
while (event := buffer.step()) is not None and event.token < 2:  # two tokens, and one event more
    kept = np.flatnonzero(buffer.held[0]).tolist()
    print(f"token {event.token}  {event.kind:<8}{str(list(event.neurons)):<12}the buffer keeps {kept}")

# %% [markdown]
# At token 0 the buffer is empty. There are three *misses*: these neurons have to be fetched while the layer waits, and
# all three are kept. Token 1 needs neurons 1 and 2 again: two *hits*, which cost nothing. Neuron 5 is a miss. There is
# room for three neurons only, so one must be evicted: neuron 0, the least recently used. This eviction policy is called
# LRU. Here is the rest of the script:

# %%
buffer.run()
print(text_table(event_rows(buffer.events), EVENT_COLUMNS))
traffic = buffer.traffic()
print(f"\n{traffic.hit.sum()} hits of {traffic.requested.sum()} requests: hit rate {traffic.hit_rate:.2f}")

asked = trace.sum()
assert traffic.requested.sum() == asked == traffic.hit.sum() + traffic.missed.sum()
assert traffic.hit_rate == 0.4

# %% [markdown]
# Token 3 shows a weakness of LRU: neuron 0 was evicted shortly before it was needed again. Could we have known this in
# advance? This is the question of this notebook. All eviction policies of the buffer have the same form: they give each
# neuron a *value*, and keep the neurons with the largest values.

# %%
show_source(PrefetchBuffer.settle, lru)

# %% [markdown]
# ## Prefetching
#
# A *prefetch* loads neurons before they are requested. If they are needed, they have already *arrived*. If not, the
# work was *wasted*. Below there are two layers, and a guess for each layer. The guessed neurons are fetched while the
# layer before is computed. Press the buttons, and watch which neurons are on their way.

# %%
rng = np.random.default_rng(0)
two_layers = rng.random((6, 2, 8)) < 0.35
guesses = two_layers ^ (rng.random(two_layers.shape) < 0.1)  # mostly right
stepped = PrefetchBuffer(layers=2, neurons=8, capacity=3)
stepped.follow(two_layers, guesses)
buffer_stepper(stepped, events=12)

# %%
stepped.run()
without = PrefetchBuffer(layers=2, neurons=8, capacity=3)
without.follow(two_layers)
without.run()
a, b = stepped.traffic(), without.traffic()
columns = {"": "", "hits": "d", "arrived": "d", "misses": "d", "wasted": "d", "fetched in all": "d"}
rows = [
    {"": name, "hits": x.hit.sum(), "arrived": x.arrived.sum(), "misses": x.missed.sum(), "wasted": x.wasted.sum(),
     "fetched in all": x.prefetched.sum() + x.missed.sum()}
    for name, x in (("without guesses", b), ("with guesses", a))
]  # fmt: skip
print(text_table(rows, keys_as_headings(columns)))

assert a.hit.sum() == b.hit.sum()  # a guess changes when something is fetched, never what is kept
assert a.missed.sum() < b.missed.sum() and a.prefetched.sum() + a.missed.sum() >= b.missed.sum()

# %% [markdown]
# **Prefetching does not raise the hit rate, and it never lowers the number of bytes.** It turns misses, for which the
# layer waits, into arrivals, for which it need not wait. So prefetching is measured by stalls and by bytes. Remember
# this when a system reports only its hit rate.
#
# ## A real trace
#
# Which neurons does a real text need? We record them once, with policy `mid` and half of the neurons.

# %%
model = minillm.load("default")
documents = as_documents(minillm.embedded_text("calibration"))
training, held = documents[:5], documents[5:7]
test = as_documents(minillm.embedded_text("test"))[:1]

thresholds = minillm.calibrate(model, held, policy="mid", sparsity=0.5, by="neuron")


def recorded(texts: list[str]) -> np.ndarray:
    """The neurons that each token needs in each layer: bool (T, L, N)."""
    ffn = minillm.sparse_ffn(model, thresholds)
    recorder = Recorder.of(model)
    minillm.perplexity(model, texts, ffn=ffn, tap=recorder)
    return recorder.needed


needed, other_text = recorded(test), recorded(training)
tokens, layers, neurons = needed.shape
print(f"{tokens} tokens, {layers} layers, {neurons} neurons; {needed.mean():.0%} of them needed")
assert abs(needed.mean() - 0.5) < 0.05

labels = token_labels(model, model.tokenizer.encode(test[0])[:30])
show(neuron_raster(needed[:30, 3, :120], labels))

# %% [markdown]
# A buffer helps only if neurons are needed repeatedly. How much repetition is there? The table shows which share of the
# neurons that a token needs was also needed by the previous token. For random sets of the same size, this share would
# be about the density.

# %%
both = (needed[1:] & needed[:-1]).sum(axis=(0, 2)) / needed[1:].sum(axis=(0, 2))  # (L,)
rows = [{"layer": i, "needed just before": share, "density": needed[:, i].mean()} for i, share in enumerate(both)]
print(text_table(rows, keys_as_headings({"layer": "d", "needed just before": ".1%", "density": ".1%"})))
gain = float(both.mean() - needed.mean())
print(f"\nmore than chance: {gain:+.1%}")
assert gain < 0.3

# %% [markdown]
# ### Exercise 09.1: the least recently used
# difficulty ●●●○○ · 20 minutes
#
# Goal: LRU for one layer. `my_lru(trace, capacity)` takes a trace `(T, N)` of bools and gives the number of hits of
# each token, `(T,)`. The buffer is empty at first. After each token, take the neurons that were kept or just needed,
# and keep the `capacity` most recently used of them. Among equally recent ones, prefer those that were kept before,
# then those with the lower index.
#
# <details><summary>Hint</summary>
# Keep an array <code>last</code>, the last token that needed each neuron, and a bool array <code>kept</code>. Sort the
# candidates by <code>(-last[j], not kept[j], j)</code> and take the first <code>capacity</code>.
# </details>


# %% tags=["exercise"]
def my_lru(trace: np.ndarray, capacity: int) -> np.ndarray:
    """Number of hits of each token in an LRU buffer: trace (T, N) bool -> hits (T,)."""
    last, kept, hits = np.full(trace.shape[1], -1), np.zeros(trace.shape[1], bool), []
    for t, wanted in enumerate(trace):
        hits.append(int((wanted & kept).sum()))
        last[wanted] = t
        order = sorted(np.flatnonzero(wanted | kept), key=lambda j: (-last[j], not kept[j], j))
        kept = np.zeros(trace.shape[1], bool)
        kept[order[:capacity]] = True
    return np.array(hits)


# %% tags=["check"]
def hits_of(trace: np.ndarray, capacity: int) -> np.ndarray:
    """The specification: the package's replay of one layer."""
    layer = trace[:, None, :]
    return traffic_of(layer, kept_history(layer, capacity, "lru")).hit[:, 0]


check("09.1", my_lru, hits_of, [
    (trace[:, 0], 3),  # the script above
    (trace[:, 0], 0),  # no buffer
    (trace[:, 0], 8),  # everything fits: only the first use of a neuron is a miss
    (two_layers[:, 0], 2),
    (needed[:60, 3], 100),  # a layer of the model
])  # fmt: skip

# %% [markdown]
# ## What is a good hit rate?
#
# Suppose the buffer keeps a *fixed* set of C neurons, chosen at random from the N. Which share of the requests are
# hits, on average over all possible sets?
#
# ### Exercise 09.2: the hit rate of a random set
# difficulty ●●○○○ · 10 minutes
#
# Goal: `my_mean_hit_rate(trace, capacity)` takes a trace `(T, N)` and gives the hit rate (hits divided by requests),
# averaged over all sets of `capacity` neurons. First try all sets; then look for a formula without a loop.
#
# <details><summary>Hint</summary>
# Which share of all sets contains one given neuron? This share is the same for every neuron. So does the trace matter?
# </details>


# %% tags=["exercise"]
def my_mean_hit_rate(trace: np.ndarray, capacity: int) -> float:
    """The mean hit rate over all fixed sets of ``capacity`` neurons: trace (T, N) bool -> a share."""
    neurons = trace.shape[1]
    return capacity / neurons  # whatever the trace: every neuron is in that share of the sets


# %% tags=["check"]
def mean_hit_rate(trace: np.ndarray, capacity: int) -> float:
    """The specification: every set."""
    sets = combinations(range(trace.shape[1]), capacity)
    return float(np.mean([trace[:, list(kept)].sum() / trace.sum() for kept in sets]))


check("09.2", my_mean_hit_rate, mean_hit_rate, [
    (trace[:, 0], 3),
    (two_layers[:, 0], 4),
    (two_layers[:, 1], 8),
    (np.eye(6, dtype=bool)[[0, 0, 0, 0, 0, 3]], 2),  # one neuron is asked for nearly always
])  # fmt: skip

# %% [markdown]
# **Capacity divided by N is the baseline of every hit rate.** "Half of the requests are hits" means nothing if half of
# the neurons are in the buffer. And LRU? If the requests are uniform and independent, the past says nothing about the
# future, and LRU has the same hit rate. Try it:

# %%
uniform = np.zeros((4000, 1, 40), bool)  # one request per token
uniform[np.arange(4000), 0, rng.integers(40, size=4000)] = True
for capacity in (4, 10, 20, 30):
    found = traffic_of(uniform, kept_history(uniform, capacity, "lru"))
    rate = found.hit[200:].sum() / found.requested[200:].sum()  # warm by then
    print(f"capacity {capacity:>2} of 40: LRU hits {rate:.3f}, capacity / N is {capacity / 40:.3f}")
    assert abs(rate - capacity / 40) < 0.03

# %% [markdown]
# ## The optimum
#
# The optimum is the upper bound. If the whole future is known, the best policy is Belady's (1966): keep the neurons
# that are needed *soonest*, and do not keep neurons that are never needed again. On a recorded trace the future is
# known.

# %%
show_source(belady)

# %% [markdown]
# ### Exercise 09.3: Belady's rule
# difficulty ●●●●○ · 20 minutes
#
# Goal: `my_belady(trace, capacity)` takes a trace `(T, N)` and gives the total number of hits of the best possible
# policy. After each token it may keep or evict any neuron that it holds or that was just needed.
#
# <details><summary>Hint</summary>
# After token t, the next use of neuron j is the first row of <code>trace[t + 1:]</code> in which it is True. Sort the
# candidates that have one by that row, and keep the first <code>capacity</code>.
# </details>


# %% tags=["exercise"]
def my_belady(trace: np.ndarray, capacity: int) -> int:
    """The largest number of hits of any eviction policy: trace (T, N) bool -> a number."""
    kept, hits = np.zeros(trace.shape[1], bool), 0
    for t, wanted in enumerate(trace):
        hits += int((wanted & kept).sum())
        future = trace[t + 1 :]
        used = future.any(axis=0)  # (N,)
        soon = [(future[:, j].argmax(), j) for j in np.flatnonzero((wanted | kept) & used)]
        kept = np.zeros(trace.shape[1], bool)
        kept[[j for _, j in sorted(soon)[:capacity]]] = True
    return hits


# %% tags=["check"]
def most_hits(trace: np.ndarray, capacity: int) -> int:
    """The specification: the package's belady."""
    layer = trace[:, None, :]
    return int(traffic_of(layer, kept_history(layer, capacity, belady(layer))).hit.sum())


check("09.3", my_belady, most_hits, [
    (trace[:, 0], 3),  # the script above
    (trace[:, 0], 1),
    (two_layers[:, 1], 4),
    (rng.random((30, 10)) < 0.3, 4),
    (needed[:40, 3], 100),  # a layer of the model
])  # fmt: skip

# %% [markdown]
# ## Replay: every policy, every size
#
# The neurons that a token needs do not depend on the buffer. So the recorded trace can be replayed with any policy and
# any size, without the model. Besides LRU we use LFU (keep the most frequently used), a window (LLM in a Flash: keep
# what the last four tokens needed), a hot set (PowerInfer: keep the most frequent neurons of *another* text), a random
# set, and Belady.

# %%
work = work_of(model, bytes_per_number=2)  # the checkpoint stores bfloat16
settings = ReplaySettings(device="laptop NVMe", hot_frequencies=frequencies(other_text))
replayed = list(replay(needed, work, [0, 38, 96, 192, 288, neurons], settings))
show(hit_rate_by_capacity(replayed))

# %%
show(bytes_by_capacity(replayed))

# %%
quarter = {row["keeper"]: row for row in replayed if row["capacity"] == 96}
columns = {"keeper": ("eviction", ""), "hit_rate": ("hit rate", ".3f"), "random": ("random", ".3f"),
           "bytes_per_token": ("bytes per token", ",.0f")}  # fmt: skip
print("a buffer of a quarter of the neurons")
print(text_table(list(quarter.values()), columns))
print(f"dense: {replayed[0]['dense_bytes']:,} bytes")

for row in replayed:
    assert row["hit_rate"] <= row["belady"] + 1e-12  # the optimum is one
    assert abs(row["random"] - row["capacity_share"]) < 0.03
best_rule = max(quarter[name]["hit_rate"] for name in ("lru", "lfu", "window-4", "hot"))
assert quarter["belady"]["hit_rate"] - best_rule > best_rule - quarter["random"]["hit_rate"]

# %% [markdown]
# On this model every policy is close to a random set, and the optimum is far from all of them. Half of the neurons are
# active, and they change from token to token, so the past says little about the future. A buffer alone saves about its
# own share of the bytes. **Here the bytes are saved by knowing which neurons are needed at all**: compare the curves at
# capacity 0 with the dense line.
#
# ## Time
#
# Bytes are not yet seconds. `clock.py` simulates the traffic on a device with two units: one computes and one fetches,
# and each does one thing at a time. The numbers of the devices are typical, rounded values; you can use your own.

# %%
rows = [{"name": device.name, "bandwidth": f"{in_bytes(device.bandwidth)}/s", "latency": in_seconds(device.latency),
         "rate": device.rate / 1e9} for device in DEVICES.values()]  # fmt: skip
print(text_table(rows, keys_as_headings({"name": "", "bandwidth": "", "latency": "", "rate": ",.0f"})))
print("\nlatency: of each read; rate: thousands of millions of multiply-adds per second")

# %%
few = needed[:2, :4]  # two tokens, four layers
history = kept_history(few, 96, "lru")
asked_late = traffic_of(few, history)
asked_early = traffic_of(few, history, few)  # with perfect guesses
slow = Device("slow computing", bandwidth=2e9, latency=1e-7, rate=2e9)  # both units take about as long
show(gantt(simulate(asked_late, slow, work).intervals))

# %%
show(gantt(simulate(asked_early, slow, work).intervals))

# %%
rows = []
for device in (slow, *DEVICES.values()):
    late, early = (simulate(found, device, work).figures() for found in (asked_late, asked_early))
    saved = 1 - early["seconds_per_token"] / late["seconds_per_token"]
    rows.append({"device": device.name, "ms per token": 1e3 * late["seconds_per_token"], "stall": late["stall_share"],
                 "stall, guessed": early["stall_share"], "time saved": saved})  # fmt: skip
columns = {"device": "", "ms per token": ".3f"} | dict.fromkeys(("stall", "stall, guessed", "time saved"), ".0%")
print(text_table(rows, keys_as_headings(columns)))

assert rows[0]["time saved"] > 0.1
assert all(row["time saved"] < 0.1 for row in rows[1:])

# %% [markdown]
# The bytes are the same, but the time is different: in the second figure the next layer's neurons are fetched while
# this layer computes. This helps only if computing takes about as long as fetching. On real devices one token needs
# very little computation per byte, so the fetching unit is always busy. **Knowing the neurons early hides almost
# nothing; knowing them at all saves half.**
#
# ## Everything in one table
#
# We compare three sources of knowledge: the oracle (one layer early), a real predictor (the shadow of notebook 07 with
# four bits per weight, known when the layer is reached), and the previous token as a guess for prefetching. The
# baseline has no knowledge: it loads all neurons.

# %%
workshop = Workshop(model, thresholds, training, held)
plans = plans_of(workshop, ["shadow-4", "previous-token", "oracle"], 0.5)
settings = ReplaySettings(shares=(0, 0.25, 0.5, 0.75, 1))
rows = list(buffer_rows(model, thresholds, Sample(test), plans, settings, dropping=plans[1:2]))

columns = keys_as_headings({"way": "", "capacity": "d", "kB": ",.0f"})
columns |= {f"{eviction} kB": (eviction, ",.0f") for eviction in ("lru", "belady", "random")}
columns |= keys_as_headings({"stall ms": ".2f", "perplexity": ".2f"})
waited = [row for row in rows if row["miss"] == "wait"]
print(f"{model.name} on a {rows[0]['device']}, dense perplexity {rows[0]['dense_perplexity']:.2f}")
print("kB: fetched per token; lru, belady, random: the same with these eviction policies and without guesses")
print(text_table([row for row in waited if row["capacity"] in (0, 96, 192)], columns))

at = {(row["way"], row["capacity"]): row for row in waited}
assert at[OWN, 0]["kB"] < 0.6 * at[ALL, 0]["kB"]  # knowing saves about half
assert at["shadow 4-bit", 0]["perplexity"] < 1.05 * at["oracle", 0]["perplexity"]  # the predictor is almost as good
assert at[f"{OWN}, guess: previous-token", 0]["kB"] > at[OWN, 0]["kB"]  # a poor guess costs bytes
assert at["oracle", 96]["stall ms"] < at[OWN, 96]["stall ms"]  # a perfect guess hides what can be hidden
saved = {name: 1 - at["shadow 4-bit", 96][f"{name} kB"] / at["shadow 4-bit", 0]["kB"] for name in ("lru", "random")}
print(f"\nshadow 4-bit, {at['shadow 4-bit', 0]['kB']:,.0f} kB without a buffer: room for a quarter of the neurons")
print(f"saves {saved['lru']:.0%} with LRU, and {saved['random']:.0%} with a random fixed set")
assert saved["lru"] - saved["random"] < 0.05  # it is the size that saves, hardly the choice

# %% [markdown]
# The predictor's own tables must also be in fast memory; `minillm prefetch table` prints their size in a column.
#
# ### Exercise 09.4: when prediction no longer matters
# difficulty ●●○○○ · 10 minutes
#
# Goal: find the smallest capacity at which a guess saves less than 1 % of the time, *there and at every larger
# capacity*. `my_enough(capacities, plain, guessed)` takes capacities in ascending order and the seconds per token
# without and with guesses; it gives a capacity, or None if there is no such capacity.
#
# <details><summary>Hint</summary>
# Start at the largest capacity and go down. Stop at the first one at which <code>guessed &lt; 0.99 * plain</code>.
# </details>


# %% tags=["exercise"]
def my_enough(capacities: list[int], plain: list[float], guessed: list[float]) -> int | None:
    """The capacity from which on a guess saves less than 1 % of the time; None if it saves more at the largest."""
    found = None
    for capacity, slow, fast in reversed(list(zip(capacities, plain, guessed, strict=True))):
        if fast < 0.99 * slow:
            break
        found = capacity
    return found


# %% tags=["check"]
def enough_of(capacities: list[int], plain: list[float], guessed: list[float]) -> int | None:
    """The specification: the package's, from rows."""
    rows = [
        [{"capacity": c, "seconds_per_token": s} for c, s in zip(capacities, times, strict=True)]
        for times in (plain, guessed)
    ]
    return enough(*rows)


of_oracle = [row for row in waited if row["way"] == "oracle"]
check("09.4", my_enough, enough_of, [
    ([0, 10, 20], [3.0, 2.0, 1.0], [2.0, 1.0, 1.0]),
    ([0, 10, 20], [3.0, 2.0, 1.0], [3.0, 1.0, 0.999]),  # it must hold at every larger capacity, too
    ([0, 10, 20], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
    ([0, 10, 20], [3.0, 2.0, 1.0], [3.0, 2.0, 0.9]),
    tuple([row[key] for row in of_oracle] for key in ("capacity", "lru_seconds", "seconds_per_token")),
])  # fmt: skip

# %% [markdown]
# There are two questions here. Does it matter that the neurons are known *early*? And does it matter that they are
# known at all, compared with fetching all neurons that are not in the buffer? The package answers both:

# %%
for sentence in when_it_matters(waited):
    print(f"- {sentence}.")

# %% [markdown]
# ## Skip what is missing
#
# So far the layer waits for every miss, and the output is the same as with the same mask and no buffer. We check this
# with an FFN that computes only from the rows in its fast memory.

# %%
small = PrefetchBuffer(layers, neurons, 96, "lru", log=False)
ids = model.tokenizer.encode(test[0])[:40]
ffn = minillm.sparse_ffn(model, thresholds)
buffered = BufferedFFN(policy_selector(model, thresholds), small)
difference = np.abs(model.forward(ids, ffn=buffered) - model.forward(ids, ffn=ffn)).max()
print(f"largest difference of the logits {difference:.1e}; {buffered.bytes_read:,} bytes copied into the fast memory")
fetched = int(small.traffic().missed.sum())
assert difference < 1e-3  # rounding: another order of the sums
assert buffered.bytes_read == fetched * work_of(model).neuron_bytes  # float32 here, as loaded

# %% [markdown]
# Instead, the layer can continue *without* the missing neurons. Then there is no stall, but the output changes:

# %%
priced = {"misses": "", "capacity": "d", "kB": ",.0f", "stall ms": ".2f", "perplexity": ",.1f"}
of_shadow = [row for row in rows if row["way"] == "shadow 4-bit" and row["capacity"] >= 192]
print(text_table(of_shadow, keys_as_headings(priced)))
dropped = [row for row in rows if row["miss"] == "drop"]
assert dropped[0]["perplexity"] > dropped[-1]["perplexity"] > at["shadow 4-bit", neurons]["perplexity"]

# %% [markdown]
# Even with room for every neuron something is lost: at the beginning the buffer is empty, and each neuron is missing at
# its first use.
#
# ## Change something
#
# Try other policies, another density, or another order of the tokens. Here is a longer window, and the same trace with
# its tokens shuffled. The hit rate of the shuffled trace does not depend on the order of the text.

# %%
shuffled = needed[rng.permutation(tokens)]
rows = []
for name in ("lru", "lfu", "window-2", "window-8"):
    rates = [traffic_of(x, kept_history(x, 96, name)).hit_rate for x in (needed, shuffled)]
    rows.append({"eviction policy": name, "as written": rates[0], "shuffled": rates[1]})
print(text_table(rows, keys_as_headings({"eviction policy": "", "as written": ".3f", "shuffled": ".3f"})))

# %% [markdown]
# ## Your own checkpoint
#
# Put the path of a Hugging Face folder here, and see the same table, with the oracle's mask only.

# %%
CHECKPOINT = ""

if CHECKPOINT:
    other = minillm.load(CHECKPOINT)
    found = minillm.calibrate(other, held, policy="mid", sparsity=0.5, by="neuron")
    rows = list(buffer_rows(other, found, Sample(test, context=256), settings=ReplaySettings(shares=(0, 0.25, 0.5))))
    print(text_table(rows, columns))

# %% [markdown]
# ## In one paragraph
#
# A buffer keeps some neurons in fast memory. A requested neuron that is in the buffer is a hit; any other is fetched
# while the layer waits. An eviction policy lies between a random set, whose hit rate is capacity divided by N, and
# Belady's optimum, which knows the future. Prefetching neither raises the hit rate nor lowers the bytes. It lets
# fetching and computing overlap, as far as there is enough computing. Bytes are saved by knowing which neurons are
# needed at all, until everything fits into the buffer.
#
# **This is the end of the course**, from shapes to prefetching; [the map](map.ipynb) shows all of it. You can continue
# on the command line: `minillm prefetch real` measures the same with a real disk and real seconds, and `minillm
# prefetch blocks` asks whether neighbouring neurons should be fetched together.
#
# **Papers.** The window and bundles of a neuron's rows: LLM in a Flash, arXiv 2312.11514, sections 3.1 and 3.2. Hot and
# cold neurons: PowerInfer, arXiv 2312.12456, section 4. The optimum: Belady, IBM Systems Journal 5 (2), 1966.
#
# **Source.** `minillm/prefetch/buffer.py`, `eviction.py`, `clock.py`, `replay.py`, `feedforward.py`;
# `minillm/study/buffers.py`.
