"""Rows of a speed file, as `minillm bench ffn --json` writes them: made up, and easy to check by hand."""

SPEEDS = [
    {"method": "gather", "group": 1, "sparsity": 0.5, "speedup": 0.6, "low": 0.5, "high": 0.7},
    {"method": "tiled", "group": 1, "sparsity": 0.5, "speedup": 1.2, "low": 1.1, "high": 1.3, "whole_token": 1.1},
    {"method": "blocks", "group": 4, "sparsity": 0.5, "speedup": 1.8, "low": 1.7, "high": 1.9, "ffn_share": 0.5},
]  # fmt: skip
