"""All predictors by name: the one list that files, the workshop and the command line read.

A name that ends in -BITS stands for eight predictors: shadow-3 is a shadow with 3 bits per weight, and the bare name
(shadow) means 4 bits. A predictor's file says of which kind it is; several names may make the same kind. Nothing here
imports NumPy or the predictors themselves, so that ``minillm predict --help`` is quick.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_BITS = 4


class Entry(NamedTuple):
    """What is known of a name.

    kind: what its file says, None for a predictor that cannot be saved. place: "module:Class" in this package. about:
    one plain line. evaluated: True where ``predict eval`` scores it unless told otherwise; for a name that ends in
    -BITS, the numbers of bits that it scores.
    """

    kind: str | None
    place: str
    about: str
    evaluated: bool | tuple[int, ...] = True
    of_up: bool = False  # whether it looks at up, so that it needs FFNs with a gate


CATALOGUE: dict[str, Entry] = {
    "oracle": Entry(None, "oracle:Oracle", "the true magnitudes, a bound", False),  # scored anyway, before all others
    "chance": Entry("chance", "baselines:Chance", "random scores"),
    "static": Entry("static", "baselines:Static", "how often each neuron is active"),
    "previous-token": Entry("previous-token", "baselines:PreviousToken", "the mask of the token before"),
    "sign": Entry("sign", "sign:Sign", "agreeing signs of input and gate"),
    "svd": Entry("svd", "copies:LowRank", "gate and up of low rank", of_up=True),
    "shadow-BITS": Entry("shadow", "copies:Shadow", "gate and up rounded to few bits", (2, 3, 4), True),
    "coded": Entry("coded", "coded:Coded", "gate and up in 1/16 of the float32 bytes", of_up=True),
    "up-BITS": Entry("shadow", "copies:Shadow", "the layer's own gate, up rounded", (4,), True),
    "refined-BITS": Entry("refined", "learned:Refined", "a shadow and a learned correction", (3,), True),
    "learned": Entry("learned", "learned:Learned", "two low-rank maps, trained"),
    "learned-mid": Entry("learned", "learned:Learned", "the same maps, trained on |mid| instead of the mask"),
    "learned-hidden": Entry("learned", "learned:Learned", "trained on |mid|, a hidden layer between the maps"),
    "learned-ahead": Entry("learned", "learned:Learned", "two maps, one layer ahead"),
    "ahead-BITS": Entry("ahead", "ahead:Ahead", "a shadow, one layer ahead", (4,), True),
    "router": Entry("router", "router:Router", "blocks of 32 neurons, chosen by a small network", False),
    "library": Entry("library", "memory:Library", "votes of stored patterns", of_up=True),
    "clusters": Entry("clusters", "clusters:Clusters", "the nearest cluster of patterns"),
}


def entry_of(name: str) -> tuple[str, int] | None:
    """The name in the catalogue and the number of bits (DEFAULT_BITS where it has none), or None if it is not there.

    >>> entry_of("shadow-3"), entry_of("shadow"), entry_of("sign"), entry_of("shadow-9")
    (('shadow-BITS', 3), ('shadow-BITS', 4), ('sign', 4), None)
    """
    with_bits = re.fullmatch(r"(.+)-([1-8])", name)
    stem, bits = (with_bits[1], int(with_bits[2])) if with_bits else (name, DEFAULT_BITS)
    if f"{stem}-BITS" in CATALOGUE:
        return f"{stem}-BITS", bits
    return (name, DEFAULT_BITS) if name in CATALOGUE and not name.endswith("-BITS") else None


def _evaluated() -> list[str]:
    names = []
    for name, entry in CATALOGUE.items():
        if isinstance(entry.evaluated, tuple):
            names += [name.replace("BITS", str(bits)) for bits in entry.evaluated]
        elif entry.evaluated:
            names.append(name)
    return names


EVALUATED = tuple(_evaluated())  # what `predict eval` scores unless told otherwise
HELP = ", ".join(f"{name} ({entry.about})" for name, entry in CATALOGUE.items())  # for --predictor
KINDS = {entry.kind: entry.place for entry in CATALOGUE.values() if entry.kind}  # what a file may say -> the class
