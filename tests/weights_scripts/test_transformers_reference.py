"""The hooks on transformers: what they keep, and that nothing of them stays in the model."""

import sys

import numpy as np
import pytest
from scripts import load_script

pytestmark = pytest.mark.parity
IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/transformers_reference.py")


def tiny(model_type: str, **fields):
    import transformers

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 12, "vocab_size": 11, "max_position_embeddings": 32}
    config = transformers.AutoConfig.for_model(**{"model_type": model_type, **sizes, **fields})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    "model_type, fields", [("llama", {}), ("qwen3", {"head_dim": 6}), ("phi3", {"pad_token_id": 0})]
)
def test_every_step_is_there_in_execution_order_and_has_its_shape(script, model_type, fields):
    model = tiny(model_type, **fields)
    d = fields.get("head_dim", 4)
    steps = script.run_transformers(model, IDS)
    assert list(steps) == [
        "embed", *(f"blocks.{i}.{name}" for i in range(2) for name in script.IN_A_BLOCK if "out_norm" not in name),
        "final_norm", "logits"
    ]  # fmt: skip
    inside = {"attn.q": (5, 4, d), "attn.rot_q": (5, 4, d), "attn.k": (5, 2, d), "attn.rot_k": (5, 2, d),
              "attn.v": (5, 2, d), "attn.pattern": (4, 5, 5), "attn.z": (5, 4, d), "attn.out": (5, 16),
              "mlp.gate_pre": (5, 12), "mlp.gate": (5, 12), "mlp.up": (5, 12), "mlp.mid": (5, 12)}  # fmt: skip
    assert {name: steps[f"blocks.1.{name}"].shape for name in inside} == inside
    assert np.array_equal(steps["blocks.0.resid_pre"], steps["embed"])
    assert np.allclose(steps["blocks.1.mlp.mid"], steps["blocks.1.mlp.gate"] * steps["blocks.1.mlp.up"])
    size = [np.linalg.norm(steps[f"blocks.0.attn.{name}"], axis=-1) for name in ("q", "rot_q")]
    assert np.allclose(*size, rtol=1e-5)  # a rotation keeps lengths


def test_a_model_is_left_as_it_was_even_after_a_failure(script):
    model = tiny("llama")
    modeling = sys.modules[type(model).__module__]
    before = hooks_of(model), modeling.apply_rotary_pos_emb
    script.run_transformers(model, IDS)
    assert (hooks_of(model), modeling.apply_rotary_pos_emb) == before
    with pytest.raises(IndexError):
        script.run_transformers(model, [99])  # no such token
    assert (hooks_of(model), modeling.apply_rotary_pos_emb) == before
