"""Files of a model that are right but for one or two things give one sentence, or a model that is right."""

import json

import fuzz
import fuzz_arrays
import hostile
import numpy as np
import pytest
from hostile import LLAMA3, LONG, PHI3, QWEN, TIED, changed, tiny_shapes, tiny_tensors, write_folder

from minillm.loading.checkpoint import load_weights
from minillm.loading.config import ModelConfig
from minillm.transformer.rope import rope_table

CONFIGS = {
    "llama3": changed({"rope_scaling": {**LLAMA3}, "eos_token_id": [2, 3], "pretraining_tp": 1}),
    "v5": changed({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                   "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "phi3": changed({**PHI3, "rope_scaling": {**LONG, "type": "su"}, "sliding_window": 9}),
    "qwen2": changed({**QWEN, "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"]}),
}  # fmt: skip


def right(config: ModelConfig) -> None:
    """What every accepted config must be: sizes, ids of the vocabulary, and finite numbers at the last position."""
    assert min(config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers) > 0
    assert config.num_attention_heads % config.num_key_value_heads == 0
    ids = (*config.eos_token_ids, *([] if config.bos_token_id is None else [config.bos_token_id]))
    assert all(type(i) is int and 0 <= i < config.vocab_size for i in ids)
    assert len(config.sliding_windows) == config.num_hidden_layers
    assert np.float32(config.rms_norm_eps) > 0
    for length in (1, 3):
        assert all(np.isfinite(table).all() for table in rope_table(config.rope, length))
    last = np.float32(config.max_position_embeddings)
    assert np.isfinite(rope_table(config.rope, 2)[0]).all() and np.isfinite(last * np.float32(1e6))


@fuzz.examples
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_changed_config_is_refused_or_right(case, examples, tmp_path):
    path = tmp_path / "config.json"
    files = fuzz.json_files(CONFIGS[case])
    counts = fuzz.holds(examples, files, path, lambda path: ModelConfig.from_folder(path.parent), right)
    assert counts["accepted"] > examples // 50 and counts["refused"] > examples // 5


def complete(weights: dict[str, np.ndarray]) -> None:
    """What every accepted checkpoint must be: each matrix once, in its shape, finite, and a single set of bits."""
    assert {name: array.shape for name, array in weights.items()} == tiny_shapes(tied=True)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in weights.values())


@fuzz.examples
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_changed_index_is_refused_or_gives_the_same_weights(examples, tmp_path):
    kept = tiny_tensors(tied=True)
    folder = write_folder(tmp_path, {**kept, hostile.INV_FREQ: np.ones(2)}, changed(TIED), shards=2)
    path, config = folder / "model.safetensors.index.json", ModelConfig.from_folder(folder)

    def same(weights: dict[str, np.ndarray]) -> None:
        assert weights.keys() == kept.keys() and all(np.array_equal(weights[name], kept[name]) for name in kept)

    files = fuzz.json_files(json.loads(path.read_text(encoding="utf-8")))
    counts = fuzz.holds(examples, files, path, lambda path: load_weights(path.parent, config), same)
    assert counts["accepted"] > examples // 50 and counts["refused"] > examples // 5


@fuzz.examples
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_changed_safetensors_file_is_refused_or_complete(prefix, examples, tmp_path):
    tensors = {f"{prefix}{name}": array for name, array in tiny_tensors(tied=True).items()}
    folder = write_folder(tmp_path, {**tensors, "position_ids": ("I64", [2], bytes(16))}, changed(TIED))
    path, config = folder / "model.safetensors", ModelConfig.from_folder(folder)
    files = fuzz_arrays.safetensors_files(path.read_bytes())
    counts = fuzz.holds(examples, files, path, lambda path: load_weights(path.parent, config), complete)
    assert counts["accepted"] > examples // 50 and counts["refused"] > examples // 5
