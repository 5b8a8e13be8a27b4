"""What "50 % sparse" means: one description and one accounting for every sparsity figure.

"Sparsity" can be a share of gate activations, of inputs, of neurons or of weights. Two figures can be compared only
where these fields are known (``SparsitySpec``):

    tensor, comparison, token scope, layer scope, granularity, target and ACHIEVED value

The quantities are always counted in the same way, from the masks of a run and from what it read (``SparsityMeter``):

    neuron sparsity    share of (token, neuron) pairs whose mid is cut to zero
    read_exact         share of [gate, up, down] weights read per token when the policy computes its own mask: whatever
                       decides the mask has to be read first. Rows of gate and up and columns of down; where a policy
                       cuts inputs (teal, wina), columns of all three. Each FFN reports its own: ``tap_reads``
    read_known_mask    the same for a mask that is known beforehand at no cost (a free oracle): three times the density
    union density      share of neurons that at least one of ``window`` successive tokens needs: what a batch reads
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..fields import Fields
from ..steps import place
from ..trace import Tap, no_tap

EVERY_TOKEN = "every token, prompt and continuation alike"
ALL_LAYERS = "all layers"
OWN_SHARES = "all layers, each with its own share of the cuts (greedy)"
PER_NEURON = "one threshold per layer and tensor, one decision per token and neuron"


@dataclass(frozen=True)
class SparsitySpec:
    """The definition behind a sparsity figure.

    tensors: what is compared with a threshold (policies.py). comparison: how a kept value compares with the threshold
    (">", ">="), or how the kept ones are chosen ("top-k", ...). by: what ``target`` counts: "tensor" (share of each cut
    tensor), "neuron" (neuron sparsity), "reads" (share of weights not read), "cett" (share of the output that is lost),
    "ppl" (increase of perplexity), "weights" (share of weights removed permanently).
    target: None where it is unknown. achieved: the same quantity, measured on the text that the figure is about.
    """

    policy: str
    tensors: tuple[str, ...]
    comparison: str
    by: str
    target: float | None
    achieved: float | None = None
    token_scope: str = EVERY_TOKEN
    layer_scope: str = ALL_LAYERS
    granularity: str = PER_NEURON

    def asdict(self) -> dict:
        """The fields as JSON values."""
        return asdict(self) | {"tensors": list(self.tensors)}

    def __str__(self) -> str:
        target = "unknown" if self.target is None else f"{self.target:.3f}"
        achieved = "" if self.achieved is None else f", achieved {self.achieved:.3f}"
        counts = {"reads": "weights not read", "weights": "weights removed", "cett": "CETT"}
        counts["ppl"] = "increase of perplexity"
        return (
            f"{self.policy}: keep {in_words(self.tensors, self.comparison)}; "
            f"{counts.get(self.by, f'{self.by} sparsity')}, target {target}{achieved}; "
            f"{self.token_scope}; {self.layer_scope}; {self.granularity}"
        )


def read_spec(read: Fields, expected: SparsitySpec) -> SparsitySpec:
    """The spec in a thresholds file, where the rest of the file says what it must be.

    expected: made from the file's policy, by, level and tensors. Its target is None where only the spec knows it. Free
    are the achieved value and how the cuts are shared between the layers. Raises an error of read's kind.
    """
    fields = expected.asdict()
    read.only(list(fields))
    for name in fields:
        if name not in read.fields:
            raise read.error(name, "a field of every spec")
    for name in ("policy", "tensors", "comparison", "by", "token_scope", "granularity"):
        if read.fields.get(name) != fields[name]:
            raise read.error(name, f"{fields[name]!r}, as the rest of the file says")
    target = read.between("target", 0, 1)
    if expected.target is not None and target != expected.target:
        raise read.error("target", f"{expected.target:g}, the level of the file")
    # Perplexity may grow by any share, or shrink a little; and rounded shares may lie a hair outside of 0 to 1.
    low, high = (-1, 1e6) if expected.by == "ppl" else (-1e-9, 1 + 1e-9)
    achieved = read.between("achieved", low, high)
    layer_scope = read.choice("layer_scope", [ALL_LAYERS, OWN_SHARES])
    return replace(expected, target=target, achieved=achieved, layer_scope=layer_scope)


def in_words(tensors: tuple[str, ...], comparison: str) -> str:
    """What a rule keeps, in words: "where |gate| > threshold"; of weights, by which score: "weights by |W_ij|, ..."."""
    if tensors == ("weights",):
        return f"weights by {comparison}"
    how = {
        "top-k": "the largest {} of each token",
        "top-p": "the largest {} of each token, up to a share of their sum",
        "statistical": "where {} > mean + std * Phi^-1(threshold), with the mean and std of its token",
        "predicted": "the largest {} as a predictor guesses them",
        "prompt": "the neurons with the largest {} over the first tokens",
    }
    compared = tensors if comparison == "statistical" else [f"|{t}|" for t in tensors]
    return ", ".join(how.get(comparison, f"where {{}} {comparison} threshold").format(t) for t in compared)


def tap_reads(
    tap: Tap, gate: np.ndarray | None, up: np.ndarray | None, down: np.ndarray | None, gated: bool = True
) -> None:
    """Tap ``reads`` (T, 3): the shares of its gate, up and down weights that an FFN read for each token.

    gate, up, down: masks (T, n) of the rows or columns that were read; None for all of them. At least one is a mask.
    gated: False where the FFN has no up matrix; its share is NaN then, and takes no part in a mean.
    """
    if tap is no_tap:
        return
    tokens = next(len(mask) for mask in (gate, up, down) if mask is not None)
    shares = np.ones((tokens, 3))
    for i, mask in enumerate((gate, up, down)):
        if mask is not None:
            shares[:, i] = mask.sum(axis=1, dtype=np.int32) / mask.shape[1]  # int32: a third of the time of a mean
    if not gated:
        shares[:, 1] = np.nan
    tap("reads", shares)  # (T, 3)


@dataclass(frozen=True)
class SparsityReport:
    """The accounting of one run (module docstring). read_* are the shares read of the gate, up and down weights.

    tensor_sparsity: of each cut tensor whose mask was tapped. Policy dhar in the gathered form computes up only for the
    neurons that its gate keeps, so the share that is cut of up is not known there.
    """

    tokens: int
    neuron_sparsity: float
    layer_sparsity: tuple[float, ...]
    tensor_sparsity: dict[str, float]
    read_exact: tuple[float, float, float]
    read_known_mask: tuple[float, float, float]
    union_density: float | None
    union_window: int

    @property
    def weight_reads(self) -> float:
        """Share of the FFN's weights read per token where the policy computes the mask itself."""
        return float(np.nanmean(self.read_exact))  # the three matrices have the same size; of two, up is NaN

    @property
    def weight_reads_known_mask(self) -> float:
        """Share of the FFN's weights read per token by a free oracle."""
        return sum(self.read_known_mask) / 3

    def share_of(self, by: str) -> float:
        """The sparsity as ``by`` counts it: "reads" the share of weights not read, "neuron" the neuron sparsity,
        "tensor" the mean over the cut tensors (the neuron sparsity where no tensor was cut)."""
        if by == "reads":
            return 1 - self.weight_reads
        if by == "neuron" or not self.tensor_sparsity:
            return self.neuron_sparsity
        return float(np.mean(list(self.tensor_sparsity.values())))

    def achieved(self, by: str) -> float | None:
        """The achieved value of a target of kind ``by``; None for a kind that masks cannot show ("cett", "ppl")."""
        return None if by in ("cett", "ppl") else self.share_of(by)


# The masks of cuts. Other masks (the truth, a guess) cut nothing.
MASKS = frozenset(f"mlp.{mask}" for mask in ("mask", "mask_in_gate", "mask_in_up", "mask_gate", "mask_up", "mask_out"))


class SparsityMeter:
    """A tap that counts the masks of a sparse FFN and adds up what it read; ``report()`` gives the accounting.

    A dense FFN taps neither; its sparsity is 0 and its reads are 1. Every position counts, the BOS included, and all
    layers have the same weight. window: number of successive tokens in a union, all of one pass; an incomplete last
    window is left out.
    """

    def __init__(self, window: int = 16):
        self.window = window
        self.tokens = 0
        self._kept: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))  # mask name -> layer -> kept
        self._size: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._union, self._union_size = 0, 0
        self._reads, self._read_tokens = np.zeros(3), 0  # sums over tokens and layers

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name == "embed":
            self.tokens += len(value)
        elif (at := place(name)) is not None and at.step == "mlp.reads":
            self._reads += value.sum(axis=0)
            self._read_tokens += len(value)
        elif at is not None and at.step in MASKS:
            mask = at.step.removeprefix("mlp.")
            self._kept[mask][at.layer] += int(np.count_nonzero(value))
            self._size[mask][at.layer] += value.size
            if mask == "mask":
                whole = value[: len(value) // self.window * self.window]
                union = whole.reshape(-1, self.window, value.shape[-1]).any(axis=1)
                self._union += int(np.count_nonzero(union))
                self._union_size += union.size
        return value

    def _density(self, mask: str) -> float:
        sizes = self._size.get(mask)  # get: [] would add an entry for a mask that never occurred
        return sum(self._kept[mask].values()) / sum(sizes.values()) if sizes else 1.0

    def report(self) -> SparsityReport:
        """The accounting of everything counted so far."""
        layers = self._size.get("mask", {})
        per_layer = tuple(1 - self._kept["mask"][i] / layers[i] for i in sorted(layers))
        density, seen = self._density("mask"), self._size
        gate, up, down = (self._reads / self._read_tokens).tolist() if self._read_tokens else (1.0, 1.0, 1.0)
        cut = {mask.removeprefix("mask_"): 1 - self._density(mask) for mask in seen if mask != "mask"}
        if "mask" in seen and not {"mask_gate", "mask_up"} & set(seen):
            cut["mid"] = 1 - density  # then mid itself is what is cut
        union = self._union / self._union_size if self._union_size else None
        known = (density, density, density)
        return SparsityReport(
            self.tokens, 1 - density, per_layer, cut, (gate, up, down), known, union, self.window
        )  # fmt: skip
