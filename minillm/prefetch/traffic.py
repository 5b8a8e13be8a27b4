"""What a buffer did, as events, as one request, and as counts: all that a clock or a table needs of it.

Events, in the order in which one request makes them (A_t: needed, P_t: prefetched, R: kept; equations in buffer.py):

    prefetch   ordered for this request, before it         P_t, without what is there already
    request    what the layer needs                        A_t
    hit        kept since an earlier token                 A_t & R_{t-1}
    arrived    prefetched in time                          A_t & P_t, not kept
    miss       fetched while the layer waits               the rest of A_t
    wasted     prefetched and not needed                   P_t, not in A_t
    evict      kept until now, and given up                R_{t-1}, not in R_t
    keep       fetched for this token and kept on          R_t, not in R_{t-1}
    pass       fetched, used and given up at once          A_t, neither in R_{t-1} nor in R_t

The counts per token and layer, arrays (T, L), are the *traffic*; bytes, hit rate and time follow from them:

    requested = hit + arrived + missed        prefetched = arrived + wasted        hit rate = sum hit / sum requested
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..tables import keys_as_headings

EVENT_COLUMNS = keys_as_headings({"event": "d", "token": "d", "layer": "d", "what": "", "count": "d", "neurons": ""})


class Event(NamedTuple):
    """One thing that happened to some neurons of a layer (kinds: the module's docstring)."""

    number: int
    token: int
    layer: int
    kind: str
    neurons: tuple[int, ...]


class Request(NamedTuple):
    """The outcome of one request: masks (N,) of the neurons needed, and of where they were.

    passed: those of the missed ones that the eviction policy does not keep.
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
        """Neurons fetched before they were needed, (T, L)."""
        return self.arrived + self.wasted

    def late(self, miss: str = "wait") -> np.ndarray:
        """Neurons fetched after they were needed, (T, L)."""
        return self.missed - self.passed if miss == "drop" else self.missed

    def computed(self, miss: str = "wait") -> np.ndarray:
        """Neurons that take part in the output, (T, L)."""
        return self.hit + self.arrived if miss == "drop" else self.requested

    @property
    def hit_rate(self) -> float:
        """Share of the needed neurons that had been kept; what a prefetch brought is no hit."""
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


def short(neurons: str, width: int = 48) -> str:
    """A list of neurons in a table: where it is longer than ``width`` characters, its beginning and " ..."."""
    return neurons if len(neurons) <= width else neurons[: width - 4].rsplit(" ", 1)[0] + " ..."


def unpacked(rows: Sequence[np.ndarray], neurons: int) -> np.ndarray:
    """The inverse of packing: per layer, masks as packed bits (T, N / 8)  ->  (T, L, N) bool."""
    bits = np.array(rows, np.uint8).reshape(len(rows), -1, -(-neurons // 8))  # (L, T, N / 8 rounded up)
    return np.unpackbits(bits, axis=2, count=neurons).astype(bool).transpose(1, 0, 2)


def first(token: int, layer: int, lookahead: str) -> bool:
    """Whether nothing comes before this request that a guess could be ordered at."""
    return (layer if lookahead == "layer" else token) == 0


def after(token: int, layer: int, lookahead: str) -> tuple[int, int]:
    """(token, layer) of the request whose guess is ordered at this one."""
    return (token, layer + 1) if lookahead == "layer" else (token + 1, layer)
