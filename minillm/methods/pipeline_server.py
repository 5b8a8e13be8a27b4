"""One server of a pipeline: a process that holds slices of a model and answers over a socket.

    the client's process                                 a server's process
    listens at 127.0.0.1, any free port             <-   connects, sends its number and the password
    "L" slice, its layers; then "A" each array      ->   holds the slice, with an empty cache
    "H" slice, hidden states (T, D)                 ->   runs its layers
                                                    <-   "H" slice, hidden states (T, D)
    closes the connection                           ->   ends

A message is a header of 24 bytes and the numbers of one array, row by row:

    kind 1, dtype 1, dimensions 1, (unused) 1, slice 4, rows 8, columns 8        little-endian

So the bytes on a socket are known beforehand: HEADER + rows * columns * size of a number (``message_bytes``). Nothing
that is received is ever executed or unpickled.

The connection stays on this machine, and only who knows the password is let in. A server ends with its connection: no
process outlives the client, however that ends. Spawned processes work alike on Linux, macOS and Windows.
"""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..loading.config import ModelConfig
from ..threads import use_threads
from ..trace import no_tap
from ..transformer.attention import KVCache
from ..transformer.blocks import block, positions_of
from ..transformer.ffn import swiglu
from ..transformer.layer import Layer
from ..transformer.ops import no_warnings

HEADER = struct.Struct("<cccxIQQ")
MOST = 1 << 40  # numbers of an array
DTYPES: dict[bytes, np.dtype] = {b"f": np.dtype("<f4"), b"d": np.dtype("<f8")}
LAYERS, ARRAY, HIDDEN = b"L", b"A", b"H"
PASSWORD = 32  # bytes
HELLO = struct.Struct(f"<I{PASSWORD}s")  # number of the server, password
NOISE = 0.1  # size of a lie, relative to the answer


class Lost(Exception):
    """The other end is gone, or what it says is no message."""


# ---- messages --------------------------------------------------------------------------------------------------------
class Message(NamedTuple):
    """kind: LAYERS (array: first and last + 1 of the layers), ARRAY or HIDDEN. part: the number of the slice."""

    kind: bytes
    part: int
    array: np.ndarray


def message_bytes(array: np.ndarray) -> int:
    """Bytes of a message with this array."""
    return HEADER.size + array.nbytes


def send(link: socket.socket, message: Message) -> int:
    """Send a message; gives its bytes. Raises Lost where nobody is there any more."""
    array = np.ascontiguousarray(message.array)
    letter = next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
    rows, columns = array.shape if array.ndim == 2 else (array.size, 1)
    header = HEADER.pack(message.kind, letter, str(array.ndim).encode(), message.part, rows, columns)
    try:
        link.sendall(header)
        link.sendall(array.astype(DTYPES[letter], copy=False).data.cast("B"))
    except OSError as problem:
        raise Lost(str(problem)) from None
    return message_bytes(array)


def receive(link: socket.socket, most: int = MOST) -> Message:
    """The next message, with at most so many numbers. Raises Lost where there is none."""
    kind, letter, dimensions, part, rows, columns = HEADER.unpack(received(link, HEADER.size))
    if letter not in DTYPES or dimensions not in (b"1", b"2") or rows * columns > most:
        raise Lost("what came is no message")
    dtype = DTYPES[letter]
    array = np.frombuffer(received(link, rows * columns * dtype.itemsize), dtype)
    return Message(kind, part, array.reshape(rows, columns) if dimensions == b"2" else array)


def received(link: socket.socket, count: int) -> bytearray:
    """Exactly so many bytes. Raises Lost where the connection ends, or nothing comes for too long."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        try:
            more = link.recv_into(view[done:])
        except OSError as problem:  # a timeout is one, too
            raise Lost(str(problem)) from None
        if not more:
            raise Lost("the connection was closed")
        done += more
    return data


# ---- layers with a cache ---------------------------------------------------------------------------------------------
class Held:
    """Some layers of a model, and the keys and values of the text that went through them.

    bases: what hidden states are sent in, before the first layer and behind the last: B (D, k) each, or None.
    """

    def __init__(
        self, config: ModelConfig, layers: Sequence[Layer], capacity: int, dtype: np.dtype,
        bases: tuple[np.ndarray, np.ndarray] | None = None,
    ):  # fmt: skip
        self.config, self.layers, self.bases = config, layers, bases
        self.cache = KVCache(config, capacity, dtype)

    @no_warnings
    def run(self, h: np.ndarray) -> np.ndarray:
        """The next T positions of the text through all of the layers: h (T, D) -> (T, D), or coefficients (T, k)."""
        if self.bases is not None:
            h = h @ self.bases[0].T  # (T, D)
        positions = positions_of(self.config, len(h), h.dtype, self.cache)
        for layer in self.layers:
            h = block(h, layer, positions, swiglu, no_tap)  # (T, D)
        self.cache.advance(len(h))
        return h if self.bases is None else h @ self.bases[1]


# ---- the process -----------------------------------------------------------------------------------------------------
class Start(NamedTuple):
    """What a server's process is given: where the client listens, who it is, and the shape of the model.

    lies: the probability that an answer is wrong; a part of the study.
    """

    port: int
    number: int
    password: bytes
    config: ModelConfig
    dtype: str
    capacity: int
    lies: float


def serve(start: Start) -> None:
    """Answer the client until it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's: it closes the connection
    with socket.create_connection(("127.0.0.1", start.port)) as link, use_threads(1):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(HELLO.pack(start.number, start.password))
        try:
            answer(link, start)
        except Lost:
            return


def answer(link: socket.socket, start: Start) -> None:
    """Hold the slices that come, and run what is asked for. Ends with Lost."""
    held: dict[int, Held] = {}
    rng = np.random.default_rng(start.number)
    while True:
        message = receive(link)
        if message.kind == LAYERS:
            held[message.part] = received_slice(link, message.array, start)
            continue
        y = held[message.part].run(message.array)
        if rng.random() < start.lies:
            y = y + (NOISE * np.abs(y).mean() * rng.standard_normal(y.shape)).astype(y.dtype)
        send(link, Message(HIDDEN, message.part, y))


def received_slice(link: socket.socket, about: np.ndarray, start: Start) -> Held:
    """The layers first .. last - 1, whose arrays come in the order of ``weight_names``; then the bases, if any."""
    first, last, based = (int(number) for number in about)
    weights = {}
    for name in weight_names(start.config, first, last):
        weights[name] = receive(link).array
    layers = [Layer.from_weights(start.config, weights, index) for index in range(first, last)]
    bases = (receive(link).array, receive(link).array) if based else None
    return Held(start.config, layers, start.capacity, np.dtype(start.dtype), bases)


def weight_names(config: ModelConfig, first: int, last: int) -> list[str]:
    """The names of the weights of some layers, in the order in which they are sent."""
    wanted = tuple(f"model.layers.{index}." for index in range(first, last))
    return [name for name in config.weight_shapes() if name.startswith(wanted)] if wanted else []
