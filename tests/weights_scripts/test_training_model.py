"""The model of the training script: what makes a step fast changes no result, the loss, and the folder."""

import numpy as np
import pytest
from scripts import load_script
from training_stories import STORIES

import minillm


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/training_model.py")


pytestmark = pytest.mark.parity


def test_a_fast_model_reads_each_document_by_itself_and_gives_the_logits_of_a_plain_one(script, tokenizer):
    import torch

    encode = load_script("weights_scripts/training_text.py").encode
    documents = encode(tokenizer, [STORIES[0], "A", STORIES[1] * 5])
    plain, exact, rounded = (script.new_model("twin", "silu", 0) for _ in range(3))
    script.make_fast(exact, False), script.make_fast(rounded, True)
    alone = [plain(torch.from_numpy(document[:-1])[None], use_cache=False).logits[0] for document in documents]
    ways = [torch.cat(alone), script.logits_of(exact, documents), script.logits_of(rounded, documents)]
    targets = torch.from_numpy(np.concatenate([document[1:] for document in documents]))
    for logits in ways:
        script.loss_on(logits, targets).backward()
    assert torch.allclose(ways[1], ways[0], atol=1e-6)
    error = (ways[2] - ways[0]).abs().max()
    assert 1e-5 < error < 2**-6 * ways[0].abs().max()  # bfloat16 has eight bits
    for a, b, c in zip(*(model.parameters() for model in (plain, exact, rounded)), strict=True):
        assert torch.allclose(b.grad, a.grad, rtol=1e-4, atol=1e-6)
        assert (c.grad - a.grad).norm() < 0.03 * a.grad.norm()


def test_an_anchor_is_its_share_of_every_target(script):
    import torch

    logits, held = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    came = torch.tensor([0, 3, 3, 6, 1])
    targets = 0.8 * torch.eye(7, dtype=torch.float64)[came] + 0.2 * held.exp() / held.exp().sum(1, keepdim=True)
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(script.loss_on(logits, came, held, 0.2), by_hand, rtol=1e-12)
    assert script.loss_on(logits, came) == torch.nn.functional.cross_entropy(logits, came)


def test_an_exported_model_is_rounded_and_the_one_in_training_is_not(script, tokenizer, tmp_path):
    import torch

    model = script.new_model("twin", "relu", 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    script.export(model, tmp_path / "tokenizer.json", tmp_path / "model")
    assert all(
        value.dtype == torch.float32 and torch.equal(value, before[n]) for n, value in model.state_dict().items()
    )
    loaded = minillm.load(tmp_path / "model")
    assert loaded.config.hidden_act == "relu" and loaded.config.tie_word_embeddings
    embedding = before["model.embed_tokens.weight"]
    assert np.array_equal(loaded.embed_tokens, embedding.bfloat16().float().numpy())
    assert script.bits_per_byte(tmp_path / "model", STORIES[:2]) > 1  # it has not been trained
