"""minillm against PyTorch: every named step, on small random models of all families and on published weights.

float64 against a forward pass in plain torch float64 (weights_scripts/torch_reference.py): 1e-12 of a step's largest
value. float32 against transformers with eager attention: 1e-5, the same argmax, the same greedy tokens.
The weights go through the files: transformers saves them, minillm loads them.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

from minillm.archive import save_arrays
from minillm.divergence import compare
from minillm.loading.config import ModelConfig
from minillm.loading.families import FAMILIES
from minillm.trace import Trace
from minillm.transformer import attention
from minillm.transformer.generation import generate
from minillm.transformer.model import Llama
from minillm.transformer.rope import rope_frequencies, rope_table, rotate_interleaved

pytestmark = pytest.mark.parity

SCRIPT = Path(__file__).parents[2] / "weights_scripts" / "dump_reference.py"


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch")
    with found.no_grad():  # for this module's tests alone
        yield found


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def reference(torch, transformers):
    """weights_scripts/dump_reference.py as a module."""
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def torch_reference(torch):
    """weights_scripts/torch_reference.py as a module."""
    return load_script(SCRIPT.with_name("torch_reference.py"))


# ---- models ----------------------------------------------------------------------------------------------------------

BASE = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.05, 1.1, 1.3], "long_factor": [1.1, 1.9, 4.0, 7.5]}  # fmt: skip
CONFIGS = {
    "llama": {"model_type": "llama"},
    "llama, one key head, relu": {"model_type": "llama", "num_key_value_heads": 1, "hidden_act": "relu"},
    "llama, no groups, tied": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True},
    "llama, biases, own head size, tanh gelu": {
        "model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 10,
        "hidden_act": "gelu_pytorch_tanh"},
    "llama, linear": {
        "model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "llama, llama3, tied": {
        "model_type": "llama", "head_dim": 12, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "llama, longrope with a factor": {"model_type": "llama", "rope_parameters": {**LONG, "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral, window, own head size": {
        "model_type": "mistral", "sliding_window": 7, "head_dim": 12, "tie_word_embeddings": True},
    "mistral, window of one": {"model_type": "mistral", "sliding_window": 1},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2, window from layer 1 on": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3, own head size, tied": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "qwen3, biases, windows by layer": {
        "model_type": "qwen3", "head_dim": 6, "attention_bias": True, "use_sliding_window": True, "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 4},
    "phi3, window, partly rotated": {
        "model_type": "phi3", "sliding_window": 11,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "phi3, longrope": {"model_type": "phi3", "original_max_position_embeddings": 32, "rope_parameters": LONG},
    "phi3, longrope, partly rotated, tied": {
        "model_type": "phi3", "original_max_position_embeddings": 32, "tie_word_embeddings": True,
        "rope_parameters": {
            **LONG, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.2], "long_factor": [2.0, 9.0]}},
    "phi3, longrope, its own attention factor": {
        "model_type": "phi3", "original_max_position_embeddings": 32,
        "rope_parameters": {**LONG, "attention_factor": 0.73}},
}  # fmt: skip


NO_GROUPS = {"num_key_value_heads": 4}
CONFIGS |= {  # families that are wired otherwise; sizes and switches of published checkpoints, scaled down
    "opt": {"model_type": "opt", "ffn_dim": 56, "word_embed_proj_dim": 32},
    "opt 350m": {"model_type": "opt", "ffn_dim": 56, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "galactica (opt without biases)": {"model_type": "opt", "ffn_dim": 56, "enable_bias": False,
                                       "activation_function": "gelu"},
    "phi 1": {"model_type": "phi", **NO_GROUPS, "partial_rotary_factor": 0.5},
    "phi 2": {"model_type": "phi", "num_key_value_heads": None, "partial_rotary_factor": 0.5, "num_hidden_layers": 4},
    "pythia": {"model_type": "gpt_neox", **NO_GROUPS, "rotary_pct": 0.25},
    "gpt_neox, one behind the other": {"model_type": "gpt_neox", **NO_GROUPS, "use_parallel_residual": False,
                                       "rotary_pct": 1.0, "rotary_emb_base": 1000, "tie_word_embeddings": True},
    "stablelm 3b": {"model_type": "stablelm", **NO_GROUPS, "partial_rotary_factor": 0.25},
    "stablelm 2 1.6b": {"model_type": "stablelm", **NO_GROUPS, "partial_rotary_factor": 0.25, "use_qkv_bias": True},
    "stablelm parallel": {"model_type": "stablelm", "use_parallel_residual": True, "partial_rotary_factor": 0.5},
    "granite 3": {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                  "residual_multiplier": 0.22, "attention_multiplier": 0.0156, "tie_word_embeddings": True,
                  "rope_theta": 1e7},
    "granite, untied, biases": {"model_type": "granite", "attention_bias": True, "mlp_bias": True,
                                "attention_multiplier": 0.3, "logits_scaling": 4.0},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4, "rope_theta": 5e6},
    "smollm3 with windows": {"model_type": "smollm3", "num_hidden_layers": 4, "use_sliding_window": True,
                             "sliding_window": 9, "tie_word_embeddings": False},
    "olmo2": {"model_type": "olmo2", "rope_theta": 5e5},
    "olmo2, tied, biases": {"model_type": "olmo2", "attention_bias": True, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 12},
    "gemma, one key head": {"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 7, "query_pre_attn_scalar": 20},
    "gemma2, tight caps": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 7, "attn_logit_softcapping": 1.5,
                           "final_logit_softcapping": 2.0, "tie_word_embeddings": False},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 12, "sliding_window": 7, "num_hidden_layers": 6,
               "sliding_window_pattern": 6},
    "gemma3 4b": {"model_type": "gemma3_text", "head_dim": 12, "sliding_window": 7, "sliding_window_pattern": 2,
                  "rope_parameters": {
                      "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                      "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "yarn": {"model_type": "qwen3", "head_dim": 16, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn, its own settings": {"model_type": "llama", "head_dim": 16, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "mscale": 1.2, "mscale_all_dim": 0.7}},
    "dynamic": {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    "relu llama": {"model_type": "llama", "hidden_act": "relu"},
    "relu mistral": {"model_type": "mistral", "hidden_act": "relu"},
}  # fmt: skip


def random_fields(seed: int) -> dict:
    """A small config drawn by chance: family, sizes, window, ties, biases, scaling."""
    rng = np.random.default_rng(seed)
    family = ["llama", "mistral", "qwen2", "qwen3", "phi3"][seed % 5]
    kv_heads = int(rng.integers(1, 4))
    d = 2 * int(rng.integers(2, 9))
    heads = kv_heads * int(rng.integers(1, 4))
    fields = {
        "model_type": family,
        "vocab_size": int(rng.integers(20, 90)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * d,
        "intermediate_size": int(rng.integers(5, 80)),
        "rms_norm_eps": float(10.0 ** -rng.integers(4, 8)),
        "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(10.0 ** rng.integers(2, 7))},
    }
    if family in ("llama", "mistral", "qwen3"):
        fields["head_dim"] = 2 * int(rng.integers(1, 9))
    if family == "llama":
        fields |= {"attention_bias": bool(rng.integers(2)), "mlp_bias": bool(rng.integers(2))}
        fields["rope_parameters"] = [fields["rope_parameters"], LLAMA3][rng.integers(2)]
    if family in ("mistral", "phi3"):
        fields["sliding_window"] = [None, int(rng.integers(1, 40))][rng.integers(2)]
    return fields


ALL = CONFIGS | {f"drawn {seed}": random_fields(seed) for seed in range(20)}
TOKENS = 48  # longer than every window and every original context above


@pytest.fixture(scope="module")
def saved(torch, transformers, reference, tmp_path_factory):
    """saved(name, init) -> (folder, ids): a random model in the files that transformers writes, and a text for it.

    init: "standard" (deviation 0.02, activations stay tiny), "large" (1.4 / sqrt(D), they stay near 1 and mistakes
    show) or "sharp" (4 / sqrt(D), attention picks single positions).
    """
    home, made = tmp_path_factory.mktemp("models"), {}

    def make(name: str, init: str, fields: dict | None = None, tokens: int = TOKENS):
        if (name, init) not in made:
            config = transformers.AutoConfig.for_model(**{**BASE, **(fields or ALL[name])})
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            std = {"standard": 0.02, "large": 1.4 / config.hidden_size**0.5, "sharp": 4 / config.hidden_size**0.5}[init]
            state = reference.random_state(model, len(made), std)
            model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=False)
            folder = home / str(len(made))
            model.save_pretrained(folder)
            ids = np.random.default_rng(len(made)).integers(0, config.vocab_size, tokens).tolist()
            made[name, init] = folder, ids
        return made[name, init]

    return make


def trace_of(model: Llama, ids) -> Trace:
    with Trace(budget=4 << 30) as trace:
        model.forward(ids, tap=trace)
    return trace


def torch64(reference, transformers, folder, ids) -> dict[str, np.ndarray]:
    config = transformers.AutoConfig.from_pretrained(folder)
    return reference.run_torch64(config, reference.folder_weights(folder), ids)


def all_agree(ours, theirs, rtol, missing=()) -> None:
    """Every step is there on both sides and agrees; ``missing`` ends the names that theirs does not have."""
    result = compare(ours, theirs, rtol)
    assert result.first is None, str(result)
    wrong = [row.name for row in result.rows if row.status != "ok" and not (missing and row.name.endswith(missing))]
    assert not wrong, str(result)


# ---- float64 against plain torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["standard", "large"])
@pytest.mark.parametrize("name", ALL)
def test_float64_equals_plain_torch_at_every_step(saved, reference, transformers, name, init):
    folder, ids = saved(name, init)
    model = Llama.from_folder(folder, "float64")
    all_agree(trace_of(model, ids), torch64(reference, transformers, folder, ids), 1e-12)


def test_the_configs_cover_what_they_should(saved):
    """All families; llama3 and longrope past their original length; windows shorter than the text; ties; groups."""
    seen = set()
    for name in ALL:
        folder, ids = saved(name, "standard")
        config = ModelConfig.from_folder(folder)
        seen |= {config.model_type, ("tied", config.tie_word_embeddings), ("qkv bias", config.qkv_bias)}
        seen |= {"grouped"} if 1 < config.num_key_value_heads < config.num_attention_heads else set()
        seen |= {"window"} if any(w and w < len(ids) for w in config.sliding_windows) else set()
        seen |= {"own d"} if config.head_dim * config.num_attention_heads != config.hidden_size else set()
        seen |= {"partial"} if config.rope.rotary_dim < config.head_dim else set()
        if config.rope.rope_type in ("llama3", "longrope") and len(ids) > config.rope.original_max_position_embeddings:
            seen.add(config.rope.rope_type)
    assert seen >= {"llama", "mistral", "qwen2", "qwen3", "phi3", "llama3", "longrope", "window", "grouped", "own d"}
    assert seen >= {*FAMILIES}
    assert seen >= {"partial", ("tied", True), ("tied", False), ("qkv bias", True), ("qkv bias", False)}


@pytest.mark.shared
def test_float64_equals_plain_torch_on_published_weights_at_full_context(shared, reference, transformers):
    folder = shared / "models" / "tinystories-656k"
    model = Llama.from_folder(folder, "float64")
    ids = story_ids(model, shared, 512)
    all_agree(trace_of(model, ids), torch64(reference, transformers, folder, ids), 1e-12)


def story_ids(model: Llama, shared: Path, count: int) -> list[int]:
    text = (shared / "text" / "tinystories-valid.txt").read_text(encoding="utf-8")[: 8 * count]
    ids = model.tokenizer.encode(text)[:count]
    assert len(ids) == count == model.config.max_position_embeddings
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("init, rtol", [("standard", 1e-12), ("large", 1e-12), ("sharp", 1e-9)])
def test_float64_through_12_layers_and_1024_tokens(saved, torch_reference, transformers, init, rtol):
    """Prints how the difference grows from layer to layer; sharpened attention lets it grow more."""
    fields = {"model_type": "llama", "num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 172,
              "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024}  # fmt: skip
    folder, ids = saved("deep", init, fields, tokens=1024)
    ours = trace_of(Llama.from_folder(folder, "float64"), ids)
    errors = {}

    def measure(name, value):  # one step at a time: both sides at once would be a gigabyte each
        theirs = value.numpy()
        errors[name] = np.abs(ours[name] - theirs).max() / np.abs(theirs).max()

    config = transformers.AutoConfig.from_pretrained(folder)
    torch_reference.torch64(config, torch_reference.folder_weights(folder), ids, measure)
    assert list(errors) == list(ours)
    print(f"\nlargest relative difference per layer, {init} initialisation")
    for i in range(12):
        inside = {name: e for name, e in errors.items() if name.startswith(f"blocks.{i}.")}
        worst, post = max(inside, key=inside.get), errors[f"blocks.{i}.resid_post"]
        print(f"  layer {i:2}  resid_post {post:.1e}   worst {inside[worst]:.1e} at {worst}")
    print(f"  logits    {errors['logits']:.1e}")
    assert max(errors.values()) <= rtol


# ---- float32 against transformers ------------------------------------------------------------------------------------


# Rotated queries and keys pass through no module: of phi and stablelm only the part that turns can be seen.
NOT_EXPOSED = dict.fromkeys(("opt", "phi", "stablelm", "smollm3"), ("attn.rot_q", "attn.rot_k"))


def check_float32(reference, torch, folder, ids, prompt, new_tokens, use_cache=True) -> None:
    """Every exposed step to 1e-5, the argmax of every position, and the greedy continuation of a prompt."""
    theirs, model = reference.load_transformers(folder), Llama.from_folder(folder)
    ours, steps = trace_of(model, ids), reference.run_transformers(theirs, ids)
    all_agree(ours, steps, 1e-5, missing=("attn.scores", *NOT_EXPOSED.get(model.config.model_type, ())))
    assert np.array_equal(ours["logits"].argmax(-1), steps["logits"].argmax(-1))
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None,
                "use_cache": use_cache}  # fmt: skip
    expected = theirs.generate(torch.tensor([prompt]), attention_mask=mask, **settings)[0, len(prompt) :].tolist()
    assert len(expected) == new_tokens
    assert [step.token for step in generate(model, prompt, new_tokens, stop_at_eos=False)] == expected


@pytest.mark.parametrize("name", ALL)
def test_float32_equals_transformers(saved, reference, torch, name):
    """The prompt is longer than longrope's original context: transformers changes lists when a text grows past it."""
    folder, ids = saved(name, "large")
    # The cache of transformers 5.23 keeps everything where a window of 1 should keep nothing (a slice from -0).
    check_float32(reference, torch, folder, ids, ids[:40], 60, use_cache="window of one" not in name)


@pytest.mark.shared
def test_float32_equals_transformers_on_published_weights_at_full_context(shared, reference, torch):
    folder = shared / "models" / "tinystories-656k"
    ids = story_ids(Llama.from_folder(folder), shared, 512)
    check_float32(reference, torch, folder, ids, ids[:40], 200)


# Rotary settings of published models (head size 64 to 128), at positions far beyond what the small models above reach.
LLAMA_31 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
PUBLISHED = {
    "llama 2": ({"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 128),
    "smollm2": ({"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, 64),
    "llama 3.1": ({"model_type": "llama", "rope_parameters": LLAMA_31}, 128),
    "llama 3.2": ({"model_type": "llama", "rope_parameters": LLAMA_31 | {"factor": 32.0}}, 64),
    "mistral": ({"model_type": "mistral", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 128),
    "qwen2.5": ({"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 64),
    "qwen3 with yarn": ({"model_type": "qwen3", "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}}, 128),
    "smollm3": ({"model_type": "smollm3", "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, 128),
    "linear": (
        {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}}, 128),
    "phi 3 long": ({"model_type": "phi3", "original_max_position_embeddings": 4096, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
        "short_factor": np.linspace(1.05, 2.9, 48).round(2).tolist(),
        "long_factor": np.linspace(1.03, 65.0, 48).round(2).tolist()}}, 96),
}  # fmt: skip


@pytest.mark.parametrize("length", [4096, 4097, 16384])
@pytest.mark.parametrize("name", PUBLISHED)
def test_float32_rotary_tables_equal_those_of_transformers(transformers, torch, reference, name, length):
    """Nearly all frequencies bit by bit, the rest to two units in the last place, which the position multiplies."""
    fields, d = PUBLISHED[name]
    sizes = {"hidden_size": 2 * d, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1,
             "intermediate_size": 8, "vocab_size": 8, "max_position_embeddings": 131072, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = transformers.AutoConfig.for_model(**sizes, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    cos, sin = (t[0].numpy() for t in model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None]))
    theirs = model.model.rotary_emb.inv_freq.numpy()  # longrope: of the list that the length has chosen
    rope = ModelConfig.from_dict(config.to_dict()).rope
    ours = rope_frequencies(rope, length, np.float32)
    units = np.abs(ours.view(np.int32) - theirs.view(np.int32))
    assert units.max() <= 2 and np.mean(units > 0) < 0.1
    our_cos, our_sin = rope_table(rope, length, np.float32)
    off = length * np.abs(ours.astype(float) - theirs).max() + 1e-6
    assert np.abs(our_cos - cos[:, : d // 2]).max() <= off * rope.attention_factor
    assert np.abs(our_sin - sin[:, : d // 2]).max() <= off * rope.attention_factor


# ---- what a user does with a checkpoint ------------------------------------------------------------------------------


def dump(*arguments) -> str:
    """Run weights_scripts/dump_reference.py as a user does, but write no __pycache__ beside it; gives back stderr."""
    command = [sys.executable, "-B", str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.shared
@pytest.mark.parametrize("engine, dtype", [("torch64", "float64"), ("transformers", "float32")])
def test_a_users_comparison_agrees_and_then_names_a_planted_bug(
    shared, transformers, torch, tmp_path, monkeypatch, engine, dtype
):
    """dump_reference.py in a process of its own, a saved trace beside it, and compare() on the two files."""
    folder, theirs, ours = shared / "models" / "tinystories-656k", tmp_path / "theirs.npz", tmp_path / "ours.npz"
    # The special token in the text is plain characters to both sides.
    text = "Once upon a time, Lily said </s> and 42 naïve cats laughed."
    dump(folder, "--prompt", text, "--engine", engine, "-o", theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.npz"]

    def our_trace():
        model = Llama.from_folder(folder, dtype)
        save_arrays(ours, trace_of(model, model.tokenizer.encode(text)))
        return compare(ours, theirs)

    result = our_trace()
    assert result.first is None, str(result)
    assert "compared steps agree" in str(result)
    assert result.tolerance == {"float64": 1e-10, "float32": 1e-5}[dtype]
    missing = {row.name.rsplit(".", 1)[-1] for row in result.rows if row.status != "ok"}
    assert missing == (set() if engine == "torch64" else {"scores"})

    monkeypatch.setattr(attention, "rotate_halves", rotate_interleaved)
    assert our_trace().first == "blocks.0.attn.rot_q"
    monkeypatch.undo()
    monkeypatch.setattr(attention, "causal_mask", lambda new, attended, window=None: np.tri(new, attended, 1, bool))
    assert our_trace().first == "blocks.0.attn.pattern"


def test_ids_go_in_as_they_are(saved, reference, torch, transformers, tmp_path):
    folder, ids = saved("qwen3, own head size, tied", "large")
    said = dump(folder, "--ids", ",".join(map(str, ids[:9])), "-o", tmp_path / "theirs.npz")
    assert "steps of 9 tokens" in said
    all_agree(trace_of(Llama.from_folder(folder, "float64"), ids[:9]), Trace.load(tmp_path / "theirs.npz"), 1e-12)


def test_the_committed_goldens_are_what_the_generator_writes(reference, torch, transformers, tmp_path):
    """The same configs, ids and weights to the bit, the same steps to 1e-12."""
    committed = Path(__file__).parents[1] / "goldens"
    reference.write_goldens(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in committed.iterdir()}
    for path in tmp_path.glob("*.npz"):
        with np.load(path) as new, np.load(committed / path.name) as old:
            assert new.files == old.files
            for key in new.files:
                if key.startswith("step:"):
                    assert np.abs(new[key] - old[key]).max() <= 1e-12 * np.abs(old[key]).max(), (path.name, key)
                else:
                    assert np.array_equal(new[key], old[key]), (path.name, key)
