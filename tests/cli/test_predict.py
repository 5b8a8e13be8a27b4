"""predict train and predict eval on a tiny model."""

import json

import pytest
import tiny

from minillm.cli.main import main
from minillm.predictors.copies import Shadow
from minillm.predictors.files import load_predictor

TRAINING = [f"{story} And then he saw {i} red balls." for i in range(3) for story in tiny.STORIES]
TEST = tiny.STORIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("table") / "model", hidden_size=16, intermediate_size=24)


@pytest.fixture
def texts(tmp_path):
    found = {}
    for name, documents in (("train", TRAINING), ("test", TEST)):
        (tmp_path / name).write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
        found[name] = str(tmp_path / name)
    return found


def test_predict_train_writes_a_predictor_that_eval_and_perplexity_take(folder, texts, tmp_path, capsys):
    file, limits = str(tmp_path / "p.safetensors"), str(tmp_path / "t.json")
    train = ["predict", "train", "-m", str(folder), "--text", texts["train"], "-o", file, "--json"]
    assert main([*train, "--predictor", "shadow-4"]) == 0
    about = json.loads(capsys.readouterr().out)
    predictor = load_predictor(file)
    assert (about["predictor"], about["own_bytes"], about["fraction"]) == ("shadow 4-bit", predictor.nbytes, 0.5)

    rows = str(tmp_path / "rows.json")
    score = ["predict", "eval", "-m", str(folder), "--text", texts["test"], "--calibration", texts["train"]]
    assert main([*score, "--predictor", f"chance,{file}", "--sparsity", "0.3,0.5", "-o", rows, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["predictor"], row["fraction"]) for row in result["rows"]] == [
        (name, fraction) for fraction in (0.7, 0.5) for name in ("oracle", "chance", "shadow 4-bit")
    ]
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")) == result["rows"]
    assert main([*score, "--predictor", "static"]) == 0
    assert "50% of the neurons selected" in capsys.readouterr().out

    options = ["-m", str(folder), "--text", texts["train"], "--policy", "mid", "--by", "neuron", "-o", limits]
    assert main(["calibrate", *options]) == 0
    assert main(["perplexity", "-m", str(folder), "--text", texts["test"], "--predictor", file]) == 1
    assert "--predictor needs --thresholds" in capsys.readouterr().err
    use = ["perplexity", "-m", str(folder), "--text", texts["test"], "--thresholds", limits, "--predictor", file]
    assert main(use) == 0
    assert "shadow 4-bit" in capsys.readouterr().err
    assert isinstance(predictor, Shadow)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--predictor", "sign,svd", "-o", "p.safetensors"], "makes one predictor"),
        (["train", "--predictor", "oracle", "-o", "p.safetensors"], "no tables of its own"),
        (["eval", "--predictor", "magic"], "'magic' is unknown"),
        (["eval", "-o", "rows.txt"], "expected .csv or .json"),
    ],
)
def test_predict_refuses_in_one_sentence(arguments, sentence, folder, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["-m", str(folder), "--text", texts["test"]]
    assert main(["predict", *arguments, *given]) == 1
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train", "the following arguments are required: --output/-o"),
        ("train -o p.safetensors --protocol stream", "unrecognized arguments: --protocol stream (of eval)"),
        ("train -o p.safetensors --figure p.png", "(of eval)"),
        ("train -o p.safetensors --sparsity 0.3,0.5", "found '0.3,0.5', expected a share from 0 to below 1"),
        ("train -o p.safetensors --text a --calibration b", "not allowed with argument"),
        ("", "the following arguments are required: ACTION"),
        ("judge", "invalid choice: 'judge'"),
    ],
)
def test_a_flag_that_an_action_has_no_use_for_is_wrong_usage(words, sentence, run):
    status, _, said = run("predict", *words.split())
    assert status == 2 and sentence in said and "Traceback" not in said


def test_flags_may_stand_before_the_action(folder, texts, tmp_path, run):
    after = ("--text", texts["test"], "--calibration", texts["train"], "--predictor", "chance", "--json")
    rows = [json.loads(run("predict", *words)[1])["rows"] for words in (
        ("eval", "-m", folder, *after), ("-m", folder, "eval", *after), ("-m", folder, *after, "eval"))]  # fmt: skip
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 2
