"""What "50 % sparse" means: the one description and the one accounting of every sparsity figure.

The same word is used for a share of gate activations, of inputs, of neurons, of weights. A figure without these
fields cannot be compared with another:

    tensor, comparison, token scope, layer scope, granularity, target and ACHIEVED value       SparsitySpec

and from the masks of a run and what it read, always in the same way:                        SparsityMeter

    neuron sparsity    share of (token, neuron) pairs whose mid is cut to zero
    read_exact         share of [gate, up, down] weights read per token when the policy computes its own mask: whatever
                       decides the mask has to be read first. Rows of gate and up and columns of down; where a policy
                       cuts inputs (teal, wina), columns of all three. Each FFN reports its own: ``tap_reads``
    read_known_mask    the same when the mask is known beforehand for nothing (a free oracle): the density, three times
    union density      share of neurons that at least one of ``window`` successive tokens needs: what a batch reads
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np

from ..steps import place
from ..trace import Tap, no_tap


@dataclass(frozen=True)
class SparsitySpec:
    """The definition behind a sparsity figure.

    tensors: what is compared with a threshold (policies.py). comparison: kept where the value is that against the
    threshold, or how many are kept. by: what ``target`` counts: "tensor" (share of each cut tensor), "neuron" (neuron
    sparsity), "reads" (share of weights not read), "cett" (what is lost of the output), "ppl" (increase of perplexity),
    "weights" (share of weights that are zero for good).
    achieved: the same quantity as measured on the text that the figure is about. target is None where it is unknown.
    """

    policy: str
    tensors: tuple[str, ...]
    comparison: str
    by: str
    target: float | None
    achieved: float | None = None
    token_scope: str = "every token, prompt and continuation alike"
    layer_scope: str = "all layers"
    granularity: str = "one threshold per layer and tensor, one decision per token and neuron"

    def asdict(self) -> dict:
        """As plain JSON values."""
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


def in_words(tensors: tuple[str, ...], comparison: str) -> str:
    """What a rule keeps: "where |gate| > threshold"; weights are kept by a score: "weights by |W_ij|, ..."."""
    if tensors == ("weights",):
        return f"weights by {comparison}"
    how = {
        "top-k": "the largest {} of each token",
        "top-p": "the largest {} of each token, up to a share of their sum",
        "prompt": "the neurons with the largest {} over the first tokens",
    }
    return ", ".join(how.get(comparison, f"where {{}} {comparison} threshold").format(f"|{t}|") for t in tensors)


def tap_reads(tap: Tap, gate: np.ndarray | None, up: np.ndarray | None, down: np.ndarray | None) -> None:
    """Report, as step ``reads`` (T, 3), which share of its gate, up and down weights an FFN read for each token.

    gate, up, down: masks (T, n) of the rows or columns that were read; None: all of them. At least one is a mask.
    """
    if tap is no_tap:
        return
    tokens = next(len(mask) for mask in (gate, up, down) if mask is not None)
    shares = [np.ones(tokens) if mask is None else mask.mean(axis=1) for mask in (gate, up, down)]
    tap("reads", np.stack(shares, axis=1))  # (T, 3)


@dataclass(frozen=True)
class SparsityReport:
    """The accounting of one run (module docstring). read_* are the shares of gate rows, up rows, down columns."""

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
        """Share of the FFN's weights read per token, the mask computed by the policy itself."""
        return sum(self.read_exact) / 3

    @property
    def weight_reads_known_mask(self) -> float:
        """Share of the FFN's weights read per token by a free oracle."""
        return sum(self.read_known_mask) / 3

    def share_of(self, by: str) -> float:
        """What was reached, as ``by`` counts it: "reads" the share of weights not read, "neuron" the neuron sparsity,
        "tensor" the mean over the cut tensors (the neuron sparsity where no tensor was cut)."""
        if by == "reads":
            return 1 - self.weight_reads
        if by == "neuron" or not self.tensor_sparsity:
            return self.neuron_sparsity
        return float(np.mean(list(self.tensor_sparsity.values())))

    def achieved(self, by: str) -> float | None:
        """What a target of kind ``by`` came to; None for a kind that masks do not tell ("cett", "ppl")."""
        return None if by in ("cett", "ppl") else self.share_of(by)


# The masks of what a policy cuts; others (of the truth, of a guess) are not cuts.
MASKS = frozenset(f"mlp.{mask}" for mask in ("mask", "mask_in_gate", "mask_in_up", "mask_gate", "mask_up", "mask_out"))


class SparsityMeter:
    """A tap that counts the masks of a sparse FFN and adds up what it read; ``report()`` gives the accounting.

    A dense FFN shows neither and is reported as sparsity 0, reads 1. Every position counts, the BOS included, and
    every layer counts alike. window: how many successive tokens a union is taken over.
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
        sizes = self._size.get(mask)  # get: asking by [] would make an absent mask look like one that cuts nothing
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
