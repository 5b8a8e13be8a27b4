"""Simulated time: what fetching costs on a stated device, and how much of it hides behind the computing.

    fetching n neurons     n latency + n bytes / bandwidth        one read each, one after the other
    computing              multiply-adds / rate

There are two lanes, one that computes and one that fetches. Each does one thing at a time, in the order of requests.
For layer l of token t:

    compute lane    rest (attention: its weights are resident) | stall | ffn | ... after the last layer: head
    fetch lane                            fetch: what is missing
                                          prefetch: the guess for the next layer (or for the next token)

When the FFN's input is known, the missing neurons are fetched first, then the next guess. The FFN begins when all its
neurons are there. Until then the compute lane stands still, and that is a stall. With miss="drop" no layer waits for
its missing neurons: those that the buffer will keep are fetched while the lane computes on, and only the same layer's
next token has to wait for them, if they are still under way. Without overlap the compute lane waits for every fetch,
and the time is the sum of both lanes.

Nothing here is measured: the devices are typical round figures, and a reader replaces them with their own. Work that is
the same for every method (the embedding, sampling) takes no time, and the first contents of the buffer were fetched
before the clock began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..loading.config import ModelConfig
from ..predictors.protocol import LOOKAHEADS
from ..transformer.model import Llama
from .traffic import Traffic, after, first

MISSES = ("wait", "drop")


@dataclass(frozen=True)
class Device:
    """A slow memory and a processor: bandwidth in bytes/s, latency in s per read, rate in multiply-adds/s."""

    name: str
    bandwidth: float
    latency: float
    rate: float

    def __post_init__(self) -> None:
        if not (self.bandwidth > 0 and self.latency >= 0 and self.rate > 0):
            found = f"bandwidth {self.bandwidth}, latency {self.latency}, rate {self.rate}"
            raise MinillmError(f"{self.name}: found {found}, expected a positive bandwidth and rate, a latency >= 0")


# Latency is the time that a read adds when many are in the queue, not the time of one read alone. A single token is
# limited by reading weights from fast memory, so the rate is that memory's bandwidth over the bytes of a weight.
DEVICES = {
    device.name: device
    for device in (
        Device("phone UFS", bandwidth=2e9, latency=5e-6, rate=2e10),
        Device("laptop NVMe", bandwidth=5e9, latency=2e-6, rate=3e10),
        Device("PCIe host to GPU", bandwidth=2.5e10, latency=1e-7, rate=4e11),
    )
}


def device_named(device: str | Device) -> Device:
    """A preset by its name; a Device as it is. Raises MinillmError listing the presets."""
    if isinstance(device, Device):
        return device
    if device not in DEVICES:
        raise MinillmError(f"device {device!r} is unknown, expected one of {', '.join(DEVICES)}")
    return DEVICES[device]


@dataclass(frozen=True)
class Work:
    """The cost of a token: bytes and multiply-adds of one neuron, and multiply-adds of everything that is resident.

    layer: of one layer without its neurons (attention, a predictor). token: of one token without its layers (the head).
    """

    neuron_bytes: int
    neuron: int
    layer: int = 0
    token: int = 0


def work_of(model: Llama, bytes_per_number: int | None = None, positions: int = 0, predictor: float = 0) -> Work:
    """The work of one token of a model (``work_at``); None: weights are stored in the model's dtype."""
    size = model.dtype.itemsize if bytes_per_number is None else bytes_per_number
    return work_at(model.config, size, positions, predictor)


def work_at(c: ModelConfig, bytes_per_number: int = 4, positions: int = 0, predictor: float = 0) -> Work:
    """The work of one token at a model shape.

        neuron = 3 D    layer = 2 D H d + 2 D K d + 2 positions H d + predictor    token = V D

    bytes_per_number: of a weight in slow memory. positions: number of earlier positions that attention looks at.
    predictor: multiply-adds of a predictor at each layer.
    """
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    layer = 2 * c.hidden_size * (queries + keys) + 2 * positions * queries + round(predictor)
    return Work(3 * c.hidden_size * bytes_per_number, 3 * c.hidden_size, layer, c.vocab_size * c.hidden_size)


# ---- from an FFN to a whole token ------------------------------------------------------------------------------------

# A published shape of 1.1 billion weights (TinyLlama), at which speed is measured: larger than any cache.
LARGE = ModelConfig.from_dict({
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
})  # fmt: skip


def ffn_share(config: ModelConfig) -> float:
    """The FFNs' share of the weights that one token reads (each is one multiply-add): F L 3 D / all, head included."""
    work, layers = work_at(config), config.num_hidden_layers
    ffn = layers * config.intermediate_size * work.neuron
    return ffn / (ffn + layers * work.layer + work.token)


def whole_token(speedup: float, share: float) -> float:
    """Speed-up of the whole token from a faster FFN: 1 / (1 - share + share / speedup) (Amdahl 1967)."""
    return 1 / (1 - share + share / speedup)


# ---- the simulation --------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A bar of the Gantt figure: what one lane does for (token, layer) from start to end, in seconds.

    kind: rest, stall, ffn, head (layer L) on the compute lane; fetch, prefetch on the other.
    """

    token: int
    layer: int
    kind: str
    start: float
    end: float


FETCHING = ("fetch", "prefetch")


@dataclass(frozen=True)
class Timeline:
    """The result of a simulation: when each token was done, and every interval, in the order of the simulation."""

    device: Device
    intervals: list[Interval]
    ends: np.ndarray  # (T,) seconds

    @property
    def seconds(self) -> float:
        """When the last token was done."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    def total(self, *kinds: str) -> float:
        """Seconds spent on these kinds of intervals."""
        return sum(i.end - i.start for i in self.intervals if i.kind in kinds)

    def figures(self) -> dict[str, float]:
        """Seconds per token, the share of the time that is stall, and the share in which the fetch lane is busy."""
        whole = self.seconds or 1.0
        return {
            "seconds_per_token": self.seconds / max(1, len(self.ends)),
            "stall_share": self.total("stall") / whole,
            "fetch_share": self.total(*FETCHING) / whole,
        }

    def of_token(self, token: int) -> list[Interval]:
        """The intervals of one token."""
        return [interval for interval in self.intervals if interval.token == token]

    def rows(self) -> list[dict]:
        """The intervals as rows of a table or a figure."""
        return [interval._asdict() for interval in self.intervals]


class _Lanes:
    """The two lanes of a device while a simulation runs, and the intervals that they have made so far.

    now: the compute lane's time. free: when the fetch lane is free again. Both in seconds.
    """

    def __init__(self, device: Device, neuron_bytes: int):
        self.device, self.each = device, device.latency + neuron_bytes / device.bandwidth  # seconds per neuron
        self.now = self.free = 0.0
        self.intervals: list[Interval] = []

    def compute(self, kind: str, token: int, layer: int, multiply_adds: float) -> None:
        """The compute lane is busy for the time of these multiply-adds."""
        begin, self.now = self.now, self.now + multiply_adds / self.device.rate
        if self.now > begin:
            self.intervals.append(Interval(token, layer, kind, begin, self.now))

    def wait(self, token: int, layer: int, until: float) -> None:
        """The compute lane stands still until a later time: a stall."""
        if until > self.now:
            self.intervals.append(Interval(token, layer, "stall", self.now, until))
            self.now = until

    def fetch(self, kind: str, token: int, layer: int, count: int) -> float:
        """The fetch lane is asked for ``count`` neurons now; returns when they are there."""
        if not count:
            return self.now
        begin = max(self.now, self.free)
        self.free = begin + count * self.each
        self.intervals.append(Interval(token, layer, kind, begin, self.free))
        return self.free


def simulate(
    traffic: Traffic, device: str | Device, work: Work, *,
    lookahead: str = "layer", miss: str = "wait", overlap: bool = True,
) -> Timeline:  # fmt: skip
    """Play the traffic of a buffer on a device (module docstring).

    traffic: counts (T, L). lookahead: when a guess was ordered: "layer" or "token" before. miss: "wait" or "drop".
    Raises MinillmError for another word.
    """
    device = device_named(device)
    if lookahead not in LOOKAHEADS:
        raise MinillmError(f"lookahead is {lookahead!r}, expected one of {', '.join(LOOKAHEADS)}")
    if miss not in MISSES:
        raise MinillmError(f"miss is {miss!r}, expected one of {', '.join(MISSES)}")
    tokens, layers = traffic.requested.shape
    missed, guessed = traffic.late(miss).tolist(), traffic.prefetched.tolist()
    computed = traffic.computed(miss).tolist()
    lanes = _Lanes(device, work.neuron_bytes)
    arriving: dict[tuple[int, int], float] = {}  # (token, layer) -> when its guess is there
    behind = [0.0] * layers  # when the neurons that a layer dropped last are there
    ends = np.empty(tokens)
    for t in range(tokens):
        for layer in range(layers):
            lanes.compute("rest", t, layer, work.layer)
            if first(t, layer, lookahead):
                arriving[t, layer] = lanes.fetch("prefetch", t, layer, guessed[t][layer])
            late = lanes.fetch("fetch", t, layer, missed[t][layer])
            later, next_layer = after(t, layer, lookahead)
            if later < tokens and next_layer < layers:
                arriving[later, next_layer] = lanes.fetch("prefetch", later, next_layer, guessed[later][next_layer])
            if not overlap:
                lanes.wait(t, layer, lanes.free)
            lanes.wait(t, layer, max(arriving.pop((t, layer)), late if miss == "wait" else behind[layer]))
            behind[layer] = late
            lanes.compute("ffn", t, layer, computed[t][layer] * work.neuron)
        lanes.compute("head", t, layers, work.token)
        ends[t] = lanes.now
    return Timeline(device, lanes.intervals, ends)
