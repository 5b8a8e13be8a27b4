"""Replay: record once which neurons each token needs, then try every buffer on the record without the model.

What a token needs does not depend on the buffer (as long as misses are waited for), so one pass of the model gives the
trace A (T, L, N), and where a predictor takes part its guesses P (T, L, N), too. Each row then says what one keeper at
one capacity C makes of it, and beside it, from the same contents at the start and without any guess,

    lru       the rule that anybody would try first
    belady    the best that any rule could do (with bypass)
    random    a fixed random set: C / N in the mean, which is what no knowledge at all gives

Guesses change neither what is kept nor the hit rate (buffer.py): compare them in bytes per token and stall. A row with
guesses never moves fewer bytes than belady.

A frequent set is counted on another text than the one replayed: ``frequencies``. Texts follow each other as in one long
session, and the buffer stays warm between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..predictors.ahead import Ahead
from ..predictors.baselines import Chance, PreviousToken, Static
from ..predictors.oracle import Oracle
from ..predictors.protocol import Predictor
from ..predictors.select import sparse_ffn
from ..sparsity.calibrate import Thresholds
from ..transformer.evaluation import pass_over, perplexity
from ..transformer.ffn import FeedForward
from ..transformer.model import Llama, shape_of
from ..transformer.texts import Run
from .buffer import LOOKAHEADS, Keeper, PrefetchBuffer, Traffic, belady, hot, keeper_named, lru, random_set, unpacked
from .clock import Device, Work, device_named, simulate, work_of
from .feedforward import Asked, BufferedFFN, check_role

KEEPERS = ("lru", "lfu", "window-4", "hot", "random", "belady")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of a layer's neurons


# ---- recording -------------------------------------------------------------------------------------------------------


class Recorder:
    """A tap that writes down what a sparse FFN needs and what was guessed, eight neurons to a byte.

    role: what the mask is for (feedforward.py); in the role "prefetch" the model goes on with the true masks. Works for
    ``generate``, ``perplexity`` and any pass; several texts are joined.
    """

    def __init__(self, layers: int, neurons: int, role: str = "select"):
        self.neurons = neurons
        self._asked = [Asked(role) for _ in range(layers)]
        self._needed: list[list[np.ndarray]] = [[] for _ in range(layers)]
        self._guessed: list[list[np.ndarray]] = [[] for _ in range(layers)]

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        parts = name.split(".")  # blocks.3.mlp.mask
        if len(parts) != 4 or parts[2:] not in (["mlp", "mask"], ["mlp", "mask_true"]):
            return value
        index = int(parts[1])
        asked = self._asked[index]
        value = asked(parts[3], value)
        if parts[3] == "mask":
            self._needed[index].append(np.packbits(asked.needed, axis=1))
            if asked.guessed is not None:
                self._guessed[index].append(np.packbits(asked.guessed, axis=1))
        return value

    @property
    def needed(self) -> np.ndarray:
        """The trace (T, L, N) bool. Raises MinillmError where no mask was seen."""
        if not all(self._needed):
            raise MinillmError("no mask was seen, expected a pass with a sparse FFN")
        return unpacked([np.concatenate(rows) for rows in self._needed], self.neurons)

    @property
    def guessed(self) -> np.ndarray | None:
        """The guesses (T, L, N) bool; None where there are none."""
        if not all(self._guessed):
            return None
        return unpacked([np.concatenate(rows) for rows in self._guessed], self.neurons)


def recorder_for(model: Llama, ffn: FeedForward, role: str = "select") -> Recorder:
    """A recorder of this model's shape. Raises MinillmError for a sparse FFN that does not cut whole neurons."""
    check_role(ffn, role)
    layers, _, neurons = shape_of(model)
    return Recorder(layers, neurons, role)


def record(
    model: Llama, ffn: FeedForward, pieces: Sequence[Run], role: str = "select", doing: str = "counting"
) -> Recorder:
    """Pass the pieces of a text (``runs``) through the model with this FFN, and write down what each token needs.

    doing: what the progress bar says. Raises MinillmError as ``recorder_for`` does.
    """
    recorder = recorder_for(model, ffn, role)
    pass_over(model, pieces, recorder, ffn, doing)
    return recorder


def frequencies(trace: np.ndarray) -> np.ndarray:
    """How often each neuron was needed: (T, L, N) bool -> (L, N)."""
    return trace.mean(axis=0)


# ---- replaying -------------------------------------------------------------------------------------------------------


def kept_history(trace: np.ndarray, capacity: int, keeper: Keeper | str, start: np.ndarray | None = None) -> np.ndarray:
    """What is kept before each token, and after the last: trace (T, L, N) bool -> (T + 1, L, N) bool."""
    tokens, layers, neurons = trace.shape
    buffer = PrefetchBuffer(layers, neurons, capacity, keeper, start=start)
    history, every = np.empty((tokens + 1, layers, neurons), bool), np.arange(layers)
    history[0] = buffer.held
    for t in range(tokens):
        history[t + 1] = buffer.held = buffer.settle(every, trace[t])
    return history


def traffic_of(trace: np.ndarray, history: np.ndarray, guessed: np.ndarray | None = None) -> Traffic:
    """The traffic that a history of kept neurons (T + 1, L, N) means: all of ``PrefetchBuffer.request`` at once.

    trace, guessed (T, L, N) bool  ->  counts (T, L).
    """
    held, kept = history[:-1], history[1:]
    ordered = np.zeros_like(trace) if guessed is None else guessed & ~held
    missed = trace & ~held & ~ordered
    masks = (trace, trace & held, trace & ordered, missed, ordered & ~trace, missed & ~kept)
    return Traffic(*(np.count_nonzero(mask, axis=2) for mask in masks))


def working_space(traffic: Traffic, lookahead: str = "layer") -> int:
    """The most neurons that lie beside the kept ones at any time: of the token's layer under way, and guessed ahead."""
    ahead = traffic.prefetched  # (T, L)
    own = ahead + traffic.missed
    after = np.zeros_like(own)
    if lookahead == "layer":
        after[:, :-1] = ahead[:, 1:]
    else:  # all layers' guesses wait at once: this token's for the layers to come, the next one's for those done
        after += ahead.sum(axis=1, keepdims=True) - np.cumsum(ahead, axis=1)
        after[:-1] += np.cumsum(ahead[1:], axis=1)
    return int((own + after).max(initial=0))


def keeper_of(
    name: str, capacity: int, shape: tuple[int, ...], hot_frequencies: np.ndarray | None, seed: int
) -> Keeper:
    """The keeper of a name, told what it needs. shape (..., L, N). Raises MinillmError where that is missing."""
    if name == "hot":
        found = "none" if hot_frequencies is None else list(np.shape(hot_frequencies))
        if found != list(shape[-2:]):
            raise MinillmError(f"keeper hot: frequencies are {found}, expected {list(shape[-2:])}, of another text")
        return hot(hot_frequencies, capacity)
    if name == "random":
        return random_set(*shape[-2:], capacity, np.random.default_rng(seed))
    return keeper_named(name)


def replay(
    trace: np.ndarray,
    work: Work,
    capacities: Sequence[int],
    keepers: Sequence[str] = KEEPERS,
    *,
    device: str | Device = "laptop NVMe",
    guessed: np.ndarray | None = None,
    lookahead: str = "layer",
    hot_frequencies: np.ndarray | None = None,
    seed: int = 0,
) -> Iterator[dict]:
    """One row for each capacity (neurons per layer) and keeper, baselines beside it (module docstring).

    trace, guessed: (T, L, N) bool, as recorded. lookahead: when the guesses are known. hot_frequencies (L, N): of
    another text, for the keeper hot; without them it is left out. Misses are waited for. Raises MinillmError.
    """
    device, layers, neurons = device_named(device), trace.shape[1], trace.shape[2]
    keepers = [name for name in keepers if name != "hot" or hot_frequencies is not None]
    best = belady(trace)
    for capacity in sorted({min(capacity, neurons) for capacity in capacities}):
        fixed = keeper_of("random", capacity, trace.shape, None, seed)
        chance = traffic_of(trace, kept_history(trace, capacity, fixed))
        known: dict[tuple[str, bytes], np.ndarray] = {}  # the same start, the same history

        def history(keeper: Keeper, start: np.ndarray, capacity=capacity, known=known) -> np.ndarray:
            key = keeper.name, start.tobytes()
            if key not in known:
                known[key] = kept_history(trace, capacity, keeper, start)
            return known[key]

        for name in keepers:
            keeper = best if name == "belady" else keeper_of(name, capacity, trace.shape, hot_frequencies, seed)
            start = np.zeros((layers, neurons), bool) if keeper.start is None else keeper.start
            own = traffic_of(trace, history(keeper, start), guessed)
            beside = {rival.name: traffic_of(trace, history(rival, start)) for rival in (lru(), best)}
            beside["random"] = chance
            yield {
                "keeper": name,
                **_figures(own, work, device, capacity, neurons, lookahead, int(start.sum())),
                "guesses": None if guessed is None else lookahead,
                **_baselines(beside, work, device),
            }


def _figures(
    traffic: Traffic, work: Work, device: Device, capacity: int, neurons: int, lookahead: str, preloaded: int,
    miss: str = "wait",
) -> dict:  # fmt: skip
    """The figures of one traffic: capacity, hits, bytes, time."""
    layers = traffic.requested.shape[1]
    dense = layers * neurons * work.neuron_bytes
    found = traffic.figures(work.neuron_bytes, miss)
    timeline = simulate(traffic, device, work, lookahead=lookahead, miss=miss)
    return {
        "capacity": capacity,
        "capacity_share": capacity / neurons,  # what a random set hits in the mean
        "kept_bytes": layers * capacity * work.neuron_bytes,
        "preloaded_bytes": preloaded * work.neuron_bytes,
        "working_bytes": working_space(traffic, lookahead) * work.neuron_bytes,
        **found,
        "dense_bytes": dense,
        "reads": found["bytes_per_token"] / dense,
        "device": device.name,
        "miss": miss,
        **timeline.figures(),
        "tokens": len(traffic.requested),
    }


def _baselines(beside: dict[str, Traffic], work: Work, device: Device) -> dict[str, float]:
    """Hit rate, bytes and seconds per token, and stall of the baselines (honesty: every row carries them)."""
    found = {name: traffic.hit_rate for name, traffic in beside.items()}
    for name, traffic in beside.items():
        timeline = simulate(traffic, device, work).figures()
        found[f"{name}_bytes"] = traffic.figures(work.neuron_bytes)["bytes_per_token"]
        found[f"{name}_seconds"], found[f"{name}_stall"] = timeline["seconds_per_token"], timeline["stall_share"]
    return found


ROW_COLUMNS = {  # for text_table
    "keeper": "", "capacity": "d", "hit_rate": ".3f", "lru": ".3f", "belady": ".3f", "random": ".3f",
    "bytes_per_token": ",.0f", "lru_bytes": ",.0f", "belady_bytes": ",.0f", "random_bytes": ",.0f",
    "wasted_bytes": ",.0f", "seconds_per_token": ".2e", "stall_share": ".1%",
    "lru_stall": ".1%", "belady_stall": ".1%", "random_stall": ".1%",
}  # fmt: skip


# ---- a model, its predictors and its buffers -------------------------------------------------------------------------


class Way(NamedTuple):
    """How the neurons of a token come to be known.

    predictor None: the policy's own mask, free of charge and at the last moment. role: what its mask is for
    (feedforward.py). lookahead: how early it is known; "layer" or "token" for a role that prefetches.
    """

    predictor: Predictor | None = None
    role: str = "select"
    lookahead: str = "layer"


def lookaheads_of(predictor: Predictor) -> tuple[str, ...]:
    """How early a predictor's guess can be made, from what it looks at; () where it needs the layer's own input."""
    if isinstance(predictor, (Oracle, Chance, Static, PreviousToken)):  # the oracle is a bound: it may know anything
        return LOOKAHEADS
    return ("layer",) if isinstance(predictor, Ahead) or getattr(predictor, "ahead", 0) else ()


def prefetch_rows(
    model: Llama,
    thresholds: Thresholds,
    documents: str | Sequence[str],
    ways: Sequence[Way] = (Way(),),
    *,
    shares: Sequence[float] = SHARES,
    keepers: Sequence[str] = KEEPERS,
    device: str | Device = "laptop NVMe",
    hot_frequencies: np.ndarray | None = None,
    miss: str = "wait",
    protocol: str = "documents",
    context: int | None = None,
    bytes_per_number: int | None = None,
    seed: int = 0,
) -> Iterator[dict]:
    """Replay's rows for a model: each way, keeper and capacity (shares of N), with the perplexity that goes with it.

    miss "wait": the documents are scored once per way, and that pass is the record. miss "drop": what is dropped
    changes what follows, so they are scored anew for each row, by an FFN that computes from the buffer alone; belady,
    which needs the future, has no row of its own there, and the baselines are those of the row's own requests.
    bytes_per_number: of a weight in slow memory. A predictor's own bytes are resident and its work counts (an oracle's
    is free). Raises MinillmError, also for a predictor that is to guess before it can (``lookaheads_of``).
    """
    layers, _, neurons = shape_of(model)
    device, dense = device_named(device), perplexity(model, documents, protocol, context).perplexity
    capacities = sorted({round(share * neurons) for share in shares})
    for way in ways:
        predictor = way.predictor
        if predictor and way.role != "select" and way.lookahead not in lookaheads_of(predictor):
            found = f"{predictor.name} cannot guess one {way.lookahead} ahead"
            raise MinillmError(f"{found}: it looks at the layer's own input, expected role select")
        ffn = sparse_ffn(model, thresholds, predictor=predictor)
        free = predictor is None or isinstance(predictor, Oracle)
        own_work = 0 if free else np.mean([predictor.multiply_adds(i) for i in range(layers)])
        work = work_of(model, bytes_per_number, predictor=own_work)
        about = {
            "model": model.name,
            "predictor": "policy's own mask" if predictor is None else predictor.name,
            "role": way.role,
            "own_bytes": 0 if predictor is None else predictor.nbytes,
            "dense_perplexity": dense,
        }
        if miss == "wait":
            recorder = recorder_for(model, ffn, way.role)
            score = perplexity(model, documents, protocol, context, ffn, recorder)
            rows = replay(
                recorder.needed, work, capacities, keepers, device=device, guessed=recorder.guessed,
                lookahead=way.lookahead, hot_frequencies=hot_frequencies, seed=seed,
            )  # fmt: skip
            for row in rows:
                yield about | {"perplexity": score.perplexity} | row
            continue
        names = [name for name in keepers if name != "belady" and (name != "hot" or hot_frequencies is not None)]
        for capacity, name in ((capacity, name) for capacity in capacities for name in names):
            keeper = keeper_of(name, capacity, (layers, neurons), hot_frequencies, seed)
            buffer = PrefetchBuffer(layers, neurons, capacity, keeper, log=False)
            score = perplexity(model, documents, protocol, context, BufferedFFN(ffn, buffer, miss, way.role))
            trace, start = buffer.trace(), buffer.start
            chance = keeper_of("random", capacity, trace.shape, None, seed)
            rivals = ((lru(), start), (belady(trace), start), (chance, None))
            beside = {r.name: traffic_of(trace, kept_history(trace, capacity, r, begin)) for r, begin in rivals}
            yield {
                **about,
                "perplexity": score.perplexity,
                "keeper": name,
                **_figures(buffer.traffic(), work, device, capacity, neurons, way.lookahead, int(start.sum()), miss),
                "guesses": None if way.role == "select" else way.lookahead,
                **_baselines(beside, work, device),
            }


def enough(demand: Sequence[dict], guessing: Sequence[dict], tolerance: float = 0.01) -> int | None:
    """The capacity from which on prediction stops mattering: where guessing saves less than ``tolerance`` of the time.

    demand, guessing: rows of one keeper, without and with guesses. ->  the smallest capacity from which on that holds
    at every larger one, too; None where it never does. Raises MinillmError for rows of different capacities.
    """
    plain, guessed = ({row["capacity"]: row["seconds_per_token"] for row in rows} for rows in (demand, guessing))
    if set(plain) != set(guessed) or len(plain) != len(demand) or len(guessed) != len(guessing):
        raise MinillmError("expected rows of one keeper each, with the same capacities")
    found = None
    for capacity in sorted(plain, reverse=True):
        if guessed[capacity] < (1 - tolerance) * plain[capacity]:
            break
        found = capacity
    return found
