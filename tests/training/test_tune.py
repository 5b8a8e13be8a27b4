"""Neurons in another order are the same function; grouped blocks keep more; a folder says how it was made."""

import json

import numpy as np
import pytest
import tiny
from passes import cut

import minillm
from minillm.errors import MinillmError
from minillm.prefetch.reorder import BlockOracle, energy_shares, recorded_mid, retained
from minillm.sparsity.calibrate import calibrate
from minillm.training.batches import batches_of
from minillm.training.distill import distill
from minillm.training.trainer import Plan, train
from minillm.training.tune import Settings, grouped, in_order, save_trained
from minillm.transformer.ffn import swiglu
from minillm.transformer.texts import document_hashes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.loaded(tmp_path_factory.mktemp("model"), "float32", mlp_bias=True, intermediate_size=24)


def test_a_layer_in_another_order_is_the_same_function(model):
    rng = np.random.default_rng(0)
    x, layer = rng.standard_normal((5, 8)).astype(np.float32), model.layers[1]
    other = in_order(layer, rng.permutation(24))
    assert not np.array_equal(other.gate_proj, layer.gate_proj)
    np.testing.assert_allclose(swiglu(x, other), swiglu(x, layer), rtol=1e-4, atol=1e-5)


def test_a_grouped_model_gives_the_same_logits_and_its_blocks_keep_more(model):
    made = grouped(model, tiny.STORIES, 4, 0.5)
    ids = model.tokenizer.encode("the cat sat")
    np.testing.assert_allclose(made.forward(ids), model.forward(ids), rtol=1e-3, atol=1e-4)

    def kept(each) -> float:
        mids = recorded_mid(each, tiny.STORIES)
        shares = [energy_shares(mid, layer) for mid, layer in zip(mids, each.layers, strict=True)]
        return sum(retained(share, np.arange(24), 4) for share in shares)

    assert kept(made) > kept(model)


def test_a_folder_holds_model_thresholds_and_how_they_were_made(model, tmp_path):
    thresholds = calibrate(model, tiny.STORIES[:2], policy="mid", sparsity=0.5)
    batches = batches_of(model, tiny.STORIES, 40, seed=3)
    trained = distill(model, batches, cut(model, "mid"), Plan(steps=2))
    out = save_trained(tmp_path / "out", trained, model.fingerprint, {"note": 1}, Settings(thresholds))
    about = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert (about["format"], about["seed"], about["batch"], about["note"]) == ("minillm-trained", 3, 40, 1)
    assert about["documents_sha256"] == sorted(document_hashes(tiny.STORIES))
    assert [row["loss"] for row in about["curve"]] == [row["loss"] for row in trained.curve]
    again = minillm.load(out)
    assert again.fingerprint.sha256 == trained.model.fingerprint.sha256
    read = minillm.Thresholds.load(out / "thresholds.json")
    read.check_fits(again)
    assert read.layers == thresholds.layers and set(read.documents_sha256) == set(document_hashes(tiny.STORIES))


def test_blocks_are_trained_through(model):
    made, ffn = grouped(model, tiny.STORIES, 4, 0.25), BlockOracle(4, 0.25).ffn()
    trained = distill(made, batches_of(model, tiny.STORIES), ffn, Plan(steps=30, rate=3e-3))
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"] / 2


def test_a_model_without_a_folder_is_refused(tmp_path):
    model = tiny.model(dtype=np.float32)
    batches = batches_of(tiny.loaded(tmp_path / "m", "float32", vocab_size=288), tiny.STORIES)
    clipped = batches.__class__([text % 31 for text in batches.texts], 40)
    with pytest.raises(MinillmError, match="has no folder"):
        save_trained(tmp_path / "out", train(model, clipped, Plan(steps=1)), model.fingerprint, {})
