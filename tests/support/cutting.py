"""The rule of each policy written out by hand, and texts to calibrate on."""

from statistics import NormalDist

import numpy as np

from minillm.sparsity.policies import POLICIES

NEURON_POLICIES = {name: rule for name, rule in POLICIES.items() if name != "griffin"}  # griffin has a state
ACTIVATIONS = ["silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"]


def limits_of(policy: str, value: float) -> dict[str, float]:
    """The same threshold for every tensor of a policy."""
    return dict.fromkeys(POLICIES[policy].tensors, value)


def by_hand(x: np.ndarray, layer, policy: str, limits: dict[str, float]) -> np.ndarray:
    """The FFN as a sum over neurons, one (token, neuron) pair at a time, with the rule written out."""
    out = np.zeros((len(x), len(layer.down_proj))) + (0 if layer.down_bias is None else layer.down_bias)
    neurons, inputs = range(len(layer.gate_proj)), range(len(layer.down_proj))
    for t in range(len(x)):
        x_gate, x_up, mids, gates = x[t].copy(), x[t].copy(), [], []
        for i in inputs:
            weight = np.sqrt(sum(layer.gate_proj[j, i] ** 2 for j in neurons)) if policy == "wina" else 1.0
            if policy in ("teal", "wina"):
                x_gate[i] = (
                    x[t, i] if abs(x[t, i]) * weight > limits.get("in_gate", limits.get("in_gate_norm")) else 0.0
                )
                x_up[i] = x[t, i] if abs(x[t, i]) > limits["in_up"] else 0.0
        for j in neurons:
            g = x_gate @ layer.gate_proj[j] + (0 if layer.gate_bias is None else layer.gate_bias[j])
            u = x_up @ layer.up_proj[j] + (0 if layer.up_bias is None else layer.up_bias[j])
            gates.append(g)
            if policy == "dhar":  # the paper's code: cut g and u, and then activate
                g = g if abs(g) >= limits["gate_pre"] else 0.0
                u = u if abs(u) >= limits["up"] else 0.0
            a = float(layer.act(np.array([g]))[0])
            if policy == "cats":
                a = a if abs(a) > limits["gate"] else 0.0
            if policy == "countdown":
                u = u if abs(u) > limits["up"] else 0.0
            m = a * u
            if policy in ("mid", "teal", "wina"):
                m = m if abs(m) > limits["mid"] else 0.0
            if policy == "cett":
                column = np.sqrt(sum(layer.down_proj[i, j] ** 2 for i in inputs))
                m = m if abs(m) * column >= limits["neuron_norm"] else 0.0
            mids.append(m)
        falling = sorted(map(abs, mids), reverse=True)
        if policy == "topk":
            fewest = falling[: len(mids) - round(limits["mid"] * len(mids))]
        if policy == "topp":
            fewest, goal = [], (1 - limits["mid"]) * sum(falling)
            while sum(fewest) < goal:
                fewest.append(falling[len(fewest)])
        if policy in ("topk", "topp"):
            mids = [m if abs(m) in fewest else 0.0 for m in mids]
        if policy == "statistical" and limits["gate_pre"] > 0:
            mean = sum(gates) / len(gates)
            std = (sum((g - mean) ** 2 for g in gates) / len(gates)) ** 0.5
            share = limits["gate_pre"]
            cutoff = mean + std * NormalDist().inv_cdf(share) if share < 1 else np.inf
            mids = [m if g > cutoff else 0.0 for m, g in zip(mids, gates, strict=True)]
        for j in neurons:
            out[t] += mids[j] * layer.down_proj[:, j]
    return np.where(np.abs(out) >= limits["out"], out, 0) if policy == "dhar" else out


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents of random words; enough of them for a share to be measured to a tenth of a percent."""
    rng = np.random.default_rng(seed)
    words = "the cat sat on a mat and saw the red sea. tom ran home".split()
    return [" ".join(rng.choice(words, 9)) for _ in range(count)]
