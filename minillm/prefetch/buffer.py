"""The prefetch buffer: a small fast memory in front of a large slow one, and what it keeps.

The weights of a layer's N neurons lie in slow memory. For each token the layer needs a set A_t of them. The fast memory
has kept a set R_{t-1} of at most C neurons from the tokens before, and a set P_t was prefetched for this token. Then

    hit      A_t & R_{t-1}                 costs nothing
    arrived  A_t & P_t, not kept           prefetched for this token before it was needed
    miss     the rest of A_t               has to be fetched while the layer waits
    wasted   P_t, not in A_t               prefetched and not needed
    R_t is a part of R_{t-1} | A_t,  |R_t| <= C             what the eviction policy keeps (eviction.py)

The neurons that are fetched for the current token lie in a working space beside the C kept ones, whether they are kept
afterwards or not. So a set larger than C can be computed, and C = 0 is no buffer at all. It follows that prefetching
changes *when* a neuron is fetched, and adds waste, but never which neurons are kept: its value shows in stalls and
bytes, and the hit rate (|hits| / |requested|) depends on the eviction policy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import MinillmError
from ..predictors.protocol import LOOKAHEADS
from .eviction import Eviction, Layers, eviction_named
from .traffic import Event, Request, Traffic, after, first, unpacked


class PrefetchBuffer:
    """Which neurons lie in fast memory: a set of at most ``capacity`` kept ones per layer, and those under way.

    layers, neurons: L and N. capacity: per layer, in neurons, or in bytes with unit="bytes" (rounded down to whole
    neurons of bytes_per_neuron). eviction: an Eviction, or the name of one that needs no further data. start (L, N)
    bool: the neurons kept before the first token, in place of the policy's own. log: whether prefetch and request
    record their events (in ``events``); step and run always do.

    Each layer counts its own requests as tokens; they may come token by token or a layer at a time. The state can be
    read: held, last, count (L, N), time (L,). Raises MinillmError for a start larger than the capacity.
    """

    def __init__(
        self, layers: int, neurons: int, capacity: int, eviction: Eviction | str = "lru", *,
        bytes_per_neuron: int = 1, unit: str = "neurons", start: np.ndarray | None = None, log: bool = True,
    ):  # fmt: skip
        if unit not in ("neurons", "bytes"):
            raise MinillmError(f"unit is {unit!r}, expected neurons or bytes")
        if capacity < 0 or bytes_per_neuron < 1:
            found = f"capacity is {capacity} and bytes_per_neuron {bytes_per_neuron}"
            raise MinillmError(f"{found}, expected at least 0 and at least 1")
        self.layers, self.neurons, self.bytes_per_neuron = layers, neurons, bytes_per_neuron
        self.capacity = min(neurons, capacity // bytes_per_neuron if unit == "bytes" else capacity)
        self.eviction = eviction_named(eviction) if isinstance(eviction, str) else eviction
        start = self.eviction.start if start is None else start
        self.start = np.zeros((layers, neurons), bool) if start is None else np.array(start, bool)
        if self.start.shape != (layers, neurons) or self.start.sum(axis=1).max(initial=0) > self.capacity:
            found = f"start is {list(self.start.shape)} with up to {self.start.sum(axis=-1).max(initial=0)} neurons"
            raise MinillmError(f"{found}, expected {[layers, neurons]} with at most {self.capacity} per layer")
        self._log, self._from_last = log, np.arange(neurons)[::-1]
        self._script: Iterator[Event] = iter(())
        self.reset()

    def reset(self) -> None:
        """Back to the beginning: the start's contents, nothing under way, nothing counted."""
        self.held = self.start.copy()  # (L, N)
        self.last = np.full((self.layers, self.neurons), -1, np.int64)  # the last token that needed it; -1: none yet
        self.count = np.zeros((self.layers, self.neurons), np.int64)  # how many tokens needed it
        self.time = np.zeros(self.layers, np.int64)  # the token that the next request of a layer belongs to
        self.waiting = np.zeros((self.layers, self.neurons), bool)  # prefetched for the next request
        self.events: list[Event] = []
        self._number = 0
        self._counts: list[list[tuple[int, ...]]] = [[] for _ in range(self.layers)]
        self._requests: list[list[np.ndarray]] = [[] for _ in range(self.layers)]  # packed bits

    # -- one change at a time; an event is made of (kind, mask)

    def _order(self, layer: int, neurons: np.ndarray | Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        new = self._mask(neurons) & ~self.held[layer] & ~self.waiting[layer]
        self.waiting[layer] |= new
        yield "prefetch", new

    def _serve(self, layer: int, neurons: np.ndarray | Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        wanted = self._mask(neurons)
        yield "request", wanted
        request, kept = self._counted(layer, wanted)
        yield from self._changes(layer, request, kept)

    def _counted(self, layer: int, wanted: np.ndarray) -> tuple[Request, np.ndarray]:
        """The outcome of a request (N,) bool, which is counted, and the neurons to keep (N,); nothing has moved yet."""
        held, waiting = self.held[layer], self.waiting[layer]
        kept, missed = self.settle(layer, wanted), wanted & ~held & ~waiting
        request = Request(wanted, wanted & held, wanted & waiting, missed, waiting & ~wanted, missed & ~kept)
        self._requests[layer].append(np.packbits(wanted))
        self._counts[layer].append(tuple(int(np.count_nonzero(mask)) for mask in request))
        return request, kept

    def _changes(self, layer: int, request: Request, kept: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        held = self.held[layer].copy()
        yield "hit", request.hit
        yield "arrived", request.arrived
        yield "miss", request.missed
        self.waiting[layer] = False
        yield "wasted", request.wasted
        self.held[layer] &= kept
        yield "evict", held & ~kept
        self.held[layer] = kept
        yield "keep", kept & ~held
        yield "pass", request.requested & ~held & ~kept

    def settle(self, layer: Layers, wanted: np.ndarray) -> np.ndarray:
        """Count that a layer's token used neurons (N,) bool, and return which it keeps; ``held`` stays as it is.

        Several layers may come at once, with wanted (l, N). ->  bool like wanted.
        """
        self.last[layer] = np.where(wanted, self.time[layer][..., None], self.last[layer])
        self.count[layer] += wanted
        value = self.eviction.value(self, layer)
        self.time[layer] += 1
        held = self.held[layer]
        candidates = (held | wanted) & (value >= 0)
        if self.capacity == 0:
            return np.zeros_like(candidates)
        # One whole number for "value, then kept already, then lower index": no two are equal, so the C-th is the limit.
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
        """Order neurons (a mask or indices) for the layer's next request; those already there are not ordered again.

        ->  the mask (N,) of those that are fetched.
        """
        ((kind, new),) = self._order(layer, neurons)
        if self._log:
            self._note(layer, int(self.time[layer]), kind, new)
        return new

    def request(self, layer: int, neurons: np.ndarray | Sequence[int]) -> Request:
        """Request a token's neurons of a layer (a mask or indices), and let the eviction policy choose which stay."""
        wanted, token = self._mask(neurons), int(self.time[layer])
        if self._log:
            self._note(layer, token, "request", wanted)
        request, kept = self._counted(layer, wanted)
        for kind, mask in self._changes(layer, request, kept):
            if self._log:
                self._note(layer, token, kind, mask)
        return request

    def follow(self, trace: np.ndarray, guesses: np.ndarray | None = None, lookahead: str = "layer") -> None:
        """Take a trace (T, L, N) bool as the script of ``step`` and ``run``, token by token and layer by layer.

        guesses (T, L, N) bool: the neurons prefetched for each request. They are ordered right after an earlier
        request: that of the layer before (lookahead "layer"), or that of the token before ("token"). Where there is
        none (the first layer, the first token), they are ordered just before the request itself. Raises MinillmError.
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
        """Advance by one event of the script and return it; None at its end. The state is that after the event."""
        return next(self._script, None)

    def run(self) -> None:
        """Advance to the end of the script."""
        while self.step() is not None:
            pass

    def traffic(self) -> Traffic:
        """The counts so far. Raises MinillmError while some layer has had more requests than another."""
        self._check_whole()
        counts = np.array(self._counts, np.int64).reshape(self.layers, -1, len(Traffic._fields))  # (L, T, 6)
        return Traffic(*counts.transpose(2, 1, 0))

    def trace(self) -> np.ndarray:
        """All requests so far, (T, L, N) bool: another policy can be tried on them. Raises as ``traffic`` does."""
        self._check_whole()
        return unpacked([np.array(rows, np.uint8) for rows in self._requests], self.neurons)

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
