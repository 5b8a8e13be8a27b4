"""Traces of which neurons each token needs, and buffers that replay them; a predictor that guesses them."""

import numpy as np
from hypothesis import strategies as st

from minillm.predictors.baselines import PreviousToken, Static
from minillm.prefetch.buffer import PrefetchBuffer

DEMAND = ("lru", "lfu", "window-0", "window-1", "window-3")


@st.composite
def traces(draw, layers: int = 1, tokens: int = 12, neurons: int = 7):
    shape = draw(st.integers(1, tokens)), layers, draw(st.integers(1, neurons))
    share, seed = draw(st.sampled_from([0.1, 0.3, 0.6, 0.9])), draw(st.integers(0, 10**6))
    return np.random.default_rng(seed).random(shape) < share


def replayed(trace: np.ndarray, capacity: int, eviction, start=None, guesses=None) -> PrefetchBuffer:
    buffer = PrefetchBuffer(trace.shape[1], trace.shape[2], capacity, eviction, start=start)
    buffer.follow(trace, guesses)
    buffer.run()
    return buffer


def hits(trace: np.ndarray, capacity: int, eviction, start=None) -> int:
    return int(replayed(trace, capacity, eviction, start).traffic().hit.sum())


def guesser(model) -> PreviousToken:
    """What the token before needed: a guess that can be made a token ahead."""
    layers, neurons = model.config.num_hidden_layers, model.config.intermediate_size
    static = Static((layers, model.config.hidden_size, neurons), np.full((layers, neurons), 0.5, np.float32))
    found = PreviousToken(static)
    found.cutoffs = np.full(layers, 0.9)
    return found
