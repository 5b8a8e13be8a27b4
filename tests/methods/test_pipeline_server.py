"""Messages on a socket, byte by byte, and a server that is run in a thread here."""

import socket
import threading

import numpy as np
import pytest
import tiny

import minillm
from minillm.methods import pipeline_server as wire
from minillm.methods.pipeline_server import Held, Lost, Message, Start


@pytest.fixture
def ends():
    """Two connected sockets."""
    one, other = socket.socketpair()
    one.settimeout(10)
    other.settimeout(10)
    yield one, other
    one.close()
    other.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7,), (5, 1)])
def test_a_message_comes_back_as_it_was_and_has_the_bytes_of_the_formula(ends, dtype, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    size = wire.send(ends[0], Message(wire.HIDDEN, 3, array))
    ends[0].shutdown(socket.SHUT_WR)
    raw = bytes(wire.received(ends[1], size))
    assert ends[1].recv(1) == b"" and size == wire.message_bytes(array) == 24 + array.size * array.itemsize
    one, other = socket.socketpair()
    with one, other:
        one.sendall(raw)
        kind, part, again = wire.receive(other)
    assert (kind, part, again.dtype, again.shape) == (wire.HIDDEN, 3, dtype, shape) and np.array_equal(again, array)


def test_what_is_no_message_is_a_lost_server_and_nothing_large_is_allocated(ends):
    for bad in (b"\0" * 24, wire.HEADER.pack(b"H", b"f", b"2", 0, 1 << 40, 1 << 40)):
        ends[0].sendall(bad)
        with pytest.raises(Lost, match="no message"):
            wire.receive(ends[1])
    ends[0].sendall(b"123")
    ends[0].close()
    with pytest.raises(Lost, match="was closed"):
        wire.receive(ends[1])
    ends[1].settimeout(0.01)
    with pytest.raises(Lost):
        wire.send(ends[0], Message(wire.HIDDEN, 0, np.ones((1, 1))))


EVERY = ["plain", *tiny.FAMILIES, *tiny.OTHERS]


@pytest.mark.parametrize("family", EVERY)
def test_the_layers_of_a_slice_give_the_hidden_states_of_the_model(family):
    more = {"no_rope_layers": [0, 1, 1]} if family == "smollm3" else {}
    model = tiny.model(family, num_hidden_layers=3, **more)
    ids = np.array([1, 5, 3, 9, 30])
    with minillm.Trace(keep="blocks.*.resid_p*") as trace:
        model.forward(ids, minillm.KVCache(model.config, 8, model.dtype), tap=trace)  # longrope asks for the length
    held = Held(model.config, model.layers[1:], 8, model.dtype)
    h = trace["blocks.1.resid_pre"]
    whole = np.vstack([held.run(h[:3]), held.run(h[3:4]), held.run(h[4:])])
    np.testing.assert_allclose(whole, trace["blocks.2.resid_post"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "lies"), [*((family, 0.0) for family in EVERY), ("qwen2", 1.0)])
def test_a_server_answers_until_the_client_is_gone(ends, family, lies):
    model = tiny.model(family)
    start = Start(0, 0, b"", model.config, "float64", 8, lies)

    def run():
        with pytest.raises(Lost):
            wire.answer(ends[1], start)

    thread = threading.Thread(target=run)
    thread.start()
    names = wire.weight_names(model.config, 1, 2)
    assert sorted(names) == sorted(model.layers[1].weights())
    wire.send(ends[0], Message(wire.LAYERS, 5, np.array([1.0, 2.0, 0.0])))
    for name in names:
        wire.send(ends[0], Message(wire.ARRAY, 5, model.weights[name]))
    h, own = np.random.default_rng(0).normal(size=(3, 8)), Held(model.config, model.layers[1:], 8, model.dtype)
    wire.send(ends[0], Message(wire.HIDDEN, 5, h))
    kind, part, answer = wire.receive(ends[0])
    assert (kind, part) == (wire.HIDDEN, 5) and np.array_equal(answer, own.run(h)) == (lies == 0)
    ends[0].close()
    thread.join(10)
    assert not thread.is_alive()
