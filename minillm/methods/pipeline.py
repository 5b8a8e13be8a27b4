"""A model spread over several servers, each with some of its layers: the plan, the trust, and what is sent.

eFedLLM (Ding and Hu 2024, arXiv 2411.16003). A client holds the embedding and the head. Servers hold the layers, as
slices of neighbouring ones, and a text goes through them one after the other. The servers belong to strangers, so some
of their answers are computed again (a verifier), and a server that lies is excluded. The paper calculates with formulas
and runs no model; here the servers are processes that run one (pipeline_server.py, pipeline_chain.py).

**Plan.** Slice l .. m - 1 on server s takes, for each token,

    t(s, l, m) = sum of flops of its layers / speed_s + 2 D bytes / bandwidth_s

and has to fit into the server's memory. The slowest stage sets the pace of a chain that is full, so we look for cuts
0 = c_0 <= c_1 <= ... <= c_S = L that make max_s t(s, c_{s-1}, c_s) least (a server may stay empty):

    best[s, m] = min over l <= m of max(best[s - 1, l], t(s, l, m))

**Trust.** A checked answer has a relative error e against the verifier's own. A right one (e < TOLERANCE) counts as 1,
a wrong one as 0:

    q <- (1 - BETA) q + BETA [e < TOLERANCE]        q = 1 at the start; a server with q < LEAST_TRUST is excluded

A server that never lies keeps q = 1: it is never excluded. How soon another one is depends on how often it lies, and
``excluded_within`` computes it.

**What is sent.** Hidden states, T rows of D numbers, to each server and back. With ``rank`` k they are sent as k
coefficients in a basis B (D, k) of the directions that hidden states of a calibration text have:

    c = h B        (T, k)        h ~ c B^T        B: the first k eigenvectors of sum_t h_t^T h_t

That loses something at every link, and perplexity says how much (``low_rank_variant``). The paper also sends weights
as products of low rank: that is svd.py.

Pitfalls. "Federated" is only the name: no gradients are averaged. Answers are compared bit by bit only where both sides
run the same program on the same kind of processor. Elsewhere a tolerance is needed, and a liar can hide below it. A lie
that nobody checks stays in the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import MinillmError
from ..sparsity.spec import SparsitySpec
from ..transformer.evaluation import pass_over
from ..transformer.layer import Layer
from ..transformer.model import Llama
from ..transformer.texts import document_hashes, runs
from .base import INPUTS, Variant, products

TOLERANCE = 1e-6  # relative error below which an answer counts as right
BETA = 0.3  # how much the last check counts
LEAST_TRUST = 0.6  # two wrong answers among three checks in a row are enough
GRID = 10_000  # steps of trust from 0 to 1, where its distribution is computed


# ---- the plan --------------------------------------------------------------------------------------------------------
class Server(NamedTuple):
    """What is known of a server. speed: flops per second. memory: bytes. bandwidth: bytes per second.

    lies: the probability that an answer is wrong; the client does not know it.
    """

    name: str
    speed: float = 1e9
    memory: float = math.inf
    bandwidth: float = 1e8
    lies: float = 0.0


class Slice(NamedTuple):
    """The layers first .. last - 1."""

    first: int
    last: int


def layer_costs(model: Llama) -> list[tuple[float, int]]:
    """Of each layer: (flops for a token, bytes of its weights). A weight is one multiplication and one addition."""
    return [
        (2.0 * sum(getattr(layer, name).size for name in INPUTS), sum(a.nbytes for a in layer.weights().values()))
        for layer in model.layers
    ]


def stage_time(server: Server, costs: Sequence[tuple[float, int]], sent: int) -> float:
    """Seconds that a server takes for a token; infinity where its memory is too small.

    costs: of the layers of its slice; none: the server is passed over. sent: bytes to it and back.
    """
    if not costs:
        return 0.0
    if sum(size for _, size in costs) > server.memory:
        return math.inf
    return sum(flops for flops, _ in costs) / server.speed + sent / server.bandwidth


def partition(servers: Sequence[Server], costs: Sequence[tuple[float, int]], sent: int) -> list[Slice]:
    """A slice for each server, in their order, so that the slowest is as fast as can be (module docstring).

    costs: ``layer_costs``. sent: bytes to a server and back, for a token. Raises MinillmError where the memories of all
    servers do not hold the layers.
    """
    layers = len(costs)
    best = [[0.0] + [math.inf] * layers]  # best[s][m]: the first m layers on the first s servers
    cut: list[list[int]] = []
    for server in servers:
        row, cuts = [], []
        for m in range(layers + 1):
            times = [max(best[-1][i], stage_time(server, costs[i:m], sent)) for i in range(m + 1)]
            cuts.append(min(range(m + 1), key=times.__getitem__))
            row.append(times[cuts[-1]])
        best.append(row)
        cut.append(cuts)
    if math.isinf(best[-1][-1]):
        needed = sum(size for _, size in costs)
        raise MinillmError(f"the {len(servers)} servers cannot hold the {layers} layers of {needed:,} bytes in slices")
    slices, last = [], layers
    for cuts in reversed(cut):
        slices.append(Slice(cuts[last], last))
        last = cuts[last]
    return slices[::-1]


# ---- trust -----------------------------------------------------------------------------------------------------------
@dataclass
class Trust:
    """What the client thinks of a server: q, and how many answers were checked and were wrong."""

    value: float = 1.0
    checks: int = 0
    wrong: int = 0

    def add(self, right: bool) -> None:
        """Take in one checked answer."""
        self.value = (1 - BETA) * self.value + BETA * right
        self.checks, self.wrong = self.checks + 1, self.wrong + (not right)

    @property
    def lost(self) -> bool:
        """Whether the server is to be excluded."""
        return self.value < LEAST_TRUST


def is_right(answer: np.ndarray, own: np.ndarray) -> bool:
    """Whether |answer - own| < TOLERANCE |own|; one that is no number is never right."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.linalg.norm(answer - own) < TOLERANCE * np.linalg.norm(own))


def excluded_within(checks: int, lies: float) -> np.ndarray:
    """The probability that a server is excluded after 1, 2, ... checks; lies: that an answer is wrong.  (checks,).

    The distribution of q, on a grid of GRID steps, moved on check by check.
    """
    places = np.arange(GRID + 1)
    after_lie = np.rint((1 - BETA) * places).astype(int)
    after_truth = np.rint((1 - BETA) * places + BETA * GRID).astype(int)
    at = np.zeros(GRID + 1)
    at[GRID] = 1.0
    excluded = np.zeros(checks)
    for check in range(checks):
        moved = np.zeros(GRID + 1)
        np.add.at(moved, after_lie, lies * at)
        np.add.at(moved, after_truth, (1 - lies) * at)
        out = places < LEAST_TRUST * GRID
        excluded[check] = moved[out].sum() + (excluded[check - 1] if check else 0.0)
        at = np.where(out, 0.0, moved)
    return excluded


# ---- hidden states of low rank ---------------------------------------------------------------------------------------
def cut_places(slices: Sequence[Slice]) -> list[int]:
    """The places where hidden states are sent: in front of each slice that is not empty, and behind the last one."""
    filled = [each for each in slices if each.first < each.last]
    return [*(each.first for each in filled), filled[-1].last]


def steps_at(model: Llama, places: Sequence[int]) -> dict[str, int]:
    """{name of the step: place}: what goes into layer ``place``, or comes out of the last one."""
    layers = len(model.layers)
    return {
        f"blocks.{place}.resid_pre" if place < layers else f"blocks.{layers - 1}.resid_post": place for place in places
    }


def bases_of(
    model: Llama, documents: str | Sequence[str], places: Sequence[int], rank: int, context: int | None = None
) -> dict[int, np.ndarray]:
    """For each place the basis B (D, k) of the hidden states of a text there (module docstring).

    Raises MinillmError for a rank that is not from 1 to D.
    """
    if not 1 <= rank <= model.config.hidden_size:
        raise MinillmError(f"rank is {rank}, expected 1 to {model.config.hidden_size}, the size of a hidden state")
    steps = steps_at(model, places)
    sums: dict[int, np.ndarray] = {}

    def look(name: str, value: np.ndarray) -> np.ndarray:
        if name in steps:
            sums[steps[name]] = sums.get(steps[name], 0) + products(value)
        return value

    pass_over(model, runs(model, documents, "documents", context), look, what="fitting")
    largest_first = {place: np.linalg.eigh(moment)[1][:, ::-1] for place, moment in sums.items()}  # (D, D) each
    return {place: np.ascontiguousarray(b[:, :rank]).astype(model.dtype) for place, b in largest_first.items()}


def low_rank_variant(
    model: Llama, bases: dict[int, np.ndarray], documents: str | Sequence[str]
) -> Variant:  # fmt: skip
    """The model whose hidden states are of rank k wherever they are sent: what a chain with these bases computes.

    documents: those that the bases were made from.
    """
    steps = steps_at(model, list(bases))
    size, rank = next(iter(bases.values())).shape

    def tap(name: str, value: np.ndarray) -> np.ndarray:
        return (value @ bases[steps[name]]) @ bases[steps[name]].T if name in steps else value

    spec = SparsitySpec(
        "pipeline", ("resid_pre",), f"{rank} largest directions", "tensor", 1 - rank / size,
        layer_scope=f"the {len(bases)} places where hidden states are sent", granularity="one basis per place",
    )  # fmt: skip
    return Variant("pipeline", model, tap=tap, spec=spec, calibrated_on=frozenset(document_hashes(documents)))


def layers_of(model: Llama, part: Slice) -> list[Layer]:
    """The layers of a slice."""
    return model.layers[part.first : part.last]
