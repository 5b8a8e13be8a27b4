"""The prefetch buffer: a small fast memory before a large slow one, and the rules of what to keep in it.

The weights of a layer's N neurons lie in slow memory. For each token the layer needs a set A_t of them; the fast memory
has kept a set R_{t-1} of at most C from the tokens before. Then

    hit      A_t & R_{t-1}                 costs nothing
    arrived  A_t & P_t, not kept           prefetched for this token before it was needed
    miss     the rest of A_t               has to be fetched while the layer waits
    wasted   P_t, not in A_t               prefetched and not needed
    R_t is a part of R_{t-1} | A_t,  |R_t| <= C             what the keeper chooses to hold on to

What is fetched for the token of the moment lies in a working space beside the C kept neurons, whether it is kept
afterwards or not, so a set larger than C can be computed, and C = 0 is no buffer at all. It follows that prefetching
changes *when* something is fetched, and adds waste, but never what is kept: its worth shows in stalls and bytes, and
the hit rate (|hits| / |requested|) is the keeper's alone.

**A keeper is one number per neuron; the C largest stay.** With t_j the last token that needed j and n_j how many did:

    lru         t_j                                   the least recently used goes
    lfu         n_j, then t_j                         the least frequently used goes; a neuron's count outlives its stay
    window-k    t_j, if j was needed in the last k    LLM in a Flash (arXiv 2312.11514): the union of the last k sets
    hot         1 for the most frequent, fixed        PowerInfer (arXiv 2312.12456): counted on a calibration text
    random      1 for a random set, fixed             hit rate C / N on any trace, in the mean: what no rule should miss
    belady      -(next token that needs j)            Belady 1966 with bypass: needs the future; no rule can do better

Among equals those stay that are kept already, then those of lower index. With bypass means that what was needed now
need not be kept. That belady is best: keeping j from one use to the next is an interval that earns one hit, at most C
intervals may overlap, and dropping the one that ends last whenever there are too many leaves the most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..sparsity.policies import largest

LOOKAHEADS = ("layer", "token")  # a guess for layer l of token t is ordered at layer l - 1, or at token t - 1
EVENT_COLUMNS = {"event": "d", "token": "d", "layer": "d", "what": "", "count": "d", "neurons": ""}


# ---- what to keep ----------------------------------------------------------------------------------------------------


Layers = int | np.ndarray  # one layer's index, or those of several that are treated alike, (l,)


@dataclass(frozen=True)
class Keeper:
    """A rule of what to keep: value(buffer, layer) gives a whole number per neuron, (N,), or (l, N) for l layers.

    The largest stay; a negative one never does. start (L, N): what lies in the buffer before the first token, if the
    rule says so.
    """

    name: str
    value: Callable[[PrefetchBuffer, Layers], np.ndarray]
    start: np.ndarray | None = None


def lru() -> Keeper:
    """Keep the most recently used."""
    return Keeper("lru", lambda buffer, layer: buffer.last[layer] + 1)


def lfu() -> Keeper:
    """Keep the most often used since the beginning; of equal ones, the more recent."""
    return Keeper("lfu", lambda buffer, layer: (buffer.count[layer] << 24) + buffer.last[layer] + 1)


def window(tokens: int) -> Keeper:
    """Keep what any of the last ``tokens`` tokens needed (arXiv 2312.11514); the most recent where that is too much."""

    def value(buffer: PrefetchBuffer, layer: Layers) -> np.ndarray:
        last = buffer.last[layer]
        return np.where(last > buffer.time[layer][..., None] - tokens, last + 1, -1)

    return Keeper(f"window-{tokens}", value)


def static(name: str, sets: np.ndarray) -> Keeper:
    """Keep the same set for ever: sets (L, N) bool, which is in the buffer from the start."""
    return Keeper(name, lambda buffer, layer: np.where(sets[layer], 1, -1), sets)


def hot(frequencies: np.ndarray, capacity: int) -> Keeper:
    """Keep the most frequent (arXiv 2312.12456): frequencies (L, N), counted on a text other than the one replayed."""
    return static("hot", largest(np.asarray(frequencies), capacity))


def random_set(layers: int, neurons: int, capacity: int, rng: np.random.Generator) -> Keeper:
    """Keep a random set: what any knowledge at all has to beat."""
    return static("random", largest(rng.random((layers, neurons)), capacity))


def next_uses(trace: np.ndarray) -> np.ndarray:
    """After token t, the next token that needs neuron j; T where none does.  (T, L, N) bool -> (T, L, N)."""
    tokens = len(trace)
    table = np.full(trace.shape, tokens, np.int16 if tokens < 1 << 15 else np.int32)
    for t in range(tokens - 1, 0, -1):
        table[t - 1] = np.where(trace[t], t, table[t])
    return table


def belady(trace: np.ndarray) -> Keeper:
    """Keep what is needed soonest, on the recorded trace (T, L, N) bool that will be replayed.

    Raises MinillmError when another request comes than the trace foretold.
    """
    following = next_uses(trace)

    def value(buffer: PrefetchBuffer, layer: Layers) -> np.ndarray:
        now = buffer.time[layer]
        used = buffer.last[layer] == now[..., None]
        if np.max(now) >= len(trace) or not np.array_equal(used, trace[now, layer]):
            raise MinillmError(f"belady was given another trace: it does not hold request {now} of layer {layer}")
        soon = following[now, layer].astype(np.int64)
        return np.where(soon < len(trace), len(trace) - soon, -1)

    return Keeper("belady", value)


def keeper_named(name: str) -> Keeper:
    """The keeper of a name that needs nothing else: lru, lfu, window-K. Raises MinillmError for any other."""
    if name in ("lru", "lfu"):
        return {"lru": lru, "lfu": lfu}[name]()
    kind, _, tokens = name.partition("-")
    if kind == "window" and tokens.isdecimal():
        return window(int(tokens))
    raise MinillmError(f"keeper {name!r} is unknown, expected lru, lfu, window-K, or a Keeper that is told more")


# ---- what happened ---------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One thing that happened to some neurons of a layer (kinds: the module's docstring, and keep, pass, evict).

    keep: fetched for this token and kept on. pass: fetched, used and let go. evict: kept until now.
    """

    number: int
    token: int
    layer: int
    kind: str
    neurons: tuple[int, ...]


class Request(NamedTuple):
    """What became of one request: masks (N,) of the neurons asked for and of where they were found.

    passed: those of the missed ones that the keeper does not keep.
    """

    requested: np.ndarray
    hit: np.ndarray
    arrived: np.ndarray
    missed: np.ndarray
    wasted: np.ndarray
    passed: np.ndarray


class Traffic(NamedTuple):
    """How many neurons of each kind, per token and layer: arrays (T, L). This is all that a clock needs.

    miss: under "wait" every missed neuron is fetched; under "drop" those that will be kept, behind the computing.
    """

    requested: np.ndarray
    hit: np.ndarray
    arrived: np.ndarray
    missed: np.ndarray
    wasted: np.ndarray
    passed: np.ndarray

    @property
    def prefetched(self) -> np.ndarray:
        """Fetched before it was asked for, (T, L)."""
        return self.arrived + self.wasted

    def late(self, miss: str = "wait") -> np.ndarray:
        """Fetched after it was asked for, (T, L)."""
        return self.missed - self.passed if miss == "drop" else self.missed

    def computed(self, miss: str = "wait") -> np.ndarray:
        """Taking part in the output, (T, L)."""
        return self.hit + self.arrived if miss == "drop" else self.requested

    @property
    def hit_rate(self) -> float:
        """Share of the neurons asked for that had been kept; what a prefetch brought is no hit."""
        return float(self.hit.sum() / max(1, self.requested.sum()))

    def figures(self, bytes_per_neuron: int, miss: str = "wait") -> dict[str, float]:
        """hit_rate, and bytes per token: all that were fetched, those fetched late, those wasted; neurons dropped."""
        tokens, late = max(1, len(self.requested)), int(self.late(miss).sum())
        dropped = int((self.requested - self.computed(miss)).sum())
        return {
            "hit_rate": self.hit_rate,
            "bytes_per_token": (int(self.prefetched.sum()) + late) * bytes_per_neuron / tokens,
            "late_bytes": late * bytes_per_neuron / tokens,
            "wasted_bytes": int(self.wasted.sum()) * bytes_per_neuron / tokens,
            "dropped_share": dropped / max(1, int(self.requested.sum())),
        }


def event_rows(events: Sequence[Event]) -> list[dict]:
    """Events as rows of a table (columns: EVENT_COLUMNS)."""
    return [
        {
            "event": e.number, "token": e.token, "layer": e.layer, "what": e.kind,
            "count": len(e.neurons), "neurons": " ".join(map(str, e.neurons)),
        }
        for e in events
    ]  # fmt: skip


# ---- the buffer ------------------------------------------------------------------------------------------------------


class PrefetchBuffer:
    """Which neurons lie in fast memory: a set of at most ``capacity`` kept ones per layer, and what is under way.

    layers, neurons: L and N. capacity: per layer, in neurons, or in bytes with unit="bytes" (rounded down to whole
    neurons of bytes_per_neuron). keeper: a Keeper, or the name of one that needs nothing else. start (L, N) bool: what
    is kept before the first token, in place of the keeper's own. log: whether prefetch and request write down their
    events (in ``events``); step and run always do.

    Each layer counts its own requests as tokens; they may come token by token or a layer at a time. The state may be
    looked at: held, last, count (L, N), time (L,). Raises MinillmError for a start larger than the capacity.
    """

    def __init__(
        self, layers: int, neurons: int, capacity: int, keeper: Keeper | str = "lru", *,
        bytes_per_neuron: int = 1, unit: str = "neurons", start: np.ndarray | None = None, log: bool = True,
    ):  # fmt: skip
        if unit not in ("neurons", "bytes"):
            raise MinillmError(f"unit is {unit!r}, expected neurons or bytes")
        if capacity < 0 or bytes_per_neuron < 1:
            found = f"capacity is {capacity} and bytes_per_neuron {bytes_per_neuron}"
            raise MinillmError(f"{found}, expected at least 0 and at least 1")
        self.layers, self.neurons, self.bytes_per_neuron = layers, neurons, bytes_per_neuron
        self.capacity = min(neurons, capacity // bytes_per_neuron if unit == "bytes" else capacity)
        self.keeper = keeper_named(keeper) if isinstance(keeper, str) else keeper
        start = self.keeper.start if start is None else start
        self.start = np.zeros((layers, neurons), bool) if start is None else np.array(start, bool)
        if self.start.shape != (layers, neurons) or self.start.sum(axis=1).max(initial=0) > self.capacity:
            found = f"start is {list(self.start.shape)} with up to {self.start.sum(axis=-1).max(initial=0)} neurons"
            raise MinillmError(f"{found}, expected {[layers, neurons]} with at most {self.capacity} per layer")
        self._log, self._script, self._from_last = log, iter(()), np.arange(neurons)[::-1]
        self.reset()

    def reset(self) -> None:
        """Back to the beginning: the contents of the start, nothing under way, nothing counted."""
        self.held = self.start.copy()  # (L, N)
        self.last = np.full((self.layers, self.neurons), -1, np.int64)  # the last token that needed it; -1: none yet
        self.count = np.zeros((self.layers, self.neurons), np.int64)  # how many tokens needed it
        self.time = np.zeros(self.layers, np.int64)  # the token that the next request of a layer belongs to
        self.waiting = np.zeros((self.layers, self.neurons), bool)  # prefetched for the next request
        self.found: Request | None = None  # the last request
        self.events: list[Event] = []
        self._number = 0
        self._counts: list[list[tuple[int, ...]]] = [[] for _ in range(self.layers)]
        self._requests: list[list[np.ndarray]] = [[] for _ in range(self.layers)]  # packed bits

    # -- one thing at a time; (kind, mask) is what an event is made of

    def _order(self, layer: int, neurons: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        new = self._mask(neurons) & ~self.held[layer] & ~self.waiting[layer]
        self.waiting[layer] |= new
        yield "prefetch", new

    def _serve(self, layer: int, neurons: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        wanted, held, waiting = self._mask(neurons), self.held[layer].copy(), self.waiting[layer].copy()
        yield "request", wanted
        kept, missed = self.settle(layer, wanted), wanted & ~held & ~waiting
        found = Request(wanted, wanted & held, wanted & waiting, missed, waiting & ~wanted, missed & ~kept)
        self.found = found
        self._requests[layer].append(np.packbits(wanted))
        self._counts[layer].append(tuple(int(np.count_nonzero(mask)) for mask in found))
        yield "hit", found.hit
        yield "arrived", found.arrived
        yield "miss", found.missed
        self.waiting[layer] = False
        yield "wasted", found.wasted
        self.held[layer] &= kept
        yield "evict", held & ~kept
        self.held[layer] = kept
        yield "keep", kept & ~held
        yield "pass", wanted & ~held & ~kept

    def settle(self, layer: Layers, wanted: np.ndarray) -> np.ndarray:
        """Note that a layer's token used neurons (N,) bool, and say which it keeps; ``held`` is left to the caller.

        Several layers may come at once, with wanted (l, N). ->  bool like wanted.
        """
        self.last[layer] = np.where(wanted, self.time[layer][..., None], self.last[layer])
        self.count[layer] += wanted
        value = self.keeper.value(self, layer)
        self.time[layer] += 1
        held = self.held[layer]
        candidates = (held | wanted) & (value >= 0)
        if self.capacity == 0:
            return np.zeros_like(candidates)
        # One whole number for "value, then kept already, then lower index": no two are equal, and the C-th tells all.
        rank = np.where(candidates, (2 * value + held) * self.neurons + self._from_last, -1)
        return candidates & (rank >= np.partition(rank, -self.capacity)[..., -self.capacity, None])

    def _mask(self, neurons: np.ndarray | Sequence[int]) -> np.ndarray:
        """A mask (N,), or a list of indices, as a mask (N,)."""
        neurons = np.asarray(neurons)
        if neurons.dtype == bool and neurons.shape == (self.neurons,):
            return neurons
        mask = np.zeros(self.neurons, bool)
        if neurons.size:
            if neurons.dtype.kind not in "iu" or neurons.min() < 0 or neurons.max() >= self.neurons:
                found = f"found {neurons.dtype}{list(neurons.shape)}"
                raise MinillmError(f"{found}, expected indices from 0 to {self.neurons - 1} or a mask of that length")
            mask[neurons] = True
        return mask

    def _note(self, layer: int, token: int, kind: str, mask: np.ndarray) -> Event | None:
        if not mask.any():
            return None
        event = Event(self._number, token, layer, kind, tuple(np.flatnonzero(mask).tolist()))
        self._number += 1
        self.events.append(event)
        return event

    def _events(self, layer: int, happening: Iterator[tuple[str, np.ndarray]]) -> Iterator[Event]:
        token = int(self.time[layer])
        for kind, mask in happening:
            if event := self._note(layer, token, kind, mask):
                yield event

    # -- what callers use

    def prefetch(self, layer: int, neurons: np.ndarray | Sequence[int]) -> np.ndarray:
        """Order neurons (a mask or indices) for the layer's next request; what is there already is not ordered again.

        ->  the mask (N,) of those that are fetched.
        """
        ((kind, new),) = self._order(layer, neurons)
        if self._log:
            self._note(layer, int(self.time[layer]), kind, new)
        return new

    def request(self, layer: int, neurons: np.ndarray | Sequence[int]) -> Request:
        """Ask for a token's neurons of a layer (a mask or indices), and let the keeper choose what stays."""
        token = int(self.time[layer])
        for kind, mask in self._serve(layer, neurons):
            if self._log:
                self._note(layer, token, kind, mask)
        return self.found

    def follow(self, trace: np.ndarray, guesses: np.ndarray | None = None, lookahead: str = "layer") -> None:
        """Take a trace (T, L, N) bool as the script of ``step`` and ``run``, token by token and layer by layer.

        guesses (T, L, N) bool: what is prefetched for each request. It is ordered right after the request before it:
        that of the layer before (lookahead "layer"), or that of the token before ("token"). Where there is none (the
        first layer, the first token), it is ordered just before the request itself. Raises MinillmError.
        """
        trace = self._fitting(trace)
        guesses = guesses if guesses is None else self._fitting(guesses)
        if lookahead not in LOOKAHEADS:
            raise MinillmError(f"lookahead is {lookahead!r}, expected one of {', '.join(LOOKAHEADS)}")
        if guesses is not None and guesses.shape != trace.shape:
            raise MinillmError(f"the guesses are {list(guesses.shape)}, the trace {list(trace.shape)}")

        def script() -> Iterator[Event]:
            for t in range(len(trace)):
                for layer in range(self.layers):
                    if guesses is not None and first(t, layer, lookahead):
                        yield from self._events(layer, self._order(layer, guesses[t, layer]))
                    yield from self._events(layer, self._serve(layer, trace[t, layer]))
                    later, next_layer = after(t, layer, lookahead)
                    if guesses is not None and later < len(trace) and next_layer < self.layers:
                        yield from self._events(next_layer, self._order(next_layer, guesses[later, next_layer]))

        self._script = script()

    def step(self) -> Event | None:
        """Go on by one event of the script and return it; None at its end. The state is as the event leaves it."""
        return next(self._script, None)

    def run(self) -> None:
        """Go on to the end of the script."""
        while self.step() is not None:
            pass

    def traffic(self) -> Traffic:
        """The counts so far. Raises MinillmError while some layer has had more requests than another."""
        self._check_whole()
        counts = np.array(self._counts, np.int64).reshape(self.layers, -1, len(Traffic._fields))  # (L, T, 6)
        return Traffic(*counts.transpose(2, 1, 0))

    def trace(self) -> np.ndarray:
        """What was asked for so far, (T, L, N) bool: another keeper can be tried on it. Raises as ``traffic`` does."""
        self._check_whole()
        return unpacked(self._requests, self.neurons)

    def _check_whole(self) -> None:
        lengths = [len(counts) for counts in self._counts]
        if min(lengths) != max(lengths):
            found = f"the layers have had {min(lengths)} to {max(lengths)} requests"
            raise MinillmError(f"{found}, expected the same number each: a token is under way")

    def _fitting(self, trace: np.ndarray) -> np.ndarray:
        trace = np.asarray(trace)
        if trace.dtype != bool or trace.ndim != 3 or trace.shape[1:] != (self.layers, self.neurons):
            found = f"the trace is {trace.dtype}{list(trace.shape)}"
            raise MinillmError(f"{found}, expected bool [tokens, {self.layers}, {self.neurons}]")
        return trace


def unpacked(rows: Sequence[Sequence[np.ndarray]], neurons: int) -> np.ndarray:
    """Per layer, masks as packed bits  ->  (T, L, N) bool."""
    bits = np.array(rows, np.uint8).reshape(len(rows), -1, -(-neurons // 8))  # (L, T, N / 8 rounded up)
    return np.unpackbits(bits, axis=2, count=neurons).astype(bool).transpose(1, 0, 2)


def first(token: int, layer: int, lookahead: str) -> bool:
    """Whether nothing comes before this request that a guess could be ordered at."""
    return (layer if lookahead == "layer" else token) == 0


def after(token: int, layer: int, lookahead: str) -> tuple[int, int]:
    """(token, layer) of the request whose guess is ordered at this one."""
    return (token, layer + 1) if lookahead == "layer" else (token + 1, layer)
