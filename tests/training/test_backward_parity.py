"""Every gradient beside torch's autograd, in float64: all steps and all weights to 1e-12 of the largest value of each.

The forward pass is weights_scripts/torch_reference.py, which shares no code with minillm; the weights are minillm's.
"""

import json

import numpy as np
import pytest
import tiny
from gradients import IDS, passed
from passes import cut
from scripts import load_script

import minillm
from minillm.loading.families import INTERLEAVED
from minillm.training.backward import Gradients
from minillm.transformer.ffn import swiglu
from minillm.transformer.model import Llama

pytestmark = pytest.mark.parity
TWINS = ["default-silu", "default-relu", "default-relu2", "default-gelu"]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def reference(torch):
    pytest.importorskip("transformers")
    return load_script("weights_scripts/torch_families.py")


class Torch:
    """The same model in torch: leaves {name: weight}, and after ``run`` the loss and steps {name: value}."""

    def __init__(self, reference, fields: dict, model: Llama):
        import torch
        import transformers

        self.reference, self.config = reference, transformers.AutoConfig.for_model(**fields)
        self.ours = model.config
        self.leaves = {name: torch.tensor(w, requires_grad=True) for name, w in model.weights.items()}
        self.steps: dict = {}

    def weight(self, name: str):
        """A weight by its name in the file; a fused one is made of its parts."""
        import torch

        parts = [w for ours, w in self.leaves.items() if self.ours.file_name(ours) == name]
        if not parts:
            return None
        if self.ours.model_type in INTERLEAVED and len(parts) > 1:  # for each head its rows of q, k and v
            heads = [part.view(self.ours.num_attention_heads, self.ours.head_dim, *part.shape[1:]) for part in parts]
            return torch.stack(heads, 1).reshape(-1, *parts[0].shape[1:])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def record(self, name: str, value) -> None:
        if value.requires_grad and not value.is_leaf:
            value.retain_grad()
        self.steps[name] = value

    def run(self, ids: np.ndarray):
        import torch

        plain = self.config.model_type in self.reference.LLAMAS
        run = self.reference.torch64 if plain else self.reference.families64
        run.__wrapped__(self.config, self.weight, ids[:-1].tolist(), self.record)
        return torch.nn.functional.cross_entropy(self.steps["logits"], torch.from_numpy(ids[1:]))


def furthest(ours: Gradients, theirs: Torch) -> tuple[float, str]:
    """The largest difference of any gradient, as a share of the largest value of its tensor."""
    pairs = [(name, g, theirs.leaves[name].grad) for name, g in ours.weights.items()]
    pairs += [(name, d, theirs.steps[name].grad) for name, d in ours.steps.items() if name in theirs.steps]
    assert len(pairs) > len(ours.weights) + 10
    largest = max(t.abs().max().item() for _, _, t in pairs)  # a bias of keys has no gradient but rounding
    return max((np.abs(g - t.numpy()).max() / max(t.abs().max().item(), 1e-3 * largest), name) for name, g, t in pairs)


def fields_of(model: Llama) -> dict:
    return json.loads((model.folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["default", *TWINS])
def test_the_embedded_models(reference, name):
    model = minillm.load(name, dtype="float64")
    model = Llama(model.config, {key: w.copy() for key, w in model.weights.items()}, model.folder)
    ids = np.array(model.tokenizer.encode('Once upon a time, Lily had a red ball. She said, "Let\'s play!"'))
    theirs = Torch(reference, fields_of(model), model)
    loss = theirs.run(ids)
    loss.backward()
    _, ours = passed(model, ids)
    assert ours.loss == pytest.approx(loss.item(), rel=1e-13)
    worst, where = furthest(ours, theirs)
    assert worst < 1e-12, where


@pytest.mark.parametrize("family", ["plain", *tiny.FAMILIES, *tiny.OTHERS])
def test_every_family(reference, family):
    # Phi-3 of transformers has D = H d, and its config of OLMo 2 and Phi has no head_dim
    changes = {"hidden_size": 16} if family in ("phi3", "olmo2", "phi", "granite", "smollm3") else {}
    model = tiny.model(family, **changes)
    theirs = Torch(reference, {**tiny.LLAMA, **(tiny.FAMILIES | tiny.OTHERS).get(family, {}), **changes}, model)
    theirs.run(IDS).backward()
    worst, where = furthest(passed(model)[1], theirs)
    assert worst < 1e-12, where


@pytest.mark.parametrize("policy", ["mid", "dhar", "teal", "cats"])
@pytest.mark.parametrize("straight", [False, True])
def test_cuts_masked_and_straight_through(reference, torch, monkeypatch, policy, straight):
    """Masked: the mask times the value. Straight-through, torch's way: value + (cut value - value).detach()."""
    model, ffn = tiny.model("llama"), cut(tiny.model("llama"), policy, 0.12)
    saved, ours = passed(model, ffn=ffn, straight=straight)
    assert any("mask" in name and not value.all() for name, value in saved.items())

    def ffn_in_torch(x, block):
        def kept(value, mask):
            found = saved.get(f"blocks.{block.index}.mlp.{mask}")
            if found is None:
                return value
            after = value * torch.from_numpy(found)
            return value + (after - value).detach() if straight else after

        w = block.weight
        gate_pre = reference.linear(kept(x, "mask_in_gate"), w, "mlp.gate_proj")
        up = reference.linear(kept(x, "mask_in_up"), w, "mlp.up_proj")
        gate = torch.nn.functional.silu(gate_pre)
        mid = gate * up
        mid_cut = kept(mid, "mask")
        out = reference.linear(mid_cut, w, "mlp.down_proj")
        steps = {"gate_pre": gate_pre, "gate": gate, "up": up, "mid": mid, "mid_cut": mid_cut, "out": out}
        for name, value in steps.items():
            block.record(f"mlp.{name}", value)
        return kept(out, "mask_out")

    monkeypatch.setitem(reference.torch64.__wrapped__.__globals__["run_block"].__globals__, "ffn", ffn_in_torch)
    theirs = Torch(reference, {**tiny.LLAMA, **tiny.FAMILIES["llama"]}, model)
    theirs.run(IDS).backward()
    worst, where = furthest(ours, theirs)
    assert worst < 1e-12, where


def test_two_gradients_give_the_product_of_the_second_derivatives_with_a_vector(reference, torch):
    """H v = (g(w + h v) - g(w - h v)) / 2h, for all weights at once, against two derivatives of torch."""
    model, rng, h = tiny.model("qwen3"), np.random.default_rng(0), 1e-5
    theirs = Torch(reference, {**tiny.LLAMA, **tiny.FAMILIES["qwen3"]}, model)
    vector = {name: rng.standard_normal(w.shape) for name, w in model.weights.items()}
    size = np.sqrt(sum((v * v).sum() for v in vector.values()))
    vector = {name: v / size for name, v in vector.items()}
    leaves = list(theirs.leaves.values())
    first = torch.autograd.grad(theirs.run(IDS), leaves, create_graph=True)
    along = sum((g * torch.from_numpy(vector[name])).sum() for name, g in zip(theirs.leaves, first, strict=True))
    product = dict(zip(theirs.leaves, torch.autograd.grad(along, leaves), strict=True))

    sides = []
    for sign in (1, -1):
        moved = {name: w + sign * h * vector[name] for name, w in model.weights.items()}
        sides.append(passed(Llama(model.config, moved), ffn=swiglu)[1].weights)
    largest = max(p.abs().max().item() for p in product.values())
    for name, p in product.items():
        found = (sides[0][name] - sides[1][name]) / (2 * h)
        assert np.abs(found - p.numpy()).max() < 1e-7 * largest, name
