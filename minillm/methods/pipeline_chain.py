"""The client of a pipeline: it starts the servers, sends a text through them, checks answers, and replaces a server.

    with Chain(model, servers, capacity=64) as chain:
        logits = chain.forward(ids)            the prompt: (T,) -> (T, V)
        logits = chain.forward([token])        and so on, token by token

A script has to do so under ``if __name__ == "__main__":``, since each server imports it once more (multiprocessing).

The client stands between any two servers: each answer comes back to it and goes on to the next. (In the paper a server
sends straight to the next one, which saves half of the bytes. But who checks answers, and who replaces a server, has to
have them.) What is sent for a chunk of T positions, in hidden states of n numbers (D, or the rank k):

    2 * number of slices * (HEADER + T n * size of a number)        ``bytes_of_text``

**A server is lost** (killed, unreachable) or excluded (pipeline.py: trust). Its slices go to the servers that are left,
each to the one where the slowest stage is then the fastest. The new one has no keys and values of the text so far. The
client has kept what it sent to the slice, and sends it once more, in the same chunks: so the caches, and the text, are
the same bit for bit.

**The verifier** is the client. An answer depends on all positions before it, so a check runs those, too, unless earlier
checks have. An answer that is found wrong is replaced by the verifier's own. What a liar said unchecked stays.
"""

from __future__ import annotations

import math
import multiprocessing
import secrets
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess

import numpy as np

from ..errors import MinillmError
from ..threads import use_threads
from ..trace import no_tap
from ..transformer.model import Ids, Llama
from . import pipeline_server as wire
from .pipeline import Server, Slice, Trust, cut_places, is_right, layer_costs, layers_of, partition, stage_time
from .pipeline_server import Held, Lost, Message, Start

SECONDS = 60.0  # that a server may take to start, and to answer


@dataclass
class Link:
    """The client's end of one server. bytes: of messages over its socket, by purpose. parts: numbers of its slices."""

    server: Server
    process: SpawnProcess
    socket: socket.socket
    parts: list[int] = field(default_factory=list)
    trust: Trust = field(default_factory=Trust)
    bytes: Counter[str] = field(default_factory=Counter)
    state: str = "serving"  # or "lost", "excluded"

    def ask(self, part: int, h: np.ndarray, purpose: str) -> np.ndarray:
        """Run a slice on a chunk.  h (T, n)  ->  (T, n). Raises Lost, also for an answer of another kind or shape."""
        sent = wire.send(self.socket, Message(wire.HIDDEN, part, h))
        message = wire.receive(self.socket, h.size)
        if (message.kind, message.part) != (wire.HIDDEN, part) or message.array.shape != h.shape:
            raise Lost("it answers another question")
        self.bytes[purpose] += sent + wire.message_bytes(message.array)
        return message.array.astype(h.dtype, copy=False)

    def close(self) -> None:
        """End the connection, and with it the process."""
        self.socket.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@dataclass
class Part:
    """One slice: the chunks that were answered, and the verifier's copy with how many of them it has run."""

    where: Slice
    own: Held
    inputs: list[np.ndarray] = field(default_factory=list)
    done: int = 0

    def right(self) -> np.ndarray:
        """The verifier's answer to the last chunk; it runs the chunks before it that it has not run yet."""
        for h in self.inputs[self.done :]:
            answer = self.own.run(h)
        self.done = len(self.inputs)
        return answer


class Chain:
    """A text that goes through servers (module docstring); use it in a ``with`` block, which ends all processes.

    capacity: the longest text. checked: share of the answers that are computed again. bases: of hidden states
    (``bases_of``), None: they are sent whole. rng: which answers are checked. Raises MinillmError where the servers
    cannot hold the model, do not start, or none is left, and for bases of another plan.
    """

    def __init__(
        self, model: Llama, servers: Sequence[Server], capacity: int, *, checked: float = 0.0,
        bases: dict[int, np.ndarray] | None = None, rng: np.random.Generator | None = None,
    ):  # fmt: skip
        self.model, self.capacity, self.checked, self.bases = model, capacity, checked, bases
        self.rng = rng or np.random.default_rng(0)
        self.costs, self.position = layer_costs(model), 0
        width = model.config.hidden_size if bases is None else next(iter(bases.values())).shape[1]
        self.sent = 2 * width * model.dtype.itemsize  # bytes of a token to a server and back
        slices = partition(servers, self.costs, self.sent)
        if bases is not None and sorted(bases) != cut_places(slices):
            raise MinillmError(f"bases are for the places {sorted(bases)}, expected {cut_places(slices)}")
        self.links: list[Link] = []
        try:
            self._start(servers)
            self.parts = [Part(s, self._held(s)) for s in slices if s.first < s.last]
            serving = [link for link, s in zip(self.links, slices, strict=True) if s.first < s.last]
            for number, link in enumerate(serving):
                self._assign(number, link)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all servers."""
        for link in self.links:
            link.close()

    # ---- starting ----------------------------------------------------------------------------------------------------
    def _start(self, servers: Sequence[Server]) -> None:
        """Start one process for each server, and wait until all have said the password."""
        spawn, password = multiprocessing.get_context("spawn"), secrets.token_bytes(wire.PASSWORD)
        about = (self.model.config, self.model.dtype.name, self.capacity)
        processes: list[SpawnProcess] = []
        sockets: dict[int, socket.socket] = {}
        try:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.settimeout(1.0)
                for number, server in enumerate(servers):
                    start = Start(listener.getsockname()[1], number, password, *about, server.lies)
                    processes.append(spawn.Process(target=wire.serve, args=(start,), daemon=True))
                    processes[-1].start()
                end = time.monotonic() + SECONDS
                while len(sockets) < len(servers):
                    if time.monotonic() > end or not all(process.is_alive() for process in processes):
                        found = f"{len(sockets)} of {len(servers)} servers started, expected all of them"
                        raise MinillmError(f"{found} (a script needs: if __name__ == '__main__')")
                    with suppress(TimeoutError):
                        self._welcome(listener.accept()[0], password, sockets)
        except BaseException:
            for process in processes:
                process.kill()
            for link in sockets.values():
                link.close()
            raise
        for number, server in enumerate(servers):
            self.links.append(Link(server, processes[number], sockets[number]))

    @staticmethod
    def _welcome(link: socket.socket, password: bytes, sockets: dict[int, socket.socket]) -> None:
        """Take a connection in under its server's number; close one that does not say the password."""
        link.settimeout(5.0)
        try:
            number, said = wire.HELLO.unpack(wire.received(link, wire.HELLO.size))
        except Lost:
            number, said = 0, b""
        if not secrets.compare_digest(said, password):
            link.close()
            return
        link.settimeout(SECONDS)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[number] = link

    def _held(self, where: Slice) -> Held:
        """The verifier's copy of a slice; it shares the weights of the model."""
        bases = None if self.bases is None else (self.bases[where.first], self.bases[where.last])
        return Held(self.model.config, layers_of(self.model, where), self.capacity, self.model.dtype, bases)

    def _assign(self, number: int, link: Link) -> None:
        """Give a slice to a server, with the text so far; where the server is lost over it, to another one."""
        link.parts.append(number)
        try:
            self._place(number, link)
            for h in self.parts[number].inputs:
                link.ask(number, h, "text again")
        except Lost:
            self._drop(link, "lost")

    def _place(self, number: int, link: Link) -> None:
        """Send a slice to a server: the layers' weights, and the bases of what it is sent."""
        where, bases = self.parts[number].where, self.parts[number].own.bases or ()
        about = np.array([where.first, where.last, len(bases)], np.float64)
        link.bytes["weights"] += wire.send(link.socket, Message(wire.LAYERS, number, about))
        weights = self.model.weights
        names = wire.weight_names(self.model.config, *where)
        for array in (*(weights[name] for name in names), *bases):
            link.bytes["weights"] += wire.send(link.socket, Message(wire.ARRAY, number, array))

    # ---- a text ------------------------------------------------------------------------------------------------------
    def forward(self, ids: Ids) -> np.ndarray:
        """The next tokens of the text: ids (T,) -> logits (T, V), those of ``Llama.forward`` with a cache."""
        array = self.model.check_ids(ids)
        if self.position + len(array) > self.capacity:
            raise MinillmError(f"the text has {self.position + len(array)} tokens, the chain takes {self.capacity}")
        with use_threads(1):
            h = self.model.embed(array, self.position, no_tap)  # (T, D)
            if self.bases is not None:
                h = h @ self.bases[self.parts[0].where.first]  # (T, k)
            for number in range(len(self.parts)):
                h = self._through(number, h)
            if self.bases is not None:
                h = h @ self.bases[self.parts[-1].where.last].T  # (T, D)
            self.position += len(array)
            return self.model.head(self.model.last_norm(h))  # (T, V)

    def _through(self, number: int, h: np.ndarray) -> np.ndarray:
        """A chunk through one slice, whoever holds it; checked or not."""
        part = self.parts[number]
        while True:
            link = self._holder(number)
            try:
                answer = link.ask(number, h, "text")
                break
            except Lost:
                self._drop(link, "lost")
        part.inputs.append(h)
        if self.rng.random() >= self.checked:
            return answer
        own = part.right()
        right = is_right(answer, own)
        link.trust.add(right)
        if link.trust.lost:
            self._drop(link, "excluded")
        return answer if right else own

    def _holder(self, number: int) -> Link:
        """The server that holds a slice."""
        return next(link for link in self.links if number in link.parts)

    def _drop(self, link: Link, state: str) -> None:
        """Take a server out of the chain, and give its slices to others (module docstring)."""
        link.state, orphans = state, link.parts
        link.parts = []
        link.close()
        for number in orphans:
            self._reassign(number)

    def _reassign(self, number: int) -> None:
        """Give a slice to the server where the slowest stage is then the fastest."""
        serving = [link for link in self.links if link.state == "serving"]
        best = min(serving, key=lambda link: self._time(link, number), default=None)
        if best is None or math.isinf(self._time(best, number)):
            where = self.parts[number].where
            raise MinillmError(f"no server is left that can hold the layers {where.first} to {where.last - 1}")
        self._assign(number, best)

    def _time(self, link: Link, number: int) -> float:
        """Seconds per token of a server with one slice more."""
        parts = [self.parts[each].where for each in (*link.parts, number)]
        costs = [cost for where in parts for cost in self.costs[where.first : where.last]]
        return stage_time(link.server, costs, len(parts) * self.sent)

    # ---- what it came to ---------------------------------------------------------------------------------------------
    def bytes_of_text(self, chunks: Sequence[int]) -> int:
        """Bytes that a text in chunks of so many tokens needs (module docstring), where no server is replaced."""
        return len(self.parts) * sum(2 * wire.HEADER.size + count * self.sent for count in chunks)

    def rows(self) -> list[dict[str, object]]:
        """One row for each server: what it holds, what went over its socket, and what is thought of it."""
        found = []
        for link in self.links:
            held = [self.parts[number].where for number in sorted(link.parts)]
            layers = ", ".join(f"{first}-{last - 1}" if last - first > 1 else f"{first}" for first, last in held)
            found.append({
                "server": link.server.name, "speed": link.server.speed, "layers": layers or None, "state": link.state,
                "weight_bytes": link.bytes["weights"], "text_bytes": link.bytes["text"],
                "again_bytes": link.bytes["text again"], "checks": link.trust.checks, "wrong": link.trust.wrong,
                "trust": link.trust.value,
            })  # fmt: skip
        return found
