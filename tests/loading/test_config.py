"""config.json of both generations becomes the same checked object, as transformers reads it."""

import json
import math

import hostile
import pytest
from hostile import CONFIG, DELETE, LLAMA3, LONG, PHI3, QWEN, changed

from minillm.loading.config import ModelConfig, RopeConfig


def read(**changes) -> ModelConfig:
    return ModelConfig.from_dict(changed(changes))


def family(name: str, **changes) -> ModelConfig:
    return read(model_type=name, architectures=None, **changes)


def v5(rope: dict, **changes) -> ModelConfig:
    """The same file in the form of transformers 5: everything about RoPE in rope_parameters."""
    return read(rope_theta=DELETE, rope_parameters={"rope_theta": 10000.0, **rope}, dtype="float32", **changes)


def test_reads_a_plain_llama():
    config = read()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (11, 8, 12)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 2)
    assert config.rope == RopeConfig("default", 10000.0, 2)
    assert (config.bos_token_id, config.eos_token_ids, config.sliding_windows) == (1, (2,), (None, None))
    assert config.tensor_shapes() == hostile.tiny_shapes()
    assert read(tie_word_embeddings=True).tensor_shapes() == hostile.tiny_shapes(tied=True)


@pytest.mark.parametrize("rope", [None, {"type": "linear", "factor": 4}, LLAMA3, LONG], ids=str)
def test_both_generations_give_the_same_config(rope):
    old = read(rope_scaling=rope, torch_dtype="float32")
    assert old == v5(rope or {"rope_type": "default"})
    assert old == v5(rope or {}, rope_scaling=None)


def test_the_old_key_type_means_rope_type():
    old = {"type" if name == "rope_type" else name: value for name, value in LLAMA3.items()}
    assert read(rope_scaling=old) == read(rope_scaling=LLAMA3) == read(rope_scaling={**old, **LLAMA3})
    assert read(rope_scaling=LLAMA3).rope == RopeConfig("llama3", 1e4, 2, 8.0, 1.0, 4.0, 16)


def test_absent_fields_take_the_defaults_of_the_family():
    absent = dict.fromkeys(("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta",
                            "bos_token_id", "eos_token_id", "hidden_act", "tie_word_embeddings"), DELETE)  # fmt: skip
    sizes = {"num_attention_heads": 32, "hidden_size": 128, "vocab_size": 40000}
    for name, kv, d, positions, eps, window, eos in [
        ("llama", 32, 4, 2048, 1e-6, None, (2,)),
        ("mistral", 8, 4, 131072, 1e-6, 4096, (2,)),
        ("qwen2", 32, 4, 32768, 1e-6, None, ()),
        ("qwen3", 32, 128, 32768, 1e-6, None, ()),
        ("phi3", 32, 4, 4096, 1e-5, None, (32000,)),
    ]:
        config = family(name, **absent, **sizes)
        assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (kv, d, positions)
        assert (config.rms_norm_eps, config.sliding_windows, config.eos_token_ids) == (eps, (window,) * 2, eos)
        assert (config.rope.theta, config.hidden_act, config.tie_word_embeddings) == (10000.0, "silu", False)
    assert family("phi3", eos_token_id=DELETE).eos_token_ids == ()  # 32000 is no token of a vocabulary of 11


def test_null_means_derive_or_off():
    config = read(head_dim=None, num_key_value_heads=None, eos_token_id=None, bos_token_id=None, pretraining_tp=None)
    assert (config.head_dim, config.num_key_value_heads, config.eos_token_ids, config.bos_token_id) == (2, 4, (), None)
    assert family("mistral", sliding_window=None).sliding_windows == (None, None)


def test_head_dim_may_differ_from_hidden_size_over_heads():
    config = read(head_dim=6, hidden_size=10)
    assert config.head_dim == config.rope.rotary_dim == 6
    assert config.tensor_shapes()["model.layers.0.self_attn.o_proj.weight"] == (10, 24)


def test_biases_and_norms_of_the_families():
    for name, changes, qkv, o, mlp, norm in [
        ("llama", {}, False, False, False, False),
        ("llama", {"attention_bias": True}, True, True, False, False),
        ("llama", {"mlp_bias": True}, False, False, True, False),
        ("mistral", {}, False, False, False, False),
        ("qwen2", {}, True, False, False, False),
        ("qwen3", {}, False, False, False, True),
        ("qwen3", {"attention_bias": True}, True, True, False, True),
        ("phi3", {}, False, False, False, False),
    ]:
        config = family(name, **changes)
        assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (qkv, o, mlp, norm), name
        names = "\n".join(config.tensor_shapes())
        assert ("v_proj.bias" in names, "o_proj.bias" in names, "gate_proj.bias" in names) == (qkv, o, mlp)
        assert ("k_norm.weight" in names) == norm
        assert ("qkv_proj.weight" in names) == ("gate_up_proj.weight" in names) == (name == "phi3")


def test_sliding_windows_of_qwen():
    assert read(**QWEN).sliding_windows == (None, None)  # max_window_layers is 28
    assert read(**QWEN, max_window_layers=1).sliding_windows == (None, 8)
    assert read(**QWEN, max_window_layers=0).sliding_windows == (8, 8)
    assert read(**QWEN, layer_types=["sliding_attention", "full_attention"]).sliding_windows == (8, None)
    assert read(**{**QWEN, "use_sliding_window": False}, max_window_layers=0).sliding_windows == (None, None)
    assert read(layer_types=["full_attention"] * 2).sliding_windows == (None, None)


def test_longrope_of_phi3():
    factors = {"short_factor": [1.0], "long_factor": [2.0]}
    expected = RopeConfig("longrope", 1e4, 2, 8.0, None, None, 4096, (1.0,), (2.0,),
                          math.sqrt(1 + math.log(8) / math.log(4096)))  # fmt: skip
    stretched = {**PHI3, "max_position_embeddings": 32768}
    for kind in ({"type": "su"}, {"type": "longrope"}, {"rope_type": "longrope"}, {"type": "yarn"},
                 {"rope_type": "longrope", "type": "su"}):  # fmt: skip
        for original in ({}, {"original_max_position_embeddings": 4096}):
            assert read(**stretched, **original, rope_scaling=kind | factors).rope == expected
            assert v5(kind | factors | original, **stretched, **original).rope == expected
    assert read(**PHI3, rope_scaling={"type": "su"} | factors).rope.attention_factor == 1.0  # 32 is no stretch
    given = read(**stretched, rope_scaling={"type": "su", "factor": 2.0, "attention_factor": 1.5} | factors).rope
    assert (given.factor, given.attention_factor) == (2.0, 1.5)


def test_partial_rotary_of_phi3():
    half = {**PHI3, "head_dim": 4, "partial_rotary_factor": 0.5}
    assert read(**half).rope == RopeConfig("default", 1e4, 2)
    assert v5({"partial_rotary_factor": 0.5}, **half).rope.rotary_dim == 2
    assert len(read(**half, rope_scaling={"type": "su", "short_factor": [1], "long_factor": [1]}).rope.long_factor) == 1


def test_activations():
    for name in ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"):
        assert read(hidden_act=name).hidden_act == name
    assert read(hidden_act="swish").hidden_act == "silu"


def test_whole_numbers_are_read_as_floats():
    config = read(rope_theta=500000, rms_norm_eps=1)
    assert type(config.rope.theta) is float and type(config.rms_norm_eps) is float


def test_eos_ids_of_generation_config_come_first(tmp_path):
    hostile.write_folder(tmp_path, config=changed({"eos_token_id": [3, 4]}))
    generation = tmp_path / "generation_config.json"
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (3, 4)
    generation.write_text('{"temperature": 1.0}', encoding="utf-8")
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (3, 4)
    generation.write_text('{"eos_token_id": 5}', encoding="utf-8")
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (5,)


def test_a_byte_order_mark_is_accepted(tmp_path):
    hostile.write_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8-sig")
    assert ModelConfig.from_folder(tmp_path) == read()


# Parity: what transformers 5 makes of a config is what we make of the file it saves.
LLAMA3_ROPE = {"rope_theta": 5e5, **LLAMA3}
LONG_ROPE = {"rope_theta": 1e4, "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
PARITY = {
    "llama": ("Llama", {}),
    "llama tied, biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_theta": 2e4, "rope_type": "linear", "factor": 2.0}}),
    "llama llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 8, "rms_norm_eps": 1e-5}),
    "llama longrope": ("Llama", {"rope_parameters": {**LONG_ROPE, "rope_type": "longrope", "factor": 4.0,
                                                     "original_max_position_embeddings": 512}}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 6}),
    "mistral without window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "qwen3 sliding": ("Qwen3", {"head_dim": 6, "use_sliding_window": True, "sliding_window": 7,
                                "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "phi3": ("Phi3", {"sliding_window": 9}),
    "phi3 longrope": ("Phi3", {"rope_parameters": {**LONG_ROPE, "rope_type": "longrope"},
                               "max_position_embeddings": 64, "original_max_position_embeddings": 16}),
    "phi3 partial": ("Phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("case", PARITY)
def test_a_config_saved_by_transformers_means_the_same_here(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    name, changes = PARITY[case]
    theirs = getattr(transformers, f"{name}Config")(**{**SMALL, **changes})
    theirs.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    ours = ModelConfig.from_folder(tmp_path)

    for field in ("model_type", "vocab_size", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings",
                  "hidden_act", "max_position_embeddings", "bos_token_id"):  # fmt: skip
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    attention = [layer.self_attn for layer in model.model.layers]
    assert ours.head_dim == attention[0].head_dim
    if name == "Llama":
        windows = (None,) * 3
    elif name.startswith("Qwen"):
        windows = tuple(layer.sliding_window for layer in attention)
    else:
        windows = (theirs.sliding_window,) * 3  # their models read it from the config, for every layer
    assert ours.sliding_windows == windows
    rotary = model.model.rotary_emb
    assert ours.rope.rope_type == rotary.rope_type
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.rotary_dim == 2 * len(rotary.inv_freq)
    assert math.isclose(ours.rope.attention_factor, rotary.attention_scaling, rel_tol=1e-15)
    for field in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        if field in theirs.rope_parameters:
            assert getattr(ours.rope, field) == theirs.rope_parameters[field]
    tied = {"lm_head.weight"} if ours.tie_word_embeddings else set()
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items() if key not in tied}
    assert ours.tensor_shapes() == shapes


@pytest.mark.parity
@pytest.mark.parametrize("rope", [{"rope_scaling": {"type": "linear", "factor": 3.0}}, {"rope_scaling": LLAMA3}, {}],
                         ids=str)  # fmt: skip
def test_transformers_reads_the_old_generation_as_we_do(rope, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(changed({"rope_theta": 3e4, **rope})), encoding="utf-8")
    before = ModelConfig.from_folder(tmp_path)
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)  # now in the new form
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "rope_parameters" in fields and "rope_theta" not in fields
    assert ModelConfig.from_folder(tmp_path) == before


@pytest.mark.shared
def test_reads_the_published_model(shared):
    config = ModelConfig.from_folder(shared / "models" / "tinystories-656k")
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.head_dim) == (2048, 128, 2, 16)
    assert config.tie_word_embeddings and config.eos_token_ids == (2,)
