"""The smallest models, and one whose weights are all zero, run in every command: no traceback, no RuntimeWarning."""

import json
import warnings

import numpy as np
import pytest
import tiny
from commands import one_sentence

from minillm.loading.config import ModelConfig
from minillm.loading.tensors import save_tensors

ONE = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "hidden_size": 1, "head_dim": 2}
MODELS = {"zeros": {}, "one neuron": {"intermediate_size": 1}, "one of all": {"intermediate_size": 1, **ONE}}
COMMANDS = {
    "generate": ("generate", "-p", "a cat", "-n", "3"), "perplexity": ("perplexity", "--text", "stories.txt"),
    "inspect": ("inspect", "--text", "stories.txt", "--natural"), "sizes": ("inspect", "--distributions"),
    "calibrate": ("calibrate", "--text", "stories.txt", "--policy", "mid", "--by", "neuron", "-o", "t.json"),
    "sweep": ("sweep", "--text", "stories.txt", "--policy", "dhar,cats,mid,griffin,topk", "--sparsity", "0.5"),
    "replay": ("prefetch", "replay", "--text", "stories.txt"), "table": ("prefetch", "table", "--text", "stories.txt"),
    "predict": ("predict", "eval", "--text", "stories.txt", "--predictor", "svd,shadow-3,ahead-3,learned,clusters"),
    "demo": ("demo", "--text", "stories.txt"), "patterns": ("patterns", "--text", "stories.txt"),
    "activations": ("activations", "--text", "stories.txt"),
}  # fmt: skip
SLOW = {"sizes", "demo", "table", "predict", "replay", "activations"}


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in COMMANDS])
@pytest.mark.parametrize("model", MODELS)
def test_the_smallest_models_run_everywhere(model, command, run, tmp_path):
    folder = tiny.folder(tmp_path / "model", **MODELS[model])
    if model == "zeros":
        shapes = ModelConfig.from_folder(folder).tensor_shapes()
        save_tensors(folder / "model.safetensors", {n: np.zeros(shape, np.float32) for n, shape in shapes.items()})
    words = [str(tmp_path / word) if word == "t.json" else word for word in COMMANDS[command]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        status, out, err = run(*words, "-m", folder)
    assert status == 0 and out and " nan" not in out, err


def test_a_model_of_one_position_scores_nothing_and_says_so(run, tmp_path):
    folder = tiny.folder(tmp_path / "model", max_position_embeddings=1)
    for command in (("perplexity",), ("inspect", "--natural"), ("calibrate", "-o", tmp_path / "t.json")):
        status, out, err = run(*command, "-m", folder, "--text", "one.txt")
        assert (status, out) == (1, "") and "context is 1, expected 2" in one_sentence(err)
    assert json.loads(run("inspect", "-m", folder, "--json")[1])["config"]["max_position_embeddings"] == 1
