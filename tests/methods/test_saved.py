"""A pruned model on disk: the same logits here and in transformers, widths that differ, and what cannot be written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

import minillm
from minillm.errors import MinillmError
from minillm.methods.base import Variant, fit, with_layers
from minillm.methods.saved import save_variant, widened
from minillm.trace import Trace

IDS = [1, 5, 3, 9, 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("saved") / "m", "float32")


def narrowed(model):
    """The model whose layer 1 has lost its last five neurons."""
    layer = model.layers[1]
    small = replace(
        layer, gate_proj=layer.gate_proj[:7], up_proj=layer.up_proj[:7], down_proj=layer.down_proj[:, :7],
        **{name: bias[:7] for name in ("gate_bias", "up_bias") if (bias := getattr(layer, name)) is not None},
    )  # fmt: skip
    return Variant("narrow", with_layers(model, [model.layers[0], small]))


def test_a_variant_is_written_and_read_back(model, tmp_path):
    made = fit("wanda", model, tiny.STORIES, 0.5)
    again = minillm.load(save_variant(tmp_path / "out", made, model, {"more": 3}))
    assert np.array_equal(again.forward(IDS), made.model.forward(IDS))
    assert again.fingerprint.sha256 == made.model.fingerprint.sha256 != model.fingerprint.sha256
    about = json.loads((tmp_path / "out" / "pruning.json").read_text(encoding="utf-8"))
    assert (about["method"], about["more"], about["stored"]) == ("wanda", 3, made.stored)
    assert about["documents_sha256"] == sorted(made.calibrated_on) and about["spec"]["achieved"] == 0.5


def test_layers_of_different_widths_are_written_with_the_largest(model, tmp_path):
    made = narrowed(model)
    again = minillm.load(save_variant(tmp_path / "out", made, model, {}))
    assert again.config.intermediate_size == 12
    assert np.allclose(again.forward(IDS), made.model.forward(IDS), rtol=0, atol=1e-6)


def test_layers_that_are_all_narrower_make_a_narrower_model(model, tmp_path):
    small = narrowed(model).model.layers[1]
    made = Variant("narrow", with_layers(model, [replace(small, index=0), small]))
    again = minillm.load(save_variant(tmp_path / "out", made, model, {}))
    assert again.config.intermediate_size == 7 and np.array_equal(again.forward(IDS), made.model.forward(IDS))


def test_new_neurons_add_nothing_where_there_are_biases():
    layer = tiny.model("llama").layers[0]
    wide = widened(layer, 20)
    assert wide.gate_bias.shape == (20,) and wide.down_proj.shape == (8, 20)
    x = np.random.default_rng(0).normal(size=(4, 8))
    assert np.allclose(minillm.swiglu(x, wide), minillm.swiglu(x, layer), rtol=0, atol=1e-12)


def test_what_is_more_than_its_weights_is_refused(model, tmp_path):
    made = fit("wanda", model, tiny.STORIES, 0.5)
    for change in ({"ffn": lambda *_: None}, {"tap": Trace()}):
        with pytest.raises(MinillmError, match="wanda changes how a block is computed"):
            save_variant(tmp_path / "out", replace(made, **change), model, {})
    bare = tiny.model("plain")
    with pytest.raises(MinillmError, match="the model has no folder"):
        save_variant(tmp_path / "out", Variant("dense", bare), bare, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
@pytest.mark.parametrize(
    "method", ["wanda", "magnitude-2:4", "sparsegpt", "svd-whitened", "narrow", "neurons", "search"]
)
def test_transformers_gives_the_same_logits(tmp_path, method):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = tiny.loaded(tmp_path / "m", "float32", hidden_size=16, pad_token_id=0)
    made = narrowed(model) if method == "narrow" else fit(method, model, tiny.STORIES, 0.5)
    folder = save_variant(tmp_path / "out", made, model, {})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = theirs(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(made.model.forward(IDS) - logits).max() < 1e-5 * np.abs(logits).max()
