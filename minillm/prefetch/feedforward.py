"""The sparse FFN that computes only from the prefetch buffer.

The layer's weights stand for the slow memory. A few small arrays are the fast memory: they hold a copy of each neuron
that the buffer keeps, one row per neuron and matrix (its row of W_gate, its row of W_up, its column of W_down). For a
token that needs the neurons J,

    fetch what of J is not there            3 D numbers each, counted as they are copied
    y = swiglu(x, the layer of J alone)     W_gate[J], W_up[J], W_down[:, J], all taken from the fast memory
    give up the rows that the buffer's eviction policy does not keep

so the formula is the dense one (ffn.py), on a layer that has only these neurons. In ascending order of J it is the same
computation as the gathered FFN of a known mask, and equal to it bit for bit.

A Selector chooses the neurons that are needed (J). Another one, the guess, may choose those to prefetch:

    select            guess           for
    policy oracle     -               the policy's own mask, free of charge and at the last moment
    predictor         -               a predictor that selects, known when the layer is reached
    policy oracle     predictor       the predictor only prefetches: the output is that of the policy
    predictor         the same one    a predictor that knows early enough to prefetch what it selects

What happens on a miss is the other choice:

    wait        fetch it, then compute: exact, the buffer changes the time alone
    drop        leave it out of this token's sum; fetch afterwards those that will be kept: no stall, another output

Here a guess is ordered just before its request, where its input is at hand. That it was known earlier (a layer, a
token) changes only the times, which clock.py simulates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import MinillmError
from ..sparsity.gathered import at_rows
from ..sparsity.selected import tap_selected_reads
from ..trace import Tap, no_tap
from ..transformer.ffn import Selector, swiglu
from ..transformer.layer import Layer
from .buffer import PrefetchBuffer
from .clock import MISSES

Bundles = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows of gate, rows of up, columns of down as rows; each (n, D)


def from_weights(layer: Layer, neurons: np.ndarray) -> Bundles:
    """Read neurons (n,) from the layer's own weights: the default slow memory."""
    return layer.gate_proj[neurons], layer.up[neurons], layer.down_proj.T[neurons]


class FastMemory:
    """The rows of one layer's neurons in fast memory: slot (N,) is the row of a neuron, -1 where it is not there.

    The arrays grow to the largest number of neurons held at once; ``nbytes`` is their size.
    """

    def __init__(self, neurons: int, hidden: int, dtype: np.dtype):
        self.slot = np.full(neurons, -1)
        self.arrays = [np.empty((0, hidden), dtype) for _ in range(3)]  # gate, up, down as in a bundle
        self._free: list[int] = []

    def put(self, neurons: np.ndarray, bundles: Bundles) -> int:
        """Copy in neurons (n,) that are not there yet, from arrays (n, D); -> number of bytes copied."""
        if len(neurons) > len(self._free):
            have, more = len(self.arrays[0]), len(neurons) - len(self._free)
            grown = [np.empty((have + more, array.shape[1]), array.dtype) for array in self.arrays]
            for new, old in zip(grown, self.arrays, strict=True):
                new[:have] = old
            self.arrays = grown
            self._free.extend(range(have, have + more))
        rows = [self._free.pop() for _ in neurons]
        self.slot[neurons] = rows
        for array, bundle in zip(self.arrays, bundles, strict=True):
            array[rows] = bundle
        return sum(bundle.nbytes for bundle in bundles)

    def keep_only(self, mask: np.ndarray) -> None:
        """Give up the rows of all neurons that are not in mask (N,)."""
        gone = np.flatnonzero((self.slot >= 0) & ~mask)
        self._free.extend(self.slot[gone].tolist())
        self.slot[gone] = -1

    @property
    def there(self) -> np.ndarray:
        """True where a neuron lies here, (N,)."""
        return self.slot >= 0

    @property
    def nbytes(self) -> int:
        """Size of the three arrays in bytes."""
        return sum(array.nbytes for array in self.arrays)

    def layer_of(self, layer: Layer, neurons: np.ndarray) -> Layer:
        """The layer of these neurons (n,) alone, their weights taken from here; biases are small and stay resident."""
        gate, up, down = (array[self.slot[neurons]] for array in self.arrays)  # (n, D) each
        gate_bias, up_bias = at_rows(layer.gate_bias, neurons), at_rows(layer.up_bias, neurons)
        return replace(layer, gate_proj=gate, up_proj=up, down_proj=down.T, gate_bias=gate_bias, up_bias=up_bias)


class BufferedFFN:
    """A FeedForward that computes only from what the prefetch buffer holds (module docstring).

    select: the Selector of the neurons that are needed. guess: the Selector of those to prefetch, which may be select
    itself (None: no prefetching). miss: "wait" or "drop". read(layer, neurons) -> three (n, D): the slow memory. The
    buffer's state goes on from text to text, as in one session; ``reset`` starts again. bytes_read: bytes copied in so
    far, the buffer's start included.
    """

    def __init__(
        self, select: Selector, buffer: PrefetchBuffer, miss: str = "wait", guess: Selector | None = None,
        read: Callable[[Layer, np.ndarray], Bundles] = from_weights,
    ):  # fmt: skip
        if miss not in MISSES:
            raise MinillmError(f"miss is {miss!r}, expected one of {', '.join(MISSES)}")
        self.select, self.guess, self.buffer, self.miss, self.read = select, guess, buffer, miss, read
        self.reset()

    def reset(self) -> None:
        """Empty the fast memory, and take the buffer back to its start."""
        self.buffer.reset()
        self.memory: dict[int, FastMemory] = {}
        self.bytes_read = 0

    @property
    def calibrated_on(self) -> frozenset[str]:
        """Hashes of the documents behind the selection and the guess."""
        return self.select.calibrated_on | (self.guess.calibrated_on if self.guess else frozenset())

    def __call__(self, x: np.ndarray, layer: Layer, position: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """x (T, D)  ->  y (T, D). Taps mask_guess, mask, reads, mid_cut and out.

        mask: the needed neurons, which an edit may change; with miss "drop" the computed ones, which it may not.
        """
        needed, guessed = self.select(x, layer, position, tap), None  # (T, N)
        if self.guess is not None:
            guessed = needed if self.guess is self.select else self.guess(x, layer, position, tap)
            guessed = tap("mask_guess", guessed)  # (T, N)
        drop = self.miss == "drop"
        needed = needed.copy() if drop else tap("mask", needed)
        memory = self._memory(x, layer)
        mid_cut, out = np.zeros(needed.shape, x.dtype), np.empty_like(x)  # (T, N), (T, D)
        for t in range(len(x)):
            if guessed is not None:
                self._fetch(memory, layer, self.buffer.prefetch(layer.index, guessed[t]))
            request = self.buffer.request(layer.index, needed[t])
            if not drop:
                self._fetch(memory, layer, request.missed)
            J = np.flatnonzero(needed[t] & memory.there)  # (n,)
            mid_cut[t, J], out[t] = _mid_and_out(x[t], memory.layer_of(layer, J))
            if drop:
                needed[t] &= memory.there
                self._fetch(memory, layer, request.missed & ~request.passed)
            memory.keep_only(self.buffer.held[layer.index])
        if drop:
            tap("mask", needed)
        tap_selected_reads(tap, self.select, needed)
        tap("mid_cut", mid_cut)
        return tap("out", out)

    def _memory(self, x: np.ndarray, layer: Layer) -> FastMemory:
        """The layer's fast memory; at its first use, with the buffer's start in it."""
        if layer.index not in self.memory:
            if (len(layer.gate_proj), layer.index < self.buffer.layers) != (self.buffer.neurons, True):
                found = f"layer {layer.index} with {len(layer.gate_proj)} neurons"
                expected = f"{self.buffer.layers} layers of {self.buffer.neurons}"
                raise MinillmError(f"found {found}, expected one of the buffer's {expected}")
            self.memory[layer.index] = FastMemory(self.buffer.neurons, x.shape[1], x.dtype)
            self._fetch(self.memory[layer.index], layer, self.buffer.start[layer.index])
        return self.memory[layer.index]

    def _fetch(self, memory: FastMemory, layer: Layer, mask: np.ndarray) -> None:
        if len(neurons := np.flatnonzero(mask)):
            self.bytes_read += memory.put(neurons, self.read(layer, neurons))


def _mid_and_out(x: np.ndarray, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """One token through the dense FFN of a small layer: x (D,)  ->  mid (n,), out (D,)."""
    mids: list[np.ndarray] = []

    def keep_mid(name: str, value: np.ndarray) -> np.ndarray:
        if name == "mid":
            mids.append(value)
        return value

    out = swiglu(x, layer, 0, keep_mid)
    return mids[0], out
