"""Every command, end to end on a tiny model: what it prints where, and what it says to wrong input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
from loopback_hub import COMMIT, LoopbackHub

import minillm
from minillm.cli import flags, model
from minillm.cli import flags as flags_module
from minillm.cli import main as cli
from minillm.cli.main import main
from minillm.transformer.texts import split_text

ROOT = Path(__file__).parents[2]
COMMANDS = ("demo", "generate", "perplexity", "inspect", "trace", "compare", "calibrate", "sweep", "download", "bench")
SEPARATOR = "\n<|endoftext|>\n"
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals, file size limits and /dev are POSIX's")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with models m, three (layers) and bare (no tokenizer), and texts."""
    here = tmp_path_factory.mktemp("cli")
    tiny.folder(here / "m")
    tiny.folder(here / "three", num_hidden_layers=3)
    tiny.folder(here / "no_bos", bos=False)
    tiny.folder(here / "long", max_position_embeddings=20_000, eos_token_id=None)
    shutil.copytree(here / "m", here / "bare")
    (here / "bare" / "tokenizer.json").unlink()
    stories = [f"{story} {number}" for number in range(3) for story in tiny.STORIES]
    texts = {"stories.txt": SEPARATOR.join(stories), "one.txt": "A cat.\nA dog.\nThe sea.", "letter.txt": "a"}
    texts |= {"empty.txt": " \n", "separators.txt": SEPARATOR * 3}
    for name, text in texts.items():
        (here / name).write_text(text, encoding="utf-8")
    (here / "latin.txt").write_bytes("café".encode("latin-1"))
    return here


@pytest.fixture(autouse=True)
def unchanged(monkeypatch, here):
    """Run in the folder, at 80 columns; what main changes for the whole process is put back."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "80")
    environment, show = dict(os.environ), warnings.showwarning
    yield
    warnings.showwarning = show
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def run(capsys):
    """run("inspect", "-m", "m") -> (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as wrong_usage:
            status = wrong_usage.code
        return status, *capsys.readouterr()

    return run


def process(*arguments: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "minillm", *map(str, arguments)], **pipes)


def one_sentence(err: str) -> str:
    """The one sentence on stderr, without its "minillm: "."""
    line = err.strip()
    assert line.startswith("minillm: ") and "\n" not in line and "Traceback" not in line, err
    assert not re.search(r"[.!?] [A-Z]", line), err
    return line.removeprefix("minillm: ")


# ---- each command does its work --------------------------------------------------------------------------------------


def test_demo_says_what_the_model_is_continues_a_prompt_and_prints_a_table_that_fits_80_columns(run):
    status, out, err = run("demo", "-m", "m", "--text", "stories.txt", "-n", "3")
    assert status == 0 and re.fullmatch(r"(minillm: note: .*\n)*\d+\.\d s\n", err)
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("m: llama, 5,992 weights") and "'Once upon a time'" in out
    lines = [line.split() for line in out.splitlines()]
    head = next(i for i, line in enumerate(lines) if line[:2] == ["policy", "target"])
    assert lines[head + 1][:5] == ["dense", "-", "0.000", "1.000", "1.000"]
    assert [line[:3] for line in lines[head + 2 : head + 13]] == [
        *([policy, "neuron", share] for share in ("30%", "50%", "70%") for policy in flags_module.DEMO_POLICIES),
        *(["dhar", "tensor", share] for share in ("30%", "50%")),
    ]
    assert "the text holds no more; 20,000 are better" in " ".join(out.split())


def test_demos_json_holds_the_same_and_scores_documents_that_it_did_not_calibrate_on(run):
    status, out, err = run("demo", "-m", "m", "--text", "stories.txt", "-n", "3", "--json")
    found, model = json.loads(out), minillm.load("m")
    assert (
        status == 0
        and list(found["continuations"]) == ["dense", *flags_module.DEMO_POLICIES]
        and len(found["rows"]) == 12
    )
    text = "".join(step.text for step in minillm.generate(model, model.tokenizer.encode("Once upon a time"), 3))
    assert found["continuations"]["dense"] == text
    _, test = split_text(Path("stories.txt").read_text(encoding="utf-8"))
    assert found["rows"][0]["nll"] == minillm.perplexity(model, test).nll
    assert sum(part["weights"] for part in found["parts"]) == 5992
    assert "note" not in err  # nothing scored was calibrated on


def test_generate_streams_the_prompt_and_its_continuation_and_nothing_else_on_stdout(run):
    model = minillm.load("m")
    steps = list(minillm.generate(model, model.tokenizer.encode("a cat"), 5))
    status, out, err = run("generate", "-m", "m", "-p", "a cat", "-n", "5")
    assert (status, out) == (0, "a cat" + "".join(s.text for s in steps) + "\n")
    assert "greedy, seed 0" in err and "5 tokens in" in err
    found = json.loads(run("generate", "-m", "m", "-p", "a cat", "-n", "5", "--json")[1])
    assert found["tokens"] == [s.token for s in steps] and found["logprobs"] == [s.logprob for s in steps]
    assert found["text"] == "".join(s.text for s in steps) and found["prompt"] == "a cat"


def test_generate_draws_the_same_from_the_same_seed(run):
    def tokens(seed):
        sampling = ("--temp", "1.5", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01", "-s", seed)
        return json.loads(run("generate", "-m", "m", "-p", "a", "-n", "12", *sampling, "--json")[1])["tokens"]

    assert tokens(1) == tokens(1) != tokens(2)


@pytest.mark.parametrize("prompt", ["🦊👩‍👩‍👧", "漢字", "שלום, مرحبا", "e\u0301\u0301", "\0\x1b", "</s><s>"])
def test_generate_takes_any_unicode_prompt(run, prompt):
    status, out, _ = run("generate", "-m", "m", "-p", prompt, "-n", "2", "--json")
    assert status == 0 and json.loads(out)["prompt"] == prompt


def test_an_empty_prompt_is_the_bos_alone_and_refused_where_there_is_none(run):
    assert "prompt of 1 tokens" in run("generate", "-m", "m", "-p", "", "-n", "2")[2]
    for command in (["generate"], ["trace"], ["demo", "--text", "one.txt"]):
        status, out, err = run(*command, "-m", "no_bos", "-p", "")
        assert (status, out) == (1, "") and "empty" in one_sentence(err)


def test_a_prompt_that_leaves_little_room_is_continued_to_the_end_of_the_context(run):
    full = "a" * 100
    ids = len(minillm.load("m").tokenizer.encode(full))
    assert len(json.loads(run("generate", "-m", "m", "-p", full, "--json")[1])["tokens"]) <= 128 - ids


def test_perplexity_prints_the_protocol_and_with_thresholds_the_accounting(run, tmp_path):
    thresholds = tmp_path / "t.json"
    model, text = minillm.load("m"), Path("one.txt").read_text(encoding="utf-8")
    score = minillm.perplexity(model, text)
    assert run("perplexity", "-m", "m", "--text", "one.txt") == (0, f"{score}\n", "")
    assert run("calibrate", "-m", "m", "--text", "stories.txt", "--policy", "mid", "-o", thresholds)[0] == 0
    status, out, err = run("perplexity", "-m", "m", "--text", "one.txt", "--thresholds", thresholds)
    assert status == 0 and "neuron sparsity 0." in out and "cut by" in err
    forms = [
        json.loads(run("perplexity", "-m", "m", "--text", "one.txt", "--thresholds", thresholds, *form, "--json")[1])
        for form in (["--dtype", "float64"], ["--dtype", "float64", "--form", "gathered"])
    ]
    assert forms[0]["nll"] == pytest.approx(forms[1]["nll"], rel=1e-12) and forms[0]["dtype"] == "float64"
    assert forms[0]["neuron_sparsity"] == forms[1]["neuron_sparsity"] > 0
    steps = json.loads(run("trace", "-m", "m", "--thresholds", thresholds, "--form", "gathered", "--json")[1])
    assert "blocks.0.mlp.mask" in steps and "blocks.0.mlp.up" not in steps  # up is never computed in full
    dense = json.loads(run("perplexity", "-m", "m", "--text", "one.txt", "--json")[1])
    assert dense["nll"] == score.nll and dense["neuron_sparsity"] == 0 and dense["read_exact"] == [1, 1, 1]


def test_scoring_what_was_calibrated_on_is_noted_on_stderr(run, tmp_path):
    run("calibrate", "-m", "m", "--text", "stories.txt", "-o", tmp_path / "t.json")
    status, out, err = run("perplexity", "-m", "m", "--text", "stories.txt", "--thresholds", tmp_path / "t.json")
    assert status == 0 and "minillm: note: 12 of the documents scored" in err and "note" not in out


def test_inspect_counts_every_weight_and_names_every_tensor(run):
    status, out, err = run("inspect", "-m", "m")
    assert (status, err) == (0, "") and "model.layers.1.mlp.down_proj.weight" in out and "hidden_size" in out
    found = json.loads(run("inspect", "-m", "m", "--json")[1])
    assert sum(part["weights"] for part in found["parts"]) == sum(np.prod(t["shape"]) for t in found["tensors"])
    assert found["config"]["hidden_size"] == 8 and len(found["tensors"]) == 2 * 9 + 3
    assert run("inspect", "-m", "bare")[0] == 0  # which needs no tokenizer


def test_inspect_counts_natural_zeros_per_layer_when_asked(run):
    status, out, err = run("inspect", "-m", "m", "--text", "stories.txt")
    natural = out[out.index("Natural sparsity") :].splitlines()
    assert (status, err) == (0, "") and max(map(len, natural)) <= 80
    lines = [line.split() for line in natural]
    head = next(i for i, line in enumerate(lines) if line[:2] == ["layer", "gate_zeros"])
    assert [line[0] for line in lines[head + 1 : head + 3]] == ["0", "1"]
    found = json.loads(run("inspect", "-m", "m", "--natural", "--text", "stories.txt", "--json")[1])["natural"]
    assert [f"{row['gate_below_10_percent']:.4f}" for row in found] == [line[3] for line in lines[head + 1 : head + 3]]


def test_trace_shows_saves_and_explains(run, tmp_path):
    status, out, err = run("trace", "-m", "m", "-p", "a", "--keep", "blocks.0.mlp.*", "--keep", "logits")
    assert (status, err) == (0, "") and len(out.splitlines()) == 1 + 6 + 1
    status, out, err = run("trace", "-m", "m", "-p", "a", "-o", tmp_path / "t.npz")
    assert (status, out) == (0, "") and "-> " in err and len(minillm.Trace.load(tmp_path / "t.npz")) == 2 * 19 + 3
    found = json.loads(run("trace", "-m", "m", "--text", "one.txt", "--json")[1])
    assert found["logits"]["shape"][1] == tiny.VOCABULARY and found["logits"]["dtype"] == "float32"
    status, out, _ = run("trace", "--explain", "blocks.0.mlp.mid")
    assert status == 0 and "m = a * u" in out and "ffn.py" in out
    assert json.loads(run("trace", "--explain", "blocks.0.mlp.mid", "--json")[1])["dims"] == "T F"


def test_compare_ends_with_0_where_all_agrees_and_1_where_something_differs(run, tmp_path):
    values = {"embed": np.ones((2, 3)), "final_norm": np.ones((2, 3)), "logits": np.full((2, 4), np.nan)}
    for name, changes in (("a", {}), ("b", {"final_norm": np.full((2, 3), 1.5)}), ("c", {"logits": np.ones((2, 4))})):
        np.savez(tmp_path / f"{name}.npz", **values | changes)
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    assert run("compare", a, a)[0] == 0
    status, out, err = run("compare", a, b)
    assert (status, err) == (1, "") and "first divergence: final_norm" in out
    assert run("compare", a, b, "--rtol", "0.6")[0] == 0
    status, out, _ = run("compare", a, c, "--json")
    found = json.loads(out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert status == 1 and found["first"] == "logits" and found["rows"][2]["max_abs"] is None
    assert found["rows"][0] == {"name": "embed", "status": "ok", "max_abs": 0, "relative": 0}


def test_calibrate_writes_our_format_and_the_papers(run, tmp_path):
    ours, papers = tmp_path / "ours.json", tmp_path / "paper-50.json"
    status, out, err = run("calibrate", "-m", "m", "--text", "stories.txt", "-o", ours)
    assert (status, err) == (0, "") and out.startswith("dhar: keep where")
    status, out, _ = run("calibrate", "-m", "m", "--text", "stories.txt", "-o", papers, "--paper", "--json")
    assert status == 0 and json.loads(out)["policy"] == "dhar"
    assert set(json.loads(papers.read_text(encoding="utf-8"))) == {"gate_proj", "up_proj", "down_proj"}
    assert minillm.Thresholds.load(ours).layers == minillm.Thresholds.load(papers).layers
    options = ("--policy", "cats", "--by", "neuron", "--sparsity", "0.4", "--quantile", "exact", "--context", "32")
    assert run("calibrate", "-m", "m", "--text", "stories.txt", "-o", ours, *options)[0] == 0
    spec = minillm.Thresholds.load(ours).spec
    assert (spec.policy, spec.by, spec.target) == ("cats", "neuron", 0.4)
    assert spec.achieved == pytest.approx(0.4, abs=0.02)


def test_sweep_prints_a_row_for_each_policy_and_sparsity_and_writes_them(run, tmp_path):
    sweep = ("sweep", "-m", "m", "--text", "stories.txt", "--policy", "mid,cats", "--sparsity", "0.3,0.6")
    status, out, err = run(*sweep, "-o", tmp_path / "rows.csv")
    assert status == 0 and len(out.splitlines()) == 1 + 5 + 1
    progress = [line.partition(":")[0] for line in err.splitlines()]
    assert progress == ["dense", "mid 0.30", "cats 0.30", "mid 0.60", "cats 0.60"]
    assert len((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()) == 6
    found = json.loads(run(*sweep, "--json", "-o", tmp_path / "rows.json")[1])["rows"]
    assert found == json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert run(*sweep, "-o", tmp_path / "rows.json")[2] == ""  # all of it is there: nothing is computed
    status, _, err = run("sweep", "-m", "three", *sweep[3:], "-o", tmp_path / "rows.json")
    assert status == 1 and "rows.json: row 1 is of another sweep (it has model m, expected three" in one_sentence(err)
    assert [(r["policy"], r["target"]) for r in found[1:]] == [
        ("mid", 0.3), ("cats", 0.3), ("mid", 0.6), ("cats", 0.6)
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rows.csv", tmp_path / "rows.json"]
    other = ("--calibration", "one.txt", "--policy", "mid", "--sparsity", "0.5", "--by", "neuron")
    assert run("sweep", "-m", "m", "--text", "stories.txt", *other)[0] == 0


def test_sweep_compares_policies_and_models_draws_and_takes_jobs(run, tmp_path):
    sweep = ("sweep", "-m", "m", "--model", "three", "--text", "stories.txt", "--by", "neuron", "--sparsity", "0.5")
    sweep += ("--policy", "mid,cats,dhar")
    status, out, err = run(*sweep, "--figure", tmp_path / "f.png")
    assert status == 0 and "figure: " in err and "Perplexity of three against" in err
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    table, compared = (part.splitlines() for part in out.split("\n\n"))
    assert [line.split()[:2] for line in table[1:-1]] == [
        [model, policy] for model in ("m", "three") for policy in ("dense", "mid", "cats", "dhar")
    ]
    assert [line.split()[:2] for line in compared[1:5]] == [
        [model, policy] for model in ("m", "three") for policy in ("cats", "dhar")
    ]
    assert compared[0].endswith("verdict") and "95 % paired bootstrap interval" in " ".join(compared)
    found = json.loads(run(*sweep, "--json", "--seed", "3", "--jobs", "2")[1])
    assert [(r["model"], r["policy"], r["baseline"]) for r in found["comparison"]] == [
        (model, policy, "mid") for model in ("m", "three") for policy in ("cats", "dhar")
    ]
    assert found["rows"] == json.loads(run(*sweep, "--json")[1])["rows"]
    other = json.loads(run(*sweep, "--json", "--baseline", "dhar")[1])["comparison"]
    assert {r["baseline"] for r in other} == {"dhar"} and len(other) == 4
    paper = ("sweep", "-m", "m", "--text", "stories.txt", "--policy", "dhar", "--figure", tmp_path / "f.svg")
    status, out, err = run(*paper)
    assert status == 0 and "Published, read off the figure: Llama-3-8B +73 at 50" in err and "verdict" not in out


def test_inspect_shows_how_large_weights_and_activations_are_and_draws_them(run, tmp_path):
    options = ("inspect", "-m", "m", "--text", "stories.txt", "--distributions")
    status, out, err = run(*options, "--figure", tmp_path / "f.svg")
    assert status == 0 and b"<svg" in (tmp_path / "f.svg").read_bytes() and "figure: " in err
    assert "of a normal distribution 0.0080 and 0.0797" in " ".join(out.split()) and "Natural" not in out
    found = json.loads(run(*options, "--natural", "--json")[1])
    assert [len(found[key]) for key in ("natural", "weight_magnitudes", "activation_magnitudes")] == [2, 6, 10]
    assert run("inspect", "-m", "m", "--text", "stories.txt", "--natural", "--figure", tmp_path / "n.png")[0] == 0
    status, _, err = run(*options, "--natural", "--figure", tmp_path / "b.svg")
    assert status == 1 and "--natural or --distributions" in one_sentence(err)


def test_download_prints_the_folder_which_inspect_then_finds_by_its_name(tmp_path):
    files = {path.name: path.read_bytes() for path in Path("m").iterdir()}
    with LoopbackHub("org/tiny", files) as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        out, err = process("download", "org/tiny", "--json", env=environment).communicate(timeout=60)
        assert json.loads(out) == {"folder": json.loads(out)["folder"], "commit": COMMIT}, err
        assert b"org/tiny@" + COMMIT.encode() in err
        offline = environment | {"HF_HUB_OFFLINE": "1"}
        out, err = process("inspect", "-m", "org/tiny@main", "--json", env=offline).communicate(timeout=60)
    assert json.loads(out)["model"] == "org/tiny" and not err


def test_bench_measures_without_torch_and_prints_a_table_or_json(run, monkeypatch):
    monkeypatch.setattr("minillm.bench.model.find_spec", lambda name: None)
    for what in ("decode", "perplexity"):
        status, out, _ = run("bench", what, "--shape", "260K", "--rounds", "1")
        assert status == 0 and out.startswith(f"{what}, random 260K, 1 rounds in turns") and "threads 1" in out
    found = json.loads(run("bench", "decode", "-m", "m", "--rounds", "1", "--json")[1])
    assert [row["name"] for row in found["rows"]] == ["minillm", "read probe"] and found["model"] == "m"


@pytest.mark.slow
def test_bench_start_measures_whole_processes(run):
    found = json.loads(run("bench", "start", "--shape", "260K", "--rounds", "1", "--json")[1])
    assert [r["name"] for r in found["rows"]] == ["import numpy", "first token from ids", "first token from text"]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("what", ["decode", "perplexity"])
def test_bench_measures_transformers_in_turns_where_it_is_installed(run, what):
    found = json.loads(run("bench", what, "--shape", "260K", "--rounds", "1", "--json")[1])
    assert found["rows"][-1]["name"] == "transformers" and "torch" in found["environment"]["transformers"]


# ---- wrong input: one sentence, status 1, nothing on stdout ----------------------------------------------------------

LONG = "a" * 300
WRONG_INPUT = [
    ("perplexity -m m --text empty.txt", "empty.txt: is empty"),
    ("perplexity -m m --text separators.txt", "the text is empty"),
    ("perplexity -m m --text latin.txt", "latin.txt: byte 3 is not UTF-8"),
    ("perplexity -m m --text m", "m: cannot be read"),
    ("perplexity -m m --text absent.txt", "absent.txt: cannot be read (No such file"),
    ("perplexity -m m --text one.txt --context 1", "context is 1, expected 2 to 128"),
    ("perplexity -m m --text one.txt --context 129", "context is 129, expected 2 to 128"),
    ("perplexity -m m --text one.txt --protocol stream", "needs at least one window of 128"),
    ("perplexity -m m --text one.txt --thresholds absent.json", "absent.json: no such file"),
    ("perplexity -m m --text one.txt --thresholds one.txt", "one.txt: "),
    ("perplexity -m bare --text one.txt", "tokenizer.json: does not exist"),
    ("demo -m bare --text one.txt", "tokenizer.json: does not exist"),
    ("demo -m m --text letter.txt", "too few to calibrate on one part and score another"),
    ("demo -m m --text separators.txt", "too few"),
    ("demo -m m --text one.txt -n 500", "ask for at most 111"),
    (f"demo -m m --text one.txt -p {LONG}", "the prompt has 302 tokens"),
    ("demo -m m --text one.txt --context 1", "context is 1"),
    ("generate -m absent -p a", "'absent': does not exist"),
    ("generate -m default-foo -p a", "'default-foo': does not exist, expected a folder, an embedded model ("),
    ("generate -m one.txt -p a", "'one.txt': is a file"),
    ("generate -m bare -p a", "tokenizer.json: does not exist"),
    ("generate -m m -p a -n 126", "ask for at most 125"),
    (f"generate -m m -p {LONG}", "the model's context holds 128"),
    ("generate -m m -p a --temperature -1", "temperature is -1.0"),
    ("generate -m m -p a --temperature nan", "temperature is nan"),
    ("generate -m m -p a --temp 1 --top-p 0", "top_p is 0.0"),
    ("generate -m m -p a --temp 1 --top-p 2", "top_p is 2.0"),
    ("generate -m m -p a --temp 1 --min-p nan", "min_p is nan"),
    ("generate -m m -p \udcff", "lone surrogate"),
    (f"trace -m m -p {LONG}", "the text has 302 tokens"),
    ("trace --explain blocks.0.mlp.midd", "did you mean"),
    ("trace -m m --keep blocks.7.*", "matched no step"),
    ("compare absent.npz absent.npz", "absent.npz: no such file"),
    ("compare one.txt one.txt", "not an .npz trace"),
    ("calibrate -m m --text one.txt --policy mid --paper -o t.json", "policy is mid, expected dhar"),
    ("calibrate -m m --text one.txt -o absent/t.json", "absent/t.json: cannot be written"),
    ("calibrate -m m --text one.txt -o m", "is not a regular file"),
    ("calibrate -m m --text one.txt -o .", "is not a regular file"),
    ("calibrate -m m --text one.txt -o one.txt/t.json", "one.txt/t.json: cannot be written"),
    (f"calibrate -m m --text one.txt -o {LONG}", "cannot be written"),
    ("trace -m m -o absent/t.npz", "absent/t.npz: cannot be written"),
    ("sweep -m m --text one.txt --policy mid,nothing", "policy 'nothing' is unknown, expected one of dhar, cats, mid"),
    ("sweep -m m --text one.txt -o rows.xlsx", "rows.xlsx: the name ends in .xlsx, expected .csv or .json"),
    ("sweep -m m --text one.txt -o absent/rows.csv", "absent/rows.csv: cannot be written"),
    ("sweep -m m --text one.txt --figure absent/f.png", "absent/f.png: cannot be written"),
    ("sweep -m m --text one.txt --figure f.pdf", "f.pdf: the name ends in .pdf, expected .png or .svg"),
    ("inspect -m m --figure f.png", "--natural or --distributions"),
    ("sweep -m m --text letter.txt", "too few"),
    ("sweep -m m --text one.txt --calibration empty.txt", "empty.txt: is empty"),
    ("download nothing", "'nothing' is no name of a model on the hub"),
    ("bench decode -m absent", "'absent': does not exist"),
    ("bench start -m bare", "tokenizer.json: does not exist"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG_INPUT, ids=[line[:60].strip("\udcff") for line, _ in WRONG_INPUT])
def test_wrong_input_gives_one_sentence_status_1_and_no_output(run, here, line, sentence):
    before = sorted(here.rglob("*"))
    status, out, err = run(*line.split(" "))
    assert (status, out) == (1, "") and sentence in one_sentence(err)
    assert sorted(here.rglob("*")) == before


def test_thresholds_of_another_model_are_refused(run, tmp_path):
    run("calibrate", "-m", "three", "--text", "one.txt", "-o", tmp_path / "t.json")
    for command in (["generate", "-p", "a"], ["perplexity", "--text", "one.txt"], ["trace"]):
        status, out, err = run(*command, "-m", "m", "--thresholds", tmp_path / "t.json")
        assert (status, out) == (1, "") and "are for 3 layers, the model has 2" in one_sentence(err)


def test_a_model_that_overflows_has_no_perplexity(run, tmp_path):
    from minillm.loading.checkpoint import load_weights
    from minillm.loading.tensors import save_tensors

    folder = shutil.copytree("m", tmp_path / "overflows")
    weights = load_weights(folder, minillm.load(folder).config)
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(1e5)  # finite scores of thousands of nats
    save_tensors(folder / "model.safetensors", weights)
    status, out, err = run("perplexity", "-m", folder, "--text", "one.txt", "--json")
    assert (status, out) == (1, "") and "not finite" in one_sentence(err)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--json", "COMMAND"),
        ("nothing", "invalid choice: 'nothing'"),
        ("generate -m m", "--prompt"),
        ("generate -m m -p a -n 0", "found '0', expected a whole number of at least 1"),
        ("generate -m m -p a -n 1.5", "found '1.5', expected a whole number of at least 1"),
        ("generate -m m -p a --top-k 0", "found '0', expected a whole number of at least 1"),
        ("generate -m m -p a --seed -1", "found '-1', expected a whole number of at least 0"),
        ("calibrate -m m --text one.txt -o t.json --sparsity 1.0", "found '1.0', expected a share from 0 to below 1"),
        ("calibrate -m m --text one.txt -o t.json --sparsity nan", "found 'nan', expected a share"),
        ("calibrate -m m --text one.txt", "--output"),
        ("calibrate -m m --text one.txt -o t.json --policy nothing", "invalid choice: 'nothing'"),
        ("sweep -m m --text one.txt --sparsity 0.5,", "found '', expected a share"),
        ("bench decode --dtype float64", "unrecognized arguments: --dtype"),  # it measures float32
        ("demo -m m --text one.txt --threads 0", "found '0'"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_was_expected(run, line, expected):
    status, out, err = run(*line.split())
    assert (status, out) == (2, "") and err.startswith("usage: minillm") and expected in err


# ---- files: nothing partial, nothing lost ----------------------------------------------------------------------------

WRITERS = {
    "calibrate": ("t.json", "--text one.txt"),
    "trace": ("t.npz", "-p a"),
    "sweep": ("t.csv", "--text one.txt --policy mid --sparsity 0.5"),
}


@POSIX
@pytest.mark.parametrize("command", WRITERS)
def test_a_disk_that_fills_up_leaves_the_older_file_and_no_partial_one(run, tmp_path, command):
    import resource  # a limit on file sizes fails in the midst of a write, as a full disk does

    name, options = WRITERS[command]
    (tmp_path / name).write_text("older", encoding="utf-8")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        status, out, err = run(command, "-m", "m", *options.split(), "-o", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sentence = one_sentence(err.splitlines()[-1])
    assert (status, out) == (1, "") and sentence == f"{tmp_path / name}: cannot be written (File too large)"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "older"


def test_a_sweep_that_fails_leaves_the_older_file(run, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("older", encoding="utf-8")
    for wrong in (["--policy", "nothing"], ["--calibration", "absent.txt"], ["--context", "1"]):
        assert run("sweep", "-m", "m", "--text", "one.txt", "-o", rows, *wrong)[0] == 1
        assert rows.read_text(encoding="utf-8") == "older"


@POSIX
@pytest.mark.parametrize("command", WRITERS)
def test_a_device_or_a_pipe_is_never_replaced_by_a_file(run, tmp_path, command):
    name, options = WRITERS[command]
    os.mkfifo(tmp_path / name)
    status, out, err = run(command, "-m", "m", *options.split(), "-o", tmp_path / name)
    assert (status, out) == (1, "") and "is not a regular file" in one_sentence(err)
    assert (tmp_path / name).is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_behind_stdout_gives_one_sentence():
    with open("/dev/full", "wb") as full:
        done = process("inspect", "-m", "m", stdout=full)
        _, err = done.communicate(timeout=60)
    assert done.returncode == 1 and one_sentence(err.decode()) == "output: No space left on device"


# ---- the process around it -------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("how", ["Ctrl-C", "the reader goes away"])
def test_an_interrupted_generation_ends_quietly(how):
    running = process("generate", "-m", "long", "-p", "a", "-n", "19000")
    try:
        assert running.stdout.read(20)  # it is in the midst of it
        if how == "Ctrl-C":
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
            assert running.returncode == 130 and err.decode().splitlines()[-1] == "minillm: interrupted"
        else:
            running.stdout.close()
            err = running.stderr.read()
            assert running.wait(timeout=60) == 0
        assert b"Traceback" not in err and b"Exception ignored" not in err
    finally:
        running.kill()
        running.wait()


def test_help_works_in_the_c_locale_at_40_columns_and_never_loads_numpy():
    script = f"""
import sys
from minillm.cli.main import main
for command in ["", *{COMMANDS}]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as done:
        assert done.code == 0, command
print("loaded:", [name for name in ("numpy", "tokenizers", "tqdm", "huggingface_hub") if name in sys.modules])
"""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "40"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | plain, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    out = done.stdout.decode("ascii")
    assert out.endswith("loaded: []\n") and out.count("usage: minillm") == 1 + len(COMMANDS)


def test_what_the_outputs_encoding_lacks_is_printed_as_an_escape():
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = process("generate", "-m", "m", "-p", "🦊", "-n", "1", env=ascii_only)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0 and out.startswith(b"\\U0001f98a"), err


def test_threads_are_set_before_numpy_is_loaded():
    script = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "numpy":
            print("threads", [os.environ.get(f"{b}_NUM_THREADS") for b in ("OMP", "OPENBLAS", "MKL")], file=sys.stderr)
sys.meta_path.insert(0, Watch())
from minillm.cli.main import main
main(["inspect", "-m", "m", "--threads", "3"])
"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stderr == "threads ['3', '3', '3']\n"


def test_a_small_model_gets_one_thread_and_a_large_one_what_blas_decides(run, monkeypatch):
    def threads(*arguments):
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        assert run("inspect", "-m", "m", *arguments)[0] == 0
        return os.environ.get("OPENBLAS_NUM_THREADS")

    assert threads() == "1" and threads("--threads", "2") == "2"
    monkeypatch.setattr(cli, "SMALL_MODEL", 100)
    assert threads() is None and threads("--threads", "2") == "2"
    assert cli.one_thread_is_best(cli.parser().parse_args(["bench", "decode", "-m", "m"]))


@POSIX
def test_a_model_folder_with_a_dangling_link_gives_one_sentence(run, tmp_path):
    shutil.copy("m/config.json", tmp_path)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    status, out, err = run("inspect", "-m", tmp_path)
    assert (status, out) == (1, "") and "model.safetensors" in one_sentence(err)


def test_without_memory_there_is_a_sentence_and_no_traceback(run, monkeypatch):
    def greedy(arguments):
        np.empty(1 << 62, np.uint8)

    monkeypatch.setattr(model, "command_inspect", greedy)
    status, out, err = run("inspect", "-m", "m")
    assert (status, out) == (1, "") and "not enough memory" in one_sentence(err)


def test_the_names_that_the_parser_offers_are_those_that_there_are():
    from minillm.sparsity.policies import POLICIES
    from minillm.sparsity.thresholds import BYS

    assert flags.POLICIES == tuple(POLICIES) and set(flags_module.DEMO_POLICIES) <= set(POLICIES)
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["calibrate", "-o", "x", "--by", "share"])
    assert all(cli.parser().parse_args(["calibrate", "-o", "x", "--by", by]).by == by for by in BYS)
