"""The parts of the float64 reference, each against its equation; tests/transformer/test_parity.py has the whole."""

import math

import pytest
from scripts import load_script

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def script(torch):
    pytest.importorskip("transformers")
    return load_script("weights_scripts/torch_reference.py")


def config(**fields):
    import transformers

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 12, "vocab_size": 11, "max_position_embeddings": 32}
    return transformers.AutoConfig.for_model(**{"model_type": "llama", **sizes, **fields})


def test_weights_are_read_in_float64_from_all_files_of_a_folder(script, torch, tmp_path):
    from safetensors.torch import save_file

    first, second = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16)
    save_file({"a": first}, tmp_path / "model-1.safetensors")
    save_file({"b": second}, tmp_path / "model-2.safetensors")
    weight = script.folder_weights(tmp_path)
    assert weight("a").dtype == weight("b").dtype == torch.float64
    assert torch.equal(weight("a"), first.double()) and torch.equal(weight("b"), second.double())
    assert weight("c") is None


def test_a_rotation_turns_the_two_halves_of_a_head_and_leaves_the_rest(script, torch):
    x, angle = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]], dtype=torch.float64), torch.tensor([0.3, 1.1]).double()
    turned = script.rotate(x, torch.polar(torch.ones(2).double(), angle)[None, None])[0, 0].tolist()
    for j, a in enumerate(angle.tolist()):
        low, high = x[0, 0, j].item(), x[0, 0, j + 2].item()
        assert turned[j] == pytest.approx(low * math.cos(a) - high * math.sin(a), rel=1e-14)
        assert turned[j + 2] == pytest.approx(high * math.cos(a) + low * math.sin(a), rel=1e-14)
    assert turned[4] == 5.0


def test_llama3_keeps_fast_rotations_divides_slow_ones_and_blends_between(script, torch):
    rope = {"original_max_position_embeddings": 100, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    turns = torch.tensor([10.0, 4.0, 2.5, 1.0, 0.5], dtype=torch.float64)
    frequency = turns * 2 * math.pi / 100
    ratio = script.llama3_frequencies(frequency, rope) / frequency
    assert ratio.tolist() == pytest.approx([1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8], rel=1e-12)


def test_the_radius_of_longrope_is_the_given_one_or_grows_with_the_stretch(script):
    rope = {"original_max_position_embeddings": 16}
    assert script.longrope_radius(rope | {"attention_factor": 1.5}, 64) == 1.5
    assert script.longrope_radius(rope, 64) == pytest.approx(math.sqrt(1.5), rel=1e-15)  # ln 4 / ln 16 = 1 / 2
    assert script.longrope_radius(rope, 16) == 1.0


def test_a_position_attends_to_its_window_and_to_nothing_after_it(script):
    for window, first in ((None, 0), (1, 5), (3, 3)):
        hidden = script.hidden_positions(8, window)[5].tolist()
        assert [s for s in range(8) if not hidden[s]] == list(range(first, 6))


def test_the_window_of_a_layer_depends_on_the_family(script):
    assert script.layer_window(config(), 0) is None
    assert script.layer_window(config(model_type="mistral", sliding_window=5), 1) == 5
    qwen2 = config(model_type="qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert [script.layer_window(qwen2, i) for i in range(2)] == [None, 4]


def test_a_block_reads_and_records_by_its_own_names(script, torch):
    recorded = {}
    block = script.block_of(config(), 1, {"model.layers.1.a.weight": 7}.get, lambda name, v: recorded.update({name: v}))
    block.record("attn.q", 3)
    assert block.weight("a.weight") == 7 and block.weight("b.weight") is None and recorded == {"blocks.1.attn.q": 3}


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_the_ffn_is_down_of_act_of_gate_times_up(script, torch, model_type):
    random = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, 12, 8, generator=random, dtype=torch.float64)
    down, x = torch.randn(8, 12, generator=random, dtype=torch.float64), torch.ones(3, 8, dtype=torch.float64)
    weights = {"mlp.down_proj.weight": down}
    if model_type == "phi3":
        weights["mlp.gate_up_proj.weight"] = torch.cat([gate, up])
    else:
        weights |= {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up}
    steps = {}
    fields = {"pad_token_id": 0} if model_type == "phi3" else {}
    block = script.Block(config(model_type=model_type, **fields), 0, weights.get, steps.__setitem__)
    mid = x @ gate.T / (1 + torch.exp(-x @ gate.T)) * (x @ up.T)
    assert torch.allclose(script.ffn(x, block), mid @ down.T, rtol=1e-12)
    assert list(steps) == [f"mlp.{name}" for name in ("gate_pre", "gate", "up", "mid", "out")]
    assert torch.allclose(steps["mlp.mid"], mid, rtol=1e-12)
