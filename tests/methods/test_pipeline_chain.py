"""A text through real processes: the same bits, counted bytes, a killed server, a liar, and nothing left behind."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods import pipeline_server as wire
from minillm.methods.pipeline import Server, bases_of, cut_places, low_rank_variant, partition
from minillm.methods.pipeline_chain import Chain, layer_costs

IDS = [1, 5, 3, 9, 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("chain") / "m", "float32", num_hidden_layers=3)


def continued(chain, model, count, at=None, event=lambda: None) -> list[bool]:
    """Go on greedily; whether each of the logits is that of one process, bit for bit. at: before which token."""
    cache, new, same = minillm.KVCache(model.config, chain.capacity, model.dtype), IDS, []
    for number in range(count):
        if number == at:
            event()
        alone = model.forward(new, cache)
        same.append(np.array_equal(chain.forward(new), alone))
        new = [int(alone[-1].argmax())]
    return same


def nothing_is_left() -> bool:
    """Whether no process of a chain lives."""
    return not multiprocessing.active_children()


def test_the_logits_are_those_of_one_process_and_the_bytes_those_of_the_formula(model, monkeypatch):
    counted = {"sent": 0, "received": 0}
    plain_send, plain_receive = socket.socket.sendall, wire.received

    def sendall(self, data, *flags):
        counted["sent"] += len(data)
        return plain_send(self, data, *flags)

    def received(link, count):
        counted["received"] += count
        return plain_receive(link, count)

    with Chain(model, [Server("a"), Server("b"), Server("c")], 12) as chain:
        port = chain.links[0].socket.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):  # nobody listens once all servers are there
            socket.create_connection(("127.0.0.1", port), 5).close()
        chain.forward(IDS[:1])  # all servers have their weights
        monkeypatch.setattr(socket.socket, "sendall", sendall)
        monkeypatch.setattr(wire, "received", received)
        chain.forward(IDS[:3])
        chain.forward(IDS[:1])
        monkeypatch.undo()
        expected = chain.bytes_of_text([3, 1])
        assert expected == 2 * 3 * (24 + 3 * 8 * 4) + 2 * 3 * (24 + 8 * 4)
        assert counted == {"sent": expected // 2, "received": expected // 2}
        assert sum(link.bytes["text"] for link in chain.links) == expected + chain.bytes_of_text([1])
        weights = [sum(24 + a.nbytes for a in layer.weights().values()) + 24 + 3 * 8 for layer in model.layers]
        assert [row["weight_bytes"] for row in chain.rows()] == weights
        with pytest.raises(MinillmError, match="the text has 13 tokens, the chain takes 12"):
            chain.forward(IDS + IDS[:3])
    assert nothing_is_left()


def test_a_killed_server_costs_nothing_but_its_text_once_more(model):
    with Chain(model, [Server("a"), Server("b"), Server("c")], 20, checked=0.3) as chain:
        assert [tuple(part.where) for part in chain.parts] == [(0, 1), (1, 2), (2, 3)]
        assert all(continued(chain, model, 10, 4, chain.links[1].process.kill))
        rows = chain.rows()
        assert [row["state"] for row in rows] == ["serving", "lost", "serving"] and rows[1]["layers"] is None
        assert sorted(row["layers"] for row in rows if row["layers"]) in (["0", "1, 2"], ["0, 1", "2"])
        again = [row["again_bytes"] for row in rows]
        assert sorted(again) == [0, 0, 2 * (24 + 5 * 32) + 3 * 2 * (24 + 32)]  # the prompt, and three tokens
        assert sum(row["text_bytes"] for row in rows) == chain.bytes_of_text([5] + [1] * 9)
        assert [(row["wrong"], row["trust"]) for row in rows] == [(0, pytest.approx(1))] * 3 and chain.position == 14
        chain.links[0].process.kill()
        chain.links[2].process.kill()
        with pytest.raises(MinillmError, match="no server is left that can hold the layers"):
            chain.forward([3])
    assert nothing_is_left()


def test_a_liar_is_excluded_and_where_all_is_checked_the_text_is_right(model):
    servers = [Server("a"), Server("liar", lies=0.3), Server("spare", speed=1.0)]
    with Chain(model, servers, 60, checked=1.0) as chain:
        assert all(continued(chain, model, 50))
        a, liar, spare = chain.rows()
        assert (liar["state"], liar["layers"]) == ("excluded", None) and liar["wrong"] >= 2
        assert a["state"] == spare["state"] == "serving" and a["wrong"] == spare["wrong"] == 0
    assert nothing_is_left()


def test_hidden_states_of_low_rank_give_what_the_model_gives_with_them(model):
    servers = [Server("a"), Server("b")]
    bases = bases_of(model, tiny.STORIES, cut_places(partition(servers, layer_costs(model), 1)), 5)
    made = low_rank_variant(model, bases, tiny.STORIES)
    with Chain(model, servers, 12, bases=bases, checked=1.0) as chain:
        np.testing.assert_allclose(chain.forward(IDS), model.forward(IDS, tap=made.tap), atol=1e-4)
        assert chain.bytes_of_text([5]) == sum(link.bytes["text"] for link in chain.links) == 4 * (24 + 5 * 5 * 4)
        assert not any(row["wrong"] for row in chain.rows())


def test_servers_that_cannot_hold_the_model_or_do_not_start_are_refused(model, monkeypatch):
    with pytest.raises(MinillmError, match="the 1 servers cannot hold the 3 layers"):
        Chain(model, [Server("small", memory=100.0)], 12)
    with pytest.raises(MinillmError, match=r"bases are for the places \[0\], expected \[0, 3\]"):
        Chain(model, [Server("a")], 12, bases=bases_of(model, tiny.STORIES, [0], 5))
    monkeypatch.setattr(wire, "serve", int)  # a process that ends with an error
    monkeypatch.setattr("multiprocessing.process.BaseProcess.is_alive", lambda process: False)
    with pytest.raises(MinillmError, match="0 of 1 servers started"):
        Chain(model, [Server("a")], 12)


SCRIPT = """
import time
import minillm
from minillm.methods.pipeline import Server
from minillm.methods.pipeline_chain import Chain

if __name__ == "__main__":
    with Chain(minillm.load("default"), [Server("a"), Server("b")], 10) as chain:
        print(*(link.process.pid for link in chain.links), flush=True)
        time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_server_outlives_its_client(tmp_path, name):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    client = subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    servers = [int(word) for word in client.stdout.readline().split()]
    assert len(servers) == 2 and all(map(alive, servers))
    client.send_signal(getattr(signal, name))
    client.wait(20)
    end = time.monotonic() + 20
    while any(map(alive, servers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, servers))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace('if __name__ == "__main__"', "if True"), encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "0 of 2 servers started, expected all of them" in done.stderr
    assert "__main__" in done.stderr.splitlines()[-1]
