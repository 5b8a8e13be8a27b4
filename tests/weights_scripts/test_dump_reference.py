"""The command that records PyTorch's steps: texts as ids, random weights, and what it refuses."""

import json

import numpy as np
import pytest
from scripts import load_script

import minillm
from minillm.loading.embedded import embedded_model

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/dump_reference.py")


def test_a_text_has_the_ids_that_minillm_gives_it(script):
    tokenizer = minillm.load("default").tokenizer
    for text in ("Once upon a time", "Lily said </s> and <s>.", " two  spaces\n", "naïve 猫"):
        assert script.encode(embedded_model("default"), text) == tokenizer.encode(text)


def test_random_weights_depend_on_the_seed_and_leave_a_tied_head_out(script):
    import transformers

    fields = script.GOLDENS["llama_linear_biases_tied"]
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**json.loads(json.dumps(fields)))
    )
    first, same, other = (script.random_state(model, seed) for seed in (1, 1, 2))
    assert "lm_head.weight" not in first and set(first) | {"lm_head.weight"} == set(model.state_dict())
    assert all(np.array_equal(first[name], same[name]) and first[name].dtype == np.float32 for name in first)
    assert not np.array_equal(first["model.norm.weight"], other["model.norm.weight"])
    assert np.mean([first[name].mean() for name in first if "norm" in name]) == pytest.approx(1, abs=0.2)


def test_no_golden_is_written_where_the_two_engines_differ(script, monkeypatch, tmp_path):
    run = script.run_transformers
    monkeypatch.setattr(script, "run_transformers", lambda *a: {k: v + (k == "logits") for k, v in run(*a).items()})
    with pytest.raises(SystemExit, match="llama: .* at logits"):
        script.write_goldens(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["-p", "a text", "-o", "x.npz"], "MODEL_FOLDER"),
        (["{model}", "-o", "x.npz"], "--prompt, --text, --ids"),
        (["{model}", "-p", "a text"], "-o FILE"),
        (["{empty}", "-p", "a text", "-o", "x.npz"], "config.json"),
        (["{model}", "--text", "Once upon a time", "-o", "x.npz"], "Once upon a time: "),  # a text, not a file
        (["{model}", "--ids", "", "-o", "x.npz"], "0 tokens, expected 1 to 512"),
        (["{model}", "--ids", "5 " * 513, "-o", "x.npz"], "513 tokens, expected 1 to 512"),
    ],
)
def test_the_command_names_what_it_misses(script, monkeypatch, capsys, tmp_path, arguments, part):
    folders = {"model": embedded_model("default"), "empty": tmp_path}
    monkeypatch.setattr("sys.argv", ["dump_reference.py", *(a.format(**folders) for a in arguments)])
    with script.torch.no_grad(), pytest.raises(SystemExit) as caught:  # main turns gradients off: here until it ends
        script.main()
    assert caught.value.code == 2 and part in capsys.readouterr().err
