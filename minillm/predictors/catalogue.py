"""TODO."""

from __future__ import annotations

# What a file may hold: the kind it names -> the class below this module that reads it. Loaded when first asked for.
KINDS = {
    "chance": "baselines:Chance",
    "static": "baselines:Static",
    "previous-token": "baselines:PreviousToken",
    "sign": "copies:Sign",
    "svd": "copies:LowRank",
    "shadow": "copies:Shadow",
    "ahead": "ahead:Ahead",
    "learned": "learned:Learned",
    "refined": "learned:Refined",
    "library": "memory:Library",
    "clusters": "clusters:Clusters",
}
